"""What is promised whatever happens: exact factors, few false rollbacks (M1), few bad versions promoted (M2), and the known traps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.verdict.ladder import DWELL, PROMOTED, ROLLED_BACK, Keys, Units, errors, plan_for
from benchmarks.verdict.rows import Pool, Row, guaranteed, percent
from benchmarks.verdict.streams import Scenario, draw
from deployctl.core.analysis import Judge
from deployctl.core.evidence import log_factor
from deployctl.core.outcome import OUTCOME, Admission, Blocks, Columns, Source
from deployctl.core.verdict import Result

UNIT = "key"
"""How the product counts a caller that comes back; see `ladder.Keys`."""

GOOD = (
    Scenario("iid", 0.02, horizon=600),
    Scenario("shared incidents", 0.02, horizon=600, incidents=True),
    Scenario("ramp and drift", 0.01, horizon=600, drift=True),
    Scenario("share 60 % of nominal", 0.02, horizon=600, share=0.6),
    Scenario("share 140 % of nominal", 0.02, horizon=600, share=1.4),
    Scenario("keyed, failing users retry x8", 0.02, horizon=600, retries=8),
)
RETRY_SLOWLY = Scenario("keyed, retries 1 s apart", 0.02, horizon=600, retries=8, retry_seconds=1.0)
HOPELESS = Scenario(
    "keyed, 2 % of 1,000 regulars always fail", 0.02, horizon=600, regulars=1000, hopeless=True
)
ON_TOLERANCE = Scenario(
    "exactly on the tolerance, incidents", 0.02, rise=0.001, factor=1.1, horizon=600, incidents=True
)


def exactness(points: int, seed: int = 1) -> Row:
    """The largest expectation of a block's factor under any null pair: the exact sum over all that a small block can show."""
    rng = np.random.default_rng(seed)
    harm = rng.random(points) < 0.5
    p0 = np.exp(rng.uniform(np.log(1e-4), np.log(0.9), points))
    relative = np.where(harm & (rng.random(points) < 0.5), rng.uniform(1, 2, points), 1.0)
    absolute = np.where(
        harm & (rng.random(points) < 0.3), 0.0, np.exp(rng.uniform(np.log(1e-4), np.log(0.3), points))
    )
    edge = relative * p0 + absolute
    gap = np.exp(rng.uniform(np.log(1e-5), np.log(0.9), points))
    p1 = np.where(harm, edge + gap, edge * rng.uniform(0.01, 1, points))
    usable = (p1 < 0.995) & (p1 > 1e-4) & (edge < 0.99) & (np.abs(p1 - edge) > 1e-6)
    harm, p0, p1, relative, absolute = (values[usable] for values in (harm, p0, p1, relative, absolute))
    rates = np.concatenate([[0.0, 1e-6, 1e-4, 1e-3], np.linspace(0.005, 0.995, 100), [1.0]])[:, None]
    on_edge = relative * rates + absolute
    beyond = np.where(harm, 0.5 * on_edge, 0.5 * (1 + on_edge))
    worst = 0.0
    for n0, n1 in ((1, 1), (5, 1), (1, 4), (6, 4), (19, 1)):
        for rates1 in (on_edge, beyond):
            total = np.zeros(rates1.shape)
            for k0, k1 in itertools.product(range(n0 + 1), range(n1 + 1)):
                counts = tuple(np.full(len(p0), float(x)) for x in (n0, k0, n1, k1))
                factor = np.exp(log_factor(counts, p0, p1, relative, absolute))
                total += factor * _binomial(n0, k0, rates) * _binomial(n1, k1, np.minimum(rates1, 1))
            worst = max(worst, float(np.where(on_edge <= 1, total, 0).max()))
    return Row(
        "exact",
        f"largest expected factor of a block under the null, {len(p0):,} nulls",
        "≤ 1 + 1e-7",
        f"1 {worst - 1:+.1e}",
        worst <= 1 + 1e-7,
        guarantee=True,
        value=worst,
    )


def _binomial(n: int, k: int, rate: Any) -> Any:
    return math.comb(n, k) * rate**k * (1 - rate) ** (n - k)


