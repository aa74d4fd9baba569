"""completion: what the real shells offer where a service, a version, a rollout or a file is asked for, and what it costs."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest
import typer
from cli_rig import PATIENCE
from test_help import HEAVY

from deployctl.cli.app import app
from deployctl.cli.completion import ANSWERS, answer
from deployctl.journal import Journal
from deployctl.statedir import ServiceHome

ONE, TWO, THREE = ({"version": str(n), "digest": f"sha256:{n}" + "0" * 63} for n in (1, 2, 3))


def began(rollout, baseline, *candidates):
    plan = {
        "strategy": "canary",
        "baseline": baseline,
        "candidate": candidates[0],
        "others": [*candidates[1:]],
    }
    return {
        "type": "event",
        "rollout": rollout,
        "wall": "2026-01-01T12:00:01Z",
        "event": {"kind": "started", "plan": plan},
    }


@pytest.fixture
def services(cli):
    """Two services with a past, neither of which runs; and files to choose from."""
    for name, records in (
        (
            "digits",
            [
                {"type": "served", "version": ONE},
                began("digits-1-aa", ONE, TWO),
                began("digits-2-bb", TWO, THREE),
            ],
        ),
        ("phones", [{"type": "served", "version": {"version": "human", "digest": ""}}]),
    ):
        home = ServiceHome(cli.state, name)
        home.lock().release()
        with Journal.open(home.journal) as journal:
            for record in records:
                journal.append(record)
    (cli.directory / "rollout.yaml").write_text("kind: Rollout\nmetadata:\n  name: digits\n")
    (cli.directory / "labels.csv").touch()
    (cli.directory / "my models").mkdir()
    return cli


@pytest.fixture
def offered(services, monkeypatch, capsys):
    """What the scripts are answered, in this process: a Python start for each word would take a minute."""
    monkeypatch.setenv("DEPLOYCTL_STATE_DIR", str(services.state))
    monkeypatch.chdir(services.directory)

    def ask(*words):
        answer(app, [*words])
        printed = capsys.readouterr()
        assert printed.err == ""
        return [tuple(line.split("\t")[:2]) for line in printed.out.splitlines()]

    return ask


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["rollback", "digits", "--to", ""], ["3", "2", "1"]),
        (["rollback", "rollout.yaml", "--to="], ["3", "2", "1"]),
        (["rollback", "phones", "--to", ""], []),
        (["explain", "digits", "--rollout", "digits-2"], ["digits-2-bb"]),
        (["status", "p"], ["phones"]),
        (["status", "digits", "--output", "=", "j"], ["json"]),
        (["canary", "ramp", "rollout.yaml", "--until", ""], ["paused", "promoted"]),
        (["canary", ""], ["ramp"]),
        (["labels", "add", "digits", "labels.csv", "--format", "c"], ["csv"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["promote", "digits", "--full", "--f"], []),
        (["rollback", "nobody", "--to", ""], []),
        (["no-such-verb", ""], []),
    ],
)
def test_what_is_offered_is_what_may_stand_there(offered, words, found):
    assert [value for kind, value in offered(*words) if kind == "word"] == found


def test_files_are_left_to_the_shell_by_their_ending(offered):
    assert ("files", "*.y*ml") in offered("up", "")
    assert offered("labels", "add", "digits", "") == [("files", "*")]


def test_every_argument_of_every_verb_is_completed():
    left = {(verb, one.metavar) for verb, one in arguments() if ("argument", str(one.metavar)) not in ANSWERS}
    assert left == {("completion", "bash|zsh|fish")}, "typer knows its values; others need a line in ANSWERS"


def arguments(group=None):
    for name, verb in (group or typer.main.get_command(app)).commands.items():
        if hasattr(verb, "commands"):
            yield from arguments(verb)
        else:
            yield from ((name, one) for one in verb.params if one.param_type_name == "argument")


def test_it_imports_nothing_heavy(services):
    code = "import sys; sys.argv[1:] = ['rollback', 'digits', '--to', '']\nfrom deployctl.__main__ import main; main(); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=services.environment(_DEPLOYCTL_COMPLETE="bash"),
    )
    assert done.stdout.startswith("word\t3\tdigits")
    assert not HEAVY & set(done.stderr.split())


def test_a_service_that_hangs_is_offered_and_nothing_is_asked_or_changed(services, offered, play):
    playing = play("digits")
    playing.process.send_signal(signal.SIGSTOP)
    try:
        before = state_of(services)
        assert ("word", "digits") in offered("status", "")
        assert ("word", "3") in offered("rollback", "digits", "--to", "")
        assert state_of(services) == before
        assert playing.orders() == []
    finally:
        playing.process.send_signal(signal.SIGCONT)


def state_of(cli):
    return [(path, path.lstat().st_mtime_ns, path.lstat().st_size) for path in sorted(cli.state.rglob("*"))]


def test_damage_is_no_error_here(services, offered, monkeypatch):
    journal = ServiceHome(services.state, "digits").journal
    journal.write_bytes(b'\xff\x00 {"plan":{\n' + journal.read_bytes() + b'x {"type":"served"')
    assert ("word", "3") in offered("rollback", "digits", "--to", "")
    monkeypatch.setenv("DEPLOYCTL_STATE_DIR", "/dev/null")
    assert offered("status", "") == [("files", "*.y*ml")]
    for variable in ("DEPLOYCTL_STATE_DIR", "XDG_STATE_HOME", "HOME"):
        monkeypatch.setenv(variable, "")
    assert offered("rollback", "--to", "") == []


def test_the_script_is_one_document_with_json(cli):
    script = cli("completion", "fish").stdout
    assert json.loads(cli("completion", "fish", "-o", "json").stdout) == {
        "schema_version": 1,
        "shell": "fish",
        "script": script,
    }
    assert cli("completion", "tcsh").returncode == 2


@pytest.fixture
def typed(services, tmp_path_factory):
    """The environment of a shell that finds this deployctl."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "deployctl").write_text(f'#!/bin/sh\nexec {sys.executable} -m deployctl "$@"\n')
    (folder / "deployctl").chmod(0o700)
    path = f"{folder}:{os.environ['PATH']}"
    return services.environment(PATH=path, HOME=str(folder), XDG_CONFIG_HOME=str(folder), TERM="dumb")


