"""status, list, history, explain: what the service says, shown to people and to programs."""

import json
import signal

from cli_rig import event_of, explained_of, rollout_of, status_of


def test_status_tells_people_all_they_need(cli, play):
    play()
    done = cli("status")
    assert done.returncode == 0
    for fact in (
        "digits", "progressing", "1 → 2", "r-0007", "10 %", "2 of 6", "5 [10] 20 30 40 50", "error-rate",
        "12 of 19,000", "1 of 1,002", "+0.04 points [-0.10, +0.31]", "0.21 / 600", "40 / 120", "812 more",
        "http://127.0.0.1:8080", "4711", "4715",
    ):  # fmt: skip
        assert fact in done.stdout, fact
    assert done.stderr == ""


def test_status_without_a_rollout_says_what_serves(cli, play):
    idle = {
        "rollout": None,
        "phase": None,
        "step": None,
        "steps": None,
        "weight": 0,
        "candidate": None,
        "metrics": [],
    }
    play().reply("GET /v1/status", status_of(**idle))
    done = cli("status", "digits")
    assert done.returncode == 0
    assert "live 1" in done.stdout
    assert "http://127.0.0.1:8080" in done.stdout


def test_status_as_json_is_the_document_of_the_service(cli, play):
    play()
    assert json.loads(cli("status", "-o", "json").stdout) == status_of()


def test_nothing_is_cut_or_coloured_in_a_pipe(cli, play):
    play()
    narrow = cli("status", COLUMNS="20", FORCE_COLOR="1", GITHUB_ACTIONS="true", CLICOLOR_FORCE="1")
    assert "\x1b" not in narrow.stdout
    assert "…" not in narrow.stdout
    assert narrow.stdout == cli("status", TERM="dumb").stdout == cli("status", NO_COLOR="1").stdout


def test_a_terminal_gets_colour_unless_it_says_no(cli, play):
    play()
    assert "\x1b[1" in cli.on_terminal("status", until="4715", COLUMNS="80")
    shown = cli.on_terminal("status", until="4715", COLUMNS="80", NO_COLOR="1")
    assert "\x1b[3" not in shown
    assert "\x1b" not in cli.on_terminal("status", until="4715", COLUMNS="80", TERM="dumb")


def test_ascii_streams_get_no_question_marks_for_bars(cli, play):
    play()
    assert "####------" in cli("status", PYTHONIOENCODING="ascii").stdout


def test_a_manifest_is_as_good_as_a_name(cli, play, manifest):
    play()
    play("other")
    assert cli("status", manifest).stdout == cli("status", "digits").stdout


def test_several_services_and_no_name_is_a_usage_error_that_names_them(cli, play):
    play()
    play("other")
    done = cli("status", "-o", "json")
    assert done.returncode == 2
    assert done.stderr == "deployctl: several services run, name one: digits, other\n"
    assert json.loads(done.stdout) == {
        "schema_version": 1, "error": "several services run, name one: digits, other", "exit_code": 2
    }  # fmt: skip


def test_list_shows_those_that_run_and_those_that_do_not(cli, play):
    play()
    stopped = play("other")
    stopped.process.terminate()
    stopped.process.wait()
    done = cli("list")
    assert done.returncode == 0
    head, digits, other = done.stdout.splitlines()
    assert head.split() == ["service", "state", "live", "phase", "step", "weight", "strategy", "url"]
    assert digits.split()[:2] == ["digits", "running"]
    assert "http://127.0.0.1:8080" in digits
    assert other.split() == ["other", "stopped", *"------"]
    rows = json.loads(cli("list", "-o", "json").stdout)["services"]
    assert [row["state"] for row in rows] == ["running", "stopped"]


def test_list_of_nothing_is_no_error(cli):
    done = cli("list", "-o", "json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"schema_version": 1, "services": []})


def test_watching_the_status_in_a_pipe_prints_lines_until_interrupted(cli, play):
    service = play()
    watching = cli.start("status", "-w")
    first = watching.stdout.readline()
    assert "step 2 of 6" in first
    assert "12 of 19,000" in first
    service.reply("GET /v1/status", status_of(phase="promoted", weight=100))
    assert "promoted" in watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    assert watching.wait() == 6


def test_several_services_are_watched_together_where_none_is_named(cli, play):
    service = play()
    play("other")
    watching = cli.start("status", "-w")
    line = "running  version 1  progressing  step 2 of 6  10 %  canary  http://127.0.0.1:8080\n"
    assert [watching.stdout.readline() for _ in range(2)] == [f"digits  {line}", f"other  {line}"]
    service.reply("GET /v1/status", status_of(phase="promoted", weight=100, finished=True))
    assert watching.stdout.readline() == "digits  running  version 1  promoted  http://127.0.0.1:8080\n"
    watching.send_signal(signal.SIGINT)
    assert watching.wait() == 6


def test_watching_as_json_prints_one_document_each_time(cli, play):
    play()
    watching = cli.start("status", "-w", "-o", "json")
    assert [json.loads(watching.stdout.readline()) for _ in range(2)] == [status_of()] * 2
    watching.terminate()
    watching.wait()


def test_watching_a_service_that_goes_away_ends_with_8(cli, play):
    service = play()
    watching = cli.start("status", "-w")
    watching.stdout.readline()
    service.process.terminate()
    assert watching.wait() == 8
    assert "is not running" in watching.stderr.read()


def test_the_live_screen_shows_status_and_events(cli, play):
    play().reply("GET /v1/explain", explained_of())
    shown = cli.on_terminal("status", "-w", until="error-rate is worse", COLUMNS="80", LINES="40")
    assert "\x1b[" in shown
    for fact in ("12 of 19,000", "1 of 1,002", "40 / 120", "812 more"):
        assert fact in shown


def test_a_dumb_terminal_watches_in_lines(cli, play):
    play()
    assert "\x1b" not in cli.on_terminal("status", "-w", until="19,000", TERM="dumb")


def test_history_shows_each_event_with_its_evidence(cli, play):
    rollout = rollout_of(event_of())
    play().reply("GET /v1/history", {"rollouts": [rollout]})
    done = cli("history")
    assert done.returncode == 0
    for fact in (
        "r-0007",
        "1 → 2",
        "12:00:01",
        "error-rate is worse",
        "fail",
        "harm 812 / 600",
        "12 of 19,000",
    ):
        assert fact in done.stdout, fact
    assert json.loads(cli("history", "-o", "json").stdout)["rollouts"] == [rollout]


def test_explain_says_the_sentence_first(cli, play):
    play().reply("GET /v1/explain", explained_of())
    done = cli("explain", "digits", "--rollout", "r-0007")
    assert done.stdout.startswith("2 answered worse than 1\n")
    for fact in (
        "decided by error-rate",
        "12 of 19,000",
        "812 / 600",
        "what would have changed it",
        "fewer bad answers",
    ):
        assert fact in done.stdout, fact
    assert json.loads(cli("explain", "-o", "json").stdout)["sentence"] == "2 answered worse than 1"


def test_a_reader_that_has_seen_enough_is_no_error(cli, play):
    play().reply("GET /v1/history", {"rollouts": [rollout_of(*[event_of()] * 5000)]})
    reading = cli.start("history")
    assert "r-0007" in reading.stdout.readline()
    reading.stdout.close()
    assert reading.wait() == 0
    assert reading.stderr.read() == ""
