"""judge(gate, blocks) → Verdict: metrics combined, error budgets, margins of the ladder.

Rollback when the budget-weighted mean of the harm evidence reaches 1/alpha: valid under any dependence between metrics.
Moving on only when every component of every metric shows, on fresh evidence, that harm beyond the step's margin is excluded
at 1/beta: each must show, so nothing needs correcting. Harm accumulates over the whole rollout.

The public verdict API is `Judge`: `begin` a step, `add` blocks, read `result` or `verdict` after any of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deployctl.core.evidence import Array, Evidence, confidence_sequence, growth
from deployctl.core.metrics import LATENCY_QUANTILES, METRICS, Metric
from deployctl.core.outcome import Block, Columns, Source
from deployctl.core.plan import MetricRule, Plan, Step
from deployctl.core.rollout import DEFAULT_STEP_TIMEOUT, Learned
from deployctl.core.verdict import Arm, MetricVerdict, Result, Verdict

MIN_KNOWN_ANSWERS = 200
"""Baseline answers that must be known before the candidate's first request, where something is learnt from them."""

_BIGGEST_LOG = 690.0


@dataclass(frozen=True, slots=True)
class Component:
    """One row of counts: which metric it belongs to, and its null hypotheses as (relative, absolute)."""

    rule: MetricRule
    metric: Metric
    at: int
    prior: float
    margin: float
    share: float

    @property
    def tolerance(self) -> tuple[float, float]:
        """The harm null on rates; latency's tolerance has acted on milliseconds already."""
        if not self.metric.affine:
            return 1.0, 0.0
        return 1.0 + self.rule.tolerance_relative, self.rule.tolerance_absolute


def default_margin(metric: Metric, rate: float) -> float:
    """The margin where the manifest states none, from the baseline's own rate (research note: stats 5.6)."""
    if metric.quantiles:
        return min(max(rate / 4, 0.005), 0.05)
    return 0.005 + rate / 8


def needs_known_answers(plan: Plan) -> bool:
    """Whether something is learnt from the baseline before the candidate may see a request."""
    return any(rule.margin is None or METRICS[rule.name].quantiles for rule in plan.metrics)


def learn(
    plan: Plan, answers: Columns, labels: Arm, answers_per_second: float, labels_per_second: float
) -> Learned:
    """What is frozen of the baseline: thresholds, rates, margins, and the step time-out that they ask for.

    `answers` are known baseline answers (OUTCOME rows), `labels` counts of joined labels. None of it ever enters evidence.
    """
    thresholds: tuple[float, ...] = ()
    rates: dict[str, tuple[float, ...]] = {}
    margins: dict[str, tuple[float, ...]] = {}
    for rule in plan.metrics:
        metric = METRICS[rule.name]
        if metric.quantiles:
            latency = answers["latency"].astype(float)
            thresholds = (
                tuple(float(x) for x in np.quantile(latency, metric.quantiles)) if len(latency) else ()
            )
            rates[rule.name] = tuple(1 - q for q in metric.quantiles)
        elif metric.source is Source.LABEL:
            rates[rule.name] = (_smoothed(labels.n, labels.bad),)
        else:
            known, bad = metric.read(answers, rule, ())
            rates[rule.name] = (_smoothed(int(known.sum()), int((bad & known).sum())),)
        margins[rule.name] = tuple(
            rule.margin if rule.margin is not None else default_margin(metric, rate)
            for rate in rates[rule.name]
        )
    learned = Learned(thresholds, rates, margins, DEFAULT_STEP_TIMEOUT, len(answers))
    per_second = {Source.OUTCOME: answers_per_second, Source.LABEL: labels_per_second}
    timeout = max([DEFAULT_STEP_TIMEOUT, *_six_bounds(plan, learned, per_second)])
    return Learned(thresholds, rates, margins, timeout, len(answers))


def _smoothed(n: int, bad: int) -> float:
    return (bad + 0.5) / (n + 50.0)


def _six_bounds(plan: Plan, learned: Learned, per_second: Mapping[Source, float]) -> list[float]:
    """Six times the known-truth bound of each step and metric, in seconds at this traffic."""
    times = []
    for step in plan.steps:
        for need in needs_of(plan, learned, step):
            arrivals = per_second[need.metric.source] * step.weight / 100
            if arrivals > 0 and math.isfinite(need.units):
                times.append(6 * need.units / arrivals)
    return times


