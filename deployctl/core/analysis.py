"""judge(gate, blocks) → Verdict: what the evidence of one rollout says, in words and numbers. The rules of the decision itself stand
in `panel.py`, what is learnt of the baseline before it begins in `learning.py`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from deployctl.core.evidence import Array, Evidence, confidence_sequence, growth
from deployctl.core.guards import Guards
from deployctl.core.metrics import LATENCY_QUANTILES, METRICS, comparing, limited
from deployctl.core.outcome import Block, Columns, Source
from deployctl.core.pair_judge import PairJudge
from deployctl.core.pairs import PairBlock
from deployctl.core.panel import BIGGEST_LOG, PASS, Component, Panel, components_of
from deployctl.core.plan import MetricRule, Plan, Step
from deployctl.core.rollout import Learned
from deployctl.core.verdict import Arm, MetricVerdict, Result, Verdict

WIDER_MARGINS = np.array([1.0, 1.5, 2.0, 3.0, 5.0, 10.0])
"""Multiples of a step's margin at which `excluded` is looked for."""

HISTORY_SECONDS, HISTORY_POINTS = 1.0, 120

CARRIED = 0.5
"""Of the mass of a canary that begins with a mirror step, on what the pairs show; the rest waits for the arms. Pairs' evidence at the
end of the mirroring times the arms' is an e-process again, and so is its mixture with the arms' alone."""


class Exclusions:
    """How wide an increase this step has excluded already, where the margin that it asks for is not excluded yet.

    Evidence of safety at a few wider margins, each an e-process of its own; for people only, nothing is decided by it. Blocks of a
    second are taken in together: one every second instead of ten is half of what the judge costs.
    """

    def __init__(self, components: tuple[Component, ...]) -> None:
        count = len(components)
        self._wider = np.repeat(WIDER_MARGINS, count)
        self._margins = np.ones(len(self._wider))
        self._prior = np.tile([c.prior for c in components], len(WIDER_MARGINS))
        self._count = count
        self._evidence: Evidence | None = None
        self._waiting = np.zeros((4, len(self._wider)))
        self._taken_at = -math.inf

    def begin(self, margins: list[float], at: float) -> None:
        """A step begins that asks for these margins, one per component."""
        self._margins = np.minimum(np.tile(margins, len(WIDER_MARGINS)) * self._wider, 0.9)
        rows = len(self._margins)
        self._evidence = Evidence(np.zeros(rows, dtype=bool), np.ones(rows), self._margins, self._prior)
        self._evidence.start(np.ones(rows, dtype=bool), at)
        self._waiting[:] = 0

    def add(self, n: Array, bad: Array, at: float) -> None:
        """Counts of both arms, (2, components)."""
        if self._evidence is None:
            return
        self._waiting += np.tile(np.stack((n[0], bad[0], n[1], bad[1])), len(WIDER_MARGINS))
        if at - self._taken_at >= HISTORY_SECONDS:
            n0, bad0, n1, bad1 = self._waiting[:, None]
            self._evidence.add((n0, bad0, n1, bad1), at)
            self._waiting[:] = 0
            self._taken_at = at

    def smallest(self, component: int, beta: float) -> float | None:
        """The smallest increase of this component's rate that is excluded at 1/beta, None where none is."""
        if self._evidence is None:
            return None
        shown = self._evidence.log_evidence()[0][component :: self._count] >= math.log(1 / beta)
        margins = self._margins[component :: self._count][shown]
        return float(margins.min()) if len(margins) else None


