"""The public verdict API: feed blocks, read verdicts, for one rollout or for thousands side by side.

A Panel holds the evidence of `replicates` independent rollouts of one plan. The live controller and `replay` use it with one
replicate (through `analysis.Judge`, which adds the words); benchmarks use it with thousands, so what they measure is what runs.

    panel = Panel(plan, learned, replicates=1000)
    panel.begin(0, at=0.0)                                  # every rollout enters its first step
    panel.add(Source.OUTCOME, n, bad, at=now)               # one block each: n and bad are (replicates, 2, components)
    codes = panel.results()                                 # FAIL, PASS or INCONCLUSIVE per replicate
    panel.begin(step, at=now, which=codes == PASS)          # each climbs in its own time

Rollback when the budget-weighted mean of the harm evidence reaches 1/alpha: valid under any dependence between metrics.
Moving on only when every component of every metric shows, on fresh evidence, that harm beyond the step's margin is excluded
at 1/beta: each must show, so nothing needs correcting. Harm accumulates over the whole rollout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deployctl.core.evidence import Array, Evidence
from deployctl.core.metrics import METRICS, Metric, comparing
from deployctl.core.outcome import Source
from deployctl.core.plan import MetricRule, Plan
from deployctl.core.rollout import Learned

INCONCLUSIVE, PASS, FAIL = 0, 1, 2
"""Codes of `Panel.results`."""

BIGGEST_LOG = 690.0
"""Evidence is shown up to e^690; more is no more certain."""


@dataclass(frozen=True, slots=True)
class Component:
    """One bad-or-not question: its metric, its place in it, its margin and its share of the error budget."""

    rule: MetricRule
    metric: Metric
    at: int
    prior: float
    margin: float
    share: float

    @property
    def tolerance(self) -> tuple[float, float]:
        """(relative factor, absolute) of the harm null on rates; latency's tolerance has acted on milliseconds already."""
        if not self.metric.affine:
            return 1.0, 0.0
        return 1.0 + self.rule.tolerance_relative, self.rule.tolerance_absolute


def components_of(plan: Plan, learned: Learned) -> tuple[Component, ...]:
    """All components of the metrics that compare; those of one source in the order in which outcomes are read.

    A metric with an absolute limit has its share of the error budget, but no component: see `analysis.Judge`.
    """
    total = sum(METRICS[rule.name].share for rule in plan.metrics)
    return tuple(
        Component(
            rule=rule,
            metric=METRICS[rule.name],
            at=at,
            prior=learned.rates[rule.name][at],
            margin=learned.margins[rule.name][at],
            share=METRICS[rule.name].share / total / METRICS[rule.name].components,
        )
        for rule in comparing(plan.metrics)
        for at in range(METRICS[rule.name].components)
    )


