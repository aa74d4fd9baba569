"""Latency with a heavy tail (M9), many metrics at once (M10), and what a block costs (M11)."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from benchmarks.verdict import pairs
from benchmarks.verdict.ladder import ROLLED_BACK, Floats, Runs, climb, joined, plan_for
from benchmarks.verdict.rows import Pool, Row, guaranteed, percent
from benchmarks.verdict.streams import Requests
from deployctl.core.learning import default_margin
from deployctl.core.metrics import LATENCY_QUANTILES, METRICS
from deployctl.core.outcome import Source
from deployctl.core.panel import FAIL, Panel
from deployctl.core.plan import MetricRule
from deployctl.core.rollout import Learned

RATE, KNOWN_ANSWERS = 50.0, 2000
STALL_SECONDS = 0.3
"""A process that gets no processor for so long; whatever it is asked meanwhile is answered when that is over."""


@dataclass(frozen=True, slots=True)
class Slower:
    """What happens to latency: the candidate's is `factor` times; `slow_minutes`: both are twice as slow for 3 x 30 s.

    `stalls` of STALL_SECONDS come in each version's only process by itself, or `together` in both at once.
    """

    name: str
    factor: float = 1.0
    slow_minutes: bool = False
    horizon: float = 600.0
    rate: float = RATE
    stalls: int = 0
    together: bool = False


def m9(pool: Pool, rollouts: int) -> list[Row]:
    """Lognormal latency with a Pareto tail of exponent 1.5, judged over thresholds learnt from 2,000 baseline answers."""
    rows = []
    found = _latency(pool, rollouts, Slower("p95 +20 %", factor=1.2), 0.0)
    middle = found.median("requests")
    rows.append(
        Row(
            "M9",
            "latency +20 %, tolerance 0: candidate requests, median (95 %)",
            "all found, median ≤ 250",
            f"{middle:.0f} ({found.median('requests', q=95):.0f}), {percent(found.share(ROLLED_BACK))} found",
            found.share(ROLLED_BACK) == 1 and middle <= 250,
            value=middle,
        )
    )
    tolerant = _latency(pool, rollouts, Slower("p95 +20 %", factor=1.2), 0.1)
    reached = f"{tolerant.median('requests'):.0f}, {percent(tolerant.share(ROLLED_BACK))} found"
    rows.append(
        Row(
            "M9",
            "  compare: +20 % under a tolerance of 10 %",
            "",
            reached,
            None,
            value=tolerant.median("requests"),
        )
    )
    for slower, tolerance in (
        (Slower("both slow for 3 x 30 s", slow_minutes=True), 0.0),
        (Slower("both slow for 3 x 30 s", slow_minutes=True), 0.1),
        (Slower("all +10 %, slow minutes", factor=1.1, slow_minutes=True), 0.1),
    ):
        runs = _latency(pool, rollouts, slower, tolerance)
        what = f"false rollback: {slower.name}, tolerance {100 * tolerance:.0f} %"
        rows.append(guaranteed("M9", what, runs.share(ROLLED_BACK), 0.01, rollouts))
    return rows


def stalls(pool: Pool, rollouts: int) -> list[Row]:
    """Stalls make many answers slow at once. Shared they are an incident; those of one process are no independent answers."""
    shared = Slower("stalls of both processes at once", horizon=240.0, rate=250.0, stalls=8, together=True)
    runs = _latency(pool, rollouts, shared, 0.1, 20)
    rows = [
        guaranteed("trap", f"false rollback: {shared.name}", runs.share(ROLLED_BACK), 0.01, rollouts),
    ]
    for count in (1, 8):
        alone = Slower("stalls of one process", horizon=240.0, rate=250.0, stalls=count)
        share = _latency(pool, rollouts, alone, 0.1, 20).share(ROLLED_BACK)
        what = f"  compare: {count} of {STALL_SECONDS} s in each version's only process, by itself"
        rows.append(Row("trap", what, "", percent(share), None, value=share))
    return rows


def _latency(pool: Pool, rollouts: int, slower: Slower, tolerance: float, size: int = 100) -> Runs:
    return joined(pool.batches(_latency_batch, rollouts, size, 90, slower, tolerance))


def _latency_batch(rollouts: int, seed: int, slower: Slower, tolerance: float) -> Runs:
    rng = np.random.default_rng(seed)
    rates = tuple(1 - q for q in LATENCY_QUANTILES)
    margins = tuple(default_margin(METRICS["latency"], rate) for rate in rates)
    rule = MetricRule("latency", tolerance, 0.0)
    learned = Learned((), {"latency": rates}, {"latency": margins}, 1800.0, KNOWN_ANSWERS)
    asked = slower.rate * slower.horizon
    shape = (rollouts, int(asked + 4 * asked**0.5))
    began = np.cumsum(rng.exponential(1 / slower.rate, shape), axis=1)
    slowness = np.ones(shape)
    if slower.slow_minutes:
        for start in rng.uniform(0, slower.horizon, (3, rollouts, 1)):
            slowness[(began >= start) & (began < start + 30)] = 2.0
    thresholds = np.quantile(_heavy(rng, (rollouts, KNOWN_ANSWERS)), LATENCY_QUANTILES, axis=1).T[:, None, :]
    waits = [_waits(rng, began, slower) for _ in range(1 if slower.together else 2)]
    baseline = (_heavy(rng, shape) * slowness + waits[0])[..., None] > thresholds
    latency = _heavy(rng, shape) * slowness * slower.factor + waits[-1]
    candidate = (latency / (1 + tolerance))[..., None] > thresholds
    requests = Requests(began, rng.random(shape, dtype=np.float32), baseline, candidate)
    return climb(requests, plan_for([rule]), learned, slower.horizon)


def _waits(rng: np.random.Generator, began: Floats, slower: Slower) -> Floats:
    """Milliseconds that each request waits because the process stands still."""
    waits = np.zeros(began.shape)
    for start in rng.uniform(0, slower.horizon, (slower.stalls, len(began), 1)):
        left = start + STALL_SECONDS - began
        waits = np.where((began >= start) & (left > 0), 1000 * left, waits)
    return waits


def _heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Milliseconds: 95 % lognormal around 50, 5 % Pareto from 100 on with infinite variance."""
    body = 50 * np.exp(0.4 * rng.standard_normal(shape))
    return np.where(rng.random(shape) < 0.05, 100 * rng.random(shape) ** (-1 / 1.5), body)


