"""What a poisonous candidate costs the callers of the baseline. Windows with and without one take turns.

    python benchmarks/poison.py [--pairs 5] [--rate 300] [--only nan,hanging,…]

Prints a table and writes benchmarks/results/poison.json; ends with 1 when a number misses its target. See README.md here.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests" / room) for room in ("faults", "service")]

from mirror import WARM_UP, Number, p99  # noqa: E402 - found by the line above, which it needs, too
from service_rig import Box, wait_for  # noqa: E402 - as above
from test_poison_models import CANARY, POISONS, WEIGHT, WITH_NEGATIVE  # noqa: E402 - as above
from traffic_maker import Traffic  # noqa: E402 - as above

from deployctl.core.assignment import goes_to_candidate  # noqa: E402 - as above
from deployctl.wire.admin import AdminClient  # noqa: E402 - as above

SECONDS = 3.0
"""Of each window; one with a poison begins with the candidate's first callers."""

TARGET = 1.05
REFUSED = "other-datatype"
NOTHING, BURNER, SOUND = "nothing", "a process of somebody else that burns a processor", "2"


@dataclass(frozen=True)
class Window:
    """A part of the callers' time, on the monotonic clock, which all processes share."""

    begins: float
    ends: float


def call(orders: Connection, url: str, rate: float) -> None:
    """Callers in a process of their own, until they are told to stop; sends id, start, latency (ms) and success of each request."""
    with Traffic(url, rate, keep_answers=True, bodies=WITH_NEGATIVE) as traffic:
        orders.recv()
    orders.send([(one.id, one.sent, one.latency * 1000, one.status == 200) for one in traffic.answers])


class Bench:
    """One service at version 1, and a canary of each poison after the other."""

    def __init__(self, box: Box, rate: float) -> None:
        self.box = box
        self.rate = rate

    def pair(self, poison: str, *, poison_first: bool) -> tuple[float, float, float, int]:
        """p99 (ms) of the baseline's callers: without it, with it, with its start as well; and how many of them failed."""
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        callers = multiprocessing.get_context("spawn").Process(
            target=call, args=(theirs, self.box.url, self.rate)
        )
        callers.start()
        time.sleep(WARM_UP + 1.0)
        windows: dict[bool, Window] = {}
        for with_it in (poison_first, not poison_first):
            if with_it:
                began, rollout, windows[True] = self._poisoned(poison)
            else:
                windows[False] = _untouched()
        ours.send("stop")
        answers = [one for one in ours.recv() if not goes_to_candidate(rollout, one[0], WEIGHT)]
        callers.join()
        whole = Window(began, windows[True].ends)
        failed = sum(not ok for _, _, _, ok in answers)
        without, with_it, with_start = (_p99(answers, one) for one in (windows[False], windows[True], whole))
        return without, with_it, with_start, failed

    def _poisoned(self, poison: str) -> tuple[float, str, Window]:
        """From the order to start it; its id; and the window that begins when it has callers."""
        if poison == NOTHING:
            window = _untouched()
            return window.begins, NOTHING, window
        if poison == BURNER:
            with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as burner:
                time.sleep(WARM_UP)
                window = _untouched()
                burner.kill()
            return window.begins, NOTHING, window
        manifest = self.box.manifest(poison, canary=CANARY)
        with AdminClient(self.box.home.admin_socket, "m") as client:
            before = len(client.get("/v1/history")["rollouts"])
            began = time.monotonic()
            body = {
                "manifest": manifest.read_text(),
                "path": str(manifest),
                "strategy": "canary",
                "by": "a benchmark",
            }
            rollout = str(client.post("/v1/rollouts", body)["rollout"])
            wait_for(lambda: self.box.status()["step"], what="its first callers")
            window = _untouched()
            assert len(client.get("/v1/history")["rollouts"]) == before + 1
            if poison == SOUND:
                client.post("/v1/rollback", {"by": "a benchmark", "reason": "", "to": None})
        wait_for(lambda: self.box.status()["phase"] == "rolled_back", what=f"the rollback of {poison}")
        return began, rollout, window


def _untouched() -> Window:
    """The next seconds."""
    begins = time.monotonic()
    time.sleep(SECONDS)
    return Window(begins, begins + SECONDS)


def _p99(answers: list[tuple[str, float, float, bool]], window: Window) -> float:
    return p99([latency for _, sent, latency, _ in answers if window.begins <= sent < window.ends])


def measure(kinds: list[str], pairs: int, rate: float) -> list[Number]:
    every = Number("p99 beside all of these poisons", TARGET)
    started = Number("... and from the order on, so with its start", None)
    numbers = []
    with tempfile.TemporaryDirectory(prefix="dctl-poison") as folder:
        box = Box(Path(folder))
        try:
            bench = Bench(box.up(), rate)
            for kind in (NOTHING, BURNER, SOUND, *kinds):
                if kind in POISONS:
                    box.model_file(kind).write_bytes(POISONS[kind]())
                number = Number(f"p99 beside {'a sound candidate' if kind == SOUND else kind}", None)
                for at in range(pairs):
                    without, with_it, with_start, failed = bench.pair(kind, poison_first=bool(at % 2))
                    for one in (number, *((every,) if kind in POISONS else ())):
                        one.add(without, with_it)
                        one.failed += failed
                    if kind in POISONS:
                        started.add(without, with_start)
                numbers.append(number)
                print(number.row(), flush=True)
        finally:
            box.close()
    for number in (every, started):
        numbers.append(number)
        print(number.row(), flush=True)
    return numbers


def main() -> int:
    parser = argparse.ArgumentParser(
        description="What a poisonous candidate costs the callers of the baseline."
    )
    kinds = [kind for kind in POISONS if kind != REFUSED]
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rate", type=float, default=300.0)
    parser.add_argument("--only", default=",".join(kinds), help=f"some of {','.join(kinds)}")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "poison.json")
    given = parser.parse_args()
    numbers = measure(
        [kind for kind in kinds if kind in given.only.split(",")], max(given.pairs, 2), given.rate
    )
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
