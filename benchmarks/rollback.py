"""The numbers of a rollout on a real service under real load, each against its target. What counts is what callers got.

    python benchmarks/rollback.py [--runs 20] [--only 5xx,nan,slow,hang,labels,command,promotion,delay,memory]

Prints a table and writes benchmarks/results/rollback.json. See README.md here for how each number is taken.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "service"))

import faulty_models  # noqa: E402 - found by the line above
import msgspec  # noqa: E402 - as above
import numpy as np  # noqa: E402 - as above
from service_rig import NAME, Box, wait_for  # noqa: E402 - as above
from traffic_maker import Answer, Traffic  # noqa: E402 - as above

from deployctl.records import Intake  # noqa: E402 - as above
from deployctl.records import read as read_records  # noqa: E402 - as above
from deployctl.records.file import _HEAD  # noqa: E402 - as above
from deployctl.wire.admin import AdminClient  # noqa: E402 - as above

RATE = 1_000.0
WEIGHT = 5
TIMEOUT = 0.5
LABEL_DELAY = (1.0, 3.0)
CANARY_RATE = RATE * WEIGHT / 100
METRICS = [
    {"name": "error-rate", "tolerance": {"relative": "10%", "absolute": "0.1%"}, "margin": "0.5%"},
    {"name": "null-rate", "tolerance": {"relative": "10%", "absolute": "0.1%"}, "margin": "0.5%"},
    {"name": "latency", "tolerance": {"relative": "10%", "absolute": "5ms"}, "margin": "2%"},
    {"name": "label-error-rate", "tolerance": {"relative": "10%", "absolute": "0.1%"}, "margin": "2%"},
]
CANARY = {
    "steps": [{"setWeight": WEIGHT}, {"ramp": {"from": 10, "to": 50, "by": 10}}],
    "minDwell": "3s",
    "bake": "5s",
    "stepTimeout": "30s",
}
KINDS = {
    "5xx": ("raises", "raises on every row: 5xx", 8.0),
    "nan": ("nan", "answers NaN: null", 8.0),
    "slow": ("slow", "30 ms slower", 8.0),
    "hang": ("hanging", "hangs until the time-out", TIMEOUT * CANARY_RATE + 12),
    "labels": ("off", "quick and wrong: labels 1 to 3 s late", 120.0),
}
"""Kind → the candidate, in words, the most bad answers that callers should get (median)."""


@dataclass
class Number:
    """One line of the table: what was measured, in which unit, and the most that it should be."""

    name: str
    unit: str
    target: float
    values: list[float] = field(default_factory=list)
    judged: Callable[[list[float]], float] = statistics.median
    remark: str = ""

    @property
    def reached(self) -> float:
        return self.judged(self.values)

    @property
    def p95(self) -> float:
        return quantile(self.values, 0.95)

    @property
    def holds(self) -> bool:
        return bool(self.values) and self.reached <= self.target

    def row(self) -> str:
        verdict = "ok" if self.holds else "MISSED"
        if not self.values:
            return f"{self.name:<58} nothing was measured"
        middle, high, most = statistics.median(self.values), self.p95, max(self.values)
        return (
            f"{self.name:<58} {self.unit:<5} {self.target:>7g} {middle:>9.4g} {high:>9.4g} {most:>9.4g} "
            f"{len(self.values):>5}  {verdict}{'  ' + self.remark if self.remark else ''}"
        )

    def document(self) -> dict[str, object]:
        told = {key: value for key, value in asdict(self).items() if key != "judged"}
        figures = {"median": statistics.median(self.values), "p95": self.p95} if self.values else {}
        return told | figures | {"holds": self.holds}


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1]


class Bench:
    """One service under steady load; every rollout begins with version 1 live."""

    def __init__(self, box: Box, runs: int) -> None:
        self.box = box
        self.runs = runs
        self.client = AdminClient(box.home.admin_socket, NAME)
        self.bad: list[Answer] = []

    @contextmanager
    def load(self, **labels: object):
        """1,000 requests a second; `bad` collects every answer that is not a 200 of version 1."""

        def seen(answer: Answer) -> None:
            if answer.status != 200 or answer.version != "1":
                self.bad.append(answer)

        with Traffic(self.box.url, RATE, model=NAME, on_answer=seen, **labels) as traffic:
            traffic.wait_for_answers(int(3 * RATE))  # as long before a canary as the demo takes
            yield traffic

    def start(self, candidate: str, *, stays: bool = False) -> str:
        """The call that `deployctl canary ramp --detach` makes, without the time of a Python start.

        `stays`: at 5 %, for as long as a number needs that is not about the verdict.
        """
        canary, metrics = (CANARY | {"minDwell": "10m"}, METRICS[:1]) if stays else (CANARY, METRICS)
        manifest = self.box.manifest(
            candidate=candidate, name=candidate, canary=canary, analysis={"metrics": metrics}
        )
        body = {"manifest": manifest.read_text(), "path": str(manifest), "strategy": "canary", "by": "bench"}
        return str(self.client.post("/v1/rollouts", body)["rollout"])

    def events(self, rollout: str) -> list[dict[str, Any]]:
        """Every event, when the rollout is finished."""
        return list(self.client.stream(f"/v1/rollouts/{rollout}/events?after=0"))

    def bad_candidate(self, kind: str) -> list[Number]:
        candidate, words, target = KINDS[kind]
        served = Number(f"{words}; bad answers before rollback", "count", target)
        took = Number("  its time from 5 % to rollback", "s", 3.0 if kind == "labels" else 1.5)
        labels = {"label_delay": LABEL_DELAY} if kind == "labels" else {}
        latencies: list[float] = []
        with self.load(**labels) as traffic:
            for run in range(self.runs):
                self.bad = []
                events = self.events(self.start(candidate))
                if events[-1]["phase"] != "rolled_back":
                    print(f"{kind} run {run}: {events[-1]['phase']}: {events[-1]['reason']}", file=sys.stderr)
                climbed = next(event for event in events if event["kind"] == "climbed")
                took.values.append(float(events[-1]["at"]) - float(climbed["at"]))
                traffic.wait_for_answers(int(RATE * (TIMEOUT + 0.7)))  # those under way end, too
                served.values.append(float(len(self.bad)))
                latencies += [answer.latency * 1000 for answer in self.bad]
        served.remark = f"answered after {statistics.median(latencies or [0]):.0f} ms (median)"
        return [served, took]

    def command(self) -> list[Number]:
        whole = Number("rollback: command to weight 0 read back", "s", 1.0)
        inside = Number("  of that the service's part", "s", 1.0)
        with self.load() as traffic:
            for run in range(2 * self.runs):
                self.start("2", stays=True)
                traffic.wait_for_answers(5, of="2")
                began = time.monotonic()
                if run % 2:
                    answer = self.client.post("/v1/rollback", {"by": "bench", "reason": "", "to": None})
                    inside.values.append(time.monotonic() - began)
                else:
                    answer = self.box.run("rollback", NAME, "-o", "json").json
                    whole.values.append(time.monotonic() - began)
                assert answer["weight"] == 0, answer
                traffic.wait_for_answers(500)
            assert not traffic.failures, traffic.failures[:3]
        return [whole, inside]

    def promotion(self) -> list[Number]:
        took = Number("version 2: from its start to promotion", "s", 30.0)
        stayed = Number("  runs in which it was not promoted", "count", 0.0, [0.0])
        failed = Number("  requests that failed meanwhile", "count", 0.0, judged=max)
        with self.load(label_delay=LABEL_DELAY) as traffic:
            for run in range(self.runs):
                before = len(traffic.failures)
                events = self.events(self.start("2"))
                if events[-1]["phase"] != "promoted":
                    print(f"promotion run {run}: {events[-1]['reason']}", file=sys.stderr)
                    stayed.values[0] += 1
                else:
                    took.values.append(float(events[-1]["at"]))
                    self.client.post("/v1/rollback", {"by": "bench", "reason": "", "to": None})
                failed.values.append(float(len(traffic.failures) - before))
                traffic.wait_for_answers(int(RATE))
        return [took, stayed, failed]

    def delay(self) -> list[Number]:
        """From the end of each request to its line in the records, which is when the controller has it."""
        late = Number("outcome: from its answer to the controller's records", "ms", 20.0, judged=p95)
        with self.load() as traffic, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
            other.submit(delays, str(self.box.home.journal), 0.0).result()  # it has started
            rollout = self.start("2", stays=True)
            traffic.wait_for_answers(20, of="2")
            path = self.box.home.records / f"{rollout}.records"
            late.values = other.submit(delays, str(path), 4.0).result()
            self.client.post("/v1/rollback", {"by": "bench", "reason": "", "to": None})
        late.remark = "judged by its p95"
        return [late]

    def memory(self) -> list[Number]:
        """All processes of a service at rest that has two versions loaded."""
        with self.load() as traffic:
            self.start("2", stays=True)
            traffic.wait_for_answers(5, of="2")
        pids = self.box.status()["pids"]
        everyone = [pids["supervisor"], pids["controller"], *pids["routers"], *pids["workers"].values()]
        numbers = []
        for what in ("Pss", "Rss"):
            total = sum(memory_mb(pid, what) for pid in everyone)
            numbers.append(
                Number(
                    f"memory at rest, two small models, {what.upper()} of {len(everyone)} processes",
                    "MB",
                    250.0,
                    [total],
                )
            )
        numbers[1].remark = "RSS counts shared pages once for each process"
        self.client.post("/v1/rollback", {"by": "bench", "reason": "", "to": None})
        return numbers


def p95(values: list[float]) -> float:
    return quantile(values, 0.95)


def delays(path: str, seconds: float) -> list[float]:
    """Milliseconds that each outcome took into the record file, watched from another process every half millisecond."""
    growth: list[tuple[int, float]] = []
    ends = time.monotonic() + seconds
    first = size = Path(path).stat().st_size
    while (now := time.monotonic()) < ends:
        if (grown := Path(path).stat().st_size) > size:
            size = grown
            growth.append((size, now))
        time.sleep(0.0005)
    if not growth:
        return []
    at, late = 0, []
    for entry in read_records(Path(path)):
        at += _HEAD.size + len(msgspec.msgpack.encode(entry))
        if first < at <= size and isinstance(entry, Intake) and entry.batch.start:
            arrived = next(when for upto, when in growth if upto >= at)
            begun, took = np.frombuffer(entry.batch.start, "<f8"), np.frombuffer(entry.batch.latency, "<f4")
            late += ((arrived - begun) * 1000 - took).tolist()
    return late


def memory_mb(pid: int, what: str) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no {what} of process {pid}")


def main() -> int:
    names = [*KINDS, "command", "promotion", "delay", "memory"]
    parser = argparse.ArgumentParser(description="The numbers of a rollout, each against its target.")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--only", default=",".join(names), help=f"some of {','.join(names)}")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "rollback.json")
    given = parser.parse_args()
    chosen = [name for name in names if name in given.only.split(",")]
    numbers: list[Number] = []
    with tempfile.TemporaryDirectory(prefix="dctl-bench") as folder:
        box = Box(folder)
        box.model_file("slow").write_bytes(faulty_models.slow(30))
        try:
            for name in chosen:
                box.up(box.manifest(service={"timeout": f"{TIMEOUT * 1000:g}ms"}))
                wait_for(lambda: box.status()["live"] == "1")
                bench = Bench(box, given.runs)
                measured = bench.bad_candidate(name) if name in KINDS else getattr(bench, name)()
                numbers += measured
                for number in measured:
                    print(number.row(), flush=True)
        finally:
            box.close()
    print(
        f"\n{'number':<58} {'unit':<5} {'target':>7} {'median':>9} {'p95':>9} {'most':>9} {'n':>5}  verdict"
    )
    for number in numbers:
        print(number.row())
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
        "rate": RATE,
        "weight": WEIGHT,
        "numbers": [number.document() for number in numbers],
    }
    given.results.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if all(number.holds for number in numbers) else 1


if __name__ == "__main__":
    sys.exit(main())