@dataclass(frozen=True, slots=True)
class Need:
    """What one metric asks of one step: the margin to exclude and the candidate units that it takes at best.

    `unnoticed` is the smallest increase (a rate) that the harm side reliably sees within those units.
    """

    metric: Metric
    margin: float
    units: float
    base_rate: float


def needs_of(plan: Plan, learned: Learned, step: Step) -> list[Need]:
    """The slowest component of each metric at this step, by the known-truth bound ln(1/beta) / growth."""
    assert step.gate is not None
    needs = []
    for rule in plan.metrics:
        metric = METRICS[rule.name]
        asked = []
        for rate, margin in zip(learned.rates[rule.name], learned.margins[rule.name], strict=True):
            wide = step.gate.margin(margin)
            per_unit = growth(rate, rate, min(step.weight / 100, 0.99), 1.0, wide)
            asked.append(Need(metric, wide, math.log(1 / plan.beta) / max(per_unit, 1e-12), rate))
        needs.append(max(asked, key=lambda need: need.units))
    return needs


class Judge:
    """Feed blocks, read verdicts. One judge per rollout; the same blocks in the same order give the same evidence."""

    def __init__(self, plan: Plan, learned: Learned) -> None:
        self.plan = plan
        self.learned = learned
        self.components = _components(plan, learned)
        count = len(self.components)
        self._sides = np.repeat(["harm", "fresh", "whole"], count)
        relative = np.array([c.tolerance[0] for c in self.components] + [1.0] * (2 * count))
        absolute = np.array(
            [c.tolerance[1] for c in self.components] + [c.margin for c in self.components] * 2
        )
        prior = np.array([c.prior for c in self.components] * 3)
        self._evidence = Evidence(
            self._sides == "harm", relative, absolute, prior, steps=max(1, len(plan.steps))
        )
        self._step: Step | None = None
        self._step_split = 0
        self.totals_n = np.zeros((2, count))
        self.totals_bad = np.zeros((2, count))
        self._step_n = np.zeros((2, count))
        self._step_bad = np.zeros((2, count))

    def begin(self, step: int, split: int, at: float) -> None:
        """A step begins under this split number: evidence of safety starts afresh, harm goes on."""
        self._step = self.plan.steps[step]
        self._step_split = split
        gate = self._step.gate
        fresh = self._sides == "fresh"
        if gate is not None:
            self._evidence.absolute[fresh] = [gate.margin(c.margin) for c in self.components]
        self._evidence.start(fresh, at)
        if step > 0:
            self._evidence.renew_at_step(~fresh)
        self._step_n[:] = 0
        self._step_bad[:] = 0

    def add(self, block: Block) -> None:
        """Take in one block of one source; components of the other source stay as they are."""
        of_source = np.array([c.metric.source is block.source for c in self.components])
        n = np.zeros((2, len(self.components)))
        bad = np.zeros((2, len(self.components)))
        n[:, of_source], bad[:, of_source] = block.n, block.bad
        self.totals_n += n
        self.totals_bad += bad
        of_step = block.split == self._step_split
        if of_step:
            self._step_n += n
            self._step_bad += bad
        seen = np.where((self._sides == "fresh") & (not of_step), 0.0, 1.0)
        counts = tuple((np.tile(x, 3) * seen)[None, :] for x in (n[0], bad[0], n[1], bad[1]))
        self._evidence.add((counts[0], counts[1], counts[2], counts[3]), block.at)

    def read_outcomes(self, outcomes: Columns) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(known, bad) of every outcome component for these outcomes, each (units, components of that source)."""
        return _read(self.plan, self.learned, Source.OUTCOME, outcomes)

    def read_labels(self, joined: Columns) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(known, bad) of every label component; a joined label is a row whose `null` says that the answer was wrong."""
        return _read(self.plan, self.learned, Source.LABEL, joined)

    @property
    def harm(self) -> Array:
        """Budget-weighted harm evidence per component; their sum is held against 1/alpha."""
        log_e = self._evidence.log_evidence()[0]
        shares = np.array([c.share for c in self.components])
        weighted: Array = shares * np.exp(np.minimum(log_e[self._sides == "harm"], _BIGGEST_LOG))
        return weighted

    @property
    def result(self) -> Result:
        """The verdict alone, without words: what is asked after every block."""
        if self.harm.sum() >= 1 / self.plan.alpha:
            return Result.FAIL
        if self._step is None or self._step.gate is None or not self.components:
            return Result.INCONCLUSIVE
        shown = self._safe_log() >= math.log(1 / self.plan.beta)
        return Result.PASS if bool(shown.all()) else Result.INCONCLUSIVE

    def verdict(self) -> Verdict:
        """The answer in words and numbers, one part for each metric."""
        result = self.result
        parts = tuple(self._metric_verdict(rule, result) for rule in self.plan.metrics)
        if result is Result.FAIL:
            worst = max(parts, key=lambda part: part.harm)
            return Verdict(result, f"{worst.name} is worse than tolerated: {worst.words}", parts, worst.name)
        if result is Result.PASS:
            margins = ", ".join(f"{part.name} +{_points(part.margin)}" for part in parts)
            return Verdict(result, f"harm is excluded on every metric beyond {margins}", parts)
        return Verdict(result, self._missing(parts), parts)

    def _safe_log(self) -> Array:
        """Per component the log evidence of safety that the current step asks for."""
        log_e = self._evidence.log_evidence()[0]
        shown: Array = log_e[self._sides == "fresh"]
        if self._step is not None and self._step.gate is not None and self._step.gate.last:
            shown = np.minimum(shown, log_e[self._sides == "whole"])
        return shown

    def _metric_verdict(self, rule: MetricRule, result: Result) -> MetricVerdict:
        own = [i for i, c in enumerate(self.components) if c.rule.name == rule.name]
        safe_log = self._safe_log()
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
            safe=float(np.exp(min(float(safe_log[slowest]), _BIGGEST_LOG))),
            safe_threshold=1 / self.plan.beta,
            margin=gate.margin(component.margin) if gate else component.margin,
            needed=0 if passed else self._needed(slowest),
            words=self._words(component, baseline, candidate),
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
        return f"{_share(candidate)} {what} from the candidate, {_share(baseline)} from the baseline"

    def _needed(self, component: int) -> int | None:
        """Candidate units still missing for a pass if things stay as they are; None where that leads nowhere."""
        if self._step is None or self._step.gate is None:
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
        missing = math.log(1 / self.plan.beta) - float(self._safe_log()[component])
        return max(1, math.ceil(missing / per_unit))

    def _missing(self, parts: tuple[MetricVerdict, ...]) -> str:
        if self._step is None:
            return "the candidate has not seen a request yet"
        waiting = [part for part in parts if part.result is not Result.PASS]
        return "; ".join(
            f"{part.name}: +{_points(part.margin)} is not excluded yet, {_still(part)}" for part in waiting
        )


