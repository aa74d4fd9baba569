"""--help is quick, whole and plain; usage errors are one line; nobody reading is no error."""

import json
import os
import subprocess
import sys

import pytest
from cli_rig import ROOT, status_of

VERBS = [
    "demo", "init", "lint", "plan", "up", "down", "upgrade", "rollback", "promote", "pause", "resume", "status", "list", "history",
    "explain", "report", "doctor", "completion",
]  # fmt: skip
HEAVY = {
    "numpy",
    "onnxruntime",
    "httpx",
    "pydantic",
    "msgspec",
    "uvloop",
    "yaml",
    "rich",
    "asyncio",
    "deployctl.manifest",
}
LOADED = "import sys; sys.argv[1:] = ['--help']\ntry:\n  from deployctl.__main__ import main; main()\nfinally: print(*sys.modules, file=sys.stderr)"


def test_help_imports_nothing_that_only_a_verb_needs(cli):
    done = subprocess.run(
        [sys.executable, "-c", LOADED], check=True, capture_output=True, text=True, env=cli.environment()
    )
    assert not HEAVY & set(done.stderr.split())


def test_help_takes_at_most_a_fifth_more_than_an_empty_typer_app(cli):
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "startup.py"), "5"],
        check=True, capture_output=True, text=True, env=cli.environment(),
    )  # fmt: skip
    assert float(done.stdout.split("ratio")[1].split()[0]) <= 1.2


def test_help_lists_every_verb_and_cuts_nothing(cli):
    done = cli("--help", COLUMNS="20")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    for verb in [*VERBS, "canary", "labels"]:
        assert f"\n  {verb}" in cli("--help").stdout
    assert not [
        text for text in cli("--help").stdout.splitlines() if text.endswith("...") and "Usage" not in text
    ]


@pytest.mark.parametrize("verb", [*([verb] for verb in VERBS), ["canary", "ramp"], ["labels", "add"]])
def test_every_verb_has_an_example_and_takes_json(cli, verb):
    done = cli(*verb, "--help")
    assert done.returncode == 0
    assert f"deployctl {' '.join(verb)}" in done.stdout.split("Example:")[1]
    assert "--output" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["statsu"], "Did you mean 'status'"),
        (["status", "--nope"], "No such option: --nope"),
        (["canary", "ramp"], "FILE"),
        (["canary", "rmap", "x"], "Did you mean 'ramp'"),
        (["status", "a", "b"], "unexpected extra argument"),
    ],
)
def test_a_usage_error_is_one_line_and_2(cli, arguments, words):
    done = cli(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("deployctl: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    as_json = cli(*arguments, "-o", "json")
    assert json.loads(as_json.stdout)["exit_code"] == 2


def test_no_command_shows_the_help_and_is_a_usage_error(cli):
    for arguments in ([], ["canary"], ["labels"]):
        done = cli(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("Usage: deployctl")


def test_without_a_home_and_a_state_directory_it_says_what_to_set(cli):
    done = subprocess.run(
        [sys.executable, "-m", "deployctl", "list"], check=False, capture_output=True, text=True, cwd=ROOT, env={}
    )  # fmt: skip
    assert done.returncode == 8
    assert done.stderr.startswith(
        "deployctl: no state directory: neither $DEPLOYCTL_STATE_DIR nor $HOME is set"
    )
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("redirect", "code"), [(">&-", 0), ("| true", 0), (">/dev/full", 8)])
@pytest.mark.parametrize("verb", ["--help", "list -o json"])
def test_a_stdout_that_takes_nothing(cli, verb, redirect, code):
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m deployctl {verb} {redirect}; exit ${{PIPESTATUS[0]}}"],
        check=False, capture_output=True, text=True, cwd=cli.directory, env=cli.environment(),
    )  # fmt: skip
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_bug_is_one_line_unless_the_trace_is_asked_for(cli, play):
    play().reply("GET /v1/status", status_of(metrics=7))
    done = cli("status")
    assert done.returncode == 1
    assert done.stderr.startswith("deployctl: this is a bug in deployctl: TypeError")
    assert done.stderr.count("\n") == 1
    assert "Traceback" in cli("status", "--debug").stderr
    assert "Traceback" in cli("status", DEPLOYCTL_DEBUG="1").stderr


def test_the_console_script_is_this_program():
    assert 'deployctl = "deployctl.__main__:main"' in (ROOT / "pyproject.toml").read_text()
    assert os.access(ROOT / "deployctl" / "__main__.py", os.R_OK)
