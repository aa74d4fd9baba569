"""A service under random faults and the orders of random people, and everything that is seen of it meanwhile, on one clock.

Who does what is drawn from a seed; when it happens is the machine's affair. What may and may not be seen is in histories.py.
"""

import json
import random
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import numpy as np
from histories import Fault, History, Response, Seen, Verb
from service_rig import NAME, alive, wait_for

from deployctl.cli.options import person
from deployctl.errors import (
    ConflictError,
    DeployctlError,
    InvalidError,
    UnavailableError,
    UnconfirmedError,
)
from deployctl.wire.admin import AdminClient

SERVICE = {"timeout": "20s"}
"""Longer than any process takes to come back on a busy machine: a caller who waits for one is not lost."""

GOOD, BAD = ("1", "2", "3"), ("nan", "raises")
STEPS = {"steps": [{"setWeight": 20}, {"setWeight": 50}], "minDwell": "500ms", "bake": "500ms"}
BAKE = {"duration": "500ms", "compare": "mirror"}
STRATEGIES = {
    "canary": {"canary": STEPS},
    "canary by hand": {"canary": STEPS | {"steps": [{"setWeight": 20}, {"pause": {}}, {"setWeight": 50}]}},
    "canary with copies": {"canary": STEPS | {"steps": [{"mirror": {"percentage": 50}}, {"setWeight": 50}]}},
    "canary that holds": {
        "canary": STEPS | {"onInconclusive": "hold", "stepTimeout": "3s", "keepWarm": "5s"}
    },
    "canary with a hold-back": {"canary": STEPS | {"holdback": {"weight": 10, "duration": "3s"}}},
    "switch": {"blueGreen": {"mirror": 100, "autoPromotion": True, "bake": BAKE}},
    "switch by hand": {"blueGreen": {"mirror": 100, "autoPromotion": False, "bake": BAKE}},
    "shadow": {"shadow": {"minLabels": 20, "maxDuration": "4s"}},
}
DAMAGED = (
    b"\x00\xff\x00\xff" * 64,
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{",
    b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nnull",
    b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\n" + b"x-long: " + b"y" * 20_000 + b"\r\n\r\n",
    b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n" + b"[" * 60_000,
    b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b'POST /v2/models/m/labels HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n{"labels": [0]',
)
"""What the data plane is sent by somebody who is broken."""

PATIENCE = 300.0
"""Seconds until the drive itself gives up: a busy machine is no finding."""

LABELS_AT_ONCE = 2_000
SAMPLE_SECONDS = 5.0
WARM_UP_SECONDS = 240.0
"""Until then a controller has seen each kind of rollout for the first time."""


@dataclass(frozen=True)
class Sample:
    """What one process held at one moment."""

    who: str
    pid: int
    at: float
    kib: int
    files: int


@dataclass
class Soak:
    """One run: `go` drives the service until the time is over, `history` is what the checker is given."""

    box: object
    seconds: float
    fault_every: float
    seed: int
    rate: int = 200
    disk: Path | None = None
    """A small file system that everything of the service is on, where there is one: it can be filled."""
    history: History = field(init=False)
    samples: list = field(default_factory=list)
    began: float = 0.0

    def __post_init__(self):
        offset = time.time() - time.monotonic()
        self.history = History([], lambda wall: datetime.fromisoformat(wall).timestamp() - offset)
        self.history.bad = frozenset(BAD)
        self.history.strangers = frozenset({person()})
        self._over = threading.Event()
        self._numbers = iter(range(1_000_000))
        self._broken = []

    def go(self):
        """Everything at once until the time is over; then nothing runs any more and the last word is said."""
        self.began = time.monotonic()
        threads = [
            threading.Thread(target=self._guarded, args=(work,), daemon=True)
            for work in (self._people, self._look, self._measure)
        ]
        labels = {"label_delay": (0.2, 1.0), "label_share": 0.2}
        with self.box.traffic(self.rate, on_answer=self._answered, **labels) as self._traffic:
            for thread in threads:
                thread.start()
            self._harm()
            self._over.set()
            for thread in threads:
                thread.join(PATIENCE)
            with AdminClient(self.box.home.admin_socket, NAME) as client:
                if _status(client)["phase"] in {"pending", "progressing", "paused"}:
                    self._order(client, "rollback", "rollback", {"reason": "the soak is over", "to": None})
        assert not self._broken, self._broken

    def _guarded(self, work):
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - the main thread says it
            self._broken.append(f"{work.__name__}: {type(error).__name__}: {error}")

    def _answered(self, answer):
        self.history.responses.append(Response(answer.sent, answer.done, answer.status, answer.version))

    # ── people ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _people(self):
        """One order after the other, whatever became of the one before."""
        chance = random.Random(f"people {self.seed}")
        orders = {
            self._begin: 8,
            self._promote: 5,
            self._rollback: 2,
            self._rollback_to: 1,
            self._pause: 2,
            self._resume: 4,
            self._add_labels: 1,
        }
        with AdminClient(self.box.home.admin_socket, NAME) as client:
            while not self._over.wait(chance.uniform(0.1, 2.0)):
                chance.choices(list(orders), list(orders.values()))[0](client, chance)

    def _order(self, client, kind, path, body, **more):
        """One call in somebody's name, noted with what became of it."""
        by = f"person:{kind.replace(' ', '-')}-{next(self._numbers)}"
        began, changed, confirmed = time.monotonic(), None, False
        try:
            answer = client.post(f"/v1/{path}", {"by": by, **body}, **more)
            changed = answer["changed"] if "changed" in answer else answer["state"] == "started"
            confirmed = changed and path in {"rollback", "promote"}
        except UnconfirmedError:
            changed = True
        except (ConflictError, InvalidError):
            changed = False
        except UnavailableError:
            pass  # the disk is full, or the controller died over it: whether it was carried out is open
        self.history.verbs.append(Verb(kind, by, began, time.monotonic(), changed, confirmed))

    def _begin(self, client, chance):
        status = _status(client)
        if status["phase"] in {"pending", "progressing", "paused"} and chance.random() < 0.9:
            return
        manifest = self._manifest(status["live"], chance, chance.choice(GOOD + BAD))
        body = {"manifest": manifest.read_text(), "path": str(manifest), "strategy": ""}
        self._order(client, "begin", "rollouts", body)

    def _manifest(self, live, chance, candidate):
        how = chance.choice(list(STRATEGIES))
        if candidate == live:
            candidate = next(one for one in GOOD if one != live)
        name = f"{live}-{candidate}-{how}".replace(" ", "-")
        return self.box.manifest(candidate, live, name=name, **STRATEGIES[how])

    def _promote(self, client, chance):
        """Nobody promotes a version that they know to be bad."""
        if _status(client)["candidate"] in BAD:
            return
        full = chance.random() < 0.3
        body = {"full": full, "reason": "on a hunch" if full else ""}
        self._order(client, "promote full" if full else "promote", "promote", body, again=False)

    def _rollback(self, client, _chance):
        self._order(client, "rollback", "rollback", {"reason": "", "to": None})

    def _rollback_to(self, client, chance):
        self._order(client, "rollback to", "rollback", {"reason": "", "to": chance.choice(GOOD)})

    def _pause(self, client, _chance):
        self._order(client, "pause", "pause", {})

    def _resume(self, client, _chance):
        self._order(client, "resume", "resume", {})

    def _add_labels(self, client, _chance):
        rows = [{"id": f"unknown-{number}", "label": "1"} for number in range(100)]
        with suppress(DeployctlError):
            client.post("/v1/labels", {"by": "person:labels", "labels": rows})

    # ── faults ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _harm(self):
        """A fault every so often. In the second half nothing is killed that lives on otherwise, so that its memory can be watched."""
        chance = random.Random(f"faults {self.seed}")
        harmless = [
            *(self._kill_candidate, self._stop_controller, self._stop_worker, self._kill_cli),
            *(self._flood_with_labels, self._send_damage),
            *([self._fill_the_disk] if self.disk else []),
        ]
        faults = [self._kill_controller, self._kill_router, self._kill_baseline, *harmless]
        due = self.began
        while (due := due + self.fault_every) < self.began + self.seconds:
            self._over.wait(max(0.0, due - time.monotonic()))
            if self._broken:
                return
            half = due < self.began + self.seconds / 2
            chance.choice(faults if half else harmless)(chance)
        self._over.wait(max(0.0, self.began + self.seconds - time.monotonic()))

    def _status(self):
        with AdminClient(self.box.home.admin_socket, NAME) as client:
            return _status(client)

    def _note(self, kind, began):
        self.history.faults.append(Fault(kind, began, time.monotonic()))

    def _kill(self, kind, pid, find=None):
        """SIGKILL; with `find`, which gives the process in its place, requests may be lost by it until that one is there."""
        if not pid:
            return
        began = time.monotonic()
        with suppress(ProcessLookupError):
            self.box.kill(pid)
        wait_for(lambda: not alive(pid), PATIENCE)
        ended = time.monotonic()
        if find is not None:
            wait_for(lambda: find(self._status()["pids"]) not in {pid, 0}, PATIENCE, "another process")
            wait_for(self._nobody_waits, PATIENCE, "an answer for everybody who waited")
        self.history.faults.append(Fault(kind, began, ended, find is not None, time.monotonic()))

    def _nobody_waits(self):
        """Whether requests are answered as they come."""
        now = time.monotonic()
        quick = any(one.status == 200 and one.sent > now - 0.1 for one in self.history.responses[-20:])
        return quick and self._traffic.in_flight < self.rate / 10

    def _kill_controller(self, _chance):
        self._kill("kill controller", self._status()["pids"]["controller"])

    def _kill_router(self, _chance):
        def router(pids):
            return next(iter(pids["routers"]), 0)

        self._kill("kill router", router(self._status()["pids"]), router)

    def _kill_baseline(self, _chance):
        live = self._status()["live"]
        self._kill_worker("kill baseline", live)

    def _kill_candidate(self, _chance):
        status = self._status()
        others = [version for version in status["pids"]["workers"] if version != status["live"]]
        self._kill_worker("kill candidate", next(iter(others), None))

    def _kill_worker(self, kind, version):
        def worker(pids):
            return pids["workers"].get(version)  # 0 while it is started, None when nobody wants it any more

        self._kill(kind, worker(self._status()["pids"]), worker)

    def _stop(self, kind, pid):
        if not pid:
            return
        began = time.monotonic()
        with suppress(ProcessLookupError):
            self.box.kill(pid, signal.SIGSTOP)
            self._over.wait(1.0)
            self.box.kill(pid, signal.SIGCONT)
        self._note(kind, began)

    def _stop_controller(self, _chance):
        self._stop("stop controller", self._status()["pids"]["controller"])

    def _stop_worker(self, chance):
        self._stop("stop worker", chance.choice([*self._status()["pids"]["workers"].values(), 0]))

    def _kill_cli(self, chance):
        """A command is killed wherever it is by then."""
        live = self._status()["live"]
        manifest = self._manifest(live, chance, next(one for one in GOOD if one != live))
        verb = {"canary": ("canary", "ramp"), "blueGreen": ("blue-green", "switch"), "shadow": ("shadow",)}
        strategy = next(iter(json.loads(manifest.read_text())["spec"]["strategy"]))
        command = chance.choice([("status", NAME, "-w"), ("pause", NAME), (*verb[strategy], manifest)])
        began = time.monotonic()
        process = self.box.begin(*command)
        self._over.wait(chance.uniform(0.1, 2.0))
        process.kill()
        process.communicate()
        self._note("kill a command", began)

    def _flood_with_labels(self, _chance):
        labels = [{"id": f"nobody-{number}", "label": "0"} for number in range(LABELS_AT_ONCE)]
        body, began = json.dumps({"labels": labels}), time.monotonic()
        for _ in range(10):
            with suppress(OSError, HTTPException):
                client = HTTPConnection(self._address[0], self._address[1], timeout=5)
                client.request("POST", f"/v2/models/{NAME}/labels", body)
                client.getresponse().read()
                client.close()
        self._note("flood of labels", began)

    def _send_damage(self, chance):
        began = time.monotonic()
        for damage in chance.sample(DAMAGED, 5):
            with suppress(OSError), socket.create_connection(self._address, 2) as client:
                client.settimeout(2)
                client.sendall(damage)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
        self._note("damaged requests", began)

    def _fill_the_disk(self, _chance):
        began, filler = time.monotonic(), self.disk / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 20)):
                pass
        self._over.wait(1.0)
        filler.unlink()
        self._note("disk full", began)

    @property
    def _address(self):
        host, _, port = self._status()["url"].removeprefix("http://").rpartition(":")
        return host, int(port)

    # ── what is seen ───────────────────────────────────────────────────────────────────────────────────────────────

    def _look(self):
        with AdminClient(self.box.home.admin_socket, NAME) as client:
            while not self._over.wait(0.1):
                began = time.monotonic()
                with suppress(UnavailableError):  # the controller is away for longer than a question waits
                    status = _status(client)
                    shown = (status[key] for key in ("rollout", "phase", "live", "weight"))
                    self.history.seen.append(Seen(began, time.monotonic(), *shown))

    def _measure(self):
        while not self._over.wait(min(SAMPLE_SECONDS, self.seconds / 20)):
            pids = self._status()["pids"]
            alone = {"supervisor": pids["supervisor"], "controller": pids["controller"]}
            workers = {f"worker {version}": pid for version, pid in pids["workers"].items()}
            for who, pid in {**alone, "router": next(iter(pids["routers"]), 0), **workers}.items():
                with suppress(OSError, ProcessLookupError):
                    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                    kib = int(rollup.partition("Anonymous:")[2].split()[0])  # what is its own and no file's
                    files = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
                    self.samples.append(Sample(who, pid, time.monotonic(), kib, files))


