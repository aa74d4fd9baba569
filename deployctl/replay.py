"""A whole rollout against recorded outcomes, on a virtual clock: what would this manifest have done?

The one rule: the policy sees what its own routing would have served, and not before it could have been seen. Everything that
decides is `core`, run as the live controller runs it (`core.course`). A piece of the log is routed as if the weight stayed as
it is; where an event changes the split, what began later is taken back and routed again, so all the rest can be vectorised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployctl.core.assignment import position
from deployctl.core.course import Course, Weighing
from deployctl.core.learning import MIN_KNOWN_ANSWERS, default_margin, learn, needs_known_answers
from deployctl.core.metrics import METRICS, comparing
from deployctl.core.outcome import CLIENT_LEFT, OUTCOME, Block, Columns, Source
from deployctl.core.pairs import PairBlock, Pairs
from deployctl.core.plan import HOOK, Phase, Plan
from deployctl.core.rollout import (
    Cause,
    Event,
    IllegalEventError,
    Kind,
    Learned,
    Rollout,
    Unloadable,
    Untenable,
    Unwatched,
    apply,
    next_due,
    split_for,
    start,
)
from deployctl.core.verdict import Arm, Result, Verdict
from deployctl.outcome_log import Answer, Header, Line, Order, Piece

HUMAN_ANSWER = Answer(ok=True, latency_ms=0.0)
"""Of the baseline where people decide."""

DEFAULT_SALT = "replay"
"""Who is routed where, in a log without a header."""

FORESEEN = 64
"""Blocks that are worked out together: enough to make numpy's calls cheap, few enough for the processor's cache."""

UNIT = np.dtype([*OUTCOME.descr, ("t", "<f8"), ("seen", "<f8"), ("line", "<i8"), ("nth", "<i8")])
"""A routed request as it will be seen: `seen` is when (of a label: when it came), `line` its place in the piece, -1 in an
earlier one, `nth` puts labels that came at once in order."""

PAIR = np.dtype(
    [
        *(("t", "<f8"), ("seen", "<f8"), ("line", "<i8"), ("nth", "<i8"), ("split", "<i8")),
        *(("arm", "i1"), ("differs", "i1"), ("status", "<u2", 2), ("latency", "<f4", 2), ("null", "i1", 2)),
        ("wrong", "<f4", 2),
    ]
)
"""A request that both versions answered, as it will be seen: as UNIT, with the baseline's answer first."""

Units = Columns


@dataclass(frozen=True, slots=True)
class End:
    """How the log ended for this policy. Requests are those of the rollout, until its end."""

    phase: Phase
    at: float
    candidate_requests: int
    candidate_bad: int
    left_out: int
    verdict: Result
    reason: str
    cause: Cause | None