class Judge:
    """Feed blocks, read verdicts. One judge per rollout; the same blocks in the same order give the same evidence.

    Where a step has the candidate answer callers, blocks of both arms decide; in a mirror step, and in a shadow, pairs do.
    """

    def __init__(self, plan: Plan, learned: Learned) -> None:
        self.plan = plan
        self.learned = learned
        self.components = components_of(plan, learned)
        self._panel = Panel(plan, learned) if any(step.compares_arms for step in plan.steps) else None
        self.pairs = PairJudge(plan, learned) if any(step.mirror > 0 for step in plan.steps) else None
        self._places = {
            source: np.array([c.metric.source is source for c in self.components], dtype=bool)
            for source in Source
        }
        self.guards = Guards(plan)
        self._excluded = Exclusions(self.components)
        self.history: list[tuple[float, float, float]] = []
        """(rollout time, evidence of harm, weakest evidence of safety), about once a second: the chart of `explain`."""
        self._step: Step | None = None
        self._step_split = 0
        count = len(self.components)
        self.totals_n, self.totals_bad = np.zeros((2, count)), np.zeros((2, count))
        self._step_n, self._step_bad = np.zeros((2, count)), np.zeros((2, count))

    def begin(self, step: int, split: int, at: float) -> None:
        """A step begins under this split number: evidence of safety starts afresh, harm goes on."""
        self._step, self._step_split = self.plan.steps[step], split
        self._step_n[:], self._step_bad[:] = 0, 0
        if self.pairs is not None:
            self.pairs.begin(step, at)
        if self._panel is None:
            return
        self._panel.begin(step, at)
        if self.pairs is not None:
            self._panel.carried = np.log(
                1 - CARRIED + CARRIED * _shown(self.pairs.whole_log[: len(self.components)])
            )
        if self._step.gate is not None and not self._step.pairs_decide:
            self._excluded.begin([self._step.gate.margin(c.margin) for c in self.components], at)

    def add(self, block: Block) -> None:
        """Take in one block of one source; components of the other source stay as they are."""
        assert self._panel is not None
        source, n, bad, of_step, (safe_n, safe_bad) = self._comparing(block)
        places = self._places[source]
        self._panel.add(source, n, bad, block.at, of_step, (safe_n, safe_bad))
        self.guards.add(block)
        n, bad = np.zeros((2, len(places))), np.zeros((2, len(places)))
        n[:, places], bad[:, places] = safe_n, safe_bad
        self.totals_n += n
        self.totals_bad += bad
        if of_step:
            self._step_n += n
            self._step_bad += bad
            self._excluded.add(n, bad, block.at)
        self._remember(block.at)

    def add_pairs(self, block: PairBlock) -> None:
        """Take in one block of pairs: what both versions said to the same requests."""
        assert self.pairs is not None
        n, bad = self.pairs.add(block)
        if self._step is not None and self._step.pairs_decide and not block.labelled:
            self.guards.take(n, bad, block.at)
        self._remember(block.at)

    def foresee(self, blocks: list[Block]) -> None:
        """Blocks that will be added next, if no step begins before: judged one by one they cost a fraction then."""
        if self._panel is not None:
            self._panel.foresee([self._comparing(block) for block in blocks])

    def _comparing(self, block: Block) -> tuple[Source, Array, Array, bool, tuple[Array, Array]]:
        """A block as the panel takes it: only what is compared."""
        own = int(self._places[block.source].sum())
        safe_n, safe_bad = (given[:, :own] for given in block.for_safety)
        of_step = block.split == self._step_split
        return block.source, block.n[:, :own], block.bad[:, :own], of_step, (safe_n, safe_bad)

    def width(self, source: Source) -> int:
        """Columns of a block of this source: those of comparing metrics, then one per limit."""
        own = sum(1 for c in self.components if c.metric.source is source)
        return own + (len(self.guards.rules) if source is Source.OUTCOME else 0)

    def _remember(self, at: float) -> None:
        if self.history and at - self.history[-1][0] < HISTORY_SECONDS * (
            1 + len(self.history) // HISTORY_POINTS
        ):
            return
        weakest = float(self._safe_log.min(initial=BIGGEST_LOG))
        self.history.append((at, self.harm_total, math.exp(min(weakest, BIGGEST_LOG))))
        if len(self.history) > 2 * HISTORY_POINTS:
            self.history = self.history[::2]

    def read_outcomes(self, outcomes: Columns) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(known, bad) of every outcome component for these outcomes, each (units, components of that source)."""
        return _read(self.plan, self.learned, Source.OUTCOME, outcomes)

    def read_labels(self, joined: Columns) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(known, bad) of every label component; a joined label is a row whose `null` says that the answer was wrong."""
        return _read(self.plan, self.learned, Source.LABEL, joined)

    @property
    def harm(self) -> Array:
        """Budget-weighted harm evidence per component; together with budgets and limits it is held against 1/alpha."""
        count = len(self.components)
        if self._panel is None:
            return self.pairs.harm[:count] if self.pairs is not None else np.zeros(count)
        harm: Array = self._panel.harm()[0]
        if self.pairs is not None:
            by_pairs = self.pairs.harm[:count] / self.pairs.shares[:count]
            harm = harm * (1 - CARRIED + CARRIED * by_pairs)
        return harm

    @property
    def result(self) -> Result:
        """The verdict alone, without words: what is asked after every block."""
        if self.harm_total >= 1 / self.plan.alpha:
            return Result.FAIL
        if self.guards.frozen or self._step is None or self._step.gate is None:
            return Result.INCONCLUSIVE
        return Result.PASS if self._shows_safety else Result.INCONCLUSIVE

    @property
    def _shows_safety(self) -> bool:
        assert self._step is not None
        enough = math.log(1 / self.plan.beta)
        if self._step.pairs_decide:
            safe = self._safe_log
            return len(safe) > 0 and bool((safe >= enough).all()) and not self._labels_missing
        if self._panel is None or self._panel.results()[0] != PASS:
            return False
        return self.pairs is None or bool((self.pairs.whole_log[self.pairs.is_budget] >= enough).all())

    @property
    def _safe_log(self) -> Array:
        """Log evidence of safety that the current step asks for: of its pairs, or of the arms and, with copies, the budgets."""
        if self.pairs is not None and (self._panel is None or (self._step and self._step.pairs_decide)):
            return self.pairs.safe_log
        assert self._panel is not None
        safe: Array = self._panel.safe_log()[0]
        if self.pairs is None:
            return safe
        return np.concatenate([safe, self.pairs.whole_log[self.pairs.is_budget]])

    @property
    def _labels_missing(self) -> int:
        """Labelled answers that a shadow still waits for before it may pass."""
        labels = self.pairs.labels if self.pairs is not None else 0
        return max(0, self.plan.min_labels - labels)

    @property
    def harm_total(self) -> float:
        """All evidence of harm, budget-weighted: what is held against 1/alpha."""
        budgets = float(self.pairs.harm[self.pairs.is_budget].sum()) if self.pairs is not None else 0.0
        return float(self.harm.sum() + self.guards.harm.sum()) + budgets

    def quick(self) -> Verdict:
        """The verdict without words."""
        return Verdict(self.result, "")

    def verdict(self) -> Verdict:
        """The answer in words and numbers, one part for each metric."""
        result = self.result
        parts = tuple(self._part(rule, result) for rule in self.plan.metrics)
        if result is Result.FAIL:
            worst = max(parts, key=lambda part: part.harm)
            total = self.harm_total
            reason = (
                f"{worst.name} is worse than tolerated: {worst.words} "
                f"(evidence {_number(total)}, {1 / self.plan.alpha:g} is enough)"
            )
            return Verdict(result, reason, parts, worst.name)
        if result is Result.PASS:
            return Verdict(result, _passing(self.plan, parts), parts)
        return Verdict(result, self._missing(parts), parts)

    def _part(self, rule: MetricRule, result: Result) -> MetricVerdict:
        if METRICS[rule.name].bound is not None:
            return self._limit_verdict(rule, result)
        by_pairs = rule.limit is not None or self._panel is None or (self._step and self._step.pairs_decide)
        if self.pairs is not None and by_pairs:
            part = self.pairs.metric_verdict(rule, failed=result is Result.FAIL)
            own = [at for at, component in enumerate(self.components) if component.rule == rule]
            # In a canary a part of the mass waits for the arms: what is shown is what is held against the threshold.
            return replace(part, harm=min(float(self.harm[own].sum()), 1e300)) if own else part
        return self._metric_verdict(rule, result)

    def _metric_verdict(self, rule: MetricRule, result: Result) -> MetricVerdict:
        assert self._panel is not None
        own = [i for i, c in enumerate(self.components) if c.rule.name == rule.name]
        safe_log = self._panel.safe_log()[0]
        harm = self.harm[own]
        total = float(harm.sum())
        failed = result is Result.FAIL and total >= 1 / self.plan.alpha / len(self.plan.metrics)
        slowest = own[int(np.argmin(safe_log[own]))]
        shown = own[int(np.argmax(harm))] if failed else slowest
        passed = bool(safe_log[slowest] >= math.log(1 / self.plan.beta))
        baseline, candidate = self._arm(0, shown), self._arm(1, shown)
        component = self.components[shown]
        gate = self._step.gate if self._step else None
        own_result = Result.FAIL if failed else Result.PASS if passed else Result.INCONCLUSIVE
        return MetricVerdict(
            name=rule.name,
            result=own_result,
            baseline=baseline,
            candidate=candidate,
            effect=_effect(baseline, candidate),
            interval=_interval(baseline, candidate, self.plan.alpha),
            harm=min(total, 1e300),
            harm_threshold=1 / self.plan.alpha,
            safe=float(np.exp(min(float(safe_log[slowest]), BIGGEST_LOG))),
            safe_threshold=1 / self.plan.beta,
            margin=gate.margin(component.margin) if gate else component.margin,
            needed=0 if passed else self._needed(slowest),
            words=self._words(component, baseline, candidate),
            excluded=self._excluded.smallest(slowest, self.plan.beta),
        )

    def _arm(self, side: int, component: int) -> Arm:
        return Arm(int(self.totals_n[side, component]), int(self.totals_bad[side, component]))

    def _words(self, component: Component, baseline: Arm, candidate: Arm) -> str:
        what = component.metric.bad
        if component.metric.quantiles and self.learned.thresholds:
            quantile = LATENCY_QUANTILES[component.at]
            limit = self.learned.thresholds[component.at]
            slower = limit * (1 + component.rule.tolerance_relative) + component.rule.tolerance_absolute
            what = f"answers over {slower:.3g} ms (the baseline's p{quantile * 100:g} is {limit:.3g} ms)"
        return f"the candidate gave {candidate.words} {what}, the baseline {baseline.words}"

    def _needed(self, component: int) -> int | None:
        """Candidate units still missing for a pass if things stay as they are; None where that leads nowhere."""
        if self._step is None or self._step.gate is None or self._panel is None:
            return None
        c = self.components[component]
        margin = self._step.gate.margin(c.margin)
        n, bad = self._step_n[:, component], self._step_bad[:, component]
        p0 = (bad[0] + 20 * c.prior) / (n[0] + 20)
        p1 = (bad[1] + 2 * p0) / (n[1] + 2)
        if p1 >= p0 + margin:
            return None
        weight = n[1] / n.sum() if n.all() else min(max(self._step.weight / 100, 0.01), 0.99)
        per_unit = growth(p0, p1, weight, 1.0, margin)
        if per_unit <= 0:
            return None
        missing = math.log(1 / self.plan.beta) - float(self._panel.safe_log()[0, component])
        return max(1, math.ceil(missing / per_unit))

    def _limit_verdict(self, rule: MetricRule, result: Result) -> MetricVerdict:
        """A limit has no effect and no margin: it is breached by the candidate alone, or it is not."""
        at = self.guards.rules.index(rule)
        harm = float(self.guards.harm[at])
        failed = result is Result.FAIL and harm >= 1 / self.plan.alpha / len(self.plan.metrics)
        baseline, candidate = (
            Arm(int(self.guards.n[side, at]), int(self.guards.bad[side, at])) for side in (0, 1)
        )
        within = Result.PASS if candidate.n and not self.guards.breached_by_both[at] else Result.INCONCLUSIVE
        bound = METRICS[rule.name].bound
        assert bound is not None
        return MetricVerdict(
            name=rule.name,
            result=Result.FAIL if failed else within,
            baseline=baseline,
            candidate=candidate,
            effect=_effect(baseline, candidate),
            interval=_interval(baseline, candidate, self.plan.alpha),
            harm=min(harm, 1e300),
            harm_threshold=1 / self.plan.alpha,
            safe=1 / self.plan.beta if within is Result.PASS else 1.0,
            safe_threshold=1 / self.plan.beta,
            margin=0.0,
            needed=0 if within is Result.PASS else None,
            words=(
                f"the candidate gave {candidate.words} answers over {rule.limit:g} ms where {100 * bound:.3g} % are allowed, "
                f"the baseline {baseline.words}"
            ),
        )

    def _missing(self, parts: tuple[MetricVerdict, ...]) -> str:
        if self._step is None:
            return "the candidate has not seen a request yet"
        if frozen := self.guards.frozen:
            return frozen
        waiting = [part for part in parts if part.result is not Result.PASS]
        budgets = {rule.name for rule in self.plan.metrics if rule.limit is not None}
        said = [
            f"{part.name}: {_what_to_exclude(part, budgets)} is not excluded yet, {_still(part)}"
            for part in waiting
        ]
        if self._step.pairs_decide and (missing := self._labels_missing):
            said.append(
                f"{self.plan.min_labels - missing} of at least {self.plan.min_labels} labels have come"
            )
        return "; ".join(said)


