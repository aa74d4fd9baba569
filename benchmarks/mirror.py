"""What a shadow costs the callers, and what its columns cost the router. Windows with and without it take turns.

    python benchmarks/mirror.py [--pairs 15] [--rate 300] [--live 0] [--only fast,slow,hang,crash] [--peer CHECKOUT]

Prints a table and writes benchmarks/results/mirror.json. `--peer` is another checkout, whose router takes turns with this one's
under wrk; without it, or without wrk, that part is left out. See README.md here for how each number is taken.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import chdir, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests" / room) for room in ("router", "service")]

import faulty_models  # noqa: E402 - found by the line above
import rig  # noqa: E402 - as above
from real_worker import RealWorker  # noqa: E402 - as above
from traffic_maker import BODIES, Traffic  # noqa: E402 - as above

from deployctl.core.plan import Copy  # noqa: E402 - as above

TIMEOUT = 0.5
WARM_UP = 0.5
"""Seconds of traffic before each window that are not counted."""
SHADOWS = {
    "fast": "as fast",
    "slow": "ten times slower",
    "hang": "that never answers",
    "crash": "killed every second",
}
BURNER = "burner"
LUA = """wrk.method = "POST"
wrk.body = '%s'
"""


class Classifier(RealWorker):
    """A model of the street; every version but the live one works at idle priority."""

    output = "probabilities"
    live_ms = 0.0
    """What the live version burns for each request; 0: next to nothing, a call takes about a millisecond then."""

    @property
    def idle(self) -> bool:
        return self.version != "1"

    def content(self) -> bytes:
        if self.version == "slow":
            return faulty_models.slow(10 * (self.live_ms or 1.0))
        if self.version == "hang":
            return faulty_models.hanging()
        return faulty_models.slow(self.live_ms) if self.live_ms else faulty_models.sound(self.version)


@dataclass
class Number:
    """One line of the table: ratios of paired windows, and the most that their median should be."""

    name: str
    target: float | None
    ratios: list[float] = field(default_factory=list)
    failed: int = 0
    with_it: list[float] = field(default_factory=list)
    without_it: list[float] = field(default_factory=list)
    unit: str = "ms"
    load: list[float] = field(default_factory=list)
    remark: str = ""

    def add(self, without_it: float, with_it: float) -> None:
        self.without_it.append(without_it)
        self.with_it.append(with_it)
        self.ratios.append(with_it / without_it)
        self.load.append(os.getloadavg()[0])

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def holds(self) -> bool:
        return not self.failed and (self.target is None or self.median <= self.target)

    def row(self) -> str:
        low, _, high = statistics.quantiles(self.ratios, n=4)
        verdict = "" if self.target is None else f"at most {self.target:g}"
        return (
            f"{self.name:<62} x{self.median:6.3f} [{low:.3f}-{high:.3f}] {verdict:<13} {'ok' if self.holds else 'MISSED':<7}"
            f"{statistics.median(self.without_it):9.3g} {statistics.median(self.with_it):9.3g} {self.unit:<4} "
            f"failed {self.failed}, {len(self.ratios)} pairs, load {statistics.median(self.load):.1f} {self.remark}"
        )


def window(url: str, rate: float, seconds: float) -> tuple[list[float], int]:
    """Latencies (ms) and failures of one window, seen by callers in a process of their own."""
    with Traffic(url, rate, keep_answers=True) as traffic:
        time.sleep(WARM_UP + seconds)
    answers = traffic.answers[int(WARM_UP * rate) :]
    return [answer.latency * 1000 for answer in answers], len(traffic.failures)


@contextmanager
def burning() -> Iterator[None]:
    """A process that takes what nobody else wants of one processor."""
    code = "from deployctl.wire.priority import step_back; step_back()\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as burner:
        try:
            yield
        finally:
            burner.kill()


def p99(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[math.ceil(0.99 * len(ordered)) - 1]


class Bench:
    """One router, the live version, a shadow of each kind, and callers in a process of their own."""

    def __init__(self, street: rig.Street, callers: ProcessPoolExecutor, rate: float, seconds: float) -> None:
        self.street = street
        self.callers = callers
        self.rate = rate
        self.seconds = seconds

    def window(self, shadow: str | None) -> tuple[float, int]:
        """The p99 (ms) of a window in which this shadow gets a copy of everything, and how many requests failed."""
        street = self.street
        street.controller.batches.clear()
        copies = () if shadow in (None, BURNER) else (Copy(1, self.worker(shadow).as_version),)
        street.split(0.0, mirror=100.0, copies=copies, candidate=False, copy_timeout=TIMEOUT)
        with burning() if shadow == BURNER else nullcontext():
            return self._call(shadow)

    def _call(self, shadow: str | None) -> tuple[float, int]:
        calling = self.callers.submit(window, self.street.url, self.rate, self.seconds)
        while wait([calling], timeout=1.0).not_done:
            if shadow == "crash":  # from this thread: a worker does not outlive the one that started it
                self.worker("crash").kill()
                self.worker("crash").start()
        latencies, failed = calling.result()
        return p99(latencies), failed

    def worker(self, version: str) -> rig.Worker:
        return next(worker for worker in self.street.workers if worker.version == version)

    def pairs(self, number: Number, shadow: str | None, pairs: int) -> Number:
        """Windows without and with it, which of them first changing from pair to pair."""
        for pair in range(pairs):
            results: dict[bool, float] = {}
            for with_it in (False, True) if pair % 2 else (True, False):
                results[with_it], failed = self.window(shadow if with_it else None)
                number.failed += failed
            number.add(results[False], results[True])
        return number


def shadows(kinds: list[str], pairs: int, rate: float, seconds: float, live_ms: float) -> Iterator[Number]:
    beside = f"p99 beside a live version of {live_ms:g} ms:" if live_ms else "p99 beside a tiny live version:"
    kind_of_worker = type("Live", (Classifier,), {"live_ms": live_ms})
    with tempfile.TemporaryDirectory(prefix="dctl-mirror") as folder:
        key = Path(folder, "input.key")
        key.write_bytes(os.urandom(32))
        settings: dict[str, Any] = {"timeout": TIMEOUT, "input_key": str(key), "worker": kind_of_worker}
        street = rig.Street(Path(folder), order=False, versions=("1", *SHADOWS), **settings)
        try:
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, spawn) as callers:
                bench = Bench(street, callers, rate, seconds)
                yield bench.pairs(Number(f"{beside} nothing", None), None, pairs)
                yield bench.pairs(Number(f"{beside} a burner, no shadow", None), BURNER, pairs)
                for kind in kinds:
                    name = f"{beside} a shadow {SHADOWS[kind]}"
                    yield bench.pairs(Number(name, 1.05), kind, pairs)
        finally:
            street.close()


class Throughput:
    """Two checkouts' routers in front of the same kind of worker, asked by wrk in turns."""

    def __init__(self, folder: Path, trees: dict[str, Path]) -> None:
        self.lua = folder / "post.lua"
        self.lua.write_text(LUA % BODIES[0].decode())
        self.streets: dict[str, rig.Street] = {}
        key = folder / "input.key"
        key.write_bytes(os.urandom(32))
        for name, tree in trees.items():
            place = folder / name
            place.mkdir()
            settings = {"input_key": str(key)} if name == "ours" else {}
            with chdir(tree):  # where `python -m` finds the package first
                self.streets[name] = rig.Street(place, order=False, worker=Pair, **settings)

    def window(self, name: str, order: Callable[[rig.Street], object], seconds: float) -> float:
        """CPU microseconds of the router for each request."""
        street = self.streets[name]
        street.controller.batches.clear()
        order(street)
        before = cpu_seconds(street.router.pid)
        command = [
            "wrk",
            "-t1",
            "-c16",
            f"-d{max(1, round(seconds))}s",
            "-s",
            str(self.lua),
            f"{street.url}/v2/models/m/infer",
        ]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        served = int(told.partition(" requests in")[0].split()[-1])
        assert "Non-2xx" not in told, told
        return (cpu_seconds(street.router.pid) - before) * 1e6 / served

    def close(self) -> None:
        for street in self.streets.values():
            street.close()


