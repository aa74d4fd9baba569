"""What was seen: of a rollout, folded from its records, and of the live version, before a rollout begins.

An observation depends on its entries and their order alone, so folding the records again gives the same evidence.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from deployctl.core.analysis import MIN_KNOWN_ANSWERS, learn, needs_known_answers
from deployctl.core.course import Weighing
from deployctl.core.outcome import OUTCOME, Columns, Source, scored
from deployctl.core.plan import Plan
from deployctl.core.rollout import Learned
from deployctl.core.verdict import Arm
from deployctl.records import Arrivals, Began, Entry, Intake, LabelJoin, LeftOut, Rows

MAX_KNOWN_ANSWERS = 5_000
"""Baseline answers that thresholds and rates are learnt from: the newest ones."""


class Observation:
    """The evidence of one rollout: what arrived, weighed."""

    def __init__(self, plan: Plan, learned: Learned) -> None:
        self._weighing = Weighing(plan, learned)
        self._arrivals = Arrivals(plan.classes, with_labels=self.uses_labels)
        self.says = self._weighing.says
        """Whoever is asked for the verdict."""
        self.at = 0.0

    @property
    def uses_labels(self) -> bool:
        """Whether any metric waits for labels."""
        return Source.LABEL in self._weighing.sources

    @property
    def labels(self) -> dict[str, int]:
        """What became of the labels that came in since the rollout began."""
        counts = self._arrivals.join.counts
        return {name: getattr(counts, name) for name in counts.__slots__}

    @property
    def left_out(self) -> LeftOut:
        """What was no evidence, or only half of it."""
        return self._arrivals.left_out

    def fold(self, entry: Entry) -> None:
        """Take in one entry of the records; the same entries in the same order give the same evidence."""
        self.at = entry.at
        if isinstance(entry, Began):
            self._weighing.begin(entry.step, entry.split, entry.at)
        arrived = self._arrivals.fold(entry)
        outcomes, labelled = arrived.outcomes, arrived.labelled
        self._weighing.count(outcomes)
        blocks = self._weighing.cut(Source.OUTCOME, outcomes, outcomes["t"].astype(float), entry.at)
        blocks += self._weighing.cut(Source.LABEL, labelled, np.full(len(labelled), entry.at), entry.at)
        for block in blocks:
            self._weighing.judge.add(block)
        for pair_block in (
            *self._weighing.pair(arrived.pairs, arrived.pairs.t, entry.at, labelled=False),
            *self._weighing.pair(
                arrived.labelled_pairs,
                np.full(len(arrived.labelled_pairs), entry.at),
                entry.at,
                labelled=True,
            ),
        ):
            self._weighing.add_pairs(pair_block)


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