def blocks_agree(rollouts: int = 6, weight: float = 25.0) -> Row:
    """The benchmark's vectorised cutting against `core.outcome.Blocks` on the same streams."""
    same = True
    for scenario in (Scenario("units", 0.1, horizon=30), Scenario("users", 0.1, horizon=30, retries=4)):
        requests = draw(scenario, rollouts, seed=5)
        everyone = np.arange(rollouts)
        cutter = Units(requests) if requests.earlier is None else Keys(requests, UNIT)
        cutter.enter(everyone, weight)
        for row in everyone:
            blocks = _real_blocks(requests, int(row), weight, scenario.horizon)
            place, closed, seen = 0, 0, 0.0
            for block in blocks:
                end, units, n, bad = cutter.cut(
                    np.array([row]),
                    np.array([place]),
                    np.array([1 if closed < 6 else 4]),
                    np.array([seen >= 64]),
                )
                same &= bool(
                    (n[0] == block.n).all() and (bad[0] == block.bad).all()
                )  # one count stands for all three sides
                place, closed, seen = int(end[0]) + 1, closed + 1, seen + float(units[0])
    return Row("exact", "blocks cut as the product cuts them", "identical", str(same), same, guarantee=True)


def _real_blocks(requests: Any, row: int, weight: float, horizon: float) -> list[Any]:
    time = requests.time[row][requests.time[row] < horizon]
    outcomes = np.zeros(len(time), OUTCOME)
    candidate = requests.candidates(np.array([row]), weight)[0][: len(time)]
    bad = np.where(candidate, requests.bad1[row, : len(time), 0], requests.bad0[row, : len(time), 0])
    key = np.arange(len(time))
    if requests.earlier is not None:
        for at in np.flatnonzero(requests.earlier[row][: len(time)] >= 0):
            key[at] = key[requests.earlier[row][at]]
    outcomes["key"], outcomes["arm"], outcomes["start"] = key, candidate, time
    cut = Blocks(Source.OUTCOME, 1, requests.earlier is not None)
    known = np.ones((len(time), 1), bool)
    return list(cut.add(outcomes, time, known, bad[:, None], 0.0))


def m1(pool: Pool, rollouts: int) -> Iterator[Row]:
    """False rollbacks of a version that is exactly as good, tolerance 0, the verdict read after every block."""
    for scenario in GOOD:
        runs = pool.climb(scenario, rollouts, margin=0.01, unit=UNIT)
        yield guaranteed("M1", f"false rollback: {scenario.name}", runs.share(ROLLED_BACK), 0.01, rollouts)


def m2(pool: Pool, rollouts: int) -> list[Row]:
    """Bad versions promoted. Tolerance is the margin, so that nothing but the evidence of safety stands in the way."""
    rows = []
    for times, limit in ((1, 0.05), (2, 0.005)):
        scenario = Scenario(f"{times}x the margin", 0.02, rise=times * 0.01, horizon=900)
        runs = pool.climb(scenario, rollouts, margin=0.01, absolute=0.01)
        what = f"promoted though worse by {times}x the margin"
        rows.append(guaranteed("M2", what, runs.share(PROMOTED), limit, rollouts))
    return rows


def traps(pool: Pool, rollouts: int) -> list[Row]:
    """The statistical traps, each as a share of rollouts."""
    return [
        _on_tolerance(pool, rollouts),
        *_keyed(pool, rollouts),
        _ramp(pool, min(rollouts, 500)),
        *_one_a_minute(pool, rollouts),
        _spared(pool, rollouts),
        *early_errors(pool, min(rollouts, 200)),
    ]


def _on_tolerance(pool: Pool, rollouts: int) -> Row:
    runs = pool.climb(ON_TOLERANCE, rollouts, margin=0.01, relative=0.1, absolute=0.001)
    return guaranteed("trap", f"false rollback: {ON_TOLERANCE.name}", runs.share(ROLLED_BACK), 0.01, rollouts)


def _keyed(pool: Pool, rollouts: int) -> list[Row]:
    rows = []
    for scenario in (GOOD[-1], RETRY_SLOWLY, HOPELESS):
        for unit, words in (
            ("request", "every request counted"),
            ("block", "once a block"),
            ("key", "as `core.outcome.Callers`"),
        ):
            share = pool.climb(scenario, rollouts, margin=0.01, unit=unit).share(ROLLED_BACK)
            if unit == UNIT:
                rows.append(
                    guaranteed("trap", f"false rollback: {scenario.name}, {words}", share, 0.01, rollouts)
                )
            else:
                rows.append(
                    Row("trap", f"  compare: {scenario.name}, {words}", "", percent(share), None, value=share)
                )
    return rows


