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
from deployctl.core.guards import Guards
from deployctl.core.metrics import METRICS
from deployctl.core.outcome import Block, Blocks, Columns, Source
from deployctl.core.pairs import PairBlock, PairBlocks, Pairs, refusals_as_errors, scored
from deployctl.core.plan import Plan
from deployctl.core.rollout import Event, Learned, Rollout, Untenable, decide, next_due
from deployctl.core.verdict import CandidateVerdict, Result, Verdict

Instants = NDArray[np.float64]

MAX_CALLERS = 200_000
"""Sticky callers that the route check tells apart in one step; it has seen enough then."""

UNSEEN = Verdict(Result.INCONCLUSIVE, "the candidate has not seen a request yet")


class Judges:
    """Several candidates of a shadow: each has a judge of its own, and whoever asks is told of them all."""

    def __init__(self, plan: Plan, learned: Learned) -> None:
        self.plan = plan
        self.guards = Guards(plan)
        self._judges = {version.version: Judge(plan, learned) for version in plan.candidates}

    @property
    def history(self) -> list[tuple[float, float, float]]:
        """Of the first candidate, for the chart of `explain`."""
        return next(iter(self._judges.values())).history

    def begin(self, step: int, split: int, at: float) -> None:
        """A step begins for all of them."""
        for judge in self._judges.values():
            judge.begin(step, split, at)

    def add_pairs(self, block: PairBlock) -> None:
        """One block of pairs of one candidate."""
        arm = int(block.pairs.arm[0])
        self._judges[self.plan.candidates[arm - 1].version].add_pairs(block)

    def quick(self) -> Verdict:
        """What is known of each, without words."""
        return self._of_each(lambda judge: judge.quick())

    def verdict(self) -> Verdict:
        """What is known of each, in words and numbers."""
        return self._of_each(lambda judge: judge.verdict())

    def _of_each(self, say: Callable[[Judge], Verdict]) -> Verdict:
        said = {version: say(judge) for version, judge in self._judges.items()}
        each = tuple(
            CandidateVerdict(version, one.result, one.reason, one.metrics, one.decided_by)
            for version, one in said.items()
        )
        words = "; ".join(f"version {one.version}: {one.reason}" for one in each)
        return Verdict(Result.INCONCLUSIVE, words, each[0].metrics, candidates=each)


class Weighing:
    """Units become blocks, and blocks evidence: the judge of one rollout, and what no block holds yet."""

    def __init__(self, plan: Plan, learned: Learned) -> None:
        self.plan = plan
        self.judges = Judges(plan, learned) if plan.others else None
        self.judge = Judge(plan, learned)
        self.sources = {METRICS[rule.name].source for rule in plan.metrics}
        self.by_key = plan.unit == "key"
        self._pairs = {
            (arm, labelled): PairBlocks(labelled=labelled)
            for arm in range(1, len(plan.candidates) + 1)
            for labelled in (False, True)
        }
        self.blocks = {
            source: Blocks(source, self.judge.width(source), self.by_key)
            for source in self.sources - {Source.PAIR}
        }
        self._compares_arms = any(step.compares_arms for step in plan.steps)
        self._nobody: list[int] = []
        self._weights: dict[int, float] = {}
        self._callers: dict[int, set[int]] = {}

    def begin(self, step: int, split: int, at: float) -> None:
        """A step begins under this split number."""
        self._weights[split] = self.plan.steps[step].weight
        if not self.plan.steps[step].compares_arms:
            self._nobody.append(split)
        self.judge.begin(step, split, at)
        if self.judges is not None:
            self.judges.begin(step, split, at)

    @property
    def says(self) -> Judge | Judges:
        """Whoever is asked for the verdict."""
        return self.judge if self.judges is None else self.judges

    def pair(self, pairs: Pairs, time: Instants, at: float | Instants, *, labelled: bool) -> list[PairBlock]:
        """The blocks that these pairs complete, of one candidate after the other; `time` (seconds) orders them."""
        instants = np.broadcast_to(np.asarray(at, dtype=float), len(pairs))
        blocks: list[PairBlock] = []
        kept = scored(pairs, people_alone=self.plan.people_alone)
        for arm in sorted(set(pairs.arm.tolist())):
            which = np.flatnonzero(kept & (pairs.arm == arm))
            if len(which) and arm <= len(self.plan.candidates):
                own = refusals_as_errors(pairs.take(which))
                blocks += self._pairs[arm, labelled].add(own, time[which], instants[which])
        return blocks

    def open(self) -> tuple[dict[Source, Blocks], dict[tuple[int, bool], PairBlocks]]:
        """What no block holds yet, to go back to with `reopen`: `replay` may have cut too far."""
        return (
            {source: blocks.copy() for source, blocks in self.blocks.items()},
            {which: blocks.copy() for which, blocks in self._pairs.items()},
        )

    def reopen(self, opened: tuple[dict[Source, Blocks], dict[tuple[int, bool], PairBlocks]]) -> None:
        """Go back to what was open then."""
        self.blocks, self._pairs = opened

    def add_pairs(self, block: PairBlock) -> None:
        """Judge one block of pairs."""
        self.says.add_pairs(block)

    def cut(self, source: Source, units: Columns, time: Instants, at: float | Instants) -> list[Block]:
        """The blocks that these units complete, in order; nothing is judged yet. `time` (seconds) orders the units."""
        if self._nobody:  # while one version answers everybody there are no two arms
            kept = ~np.isin(units["split"], self._nobody)
            units, time = units[kept], time[kept]
            at = np.broadcast_to(np.asarray(at, dtype=float), len(kept))[kept]
        if not len(units) or source not in self.blocks or not self._compares_arms:
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
    judge: Judge | Judges | None = None
    settled: float = 0.0
    owed: float | None = None

    def pass_time(self, until: float) -> None:
        """Decide what was owed, and then what time alone decides up to this instant, each at its own."""
        if self.owed is not None:
            self.settle(self.owed)
        while (due := next_due(self.rollout, self.settled)) is not None and due <= until:
            self.settle(due)

    def settle(self, at: float, learned: Learned | None = None, untenable: Untenable | None = None) -> None:
        """Decide at this instant until nothing more happens. `record` may raise: the instant is then owed."""
        self.owed = at
        while (event := self._proposed(at, learned, untenable)) is not None:
            self.rollout = self.record(event)
        self.owed = None
        self.settled = max(self.settled, at)

    def _proposed(self, at: float, learned: Learned | None, untenable: Untenable | None) -> Event | None:
        if self.rollout.finished:
            return None
        judge = self.judge if self.rollout.watched else None
        quick = judge.quick() if judge is not None else UNSEEN
        event = decide(self.rollout, quick, learned, at, untenable=untenable)
        if event is None or event.verdict is None or judge is None:
            return event
        # Words and numbers cost a hundred times the answer alone: they are made once something happens.
        return decide(self.rollout, judge.verdict(), learned, at, untenable=untenable)
