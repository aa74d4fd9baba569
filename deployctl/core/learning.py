"""What is learnt of the baseline before a candidate's first request, frozen for the whole rollout; and what gates will need at best.

None of what is learnt ever enters evidence: it only sets thresholds, margins, time-outs, and the alternatives to bet on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from deployctl.core.evidence import Array, growth
from deployctl.core.metrics import METRICS, Metric, budgeted, comparing
from deployctl.core.outcome import Columns, Source
from deployctl.core.paired import growth as growth_of_pairs
from deployctl.core.plan import Plan, Step
from deployctl.core.rollout import DEFAULT_STEP_TIMEOUT, Learned
from deployctl.core.verdict import Arm

MIN_KNOWN_ANSWERS = 200
"""Baseline answers that must be known before the candidate's first request, where something is learnt from them."""


def default_margin(metric: Metric, rate: float) -> float:
    """The margin where the manifest states none, from the baseline's own rate (research note: stats 5.6)."""
    if metric.quantiles:
        return min(max(rate / 4, 0.005), 0.05)
    return 0.005 + rate / 8


def needs_known_answers(plan: Plan) -> bool:
    """Whether something is learnt from the baseline before the candidate may see a request."""
    return any(rule.margin is None or METRICS[rule.name].quantiles for rule in comparing(plan.metrics))


def learn(
    plan: Plan, answers: Columns, labels: Arm, answers_per_second: float, labels_per_second: float
) -> Learned:
    """What is frozen of the baseline: thresholds, rates, margins, and the step time-out that they ask for.

    `answers` are known baseline answers (OUTCOME rows), `labels` counts of joined labels. None of it ever enters evidence.
    """
    thresholds: tuple[float, ...] = ()
    rates: dict[str, tuple[float, ...]] = {}
    margins: dict[str, tuple[float, ...]] = {}
    for rule in comparing(plan.metrics):
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
    per_second = {
        Source.OUTCOME: answers_per_second,
        Source.PAIR: answers_per_second,
        Source.LABEL: labels_per_second,
    }
    timeout = max([DEFAULT_STEP_TIMEOUT, *_six_bounds(plan, learned, per_second)])
    return Learned(thresholds, rates, margins, timeout, len(answers))


def _smoothed(n: int, bad: int) -> float:
    return (bad + 0.5) / (n + 50.0)


def _six_bounds(plan: Plan, learned: Learned, per_second: Mapping[Source, float]) -> list[float]:
    """Six times the known-truth bound of each step and metric, in seconds at this traffic."""
    times = []
    for step in plan.steps:
        for need in needs_of(plan, learned, step):
            share = step.mirror if step.pairs_decide else step.weight
            arrivals = per_second[need.metric.source] * share / 100
            if arrivals > 0 and math.isfinite(need.units):
                times.append(6 * need.units / arrivals)
    return times


@dataclass(frozen=True, slots=True)
class Need:
    """What one metric asks of one step: the margin to exclude (or the `budget` to stay below) and the candidate units that it
    takes at best, where both versions have `base_rate`.
    """

    metric: Metric
    margin: float
    units: float
    base_rate: float
    budget: bool = False


def needs_of(plan: Plan, learned: Learned, step: Step) -> list[Need]:
    """The slowest component of each metric at this step, by the known-truth bound ln(1/beta) / growth."""
    if step.gate is None:
        return []
    needs = []
    for rule in comparing(plan.metrics):
        metric = METRICS[rule.name]
        asked = []
        for rate, margin in zip(learned.rates[rule.name], learned.margins[rule.name], strict=True):
            wide = step.gate.margin(margin)
            per_unit = _growth_at(step, rate, wide)
            asked.append(Need(metric, wide, math.log(1 / plan.beta) / max(per_unit, 1e-12), rate))
        needs.append(max(asked, key=lambda need: need.units))
    for rule in budgeted(plan.metrics) if step.mirror > 0 else ():
        assert rule.limit is not None
        rate = rule.limit / 2  # what is assumed of a candidate that keeps to its limit
        per_unit, _ = growth_of_pairs(
            np.array([1 - rate, rate, 0.0, 0.0]), relative=0.0, bound=rule.limit, harm=False
        )
        units = math.log(1 / plan.beta) / max(per_unit, 1e-12)
        needs.append(Need(METRICS[rule.name], rule.limit, units, rate, budget=True))
    return needs


def pairs_at(rate: float, rise: float = 0.0) -> Array:
    """Shares of the four kinds of pairs where the baseline's rate is this and the candidate's that much higher; half of the errors
    are taken for common.
    """
    cells: Array = np.maximum([1 - 1.5 * rate - rise, rate / 2 + rise, rate / 2, rate / 2], 0.0)
    return cells / float(cells.sum())


def _growth_at(step: Step, rate: float, margin: float) -> float:
    """Nats per candidate unit, at best, where both versions have this rate."""
    if not step.pairs_decide:
        return growth(rate, rate, min(step.weight / 100, 0.99), 1.0, margin)
    return growth_of_pairs(pairs_at(rate), relative=1.0, bound=margin, harm=False)[0]
