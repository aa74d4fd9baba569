"""The course of a rollout: what follows, instant by instant, from what was seen. The live controller and `replay` both run on it.

The one rule: nothing is decided between instants. An instant is one of a batch that was taken in, of an order or an event from
outside, or one at which time alone is enough (a dwell ends); so the same entries lead to the same events at the same times,
however often the clock was looked at meanwhile, and whatever crashed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deployctl.core.analysis import Judge
from deployctl.core.metrics import METRICS
from deployctl.core.outcome import Block, Blocks, Columns, Source
from deployctl.core.plan import Plan
from deployctl.core.rollout import Event, Learned, Rollout, decide, next_due
from deployctl.core.verdict import Result, Verdict

Instants = NDArray[np.float64]

MAX_CALLERS = 200_000
"""Sticky callers that the route check tells apart in one step; it has seen enough then."""

UNSEEN = Verdict(Result.INCONCLUSIVE, "the candidate has not seen a request yet")


class Weighing:
    """Units become blocks, and blocks evidence: the judge of one rollout, and what no block holds yet."""

    def __init__(self, plan: Plan, learned: Learned) -> None:
        self.judge = Judge(plan, learned)
        self.sources = {METRICS[rule.name].source for rule in plan.metrics}
        self.by_key = plan.unit == "key"
        self.blocks = {
            source: Blocks(source, self.judge.width(source), self.by_key) for source in self.sources
        }
        self._weights: dict[int, float] = {}
        self._callers: dict[int, set[int]] = {}

    def begin(self, step: int, split: int, at: float) -> None:
        """A step begins under this split number."""
        self._weights[split] = self.judge.plan.steps[step].weight
        self.judge.begin(step, split, at)

    def cut(self, source: Source, units: Columns, time: Instants, at: float | Instants) -> list[Block]:
        """The blocks that these units complete, in order; nothing is judged yet. `time` (seconds) orders the units."""
        if not len(units) or source not in self.sources:
            return []
        read = self.judge.read_outcomes if source is Source.OUTCOME else self.judge.read_labels
        known, bad = read(units)
        return list(self.blocks[source].add(units, time, known, bad, at))

    def count(self, outcomes: Columns) -> None:
        """Hold the arms' counts against the weight; a sticky caller counts once for each split."""
        if not len(outcomes) or Source.OUTCOME not in self.sources:
            return
        for split in sorted(self._weights.keys() & set(outcomes["split"].tolist())):
            rows = outcomes[outcomes["split"] == split]
            if self.by_key:
                rows = self._new_callers(split, rows)
            candidate = int(np.count_nonzero(rows["arm"] == 1))
            self.judge.guards.count(len(rows) - candidate, candidate, self._weights[split])

    def _new_callers(self, split: int, rows: Columns) -> Columns:
        seen = self._callers.setdefault(split, set())
        new = []
        for at, key in enumerate(rows["key"].tolist()):
            if len(seen) >= MAX_CALLERS:
                break
            if key not in seen:
                seen.add(key)
                new.append(at)
        return rows[new]


@dataclass(slots=True)
class Course:
    """Where a rollout stands and what happens next. `record` writes an event down and gives the state that it leads to.

    `owed` is an instant whose decision is not made or not written down yet: it comes first, before anything new is seen.
    """

    rollout: Rollout
    record: Callable[[Event], Rollout]
    judge: Judge | None = None
    settled: float = 0.0
    owed: float | None = None

    def pass_time(self, until: float) -> None:
        """Decide what was owed, and then what time alone decides up to this instant, each at its own."""
        if self.owed is not None:
            self.settle(self.owed)
        while (due := next_due(self.rollout, self.settled)) is not None and due <= until:
            self.settle(due)

    def settle(self, at: float, learned: Learned | None = None, unloadable: str | None = None) -> None:
        """Decide at this instant until nothing more happens. `record` may raise: the instant is then owed."""
        self.owed = at
        while (event := self._proposed(at, learned, unloadable)) is not None:
            self.rollout = self.record(event)
        self.owed = None
        self.settled = max(self.settled, at)

    def _proposed(self, at: float, learned: Learned | None, unloadable: str | None) -> Event | None:
        if self.rollout.finished:
            return None
        judge = self.judge if self.rollout.watched else None
        quick = Verdict(judge.result, "") if judge is not None else UNSEEN
        event = decide(self.rollout, quick, learned, at, unloadable=unloadable)
        if event is None or event.verdict is None or judge is None:
            return event
        # Words and numbers cost a hundred times the answer alone: they are made once something happens.
        return decide(self.rollout, judge.verdict(), learned, at, unloadable=unloadable)
