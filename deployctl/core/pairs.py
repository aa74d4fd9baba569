"""Two answers to one request, the baseline's and a candidate's: read into good-or-bad on both sides, and cut into blocks.

The request is the unit, whoever sent it: nobody is randomised, both versions saw the same input. Where a block ends depends on
the pairs and their order alone, as in `outcome.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deployctl.core.metrics import METRICS, budgeted, comparing
from deployctl.core.outcome import (
    CLIENT_LEFT,
    EARLY_BLOCKS,
    EARLY_UNITS,
    LATER_UNITS,
    SETTLED_SECONDS,
    SETTLED_UNITS,
    Columns,
    Source,
)
from deployctl.core.plan import MetricRule, Plan
from deployctl.core.rollout import Learned

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rows of equal length: what the baseline and what a candidate answered, whichever of the two was the copy.

    `baseline` and `candidate` have OUTCOME's columns; `arm` (units,) is the candidate's number; `differs` (units,) is 1 where the
    predictions differ, 0 where they do not, -1 where one of them is missing; `wrong` (units, 2) is how wrong a label says that
    each was, 0 to 1, and NaN without a label; `t` (units,) is the start of the request in rollout seconds.
    """

    baseline: Columns
    candidate: Columns
    arm: NDArray[np.int8]
    differs: NDArray[np.int8]
    wrong: Floats
    t: Floats

    def __len__(self) -> int:
        return len(self.arm)

    def take(self, which: NDArray[np.bool_] | NDArray[np.intp]) -> Pairs:
        """Only these rows."""
        return Pairs(
            self.baseline[which],
            self.candidate[which],
            self.arm[which],
            self.differs[which],
            self.wrong[which],
            self.t[which],
        )


@dataclass(frozen=True, slots=True)
class PairComponent:
    """One question that is asked of each pair. `budget`: only the candidate's side counts, against this rate."""

    rule: MetricRule
    at: int
    prior: float
    margin: float
    share: float
    relative: float
    absolute: float
    budget: float | None = None

    @property
    def source(self) -> Source:
        """What it is read from."""
        return METRICS[self.rule.name].source


def pair_components(plan: Plan, learned: Learned) -> tuple[PairComponent, ...]:
    """Those of the comparing metrics first, in the order of `panel.components_of`; then the budgets."""
    total = sum(METRICS[rule.name].share for rule in plan.metrics)
    found = []
    for rule in comparing(plan.metrics):
        metric = METRICS[rule.name]
        relative, absolute = (
            (1.0 + rule.tolerance_relative, rule.tolerance_absolute) if metric.affine else (1.0, 0.0)
        )
        found += [
            PairComponent(
                rule=rule,
                at=at,
                prior=learned.rates[rule.name][at],
                margin=learned.margins[rule.name][at],
                share=metric.share / total / metric.components,
                relative=relative,
                absolute=absolute,
            )
            for at in range(metric.components)
        ]
    for rule in budgeted(plan.metrics):
        assert rule.limit is not None
        share = METRICS[rule.name].share / total
        found.append(PairComponent(rule, 0, rule.limit, rule.limit, share, 0.0, rule.limit, rule.limit))
    return tuple(found)


def read_pairs(
    components: tuple[PairComponent, ...], pairs: Pairs, thresholds: tuple[float, ...], *, labelled: bool
) -> tuple[Floats, Floats, Flags]:
    """(y0, y1, known) of every component, (units, components): how bad the baseline's answer was, and the candidate's.

    `labelled` pairs answer the questions of labels, others all the rest. A budget's baseline is never bad.
    """
    shape = (len(pairs), len(components))
    y0, y1, known = np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=bool)
    for place, component in enumerate(components):
        if (component.source is Source.LABEL) is not labelled:
            continue
        bad0, bad1, both = _read(component, pairs, thresholds)
        y0[:, place] = 0.0 if component.budget is not None else bad0
        y1[:, place] = bad1
        known[:, place] = both
    return y0, y1, known


def _read(
    component: PairComponent, pairs: Pairs, thresholds: tuple[float, ...]
) -> tuple[Floats, Floats, Flags]:
    if component.source is Source.LABEL:
        labelled: Flags = ~np.isnan(pairs.wrong[:, 0] + pairs.wrong[:, 1])
        return pairs.wrong[:, 0], pairs.wrong[:, 1], labelled
    if component.source is Source.PAIR:
        return np.zeros(len(pairs)), (pairs.differs == 1).astype(float), pairs.differs >= 0
    metric = METRICS[component.rule.name]
    known0, bad0 = metric.read(pairs.baseline, component.rule, thresholds)
    known1, bad1 = metric.read(pairs.candidate, component.rule, thresholds)
    both = (
        known1 if component.budget is not None else known0 & known1
    )  # a budget asks nothing of the baseline
    return bad0[:, component.at].astype(float), bad1[:, component.at].astype(float), both[:, component.at]


