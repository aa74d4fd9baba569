"""A box for one service: its state directory, its manifests and models, and the command line that a user types.

Everything goes through the installed `deployctl` in a clean environment (no HOME, no terminal, no language), real sockets and real
processes; nothing sleeps but the polls in here.
"""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import faulty_models
from output_schema import Command, hold, hold_document
from traffic_maker import Traffic

from deployctl import journal
from deployctl.errors import UnavailableError
from deployctl.statedir import ServiceHome, running_pid
from deployctl.wire.admin import AdminClient

PATIENCE = 40.0
"""Seconds until a test that waits for something gives up; nothing takes nearly so long on an idle machine."""

NAME = "m"
MODELS = {
    "1": faulty_models.sound("1"),
    "2": faulty_models.sound("2"),
    "3": faulty_models.sound("3"),
    "off": faulty_models.off_by_one(),
    "nan": faulty_models.nan_on_rows(),
    "raises": faulty_models.raises_on_rows(),
    "nan-on-zeros": faulty_models.nan_on_zeros(),
    "raises-on-zeros": faulty_models.raises_on_zeros(),
    "hanging": faulty_models.hanging(),
    "other-input": faulty_models.other_input(),
    "other-shape": faulty_models.other_shape(),
    "no-onnx": b"this is no model",
    "truncated": faulty_models.sound("truncated")[:200],
}
"""Each version label stands for the model of this name, so that a manifest says what it does."""

WATCHED = ("error-rate", "null-rate")


def wait_for(claim, within=PATIENCE, what="it"):
    """Poll until the claim is true, and give what it gave; a test fails when the time is over."""
    deadline = time.monotonic() + within
    while True:
        if value := claim():
            return value
        assert time.monotonic() < deadline, f"{what} did not happen within {within} s"
        time.sleep(0.01)


