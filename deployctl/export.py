"""From journal and records to an outcome log that replays as the rollout went. Reads only, so it works beside a running
service and without one; what is still being written at the end of either file is left out.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from deployctl.core.metrics import METRICS
from deployctl.core.outcome import CLIENT_LEFT, Columns, Source
from deployctl.core.rollout import UNLOADABLE, UNWATCHED, Cause, Event, Kind, Rollout
from deployctl.outcome_log import Answer, Boundary, Happened, Header, Line, Order, encode_header, encode_lines
from deployctl.prediction_log import Heard, records_of, rollout_of, unheard
from deployctl.records import Arrivals, Entry, Rows, entries_of, size_of
from deployctl.statedir import ServiceHome

NEVER = 1e15
"""When an outcome counts that was not admitted before the export: after its end."""

MAX_LEFT_OVER = 10_000
"""Texts of answers that no line will have (of copies that were lost, say) before they are looked for."""

Call = tuple[int, int]
"""What tells a request from all others."""


@dataclass(frozen=True, slots=True)
class _Label:
    """A label that was joined: what it said, when, and as which one."""

    text: str
    at: float
    number: int
    wrong: dict[int, float]
    """By arm."""


def export(home: ServiceHome, rollout_id: str | None, heard: Heard = unheard) -> Iterator[bytes]:
    """The log of a rollout (default: the last), in pieces; its records are read twice. Raises InvalidError when there is none of that id."""
    rollout, events = rollout_of(home, rollout_id)
    path = records_of(home, rollout)
    length = size_of(path)
    with_labels = any(METRICS[rule.name].source is Source.LABEL for rule in rollout.plan.metrics)
    once = entries_of(path, length, lambda done: heard(done, 2 * length))
    labels, until = _labels_and_end(once, rollout, with_labels=with_labels)
    yield encode_header(_header(home.name, rollout, events, until))
    again = entries_of(path, length, lambda done: heard(length + done, 2 * length))
    yield from _Lines(rollout, labels).of(again)


def _header(service: str, rollout: Rollout, events: list[Event], until: float) -> Header:
    learned = next((event for event in events if event.kind is Kind.LEARNED), None)
    steps = rollout.plan.steps
    return Header(
        service=service,
        rollout=rollout.id,
        salt=rollout.id,
        plan=rollout.plan,
        learned=learned.learned if learned else None,
        learned_at=learned.at if learned else None,
        block_boundaries=[
            Boundary(event.seq, event.step, steps[event.step].weight, event.at)
            for event in events
            if event.kind is Kind.CLIMBED and event.step is not None
        ],
        decisions=list(_orders(events)),
        events=[Happened(event.seq, event.kind.value, event.step, event.at) for event in events],
        instants=sorted({event.at for event in events}),
        until=max(until, rollout.at),
    )


def _orders(events: list[Event]) -> Iterator[Order]:
    """What no outcome shows: orders of people, answers of webhooks, and candidates that could not be kept loaded or watched."""
    judged = {event.version for event in events if event.kind is Kind.JUDGED}
    for event in events:
        if event.kind is Kind.STARTED:
            continue
        if event.cause in {Cause.PERSON, Cause.WEBHOOK}:
            yield Order(event.at, event.kind.value, event.by, event.reason, event.step)
            continue
        if event.reason.startswith(UNWATCHED):
            yield Order(event.at, "unwatched", event.by, event.reason.removeprefix(UNWATCHED))
            continue
        said = [(event.version, event.reason)]
        if event.verdict is not None:  # the last of several ends the rollout, which has a sentence of its own
            said += [(one.version, one.reason) for one in event.verdict.candidates]
        for version, reason in said:
            if reason.startswith(UNLOADABLE) and (event.kind is Kind.JUDGED or version not in judged):
                words = reason.removeprefix(UNLOADABLE)
                yield Order(event.at, "unloadable", event.by, words, version=version)


def _labels_and_end(
    entries: Iterator[Entry], rollout: Rollout, *, with_labels: bool
) -> tuple[dict[Call, _Label], float]:
    """Labels by the request that they are of, and the last rollout time that was written down."""
    plan, until = rollout.plan, 0.0
    labels: dict[Call, _Label] = {}
    arrivals = Arrivals(plan.classes, with_labels=with_labels, rules=plan.labels, human=plan.people_alone)
    for entry in entries:
        until = max(until, entry.at)
        if not with_labels:
            continue
        arrived = arrivals.fold(entry)
        for row, text in zip(arrived.labelled, arrived.texts, strict=True):
            label = labels[_call(row)] = _Label(text, entry.at, len(labels), {})
            label.wrong[int(row["arm"])] = float(row["wrong"])
        pairs = arrived.labelled_pairs
        for one, other, text in zip(pairs.baseline, pairs.candidate, arrived.pair_texts, strict=True):
            label = labels.setdefault(_call(one), _Label(text, entry.at, len(labels), {}))
            for row in (one, other):
                label.wrong[int(row["arm"])] = float(row["wrong"])
    return labels, until


def _call(row: Columns) -> Call:
    """With copies it is the request's number in its router, which they share; else its number among all."""
    if row["copies"] or row["mirrored"]:
        return int(row["router"]), int(row["serial"])
    return -1, int(row["number"])