def _ramp(pool: Pool, rollouts: int) -> Row:
    names = ["z-test with peeking", "group-sequential z-test"]
    scenario = GOOD[2]
    runs = pool.beside(scenario, rollouts, names, margin=0.01)
    theirs = ", ".join(f"{name} {percent(runs[name].share(ROLLED_BACK))}" for name in names)
    return Row("trap", "  compare: pooled over ramp and drift", "", theirs, None)


def _one_a_minute(pool: Pool, rollouts: int) -> list[Row]:
    day = 86_400.0
    good = Scenario("one request a minute", 0.02, rate=1 / 60, horizon=day)
    dead = Scenario("one request a minute, dead", 0.02, rise=1.0, rate=1 / 60, horizon=3 * day)
    runs = pool.climb(good, rollouts, margin=0.01)
    gone = pool.climb(dead, rollouts, margin=0.01)
    promoted = runs.share(PROMOTED)
    return [
        guaranteed(
            "trap", "one request a minute, a day: false rollback", runs.share(ROLLED_BACK), 0.01, rollouts
        ),
        Row("trap", "… promoted without evidence", "0", percent(promoted), promoted == 0, guarantee=True),
        Row(
            "trap",
            "… total failure: bad answers, median (95 %)",
            "≤ 4 (8)",
            f"{gone.median('bad'):.0f} ({gone.median('bad', q=95):.0f}), {percent(gone.share(ROLLED_BACK))} found",
            gone.median("bad") <= 4 and gone.share(ROLLED_BACK) == 1,
        ),
    ]


def _spared(pool: Pool, rollouts: int) -> Row:
    scenario = Scenario("better during incidents", 0.02, horizon=600, incidents=True, spared=True)
    share = pool.climb(scenario, rollouts, margin=0.01).share(ROLLED_BACK)
    return guaranteed(
        "trap", "false rollback: candidate spared by the baseline's incidents", share, 0.01, rollouts
    )


def early_errors(pool: Pool, rollouts: int) -> list[Row]:
    """Both versions fail alike, but errors end at once and the candidate's successes take 2 s, the baseline's 0.1 s."""
    rows = []
    for admitted in (True, False):
        parts = pool.batches(_early_errors, rollouts, 20, 7, admitted)
        share = sum(parts) / rollouts
        if admitted:
            rows.append(
                guaranteed(
                    "trap", "false rollback: errors end first, in order of start", share, 0.01, rollouts
                )
            )
        else:
            rows.append(
                Row("trap", "  compare: in order of their end", "", percent(share), None, value=share)
            )
    return rows


def _early_errors(rollouts: int, seed: int, admitted: bool) -> int:
    rng = np.random.default_rng(seed)
    return sum(_rolls_back(rng, admitted=admitted) for _ in range(rollouts))


def _rolls_back(
    rng: np.random.Generator, *, admitted: bool, rate: float = 500.0, seconds: float = 12.0
) -> bool:
    rule, learned = errors(0.02, 0.01)
    plan = plan_for([rule], dwell=DWELL)
    judge, blocks, admission = Judge(plan, learned), Blocks(Source.OUTCOME, 1, by_key=False), Admission()
    judge.begin(0, 1, 0.0)
    outcomes = _cohort(rng, rate, seconds)
    ends = outcomes["start"] + outcomes["latency"] / 1000
    for now in np.arange(0.1, seconds, 0.1):
        final = outcomes[(ends > now - 0.1) & (ends <= now)]
        if admitted:
            in_flight = outcomes["start"][(ends > now) & (outcomes["start"] <= now)]
            final = admission.add("router", final, float(in_flight.min(initial=now)))
        known, bad = judge.read_outcomes(final)
        for block in blocks.add(final, final["start"], known, bad, float(now)):
            judge.add(block)
            if judge.result is Result.FAIL:
                return True
    return False


def _cohort(rng: np.random.Generator, rate: float, seconds: float) -> Columns:
    count = int(rate * seconds)
    outcomes = np.zeros(count, OUTCOME)
    outcomes["start"] = np.sort(rng.random(count)) * seconds
    outcomes["arm"] = rng.random(count) < 0.05
    outcomes["split"], outcomes["key"] = 1, np.arange(count)
    fails = rng.random(count) < 0.02
    outcomes["status"] = np.where(fails, 500, 200)
    outcomes["latency"] = np.where(fails, 10.0, np.where(outcomes["arm"] == 1, 2000.0, 100.0))
    return outcomes
