"""canary ramp: every event once, whatever happens to the service, and an exit code that says how it ended."""

import json
import signal
import tempfile
from pathlib import Path

import pytest
from cli_rig import MANIFEST, PATIENCE, Cli, Playing, event_of

VERDICT = event_of()["verdict"]
STARTED = {"rollout": "r-0007", "state": "started", "message": "rollout r-0007 started"}


@pytest.fixture(scope="module", autouse=True)
def bereft(tmp_path_factory):
    """A command whose service dies while it is followed. It is waited for, so this begins first and is looked at last."""
    folder = tmp_path_factory.mktemp("bereft")
    (folder / "rollout.yaml").write_text(MANIFEST.format(name="digits"))
    with tempfile.TemporaryDirectory(prefix="dctl") as state:
        cli = Cli(Path(state), folder)
        one = Playing.of(cli, "digits")
        one.reply("POST /v1/rollouts", STARTED)
        one.event("started", "pending", 0)
        following = cli.start("canary", "ramp", "rollout.yaml", "-o", "json")
        following.stdout.readline()
        one.end()
        yield following
        cli.end()


@pytest.fixture
def service(play):
    one = play()
    one.reply("POST /v1/rollouts", STARTED)
    one.event("started", "pending", 0)
    one.event("climbed", "progressing", 5)
    return one


def test_a_promoted_rollout_is_0_and_the_order_has_the_manifest(cli, service, manifest):
    service.event("promoted", "promoted", 100)
    service.event("finished", "promoted", 100, finished=True)
    done = cli("canary", "ramp", manifest)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    for fact in ("12:00:01", "progressing", "5 %", "step 1/6", "words 2"):
        assert fact in lines[1]
    assert lines[-1] == "digits: finished: words 4"
    assert "deployctl explain digits --rollout r-0007" in done.stderr
    (order,) = service.orders()
    assert order["manifest"].startswith("apiVersion: deployctl/v1")
    assert {key: order[key] for key in ("path", "strategy", "by")} == {
        "path": manifest, "strategy": "canary", "by": "person:anna"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ({"kind": "rolled_back", "phase": "rolled_back", "finished": True, "cause": "evidence"}, 3),
        (
            {
                "kind": "rolled_back",
                "phase": "rolled_back",
                "finished": True,
                "cause": "person",
                "by": "person:bo",
            },
            3,
        ),
        ({"kind": "rolled_back", "phase": "rolled_back", "finished": True, "cause": "inconclusive"}, 5),
        (
            {
                "kind": "rolled_back",
                "phase": "rolled_back",
                "finished": True,
                "verdict": VERDICT | {"result": "inconclusive"},
            },
            5,
        ),
        ({"kind": "rolled_back", "phase": "rolled_back", "finished": True, "exit_code": 5}, 5),
        ({"kind": "held", "phase": "paused"}, 5),
        ({"kind": "retired", "phase": "retired", "finished": True}, 0),
    ],
)
def test_the_exit_code_says_how_it_ended(cli, service, manifest, event, code):
    service.event(weight=0, **event)
    done = cli("canary", "ramp", manifest, "-o", "json")
    assert done.returncode == code
    documents = [json.loads(text) for text in done.stdout.splitlines()]
    assert [document["seq"] for document in documents] == [1, 2, 3]


def test_until_promoted_does_not_wait_for_the_end(cli, service, manifest):
    service.event("promoted", "promoted", 100)
    assert cli("canary", "ramp", manifest, "--until", "promoted").returncode == 0


def test_until_paused_ends_where_a_person_is_awaited(cli, service, manifest):
    service.event("awaited", "paused", 5)
    assert cli("canary", "ramp", manifest, "--until", "paused").returncode == 0