def _shown(log_evidence: Array) -> Array:
    """Evidence out of its logarithm, as far as numbers go."""
    shown: Array = np.exp(np.minimum(log_evidence, BIGGEST_LOG))
    return shown


def _passing(plan: Plan, parts: tuple[MetricVerdict, ...]) -> str:
    budgets = {
        rule.name for rule in plan.metrics if METRICS[rule.name].bound is None and rule.limit is not None
    }
    margins = ", ".join(f"{part.name} +{_points(part.margin)}" for part in parts if part.name not in budgets)
    within = ", ".join(
        f"{part.name} is below {100 * part.margin:.3g} % ({part.candidate.bad} of {part.candidate.n})"
        for part in parts
        if part.name in budgets
    )
    return "; ".join(
        [
            *([f"no metric is worse by its margin: {margins}"] if margins else []),
            *([within] if within else []),
        ]
    )


def _what_to_exclude(part: MetricVerdict, budgets: set[str]) -> str:
    return f"a rate of {100 * part.margin:.3g} %" if part.name in budgets else f"+{_points(part.margin)}"


def _still(part: MetricVerdict) -> str:
    units = "labelled candidate answers" if METRICS[part.name].source is Source.LABEL else "candidate answers"
    if part.candidate.n == 0:
        return f"no {units} so far"
    if part.needed is None:
        return f"and it looks no better than that ({part.words})"
    if part.excluded is not None and part.excluded > part.margin:
        return f"+{_points(part.excluded)} is; about {part.needed} more {units} are needed"
    return f"about {part.needed} more {units} are needed"


