"""What people see: pictures taken from a real terminal (tmux), of a real service, one that plays a part, and one that is stopped.

tests/pictures/*.txt are the pictures; `--rewrite` takes them anew.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from cli_rig import METRIC, ROOT, Cli, Playing, status_of, wait_for

from deployctl.statedir import ServiceHome
from deployctl.wire.admin import AdminClient

PICTURES = ROOT / "tests" / "pictures"
COMMAND = Path(sys.executable).with_name("deployctl")
HEIGHT = 30
ENDED = re.compile(r"\[ended with (\d+)\]\n?")

pytestmark = [
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is the terminal: apt-get install tmux"),
    pytest.mark.skipif(not COMMAND.exists(), reason="the console script is not installed beside this Python"),
]

MANIFEST = """\
apiVersion: deployctl/v1
kind: Rollout
metadata: {{name: digits}}
spec:
  service: {{listen: "127.0.0.1:0", model: digits}}
  baseline: {{version: "1", uri: {models}/v1.onnx}}
  candidate: {{version: "2", uri: {models}/v2.onnx}}
  prediction: {{output: probabilities, read: argmax}}
  strategy: {{canary: {{steps: [{{setWeight: 20}}, {{setWeight: 50}}]}}}}
  analysis: {{metrics: [{{name: error-rate, margin: 0.5%}}]}}
"""
PLAYED = {
    "metrics": [METRIC, METRIC | {"name": "label-error-rate", "verdict": "pass", "baseline": {"n": 1_234_567, "bad": 45_678}}],
    "reason": "error-rate needs about 812 more candidate answers",
    "trouble": "version 2: its worker ended 5 times in a row; it is started again and again",
    "previous": "0",
}  # fmt: skip


class Terminals:
    """A tmux of our own: each command on a screen of its own, so that they run at the same time."""

    def __init__(self, cli, folder):
        self._cli = cli
        self._tmux = ["tmux", "-u", "-S", str(folder / "tmux"), "-f", os.devnull]
        self.opened = {}

    def open(self, name, width, command, **environment):
        setting = " ".join(f"{key}={value}" for key, value in environment.items())
        line = f'env {setting} {COMMAND} {command}; echo "[ended with $?]"; exec sleep 600'
        size = ["-x", str(width), "-y", str(HEIGHT)]
        self._run("new-session", "-d", "-s", name, *size, line, ";", "set-option", "-g", "status", "off")

    def picture(self, name, *flags):
        return self._run("capture-pane", "-p", "-t", name, *flags)

    def until_it_ended(self, name, *flags):
        """The picture that is left behind, and the exit code."""
        wait_for(lambda: ENDED.search(self.picture(name)))
        shown = self.picture(name, *flags)
        return ENDED.sub("", shown).rstrip("\n") + "\n", int(ENDED.search(shown)[1])

    def interrupt(self, name):
        self._run("send-keys", "-t", name, "C-c")

    def close(self):
        self._run("kill-server")

    def _run(self, *arguments):
        environment = self._cli.environment(LANG="C.UTF-8")
        done = subprocess.run([*self._tmux, *arguments], env=environment, capture_output=True, text=True, check=True)  # fmt: skip
        return done.stdout


@pytest.fixture(scope="module")
def terminals(tmp_path_factory):
    """Three services: `digits` is real and waits for its first callers, `lines` plays a canary, `old` is stopped."""
    folder = tmp_path_factory.mktemp("pictures")
    with tempfile.TemporaryDirectory(prefix="dctl", dir="/tmp") as short:
        cli = Cli(Path(short), folder)
        manifest = folder / "digits.yaml"
        manifest.write_text(MANIFEST.format(models=ROOT / "examples" / "digits" / "models"))
        arguments = ("canary", "ramp", str(manifest), "--up", "--detach")
        subprocess.run([COMMAND, *arguments], env=cli.environment(), capture_output=True, check=True)
        real = ServiceHome(cli.state, "digits").admin_socket
        with AdminClient(real) as client:
            wait_for(lambda: client.get("/v1/status")["weight"] == 20)
        ServiceHome(cli.state, "old").lock().release()
        playing = Playing.of(cli, "lines")
        playing.reply("GET /v1/status", status_of("lines", **PLAYED))
        terminals = Terminals(cli, folder)
        try:
            _open_all(terminals)
            yield terminals
        finally:
            terminals.close()
            playing.end()
            cli("down", "digits")


def _open_all(terminals):
    for width in (80, 200):
        terminals.open(f"list-{width}", width, "list")
        terminals.open(f"status-{width}", width, "status lines")
    terminals.open("waiting-80", 80, "status digits")
    terminals.open("watched-80", 80, "status -w")
    terminals.open("no-colour", 80, "list", NO_COLOR=1)
    terminals.open("dumb", 200, "list -w", TERM="dumb")


def steady(picture):
    """Without what differs from run to run, each in as many cells as before; pids, which stand last, are left out."""
    picture = re.sub(r"(?<=127\.0\.0\.1:)\d{5}\b", "#####", picture)
    picture = re.sub(r"(?<=digits-1-)[0-9a-f]{6}\b", "######", picture)
    return picture if "4711" in picture else re.sub(r"\n  pids .*", "", picture, flags=re.DOTALL) + "\n"


@pytest.mark.parametrize("name", ["list-80", "list-200", "status-80", "status-200", "waiting-80"])
def test_the_picture_is_the_one_that_was_taken(terminals, name, rewrite):
    shown, code = terminals.until_it_ended(name)
    assert code == 0
    file = PICTURES / f"{name}.txt"
    if rewrite:
        file.write_text(steady(shown).rstrip("\n") + "\n")
    assert steady(shown).rstrip("\n") + "\n" == file.read_text()
    assert "…" not in shown


def test_watched_without_a_name_all_services_are_one_table_that_is_left_behind(terminals):
    wanted = (PICTURES / "list-80.txt").read_text()
    wait_for(lambda: steady(terminals.picture("watched-80")).rstrip("\n") + "\n" == wanted)
    terminals.interrupt("watched-80")
    shown, code = terminals.until_it_ended("watched-80")
    assert code == 6
    assert steady(shown.replace("^C", "")).rstrip("\n") + "\n" == wanted


def test_a_terminal_gets_colour_unless_it_says_no(terminals):
    shown, _ = terminals.until_it_ended("list-80", "-e")
    assert "\x1b[32mrunning" in shown
    plain, _ = terminals.until_it_ended("no-colour", "-e")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", plain)
    assert (
        steady(re.sub(r"\x1b\[[0-9;]*m", "", plain)).rstrip("\n") + "\n"
        == (PICTURES / "list-80.txt").read_text()
    )


def test_a_dumb_terminal_gets_a_line_for_each_change(terminals):
    def lines():
        return [line for line in terminals.picture("dumb").splitlines() if line]

    wait_for(lambda: len(lines()) >= 3)
    assert [line.split()[:2] for line in lines()] == [
        ["digits", "running"],
        ["lines", "running"],
        ["old", "stopped"],
    ]