class Panel:
    """Evidence of `replicates` rollouts of one plan: three rows (harm, fresh safety, whole safety) per component."""

    def __init__(self, plan: Plan, learned: Learned, replicates: int = 1) -> None:
        self.plan = plan
        self.components = components_of(plan, learned)
        self.step = np.full(replicates, -1)
        """The step that each rollout is on, -1 before the first."""
        self.carried: Array | float = 0.0
        """Log evidence of safety of the whole rollout that was shown before, by pairs: (components,), see `analysis.Judge`."""
        count = len(self.components)
        side = np.repeat(["harm", "fresh", "whole"], count)
        self._harm, self._fresh, self._whole = side == "harm", side == "fresh", side == "whole"
        self._of_source = {
            source: np.array([c.metric.source is source for c in self.components], dtype=bool)
            for source in Source
        }
        self._shares = np.array([c.share for c in self.components])
        self._margins = np.array(
            [
                [step.gate.margin(c.margin) if step.gate else 1.0 for c in self.components]
                for step in plan.steps
            ]
        ).reshape(len(plan.steps), count)
        self._gated = np.array([step.gate is not None for step in plan.steps], dtype=bool)
        self._last = np.array([step.gate is not None and step.gate.last for step in plan.steps], dtype=bool)
        margin = [c.margin for c in self.components]
        self._evidence = Evidence(
            self._harm,
            np.array([c.tolerance[0] for c in self.components] + [1.0] * (2 * count)),
            np.array([c.tolerance[1] for c in self.components] + margin + margin),
            np.array([c.prior for c in self.components] * 3),
            replicates=replicates,
            steps=len(plan.steps),
            robust=np.array(
                [c.metric.affine and c.tolerance == (1.0, 0.0) for c in self.components]
                + [False] * (2 * count),
                dtype=bool,
            ),
            caps=None if any(step.mirror > 0 for step in plan.steps) else self._caps(),
        )

    def _caps(self) -> Array:
        """Evidence at which one row alone ends the rollout: only those of harm do. Pairs would share the decision, see `analysis.Judge`."""
        caps = np.full(3 * len(self.components), np.inf)
        caps[: len(self.components)] = 1 / (self.plan.alpha * self._shares)
        return caps

    def begin(
        self, step: int | NDArray[np.int_], at: float | Array, which: NDArray[np.bool_] | None = None
    ) -> None:
        """A step begins, for all rollouts or for `which` (replicates,): safety starts afresh, harm goes on."""
        chosen = np.ones(len(self.step), dtype=bool) if which is None else which
        first = self.step < 0
        self.step = np.where(chosen, step, self.step)
        fresh = chosen[:, None] & self._fresh
        margins = np.concatenate([self._margins[self.step]] * 3, axis=1)
        self._evidence.absolute = np.where(fresh, margins, self._evidence.absolute)
        self._evidence.start(fresh, at)
        self._evidence.renew_at_step((chosen & ~first)[:, None] & ~self._fresh)

    def add(
        self,
        source: Source,
        n: Array,
        bad: Array,
        at: float | Array,
        of_step: bool | NDArray[np.bool_] = True,
        safe: tuple[Array, Array] | None = None,
    ) -> None:
        """One block of one source per rollout: `n` and `bad` are ([replicates,] 2, components of the source), arm 0 first.

        `safe` are the counts for safety where they differ from those for harm (`outcome.Callers`).

        `at` is rollout time (seconds); `of_step` says whether the block began under the current step (late outcomes of an
        earlier one count for harm and for the whole, not as fresh). A rollout with nothing new has zeros.
        """
        n0, k0, n1, k1 = self._rows_of(source, n, bad, of_step, safe)
        self._evidence.add((n0, k0, n1, k1), at)

    def foresee(
        self, blocks: Sequence[tuple[Source, Array, Array, bool, tuple[Array, Array] | None]]
    ) -> None:
        """Blocks that will be added next, of the only replicate: source, `n`, `bad`, `of_step` and `safe` of each.

        Judging them one by one then costs a fraction, and gives the same bits.
        """
        rows = [np.concatenate(self._rows_of(*block)) for block in blocks]
        if rows:
            self._evidence.foresee(np.stack(rows, axis=1))

    def _rows_of(
        self,
        source: Source,
        n: Array,
        bad: Array,
        of_step: bool | NDArray[np.bool_],
        safe: tuple[Array, Array] | None,
    ) -> tuple[Array, Array, Array, Array]:
        """(n0, bad0, n1, bad1) of a block for every row, (replicates, rows) each."""
        safe_n, safe_bad = safe or (n, bad)
        current = np.broadcast_to(of_step, self.step.shape)[:, None] | ~self._fresh
        (n0, n1), (k0, k1) = (
            self._spread(source, *pair) * current for pair in ((n, safe_n), (bad, safe_bad))
        )
        return n0, k0, n1, k1

    def _spread(self, source: Source, harm: Array, safe: Array) -> Array:
        """Counts of a block over all rows, (2 arms, replicates, rows), zero where the source has nothing to say."""
        spread = np.zeros((2, len(self.step), 3, len(self.components)))
        places = self._of_source[source]
        for side, given in enumerate((harm, safe, safe)):
            spread[:, :, side, places] = np.moveaxis(given, -2, 0) if given.ndim > 2 else given[:, None]
        return spread.reshape(2, len(self.step), -1)

    def harm(self) -> Array:
        """Budget-weighted harm evidence, (replicates, components); its sum is held against 1/alpha."""
        log_e = self._evidence.log_evidence()[:, self._harm]
        weighted: Array = self._shares * np.exp(np.minimum(log_e, BIGGEST_LOG))
        return weighted

    def safe_log(self) -> Array:
        """Log evidence of safety that the current step asks for, (replicates, components).

        At the last step both the fresh evidence (of twice the margin) and the whole rollout's (of the margin) must show.
        """
        log_e = self._evidence.log_evidence()
        fresh, whole = log_e[:, self._fresh], log_e[:, self._whole] + self.carried
        last = (
            (self.step >= 0) & self._last[self.step]
            if len(self._last)
            else np.zeros(len(self.step), dtype=bool)
        )
        shown: Array = np.where(last[:, None], np.minimum(fresh, whole), fresh)
        return shown

    def results(self) -> NDArray[np.int8]:
        """FAIL, PASS or INCONCLUSIVE of every rollout; no evidence is never a pass."""
        failed = self.harm().sum(axis=1) >= 1 / self.plan.alpha
        may_pass = (self.step >= 0) & bool(self.components)
        if len(self._gated):
            may_pass &= self._gated[self.step]
        passed = may_pass & (self.safe_log() >= math.log(1 / self.plan.beta)).all(axis=1)
        return np.where(failed, FAIL, np.where(passed, PASS, INCONCLUSIVE)).astype(np.int8)
