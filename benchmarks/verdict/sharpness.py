"""How far the harm evidence is from the best that any test could do (M3), and from a test that knows both rates."""

from __future__ import annotations

import math

import numpy as np

from benchmarks.verdict.ladder import Floats, errors, keep, plan_for
from benchmarks.verdict.rows import Pool, Row
from deployctl.core.evidence import growth, project
from deployctl.core.outcome import EARLY_BLOCKS, EARLY_UNITS, LATER_UNITS, Source
from deployctl.core.panel import Panel

CELLS = tuple((base, rise) for base in (0.005, 0.02, 0.05) for rise in (0.01, 0.02, 0.05))
ALPHAS = (0.01, 0.001)
SHARE, RATE = 0.05, 50.0
_LIMITS = {0.01: (1.5, 1.42), 0.001: (1.4, 1.30)}
_BY_ORACLE = 1.35


def m3(pool: Pool, rollouts: int) -> list[Row]:
    """Mean candidate requests until rollback at 5 % weight over ln(1/alpha) / KL, tolerance 0."""
    parts = [pool.batches(delays, rollouts, 500, 30 + at, *cell) for at, cell in enumerate(CELLS)]
    rows, ratios = [], {alpha: [] for alpha in ALPHAS}
    for (base, rise), batches in zip(CELLS, parts, strict=True):
        ours, oracle = (np.concatenate([batch[which] for batch in batches]).mean(axis=0) for which in (0, 1))
        for at, alpha in enumerate(ALPHAS):
            bound = math.log(1 / alpha) / growth(base, base + rise, SHARE, 1.0, 0.0)
            ratio, beside = ours[at] / bound, ours[at] / oracle[at]
            ratios[alpha].append(ratio)
            rows.append(
                Row(
                    "M3",
                    f"delay at {100 * base:g} % + {100 * rise:g} points, alpha {100 * alpha:g} %",
                    f"≤ {_LIMITS[alpha][0]} x bound, ≤ {_BY_ORACLE} x oracle",
                    f"{ratio:.3f} x {bound:.0f}; {beside:.3f} x oracle",
                    ratio <= _LIMITS[alpha][0] and beside <= _BY_ORACLE,
                    value=ratio,
                )
            )
    for alpha in ALPHAS:
        mean = math.exp(np.mean(np.log(ratios[alpha])))
        limit = _LIMITS[alpha][1]
        rows.append(
            Row(
                "M3",
                f"geometric mean of the nine, alpha {100 * alpha:g} %",
                f"≤ {limit} x bound",
                f"{mean:.3f}",
                mean <= limit,
                value=mean,
            )
        )
    return rows


def delays(rollouts: int, seed: int, base: float, rise: float) -> tuple[Floats, Floats]:
    """Candidate requests until the harm evidence, and until the oracle's, passes 1/alpha: (rollouts, alphas) each.

    Blocks at a fixed weight are drawn as such: the baseline requests until the fourth of the candidate are negative binomial.
    Both are read at the ends of the same blocks; the oracle is the sequential likelihood ratio of the true rates. Each alpha has
    evidence of its own: boosted evidence is good for the alpha that it was boosted for.
    """
    rng = np.random.default_rng(seed)
    rule, learned = errors(base, 0.005)
    panels = [Panel(plan_for([rule], weights=(5.0,), alpha=alpha), learned, rollouts) for alpha in ALPHAS]
    for panel in panels:
        panel.begin(0, 0.0)
    p0, p1 = base, base + rise
    q = float(project(*(np.array([x]) for x in (p0, p1, SHARE, 1.0, 0.0)))[0][0])
    ratios = [math.log(x) for x in (p0 / q, (1 - p0) / (1 - q), p1 / q, (1 - p1) / (1 - q))]
    limits = np.log(1 / np.array(ALPHAS))
    found = np.full((2, rollouts, len(ALPHAS)), np.nan)
    row = np.arange(rollouts)
    now, known, requests = np.zeros((3, rollouts))
    closed = 0
    while len(row):
        n1 = np.full(len(row), float(EARLY_UNITS if closed < EARLY_BLOCKS else LATER_UNITS))
        n0 = np.maximum(rng.negative_binomial(n1, SHARE), 1)
        closed += 1
        k0, k1 = rng.binomial(n0, p0), rng.binomial(n1.astype(int), p1)
        now = now + rng.gamma(n0 + n1, 1 / RATE)
        requests = requests + n1
        for panel in panels:
            panel.add(Source.OUTCOME, np.stack([n0, n1], 1)[..., None], np.stack([k0, k1], 1)[..., None], now)
        known = known + k0 * ratios[0] + (n0 - k0) * ratios[1] + k1 * ratios[2] + (n1 - k1) * ratios[3]
        ours = np.log(np.stack([panel.harm().sum(axis=1) for panel in panels], axis=1))
        for which, evidence in enumerate((ours, known[:, None])):
            passed = evidence >= limits
            seen = found[which][row]
            found[which][row] = np.where(passed & np.isnan(seen), requests[:, None], seen)
        left = np.isnan(found[:, row]).any(axis=(0, 2))
        if left.mean() < 0.8:
            for panel in panels:
                keep(panel, left)
            row, now, known, requests = (values[left] for values in (row, now, known, requests))
    return found[0], found[1]
