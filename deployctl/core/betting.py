"""E-processes that need one arm, or scores: bets on a mean that lose nothing, in expectation, while the null holds.

A bet multiplies the evidence by 1 + lambda (x - bound) for a bounded observation x whose mean is at most `bound` under the null
(Waudby-Smith and Ramdas, arXiv 2010.09686). lambda is fixed in advance and mixed over, so no tuning looks at the data.
"""

from __future__ import annotations

import math

import numpy as np

from deployctl.core.evidence import Array

LIMIT_FACTORS = np.array([1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0])
"""Alternatives of a limit: the rate is this many times the limit."""

WEIGHT_FACTORS = np.array([0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2.0])
"""Alternatives of the route check: the real share is this many times the weight."""

_RESTART_SECONDS, _START, _RESTART = 30.0, 0.7, 0.01


class Limits:
    """Rows of one-sample tests: null "the rate is at most `bound`", for absolute limits and budgets without a baseline.

    `bounds` (rows,) are rates. Restarted every 30 s with a little of its mass, so that a breach may begin late; capped at `cap`
    (log), so that it is also forgotten again when a breach is over. Capping only takes evidence away.
    """

    def __init__(self, bounds: Array, cap: float = math.inf) -> None:
        rate = np.clip(bounds, 1e-6, 0.9)[:, None]
        worse = np.minimum(rate * LIMIT_FACTORS, 0.5 + 0.5 * rate)
        self._bad = np.log(worse / rate)
        self._good = np.log((1 - worse) / (1 - rate))
        self._log_mix = math.log(1 / len(LIMIT_FACTORS))
        self._mass = np.full(self._bad.shape, self._log_mix + math.log(_START))
        self._unspent = 1.0 - _START
        self._restarts = 0
        self._cap = cap

    def add(self, n: Array, bad: Array, at: float) -> None:
        """Units and bad ones of each row (rows,), at this rollout time (seconds)."""
        while at // _RESTART_SECONDS > self._restarts:
            self._restarts += 1
            share = min(_RESTART, self._unspent)
            self._unspent -= share
            if share > 0:
                self._mass = np.logaddexp(self._mass, self._log_mix + math.log(share))
        self._mass += bad[:, None] * self._bad + (n - bad)[:, None] * self._good
        self._mass -= np.maximum(self.log_evidence() - self._cap, 0.0)[:, None]

    def log_evidence(self) -> Array:
        """Log of each row's e-value, (rows,)."""
        top = self._mass.max(axis=1)
        evidence: Array = np.log(np.exp(self._mass - top[:, None]).sum(axis=1)) + top
        if self._unspent > 0:
            evidence = np.logaddexp(evidence, math.log(self._unspent))
        return evidence


class RouteCheck:
    """Do the arms get the shares that the weight says? Evidence against it freezes the ramp; nothing else reads it.

    One unit is one randomised caller (a request, or a key when it is first seen). The null is a single share, so the factor of an
    alternative is a plain likelihood ratio; the weight may change from unit to unit.
    """

    def __init__(self) -> None:
        self._counts: dict[float, tuple[int, int]] = {}
        self._known: float | None = None

    def add(self, baseline: int, candidate: int, weight: float) -> None:
        """Units of both arms while the candidate's share was `weight` (a fraction)."""
        if 0.0 < weight < 1.0:
            self._known = None
            before = self._counts.get(weight, (0, 0))
            self._counts[weight] = (before[0] + baseline, before[1] + candidate)

    def log_evidence(self) -> float:
        """Log of the e-value. Out of whole counts, so it is the same to the last bit however they came in."""
        if self._known is not None:
            return self._known
        log = np.full(len(WEIGHT_FACTORS), math.log(1 / len(WEIGHT_FACTORS)))
        for weight, (baseline, candidate) in sorted(self._counts.items()):
            other = np.minimum(WEIGHT_FACTORS * weight, 0.5 + 0.5 * weight)
            log += candidate * np.log(other / weight) + baseline * np.log((1 - other) / (1 - weight))
        self._known = float(np.logaddexp.reduce(log))
        return self._known


def log_score_factor(scores0: Array, scores1: Array, p0: float, p1: float, q0: float, q1: float) -> float:
    """The two-sample factor for scores in [0, 1] instead of bad-or-not: linear in each score, hence exact for means.

    (p0, p1) is the alternative, (q0, q1) its projection onto the null (`evidence.project`).
    """
    up1, down1, up0, down0 = p1 / q1, (1 - p1) / (1 - q1), p0 / q0, (1 - p0) / (1 - q0)
    return float(
        np.log(scores1 * up1 + (1 - scores1) * down1).sum()
        + np.log(scores0 * up0 + (1 - scores0) * down0).sum()
    )