def _still(part: MetricVerdict) -> str:
    units = "labelled candidate answers" if METRICS[part.name].source is Source.LABEL else "candidate answers"
    if part.candidate.n == 0:
        return f"no {units} so far"
    if part.needed is None:
        return f"and it looks no better than that ({part.words})"
    return f"about {part.needed} more {units} are needed"


def _components(plan: Plan, learned: Learned) -> list[Component]:
    """All rows of all metrics, those of one source in the order in which `_read` gives them."""
    total = sum(METRICS[rule.name].share for rule in plan.metrics)
    return [
        Component(
            rule,
            metric := METRICS[rule.name],
            at,
            learned.rates[rule.name][at],
            learned.margins[rule.name][at],
            metric.share / total / metric.components,
        )
        for rule in plan.metrics
        for at in range(METRICS[rule.name].components)
    ]


def _read(
    plan: Plan, learned: Learned, source: Source, columns: Columns
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    known, bad = [np.ones((len(columns), 0), dtype=bool)], [np.ones((len(columns), 0), dtype=bool)]
    for rule in plan.metrics:
        if METRICS[rule.name].source is source:
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


def _share(arm: Arm) -> str:
    return f"{arm.bad} of {arm.n} ({100 * arm.bad / arm.n:.3g} %)" if arm.n else "none of 0"


def _points(margin: float) -> str:
    return f"{100 * margin:.3g} points"