def over_limits(rules: tuple[MetricRule, ...], pairs: Pairs, *, people_alone: bool) -> tuple[Floats, Floats]:
    """(n, bad) of each latency limit, (2, rules): the baseline's answers and the candidate's; people have no latency."""
    n, bad = np.zeros((2, len(rules))), np.zeros((2, len(rules)))
    for place, rule in enumerate(rules):
        for side, rows in enumerate((pairs.baseline, pairs.candidate)):
            known, over = METRICS[rule.name].read(rows, rule, ())
            if side or not people_alone:
                n[side, place], bad[side, place] = known.sum(), (over & known).sum()
    return n, bad


def scored(pairs: Pairs, *, people_alone: bool) -> Flags:
    """Which pairs say something of the versions: a 4xx is the caller's doing, and one who left saw no answer.

    Where people are alone nobody else has taken the request, so a candidate's 4xx says nothing of it either.
    """
    own = pairs.baseline["status"]
    kept: Flags = (own < 400) | (own > CLIENT_LEFT)
    kept &= pairs.candidate["status"] != CLIENT_LEFT  # a copy that was given up says nothing
    return kept & ~_refused(pairs) if people_alone else kept


def refusals_as_errors(pairs: Pairs) -> Pairs:
    """A candidate that alone refuses what the baseline answered has failed."""
    refused = _refused(pairs)
    if not refused.any():
        return pairs
    candidate = pairs.candidate.copy()
    candidate["status"][refused] = 500
    return replace(pairs, candidate=candidate)


def _refused(pairs: Pairs) -> Flags:
    status = pairs.candidate["status"]
    refused: Flags = (status >= 400) & (status < CLIENT_LEFT)
    return refused


@dataclass(frozen=True, slots=True)
class PairBlock:
    """Pairs that are judged together: arrays as `read_pairs` gives them, limits as `over_limits`; `at` is rollout time."""

    pairs: Pairs
    labelled: bool
    at: float


class PairBlocks:
    """Cuts the pairs of one candidate into blocks: 1 for the first six, then 4, and 100 ms at the least once 64 were seen."""

    def __init__(self, *, labelled: bool) -> None:
        self._labelled = labelled
        self._open: list[Pairs] = []
        self._closed = 0
        self._seen = 0

    def add(self, pairs: Pairs, time: Floats, at: float | Floats) -> list[PairBlock]:
        """Every block that these pairs complete; `time` (seconds) orders them, `at` is the rollout time of their coming in."""
        instants = np.broadcast_to(np.asarray(at, dtype=float), len(pairs))
        rows = _joined([*self._open, pairs])
        times = np.concatenate([*(part.t for part in self._open), time]) if self._open else time
        waiting = len(rows) - len(pairs)
        blocks, start = [], 0
        while (end := self._end(times, start)) is not None:
            which = np.arange(start, end)
            when = float(instants[max(end - 1 - waiting, 0)])
            blocks.append(PairBlock(rows.take(which), self._labelled, when))
            self._closed += 1
            self._seen += end - start
            start = end
        rest = rows.take(np.arange(start, len(rows)))
        self._open = [_timed(rest, times[start:])] if len(rest) else []
        return blocks

    def copy(self) -> PairBlocks:
        """The same open pairs once more, for whoever may have to take back what is added next."""
        other = PairBlocks(labelled=self._labelled)
        other._open, other._closed, other._seen = self._open, self._closed, self._seen
        return other

    def _end(self, times: Floats, start: int) -> int | None:
        end = start + (EARLY_UNITS if self._closed < EARLY_BLOCKS else LATER_UNITS)
        if self._seen >= SETTLED_UNITS and start < len(times):
            end = max(end, int(np.searchsorted(times, times[start] + SETTLED_SECONDS)) + 1)
        return end if end <= len(times) else None


def _timed(pairs: Pairs, time: Floats) -> Pairs:
    """Pairs that wait keep the time that orders them: of labels it is that of their coming in."""
    return Pairs(pairs.baseline, pairs.candidate, pairs.arm, pairs.differs, pairs.wrong, time)


def _joined(parts: list[Pairs]) -> Pairs:
    if len(parts) == 1:
        return parts[0]
    return Pairs(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("baseline", "candidate", "arm", "differs", "wrong", "t")
        )
    )
