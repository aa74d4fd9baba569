"""How a number is read out of outcomes, and what it is called: one entry in METRICS per metric.

A metric is one or more *components*, each a bad-or-not per answer; latency has one per threshold learnt from the baseline.
To add a metric: one `Metric(...)` line. Its `read` gets outcomes and the arm-wise thresholds and says what is known and bad.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from deployctl.core.outcome import CLIENT_LEFT, Columns, Flags, Source
from deployctl.core.plan import MetricRule

LATENCY_QUANTILES = (0.5, 0.9, 0.95, 0.99)
"""Latency is judged as the share of answers over each of these quantiles of the baseline's own latency."""

Reader = Callable[[Columns, MetricRule, tuple[float, ...]], tuple[Flags, Flags]]


@dataclass(frozen=True, slots=True)
class Metric:
    """`share` is its part of the error budget (renormalised over the metrics present), `bad` its words for a person.

    `read(outcomes, rule, thresholds)` gives (known, bad), each (units, components). `affine`: the tolerance is one of rates;
    latency's is one of milliseconds instead, applied to the candidate's answers before they are counted. `bound`: the metric is an
    absolute limit on one arm, this rate of bad answers, and compares nothing.
    """

    name: str
    share: float
    source: Source
    bad: str
    read: Reader
    quantiles: tuple[float, ...] = ()
    affine: bool = True
    bound: float | None = None

    @property
    def components(self) -> int:
        """How many bad-or-not questions this metric asks of an answer."""
        return len(self.quantiles) or 1


def _errors(outcomes: Columns, _rule: MetricRule, _thresholds: tuple[float, ...]) -> tuple[Flags, Flags]:
    status = outcomes["status"]
    return (status != CLIENT_LEFT)[:, None], (status >= 500)[:, None]


def _nulls(outcomes: Columns, _rule: MetricRule, _thresholds: tuple[float, ...]) -> tuple[Flags, Flags]:
    # Over all requests, not over the answered ones: a share of answers would be a comparison that nobody randomised.
    status = outcomes["status"]
    return (status != CLIENT_LEFT)[:, None], ((status < 400) & (outcomes["null"] == 1))[:, None]


def _latency(outcomes: Columns, rule: MetricRule, thresholds: tuple[float, ...]) -> tuple[Flags, Flags]:
    taken = outcomes["latency"].astype(float)
    tolerated = (taken - rule.tolerance_absolute) / (1 + rule.tolerance_relative)
    compared = np.where(outcomes["arm"] >= 1, tolerated, taken)
    slow = compared[:, None] > np.asarray(thresholds)[None, :]
    # A caller that left waited at least so long: slow for what was already passed, unknown for the rest.
    return slow | (outcomes["status"] != CLIENT_LEFT)[:, None], slow


def _over_limit(outcomes: Columns, rule: MetricRule, _thresholds: tuple[float, ...]) -> tuple[Flags, Flags]:
    assert rule.limit is not None
    over = (outcomes["latency"] > rule.limit)[:, None]
    return over | (outcomes["status"] != CLIENT_LEFT)[:, None], over


def _differing(outcomes: Columns, _rule: MetricRule, _thresholds: tuple[float, ...]) -> tuple[Flags, Flags]:
    # A pair comes as an outcome whose `null` says whether the predictions differ, of a client that left where one is missing.
    return (outcomes["status"] != CLIENT_LEFT)[:, None], (outcomes["null"] == 1)[:, None]


def _labels(outcomes: Columns, _rule: MetricRule, _thresholds: tuple[float, ...]) -> tuple[Flags, Flags]:
    # A joined label comes as an outcome whose `null` says whether the answer was wrong.
    return np.ones((len(outcomes), 1), dtype=bool), (outcomes["null"] == 1)[:, None]


METRICS = {
    metric.name: metric
    for metric in (
        Metric("error-rate", 0.4, Source.OUTCOME, "answers with an error", _errors),
        Metric("null-rate", 0.2, Source.OUTCOME, "answers without a prediction", _nulls),
        Metric("latency", 0.2, Source.OUTCOME, "slow answers", _latency, LATENCY_QUANTILES, affine=False),
        Metric("label-error-rate", 0.2, Source.LABEL, "answers that people contradict", _labels),
        Metric("disagreement-rate", 0.2, Source.PAIR, "answers other than the baseline's", _differing),
        *(
            Metric(
                f"latency-p{percent}",
                0.2,
                Source.OUTCOME,
                "answers over the limit",
                _over_limit,
                bound=1 - percent / 100,
            )
            for percent in (50, 90, 95, 99)
        ),
    )
}


def comparing(rules: Iterable[MetricRule], source: Source | None = None) -> tuple[MetricRule, ...]:
    """The rules that compare the arms, in order; of one source or of any."""
    return tuple(
        rule
        for rule in rules
        if METRICS[rule.name].bound is None
        and rule.limit is None
        and source in {None, METRICS[rule.name].source}
    )


def budgeted(rules: Iterable[MetricRule]) -> tuple[MetricRule, ...]:
    """The rules that hold a rate of the candidate against an absolute limit, by its copies alone, in order."""
    return tuple(rule for rule in rules if METRICS[rule.name].bound is None and rule.limit is not None)


def limited(rules: Iterable[MetricRule]) -> tuple[MetricRule, ...]:
    """The rules that hold a latency of each arm against an absolute limit, in order."""
    return tuple(rule for rule in rules if METRICS[rule.name].bound is not None)