@dataclass(slots=True)
class _Told:
    """A line that waits for its pair; `start` is on the router's clock."""

    start: float
    line: Line
    call: Call


class _Lines:
    """The outcomes in the order in which they were admitted, with their pairs, which are admitted later."""

    def __init__(self, rollout: Rollout, labels: dict[Call, _Label]) -> None:
        self._plan = rollout.plan
        self._labels = labels
        self._texts: dict[int, tuple[Columns, str | None, str | None]] = {}
        self._waiting: list[_Told] = []
        self._open: dict[Call, Line] = {}
        self._last = 0.0
        self._kept = 0

    def of(self, entries: Iterator[Entry]) -> Iterator[bytes]:
        """All of these records. What is labelled, and not admitted yet, comes last."""
        arrivals = Arrivals(self._plan.classes, with_labels=False)
        for entry in entries:
            arrived = arrivals.fold(entry)
            self._remember(arrived.rows)
            for row in arrived.outcomes:
                self._tell(row, entry.at)
            for one, other in zip(arrived.pairs.baseline, arrived.pairs.candidate, strict=True):
                self._pair(one, other, entry.at)
            yield self._ready(arrived.settled_until)
        yield self._ready(math.inf)
        labelled = {number for number, (row, _, _) in self._texts.items() if _call(row) in self._labels}
        for number in sorted(labelled):
            row = self._texts[number][0]
            if not row["mirrored"]:
                row["t"] = max(self._last, float(row["t"]))
                self._tell(row, NEVER)
        yield self._ready(math.inf)

    def _remember(self, rows: Rows) -> None:
        """Ids and predictions of answers that a line may be made of."""
        ids: list[str | None] = [*rows.ids] or [None] * len(rows.columns)
        predictions = rows.predictions or [None] * len(rows.columns)
        for row, one, said in zip(rows.columns, ids, predictions, strict=True):
            if row["status"] < 400 or row["status"] >= CLIENT_LEFT or row["copies"] or row["mirrored"]:
                self._texts[int(row["number"])] = (row, one, said)

    def _tell(self, row: Columns, seen: float) -> Line:
        """A line of the request's own answer."""
        _, one, _ = self._texts[int(row["number"])]
        line = Line(
            t=float(row["t"]),
            id=one,
            key=f"#{int(row['key']).to_bytes(8, 'little').hex()}",
            seen_t=seen,
            split=int(row["split"]),
        )
        if (label := self._labels.get(_call(row))) is not None:
            line.label, line.label_t, line.label_n = label.text, label.at, label.number
        self._place(line, row)
        place = bisect_right(self._waiting, line.t, key=lambda told: told.line.t)
        self._waiting.insert(place, _Told(float(row["start"]), line, _call(row)))
        if row["copies"]:
            self._open[_call(row)] = line
        return line

    def _pair(self, one: Columns, other: Columns, at: float) -> None:
        """Both answers of a pair on the line of its request."""
        line = self._open.get(_call(one))
        if line is None:  # 4xx, which is no outcome: the pair alone is told
            own = next((row for row in (one, other) if not row["mirrored"]), one)
            line = self._tell(own, at)
            self._open[_call(one)] = line
        line.pair_t = at
        if other["arm"] == 1 and not other["mirrored"]:
            line.served = "candidate"
        for row in (one, other):
            if int(row["number"]) in self._texts:
                self._place(line, row)

    def _place(self, line: Line, row: Columns) -> None:
        """An answer where it belongs on its line."""
        arm, answer = int(row["arm"]), self._answer(row)
        if arm == 0:
            line.baseline = answer
            return
        if arm == 1:
            line.candidate = answer
        if self._plan.others:
            name = self._plan.candidates[arm - 1].version
            line.candidates = {**(line.candidates or {}), name: answer}

    def _answer(self, row: Columns) -> Answer:
        _, _, prediction = self._texts.pop(int(row["number"]))
        status, null = int(row["status"]), bool(row["null"])
        said = prediction if prediction is not None or null else msgspec.UNSET
        label = self._labels.get(_call(row))
        wrong = label.wrong.get(int(row["arm"])) if label is not None else None
        follows = label is not None and wrong == float(said != label.text)
        return Answer(
            ok=status < 500,
            latency_ms=float(f"{row['latency']:.9g}"),  # as many digits as a 32-bit float has
            prediction=said,
            status=status if status not in {200, 500} else None,
            null=null if null != (status < 500 and said is None) else None,
            wrong=None if follows else wrong,
        )

    def _ready(self, until: float) -> bytes:
        """Lines whose pairs have come or never will. Where a late 4xx stands behind what was told already, its time follows."""
        count = next((at for at, told in enumerate(self._waiting) if told.start >= until), len(self._waiting))
        told, self._waiting = self._waiting[:count], self._waiting[count:]
        for one in told:
            one.line.t = self._last = max(self._last, one.line.t)
            self._open.pop(one.call, None)
        if len(self._texts) > 2 * self._kept + MAX_LEFT_OVER:
            self._texts = {
                number: text
                for number, text in self._texts.items()
                if not (text[0]["copies"] or text[0]["mirrored"]) or text[0]["start"] >= until
            }
            self._kept = len(self._texts)
        return encode_lines([one.line for one in told])
