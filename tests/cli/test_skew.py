"""A command and a service of two releases: a warning with the fix, and neither an unknown nor a missing key is in the way."""

import json
import signal

import pytest
import typer
from cli_rig import event_of, explained_of, rollout_of, status_of

from deployctl import __version__
from deployctl.cli.app import app

NEWER, OLDER = "999.0.0", "0.0.9"
STARTED = {"rollout": "r-0007", "state": "started", "message": "rollout r-0007 started"}
CHANGED = {"changed": True, "message": "done", "weight": 0, "phase": "rolled_back", "rollout": "r-0007"}
ANSWERS = {
    "GET /v1/status": status_of(),
    "GET /v1/history": {"rollouts": [rollout_of(event_of())]},
    "GET /v1/explain": explained_of(),
    "POST /v1/rollouts": STARTED,
    "POST /v1/up": {"changed": False, "message": "nothing to do"},
    "POST /v1/rollback": CHANGED,
    "POST /v1/promote": CHANGED,
    "POST /v1/pause": CHANGED,
    "POST /v1/resume": CHANGED,
    "POST /v1/labels": {"accepted": 1, "refused": 0, "refusals": []},
}
COMMANDS = [
    ["status"], ["list"], ["history"], ["explain"], ["rollback"], ["promote"], ["pause"], ["resume"],
    ["labels", "add", "digits", "labels.jsonl"], ["up", "rollout.yaml"],
    ["canary", "ramp", "rollout.yaml", "--detach"],
]  # fmt: skip


@pytest.fixture
def typed(cli, manifest, monkeypatch, capsys):
    """A command in this process, whose signals it does not keep: exit code, stdout, stderr."""
    monkeypatch.setenv("DEPLOYCTL_STATE_DIR", str(cli.state))
    monkeypatch.chdir(cli.directory)
    (cli.directory / "labels.jsonl").write_text('{"id": "a1", "label": "7"}\n')
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def run(*arguments):
        code = typer.main.get_command(app).main([*arguments], "deployctl", standalone_mode=False)
        return (code or 0, *capsys.readouterr())

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def with_more(answer):
    """As a release that has more to say would write it."""
    if isinstance(answer, dict):
        return {**{key: with_more(value) for key, value in answer.items()}, "unheard_of": {"in": ["a", 1]}}
    return [with_more(one) for one in answer] if isinstance(answer, list) else answer


def with_less(answer, depth=1):
    """As one would that knows nothing of the keys at this depth."""
    if isinstance(answer, dict):
        return {key: with_less(value, depth - 1) for key, value in answer.items()} if depth else {}
    return [with_less(one, depth) for one in answer] if isinstance(answer, list) else answer


@pytest.mark.parametrize(
    ("release", "changed"),
    [(NEWER, with_more), (OLDER, lambda answer: with_less(answer, 0)), (OLDER, with_less)],
    ids=["more keys", "no keys", "no keys below"],
)
def test_every_command_takes_an_answer_with_more_and_with_fewer_keys(typed, play, release, changed):
    service = play(release=release)
    for call, answer in ANSWERS.items():
        service.reply(call, changed(answer))
    for command in COMMANDS:
        for output in ([], ["-o", "json"]):
            code, out, err = typed(*command, *output)
            assert code == 0, err
            warnings = [line for line in err.splitlines() if "warning" in line]
            assert len(warnings) == 1, err
            assert release in warnings[0]
            if output:
                assert {json.loads(line)["schema_version"] for line in out.splitlines()} == {1}


@pytest.mark.parametrize(
    "less", [(), ("schema_version", "seq", "at", "by", "cause", "verdict", "step", "steps")]
)
def test_events_with_more_and_with_fewer_keys_are_followed_to_their_end(cli, play, manifest, less):
    service = play(release=NEWER)
    cli.holds = False
    service.reply("POST /v1/rollouts", STARTED)
    service.event("started", "pending", 0, unheard_of=1)
    service.event("melted", "liquid", 0, unheard_of=[1])
    service.event("finished", "promoted", 100, finished=True)
    tape = service.home.path / "events.jsonl"
    events = [json.loads(line) for line in tape.read_text().splitlines()]
    lines = [json.dumps({key: event[key] for key in event if key not in less}) for event in events]
    tape.write_text("\n".join(lines) + "\n")
    told = cli("canary", "ramp", manifest, "-o", "json")
    assert (told.returncode, told.stderr.count("warning")) == (0, 1)
    seen = [json.loads(line) for line in told.stdout.splitlines()]
    assert [(one["schema_version"], one["seq"], one["kind"]) for one in seen] == [
        (1, 1, "started"), (1, 2, "melted"), (1, 3, "finished"),
    ]  # fmt: skip
    assert cli("canary", "ramp", manifest).stdout.splitlines()[-1] == "digits: finished: words 3"


@pytest.mark.parametrize(
    ("release", "words"),
    [
        (NEWER, f"is of release {NEWER} and this command of {__version__}; install that one here as well: pip install"),
        (OLDER, f"is of release {OLDER} and this command of {__version__}; give it this one: deployctl upgrade digits"),
        ("", f"is of an older release and this command of {__version__}; give it this one: deployctl upgrade digits"),
    ],
)  # fmt: skip
def test_the_warning_says_which_is_which_and_what_to_do(typed, play, release, words):
    play(release=release)
    code, _, err = typed("status", "digits")
    assert code == 0
    assert err.startswith("deployctl: warning: service 'digits' ")
    assert words in err
    assert err.count("\n") == 1


def test_an_exit_code_that_this_release_does_not_know_is_read_from_the_phase(cli, play, manifest):
    service = play(release=NEWER)
    cli.holds = False
    service.reply("POST /v1/rollouts", STARTED)
    service.event("rolled_back", "rolled_back", 0, finished=True, exit_code=42)
    assert cli("canary", "ramp", manifest).returncode == 3