class Pair(Classifier):
    """Both versions of a rollout, at normal priority."""

    idle = False

    def content(self) -> bytes:
        return faulty_models.sound(self.version)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def throughput(peer: Path, pairs: int, seconds: float) -> Iterator[Number]:
    # Without a rollout nothing is kept of a request but that it was: this line says what else has changed.
    orders: dict[str, tuple[float | None, Callable[[rig.Street], object]]] = {
        "no rollout": (None, lambda street: street.split(0.0, candidate=False)),
        "a rollout at 50 %": (1.10, lambda street: street.split(50.0)),
    }
    with tempfile.TemporaryDirectory(prefix="dctl-mirror") as folder:
        routers = Throughput(Path(folder), {"peer": peer, "ours": HERE.parent})
        try:
            for words, (target, order) in orders.items():
                number = Number(f"router's CPU for a request, {words}", target, unit="us")
                for pair in range(pairs):
                    turns = ("peer", "ours") if pair % 2 else ("ours", "peer")
                    took = {name: routers.window(name, order, seconds) for name in turns}
                    number.add(took["peer"], took["ours"])
                yield number
        finally:
            routers.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="What a shadow costs the callers.")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--rate", type=float, default=300.0)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--live", default="0", help="milliseconds that the live version burns; 0: tiny")
    parser.add_argument("--only", default=",".join(SHADOWS), help=f"some of {','.join(SHADOWS)}")
    parser.add_argument("--peer", type=Path, help="another checkout, whose router is the measure for ours")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "mirror.json")
    given = parser.parse_args()
    kinds = [kind for kind in SHADOWS if kind in given.only.split(",")]
    numbers: list[Number] = []
    for live_ms in map(float, given.live.split(",") if kinds else ()):
        for number in shadows(kinds, given.pairs, given.rate, given.seconds, live_ms):
            numbers.append(number)
            print(number.row(), flush=True)
    if given.peer is not None and shutil.which("wrk"):
        for number in throughput(given.peer.resolve(), given.pairs, given.seconds / 2):
            numbers.append(number)
            print(number.row(), flush=True)
    given.results.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "schema_version": 1,
        "taken": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "rate": given.rate,
        "numbers": [asdict(number) | {"median": number.median, "holds": number.holds} for number in numbers],
    }
    given.results.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if all(number.holds for number in numbers) else 1


if __name__ == "__main__":
    sys.exit(main())
