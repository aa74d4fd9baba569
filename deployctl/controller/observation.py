"""What was seen: of a rollout, folded from its records, and of the live version, before a rollout begins.

An observation depends on its entries and their order alone, so folding the records again gives the same evidence.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from deployctl.core.analysis import MIN_KNOWN_ANSWERS, Judge, learn, needs_known_answers
from deployctl.core.metrics import METRICS
from deployctl.core.outcome import CLIENT_LEFT, OUTCOME, Admission, Blocks, Columns, Source, scored
from deployctl.core.plan import Plan
from deployctl.core.rollout import Learned
from deployctl.core.verdict import Arm
from deployctl.records import Began, Entry, Gone, Intake, LabelJoin, Rows, rows_of

MAX_KNOWN_ANSWERS = 5_000
"""Baseline answers that thresholds and rates are learnt from: the newest ones."""


@dataclass(slots=True)
class LeftOut:
    """Requests that are no evidence, or only half of it, since the rollout began: counted, never silently lost."""

    explicit: int = 0
    client_left: int = 0


class Observation:
    """The evidence of one rollout: admission by start, blocks, label join, judge."""

    def __init__(self, plan: Plan, learned: Learned) -> None:
        self.judge = Judge(plan, learned)
        self._sources = {METRICS[rule.name].source for rule in plan.metrics}
        self._admission = Admission()
        self._join = LabelJoin(frozenset(plan.classes))
        by_key = plan.unit == "key"
        self._blocks = {
            source: Blocks(source, self._components(source), by_key)
            for source in (Source.OUTCOME, Source.LABEL)
        }
        self._first_split: int | None = None
        self.left_out = LeftOut()
        self.at = 0.0

    @property
    def uses_labels(self) -> bool:
        """Whether any metric waits for labels."""
        return Source.LABEL in self._sources

    @property
    def labels(self) -> dict[str, int]:
        """What became of the labels that came in since the rollout began."""
        counts = self._join.counts
        return {name: getattr(counts, name) for name in counts.__slots__}

    def fold(self, entry: Entry) -> None:
        """Take in one entry of the records; the same entries in the same order give the same evidence."""
        self.at = entry.at
        match entry:
            case Began(step=step, split=split, at=at):
                if self._first_split is None:
                    self._first_split = split
                self.judge.begin(step, split, at)
            case Intake(router=router, at=at, batch=batch):
                self._take_in(router, rows_of(batch), batch.watermark, at)
                if self.uses_labels and batch.labels:
                    self._judge_labels(self._join.join(batch.labels), at)
            case Gone(router=router, at=at):
                self._judge_outcomes(self._admission.forget(router), at)

    def _components(self, source: Source) -> int:
        return sum(1 for c in self.judge.components if c.metric.source is source)

    def _take_in(self, router: str, rows: Rows, watermark: float, at: float) -> None:
        of_rollout = rows.columns["split"] >= (self._first_split or 0)
        self.left_out.explicit += int((of_rollout & rows.explicit).sum())
        self.left_out.client_left += int((of_rollout & (rows.columns["status"] == CLIENT_LEFT)).sum())
        evidence = rows.take(of_rollout & ~rows.explicit)
        self._judge_outcomes(self._admission.add(router, scored(evidence.columns), watermark), at)
        if self.uses_labels:
            self._judge_labels(self._join.remember(evidence), at)

    def _judge_outcomes(self, admitted: Columns, at: float) -> None:
        if not len(admitted) or Source.OUTCOME not in self._sources:
            return
        known, bad = self.judge.read_outcomes(admitted)
        start = admitted["start"].astype(float)
        for block in self._blocks[Source.OUTCOME].add(admitted, start, known, bad, at):
            self.judge.add(block)

    def _judge_labels(self, joined: Columns, at: float) -> None:
        if not len(joined):
            return
        known, bad = self.judge.read_labels(joined)
        for block in self._blocks[Source.LABEL].add(joined, np.full(len(joined), at), known, bad, at):
            self.judge.add(block)


@dataclass(slots=True)
class Baseline:
    """The live version as it was before a rollout: its newest answers, and its labels. Never evidence."""

    classes: frozenset[str] = frozenset()
    joined: int = 0
    wrong: int = 0
    _answers: deque[Columns] = field(default_factory=deque)
    _count: int = 0
    _join: LabelJoin = field(default_factory=LabelJoin)
    _first_label: float | None = None
    _last_label: float = 0.0

    @property
    def known(self) -> int:
        """How many of its answers are known."""
        return self._count

    def take_in(self, rows: Rows, labels: Intake | None = None) -> None:
        """Answers of the live version; `labels` is the intake whose labels may belong to them."""
        answered = scored(rows.columns)
        answered = answered[answered["status"] < 400]
        if len(answered):
            self._answers.append(answered)
            self._count += len(answered)
        while self._count - len(self._answers[0]) >= MAX_KNOWN_ANSWERS if self._answers else False:
            self._count -= len(self._answers.popleft())
        self._count_labels(self._join.remember(rows))
        if labels is not None and labels.batch.labels:
            # The router's clock in the batch, so that the same entries teach the same.
            if self._first_label is None:
                self._first_label = labels.batch.watermark
            self._last_label = labels.batch.watermark
            self._count_labels(self._join.join(labels.batch.labels))

    def learn(self, plan: Plan) -> Learned | None:
        """What can be frozen of it for this plan, or None while too few of its answers are known."""
        if needs_known_answers(plan) and self._count < MIN_KNOWN_ANSWERS:
            return None
        answers = np.concatenate(list(self._answers)) if self._answers else np.empty(0, OUTCOME)
        span = float(np.ptp(answers["start"])) if len(answers) > 1 else 0.0
        labelled_for = self._last_label - self._first_label if self._first_label is not None else 0.0
        return learn(
            plan,
            answers,
            Arm(self.joined, self.wrong),
            len(answers) / span if span > 0 else 0.0,
            self.joined / labelled_for if labelled_for > 0 else 0.0,
        )

    def _count_labels(self, joined: Columns) -> None:
        self.joined += len(joined)
        self.wrong += int(joined["null"].sum())