def _read(
    plan: Plan, learned: Learned, source: Source, columns: Columns
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    known, bad = [np.ones((len(columns), 0), dtype=bool)], [np.ones((len(columns), 0), dtype=bool)]
    limits = limited(plan.metrics) if source is Source.OUTCOME else ()
    for rule in (*comparing(plan.metrics, source), *limits):
        one = METRICS[rule.name].read(columns, rule, learned.thresholds)
        known.append(one[0])
        bad.append(one[1])
    return np.concatenate(known, axis=1), np.concatenate(bad, axis=1)


def _effect(baseline: Arm, candidate: Arm) -> float | None:
    if not baseline.n or not candidate.n:
        return None
    return candidate.bad / candidate.n - baseline.bad / baseline.n


def _interval(baseline: Arm, candidate: Arm, alpha: float) -> tuple[float, float] | None:
    """Any-time valid interval for the difference: each arm's confidence sequence at alpha / 2, put together."""
    if not baseline.n or not candidate.n:
        return None
    low0, high0 = confidence_sequence(baseline.n, baseline.bad, alpha / 2)
    low1, high1 = confidence_sequence(candidate.n, candidate.bad, alpha / 2)
    return low1 - high0, high1 - low0


def _number(evidence: float) -> str:
    return f"{evidence:,.0f}" if 10 <= evidence < 1e7 else f"{evidence:.2g}"


def _points(margin: float) -> str:
    return f"{100 * margin:.3g} points"
