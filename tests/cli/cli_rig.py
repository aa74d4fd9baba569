"""The CLI as a user has it: real processes, a real Unix socket, a service that plays what the test wrote down."""

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from output_schema import Command, hold

from deployctl import __version__
from deployctl.statedir import ServiceHome, running_pid

ROOT = Path(__file__).parents[2]
STAND_IN = Path(__file__).with_name("stand_in.py")
PATIENCE = 20.0

MANIFEST = """\
apiVersion: deployctl/v1
kind: Rollout
metadata:
  name: {name}
spec:
  service: {{listen: "127.0.0.1:0", model: digits, timeout: 500ms}}
  baseline: {{version: "1", uri: v1.onnx}}
  candidate: {{version: "2", uri: v2.onnx}}
  strategy:
    canary:
      steps: [{{setWeight: 5}}, {{setWeight: 10}}]
      minDwell: 3s
  analysis:
    metrics:
      - {{name: error-rate, margin: 0.5%}}
"""

METRIC = {
    "name": "error-rate",
    "verdict": "inconclusive",
    "baseline": {"n": 19000, "bad": 12},
    "candidate": {"n": 1002, "bad": 1},
    "effect": 0.00037,
    "interval": [-0.001, 0.0031],
    "evidence": 0.21,
    "threshold": 600.0,
    "safe_evidence": 40.2,
    "safe_threshold": 120.0,
    "margin": 0.005,
    "needed": 812,
    "excluded": None,
    "words": "not enough answers yet",
}

LEFT_OUT = (
    "explicit_version", "held_up", "client_left", "lost_pairs", "client_left_pairs", "not_written_down", "dropped_by_routers"
)  # fmt: skip


def status_of(name: str = "digits", **changes: object) -> dict[str, object]:
    """A service in the middle of a canary, as its status says it."""
    return {
        "schema_version": 1,
        "service": name,
        "live": "1",
        "previous": None,
        "phase": "progressing",
        "finished": False,
        "step": 2,
        "steps": 6,
        "step_weights": [5, 10, 20, 30, 40, 50],
        "weight": 10,
        "mirror": 0,
        "rollout": "r-0007",
        "strategy": "canary",
        "baseline": "1",
        "candidate": "2",
        "candidates": ["2"],
        "at": 12.5,
        "waits_for": None,
        "reason": "",
        "trouble": None,
        "pids": {
            "supervisor": 4711,
            "controller": 4712,
            "routers": [4713],
            "workers": {"1": 4714, "2": 4715},
        },
        "url": "http://127.0.0.1:8080",
        "model": "digits",
        "left_out": dict.fromkeys(LEFT_OUT, 0),
        "copies_dropped": {},
        "labels": {},
        "metrics": [METRIC],
        "label_files": None,
        "webhooks": [],
        "release": __version__,
        "upgrade": {"generation": 0, "left": [], "trouble": None},
    } | changes


def event_of(**changes: object) -> dict[str, object]:
    """The end of a canary that did harm, as an event says it."""
    return {
        "schema_version": 1,
        "seq": 1,
        "rollout": "r-0007",
        "kind": "rolled_back",
        "at": 12.5,
        "wall": "2026-01-01T12:00:01.250Z",
        "by": "gate",
        "cause": "evidence",
        "reason": "error-rate is worse",
        "phase": "rolled_back",
        "step": 1,
        "steps": 6,
        "weight": 0,
        "finished": True,
        "verdict": {
            "result": "fail",
            "reason": "error-rate is worse",
            "decided_by": "error-rate",
            "metrics": [METRIC | {"verdict": "fail", "evidence": 812.0}],
        },
    } | changes


def rollout_of(*events: dict[str, object]) -> dict[str, object]:
    """A rollout with these events, as history has it."""
    one, two = ({"version": version, "digest": f"sha256:{version * 64}"} for version in "12")
    return {
        "rollout": "r-0007",
        "strategy": "canary",
        "baseline": one,
        "candidate": two,
        "candidates": [two],
        "phase": "rolled_back",
        "finished": True,
        "events": [*events],
    }


def explained_of(**changes: object) -> dict[str, object]:
    """That canary, explained."""
    return {
        "schema_version": 1,
        "service": "digits",
        "rollout": "r-0007",
        "strategy": "canary",
        "baseline": "1",
        "candidate": "2",
        "candidates": ["2"],
        "phase": "rolled_back",
        "sentence": "2 answered worse than 1",
        "decided_by": "error-rate",
        "by": "gate",
        "cause": "evidence",
        "at": 12.5,
        "first_weight_at": 1.5,
        "alpha": 0.01,
        "beta": 0.05,
        "metrics": [METRIC | {"verdict": "fail", "evidence": 812.0}],
        "would_change": "fewer bad answers",
        "evidence_over_time": [{"at": 1.5, "harm": 0.5, "safe": 1.0}],
        "events": [event_of()],
    } | changes


