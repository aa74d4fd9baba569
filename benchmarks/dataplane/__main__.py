"""deployctl's data plane beside what people put together, in turns on the same two cores.

    python -m benchmarks.dataplane [--seconds 3] [--repetitions 7] [--only NAME,NAME] [--workloads tab-json,conv-json,conv-binary]

Prints a table, writes benchmarks/results/dataplane.json and .svg, and ends with 1 if a number misses its target. README.md says how.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.dataplane import load, stacks
from benchmarks.dataplane.models import Workload, workloads
from benchmarks.plots import bars

RESULTS = Path(__file__).resolve().parent.parent / "results"
BARE = "bare onnxruntime"
TITLE = "Requests a second on one core, 64 connections (median)"
MANY, ONE = 64, 1
"""Connections: for requests a second, and for the latency of one caller."""


@dataclass(frozen=True)
class Target:
    """The number of `of` over that of `beside` in the same repetition; the median must reach `least`. For latencies it is the other way
    round, so that more is better.
    """

    workload: str
    beside: str
    least: float
    what: str = "rps"
    of: str = stacks.OURS

    def ratio(self, ours: load.Window, theirs: load.Window) -> float:
        if self.what == "rps":
            return ours.rps / theirs.rps
        return theirs.p50 / ours.p50 if self.what == "p50" else theirs.p99 / ours.p99


TARGETS = (
    Target("tab-json", "Envoy + 2 MLServer", 25),
    Target("tab-json", "Envoy + 2 FastAPI", 12),
    Target("tab-json", "nginx + 2 FastAPI", 10),
    Target("tab-json", "nginx + 2 deployctl", 1),
    Target("tab-json", "Envoy + 2 MLServer", 8, "p50"),
    Target("tab-json", "Envoy + 2 FastAPI", 4, "p50"),
    Target("tab-json", "nginx + 2 FastAPI", 2, "p50"),
    Target("tab-json", stacks.SINGLE, 1 / 1.05, "p99"),
    Target("tab-json", stacks.SINGLE, 1 / 1.25, "p99", of=stacks.SHADOWED),
    Target("tab-json", BARE, 0.35),
    Target("conv-json", BARE, 0.40),
    Target("conv-binary", BARE, 0.70),
)


@dataclass
class Cell:
    """One stack with one model: its windows with many connections and with one, in the order of the repetitions."""

    many: list[load.Window] = field(default_factory=list)
    one: list[load.Window] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return sum(window.failed for window in (*self.many, *self.one))


def main() -> int:
    arguments = _arguments()
    chosen = [stack for stack in stacks.STACKS if not arguments.only or stack.name in arguments.only]
    missing: dict[str, str] = {}
    try:
        stacks.install("wrk")
    except stacks.Missing as error:
        sys.stderr.write(f"{error}: nothing can be measured\n")
        return 1
    cells: dict[str, dict[str, Cell]] = {}
    with tempfile.TemporaryDirectory(prefix="dctl-models") as directory:
        loads = workloads(Path(directory))
        for name in arguments.workloads:
            cells[name] = {BARE: Cell()}
        for repetition in range(arguments.repetitions):
            for name in arguments.workloads:
                cells[name][BARE].many.append(_bare(loads[name], arguments.seconds))
                # The order changes, so that nobody always comes after the same neighbour.
                order = chosen if repetition % 2 else chosen[::-1]
                for stack in order:
                    if stack.name in missing or not _fits(stack, name):
                        continue
                    try:
                        _measure(
                            stack, loads[name], cells[name].setdefault(stack.name, Cell()), arguments.seconds
                        )
                    except stacks.Missing as error:
                        missing[stack.name] = str(error)
                    _progress(f"{repetition + 1}/{arguments.repetitions} {name} {stack.name}")
    rows = list(_rows(cells))
    _progress("")
    for line in _table(cells, rows, missing):
        print(line)
    document = {
        "machine": platform.processor() or platform.machine(),
        "kernel": platform.release(),
        "seconds": arguments.seconds,
        "repetitions": arguments.repetitions,
        "cells": {name: {stack: asdict(cell) for stack, cell in of.items()} for name, of in cells.items()},
        "ratios": rows,
        "missing": missing,
    }
    if not arguments.no_results:
        # JSON has no NaN: what was not measured is null.
        text = json.dumps(json.loads(json.dumps(document), parse_constant=lambda _: None), indent=1)
        (RESULTS / "dataplane.json").write_text(f"{text}\n")
        medians = {
            name: {
                stack: statistics.median(w.rps for w in cell.many) for stack, cell in of.items() if cell.many
            }
            for name, of in cells.items()
        }
        (RESULTS / "dataplane.svg").write_text(bars(TITLE, medians, first=1, most_first=True, bound=BARE))
    missed = [row for row in rows if not row["holds"]]
    broken = sum(cell.failed for of in cells.values() for name, cell in of.items() if name == stacks.OURS)
    return 1 if missed or broken else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dataplane")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    parser.add_argument(
        "--workloads", type=lambda text: text.split(","), default=["tab-json", "conv-json", "conv-binary"]
    )
    parser.add_argument("--no-results", action="store_true", help="print the table only")
    return parser.parse_args()


def _measure(stack: stacks.Stack, workload: Workload, cell: Cell, seconds: float) -> None:
    with stacks.running(stack, workload) as url:
        load.window(url, workload, 16, 1.0)
        cell.many.append(load.window(url, workload, MANY, seconds))
        cell.one.append(load.window(url, workload, ONE, seconds))
        cell.memory.append(load.memory())


def _bare(workload: Workload, seconds: float) -> load.Window:
    """The bound: onnxruntime alone in a process on the servers' core, one row after the other."""
    code = (
        "import sys, time, numpy, onnxruntime as o\n"
        "s = o.SessionOptions(); s.intra_op_num_threads = s.inter_op_num_threads = 1\n"
        "m = o.InferenceSession(sys.argv[1], s, providers=['CPUExecutionProvider'])\n"
        "x = numpy.load(sys.argv[2]); n = 0; t = time.perf_counter(); until = t + float(sys.argv[3])\n"
        "while time.perf_counter() < until:\n"
        "    for _ in range(20): m.run(None, {'x': x})\n"
        "    n += 20\n"
        "print(n / (time.perf_counter() - t))\n"
    )
    import numpy as np  # noqa: PLC0415 - beside its only use

    rows = workload.file.with_suffix(".npy")
    np.save(rows, workload.rows)
    command = ["taskset", "-c", str(load.SERVERS), sys.executable, "-c", code]
    command += [str(workload.file), str(rows), str(seconds)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return load.Window(float(said), 1e3 / float(said), float("nan"), 0, 1e6 / float(said))


def _rows(cells: dict[str, dict[str, Cell]]) -> Iterator[dict[str, object]]:
    for target in TARGETS:
        ours, theirs = (cells.get(target.workload, {}).get(name) for name in (target.of, target.beside))
        if ours is None or theirs is None:
            continue
        windows = "one" if target.what == "p50" else "many"
        pairs = list(zip(getattr(ours, windows), getattr(theirs, windows), strict=False))
        if not pairs:
            continue
        ratios = sorted(target.ratio(*pair) for pair in pairs)
        yield {
            "workload": target.workload,
            "of": target.of,
            "beside": target.beside,
            "what": target.what,
            "median": statistics.median(ratios),
            "low": ratios[0],
            "high": ratios[-1],
            "least": target.least,
            "holds": statistics.median(ratios) >= target.least,
        }


def _table(
    cells: dict[str, dict[str, Cell]], rows: list[dict[str, object]], missing: dict[str, str]
) -> Iterator[str]:
    for name, of in cells.items():
        yield f"\n{name}: {MANY} connections, then one"
        yield f"{'':<24}{'req/s':>10}{'p50 ms':>9}{'p99 ms':>9}{'CPU µs':>9}{'p50 ms, 1':>11}{'PSS MB':>8}{'failed':>8}"
        for stack, cell in of.items():
            if cell.many:
                yield _line(stack, cell)
        if stacks.OURS in of and of[stacks.OURS].many:
            yield from _stages(of[stacks.OURS].many)
    yield ""
    for row in rows:
        words = {"rps": "requests/s over", "p50": "p50 of one caller, better than", "p99": "p99, beside"}[
            str(row["what"])
        ]
        yield (
            f"{row['workload']:<12}{row['of']:<24}{words:<31}{row['beside']:<22} x{row['median']:.3g} "
            f"[{row['low']:.3g}-{row['high']:.3g}] at least {row['least']:g}  {'ok' if row['holds'] else 'MISSED'}"
        )
    for stack, reason in missing.items():
        yield f"not measured: {stack}: {reason}"


def _stages(windows: list[load.Window]) -> Iterator[str]:
    """Where the time of a request goes: each process, itself and in the kernel for it. The sum is what the core had for each."""
    yield f"  {'where a request goes':<22}{'itself µs':>10}{'kernel µs':>11}"
    total = 0.0
    for name in sorted({name for window in windows for name in window.stages}):
        user, system = (
            statistics.median(window.stages.get(name, (0.0, 0.0))[place] for window in windows)
            for place in (0, 1)
        )
        total += user + system
        yield f"  {name:<22}{user:>10.1f}{system:>11.1f}"
    yield f"  {'all':<22}{total:>10.1f}; the core had {statistics.median(1e6 / window.rps for window in windows):.1f} for each"


def _fits(stack: stacks.Stack, workload: str) -> bool:
    return (stack.binary or not workload.endswith("binary")) and (
        stack.pictures or workload.startswith("tab")
    )


def _line(stack: str, cell: Cell) -> str:
    def median(of: list[float]) -> float:
        return statistics.median(of) if of else float("nan")

    many = [median([getattr(w, what) for w in cell.many]) for what in ("rps", "p50", "p99", "cpu")]
    return (
        f"{stack:<24}{many[0]:>10,.0f}{many[1]:>9.3f}{many[2]:>9.2f}{many[3]:>9.1f}"
        f"{median([w.p50 for w in cell.one]):>11.3f}{median(cell.memory):>8.0f}{cell.failed:>8}"
    )


def _progress(words: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{time.strftime('%H:%M:%S')} {words:<60}")


if __name__ == "__main__":
    sys.exit(main())
