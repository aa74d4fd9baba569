"""What was seen: of a rollout, folded from its records, and of the live version, before a rollout begins.

An observation depends on its entries and their order alone, so folding the records again gives the same evidence.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from deployctl.core.course import Weighing
from deployctl.core.learning import MIN_KNOWN_ANSWERS, learn, needs_known_answers
from deployctl.core.outcome import OUTCOME, Columns, Source, scored
from deployctl.core.pairs import Pairs
from deployctl.core.plan import HUMAN, Plan
from deployctl.core.rollout import Learned
from deployctl.core.verdict import Arm
from deployctl.records import Arrivals, Began, Entry, Intake, LabelJoin, LeftOut, Rows
from deployctl.records import Pairs as ArrivedPairs

MAX_KNOWN_ANSWERS = 5_000
"""Baseline answers that thresholds and rates are learnt from: the newest ones."""


class Observation:
    """The evidence of one rollout: what arrived, weighed."""

    def __init__(self, plan: Plan, learned: Learned) -> None:
        self._weighing = Weighing(plan, learned)
        self._arrivals = Arrivals(
            plan.classes, with_labels=self.uses_labels, rules=plan.labels, human=plan.baseline == HUMAN
        )
        self.says = self._weighing.says
        """Whoever is asked for the verdict."""
        self.at = 0.0

    @property
    def uses_labels(self) -> bool:
        """Whether any metric waits for labels."""
        return Source.LABEL in self._weighing.sources

    @property
    def reads_texts(self) -> bool:
        """Whether ids and predictions are needed: where labels are joined, and where answers are compared with each other."""
        return self.uses_labels or any(step.mirror > 0 for step in self._weighing.plan.steps)

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
        outcomes = arrived.outcomes
        labelled = np.concatenate([arrived.labelled, served_and_copied(arrived.labelled_pairs)])
        self._weighing.count(outcomes)
        blocks = self._weighing.cut(Source.OUTCOME, outcomes, outcomes["t"].astype(float), entry.at)
        blocks += self._weighing.cut(Source.LABEL, labelled, np.full(len(labelled), entry.at), entry.at)
        for block in blocks:
            self._weighing.judge.add(block)
        came = compared(arrived.pairs), compared(arrived.labelled_pairs)
        pair_blocks = self._weighing.pair(came[0], came[0].t, entry.at, labelled=False)
        pair_blocks += self._weighing.pair(came[1], np.full(len(came[1]), entry.at), entry.at, labelled=True)
        for pair_block in pair_blocks:
            self._weighing.add_pairs(pair_block)


def served_and_copied(pairs: ArrivedPairs) -> Columns:
    """The answers that callers were given, of labelled requests with copies: for the arms they are as good as any other."""
    first = pairs.arm == 1
    rows: Columns = np.where(pairs.candidate["mirrored"] == 0, pairs.candidate, pairs.baseline)[first]
    rows["null"] = rows["wrong"] > 0.5
    return rows


def compared(pairs: ArrivedPairs) -> Pairs:
    """Pairs as core compares them."""
    wrong = np.stack([pairs.baseline["wrong"], pairs.candidate["wrong"]], axis=1).astype(float)
    return Pairs(pairs.baseline, pairs.candidate, pairs.arm, pairs.differs, wrong, pairs.candidate["t"])


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
    def labels(self) -> dict[str, int]:
        """What became of the labels that came in before there was a rollout to use them."""
        counts = self._join.counts
        return {name: getattr(counts, name) for name in counts.__slots__}

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
        self._join.remember(rows.seen())
        if labels is not None and labels.batch.labels:
            # The router's clock in the batch, so that the same entries teach the same.
            if self._first_label is None:
                self._first_label = labels.batch.watermark
            self._last_label = labels.batch.watermark
            self._join.join(labels.batch.labels)
        labelled = self._join.joined().labelled
        self.joined += len(labelled)
        self.wrong += int(labelled["null"].sum())

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
