"""How many recorded outcomes a second `deployctl replay` takes in, beside a bound: the same file, JSON decoding alone.

A canary that is promoted at the end of the log, so that every outcome is judged: 2,000 callers a second, three metrics, one core.
Seconds are the processor's, so that others on the machine count less.

python benchmarks/replay.py [RUNS] [PER_SECOND]
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from deployctl.core.plan import Gate, MetricRule, Plan, Step, Version
from deployctl.outcome_log import Line, OutcomeLog
from deployctl.replay import Replay

SECONDS = 200
STEPS = (5.0, 10.0, 30.0, 50.0)


def plan() -> Plan:
    """Four steps of 50 seconds each; error rate, null rate and latency."""
    following = (*STEPS[1:], 100.0)
    steps = tuple(
        Step(weight, Gate(after, last=after == 100.0), dwell=SECONDS / len(STEPS) - 0.5)
        for weight, after in zip(STEPS, following, strict=True)
    )
    metrics = (
        MetricRule("error-rate", 0.1, 0.001, 0.01),
        MetricRule("null-rate", 0.1, 0.001, 0.01),
        MetricRule("latency", 0.1, 5.0),
    )
    return Plan("canary", Version("1", "a"), Version("2", "b"), steps, metrics)


def write(path: Path, per_second: int) -> int:
    """A shadow log: both arms of every request, both sound."""
    draw = random.Random(1)
    lines = []
    for number in range(SECONDS * per_second):
        arms = {
            arm: {
                "ok": draw.random() > 0.01,
                "latency_ms": round(draw.lognormvariate(1.5, 0.4), 2),
                "prediction": "7",
            }
            for arm in ("baseline", "candidate")
        }
        t = round(number / per_second, 6)
        lines.append(
            json.dumps({"t": t, "id": f"r{number}", "key": f"user-{number}", **arms}, separators=(",", ":"))
        )
    path.write_text("\n".join(lines) + "\n")
    return len(lines)


def measure(path: Path, runs: int) -> tuple[list[float], list[float], str]:
    """Seconds of whole replays and of decoding alone, interleaved, and how the replay ended."""
    whole, bound, end = [], [], ""
    decoder = msgspec.json.Decoder(Line)
    for _ in range(runs):
        began = time.process_time()
        decoder.decode_lines(path.read_bytes())
        bound.append(time.process_time() - began)
        began = time.process_time()
        log = OutcomeLog(path)
        run = Replay(plan(), log.header)
        list(run.run(log.pieces()))
        whole.append(time.process_time() - began)
        end = f"{run.end.phase.value} at {run.end.at:.1f} s"
    return whole, bound, end


if __name__ == "__main__":
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    per_second = int(sys.argv[2]) if len(sys.argv) > 2 else 2000
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "outcomes.jsonl")
        count = write(path, per_second)
        whole, bound, end = measure(path, runs)
    print(f"{count} outcomes at {per_second} a second, median of {runs} runs on one core; {end}")
    print(f"replay             {count / statistics.median(whole):>10,.0f} outcomes/s   (at least 200,000)")
    print(f"JSON decoding only {count / statistics.median(bound):>10,.0f} outcomes/s   (the bound)")
