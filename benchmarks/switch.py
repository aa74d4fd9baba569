"""From an order to the first answer of the other version, under load, and what it costs callers.

    python benchmarks/switch.py [--runs 30] [--rate 2000]

Prints a table and writes benchmarks/results/switch.json; ends with 1 when a number misses its target. See README.md here.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests" / room) for room in ("router", "service")]

import rig  # noqa: E402 - found by the line above
from real_worker import RealWorker  # noqa: E402 - as above
from service_rig import Box, wait_for  # noqa: E402 - as above
from traffic_maker import BODIES, Traffic, body_of  # noqa: E402 - as above

from deployctl.wire.admin import AdminClient  # noqa: E402 - as above

WARM_UP = 0.5
BETWEEN = 0.15
"""Seconds from one order to the next."""

SWITCH = {
    "mirror": 0,
    "autoPromotion": False,
    "bake": {"duration": "10m", "compare": "mirror"},
    "stepTimeout": "20m",
}


@dataclass
class Number:
    """Milliseconds from an order until something, once for each order; judged by the median."""

    name: str
    target: float | None
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def holds(self) -> bool:
        return self.target is None or self.median <= self.target

    def row(self) -> str:
        low, _, high = statistics.quantiles(self.values, n=4)
        wanted = "" if self.target is None else f"at most {self.target:g}"
        return f"{self.name:<62}{self.median:7.2f} ms [{low:.2f}-{high:.2f}] {wanted:<12}{'ok' if self.holds else 'MISSED'}"


def call(orders: Connection, url: str, rate: float, bodies: list[bytes]) -> None:
    """Callers in a process of their own until they are told to stop: end, version and success of each request."""
    with Traffic(url, rate, keep_answers=True, bodies=bodies) as traffic:
        orders.recv()
    orders.send([(one.sent, one.done, one.version, one.status == 200) for one in traffic.answers])


Answers = list[tuple[float, float, str | None, bool]]


@contextmanager
def callers(url: str, rate: float, bodies: list[bytes]) -> Iterator[Callable[[], Answers]]:
    """Load; the function ends it and says what became of each request."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=call, args=(theirs, url, rate, bodies))
    process.start()

    def end() -> Answers:
        ours.send("stop")
        answers: Answers = ours.recv()
        return answers

    try:
        time.sleep(WARM_UP + 1.0)  # a Python process starts meanwhile
        yield end
    finally:
        process.join(20)


def first(answers: Answers, version: str, after: float) -> float:
    """Milliseconds until a request is answered by this version."""
    return 1000 * (min(done for _, done, who, _ in answers if who == version and done > after) - after)


def router_alone(runs: int, rate: float) -> tuple[Number, int, int]:
    """All callers to the other version and back, by an order on the router's own socket."""
    number = Number("the router alone: order to first answer of the other version", 2.0)
    with tempfile.TemporaryDirectory(prefix="dctl-switch") as folder:
        street = rig.Street(Path(folder), worker=RealWorker)
        try:
            street.split(0)
            with callers(street.url, rate, [body_of([1.0, 2.0, 3.0])]) as end:
                orders = []
                for at in range(runs):
                    weight = 0 if at % 2 else 100
                    orders.append((time.monotonic(), "2" if weight else "1"))
                    street.split(weight)
                    time.sleep(BETWEEN)
                answers = end()
        finally:
            street.close()
    number.values = [first(answers, version, after) for after, version in orders]
    return number, len(answers), sum(not ok for *_, ok in answers)


def service(runs: int, rate: float) -> tuple[list[Number], int, int]:
    """`promote` of a switch that waits for a person, and `rollback`, each written down and fsynced before it is done."""
    switched = Number("promote: order to first answer of the new version", None)
    back = Number("rollback: order to first answer of the old version", None)
    confirmed = Number("rollback: order to its confirmation, read back from the router", None)
    orders: list[tuple[Number, float, str]] = []
    with tempfile.TemporaryDirectory(prefix="dctl-switch") as folder:
        box = Box(Path(folder))
        try:
            box.up()
            with AdminClient(box.home.admin_socket, "m") as client, callers(box.url, rate, BODIES) as end:
                for _ in range(runs):
                    manifest = box.manifest(blueGreen=SWITCH)
                    body = {
                        "manifest": manifest.read_text(),
                        "path": str(manifest),
                        "strategy": "blueGreen",
                        "by": "a benchmark",
                    }
                    client.post("/v1/rollouts", body)
                    wait_for(lambda: box.status()["phase"] == "paused", what="a person is waited for")
                    for number, verb, more in (
                        (switched, "promote", {"reason": "a benchmark"}),
                        (back, "rollback", {"reason": "", "to": None}),
                    ):
                        after = time.monotonic()
                        client.post(f"/v1/{verb}", {"by": "a benchmark", **more})
                        orders.append((number, after, "2" if verb == "promote" else "1"))
                        if verb == "rollback":
                            confirmed.values.append(1000 * (time.monotonic() - after))
                        time.sleep(BETWEEN)
                answers = end()
        finally:
            box.close()
    for number, after, version in orders:
        number.values.append(first(answers, version, after))
    return [switched, back, confirmed], len(answers), sum(not ok for *_, ok in answers)


def main() -> int:
    parser = argparse.ArgumentParser(description="From an order to the first answer of the other version.")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--rate", type=float, default=2000.0)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "switch.json")
    given = parser.parse_args()
    number, sent, failed = router_alone(given.runs, given.rate)
    numbers, more, more_failed = service(given.runs, given.rate)
    numbers = [number, *numbers]
    for one in numbers:
        print(one.row())
    print(f"{failed + more_failed} of {sent + more} requests failed")
    document = {
        "machine": {"cores": os.cpu_count(), "kernel": platform.release(), "load": os.getloadavg()[0]},
        "rate": given.rate,
        "requests": sent + more,
        "failed": failed + more_failed,
        "numbers": [asdict(one) | {"median": one.median, "holds": one.holds} for one in numbers],
    }
    given.results.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if not failed + more_failed and all(one.holds for one in numbers) else 1


if __name__ == "__main__":
    sys.exit(main())
