"""Outcomes and labels as the controller took them in, written before they count; and the join of labels by request id.

One file per rollout. Folding its entries again gives the same evidence, which is how a restarted controller resumes. Entries go to
the page cache and not to the disk platter: kill -9 loses nothing, a power cut at most the last second (evidence then is less,
never other). An unfinished last entry is cut.
"""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import Any, Self

import msgspec
import numpy as np

from deployctl.core.outcome import OUTCOME, Columns
from deployctl.errors import IntegrityError, UnavailableError
from deployctl.wire.orders import Batch, LabelRow

MAX_JOINABLE = 100_000
"""Answers that wait for their label; the oldest goes first."""

MAX_EARLY_LABELS = 10_000
"""Labels that came before their answer was known."""

_HEAD = Struct("<III")
"""Length of the body, checksum of the length, checksum of the body: a damaged length must not pass for an unfinished end."""


class Began(msgspec.Struct, tag="began", frozen=True):
    """A step began under this split number, at this rollout time (seconds)."""

    step: int
    split: int
    at: float


class Intake(msgspec.Struct, tag="intake", frozen=True):
    """A batch of one router process, taken in at this rollout time."""

    router: str
    at: float
    batch: Batch


class Gone(msgspec.Struct, tag="gone", frozen=True):
    """A router process is gone: nothing of it is in flight any more."""

    router: str
    at: float


class Clock(msgspec.Struct, tag="clock", frozen=True):
    """The rollout time, once a second: downtime does not count, and a resumed rollout goes on from here."""

    at: float


Entry = Began | Intake | Gone | Clock

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)


