"""Beside the others on the same streams: how soon a fault is found and at whose cost (M4, M5, M8), incidents (M6), promotions (M7)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.verdict.ladder import HOLD, PROMOTED, ROLLED_BACK, Runs
from benchmarks.verdict.rows import OURS, Pool, Row, guaranteed, percent
from benchmarks.verdict.streams import Scenario

FLAGGER, ARGO = "Flagger, documented", "Argo Rollouts, documented"
TUNED = ["Flagger, tuned", "Argo Rollouts, tuned", "group-sequential z-test"]


def m4(pool: Pool, rollouts: int) -> list[Row]:
    """A candidate that fails always: its bad answers until rollback, at 5 % weight."""
    rows = []
    for rate in (50.0, 1.0):
        scenario = Scenario("total failure", 0.005, rise=1.0, rate=rate, horizon=3000 / rate)
        runs = pool.climb(scenario, rollouts, seed=4)
        middle, slow = runs.median("requests"), runs.median("requests", q=95)
        rows.append(
            Row(
                "M4",
                f"total failure at {rate:g}/s: candidate requests, median (95 %)",
                "≤ 4 (≤ 8), all found",
                f"{middle:.0f} ({slow:.0f}), {percent(runs.share(ROLLED_BACK))} found",
                middle <= 4 and slow <= 8 and runs.share(ROLLED_BACK) == 1,
                value=middle,
            )
        )
    return rows


_M5 = (
    (Scenario("total failure", 0.005, rise=1.0, horizon=1300), 100, 1000),
    (Scenario("2 % to 22 %", 0.02, rise=0.2, horizon=1300), 20, 200),
    (Scenario("2 % to 7 %", 0.02, rise=0.05, horizon=1300), 4, 30),
)


def m5(pool: Pool, rollouts: int) -> tuple[list[Row], dict[str, dict[str, float]]]:
    """Bad answers of the candidate until rollback; the means of all rollouts of each policy, for the plot, beside the rows."""
    rows, served = [], {}
    for number, (scenario, by_flagger, by_argo) in enumerate(_M5):
        names = [FLAGGER, ARGO, *TUNED[:2], "SageMaker guardrails", *TUNED[2:]]
        runs = pool.beside(scenario, rollouts, names, seed=50 + number)
        ours = runs[OURS].median("bad")
        served[scenario.name] = {name: float(run.bad.mean()) for name, run in runs.items()}
        for name, times in ((FLAGGER, by_flagger), (ARGO, by_argo)):
            theirs = runs[name].median("bad")
            rows.append(
                Row(
                    "M5",
                    f"{scenario.name}: fewer bad answers than {name}",
                    f"≥ {times}x",
                    f"{theirs / ours:.1f}x ({ours:.0f} and {theirs:.0f})",
                    theirs / ours >= times,
                    value=theirs / ours,
                )
            )
    scenario = Scenario("2 % to 4 %", 0.02, rise=0.02, horizon=3100)
    runs = pool.beside(scenario, min(rollouts, 250), [ARGO], seed=59)
    missed = runs[OURS].share(PROMOTED)
    rows.append(
        Row(
            "M5",
            f"{scenario.name}: missed",
            "0",
            f"{percent(missed)} ({ARGO} {percent(runs[ARGO].share(PROMOTED))})",
            missed == 0 and runs[OURS].share(HOLD) == 0,
            value=missed,
        )
    )
    return rows, served


def m6(pool: Pool, rollouts: int) -> list[Row]:
    """False rollbacks of a good version while both versions share incidents."""
    rows = []
    for base in (0.005, 0.02):
        scenario = Scenario(f"{100 * base:g} %, incidents", base, incidents=True, horizon=1200)
        runs = pool.beside(scenario, rollouts, TUNED, seed=60)
        rows.append(
            guaranteed(
                "M6",
                f"shared incidents at {100 * base:g} %: false rollback",
                runs[OURS].share(ROLLED_BACK),
                0.01,
                rollouts,
            )
        )
        theirs = ", ".join(f"{name} {percent(runs[name].share(ROLLED_BACK))}" for name in TUNED)
        rows.append(Row("M6", "  compare", "", theirs, None))
    return rows


def m7(pool: Pool, rollouts: int) -> Iterator[Row]:
    """Seconds until a good version is promoted: 50/s, margin 0.5 points, step margins as the product has them, no bake."""
    for base, limit in ((0.005, 240), (0.02, 660)):
        runs = pool.climb(Scenario(f"good at {100 * base:g} %", base, horizon=2400), rollouts, seed=70)
        yield _promoted(runs, f"good version promoted at {100 * base:g} %", limit)
    for base in (0.005, 0.02):
        scenario = Scenario("after incidents", base, incidents=True, horizon=3600)
        runs = pool.climb(scenario, rollouts, seed=71)
        held = runs.share(HOLD)
        yield Row(
            "M7",
            f"held after an hour with incidents at {100 * base:g} %",
            "≤ 1 %",
            f"{percent(held)} ({percent(runs.share(ROLLED_BACK))} rolled back; median {runs.median('time', PROMOTED):.0f} s)",
            held <= 0.01,
            value=held,
        )


def _promoted(runs: Runs, what: str, limit: float) -> Row:
    # Those that were not promoted count as the slowest.
    time = np.where(runs.code == PROMOTED, runs.time, np.inf)
    middle = float(np.percentile(time, 50, method="higher"))
    slow = float(np.percentile(time, 95, method="higher"))
    reached = f"{middle:.0f} s (95 %: {slow:.0f} s; {percent(runs.share(ROLLED_BACK))} rolled back)"
    return Row("M7", what, f"median ≤ {limit} s", reached, middle <= limit, value=middle)


def m8(pool: Pool, rollouts: int) -> list[Row]:
    """A fault that shows at half the traffic only."""
    scenario = Scenario("5 points at 50 %", 0.02, rise=0.05, from_weight=50, horizon=2000)
    runs = pool.beside(scenario, rollouts, ["Flagger, tuned"], seed=80)
    ours, theirs = runs[OURS], runs["Flagger, tuned"]
    found = ours.share(ROLLED_BACK)
    middle = ours.median("bad")
    return [
        Row(
            "M8",
            "fault from 50 % weight on: bad answers, median (95 %)",
            "≤ 110, none promoted",
            f"{middle:.0f} ({ours.median('bad', q=95):.0f}), {percent(ours.share(PROMOTED))} promoted, "
            f"{percent(found)} found (Flagger, tuned: {theirs.median('bad'):.0f})",
            middle <= 110 and ours.share(PROMOTED) == 0,
            value=middle,
        )
    ]
