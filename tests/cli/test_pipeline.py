"""Reports of real commands to a pipeline; the commands run in this process, the service is a stand-in that plays what the test wrote."""

import json
import os
import resource
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import ci_runner
import pytest
from cli_rig import MANIFEST, METRIC, PATIENCE, Cli, Playing, wait_for

from deployctl import __main__
from deployctl.cli import ending, follow, pipeline
from deployctl.cli.manifests import read_manifest
from deployctl.views import junit, markdown, workflow
from deployctl.wire.admin import AdminClient

READ_BEFORE_THE_FORK = (AdminClient, ending, junit, markdown, workflow)
STARTED = {"rollout": "r-0007", "state": "started", "message": "rollout r-0007 started"}
BAD = METRIC | {"verdict": "fail", "words": "the candidate gave 98 of 1,002 (9.78 %) errors", "candidate": {"n": 1002, "bad": 98}}  # fmt: skip
SENTENCE = "Version 2 was rolled back at 5 % by the gate; version 1 serves."
EXPLAINED = {
    "service": "digits", "rollout": "r-0007", "baseline": "1", "candidates": ["2"], "phase": "rolled_back", "sentence": SENTENCE,
    "decided_by": "error-rate", "metrics": [BAD],
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
    """What a command imports when it runs is there already."""
    import httpx  # noqa: F401 - as it says

    file = tmp_path_factory.mktemp("first") / "rollout.yaml"
    file.write_text(MANIFEST.format(name="first"))
    read_manifest(str(file))


@pytest.fixture(scope="module")
def playing():
    with tempfile.TemporaryDirectory(prefix="dctl") as state:
        cli = Cli(Path(state), Path(state))
        one = Playing.of(cli, "digits")
        yield one
        one.end()


def begun(one, monkeypatch, manifest):
    monkeypatch.setenv("DEPLOYCTL_STATE_DIR", str(one.home.path.parent))
    monkeypatch.chdir(Path(manifest).parent)
    one.reply("POST /v1/rollouts", STARTED)
    one.event("started", "pending", 0)
    one.event("climbed", "progressing", 5)
    return one


@pytest.fixture
def service(playing, monkeypatch, manifest):
    """One stand-in for all tests, which remembers nothing of the one before."""
    playing.forget()
    return begun(playing, monkeypatch, manifest)


def rolled_back(service, **more):
    service.event("rolled_back", "rolled_back", 0, finished=True, exit_code=3, **more)
    tape = (service.home.path / "events.jsonl").read_text().splitlines()
    service.reply("GET /v1/explain", EXPLAINED | {"events": [json.loads(line) for line in tape]})


@pytest.fixture
def github(tmp_path, monkeypatch):
    """The environment of a step, as the runner makes it."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"):
        (tmp_path / name).touch()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


@pytest.fixture
def run(tmp_path_factory, monkeypatch):
    """A command in a fork of this process, which has read its modules already: its exit code, its stdout, its stderr."""
    folder = tmp_path_factory.mktemp("streams")

    def one(*arguments, meanwhile=lambda child, out: None, **environment):
        out, err = folder / f"out-{len([*folder.iterdir()])}", folder / "err"
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # threads of pytest, which the child does not need
            child = os.fork()
        if child == 0:
            try:
                os.environ.update(environment)
                sys.argv = ["deployctl", *map(str, arguments)]
                sys.stdout, sys.stderr = out.open("w"), err.open("w")
                __main__.main()
            except SystemExit as left:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(int(left.code or 0))
            finally:
                os._exit(99)
        meanwhile(child, out)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), out.read_text(), err.read_text()

    return one


def test_github_is_told_by_summary_outputs_and_an_annotation_at_the_metric(service, github, run):
    rolled_back(service)
    code, out, err = run("canary", "ramp", "rollout.yaml", "-o", "json")
    assert code == 3
    assert [json.loads(line)["seq"] for line in out.splitlines()] == [1, 2, 3]
    metric, end = ci_runner.commands_in(err)
    line = (github / "rollout.yaml").read_text().splitlines().index(
        "      - {name: error-rate, margin: 0.5%}"
    ) + 1
    assert metric.name == "error"
    assert metric.properties == {
        "file": "rollout.yaml",
        "line": str(line),
        "col": "9",
        "title": "error-rate: fail",
    }
    assert metric.data == BAD["words"]
    assert (end.name, end.properties["title"]) == ("error", "deployctl canary ramp: rolled back")
    told = ci_runner.file_command((github / "GITHUB_OUTPUT").read_text())
    assert {name: told[name] for name in ("verdict", "phase", "rollout", "exit_code")} == {
        "verdict": "fail", "phase": "rolled_back", "rollout": "r-0007", "exit_code": "3",
    }  # fmt: skip
    summary = (github / "GITHUB_STEP_SUMMARY").read_text()
    assert told["report"] == summary.rstrip("\n")
    assert summary.startswith(f"### digits: rolled back\n\n**{SENTENCE}**\n")
    assert "| error-rate | fail | 12 of 19,000 (0.0632 %) | 98 of 1,002 (9.78 %) |" in summary
    assert "`deployctl explain digits --rollout r-0007`" in summary


def test_what_users_wrote_becomes_no_command_in_what_is_printed(service, github, run):
    rolled_back(service, reason="x\n::set-output name=verdict::pass\n##[add-mask]e", by="person:##[warning]a")
    code, out, err = run("canary", "ramp", "rollout.yaml")
    assert code == 3
    assert ci_runner.commands_in(out) == []
    assert {command.name for command in ci_runner.commands_in(err)} == {"error"}
    assert len(out.splitlines()) == 4
    told = EXPLAINED | {"sentence": "x\n ::warning::a ##[error]b", "would_change": "\r::set-output name=a::b"}
    service.reply("GET /v1/explain", told | {"events": []})
    for more in ((), ("-o", "json")):
        code, out, _ = run("explain", "digits", *more)
        assert (code, ci_runner.commands_in(out)) == (0, [])
        assert "[error]b" in out or "u0023[error]b" in out
    assert json.loads(out)["sentence"] == told["sentence"]


def climbed(out):
    wait_for(lambda: out.exists() and "climbed" in out.read_text())


def test_a_watching_that_ends_is_no_verdict_and_says_how_to_follow_and_to_undo(service, github, run):
    def cancel(child, out):
        climbed(out)
        os.kill(child, signal.SIGTERM)

    code, _, err = run("canary", "ramp", "rollout.yaml", meanwhile=cancel)
    assert code == 6
    (end,) = ci_runner.commands_in(err)
    assert end.name == "warning"
    assert end.properties["title"] == "deployctl canary ramp: no verdict yet: the watching ended"
    told = ci_runner.file_command((github / "GITHUB_OUTPUT").read_text())
    assert (told["verdict"], told["phase"], told["exit_code"]) == ("none", "progressing", "6")
    assert "The command ended (SIGTERM) before the end of the rollout was seen" in told["report"]
    assert "progressing at 5 %" in told["report"]
    assert "follow it: `deployctl canary ramp rollout.yaml`" in told["report"]
    assert "undo it: `deployctl rollback digits`" in told["report"]


def test_a_service_that_is_lost_is_no_verdict_and_the_report_says_what_was_last_seen(
    play, github, run, monkeypatch, manifest
):
    service = begun(play(), monkeypatch, manifest)
    monkeypatch.setattr(follow, "RECONNECT_SECONDS", 0.1)

    def lost(_child, out):
        climbed(out)
        service.process.terminate()

    code, _, err = run("canary", "ramp", "rollout.yaml", meanwhile=lost)
    assert code == 8
    assert ci_runner.commands_in(err)[-1].name == "error"
    told = ci_runner.file_command((github / "GITHUB_OUTPUT").read_text())
    assert (told["verdict"], told["exit_code"]) == ("none", "8")
    assert "it is not known from here how the rollout goes on; last seen: climbed" in told["report"]


def test_gitlab_gets_junit_and_variables_in_the_folder_of_the_project(service, run, tmp_path, monkeypatch):
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.setenv("GITLAB_CI", "true")
    monkeypatch.setenv("CI_PROJECT_DIR", str(project))
    rolled_back(service)
    code, _, err = run("canary", "ramp", "rollout.yaml")
    assert (code, ci_runner.commands_in(err)) == (3, [])
    assert sorted(path.name for path in project.iterdir()) == ["deployctl-junit.xml", "deployctl.env"]
    suite = ci_runner.junit((project / "deployctl-junit.xml").read_text())
    assert {name: case[0] for name, case in suite.cases.items()} == {
        "error-rate": "failure",
        "end of the rollout": "failure",
    }
    assert suite.attributes["timestamp"] == "2026-01-01T12:00:01"
    assert ci_runner.dotenv((project / "deployctl.env").read_text()) == {
        "DEPLOYCTL_VERDICT": "fail", "DEPLOYCTL_PHASE": "rolled_back", "DEPLOYCTL_ROLLOUT": "r-0007", "DEPLOYCTL_EXIT_CODE": "3",
        "DEPLOYCTL_SERVICE": "digits", "DEPLOYCTL_CANDIDATE": "2",
    }  # fmt: skip


def test_any_other_system_names_its_files_and_an_option_wins_over_the_environment(service, github, run):
    rolled_back(service)
    code, _, err = run(
        "canary", "ramp", "rollout.yaml", "--ci", "none", "--junit", "j.xml", "--markdown", "m.md"
    )
    assert (code, ci_runner.commands_in(err)) == (3, [])
    assert (github / "GITHUB_OUTPUT").read_text() == (github / "GITHUB_STEP_SUMMARY").read_text() == ""
    assert ci_runner.junit((github / "j.xml").read_text()).cases["error-rate"][0] == "failure"
    assert (github / "m.md").read_text().startswith("### digits: rolled back")


def test_a_status_reports_only_where_it_is_asked_to(service, github, run):
    service.reply("GET /v1/explain", EXPLAINED | {"events": [], "metrics": [METRIC], "phase": "progressing"})
    assert run("status", "digits")[0] == 0
    assert (github / "GITHUB_STEP_SUMMARY").read_text() == ""
    assert run("status", "digits", "--junit", "j.xml", "--ci", "github")[0] == 0
    assert (github / "GITHUB_STEP_SUMMARY").read_text().startswith("### digits: progressing")
    assert ci_runner.junit((github / "j.xml").read_text()).cases["error-rate"][0] == "skipped"


@pytest.mark.parametrize(("verb", "more"), [("rollback", ()), ("promote", ("--full", "--reason", "x"))])
def test_an_order_of_a_person_is_reported_and_is_no_verdict(service, github, run, verb, more):
    service.reply(f"POST /v1/{verb}", {"message": "weight 0", "phase": "rolled_back", "rollout": "r-0007", "weight": 0})  # fmt: skip
    rolled_back(service)
    assert run(verb, "digits", *more)[0] == 0
    told = ci_runner.file_command((github / "GITHUB_OUTPUT").read_text())
    assert (told["verdict"], told["phase"], told["exit_code"]) == ("none", "rolled_back", "0")
    assert told["report"].startswith("### digits: done\n\n**weight 0**")


def test_problems_of_manifests_are_annotated_at_their_places_from_the_top_of_the_repository(
    github, run, monkeypatch, manifest
):
    folder = github / "models"
    folder.mkdir()
    bad = folder / "::set-output name=x::y.yaml"
    bad.write_text(Path(manifest).read_text().replace("minDwell", "minDwel").replace("margin", "margn"))
    monkeypatch.chdir(folder)
    code, out, err = run("lint", bad.name, manifest, "--junit", "lint.xml")
    assert code == 2
    assert ci_runner.commands_in(out) == []
    found = [(one.properties["file"], one.properties["line"]) for one in ci_runner.commands_in(err)]
    lines = bad.read_text().splitlines()
    wanted = [number for number, line in enumerate(lines, 1) if "Dwel:" in line or "margn" in line]
    assert found == [(f"models/{bad.name}", str(line)) for line in wanted]
    suite = ci_runner.junit((folder / "lint.xml").read_text())
    assert {name: case[0] for name, case in suite.cases.items()} == {bad.name: "failure", manifest: "pass"}
    told = ci_runner.file_command((github / "GITHUB_OUTPUT").read_text())
    assert (told["verdict"], told["exit_code"]) == ("fail", "2")


def test_a_manifest_that_is_invalid_or_a_service_that_is_not_there_is_reported_too(service, github, run):
    (github / "bad.yaml").write_text("kind: Rollout\n")
    assert run("canary", "ramp", "bad.yaml")[0] == 2
    assert run("canary", "ramp", "nowhere.yaml")[0] == 2
    assert run("status", "unknown", "--ci", "github", "--junit", "s.xml")[0] == 8
    told = (github / "GITHUB_STEP_SUMMARY").read_text()
    assert [line for line in told.splitlines() if line.startswith("###")] == [
        "### canary ramp: invalid; nothing was changed",
        "### canary ramp: invalid; nothing was changed",
        "### unknown: the service cannot be reached, or port, disk or permission is in the way",
    ]
    assert "`bad.yaml:1:1`" in told
    assert ci_runner.junit((github / "s.xml").read_text()).cases["deployctl status"][0] == "error"


def test_a_started_rollout_and_one_that_waits_are_no_verdict(service, github, run):
    assert run("canary", "ramp", "rollout.yaml", "--detach")[0] == 0
    service.event("awaited", "paused", 5)
    assert run("canary", "ramp", "rollout.yaml", "--until", "paused")[0] == 0
    told = (github / "GITHUB_OUTPUT").read_text()
    assert told.count("\nnone\n") == 2
    assert "let it go on: `deployctl promote digits`" in told


def unwritable(folder):
    """Files of GitHub's that cannot be written to."""
    yield str(folder / "missing")
    yield str(folder)
    yield "/dev/full"
    yield ""
    os.mkfifo(folder / "pipe")
    yield str(folder / "pipe")
    if os.geteuid() != 0:  # root may write to it
        (folder / "read-only").touch(mode=0o400)
        yield str(folder / "read-only")


def test_a_file_that_cannot_be_written_is_a_warning_and_the_exit_code_stays(service, github, run):
    rolled_back(service)
    junit_file = f"{github}/no/such/folder.xml"
    for path in unwritable(github):
        code, _, err = run("canary", "ramp", "rollout.yaml", "--junit", junit_file, GITHUB_STEP_SUMMARY=path)
        assert code == 3
        warned = [line for line in err.splitlines() if line.startswith("deployctl: warning: ")]
        assert [line.split(" could not be written: ")[0] for line in warned] == [
            "deployctl: warning: $GITHUB_STEP_SUMMARY",
            f"deployctl: warning: {junit_file}",
        ]
    assert ci_runner.file_command((github / "GITHUB_OUTPUT").read_text())["exit_code"] == "3"


def test_what_is_written_by_half_is_taken_back(service, github, run):
    before = f"mine={10_000 * 'x'}\n"
    (github / "GITHUB_OUTPUT").write_text(before)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    rolled_back(service)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
    try:
        code, _, err = run("canary", "ramp", "rollout.yaml")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 3
    assert "$GITHUB_OUTPUT could not be written: File too large" in err
    assert (github / "GITHUB_OUTPUT").read_text() == before


def test_the_summary_of_a_step_stays_within_what_a_runner_takes(service, github, run):
    summary = github / "GITHUB_STEP_SUMMARY"
    summary.write_bytes(b"x" * (pipeline.SUMMARY_LIMIT - 100))
    rolled_back(service)
    assert run("canary", "ramp", "rollout.yaml")[0] == 3
    assert pipeline.SUMMARY_LIMIT - 100 < summary.stat().st_size <= pipeline.SUMMARY_LIMIT
    assert summary.read_bytes().endswith(b"### digits: rolled back\n\n")
    summary.write_bytes(b"x" * pipeline.SUMMARY_LIMIT)
    _, _, err = run("canary", "ramp", "rollout.yaml")
    assert "has 1048576 bytes already" in err
    assert summary.stat().st_size == pipeline.SUMMARY_LIMIT


def test_a_command_that_is_cancelled_where_it_stands_reports_too(github, cli, manifest):
    log = github / "log.jsonl"
    os.mkfifo(log)
    replaying = cli.start("replay", manifest, "--outcomes", str(log), "--ci", "github")
    writer = os.open(log, os.O_WRONLY)  # returns when the replay reads
    replaying.send_signal(signal.SIGTERM)
    assert replaying.wait(PATIENCE) == 6
    os.close(writer)
    told = ci_runner.file_command((github / "GITHUB_OUTPUT").read_text())
    assert (told["verdict"], told["exit_code"]) == ("none", "6")
    assert "(SIGTERM)" in told["report"]


def test_what_is_no_file_is_written_to_and_stays_what_it_is(service, run, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    rolled_back(service)
    assert run("canary", "ramp", "rollout.yaml", "--markdown", pipe)[0] == 3
    assert os.read(reader, 1 << 16).startswith(b"### digits: rolled back")
    assert pipe.is_fifo()
    os.close(reader)