def shell(name):
    return shutil.which(name) or pytest.skip(f"{name} is not installed")


def test_bash_completes(services, typed):
    script = """
    source <(deployctl completion bash)
    complete -p deployctl >/dev/null || echo "it is not registered"
    try() {
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        _deployctl deployctl "${@: -1}"
        printf '%s|' "${COMPREPLY[@]}"; echo
    }
    try deployctl rollb
    try deployctl status ""
    try deployctl rollback digits --to ""
    try deployctl up "my"
    """
    done = subprocess.run(
        [shell("bash"), "--norc", "-c", script],
        capture_output=True, text=True, env=typed, cwd=services.directory, check=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["rollback|", "digits|phones|rollout.yaml|", "3|2|1|", "my models|"]
    assert done.stderr == ""


def test_fish_completes(services, typed):
    lines = [
        "deployctl rollb", "deployctl status ro", "deployctl rollback digits --to ",
        "deployctl explain digits --rollout=digits-1", "deployctl up my",
    ]  # fmt: skip
    script = "deployctl completion fish | source\n" + "".join(f"complete -C '{line}'\n" for line in lines)
    done = subprocess.run(
        [shell("fish"), "--no-config", "-c", script],
        capture_output=True, text=True, env=typed, cwd=services.directory, check=True, timeout=PATIENCE,
    )  # fmt: skip
    found = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert found == ["rollback", "rollout.yaml", "1", "2", "3", "--rollout=digits-1-aa", "my models/"]
    assert done.stderr == ""


def test_zsh_completes(services, typed):
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [shell("zsh"), "-f", "-i"], stdin=child, stdout=child, stderr=child, cwd=services.directory, env=typed,
        start_new_session=True,
    )  # fmt: skip
    os.close(child)
    try:
        say = "PS1='> '; autoload -Uz compinit; compinit -u -D; source <(deployctl completion zsh); echo rea''dy\n"
        told(parent, say, "ready")
        assert "digits --to" in told(parent, "deployctl rollb\tdi\t--to \t", "2  -- digits, sha256:2")
        told(parent, "\x15deployctl up my\t", r"up my\ models/")
        told(parent, "\x15deployctl explain digits --rollout=digits-1\t", "--rollout=digits-1-aa")
    finally:
        process.kill()
        process.wait(PATIENCE)
        os.close(parent)


def told(terminal, keys, until):
    """What the terminal shows after these keys, up to these words."""
    os.write(terminal, keys.encode())
    seen, deadline = "", time.monotonic() + PATIENCE
    while until not in seen:
        assert time.monotonic() < deadline, seen
        if select.select([terminal], [], [], 0.1)[0]:
            # What was typed is drawn anew around what a completion adds, with bells and backspaces between.
            seen = re.sub(r"[\x07\r]|.\x08", "", seen + os.read(terminal, 65536).decode(errors="replace"))
    return seen
