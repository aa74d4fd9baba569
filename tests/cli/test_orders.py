"""rollback, promote, pause, resume, up, down: what is asked of the service, what is said, how it ends."""

import json

import pytest
from cli_rig import MANIFEST, status_of

ROLLED_BACK = {
    "changed": True, "message": "rolled back to version 1, weight 0 read back", "weight": 0, "phase": "rolled_back",
    "rollout": "r-0007",
}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "order"),
    [
        (
            ["rollback", "digits", "--reason", "wrong on 7"],
            {"call": "POST /v1/rollback", "by": "person:anna", "reason": "wrong on 7", "to": None},
        ),
        (
            ["rollback", "--to", "3"],
            {"call": "POST /v1/rollback", "by": "person:anna", "reason": "", "to": "3"},
        ),
        (
            ["promote", "digits", "--full", "--reason", "urgent"],
            {"call": "POST /v1/promote", "by": "person:anna", "full": True, "reason": "urgent"},
        ),
        (["pause"], {"call": "POST /v1/pause", "by": "person:anna"}),
        (["resume"], {"call": "POST /v1/resume", "by": "person:anna"}),
    ],
)
def test_an_order_says_who_and_why_and_prints_what_changed(cli, play, arguments, order):
    service = play()
    service.reply(order["call"], ROLLED_BACK)
    done = cli(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "digits: rolled back to version 1, weight 0 read back\n"
    assert service.orders() == [order]
    document = json.loads(cli(*arguments, "-o", "json").stdout)
    assert document == {"schema_version": 1, "service": "digits", **ROLLED_BACK}


def test_promoting_without_evidence_needs_a_reason(cli, play):
    service = play()
    done = cli("promote", "digits", "--full")
    assert done.returncode == 2
    assert "--reason" in done.stderr
    assert service.orders() == []


def test_what_the_service_refuses_comes_back_with_its_words_and_its_code(cli, play):
    play().reply("POST /v1/rollback", {"error": "not confirmed within 5 s: call a person", "exit_code": 4})
    done = cli("rollback")
    assert (done.returncode, done.stderr) == (4, "deployctl: not confirmed within 5 s: call a person\n")


def test_an_order_survives_a_controller_that_restarts(cli, play):
    service = play()
    service.reply("POST /v1/rollback", ROLLED_BACK)
    service.kill_controller()
    assert cli("rollback").returncode == 0


@pytest.mark.parametrize("verb", ["status", "rollback", "promote", "pause", "resume", "history", "explain"])
def test_a_service_that_does_not_run_is_8_and_says_how_to_start_it(cli, verb):
    done = cli(verb, "digits")
    assert done.returncode == 8
    assert done.stderr == "deployctl: service 'digits' is not running; start it with: deployctl up FILE\n"
    assert cli(verb).returncode == 8


def test_a_name_that_is_no_name_is_a_usage_error(cli):
    done = cli("status", "../etc")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_up_of_a_service_that_runs_already_is_no_error(cli, play, manifest):
    service = play()
    service.reply("POST /v1/up", {"changed": False, "message": "nothing to do"})
    done = cli("up", manifest, "-o", "json")
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert document == {
        "schema_version": 1, "service": "digits", "url": "http://127.0.0.1:8080", "live": "1",
        "pid": service.process.pid, "state": "running",
    }  # fmt: skip
    assert service.orders()[0]["path"] == manifest


def test_up_with_another_spec_service_is_a_conflict(cli, play, manifest):
    play().reply("POST /v1/up", {"error": "spec.service.listen differs", "exit_code": 7})
    assert cli("up", manifest).returncode == 7


@pytest.mark.parametrize("command", [["up"], ["canary", "ramp"], ["status"]])
def test_an_invalid_manifest_is_2_with_each_problem_on_its_line(cli, tmp_path, command):
    file = tmp_path / "wrong.yaml"
    file.write_text(
        MANIFEST.format(name="digits")
        .replace("minDwell", "minDwel")
        .replace("setWeight: 10", "setWeight: 900")
    )
    done = cli(*command, str(file), "-o", "json")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) >= 2
    assert all(line.startswith(f"{file}:") for line in lines)
    document = json.loads(done.stdout)
    assert (document["exit_code"], document["problems"]) == (2, lines)


def test_a_manifest_that_is_not_there_is_2(cli):
    done = cli("up", "missing.yaml")
    assert (done.returncode, done.stderr) == (
        2,
        "deployctl: missing.yaml: cannot be read: No such file or directory\n",
    )


def test_a_model_that_is_not_there_ends_up_with_2_in_the_foreground_and_in_the_background(cli, manifest):
    for arguments in (["up", manifest], ["up", manifest, "--detach"], ["up", manifest, "-o", "json"]):
        done = cli(*arguments)
        assert done.returncode == 2, done.stderr
        assert "v1.onnx" in done.stderr
        assert "Traceback" not in done.stderr


def test_down_stops_it_and_twice_is_the_same_as_once(cli, play):
    service = play()
    assert cli("down", "digits").stdout == "digits: stopped\n"
    assert service.process.wait() == 0
    again = cli("down", "digits", "-o", "json")
    assert (again.returncode, json.loads(again.stdout)["changed"]) == (0, False)


def test_a_service_of_another_status_is_told_apart_from_a_bug(cli, play):
    play().reply("GET /v1/status", status_of() | {"rollout": None})
    assert cli("status").returncode == 0
