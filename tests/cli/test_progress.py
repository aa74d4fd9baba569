"""Long work says how far it is, on a terminal and nowhere else, and leaves nothing behind."""

import io
import json
import os
import pty
import select
import subprocess
import time

import pytest
from cli_rig import PATIENCE

from deployctl.views.progress import Progress

LINES = 150_000


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def drawn(monkeypatch):
    """A progress on a terminal of 80 columns whose clock the test moves; gives it, the clock, and what was drawn."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    terminal, clock = Terminal(), Clock()
    return Progress("replaying", stream=terminal, now=clock), clock, terminal


def test_it_says_how_much_is_done_how_fast_and_how_long_it_takes(drawn):
    progress, clock, terminal = drawn
    clock.now += 2.0
    progress(250 << 20, 1 << 30)
    assert terminal.getvalue() == "\rreplaying  24 %  250 MiB of 1 GiB  125 MiB/s  6 s left"


def test_what_is_done_within_a_second_says_nothing(drawn):
    progress, clock, terminal = drawn
    with progress:
        clock.now += 0.9
        progress(1 << 20, 2 << 20)
    assert terminal.getvalue() == ""


def test_it_is_drawn_at_most_ten_times_a_second_and_gone_at_the_end(drawn):
    progress, clock, terminal = drawn
    with progress:
        clock.now += 1.0
        for done in range(100):
            clock.now += 0.01
            progress(done << 20, 100 << 20)
        assert 9 <= terminal.getvalue().count("\r") <= 11
    assert terminal.getvalue().endswith("\r")
    assert set(terminal.getvalue().split("\r")[-2]) == {" "}


def test_where_the_whole_is_not_known_it_says_what_is(drawn):
    progress, clock, terminal = drawn
    clock.now += 2.0
    progress(0, None, "12,000 sent")
    assert terminal.getvalue() == "\rreplaying  12,000 sent"


def test_a_narrow_terminal_gets_what_fits_on_one_row(drawn, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    progress, clock, terminal = drawn
    clock.now += 2.0
    progress(250 << 20, 1 << 30)
    assert terminal.getvalue() == "\rreplaying  24 %"


@pytest.mark.parametrize("kind", ["pipe", "dumb", "not shown"])
def test_nobody_is_told_where_nobody_looks(monkeypatch, kind):
    monkeypatch.setenv("TERM", "dumb" if kind == "dumb" else "xterm")
    stream, clock = io.StringIO() if kind == "pipe" else Terminal(), Clock()
    with Progress("replaying", shown=kind != "not shown", stream=stream, now=clock) as progress:
        clock.now += 5.0
        progress(1, 2)
    assert stream.getvalue() == ""


# ── the verbs, on a real terminal ──────────────────────────────────────────────────────────────────────────────────


class Watched:
    """A command whose stderr is a terminal, and its stdout a pipe."""

    def __init__(self, cli, *arguments, stdin=subprocess.DEVNULL):
        self._parent, child = pty.openpty()
        self.process = subprocess.Popen(
            cli.command(*arguments), stdin=stdin, stdout=subprocess.PIPE, stderr=child, cwd=cli.directory, env=cli.environment(COLUMNS="100"),
        )  # fmt: skip
        os.close(child)
        self.seen = ""

    def until(self, words):
        deadline = time.monotonic() + PATIENCE
        while words not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self._parent], [], [], 0.05)[0]:
                self.seen += os.read(self._parent, 65536).decode()

    def until_it_ends(self):
        """What it printed, and its exit code."""
        out, _ = self.process.communicate(timeout=PATIENCE)
        while select.select([self._parent], [], [], 0)[0]:
            try:
                self.seen += os.read(self._parent, 65536).decode()
            except OSError:  # the other end is closed
                break
        os.close(self._parent)
        return out.decode(), self.process.returncode


def test_labels_on_their_way_are_counted_and_then_the_line_is_gone(cli, play):
    service = play()
    service.reply("POST /v1/labels", {"accepted": 5000, "refused": 0, "refusals": []})
    watched = Watched(cli, "labels", "add", "digits", "-", stdin=subprocess.PIPE)
    rows = b"".join(b'{"id": "%d", "label": "7"}\n' % number for number in range(5001))
    began, sent = time.monotonic(), 0
    while not select.select([watched._parent], [], [], 0.3)[0]:
        assert time.monotonic() - began < PATIENCE
        watched.process.stdin.write(rows)
        watched.process.stdin.flush()
        sent += 5001
    watched.until("sending labels")
    out, code = watched.until_it_ends()
    assert code == 0
    assert f"{sent:>9}  rows read" in out
    assert watched.seen.startswith("\rsending labels  ")
    assert watched.seen.split("\r")[-2].strip() == ""
    assert watched.seen.endswith("\r")


def test_a_long_replay_says_how_long_it_still_takes(cli, manifest):
    log = cli.directory / "outcomes.jsonl"
    answer = {"ok": True, "latency_ms": 3.1, "prediction": "7"}
    both = json.dumps({"baseline": answer, "candidate": answer})[1:]
    log.write_text("".join(f'{{"t": {number / 100}, "id": "{number}", {both}\n' for number in range(LINES)))
    watched = Watched(cli, "replay", manifest, "--outcomes", str(log))
    watched.until(" left")
    watched.process.kill()
    watched.until_it_ends()
    assert watched.seen.startswith("\rreplaying  ")
    assert " %  " in watched.seen
    assert "MiB of " in watched.seen
