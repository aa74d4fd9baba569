"""How long it takes to join labels with predictions, and in how much memory, beside the bounds that we hold ourselves to.

A million answers (a shadow: every request and its copy) and 200,000 labels in random order, first from the records of a rollout
(`read_log`: reading, checking and decoding included), then as the live controller joins them.

python benchmarks/join.py [PREDICTIONS] [LABELS]      exit code 1 where a bound is missed
"""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np

from deployctl.core.plan import Gate, MetricRule, Plan, Step, Version
from deployctl.core.rollout import Cause, Event, Kind
from deployctl.journal import Journal
from deployctl.prediction_log import read_log
from deployctl.records import Arrivals, Began, Intake, Records, entries_of
from deployctl.statedir import ServiceHome
from deployctl.wire.orders import Batch, LabelRow

PREDICTIONS, LABELS = 1_000_000, 200_000
MAX_SECONDS, MAX_BYTES = 10.0, 300e6
ROLLOUT = "m-1-cafe"


def plan() -> Plan:
    """A shadow of one step."""
    step = Step(0.0, Gate(100.0, last=True), mirror=100.0)
    rules = (MetricRule("label-error-rate", 0.0, 0.0, 0.01),)
    return Plan("shadow", Version("1", "a"), Version("2", "b"), (step,), rules)


def batch(number: int, first: int, requests: int, labels: list[LabelRow]) -> Batch:
    """These requests and their copies."""
    count = 2 * requests
    serials = np.repeat(np.arange(first, first + requests, dtype="<u8"), 2)
    mirrored = np.tile(np.array([0, 1], "i1"), requests)
    starts = serials * 0.001
    ids = [f"request-{serial:09d}-of-somebody" for serial in serials.tolist()]
    return Batch(
        number=number,
        watermark=float(starts[-1]) + 0.001,
        id=ids,
        key=serials.tobytes(),
        arm=mirrored.tobytes(),
        split=np.ones(count, "<u4").tobytes(),
        start=starts.astype("<f8").tobytes(),
        latency=np.full(count, 5.0, "<f4").tobytes(),
        status=np.full(count, 200, "<u2").tobytes(),
        null=bytes(count),
        explicit=bytes(count),
        prediction=[str(serial % 10) for serial in serials.tolist()],
        labels=labels,
        serial=serials.tobytes(),
        mirrored=mirrored.tobytes(),
        copies=np.where(mirrored == 0, 2, 0).astype("<u2").tobytes(),
        confidence=np.full(count, 0.9, "<f4").tobytes(),
        input=bytes(8 * count),
        mirror_watermark=float(starts[-1]) + 0.001,
    )


def write(home: ServiceHome, predictions: int, labels: int) -> None:
    """Journal and records of a shadow; labels come in random order, also before their answers."""
    home.create()
    journal = Journal.open(home.journal)
    event = Event(1, Kind.STARTED, 0.0, "bench", Cause.PERSON, wall="2026-01-01T12:00:00.000Z", plan=plan())
    body = {"type": "event", "wall": event.wall, "rollout": ROLLOUT, "event": msgspec.to_builtins(event)}
    journal.append(body)
    journal.close()
    records = Records.open(home.records / f"{ROLLOUT}.records")
    records.append(Began(0, 1, 0.0))
    requests, size = predictions // 2, 100
    draw = random.Random(1)
    labelled = draw.sample(range(requests), labels)
    batches = requests // size
    for number in range(batches):
        here = labelled[number * labels // batches : (number + 1) * labels // batches]
        rows = [
            LabelRow(f"request-{one:09d}-of-somebody", str(draw.randrange(10)), f"person {one % 7}")
            for one in here
        ]
        records.append(Intake("r", number * 0.01, batch(number + 1, number * size, size, rows), 0.0))
    records.close()


def measure(what: str, folder: Path, predictions: int, labels: int) -> None:
    """In a process of its own, as peak memory is a process's: prints seconds and bytes."""
    home = ServiceHome(folder, "digits")
    began = time.perf_counter()
    if what == "offline":
        log = read_log(home)
        assert len(log.predictions) == predictions
        assert np.count_nonzero(log.votes["request"] >= 0) == labels
    else:
        arrivals = Arrivals((), with_labels=True)
        for entry in entries_of(home.records / f"{ROLLOUT}.records"):
            arrivals.fold(entry)
        joined, unknown = arrivals.join.counts.joined, arrivals.join.counts.unknown
        assert joined + unknown == labels, arrivals.join.counts
    seconds = time.perf_counter() - began
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> int:
    """Both joins beside their bounds."""
    sizes = [int(one) for one in sys.argv[1:3]] or [PREDICTIONS, LABELS]
    predictions, labels = sizes if len(sizes) == 2 else (sizes[0], sizes[0] // 5)
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        write(ServiceHome(Path(folder), "digits"), predictions, labels)
        print(f"{predictions:,} predictions, {labels:,} labels")
        print(f"{'':<28}{'seconds':>10}{'bound':>8}{'peak MB':>10}{'bound':>8}")
        for what, words in (("offline", "from the records, for reports"), ("live", "as they came in")):
            run = subprocess.run(
                [sys.executable, __file__, "--measure", what, folder, str(predictions), str(labels)],
                capture_output=True,
                text=True,
                check=True,
            )
            seconds, peak = map(float, run.stdout.split())
            missed += seconds > MAX_SECONDS or peak > MAX_BYTES
            print(f"{words:<28}{seconds:>10.1f}{MAX_SECONDS:>8.0f}{peak / 1e6:>10.0f}{MAX_BYTES / 1e6:>8.0f}")
    return 1 if missed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
    else:
        sys.exit(main())
