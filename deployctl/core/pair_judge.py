"""What the pairs of one candidate say: evidence of harm and of safety per question, and each metric's part in words and numbers.

Two uses: alone it is the judge of a shadow; in a canary it judges the mirror steps, and what it has shown there is carried into
the comparison of the two arms (`analysis.Judge`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deployctl.core.evidence import Array, confidence_sequence
from deployctl.core.metrics import METRICS
from deployctl.core.outcome import Source
from deployctl.core.paired import CELLS, PairedPanel, growth
from deployctl.core.pairs import PairBlock, PairComponent, over_limits, pair_components, read_pairs
from deployctl.core.panel import BIGGEST_LOG
from deployctl.core.plan import MetricRule, Plan
from deployctl.core.rollout import Learned
from deployctl.core.verdict import Arm, MetricVerdict, Result

PSEUDO_PAIRS = 2.0
"""Pairs that an estimate of what is still needed starts from: as many that agree as disagree would be too bold."""


class PairJudge:
    """Feed blocks of pairs, read evidence; the same blocks in the same order give the same evidence."""

    def __init__(self, plan: Plan, learned: Learned) -> None:
        self.plan = plan
        self.components = pair_components(plan, learned)
        self._thresholds = learned.thresholds
        self._step: int | None = None
        count = len(self.components)
        self.cells = np.zeros((4, count))
        """Pairs by kind (`paired.CELLS`) and component; a score between good and bad is in two kinds in parts."""
        self._margins = self._margins_of(plan)
        budget = [component.budget is not None for component in self.components]
        self.is_budget: NDArray[np.bool_] = np.array(budget, dtype=bool)
        self._panel = PairedPanel(
            np.array([component.relative for component in self.components]),
            np.array([component.absolute for component in self.components]),
            self._margins,
            np.array([component.share for component in self.components]),
            alpha=plan.alpha,
            beta=plan.beta,
            prior=np.array([component.prior for component in self.components]),
            whole=np.array([component.margin for component in self.components]),
        )

    def _margins_of(self, plan: Plan) -> Array:
        """(steps, components): what fresh evidence must exclude; a budget's is the budget itself, at every step."""
        margins = np.full((len(plan.steps), len(self.components)), np.nan)
        for at, step in enumerate(plan.steps):
            for place, component in enumerate(self.components):
                if component.budget is not None:
                    margins[at, place] = component.budget
                elif step.gate is not None:
                    margins[at, place] = step.gate.margin(component.margin)
        return margins

    def begin(self, step: int, at: float) -> None:
        """A step begins: evidence of safety starts afresh, harm goes on."""
        self._step = step
        self._panel.begin(step, at)

    def add(self, block: PairBlock) -> tuple[Array, Array]:
        """Take in one block of pairs; gives (n, bad) of the latency limits, (2, limits) each, for `Guards`.

        At a weight the arms decide what is compared, so only budgets are taken in there.
        """
        y0, y1, known = read_pairs(self.components, block.pairs, self._thresholds, labelled=block.labelled)
        if self._step is not None and not self.plan.steps[self._step].pairs_decide:
            known &= self.is_budget
        self._panel.add(y0, y1, known, block.at)
        for cell, (bad0, bad1) in enumerate(CELLS.tolist()):
            of0 = y0 if bad0 else 1 - y0
            of1 = y1 if bad1 else 1 - y1
            self.cells[cell] += np.where(known, of0 * of1, 0.0).sum(axis=0)
        limits = (
            () if block.labelled else tuple(r for r in self.plan.metrics if METRICS[r.name].bound is not None)
        )
        return over_limits(limits, block.pairs, people_alone=self.plan.people_alone)

    @property
    def labels(self) -> int:
        """Labelled pairs so far: the fewest that any question of labels has."""
        asked = [
            int(self.cells[:, at].sum())
            for at, component in enumerate(self.components)
            if component.source is Source.LABEL
        ]
        return min(asked, default=0)

    @property
    def harm(self) -> Array:
        """Budget-weighted evidence of harm per component; their sum is held against 1/alpha."""
        harm: Array = self._panel.harm()[0]
        return harm

    @property
    def shares(self) -> Array:
        """The part of the error budget that each component has."""
        return np.array([component.share for component in self.components])

    @property
    def safe_log(self) -> Array:
        """Log evidence, since the step began, that the step's margins (or the budgets) are excluded."""
        safe: Array = self._panel.safe_log()[0]
        return safe

    @property
    def whole_log(self) -> Array:
        """Log evidence of all pairs so far that the metrics' own margins (or the budgets) are excluded."""
        whole: Array = self._panel.whole_log()[0]
        return whole

    def metric_verdict(self, rule: MetricRule, *, failed: bool) -> MetricVerdict:
        """A metric's part: the component that speaks loudest of harm where it failed, else the slowest to show safety."""
        own = [at for at, component in enumerate(self.components) if component.rule.name == rule.name]
        safe = self.safe_log
        harm = self.harm[own]
        slowest = own[int(np.argmin(safe[own]))]
        failed = failed and float(harm.sum()) >= 1 / self.plan.alpha / len(self.plan.metrics)
        shown = own[int(np.argmax(harm))] if failed else slowest
        passed = bool(safe[slowest] >= math.log(1 / self.plan.beta))
        component, counts = self.components[shown], _Counts.of(self.cells[:, shown])
        own_result = Result.FAIL if failed else Result.PASS if passed else Result.INCONCLUSIVE
        is_budget = component.budget is not None
        return MetricVerdict(
            name=rule.name,
            result=own_result,
            baseline=Arm() if is_budget else counts.baseline,
            candidate=counts.candidate,
            effect=None if is_budget else counts.effect,
            interval=None if is_budget else counts.interval(self.plan.alpha),
            harm=min(float(harm.sum()), 1e300),
            harm_threshold=1 / self.plan.alpha,
            safe=float(np.exp(min(float(safe[slowest]), BIGGEST_LOG))),
            safe_threshold=1 / self.plan.beta,
            margin=self._margin(shown),
            needed=0 if passed else self._needed(slowest),
            words=self._words(component, counts),
        )

    def _margin(self, at: int) -> float:
        asked = self._margins[self._step, at] if self._step is not None else math.nan
        return self.components[at].margin if math.isnan(asked) else float(asked)

    def _needed(self, at: int) -> int | None:
        """Pairs still missing for a pass if things stay as they are; None where that leads nowhere."""
        component = self.components[at]
        seen = self.cells[:, at]
        pseudo = np.array([1 - component.prior, component.prior / 2, component.prior / 2, 0.0]) * PSEUDO_PAIRS
        shares = (seen + pseudo) / (seen + pseudo).sum()
        per_pair, _ = growth(shares, relative=component.relative, bound=self._margin(at), harm=False)
        if per_pair <= 1e-12:
            return None
        missing = math.log(1 / self.plan.beta) - float(self.safe_log[at])
        return max(1, math.ceil(missing / per_pair))

    def _words(self, component: PairComponent, counts: _Counts) -> str:
        what = METRICS[component.rule.name].bad
        if component.budget is not None:
            return f"the candidate gave {counts.candidate.words} {what} where {100 * component.budget:.3g} % are allowed"
        if METRICS[component.rule.name].quantiles and self._thresholds:
            limit = self._thresholds[component.at]
            slower = limit * (1 + component.rule.tolerance_relative) + component.rule.tolerance_absolute
            what = f"answers over {slower:.3g} ms (the baseline's limit is {limit:.3g} ms)"
        return (
            f"of {counts.n:,} requests that both answered, the candidate alone gave {counts.worse:,} {what}, "
            f"the baseline alone {counts.better:,}"
        )


@dataclass(frozen=True, slots=True)
class _Counts:
    """Pairs of one component: all, those where only the candidate was bad, only the baseline, and both."""

    n: int
    worse: int
    better: int
    both: int

    @classmethod
    def of(cls, cells: Array) -> _Counts:
        good, worse, better, both = (round(float(count)) for count in cells)
        return cls(good + worse + better + both, worse, better, both)

    @property
    def baseline(self) -> Arm:
        return Arm(self.n, self.better + self.both)

    @property
    def candidate(self) -> Arm:
        return Arm(self.n, self.worse + self.both)

    @property
    def effect(self) -> float | None:
        return (self.worse - self.better) / self.n if self.n else None

    def interval(self, alpha: float) -> tuple[float, float] | None:
        """Any-time valid interval of the difference: what one alone got wrong, each at alpha / 2, put together."""
        if not self.n:
            return None
        low1, high1 = confidence_sequence(self.n, self.worse, alpha / 2)
        low0, high0 = confidence_sequence(self.n, self.better, alpha / 2)
        return low1 - high0, high1 - low0