def _status(client):
    """Whatever the machine is busy with: a controller that has to be started first takes its time."""
    return client.get("/v1/status", timeout=PATIENCE)


@dataclass(frozen=True)
class Growth:
    """What a process that lived through it gained: least squares with the 95 % interval of the slope."""

    who: str
    minutes: float
    mib: float
    mib_per_minute: float
    interval: float
    files_per_minute: float
    files_interval: float

    def __str__(self):
        return (
            f"{self.who}: {self.mib:.0f} MiB after {self.minutes:.0f} min, {self.mib_per_minute:+.3f} ± {self.interval:.3f} MiB "
            f"and {self.files_per_minute:+.3f} ± {self.files_interval:.3f} files a minute"
        )


def growths(samples, at_least):
    """Of every process that was measured for at least so many seconds after its warm-up."""
    found = []
    for pid in dict.fromkeys(sample.pid for sample in samples):
        own = [sample for sample in samples if sample.pid == pid]
        own = [sample for sample in own if sample.at >= own[0].at + min(WARM_UP_SECONDS, at_least)]
        if len(own) < 10 or own[-1].at - own[0].at < at_least:
            continue
        minutes = np.array([sample.at - own[0].at for sample in own]) / 60
        memory, memory_interval = _slope(minutes, np.array([sample.kib / 1024 for sample in own]))
        files, files_interval = _slope(minutes, np.array([float(sample.files) for sample in own]))
        lived = (own[0].who, float(minutes[-1]), own[-1].kib / 1024)
        found.append(Growth(*lived, memory, memory_interval, files, files_interval))
    return found


def _slope(x, y):
    """The slope of least squares and half the width of its 95 % interval."""
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    left = y - y.mean() - slope * centred
    error = float(np.sqrt(left @ left / max(1, len(x) - 2) / (centred @ centred)))
    return slope, 1.96 * error


def figures(soak, lost):
    """What was done and what came of it, in a line."""
    faults = Counter(fault.kind for fault in soak.history.faults)
    verbs = Counter(verb.kind for verb in soak.history.verbs)
    rollouts = Counter(
        record["event"]["kind"] for record in soak.history.journal if record["type"] == "event"
    )
    return (
        f"seed {soak.seed}, {len(soak.history.responses)} requests in {soak.seconds:.0f} s, lost {dict(lost)}; "
        f"faults {dict(faults)}; orders {dict(verbs)}; events {dict(rollouts)}; {len(soak.history.seen)} looks"
    )


def small_disk(folder, megabytes):
    """A file system of this size, mounted there; None where nobody may mount one."""
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "deployctl-soak", str(folder)],
        capture_output=True,
        check=False,
    )
    return folder if made.returncode == 0 else None