def alive(pid):
    """Whether this process is there, and more than a zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def killing(box, *versions, at_most=math.inf):
    """SIGKILL for every worker of these versions as soon as there is one, or for so many; gives how many there were so far."""
    over, ended = threading.Event(), set()

    def kill():
        while not over.is_set() and len(ended) < at_most:
            workers = box.status()["pids"]["workers"]
            for pid in filter(None, map(workers.get, versions)):
                if alive(pid):
                    with suppress(ProcessLookupError):
                        box.kill(pid)
                        ended.add(pid)
            over.wait(0.05)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield lambda: len(ended)
    finally:
        over.set()
        thread.join(20)


def children(pid):
    """The processes that this one has started and not yet reaped; none of a process that is gone."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def command(pid):
    """The command line of a process; [""] of one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return [""]


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def json(self):
        return json.loads(self.out)

    @property
    def lines(self):
        """One document for each line of stdout."""
        return [json.loads(line) for line in self.out.splitlines()]

    def refused(self, code, *words):
        """It ended with this code and one line on stderr that has these words in it."""
        assert self.code == code, self
        assert len(self.err.strip().splitlines()) == 1, self
        assert "Traceback" not in self.err
        for word in words:
            assert word in self.err, self
        return self


class Box:
    """A state directory of its own; `close` ends whatever still runs in it. `service` is what its manifests say under that key."""

    def __init__(self, folder, service=None):
        self.folder = Path(folder)
        self.service = service or {}
        self._state = tempfile.TemporaryDirectory(prefix="dctl", dir="/tmp")
        self.state = Path(self._state.name)
        self.home = ServiceHome(self.state, NAME)
        self._begun = []
        self.python = sys.executable
        """Whose deployctl is typed."""
        (self.folder / "models").mkdir(parents=True, exist_ok=True)
        for label, model in MODELS.items():
            self.model_file(label).write_bytes(model)

    # -- what a user has

    def model_file(self, label):
        return self.folder / "models" / f"{label}.onnx"

    def manifest(self, candidate="2", baseline="1", *, name="rollout", **changes):
        """Write a manifest and give its path. Dwell and bake are as short as they can be.

        `service`, `prediction`, `canary` and `analysis` are merged into the sections of that name; `baseline` and `candidate` may be
        (label, name of the model). With `shadow` or `blueGreen` that is the strategy; `baseline` None: people decide; several candidates in a list.
        A metric may be written out.
        """
        spec = {
            "service": {"listen": "127.0.0.1:0", "model": NAME, "timeout": "500ms"}
            | self.service
            | changes.get("service", {}),
            "prediction": {
                "output": "probabilities",
                "read": "argmax",
                "classes": ["0", "1", "2"],
                "nullIf": {"confidenceBelow": 0.5},
            }
            | changes.get("prediction", {}),
        }
        if baseline is not None:
            spec["baseline"] = self._model(baseline)
        if candidate is not None:
            several = isinstance(candidate, list)
            spec |= (
                {"candidates": [self._model(one) for one in candidate]}
                if several
                else {"candidate": self._model(candidate)}
            )
            named = {name: changes[name] for name in ("shadow", "blueGreen") if name in changes}
            spec["strategy"] = named or {"canary": CANARY | changes.get("canary", {})}
            metrics = [
                metric if isinstance(metric, dict) else {"name": metric, "margin": "5%"}
                for metric in changes.get("metrics", WATCHED)
            ]
            spec["analysis"] = {"metrics": metrics} | changes.get("analysis", {})
        document = {
            "apiVersion": "deployctl/v1",
            "kind": "Rollout",
            "metadata": {"name": changes.get("service_name", NAME)},
            "spec": spec,
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(document, indent=1))  # JSON is YAML
        return path

    def _model(self, version):
        label, model = version if isinstance(version, tuple) else (version, version)
        return {"version": label, "uri": str(self.model_file(model))}

    # -- what a user types

    @property
    def environment(self):
        return {"PATH": os.environ["PATH"], "DEPLOYCTL_STATE_DIR": str(self.state)}

    def run(self, *arguments, within=60.0):
        """A command, until it ends."""
        began = time.monotonic()
        done = subprocess.run(
            self._argv(arguments),
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=within,
            check=False,
        )
        hold(arguments, done.stdout)
        return Ran(done.returncode, done.stdout, done.stderr, time.monotonic() - began)

    def begin(self, *arguments):
        """A command that goes on beside the test."""
        process = Command(
            arguments,
            self._argv(arguments),
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
        )
        self._begun.append(process)
        return process

    def _argv(self, arguments):
        return [str(Path(self.python).with_name("deployctl")), *map(str, arguments)]

    def up(self, manifest=None, *more):
        """The service runs when this returns."""
        ran = self.run("up", manifest or self.manifest(), "--detach", *more)
        assert ran.code == 0, ran
        return self

    def ramp(self, manifest, *more, within=60.0):
        """A canary, followed until it is finished; one document for each event."""
        return self.run("canary", "ramp", manifest, "-o", "json", *more, within=within)

    def status(self):
        """What `status -o json` prints, asked where the command asks: it is quicker by a Python start."""
        with AdminClient(self.home.admin_socket, NAME) as client:
            status = client.get("/v1/status", timeout=PATIENCE)
        hold_document(status, "status")
        return status

    def pause_and_resume_until_the_disk_is_full(self):
        """The last page of the journal takes some records when the disk takes no page more."""
        with AdminClient(self.home.admin_socket, NAME) as client, suppress(UnavailableError):
            for verb in itertools.cycle(("pause", "resume")):
                client.post(f"/v1/{verb}", {"by": "a test"})

    def another_controller(self, gone, within=3 * PATIENCE):
        """Wait until one answers that is not this one; it has to read first what the other wrote, and the processor may be busy."""

        def answers():
            with suppress(UnavailableError):
                return self.status()["pids"]["controller"] != gone
            return False

        wait_for(answers, within, "another controller")

    # -- what there is

    @property
    def url(self):
        return self.status()["url"]

    @property
    def supervisor(self):
        return running_pid(self.home)

    def records(self):
        """The journal as it is now, without asking the service."""
        return journal.read(self.home.journal)

    def events(self):
        """(kind, step) of every event of every rollout."""
        return [(r["event"]["kind"], r["event"]["step"]) for r in self.records() if r["type"] == "event"]

    def wait_for_event(self, kind, step=None, times=1):
        return wait_for(
            lambda: sum(k == kind and step in {None, s} for k, s in self.events()) >= times,
            what=f"{kind} {step if step is not None else ''}",
        )

    def wait_for_phase(self, *phases):
        return wait_for(lambda: (s := self.status())["phase"] in phases and s, what=f"phase {phases}")

    @contextmanager
    def nothing_changes(self):
        """The journal keeps its bytes, the live version and its weight stay, no worker is left behind."""
        before, journal_before = self.status(), self.home.journal.read_bytes()
        yield
        after = self.status()
        assert self.home.journal.read_bytes() == journal_before
        for key in ("live", "previous", "phase", "rollout", "weight", "step", "url"):
            assert after[key] == before[key], key

    def traffic(self, rate=300, **more):
        return Traffic(self.url, rate, model=NAME, **more)

    # -- faults

    def kill(self, pid, number=signal.SIGKILL):
        os.kill(pid, number)

    def close(self):
        """Every process of this box ends; then its files go."""
        self.stop()
        self._state.cleanup()

    def stop(self):
        """Every process of this box ends, however it was left."""
        for process in self._begun:
            if process.poll() is None:
                process.kill()
            process.communicate()
        if self.home.lock_file.exists() and (pid := self.supervisor):
            for child in children(pid):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGCONT)
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + 15
            while self.supervisor == pid:
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)  # its children die with it
                time.sleep(0.02)


CANARY = {
    "steps": [{"setWeight": 20}, {"setWeight": 50}],
    "minDwell": "200ms",
    "bake": "300ms",
    "stepTimeout": "30s",
}
