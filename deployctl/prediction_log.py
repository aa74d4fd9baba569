"""What every version predicted and what people said of it, in columns, read from the journal and the records of a rollout.

Reads only, so it works beside a running service and without one. Nothing is judged here: a vote is a label as it came in, and
which votes count is for whoever asks. A million answers take about 60 MB and a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from deployctl.core.plan import Plan, Version
from deployctl.core.rollout import Event, Rollout, apply, start
from deployctl.errors import InvalidError
from deployctl.journal import read as read_journal
from deployctl.records import Arrivals, Intake, Rows, entries_of, segments_of, size_of, text_hash
from deployctl.statedir import ServiceHome
from deployctl.wire.orders import LabelRow

MAX_TEXTS = 100_000
"""Different predictions and labels that are told apart; more come of numbers and free text, and are UNLISTED."""

MAX_IDS = 10_000
"""Request ids that can be asked for at once."""

NONE, UNLISTED = -1, -2
"""No prediction or annotator; a text that is one too many."""

UNKNOWN, AMBIGUOUS = -1, -2
"""The request of a vote whose id no request has, or more than one."""


Heard = Callable[[int, int], object]
"""Is told how many bytes of records have been read, and of how many."""


def unheard(_done: int, _of: int) -> None:
    """For whoever reads without anybody waiting for it."""


class Role(IntEnum):
    """What a version was to a request: SHADOW answered a copy, the others the caller (or a copy, for the BASELINE)."""

    BASELINE = 0
    CANDIDATE = 1
    SHADOW = 2


PREDICTION = np.dtype(
    [
        ("request", "<i8"),
        ("id", "<u8"),
        ("key", "<u8"),
        ("t", "<f8"),
        ("latency", "<f4"),
        ("confidence", "<f4"),
        ("prediction", "<i4"),
        ("status", "<u2"),
        ("arm", "i1"),
        ("role", "i1"),
        ("null", "i1"),
        ("shown", "i1"),
    ]
)
"""One answer: `request` (the how many-th of the rollout; -1: a copy whose request was lost), `id` and `key` (hashes), `t` (start, rollout
seconds), `latency` (ms), `confidence` (NaN: unknown), `prediction` (index into `texts`), `arm` (index into `versions`), `role`, `null` (1:
no answer in it), `shown` (1: the caller was given it)."""

VOTE = np.dtype([("request", "<i8"), ("t", "<f8"), ("label", "<i4"), ("annotator", "<i4"), ("shown", "i1")])
"""One label: `request` (UNKNOWN, AMBIGUOUS), `t` (rollout second at which it came in), `label` (index into `texts`), `annotator` (index
into `annotators`), `shown` (1: the person saw the answer first)."""


@dataclass(frozen=True, slots=True)
class Log:
    """The predictions of one rollout, in the order in which they came in, and the votes on them."""

    rollout: Rollout
    versions: tuple[Version, ...]
    texts: list[str]
    annotators: list[str]
    predictions: NDArray[np.void]
    votes: NDArray[np.void]
    moments: list[tuple[float, float]]
    """Rollout time and Unix time of the rollout's events."""
    path: Path
    length: int

    def wall(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        """Unix time (seconds) of rollout times: that of the last event before, and what has passed since. Near, not exact: time that
        no controller watched since that event is not in it.
        """
        at, wall = np.array(self.moments).T
        before = np.maximum(np.searchsorted(at, t, side="right") - 1, 0)
        moments: NDArray[np.float64] = wall[before] + (t - at[before])
        return moments

    def standing_votes(self) -> NDArray[np.void]:
        """Votes that can count: of known requests, unprompted, and of each annotator only the last on a request."""
        votes = self.votes[(self.votes["request"] >= 0) & (self.votes["shown"] == 0)]
        annotator = votes["annotator"].astype(np.int64)
        nobody = annotator < 0
        annotator[nobody] = -2 - np.flatnonzero(nobody)  # each is somebody else
        order = np.lexsort((annotator, votes["request"]))
        last = np.ones(len(votes), bool)
        last[:-1] = (np.diff(votes["request"][order]) != 0) | (np.diff(annotator[order]) != 0)
        standing: NDArray[np.void] = votes[np.sort(order[last])]
        return standing

    def ids(self, rows: list[int], heard: Heard = unheard) -> list[str]:
        """The request ids of these predictions, of MAX_IDS at most. They are read again: they are most of a log's bytes."""
        if len(rows) > MAX_IDS:
            raise ValueError(f"{len(rows)} ids at once; at most {MAX_IDS}")
        wanted, found, at = set(rows), dict.fromkeys(rows, ""), 0
        for arrived in _arrivals(self.path, self.length, heard):
            end = at + len(arrived.rows.columns)
            for row in wanted.intersection(range(at, end)) if arrived.rows.ids else ():
                found[row] = arrived.rows.ids[row - at]
            at = end
        return [found[row] for row in rows]

    def rows(self, heard: Heard = unheard) -> Iterator[tuple[NDArray[np.void], list[str]]]:
        """The predictions again in pieces, with their ids ("" where none was written down)."""
        at = 0
        for arrived in _arrivals(self.path, self.length, heard):
            count = len(arrived.rows.columns)
            if count:
                yield self.predictions[at : at + count], arrived.rows.ids or [""] * count
            at += count


def read_log(home: ServiceHome, rollout_id: str | None = None, heard: Heard = unheard) -> Log:
    """The log of a rollout (default: the last). Raises InvalidError when there is none, IntegrityError when it is damaged."""
    rollout, events = rollout_of(home, rollout_id)
    path = records_of(home, rollout)
    length = size_of(path)
    reading = _Reading()
    for arrived in _arrivals(path, length, heard):
        reading.take(arrived.rows, arrived.labels, arrived.at)
    predictions, votes = reading.joined()
    return Log(
        rollout=rollout,
        versions=versions_of(rollout.plan),
        texts=reading.texts,
        annotators=reading.annotators,
        predictions=predictions,
        votes=votes,
        moments=[(event.at, _unix(event.wall)) for event in events],
        path=path,
        length=length,
    )


def rollout_of(home: ServiceHome, rollout_id: str | None) -> tuple[Rollout, list[Event]]:
    """A rollout and its events, from the journal. Raises InvalidError when there is none of that id."""
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


def records_of(home: ServiceHome, rollout: Rollout) -> Path:
    """Where the records of a rollout are. Raises InvalidError when they made room for newer ones."""
    path = home.records / f"{rollout.id}.records"
    if not segments_of(path):
        raise InvalidError(
            f"the records of rollout {rollout.id} are gone: the oldest make room within spec.log.maxSize; its events are still there"
        )
    return path


def versions_of(plan: Plan) -> tuple[Version, ...]:
    """The versions of a rollout by their arms."""
    return (plan.baseline, *plan.candidates)


@dataclass(frozen=True, slots=True)
class _Arrived:
    rows: Rows
    labels: list[LabelRow]
    at: float


def _arrivals(path: Path, length: int, heard: Heard) -> Iterator[_Arrived]:
    """The rows of the rollout and the labels, batch by batch."""
    arrivals = Arrivals((), with_labels=False)
    for entry in entries_of(path, length, lambda done: heard(done, length)):
        rows = arrivals.fold(entry).rows
        if isinstance(entry, Intake):
            yield _Arrived(rows, entry.batch.labels, entry.at)


def _unix(wall: str) -> float:
    return datetime.fromisoformat(wall).timestamp()


@dataclass(slots=True)
class _Texts:
    """Texts by number, in the order in which they came."""

    known: dict[str, int] = field(default_factory=dict)

    def number(self, text: str | None) -> int:
        if text is None:
            return NONE
        number = self.known.get(text)
        if number is None:
            if len(self.known) >= MAX_TEXTS:
                return UNLISTED
            number = self.known[text] = len(self.known)
        return number


class _Reading:
    """Batches in, columns out. What a row needs for the join and not afterwards is kept beside it."""

    def __init__(self) -> None:
        self._texts, self._annotators = _Texts(), _Texts()
        self._rows = [np.empty(0, PREDICTION)]
        self._calls = [np.empty(0, np.uint64)]
        self._votes = [np.empty(0, VOTE)]
        self._vote_ids = [np.empty(0, np.uint64)]

    @property
    def texts(self) -> list[str]:
        return list(self._texts.known)

    @property
    def annotators(self) -> list[str]:
        return list(self._annotators.known)

    def take(self, rows: Rows, labels: list[LabelRow], at: float) -> None:
        """One batch."""
        if count := len(rows.columns):
            seen = rows.columns
            taken = np.zeros(count, PREDICTION)
            for name in ("key", "t", "latency", "confidence", "status", "arm", "null"):
                taken[name] = seen[name]
            taken["id"] = [text_hash(one) for one in rows.ids] or 0
            taken["prediction"] = [self._texts.number(one) for one in rows.predictions] or NONE
            copied = seen["mirrored"] != 0
            taken["shown"] = ~copied
            taken["role"] = np.where(
                seen["arm"] == 0, Role.BASELINE, np.where(copied, Role.SHADOW, Role.CANDIDATE)
            )
            self._rows.append(taken)
            # A request's number in its router, made different from those of other routers; routers are few.
            self._calls.append(seen["serial"] | (seen["router"].astype(np.uint64) << np.uint64(44)))
        if labels:
            votes = np.zeros(len(labels), VOTE)
            votes["t"] = at
            votes["label"] = [self._texts.number(label.label) for label in labels]
            votes["annotator"] = [self._annotators.number(label.annotator or None) for label in labels]
            votes["shown"] = [label.shown is True for label in labels]
            self._votes.append(votes)
            self._vote_ids.append(np.array([text_hash(label.id) for label in labels], np.uint64))

    def joined(self) -> tuple[NDArray[np.void], NDArray[np.void]]:
        """Predictions with their requests, and votes with theirs."""
        predictions, calls = np.concatenate(self._rows), np.concatenate(self._calls)
        votes, ids = np.concatenate(self._votes), np.concatenate(self._vote_ids)
        self._rows, self._calls = [], []
        original = predictions["shown"] == 1
        request = np.full(len(predictions), UNKNOWN)
        request[original] = np.arange(np.count_nonzero(original))
        request[~original] = _found(calls[original], calls[~original])
        predictions["request"] = request
        votes["request"] = _found(predictions["id"][original], ids)
        return predictions, votes


def _found(known: NDArray[np.uint64], asked: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The place of each in `known`, UNKNOWN where it is not there, AMBIGUOUS where it is there twice."""
    if not len(known) or not len(asked):
        return np.full(len(asked), UNKNOWN)
    order = np.argsort(known)
    at = np.searchsorted(known, asked, sorter=order)
    here = known[order[np.minimum(at, len(known) - 1)]] == asked
    again = known[order[np.minimum(at + 1, len(known) - 1)]] == asked
    places = order[np.minimum(at, len(known) - 1)]
    return np.where(here, np.where(again & (at + 1 < len(known)), AMBIGUOUS, places), UNKNOWN)