class Records:
    """The record file of one rollout, open for append. `entries` is what was in it when it was opened."""

    def __init__(self, path: Path, fd: int, entries: list[Entry], dropped_bytes: int) -> None:
        """Use `Records.open`."""
        self.path = path
        self.entries = entries
        self.dropped_bytes = dropped_bytes
        self._fd = fd

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open (or make) the record file; an unfinished last entry is cut. Raises IntegrityError for other damage."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UnavailableError(f"{path}: cannot be opened: {error.strerror}") from error
        try:
            entries, whole, size = _read(path)
            if size > whole:
                os.ftruncate(fd, whole)
        except OSError as error:
            os.close(fd)
            raise UnavailableError(f"{path}: cannot be opened: {error.strerror}") from error
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, entries, size - whole)

    def append(self, entry: Entry) -> None:
        """Write one entry down. Raises UnavailableError when the disk does not take it; it then does not count."""
        body = _encoder.encode(entry)
        data = _HEAD.pack(len(body), _crc_of_length(len(body)), zlib.crc32(body)) + body
        before = os.lseek(self._fd, 0, os.SEEK_END)
        try:
            if os.write(self._fd, data) != len(data):
                raise OSError(28, "the disk is full")
        except OSError as error:
            os.ftruncate(self._fd, before)
            raise UnavailableError(f"{self.path}: an outcome cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Close the file; twice is the same as once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read(path: Path) -> list[Entry]:
    """The entries of a record file, for looking only."""
    return _read(path)[0]


def _read(path: Path) -> tuple[list[Entry], int, int]:
    data = path.read_bytes()
    entries: list[Entry] = []
    at = 0
    while at + _HEAD.size <= len(data):
        length, length_checksum, checksum = _HEAD.unpack_from(data, at)
        if length_checksum != _crc_of_length(length):
            raise IntegrityError(f"{path}: entry {len(entries) + 1} at byte {at} does not match its checksum")
        stop = at + _HEAD.size + length
        if stop > len(data):
            break
        body = data[at + _HEAD.size : stop]
        if zlib.crc32(body) != checksum:
            raise IntegrityError(f"{path}: entry {len(entries) + 1} at byte {at} does not match its checksum")
        entries.append(_decoder.decode(body))
        at = stop
    return entries, at, len(data)


def _crc_of_length(length: int) -> int:
    return zlib.crc32(length.to_bytes(4, "little"))


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch decoded: OUTCOME rows with their ids, predictions and whether a versioned path chose the version."""

    columns: Columns
    ids: list[str]
    predictions: list[str | None]
    explicit: np.ndarray[tuple[int], np.dtype[np.bool_]]

    def take(self, which: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Rows:
        """Only these rows."""
        at = np.flatnonzero(which)
        return Rows(
            self.columns[at], [self.ids[i] for i in at], [self.predictions[i] for i in at], self.explicit[at]
        )


def rows_of(batch: Batch) -> Rows:
    """The columns of a batch as OUTCOME rows. Raises ValueError when their lengths differ."""
    count = len(batch.id)
    if len(batch.prediction) != count:
        raise ValueError(f"batch {batch.number} has {count} ids and {len(batch.prediction)} predictions")
    columns = np.zeros(count, OUTCOME)
    for name, raw in (
        ("key", batch.key),
        ("arm", batch.arm),
        ("split", batch.split),
        ("start", batch.start),
        ("latency", batch.latency),
        ("status", batch.status),
        ("null", batch.null),
    ):
        columns[name] = _column(raw, OUTCOME[name], count)
    return Rows(columns, batch.id, batch.prediction, _column(batch.explicit, np.dtype("i1"), count) == 1)


def _column(raw: bytes, kind: np.dtype[Any], count: int) -> np.ndarray[tuple[int], np.dtype[Any]]:
    if len(raw) != count * kind.itemsize:
        raise ValueError(f"a column of {len(raw)} bytes; {count} of {kind} are expected")
    return np.frombuffer(raw, kind)


@dataclass(slots=True)
class LabelCounts:
    """What became of the labels that came in; each one is counted once."""

    joined: int = 0
    unknown: int = 0
    ambiguous: int = 0
    repeated: int = 0
    unknown_class: int = 0
    unanswered: int = 0


@dataclass(slots=True)
class _Answer:
    row: Columns
    prediction: str | None
    labelled: bool = False
    ambiguous: bool = False


@dataclass(slots=True)
class LabelJoin:
    """Labels meet answers by request id, bounded, in memory. An id seen twice is ambiguous and used for nothing."""

    classes: frozenset[str] = frozenset()
    counts: LabelCounts = field(default_factory=LabelCounts)
    _answers: OrderedDict[str, _Answer] = field(default_factory=OrderedDict)
    _early: OrderedDict[str, LabelRow] = field(default_factory=OrderedDict)

    def remember(self, rows: Rows) -> Columns:
        """Answers that a label may come for; gives the joins with labels that were here before them."""
        early: list[LabelRow] = []
        for at, request_id in enumerate(rows.ids):
            known = self._answers.get(request_id)
            if known is not None:
                known.ambiguous = True
                continue
            self._answers[request_id] = _Answer(rows.columns[at : at + 1], rows.predictions[at])
            if request_id in self._early:
                early.append(self._early.pop(request_id))
                self.counts.unknown -= 1
        while len(self._answers) > MAX_JOINABLE:
            self._answers.popitem(last=False)
        return self.join(early)

    def join(self, labels: list[LabelRow]) -> Columns:
        """The labelled answers, in the order of the labels: OUTCOME rows whose `null` says whether the answer was wrong."""
        joined = [row for label in labels if (row := self._join_one(label)) is not None]
        return np.concatenate(joined) if joined else np.empty(0, OUTCOME)

    def _join_one(self, label: LabelRow) -> Columns | None:
        answer = self._answers.get(label.id)
        if answer is None:
            self.counts.unknown += 1
            self._early[label.id] = label
            if len(self._early) > MAX_EARLY_LABELS:
                self._early.popitem(last=False)
            return None
        reason = self._unusable(answer, label)
        if reason is not None:
            setattr(self.counts, reason, getattr(self.counts, reason) + 1)
            return None
        answer.labelled = True
        self.counts.joined += 1
        row = answer.row.copy()
        row["null"] = int(answer.prediction != label.label)
        return row

    def _unusable(self, answer: _Answer, label: LabelRow) -> str | None:
        """Which count a label that cannot be used belongs to, None for one that can."""
        if answer.ambiguous:
            return "ambiguous"
        if answer.labelled:
            return "repeated"
        if self.classes and label.label not in self.classes:
            return "unknown_class"
        answered = answer.row["status"][0] < 400 and (answer.prediction is not None or answer.row["null"][0])
        return None if answered else "unanswered"


def iter_batches(entries: list[Entry]) -> Iterator[tuple[str, int]]:
    """(router, batch number) of every intake: what need not be taken in again."""
    for entry in entries:
        if isinstance(entry, Intake):
            yield entry.router, entry.batch.number
