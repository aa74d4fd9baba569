"""python -m benchmarks.verdict [--short] [--jobs N] [--only M3,M7] [--scale 0.1]: the table, JSON and a plot."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.plots import bars
from benchmarks.verdict import comparison, guarantees, measures, sharpness
from benchmarks.verdict.rows import Pool, Row, pool

RESULTS = Path(__file__).resolve().parent.parent / "results"
TITLE = "Bad answers that callers got from the candidate until it was rolled back (mean)"
Target = Callable[[Pool, Callable[[int], int]], Iterable[Row]]


def _full(served: dict[str, dict[str, float]]) -> dict[str, Target]:
    def m5(p: Pool, n: Callable[[int], int]) -> list[Row]:
        rows, means = comparison.m5(p, n(500))
        served.update(means)
        return rows

    return {
        "exact": lambda _p, n: [guarantees.exactness(n(2000)), guarantees.blocks_agree()],
        "M1": lambda p, n: guarantees.m1(p, n(10_000)),
        "M2": lambda p, n: guarantees.m2(p, n(2000)),
        "M3": lambda p, n: sharpness.m3(p, n(2000)),
        "M4": lambda p, n: comparison.m4(p, n(2000)),
        "M5": m5,
        "M6": lambda p, n: comparison.m6(p, n(1000)),
        "M7": lambda p, n: comparison.m7(p, n(500)),
        "M8": lambda p, n: comparison.m8(p, n(500)),
        "M9": lambda p, n: measures.m9(p, n(500)),
        "M10": lambda p, n: measures.m10(p, n(1000)),
        "M11": lambda _p, _n: measures.m11(),
        "traps": lambda p, n: [*guarantees.traps(p, n(1000)), *measures.stalls(p, n(300))],
    }


SHORT: dict[str, Target] = {
    "exact": lambda _p, _n: [guarantees.exactness(300), guarantees.blocks_agree()],
    "M1": lambda p, _n: guarantees.m1(p, 100),
    "M2": lambda p, _n: guarantees.m2(p, 100),
}


def main(arguments: list[str]) -> int:
    """Prints the table as it grows; 1 where a guarantee is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdict", description=__doc__)
    parser.add_argument(
        "--short", action="store_true", help="the guarantees alone, under a minute on one core"
    )
    parser.add_argument("--jobs", type=int, default=None, help="processes; 1 with --short, else one per core")
    parser.add_argument("--only", default="", help="targets, by comma")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of rollouts")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON and the plot")
    chosen = parser.parse_args(arguments)
    jobs = chosen.jobs or (1 if chosen.short else os.cpu_count() or 1)
    served: dict[str, dict[str, float]] = {}
    targets = SHORT if chosen.short else _full(served)
    only = [name for name in chosen.only.split(",") if name]
    unknown = set(only) - set(targets)
    if unknown:
        parser.error(f"unknown target {', '.join(sorted(unknown))}; known: {', '.join(targets)}")
    began = time.perf_counter()
    rows = []
    for row in _rows({name: targets[name] for name in only or targets}, jobs, chosen.scale):
        print(f"{row.target:<6} {_word(row):<7} {row.what:<74} {row.limit:<34} {row.reached}", flush=True)
        rows.append(row)
    taken = time.perf_counter() - began
    missed = [row for row in rows if row.held is not None and not row.held]
    broken = [row for row in missed if row.guarantee]
    print(
        f"\n{len(rows)} rows, {len(missed)} missed, {len(broken)} guarantees broken, {taken:.0f} s, {jobs} jobs"
    )
    if not chosen.short:
        _write(chosen.output, rows, taken, jobs, chosen.scale, served)
    return 1 if broken else 0


def _rows(targets: dict[str, Target], jobs: int, scale: float) -> Iterator[Row]:
    with pool(jobs) as opened:
        for target in targets.values():
            yield from target(opened, lambda rollouts: max(20, int(rollouts * scale)))


def _word(row: Row) -> str:
    return "" if row.held is None else "held" if row.held else "MISSED"


def _write(
    folder: Path, rows: list[Row], taken: float, jobs: int, scale: float, served: dict[str, dict[str, float]]
) -> None:
    """Into the JSON that is there: a target that was run replaces its own rows and leaves the others."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "verdict.json"
    known = json.loads(file.read_text()) if file.exists() else {"rows": [], "runs": {}, "bad_answers": {}}
    fresh = {row.target for row in rows}
    order = [*_full({}), "trap"]
    run = {"seconds": round(taken), "jobs": jobs, "scale": scale}
    result = {
        "machine": {"python": platform.python_version(), "numpy": np.__version__, "cores": os.cpu_count()},
        "runs": known["runs"] | {",".join(sorted(fresh)): run},
        "bad_answers": known["bad_answers"] | served,
        "rows": sorted(
            [row for row in known["rows"] if row["target"] not in fresh] + [row.shown() for row in rows],
            key=lambda row: order.index(row["target"]),
        ),
    }
    file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if result["bad_answers"]:
        (folder / "verdict.svg").write_text(bars(TITLE, result["bad_answers"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
