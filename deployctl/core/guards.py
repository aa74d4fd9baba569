"""What is watched besides the comparison: absolute limits, and whether the router gives each arm its share.

A limit that the candidate alone breaches is harm, within the error budget. One that the baseline breaches too is an incident (or
a dependency that the candidate poisons for both, which no comparison can see): the ramp freezes until it is over. Arms that do not
get their share freeze it as well. A freeze is no verdict: nothing is rolled back for it, and nothing passes.
"""

from __future__ import annotations

import math

import numpy as np

from deployctl.core.betting import Limits, RouteCheck
from deployctl.core.evidence import Array
from deployctl.core.metrics import METRICS, comparing, limited
from deployctl.core.outcome import Block, Flags, Source
from deployctl.core.plan import Plan

_MEMORY = 3.0
"""Log evidence that a baseline's breach may gather beyond the threshold: how long it takes to be forgotten."""


class Guards:
    """Limits and route of one rollout. Each limit metric is one column, after those of the comparing metrics."""

    def __init__(self, plan: Plan) -> None:
        self.rules = limited(plan.metrics)
        self._alpha, self._beta = plan.alpha, plan.beta
        total = sum(METRICS[rule.name].share for rule in plan.metrics)
        self._shares = np.array([METRICS[rule.name].share / total for rule in self.rules])
        bounds = np.array([METRICS[rule.name].bound for rule in self.rules], dtype=float)
        self._candidate = Limits(bounds)
        self._baseline = Limits(bounds, cap=math.log(1 / plan.beta) + _MEMORY)
        self._route = RouteCheck()
        self._asked = 0.0
        self._units = np.zeros(2)
        self.n, self.bad = np.zeros((2, len(self.rules))), np.zeros((2, len(self.rules)))
        self._skip = sum(METRICS[rule.name].components for rule in comparing(plan.metrics, Source.OUTCOME))

    def add(self, block: Block) -> None:
        """Take in the limit columns of a block. While the baseline is over a limit nothing counts against the candidate."""
        if block.source is Source.OUTCOME:
            self.take(block.n[:, self._skip :], block.bad[:, self._skip :], block.at)

    def take(self, n: Array, bad: Array, at: float) -> None:
        """Answers and those over each limit, (2, limits) each, at this rollout time."""
        if not self.rules:
            return
        alone = (
            ~self.breached_by_both
        )  # from the past only: the block that shows the incident counts once, in both arms
        self._baseline.add(n[0], bad[0], at)
        self._candidate.add(np.where(alone, n[1], 0.0), np.where(alone, bad[1], 0.0), at)
        self.n += n
        self.bad += bad

    def count(self, baseline: int, candidate: int, weight: float) -> None:
        """Randomised units of both arms under this weight (percent), for the route check."""
        self._route.add(baseline, candidate, weight / 100)
        self._units += (baseline, candidate)
        self._asked += (baseline + candidate) * weight / 100

    @property
    def breached_by_both(self) -> Flags:
        """Per limit, whether the baseline is over it now."""
        breached: Flags = self._baseline.log_evidence() >= math.log(1 / self._beta)
        return breached

    @property
    def harm(self) -> Array:
        """Budget-weighted evidence, per limit, that the candidate alone is over it."""
        weighted: Array = self._shares * np.exp(np.minimum(self._candidate.log_evidence(), 690.0))
        return weighted

    @property
    def misrouted(self) -> bool:
        """Whether the arms do not get the shares that the weight says."""
        return self._route.log_evidence() >= math.log(1 / self._alpha)

    @property
    def frozen(self) -> str | None:
        """Why the ramp must stand still now, None when it need not."""
        if self.rules and self.breached_by_both.any():
            rule = self.rules[int(np.argmax(self.breached_by_both))]
            return f"{rule.name}: the baseline itself is over {rule.limit:g} ms; the ramp is frozen until that is over"
        if self.misrouted:
            share = 100 * self._units[1] / self._units.sum()
            asked = 100 * self._asked / self._units.sum()
            return f"the candidate gets {share:.3g} % of the callers where the weight says {asked:.3g} %: the ramp is frozen"
        return None