def test_a_timeout_ends_the_watching_only(cli, service, manifest):
    done = cli("canary", "ramp", manifest, "--timeout", "300ms")
    assert done.returncode == 6
    last = done.stderr.splitlines()[-1]
    assert "goes on at 5 %" in last
    assert f"deployctl canary ramp {manifest}" in last
    assert "deployctl rollback digits" in last
    assert len(service.orders()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_watching_only(cli, service, manifest, number):
    following = cli.start("canary", "ramp", manifest)
    following.stdout.readline()
    following.send_signal(number)
    assert following.wait() == 6
    last = following.stderr.read().splitlines()[-1]
    assert last.startswith(f"deployctl: {number.name}: rollout r-0007 goes on")
    assert len(service.orders()) == 1


def test_a_cancelled_command_rolls_back_when_it_was_told_to(cli, service, manifest):
    service.reply("POST /v1/rollback", {"changed": True, "message": "rolled back", "phase": "rolled_back"})
    following = cli.start("canary", "ramp", manifest, "--rollback-on-cancel")
    following.stdout.readline()
    following.send_signal(signal.SIGTERM)
    assert following.wait() == 3
    assert service.orders()[-1]["call"] == "POST /v1/rollback"
    assert "SIGTERM" in service.orders()[-1]["reason"]


def test_a_controller_that_dies_costs_no_event_and_repeats_none(cli, service, manifest):
    following = cli.start("canary", "ramp", manifest, "-o", "json")
    seen = [json.loads(following.stdout.readline())["seq"] for _ in range(2)]
    for number in range(3):
        service.kill_controller()
        service.event("climbed", "progressing", 10 * (number + 1))
        seen.append(json.loads(following.stdout.readline())["seq"])
    service.event("finished", "promoted", 100, finished=True)
    assert following.wait() == 0
    assert [*seen, *(json.loads(text)["seq"] for text in following.stdout)] == [1, 2, 3, 4, 5, 6]


def test_detach_returns_at_once(cli, service, manifest):
    done = cli("canary", "ramp", manifest, "--detach", "-o", "json")
    assert (done.returncode, json.loads(done.stdout)) == (
        0,
        {"schema_version": 1, "service": "digits", **STARTED},
    )


def test_a_version_that_is_live_already_is_0(cli, service, manifest):
    service.reply(
        "POST /v1/rollouts",
        {"rollout": None, "state": "already_live", "message": "version 2 is live already"},
    )
    done = cli("canary", "ramp", manifest)
    assert (done.returncode, done.stdout) == (0, "digits: version 2 is live already\n")


def test_another_rollout_in_the_way_is_7(cli, service, manifest):
    service.reply("POST /v1/rollouts", {"error": "rollout r-0006 is running", "exit_code": 7})
    done = cli("canary", "ramp", manifest)
    assert (done.returncode, done.stderr) == (7, "deployctl: rollout r-0006 is running\n")


def test_a_service_that_does_not_run_is_8_and_up_is_offered(cli, manifest):
    done = cli("canary", "ramp", manifest)
    assert done.returncode == 8
    assert "--up" in done.stderr


def test_a_reader_that_leaves_ends_the_watching(cli, service, manifest):
    following = cli.start("canary", "ramp", manifest)
    following.stdout.readline()
    following.stdout.close()
    service.event("climbed", "progressing", 10)
    service.event("climbed", "progressing", 20)
    assert following.wait() == 6
    assert "Traceback" not in following.stderr.read()


def test_a_wrong_duration_is_a_usage_error_and_nothing_is_started(cli, service, manifest):
    done = cli("canary", "ramp", manifest, "--timeout", "soon")
    assert done.returncode == 2
    assert "30s" in done.stderr
    assert service.orders() == []


def test_a_terminal_gets_a_live_screen(cli, service, manifest):
    shown = cli.on_terminal("canary", "ramp", manifest, until="12 of 19,000", COLUMNS="100", LINES="40")
    assert "\x1b[" in shown
    assert "812 more" in shown


def test_joining_a_rollout_shows_its_past_and_waits_for_its_future(cli, service, manifest):
    service.event("held", "paused", 5, exit_code=5)
    service.event("climbed", "progressing", 10, by="person:bo")
    service.reply("POST /v1/rollouts", STARTED | {"state": "following"})
    service.reply("GET /v1/explain", {"events": [{"seq": seq} for seq in range(1, 5)]})
    following = cli.start("canary", "ramp", manifest, "-o", "json")
    seen = [json.loads(following.stdout.readline())["seq"] for _ in range(4)]
    service.event("rolled_back", "rolled_back", 0, finished=True, exit_code=3)
    assert following.wait() == 3
    assert seen == [1, 2, 3, 4]


def test_a_service_that_is_back_in_time_is_followed_on(cli, service, play, manifest):
    following = cli.start("canary", "ramp", manifest, "-o", "json")
    seen = [json.loads(following.stdout.readline())["seq"] for _ in range(2)]
    service.end()
    again = play()
    again.seq = 2
    again.event("finished", "promoted", 100, finished=True)
    assert following.wait(PATIENCE) == 0
    assert [*seen, *(json.loads(text)["seq"] for text in following.stdout)] == [1, 2, 3]


def test_a_service_that_does_not_come_back_is_8(bereft):
    out, err = bereft.communicate(timeout=2 * PATIENCE)
    _began, waited, last = err.splitlines()
    assert bereft.returncode == 8
    assert "it is waited for, 30 s" in waited
    assert last == "deployctl: service 'digits' is not running; start it with: deployctl up FILE"
    assert json.loads(out) == {"schema_version": 1, "error": last.removeprefix("deployctl: "), "exit_code": 8}