def m10(pool: Pool, rollouts: int) -> list[Row]:
    """Twelve metrics that share most of their noise, at one error budget; and what pairs save a shadow."""
    runs = joined(pool.batches(_twelve, rollouts, 100, 100))
    return [
        guaranteed(
            "M10", "false rollback: 12 correlated metrics together", runs.share(ROLLED_BACK), 0.01, rollouts
        ),
        *m10_shadow(pool, max(20, rollouts // 5)),
    ]


def m10_shadow(pool: Pool, rollouts: int) -> list[Row]:
    """Requests that a shadow copies until harm is shown, paired and by the two-sample evidence on the same answers.

    The candidate mends 5 % of the baseline's errors and adds others: versions of one model agree that much and more.
    """
    rows = []
    for p0, p1 in ((0.05, 0.06), (0.05, 0.07), (0.10, 0.12)):
        parts = pool.batches(paired_and_two_sample, rollouts, 50, 101, p0, p1, 0.05)
        paired, two_sample = np.concatenate(parts, axis=1)
        times = float(np.median(two_sample) / np.median(paired))
        what = f"shadow, strong agreement, {100 * p0:g} → {100 * p1:g} %: requests, two-sample over paired"
        reached = f"{times:.1f}x ({np.median(two_sample):,.0f} over {np.median(paired):,.0f})"
        rows.append(Row("M10", what, "≥ 4x", reached, times >= 4, value=times))
    return rows


def paired_and_two_sample(
    rollouts: int, seed: int, p0: float, p1: float, mended: float | None
) -> tuple[Floats, Floats]:
    """Requests until either evidence shows harm, (2, rollouts); infinite where it does not within the stream."""
    question = pairs.Question(prior=p0, per_second=RATE, block=4)
    truth = pairs.joint(p0, p1, mended=mended)
    kinds = pairs.drawn(np.random.default_rng(seed), truth, rollouts, 60_000)
    ours, other = pairs.needed(kinds, question, FAIL), pairs.needed_by_two_samples(kinds, question)
    return np.nan_to_num(ours, nan=np.inf), np.nan_to_num(other, nan=np.inf)


def _twelve(rollouts: int, seed: int, metrics: int = 12, horizon: float = 300.0) -> Runs:
    rng = np.random.default_rng(seed)
    rules = [MetricRule("error-rate", 0.0, 0.0, 0.01)] * metrics
    learned = Learned((), {"error-rate": (0.02,)}, {"error-rate": (0.01,)}, 1800.0, 1000)
    shape = (rollouts, int(RATE * horizon * 1.05))
    bad = []
    for _version in range(2):
        # Gaussian copula: four fifths of the variance is common to all metrics of an answer.
        common = rng.standard_normal(shape, dtype=np.float32)[..., None]
        own = rng.standard_normal((*shape, metrics), dtype=np.float32)
        bad.append(np.sqrt(np.float32(0.8)) * common + np.sqrt(np.float32(0.2)) * own > 2.0537)
    began = np.cumsum(rng.exponential(1 / RATE, shape), axis=1)
    return climb(
        Requests(began, rng.random(shape, dtype=np.float32), *bad), plan_for(rules), learned, horizon
    )


def m11(blocks: int = 2000) -> list[Row]:
    """Milliseconds for one block and one reading of the verdict: five metrics, three sides each, one rollout."""
    rng = np.random.default_rng(110)
    rules = [MetricRule("error-rate", 0.1, 0.001, 0.005)] * 5
    learned = Learned((), {"error-rate": (0.01,)}, {"error-rate": (0.005,)}, 1800.0, 1000)
    panel = Panel(plan_for(rules), learned)
    panel.begin(0, 0.0)
    n = np.repeat(np.array([[[950.0], [50.0]]]), 5, axis=2)
    bad = rng.binomial(n.astype(int), 0.01, (blocks, 1, 2, 5)).astype(float)
    taken = []
    for at in range(blocks):
        began = time.perf_counter()
        panel.add(Source.OUTCOME, n, bad[at], at * 0.1)
        panel.results()
        taken.append(time.perf_counter() - began)
    middle = 1000 * float(np.median(taken))
    reached = f"{middle:.2f} ms (95 %: {1000 * float(np.percentile(taken, 95)):.2f} ms)"
    return [
        Row(
            "M11",
            "a block of 1,000 answers, five metrics: median",
            "≤ 1 ms",
            reached,
            middle <= 1,
            value=middle,
        )
    ]
