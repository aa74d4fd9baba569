"""The join of labels: what people say of a request meets what the versions answered, by request id, bounded and in memory.

A request counts once, when as many people have labelled it as the rules ask for; what is said later is counted and changes nothing.
Every label that came in is in exactly one of `LabelCounts` at any time.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass

import numpy as np

from deployctl.core.outcome import Columns, Flags
from deployctl.core.plan import LabelRules
from deployctl.records.answers import CAPACITY, Answers, Fate, Hashes, Places, State
from deployctl.records.rows import SEEN, Rows, text_hash, word_hash
from deployctl.wire.orders import LabelRow

MAX_JOINABLE = 1_000_000
"""At least so many of the newest requests can be labelled; the oldest go first."""

MAX_EARLY_LABELS = 100_000
"""Labels that came before their request was known; the oldest go first, and stay counted as unknown."""

PIECE = 1 << 16
"""Requests that are taken in at once."""


@dataclass(slots=True)
class LabelCounts:
    """What became of the labels that came in; each one is counted once."""

    joined: int = 0
    """They counted: as evidence, or as one of the votes that made it."""
    unknown: int = 0
    """No request of that id is known, not yet or not any more."""
    ambiguous: int = 0
    """Two requests had that id."""
    repeated: int = 0
    """The same person (or nobody named) had said the same of it already."""
    unknown_class: int = 0
    unanswered: int = 0
    """There is no answer that could be right or wrong."""
    assisted: int = 0
    """The person saw the answer first."""
    waiting: int = 0
    """For more votes, or for the copies of their request."""
    disputed: int = 0
    """As many people said one thing as another."""
    corrected: int = 0
    """The same annotator says something else now. Before a request counts, it is the older label that is counted here."""
    late_vote: int = 0
    """The request had counted already."""
    not_expert: int = 0
    """The rules ask for one annotator, and this was another."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Answers that people have judged, SEEN rows with `wrong`, in the order in which that came about, and what the labels say.

    `labelled` are those of requests without copies; `null` says there whether the answer was wrong. `baseline` and `candidate` are
    those of requests with copies, a row for each candidate.
    """

    labelled: Columns
    texts: list[str]
    baseline: Columns
    candidate: Columns
    pair_texts: list[str]


_NO_ROWS = np.empty(0, SEEN)
NOTHING_JOINED = Joined(_NO_ROWS, [], _NO_ROWS, _NO_ROWS, [])


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What the votes on a request say: a label, or shares of labels by hash."""

    text: str
    shares: dict[int, float]

    def wrong(self, said: int) -> float:
        """How wrong an answer is that said this."""
        return 1.0 - self.shares.get(said, 0.0) if said else 1.0


_Judged = tuple[int, Answers, int, int, _Verdict]
"""When its label came, where the rows of the request are (the first and how many), and what was said of it."""


