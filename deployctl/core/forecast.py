"""What a plan will cost and what it will not notice, before anything runs: figures for `deployctl plan`.

All of it rests on rates that are assumed and said: the baseline's rate of bad answers, requests and labels a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from deployctl.core.evidence import growth
from deployctl.core.learning import Need, default_margin, needs_of, pairs_at
from deployctl.core.metrics import METRICS, comparing
from deployctl.core.outcome import Source
from deployctl.core.paired import growth as growth_of_pairs
from deployctl.core.plan import Plan, Step
from deployctl.core.rollout import DEFAULT_STEP_TIMEOUT, Learned

SLOW_CASE = 3.0
"""The slow case (about the 95th percentile) over the typical one (research note: stats 5.6)."""

TIMEOUT_BOUNDS = 6.0
"""A step time-out shorter than this many bounds ends good versions."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is assumed: requests and labels a second over all callers, and the baseline's rate of bad answers."""

    requests_per_second: float
    labels_per_second: float
    base_rate: float


@dataclass(frozen=True, slots=True)
class MetricForecast:
    """What one metric asks of one step. `units` are candidate requests or labels; times are seconds."""

    name: str
    unit: str
    base_rate: float
    margin: float
    units: float
    typical: float
    slow: float
    unnoticed: float
    budget: bool = False


@dataclass(frozen=True, slots=True)
class StepForecast:
    """One step: how long it takes at this traffic, never less than its dwell; `warning` where it cannot work out."""

    weight: float
    mirror: float
    dwell: float
    awaits_person: bool
    typical: float
    slow: float
    metrics: tuple[MetricForecast, ...]
    warning: str | None


def forecast(plan: Plan, traffic: Traffic) -> list[StepForecast]:
    """Every step of the plan at this traffic."""
    learned = _assumed(plan, traffic)
    return [_step(plan, learned, step, traffic) for step in plan.steps]


def _assumed(plan: Plan, traffic: Traffic) -> Learned:
    rates = {
        rule.name: tuple(1 - q for q in METRICS[rule.name].quantiles) or (traffic.base_rate,)
        for rule in comparing(plan.metrics)
    }
    margins = {
        rule.name: tuple(
            rule.margin if rule.margin is not None else default_margin(METRICS[rule.name], rate)
            for rate in rates[rule.name]
        )
        for rule in comparing(plan.metrics)
    }
    return Learned((), rates, margins, DEFAULT_STEP_TIMEOUT, 0)


def _step(plan: Plan, learned: Learned, step: Step, traffic: Traffic) -> StepForecast:
    metrics = tuple(_metric(plan, step, need, traffic) for need in needs_of(plan, learned, step))
    typical = max([step.dwell, *(metric.typical for metric in metrics)])
    slow = max([step.dwell, *(metric.slow for metric in metrics)])
    return StepForecast(
        step.weight,
        step.mirror,
        step.dwell,
        step.awaits_person,
        typical,
        slow,
        metrics,
        _warning(plan, step, metrics),
    )


def _metric(plan: Plan, step: Step, need: Need, traffic: Traffic) -> MetricForecast:
    labels = need.metric.source is Source.LABEL
    per_second = traffic.labels_per_second if labels else traffic.requests_per_second
    by_pairs = step.pairs_decide or need.budget
    arrivals = per_second * (step.mirror if by_pairs else step.weight) / 100
    typical = need.units / arrivals if arrivals > 0 else math.inf
    return MetricForecast(
        name=need.metric.name,
        unit="labels" if labels else "requests",
        base_rate=need.base_rate,
        margin=need.margin,
        units=need.units,
        typical=typical,
        slow=SLOW_CASE * typical,
        unnoticed=_unnoticed(plan, step, need),
        budget=need.budget,
    )


def _unnoticed(plan: Plan, step: Step, need: Need) -> float:
    """The smallest increase of the rate that would be rolled back within as many candidate units, by the bound.

    Of a budget it is the smallest rate above it, minus the budget.
    """
    metric, rate = need.metric, need.base_rate
    total = sum(METRICS[rule.name].share for rule in plan.metrics)
    rule = next(rule for rule in plan.metrics if rule.name == metric.name)
    relative, absolute = (
        (1 + rule.tolerance_relative, rule.tolerance_absolute) if metric.affine else (1.0, 0.0)
    )
    asked = math.log(total * metric.components / metric.share / plan.alpha)
    weight = min(step.weight / 100, 0.99)

    def shown(rise: float) -> float:
        if need.budget:
            cells = np.array([1 - need.margin - rise, need.margin + rise, 0.0, 0.0])
            return growth_of_pairs(cells, relative=0.0, bound=need.margin, harm=True)[0]
        if step.pairs_decide:
            return growth_of_pairs(pairs_at(rate, rise), relative=relative, bound=absolute, harm=True)[0]
        return growth(rate, rate + rise, weight, relative, absolute)

    low = 0.0 if need.budget else relative * rate + absolute - rate
    high = 0.99 - (need.margin if need.budget else 1.5 * rate if step.pairs_decide else rate)
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if shown(middle) * need.units >= asked else (middle, high)
    return high


def _warning(plan: Plan, step: Step, metrics: tuple[MetricForecast, ...]) -> str | None:
    if plan.step_timeout is None or step.pairs_decide:
        return None
    late = [metric for metric in metrics if TIMEOUT_BOUNDS * metric.typical > plan.step_timeout]
    if not late:
        return None
    worst = max(late, key=lambda metric: metric.typical)
    fits = _margin_that_fits(worst, step, plan)
    if fits is None:
        return (
            f"{worst.name} cannot be shown within stepTimeout at this traffic; shadow first, or wait longer"
        )
    return f"{worst.name} may not be shown within stepTimeout at this traffic; a margin of {100 * fits:.3g} % would fit"


def _margin_that_fits(metric: MetricForecast, step: Step, plan: Plan) -> float | None:
    """The metric's margin (as the manifest writes it) that six bounds of this step leave time for."""
    assert plan.step_timeout is not None
    assert step.gate is not None
    if not math.isfinite(metric.typical) or metric.typical <= 0:
        return None
    units = metric.units * plan.step_timeout / (TIMEOUT_BOUNDS * metric.typical)
    weight = min(step.weight / 100, 0.99)
    asked = math.log(1 / plan.beta) / units
    low, high = metric.margin, 0.5
    if growth(metric.base_rate, metric.base_rate, weight, 1.0, high) < asked:
        return None
    for _ in range(40):
        middle = 0.5 * (low + high)
        if growth(metric.base_rate, metric.base_rate, weight, 1.0, middle) >= asked:
            high = middle
        else:
            low = middle
    return high * (0.5 if step.gate.last else step.gate.next_weight / 100)