class Replay:
    """One rollout of this plan over a log. `run` gives each event with the state that it led to; `end` is the rest."""

    def __init__(self, plan: Plan, header: Header | None = None, salt: str | None = None) -> None:
        self.plan = plan
        self.header = header or Header()
        self.salt = salt or self.header.salt or DEFAULT_SALT
        self.events: list[tuple[Event, Rollout]] = []
        self.candidate_requests = self.candidate_bad = self.left_out = 0
        self._weighing: Weighing | None = None
        self._agrees = bool(self.header.events)
        self._own_splits: set[int] = set()
        self._first_split = 0
        self._outside: list[Order | float] = []
        self._outcomes: Units = np.empty(0, UNIT)
        self._labels: Units = np.empty(0, UNIT)
        self._pairs: Units = np.empty(0, PAIR)
        self._labelled_pairs: Units = np.empty(0, PAIR)
        self._copied = np.zeros(0, dtype=bool)
        self._copies = any(step.mirror > 0 for step in plan.steps)
        self._counted = 0
        self._last_seen = self._last_pair = -math.inf
        self._last_line = -1
        self._known: list[Units] = []
        self._known_labels = [0, 0]
        self._taught = False
        self._zero = 0.0
        self._end_of_log = 0.0
        seq = self.header.events[0].seq if self.header.events else 1
        started = Event(seq, Kind.STARTED, 0.0, "replay", Cause.PERSON, plan=plan)
        rollout = start(self.header.rollout or self.salt, started)
        self.events.append((started, rollout))
        self._own_splits.add(seq)
        self._course = Course(rollout, self._record)
        self._outside = [*self.header.decisions]
        if self._from_header:
            assert self.header.learned_at is not None
            self._outside = sorted([*self._outside, self.header.learned_at], key=_at)

    @property
    def _from_header(self) -> bool:
        """Whether all that this plan needs was learnt before the log begins."""
        learned = self.header.learned
        return (
            learned is not None
            and self.header.learned_at is not None
            and all(rule.name in learned.rates for rule in comparing(self.plan.metrics))
            and (bool(learned.thresholds) or not any(METRICS[r.name].quantiles for r in self.plan.metrics))
        )

    def run(self, pieces: Iterator[Piece]) -> Iterator[tuple[Event, Rollout]]:
        """Every event as it would have happened, the first one with the first outcome."""
        told = 0
        for number, piece in enumerate(pieces):
            if not number and not self.header.events:
                self._zero = float(piece.t[0])
            self._take(piece)
            yield from self.events[told:]
            told = len(self.events)
        self._advance_to_the_end()
        yield from self.events[told:]

    @property
    def verdict(self) -> Verdict | None:
        """What the evidence says where the rollout stands at the end of the log; None before there is any."""
        last = self._course.rollout.ended_by or self.events[-1][0]
        return last.verdict or (self._weighing.says.verdict() if self._weighing else None)

    @property
    def end(self) -> End:
        """Where the rollout stands at the end of the log."""
        rollout = self._course.rollout
        last = rollout.ended_by or self.events[-1][0]
        verdict = self.verdict
        undecided = verdict.reason if verdict is not None else "the candidate has not seen a request yet"
        return End(
            phase=rollout.phase,
            at=self.clock(last.at if rollout.ended else self._end_of_log),
            candidate_requests=self.candidate_requests,
            candidate_bad=self.candidate_bad,
            left_out=self.left_out,
            verdict=verdict.result if verdict is not None else Result.INCONCLUSIVE,
            reason=last.reason if rollout.ended or rollout.waits_for else undecided,
            cause=last.cause if rollout.ended else None,
        )

    def clock(self, at: float) -> float:
        """Rollout time on the log's own clock, which may begin anywhere."""
        return at + self._zero

    # ── what happens ───────────────────────────────────────────────────────────────────────────────────────────────

    def _record(self, event: Event) -> Rollout:
        place = len(self.events)
        live = self.header.events[place] if self._agrees and place < len(self.header.events) else None
        if live is not None and (live.kind, live.at) == (event.kind.value, event.at):
            event = replace(event, seq=live.seq)
        else:
            self._agrees = self._agrees and live is None
            event = replace(event, seq=self.events[-1][0].seq + 1)
        rollout = apply(self._course.rollout, event)
        self.events.append((event, rollout))
        self._own_splits.add(rollout.split_number)
        if event.kind is Kind.LEARNED:
            assert rollout.learned is not None
            self._weighing = Weighing(self.plan, rollout.learned)
            self._course.judge = self._weighing.says
        if event.kind in {Kind.LEARNED, Kind.CLIMBED} and self._weighing is not None and rollout.step >= 0:
            self._first_split = self._first_split or rollout.split_number
            self._weighing.begin(rollout.step, rollout.split_number, rollout.at)
        return rollout

    def _pass(self, until: float, changed: int) -> bool:
        """What time alone decides, and what came from outside, up to this instant; False as soon as the split is another."""
        while True:
            due = next_due(self._course.rollout, self._course.settled)
            outside = _at(self._outside[0]) if self._outside else math.inf
            at = min(due if due is not None else math.inf, outside)
            if at > until:
                return True
            self._count(at, "left")
            if outside < (due if due is not None else math.inf):
                self._happen(outside)
            else:
                self._course.settle(at)
            if self._course.rollout.split_number != changed:
                return False

    def _happen(self, at: float) -> None:
        """Everything that came from outside at this instant, then what follows from it."""
        learned: Learned | None = None
        untenable: Untenable | None = None
        while self._outside and _at(self._outside[0]) == at:
            one = self._outside.pop(0)
            if isinstance(one, float):
                learned = self._learned()
            elif one.kind == "unloadable":
                untenable = Unloadable(one.version or self.plan.candidate.version, one.reason)
            elif one.kind == "unwatched":
                untenable = Unwatched(one.reason)
            else:
                self._obey(one)
        self._course.settle(at, learned, untenable)

    def _obey(self, order: Order) -> None:
        """A person's order or a webhook's answer, where it still means something."""
        kind, rollout = Kind(order.kind), self._course.rollout
        judged = self._weighing is not None and kind in {Kind.CLIMBED, Kind.PROMOTED, Kind.ROLLED_BACK}
        verdict = self._weighing.says.verdict() if self._weighing and judged and not rollout.ended else None
        cause = Cause.WEBHOOK if order.by.startswith(HOOK) else Cause.PERSON
        event = Event(0, kind, order.at, order.by, cause, order.reason, step=order.step, verdict=verdict)
        try:
            self._course.rollout = self._record(event)
        except IllegalEventError:
            self._agrees = False

    def _learned(self) -> Learned:
        given = self.header.learned
        if self._from_header and given is not None:
            margins = {
                rule.name: tuple(
                    rule.margin if rule.margin is not None else default_margin(METRICS[rule.name], rate)
                    for rate in given.rates[rule.name]
                )
                for rule in comparing(self.plan.metrics)
            }
            return replace(given, margins=margins)
        answers = np.concatenate(self._known)[:MIN_KNOWN_ANSWERS] if self._known else np.empty(0, UNIT)
        span = float(np.ptp(answers["t"])) if len(answers) > 1 else 0.0
        labels = Arm(*self._known_labels)
        per_second = (len(answers) / span, labels.n / span) if span > 0 else (0.0, 0.0)
        return learn(self.plan, answers, labels, *per_second)

    # ── routing ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _take(self, piece: Piece) -> None:
        """Route these requests and let time pass to the last of them, as often as an event changes who is served by whom."""
        if self.plan.people_alone:  # who answer everything, and are asked for nothing that could be wrong
            piece.there[0], piece.status[0] = True, 200
        t = piece.t - self._zero
        begin = 0
        served = np.full(len(t), -2, np.int8)
        self._copied = np.zeros(len(t), dtype=bool)
        horizon = max(float(t[-1]), self._boundary(piece))
        self._last_line = -1
        while True:
            served[begin:] = self._route(piece, t, begin)
            changed = self._course.rollout.split_number
            if self._advance(horizon):
                break
            begin = self._take_back(piece, t, self._course.rollout.at, changed)
            self._copied[begin:] = False
        self._tally(piece, served)
        for units in (self._outcomes, self._labels, self._pairs, self._labelled_pairs):
            units["line"] = -1
        self._end_of_log = max(self._end_of_log, horizon)

    def _boundary(self, piece: Piece) -> float:
        """When the last split of this piece began: the live rollout had it in force before these requests."""
        if not self._agrees:
            return -math.inf
        last = int(piece.split.max())
        return next((event.at for event in self.header.events if event.seq == last), -math.inf)

    def _route(self, piece: Piece, t: NDArray[np.float64], begin: int) -> NDArray[np.int8]:
        """Who is served by whom from this line on: 0 or 1, -1 where the recorded arm is the other, -2 after the end."""
        rollout = self._course.rollout
        count = len(t) - begin
        if not rollout.watched or not count:
            return np.full(count, -2, np.int8)
        split = np.full(count, rollout.split_number, np.int64)
        recorded = piece.split[begin:]
        theirs = np.isin(recorded, list(self._own_splits)) if self._agrees else np.zeros(count, bool)
        split[theirs] = recorded[theirs]
        if theirs.all():
            arm = piece.there[1, begin:].astype(np.int8)
        else:
            weight = split_for(rollout).weight
            drawn = piece.positions(self.salt)[begin:] * 100 < weight
            arm = np.where(theirs, piece.there[1, begin:], drawn | (weight >= 100)).astype(np.int8)
        lines = np.arange(begin, len(t))
        there = piece.there[arm, lines]
        self._queue(piece, t, lines[there], arm[there], split[there])
        if self._copies:
            self._queue_pairs(piece, t, lines[there], split[there], theirs[there])
        return np.where(there, arm, np.int8(-1))

    def _queue(
        self,
        piece: Piece,
        t: NDArray[np.float64],
        lines: NDArray[np.intp],
        arm: NDArray[np.int8],
        split: NDArray[np.int64],
    ) -> None:
        units = np.zeros(len(lines), UNIT)
        units["key"], units["arm"], units["split"] = piece.keys[lines], arm, split
        units["t"], units["start"], units["line"] = t[lines], t[lines], lines
        for name, columns in (("latency", piece.latency), ("status", piece.status), ("null", piece.null)):
            units[name] = columns[arm, lines]
        arrival = units["t"] + units["latency"] / 1000.0
        seen = piece.seen[lines] - self._zero
        arrival = np.where(np.isnan(seen), arrival, seen)
        if len(units):
            units["seen"] = np.maximum(np.maximum.accumulate(arrival), self._last_seen)
            self._last_seen = float(units["seen"][-1])
        self._queue_labels(piece, units, arrival)
        status = units["status"]
        units = units[(status < 400) | (status >= CLIENT_LEFT)]
        self._outcomes = np.concatenate([self._outcomes, units])

    def _queue_labels(self, piece: Piece, units: Units, arrival: NDArray[np.float64]) -> None:
        if not len(piece.labelled) or not any(
            METRICS[rule.name].source is Source.LABEL for rule in self.plan.metrics
        ):
            return
        kept = []
        classes = frozenset(self.plan.classes)
        for at in np.flatnonzero(np.isin(units["line"], piece.labelled)).tolist():
            unit = units[at : at + 1].copy()
            line = piece.lines[int(unit["line"][0])]
            answer = line.candidate if unit["arm"][0] else line.baseline
            assert answer is not None
            said = answer.prediction if isinstance(answer.prediction, str) else None
            answered = unit["status"][0] < 400 and (said is not None or unit["null"][0])
            if not answered or (classes and line.label not in classes):
                continue
            came = self._came(line, line.seen_t, float(arrival[at]))
            unit["seen"], unit["nth"], unit["null"] = came, line.label_n, said != line.label
            kept.append(unit)
        labels = np.concatenate([self._labels, *kept])
        self._labels = labels[np.lexsort((np.arange(len(labels)), labels["nth"], labels["seen"]))]

    def _came(self, line: Line, admitted: float, arrival: float) -> float:
        """When the label of a line counted: as it was recorded, else not before its answer had come."""
        came = line.label_t - self._zero
        if not math.isfinite(came):
            return arrival
        return max(came, arrival) if math.isnan(admitted) else came

    def _queue_pairs(
        self,
        piece: Piece,
        t: NDArray[np.float64],
        lines: NDArray[np.intp],
        split: NDArray[np.int64],
        theirs: NDArray[np.bool_],
    ) -> None:
        """Requests that were copied, or would be: those of the live splits as they were, all others by the share of the step."""
        mirror = split_for(self._course.rollout).mirror
        copied = np.array([math.isfinite(piece.lines[line].pair_t) for line in lines], dtype=bool)
        if mirror < 100 and not theirs.all():
            drawn = [position(f"{self.salt}/mirror", piece.lines[line].id or "") for line in lines]
            wanted = np.array(drawn) * 100 < mirror
        else:
            wanted = np.full(len(lines), mirror > 0)
        wanted = np.where(theirs, copied, wanted)
        self._copied[lines] = wanted & piece.there[1, lines]
        pairs: list[Units] = []
        labelled: list[Units] = []
        for line, number in zip(lines[wanted].tolist(), split[wanted].tolist(), strict=True):
            of_line = self._pairs_of(piece, line, float(t[line]), number)
            pairs += of_line
            labelled += self._labelled(piece.lines[line], of_line)
        added = np.concatenate([np.empty(0, PAIR), *pairs])
        if len(added):
            added["seen"] = np.maximum(np.maximum.accumulate(added["seen"]), self._last_pair)
            self._last_pair = float(added["seen"][-1])
        self._pairs = np.concatenate([self._pairs, added])
        told = np.concatenate([self._labelled_pairs, *labelled])
        order = np.lexsort((np.arange(len(told)), told["nth"], told["seen"]))
        self._labelled_pairs = told[order]

    def _pairs_of(self, piece: Piece, at: int, t: float, split: int) -> list[Units]:
        """The pairs of one request, a row for each candidate that answered it."""
        line, found = piece.lines[at], []
        baseline = HUMAN_ANSWER if self.plan.people_alone else line.baseline
        for arm, version in enumerate(self.plan.candidates, 1):
            first = line.candidate if arm == 1 else None
            candidate = (line.candidates or {}).get(version.version, first)
            if baseline is None or candidate is None:
                continue
            row = np.zeros(1, PAIR)
            row["t"], row["line"], row["split"], row["arm"] = t, at, split, arm
            for side, answer in enumerate((baseline, candidate)):
                row["status"][0, side], row["null"][0, side] = answer.status_and_null
                row["latency"][0, side] = answer.latency_ms
            row["differs"] = _differs(baseline, candidate)
            arrival = t + max(baseline.latency_ms, candidate.latency_ms) / 1000
            row["seen"] = line.pair_t - self._zero if math.isfinite(line.pair_t) else arrival
            found.append(row)
        return found

    def _labelled(self, line: Line, pairs: list[Units]) -> list[Units]:
        """The same pairs, at the time at which their label came."""
        classes = self.plan.classes
        if line.label is None or (classes and line.label not in classes):
            return []
        if not any(METRICS[rule.name].source is Source.LABEL for rule in self.plan.metrics):
            return []
        told = []
        for row in pairs:
            labelled = row.copy()
            came = self._came(line, line.pair_t, float(row["seen"][0]))
            version = self.plan.candidates[int(row["arm"][0]) - 1].version
            first = line.candidate if row["arm"][0] == 1 else None
            candidate = (line.candidates or {}).get(version, first)
            wrong = 0.0 if self.plan.people_alone else _wrong(line.baseline, line.label)
            labelled["wrong"][0] = wrong, _wrong(candidate, line.label)
            labelled["seen"], labelled["nth"] = came, line.label_n
            told.append(labelled)
        return told

    def _take_back(self, piece: Piece, t: NDArray[np.float64], at: float, before: int) -> int:
        """Everything that began after this event was served under another split: forget how it was routed."""
        begin = int(np.searchsorted(t, at))
        if self._agrees:
            later = np.flatnonzero(piece.split >= self._course.rollout.split_number)
            begin = min(begin, int(later[0])) if len(later) else begin
        begin = max(begin, self._last_line + 1)
        assert before != self._course.rollout.split_number
        self._outcomes = self._outcomes[self._outcomes["line"] < begin]
        self._labels = self._labels[self._labels["line"] < begin]
        self._pairs = self._pairs[self._pairs["line"] < begin]
        self._labelled_pairs = self._labelled_pairs[self._labelled_pairs["line"] < begin]
        self._last_pair = float(self._pairs["seen"][-1]) if len(self._pairs) else -math.inf
        if len(self._outcomes):
            self._last_seen = float(self._outcomes["seen"][-1])
        else:
            self._last_seen = -math.inf  # what was seen before is before all that is routed now
        return begin

    def _tally(self, piece: Piece, served: NDArray[np.int8]) -> None:
        candidate = (served == 1) | self._copied
        self.candidate_requests += int(candidate.sum())
        self.candidate_bad += int((candidate & (piece.status[1] >= 500)).sum())
        self.left_out += int((served == -1).sum())

    # ── judging ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _advance(self, horizon: float) -> bool:
        """Let time pass to the horizon; False when the split has changed on the way, and the rest waits for new routes."""
        changed = self._course.rollout.split_number
        if self._weighing is None:
            self._learn_from(horizon)
            return self._pass(horizon, changed)
        if not self._course.rollout.watched:
            self._outcomes, self._labels = self._outcomes[:0], self._labels[:0]
            self._pairs, self._labelled_pairs = self._pairs[:0], self._labelled_pairs[:0]
            return self._pass(horizon, changed)
        weighing = self._weighing
        before = weighing.open()
        blocks = sorted(self._cut(horizon), key=_block_at)
        judged = -math.inf
        for at, together in groupby(self._foreseen(blocks), key=_block_at):
            if not self._settle_frozen(judged, at, changed) or not self._pass(at, changed):
                break
            self._judge(at, together)
            judged = at
            if self._course.rollout.split_number != changed:
                break
        else:
            if self._settle_frozen(judged, horizon, changed) and self._pass(horizon, changed):
                self._commit(horizon, None)
                return True
        self._commit(judged, before)
        return False

    def _cut(self, until: float) -> list[Block | PairBlock]:
        """The blocks of all that is seen by then, of each kind in its order."""
        weighing = self._weighing
        assert weighing is not None
        outcomes, labels = self._seen(self._outcomes, until), self._seen(self._labels, until)
        seen = outcomes["seen"].astype(float)
        blocks: list[Block | PairBlock] = [
            *weighing.cut(Source.OUTCOME, outcomes, outcomes["t"].astype(float), seen)
        ]
        came = labels["seen"].astype(float)
        blocks += weighing.cut(Source.LABEL, labels, came, came)
        pairs, labelled = self._seen(self._pairs, until), self._seen(self._labelled_pairs, until)
        blocks += weighing.pair(
            _compared(pairs), pairs["t"].astype(float), pairs["seen"].astype(float), labelled=False
        )
        came = labelled["seen"].astype(float)
        return blocks + list(weighing.pair(_compared(labelled), came, came, labelled=True))

    def _foreseen(self, blocks: list[Block | PairBlock]) -> Iterator[Block | PairBlock]:
        """The same blocks; the judge works out ahead of time what it can, many at once."""
        assert self._weighing is not None
        for place in range(0, len(blocks), FORESEEN):
            together = blocks[place : place + FORESEEN]
            self._weighing.judge.foresee([block for block in together if isinstance(block, Block)])
            yield from together

    def _judge(self, at: float, blocks: Iterator[Block | PairBlock]) -> None:
        assert self._weighing is not None
        self._count(at, "right")
        for block in blocks:
            if isinstance(block, Block):
                self._weighing.judge.add(block)
            else:
                self._weighing.add_pairs(block)
        self._course.settle(at)

    def _settle_frozen(self, after: float, until: float, changed: int) -> bool:
        """While the route check freezes the ramp any outcome, and not only a full block, may end that."""
        assert self._weighing is not None
        if not self._weighing.judge.guards.misrouted:
            return True
        for at in np.unique(self._outcomes["seen"]).tolist():
            if after < at < until and at > self._course.settled:
                if not self._pass(at, changed):
                    return False
                self._count(at, "right")
                self._course.settle(at)
                if self._course.rollout.split_number != changed:
                    return False
        return True

    def _seen(self, units: Units, until: float) -> Units:
        units = units[: int(np.searchsorted(units["seen"], until, "right"))]
        return units[units["split"] >= self._first_split]

    def _count(self, until: float, side: Any) -> None:
        """Let the route check see what has been seen by now."""
        if self._weighing is None or not self._course.rollout.watched:
            return
        stop = int(np.searchsorted(self._outcomes["seen"], until, side))
        if stop > self._counted:
            self._weighing.count(self._outcomes[self._counted : stop])
            self._counted = stop

    def _commit(self, until: float, before: Any | None) -> None:
        """What was seen until then is judged for good. `before`: the rest was cut into blocks too early, do that again."""
        assert self._weighing is not None
        if before is not None:
            self._weighing.reopen(before)
            self._cut(until)
        else:
            self._count(until, "right")
        stop = int(np.searchsorted(self._outcomes["seen"], until, "right"))
        if stop:
            self._last_line = max(self._last_line, int(self._outcomes["line"][stop - 1]))
        self._outcomes = self._outcomes[stop:]
        self._counted = max(0, self._counted - stop)
        self._labels, self._pairs, self._labelled_pairs = (
            units[int(np.searchsorted(units["seen"], until, "right")) :]
            for units in (self._labels, self._pairs, self._labelled_pairs)
        )

    def _learn_from(self, horizon: float) -> None:
        """Before the first step: the baseline's first answers teach, and are no evidence."""
        never = bool(self.header.events) and self.header.learned is None
        if self._from_header or never or self._taught or self._course.rollout.ended:
            return
        if not needs_known_answers(self.plan):
            self._teach(0.0)
            return
        units = self._outcomes[: int(np.searchsorted(self._outcomes["seen"], horizon, "right"))]
        answered = units[units["status"] < 400]
        missing = MIN_KNOWN_ANSWERS - sum(len(known) for known in self._known)
        if len(answered) >= missing:
            at = float(answered["seen"][missing - 1])
            self._teach(at)
            units, answered = units[units["seen"] <= at], answered[answered["seen"] <= at]
        self._known.append(answered)
        self._outcomes = self._outcomes[len(units) :]
        until = float(units["seen"][-1]) if len(units) else -math.inf
        labels = self._labels[: int(np.searchsorted(self._labels["seen"], until, "right"))]
        self._known_labels[0] += len(labels)
        self._known_labels[1] += int(labels["null"].sum())
        self._labels = self._labels[len(labels) :]

    def _teach(self, at: float) -> None:
        self._taught = True
        self._outside = sorted([*self._outside, at], key=_at)

    def _advance_to_the_end(self) -> None:
        """Rollout time goes on to the end of the log: of the live rollout, or of the last thing that is seen in it."""
        queues = (self._outcomes, self._labels, self._pairs, self._labelled_pairs)
        seen = [float(units["seen"][-1]) for units in queues if len(units)]
        end = self.header.until if self.header.events else max([self._end_of_log, *seen])
        while not self._advance(end):
            pass
        self._end_of_log = max(self._end_of_log, end)


def _at(one: Order | float) -> float:
    return one if isinstance(one, float) else one.at


def _block_at(block: Block | PairBlock) -> float:
    return block.at


def _differs(baseline: Answer, candidate: Answer) -> int:
    """1: they predict different things, 0: the same, -1: one of them predicts nothing."""
    said = (baseline.prediction, candidate.prediction)
    return int(said[0] != said[1]) if all(isinstance(one, str) for one in said) else -1


def _wrong(answer: Answer | None, label: str) -> float:
    """How wrong a label says that an answer was, 0 to 1; no answer is a wrong one."""
    if answer is None:
        return 1.0
    return float(answer.prediction != label) if answer.wrong is None else answer.wrong


def _compared(units: Units) -> Pairs:
    """Pairs as core compares them."""
    baseline, candidate = np.zeros((2, len(units)), OUTCOME)
    for side, rows in enumerate((baseline, candidate)):
        rows["arm"] = units["arm"] if side else 0
        rows["start"] = units["t"]
        for name in ("status", "latency", "null"):
            rows[name] = units[name][:, side]
    wrong, t = units["wrong"].astype(float), units["t"].astype(float)
    return Pairs(baseline, candidate, units["arm"], units["differs"], wrong, t)