class LabelJoin:
    """Labels in, judged answers out. `human`: the baseline is people, so an answer of arm 0 is never wrong."""

    def __init__(
        self,
        classes: frozenset[str] = frozenset(),
        rules: LabelRules | None = None,
        *,
        human: bool = False,
    ) -> None:
        self.counts = LabelCounts()
        self.requests = 0
        """Requests whose labels counted."""
        self._classes = classes
        self._rules = rules or LabelRules()
        self._expert = word_hash(self._rules.expert) if self._rules.expert is not None else None
        self._human = human
        self._answers = [Answers()]
        self._open: dict[int, tuple[Answers, int]] = {}
        self._decided: dict[tuple[Answers, int], tuple[int, _Verdict]] = {}
        self._early: OrderedDict[int, list[tuple[int, LabelRow]]] = OrderedDict()
        self._early_count = 0
        self._came = 0
        self._plain: list[_Judged] = []
        self._paired: list[_Judged] = []
        self._one_vote = self._rules.votes == 1 and self._expert is None

    def remember(self, rows: Rows, waits: Flags | None = None) -> None:
        """Requests that a label may come for, SEEN rows. Those in `waits` have copies, and wait for `complete`."""
        if not rows.ids:
            return
        ids = np.fromiter(map(text_hash, rows.ids), np.uint64, len(rows.ids))
        if waits is None:
            waits = np.zeros(len(ids), bool)
        for at in range(0, len(ids), PIECE):
            piece = slice(at, at + PIECE)
            self._remember(ids[piece], rows.columns[piece], waits[piece])

    def complete(self, requests: Columns, rows: Columns, counts: Places) -> None:
        """Requests whose copies are all there. `rows` has `counts[i]` rows for the i-th: the baseline's, then each candidate's; 0
        where nothing can be compared.
        """
        nowhere = (None, -1)
        found = [self._open.pop(number, nowhere) for number in requests["number"].tolist()]
        settled: list[tuple[int, _Verdict, Answers, int]] = []
        for answers in self._answers:
            here = [where is answers for where, _ in found]
            if not any(here):
                continue
            places = [place for where, place in found if where is answers]
            if all(here):
                answers.pair(np.array(places), counts, rows)
            else:
                answers.pair(np.array(places), counts[here], rows[np.repeat(here, counts)])
            for place in [place for place in places if answers.fate[place] != Fate.NONE]:
                if answers.state[place] == State.UNANSWERED:
                    self._decided.pop((answers, place), None)
                    self._move(answers, place, "unanswered")
                elif answers.fate[place] == Fate.DECIDED:
                    settled.append((*self._decided.pop((answers, place)), answers, place))
        for came, verdict, answers, place in sorted(settled, key=lambda one: one[0]):
            self._count(answers, place, verdict, came)

    def join(self, labels: list[LabelRow]) -> None:
        """Labels as they came in."""
        if not labels:
            return
        ids = np.fromiter((text_hash(label.id) for label in labels), np.uint64, len(labels))
        for label, identity, (answers, place) in zip(labels, ids.tolist(), self._find(ids), strict=True):
            self._came += 1
            if label.shown:
                self.counts.assisted += 1
            elif self._classes and label.label not in self._classes:
                self.counts.unknown_class += 1
            elif answers is None:
                self._keep_early(identity, label)
            else:
                self._say(answers, place, label, self._came)

    def joined(self) -> Joined:
        """What has been judged since this was asked last."""
        if not self._plain and not self._paired:
            return NOTHING_JOINED
        plain, paired = self._plain, sorted(self._paired, key=lambda one: one[0])
        self._plain, self._paired = [], []
        labelled, _ = _gathered(plain)
        labelled["null"] = labelled["wrong"] > 0.5
        rows, counts = _gathered(paired)
        firsts = np.cumsum(counts) - counts
        baseline, candidates = rows[firsts], np.ones(len(rows), bool)
        candidates[firsts] = False
        if self._human:
            baseline["wrong"][baseline["said"] == 0] = 0.0
        return Joined(
            labelled,
            [verdict.text for *_, verdict in plain],
            np.repeat(baseline, counts - 1),
            rows[candidates],
            [verdict.text for *_, count, verdict in paired for _ in range(count - 1)],
        )

    # ── requests ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _remember(self, ids: Hashes, columns: Columns, waits: Flags) -> None:
        if self._answers[-1].count + len(ids) > CAPACITY:
            self._make_room()
        first = np.ones(len(ids), bool)
        if len(set(ids.tolist())) < len(ids):
            first[:] = False
            first[np.unique(ids, return_index=True)[1]] = True
        new = first.copy()
        for answers in self._answers:
            places = answers.find(ids)
            new &= places < 0
            for place in places[places >= 0].tolist():
                self._confuse(answers, place)
        answers = self._answers[-1]
        status, answered = columns["status"], (columns["said"] != 0) | (columns["null"] != 0)
        states = np.where((status < 400) & answered, State.PLAIN, State.UNANSWERED).astype(np.uint8)
        states[waits] = State.OPEN
        places = answers.add(ids[new], states[new], columns[new & (states == State.PLAIN)])
        opened = waits[new]
        for number, place in zip(
            columns["number"][new][opened].tolist(), places[opened].tolist(), strict=True
        ):
            self._open[number] = (answers, place)
        for place in answers.find(ids[~first]).tolist() if not first.all() else ():
            self._confuse(answers, place)
        if self._early:
            self._take_early(self._early.keys() & set(ids.tolist()))

    def _make_room(self) -> None:
        self._answers.append(Answers())
        if sum(answers.count for answers in self._answers[1:-1]) >= MAX_JOINABLE:
            oldest = self._answers.pop(0)
            for place in oldest.in_suspense():
                self._decided.pop((oldest, place), None)
                self._move(oldest, place, "unknown")

    def _find(self, ids: Hashes) -> list[tuple[Answers | None, int]]:
        found: list[tuple[Answers | None, int]] = [(None, -1)] * len(ids)
        for answers in self._answers:
            places: Places = answers.find(ids)
            for at in np.flatnonzero(places >= 0).tolist():
                found[at] = (answers, int(places[at]))
        return found

    def _confuse(self, answers: Answers, place: int) -> None:
        """A second request has this id: what is said of it from now on is of nobody knows which."""
        answers.state[place] = State.AMBIGUOUS
        self._decided.pop((answers, place), None)
        self._move(answers, place, "ambiguous")

    # ── labels ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _keep_early(self, identity: int, label: LabelRow) -> None:
        self.counts.unknown += 1
        self._early.setdefault(identity, []).append((self._came, label))
        self._early_count += 1
        while self._early_count > MAX_EARLY_LABELS:
            self._early_count -= len(self._early.popitem(last=False)[1])

    def _take_early(self, known: set[int]) -> None:
        """The labels that were here before their request, in the order in which they came."""
        of_request = {identity: self._early.pop(identity) for identity in known}
        coming = sorted(
            ((came, identity, label) for identity, rows in of_request.items() for came, label in rows),
            key=lambda one: one[0],
        )
        self._early_count -= len(coming)
        self.counts.unknown -= len(coming)
        found = self._find(np.array([identity for _, identity, _ in coming], np.uint64))
        for (came, _, label), (answers, place) in zip(coming, found, strict=True):
            assert answers is not None
            self._say(answers, place, label, came)

    def _say(self, answers: Answers, place: int, label: LabelRow, came: int) -> None:
        """One label of a request that is known."""
        annotator = word_hash(label.annotator) if label.annotator else 0
        said = word_hash(label.label)
        if self._one_vote and answers.untouched(place):
            self._first_of_one(answers, place, label, came, said, annotator)
            return
        count = self._unusable(answers, place, annotator) or self._second(answers, place, said, annotator)
        if count is not None:
            setattr(self.counts, count, getattr(self.counts, count) + 1)
            if count != "corrected" or answers.fate[place] >= Fate.DECIDED:
                return
        else:
            answers.vote(place, said, annotator)
            answers.live_votes[place] += 1
            if answers.fate[place] == Fate.DISPUTED:
                self.counts.disputed += 1
            else:
                answers.fate[place] = Fate.WAITING
                self.counts.waiting += 1
        answers.texts[said] = label.label
        self._adjudicate(answers, place, came)

    def _first_of_one(
        self, answers: Answers, place: int, label: LabelRow, came: int, said: int, annotator: int
    ) -> None:
        """The first vote where one is enough decides, whatever the rule: most labels take this short way, with the same end."""
        answers.vote(place, said, annotator)
        answers.live_votes[place] = 1
        answers.texts[said] = label.label
        verdict = _Verdict(label.label, {said: 1.0})
        if answers.state[place] == State.OPEN:
            self.counts.waiting += 1
            answers.fate[place] = Fate.DECIDED
            self._decided[answers, place] = came, verdict
        else:
            self.counts.joined += 1
            self.requests += 1
            answers.fate[place] = Fate.COUNTED
            self._emit(answers, place, verdict, came)

    def _unusable(self, answers: Answers, place: int, annotator: int) -> str | None:
        """Which count a label that can never be used belongs to, None for one that can."""
        state = answers.state[place]
        if state == State.AMBIGUOUS:
            return "ambiguous"
        if state == State.UNANSWERED:
            return "unanswered"
        return "not_expert" if self._expert is not None and annotator != self._expert else None

    def _second(self, answers: Answers, place: int, said: int, annotator: int) -> str | None:
        """Which count a label belongs to that is no vote of its own, None for one that is."""
        counted = answers.fate[place] >= Fate.DECIDED
        for vote in answers.votes(place):
            if annotator and answers.annotator(vote) == annotator:
                if answers.said(vote) == said:
                    return "repeated"
                answers.change(vote, said)
                return "corrected"
            if counted and not annotator and answers.said(vote) == said:
                return "repeated"
        if counted:
            answers.vote(place, said, annotator)
            return "late_vote"
        return None

    def _adjudicate(self, answers: Answers, place: int, came: int) -> None:
        """Decide what is true of the request, if enough people have labelled it and do not contradict each other."""
        votes = answers.votes(place)
        if len(votes) < (1 if self._expert is not None else self._rules.votes):
            return
        verdict = self._verdict(answers, Counter(map(answers.said, votes)))
        if verdict is None:
            self._move(answers, place, "disputed")
            answers.fate[place] = Fate.DISPUTED
        elif answers.state[place] == State.OPEN:
            self._move(answers, place, "waiting")
            answers.fate[place] = Fate.DECIDED
            self._decided[answers, place] = came, verdict
        else:
            self._count(answers, place, verdict, came)

    def _count(self, answers: Answers, place: int, verdict: _Verdict, came: int) -> None:
        self._move(answers, place, "joined")
        answers.fate[place] = Fate.COUNTED
        self.requests += 1
        self._emit(answers, place, verdict, came)

    def _verdict(self, answers: Answers, tally: Counter[int]) -> _Verdict | None:
        """What the votes say; None for a tie."""
        (first, most), *others = tally.most_common()
        match self._rules.adjudicate:
            case "any":
                shares = dict.fromkeys(tally, 1.0)
            case "soft":
                shares = {said: count / tally.total() for said, count in tally.items()}
            case _:
                if others and others[0][1] == most:
                    return None
                shares = {first: 1.0}
        return _Verdict(answers.texts[first], shares)

    def _emit(self, answers: Answers, place: int, verdict: _Verdict, came: int) -> None:
        judged = self._plain if answers.state[place] == State.PLAIN else self._paired
        judged.append((came, answers, answers.first[place], answers.row_count[place], verdict))

    def _move(self, answers: Answers, place: int, count: str) -> None:
        """The votes of a request that are in suspense are counted as this from now on."""
        match answers.fate[place]:
            case Fate.WAITING | Fate.DECIDED:
                self.counts.waiting -= answers.live_votes[place]
            case Fate.DISPUTED:
                self.counts.disputed -= answers.live_votes[place]
            case _:
                return
        setattr(self.counts, count, getattr(self.counts, count) + answers.live_votes[place])
        answers.fate[place] = Fate.NONE


def _gathered(judged: list[_Judged]) -> tuple[Columns, Places]:
    """The rows of these requests in their order with `wrong` filled in, and how many rows each of them has."""
    if not judged:
        return _NO_ROWS, np.empty(0, np.int64)
    firsts, counts = (np.array([one[at] for one in judged], np.int64) for at in (2, 3))
    before = np.cumsum(counts) - counts
    places = np.arange(int(counts.sum())) + np.repeat(firsts - before, counts)
    rows = np.empty(len(places), SEEN)
    for answers in dict.fromkeys(one[1] for one in judged):
        here = np.repeat([one[1] is answers for one in judged], counts)
        rows[here] = answers.rows[places[here]]
    verdicts = (verdict for *_, count, verdict in judged for _ in range(count))
    rows["wrong"] = [
        verdict.wrong(said) for verdict, said in zip(verdicts, rows["said"].tolist(), strict=True)
    ]
    return rows, counts
