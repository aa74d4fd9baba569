"""From journal and records to an outcome log that replays as the rollout went. Reads only, so it works beside a running
service and without one; what is still being written at the end of either file is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deployctl.core.metrics import METRICS
from deployctl.core.outcome import CLIENT_LEFT, Columns, Source
from deployctl.core.rollout import UNLOADABLE, Cause, Event, Kind, Rollout, apply, start
from deployctl.core.verdict import Result
from deployctl.errors import InvalidError
from deployctl.journal import read as read_journal
from deployctl.outcome_log import Answer, Boundary, Happened, Header, Line, Order, encode_header, encode_lines
from deployctl.records import Arrivals, entries_of, size_of
from deployctl.statedir import ServiceHome

NEVER = 1e15
"""When an outcome counts that was not admitted before the export: after its end."""


@dataclass(frozen=True, slots=True)
class _Label:
    """A label that was joined: what it said, when, and as which one."""

    label: str
    at: float
    number: int


def export(home: ServiceHome, rollout_id: str | None) -> Iterator[bytes]:
    """The log of a rollout (default: the last), in pieces. Raises InvalidError when there is none of that id."""
    rollout, events = _rollout_of(home, rollout_id)
    path = home.records / f"{rollout.id}.records"
    length = size_of(path)
    with_labels = any(METRICS[rule.name].source is Source.LABEL for rule in rollout.plan.metrics)
    labels, until = _labels_and_end(path, length, rollout, with_labels=with_labels)
    yield encode_header(_header(home.name, rollout, events, until))
    yield from _lines(path, length, rollout, labels)


def _rollout_of(home: ServiceHome, rollout_id: str | None) -> tuple[Rollout, list[Event]]:
    events: dict[str, list[Event]] = {}
    for record in read_journal(home.journal):
        if record["type"] == "event":
            body = {**record["event"], "seq": record["seq"], "wall": record["wall"]}
            events.setdefault(record["rollout"], []).append(msgspec.convert(body, Event))
    if not events:
        raise InvalidError(f"{home.name} has had no rollout yet")
    chosen = rollout_id or next(reversed(events))
    if chosen not in events:
        raise InvalidError(f"no rollout {chosen} of {home.name}; known: {', '.join(events)}")
    rollout = start(chosen, events[chosen][0])
    for event in events[chosen][1:]:
        rollout = apply(rollout, event)
    return rollout, events[chosen]


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
        decisions=[order for event in events if (order := _order(event)) is not None],
        events=[Happened(event.seq, event.kind.value, event.step, event.at) for event in events],
        instants=sorted({event.at for event in events}),
        until=max(until, rollout.at),
    )


def _order(event: Event) -> Order | None:
    if event.kind is Kind.STARTED:
        return None
    if event.cause is Cause.PERSON:
        return Order(event.at, event.kind.value, event.by, event.reason, event.step)
    failed = event.verdict is not None and event.verdict.result is Result.FAIL
    if event.reason.startswith(UNLOADABLE) and not failed:
        return Order(event.at, "unloadable", event.by, event.reason.removeprefix(UNLOADABLE))
    return None


def _labels_and_end(
    path: Path, length: int, rollout: Rollout, *, with_labels: bool
) -> tuple[dict[int, _Label], float]:
    """Labels by the serial number of their answer, and the last rollout time that was written down."""
    labels: dict[int, _Label] = {}
    until = 0.0
    arrivals = Arrivals(rollout.plan.classes, with_labels=with_labels)
    for entry in entries_of(path, length) if length else ():
        until = max(until, entry.at)
        if with_labels:
            arrived = arrivals.fold(entry)
            for serial, text in zip(arrived.labelled["number"].tolist(), arrived.texts, strict=True):
                labels[serial] = _Label(text, entry.at, len(labels))
    return labels, until


def _lines(path: Path, length: int, rollout: Rollout, labels: dict[int, _Label]) -> Iterator[bytes]:
    """The outcomes in the order in which they were admitted. One that is labelled, and not admitted yet, comes last."""
    arrivals = Arrivals(rollout.plan.classes, with_labels=False)
    waiting: dict[int, tuple[Columns, str | None, str | None]] = {}
    last = 0.0
    for entry in entries_of(path, length) if length else ():
        arrived = arrivals.fold(entry)
        rows = arrived.rows
        ids: list[str | None] = [*rows.ids] or [None] * len(rows.columns)
        predictions = rows.predictions or [None] * len(rows.columns)
        waiting |= {
            int(row["number"]): (row, one, prediction)
            for row, one, prediction in zip(rows.columns, ids, predictions, strict=True)
            if row["status"] < 400 or row["status"] >= CLIENT_LEFT
        }
        lines = []
        for row in arrived.outcomes:
            _, one, prediction = waiting.pop(int(row["number"]))
            lines.append(_line(row, one, prediction, labels.get(int(row["number"])), entry.at))
            last = lines[-1].t
        if lines:
            yield encode_lines(lines)
    rest = [waiting[serial] for serial in sorted(labels.keys() & waiting.keys())]
    for row, _, _ in rest:
        row["t"] = last = max(last, float(row["t"]))
    yield encode_lines(
        [_line(row, one, said, labels[int(row["number"])], math.inf) for row, one, said in rest]
    )


def _line(
    row: Columns, identity: str | None, prediction: str | None, label: _Label | None, seen: float
) -> Line:
    status, null = int(row["status"]), bool(row["null"])
    said = prediction if prediction is not None or null else msgspec.UNSET
    answer = Answer(
        ok=status < 500,
        latency_ms=float(f"{row['latency']:.9g}"),  # as many digits as a 32-bit float has
        prediction=said,
        status=status if status not in {200, 500} else None,
        null=null if null != (status < 500 and said is None) else None,
    )
    line = Line(
        t=float(row["t"]),
        id=identity,
        key=f"#{int(row['key']).to_bytes(8, 'little').hex()}",
        seen_t=seen if seen < math.inf else NEVER,
        split=int(row["split"]),
    )
    if label is not None:
        line.label, line.label_t, line.label_n = label.label, label.at, label.number
    if row["arm"] == 1:
        line.candidate = answer
    else:
        line.baseline = answer
    return line