def wait_for(claim: Callable[[], object]) -> None:
    """Until the claim holds; polling, so that no test waits longer than it must."""
    deadline = time.monotonic() + PATIENCE
    while not claim():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


@dataclass
class Playing:
    """A stand-in service of this test."""

    home: ServiceHome
    process: subprocess.Popen[bytes]
    seq: int = 0
    replies: dict[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, cli: "Cli", name: str, release: str = __version__) -> "Playing":
        """Start it; it answers the status of a canary unless told otherwise."""
        home = ServiceHome(cli.state, name)
        home.create()
        (home.path / "events.jsonl").touch()
        process = subprocess.Popen(
            [sys.executable, str(STAND_IN), str(cli.state), name, release], env=cli.environment()
        )
        one = cls(home, process)
        one.reply("GET /v1/status", status_of(name))
        wait_for(lambda: running_pid(home) and (home.path / "controller.pid").exists())
        return one

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)

    def hold(self, call: str) -> None:
        """This call is not answered until there is a reply for it."""
        self.reply(call, "held")

    def forget(self) -> None:
        """Begin again, as if nothing had been written down or asked for."""
        self.seq, self.replies = 0, {}
        for name in ("events.jsonl", "orders.jsonl"):
            (self.home.path / name).write_text("")
        self.reply("GET /v1/status", status_of(self.home.name))

    def reply(self, call: str, document: object) -> None:
        self.replies[call] = document
        fresh = self.home.path / "replies.fresh"
        fresh.write_text(json.dumps(self.replies))
        fresh.rename(self.home.path / "replies.json")

    def event(self, kind: str, phase: str, weight: float, **more: object) -> None:
        self.seq += 1
        told = {"seq": self.seq, "kind": kind, "at": self.seq * 1.5, "reason": f"words {self.seq}"}
        where = {"phase": phase, "weight": weight, "finished": False, "verdict": None}
        document = event_of(**told, **where) | more
        with (self.home.path / "events.jsonl").open("a") as tape:
            fcntl.flock(tape, fcntl.LOCK_EX)
            tape.write(json.dumps(document) + "\n")

    def orders(self) -> list[dict[str, object]]:
        """What was asked for, questions left out."""
        log = self.home.path / "orders.jsonl"
        read = [json.loads(text) for text in log.read_text().splitlines()] if log.exists() else []
        return [order for order in read if order["call"].startswith("POST")]

    def kill_controller(self) -> None:
        pid_file = self.home.path / "controller.pid"
        before = pid_file.read_text()
        os.kill(int(before), signal.SIGKILL)
        wait_for(lambda: pid_file.read_text() not in {"", before})


@dataclass
class Cli:
    """`deployctl` with a state directory of its own."""

    state: Path
    directory: Path
    holds: bool = True
    """What it prints as JSON is held against the schema; a service of another release may say more, or less."""
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def environment(self, **more: str) -> dict[str, str]:
        kept = {
            key: value
            for key, value in os.environ.items()
            if key not in {"NO_COLOR", "FORCE_COLOR", "COLUMNS"}
        }
        own = {"DEPLOYCTL_STATE_DIR": str(self.state), "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
        return kept | own | {"USER": "anna", "LOGNAME": "anna"} | more

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*arguments),
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE * 3,
            cwd=self.directory,
            env=self.environment(**environment),
        )
        if self.holds:
            hold(arguments, done.stdout)
        return done

    def start(self, *arguments: str) -> Command:
        process = Command(
            arguments,
            self.command(*arguments),
            stdin=subprocess.DEVNULL,
            cwd=self.directory,
            env=self.environment(),
        )
        self.started.append(process)
        return process

    def end(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    def on_terminal(self, *arguments: str, until: str, **environment: str) -> str:
        """What a terminal shows up to and with `until`; the command is then interrupted."""
        parent, child = pty.openpty()
        process = subprocess.Popen(
            self.command(*arguments), stdin=child, stdout=child, stderr=child, cwd=self.directory,
            env=self.environment(**environment),
        )  # fmt: skip
        os.close(child)
        seen, deadline = "", time.monotonic() + PATIENCE
        try:
            while until not in seen:
                assert time.monotonic() < deadline, seen
                if select.select([parent], [], [], 0.1)[0]:
                    seen += os.read(parent, 65536).decode(errors="replace")
        except OSError:  # the command has ended
            pass
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE)
            os.close(parent)
        return seen

    @staticmethod
    def command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "deployctl", *arguments]
