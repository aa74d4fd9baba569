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
from typing import Any, BinaryIO, Self

import msgspec
import numpy as np

from deployctl.core.outcome import CLIENT_LEFT, OUTCOME, Admission, Columns, scored
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
    """A batch of one router process, taken in at this rollout time, when the router's clock was `offset` seconds ahead of it."""

    router: str
    at: float
    batch: Batch
    offset: float = 0.0


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

    def __init__(self, path: Path, fd: int, entries: list[Entry], length: int, dropped_bytes: int) -> None:
        """Use `Records.open`."""
        self.path = path
        self.entries = entries
        self.dropped_bytes = dropped_bytes
        self._fd = fd
        self._length = length

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
        return cls(path, fd, entries, whole, size - whole)

    def append(self, entry: Entry) -> None:
        """Write one entry down. Raises UnavailableError when the disk does not take it; it then does not count."""
        body = _encoder.encode(entry)
        data = _HEAD.pack(len(body), _crc_of_length(len(body)), zlib.crc32(body)) + body
        try:
            if os.lseek(self._fd, 0, os.SEEK_END) > self._length:
                os.ftruncate(self._fd, self._length)  # half an entry that a full disk left behind
            if os.write(self._fd, data) != len(data):
                raise OSError(28, "the disk is full")
        except OSError as error:
            raise UnavailableError(f"{self.path}: an outcome cannot be written: {error.strerror}") from error
        self._length += len(data)

    def close(self) -> None:
        """Close the file; twice is the same as once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read(path: Path) -> list[Entry]:
    """The entries of a record file, for looking only."""
    return _read(path)[0]


def entries_of(path: Path, length: int | None = None) -> Iterator[Entry]:
    """The entries of a record file one by one, of its first `length` bytes; an unfinished last one is left out.

    Raises IntegrityError for other damage and UnavailableError when it cannot be read.
    """
    try:
        with path.open("rb") as file:
            yield from (entry for entry, _ in _entries(file, path, length))
    except OSError as error:
        raise UnavailableError(f"{path}: cannot be read: {error.strerror}") from error


def _read(path: Path) -> tuple[list[Entry], int, int]:
    entries: list[Entry] = []
    whole = 0
    with path.open("rb") as file:
        for entry, whole in _entries(file, path, None):  # noqa: B007 - where the last one ends is the result
            entries.append(entry)
        return entries, whole, os.fstat(file.fileno()).st_size


def _entries(file: BinaryIO, path: Path, length: int | None) -> Iterator[tuple[Entry, int]]:
    """Each entry, and the place after it."""
    at = number = 0
    while len(head := file.read(_HEAD.size)) == _HEAD.size:
        size, size_checksum, checksum = _HEAD.unpack(head)
        number += 1
        damage = f"{path}: entry {number} at byte {at} does not match its checksum"
        if size_checksum != _crc_of_length(size):
            raise IntegrityError(damage)
        at += _HEAD.size + size
        body = file.read(size)
        if len(body) < size or (length is not None and at > length):
            return
        if zlib.crc32(body) != checksum:
            raise IntegrityError(damage)
        yield _decoder.decode(body), at


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
        ids = [self.ids[i] for i in at] if self.ids else []
        predictions = [self.predictions[i] for i in at] if self.predictions else []
        return Rows(self.columns[at], ids, predictions, self.explicit[at])


def rows_of(batch: Batch) -> Rows:
    """The columns of a batch as OUTCOME rows. Raises ValueError when their lengths differ."""
    count = len(batch.id)
    if len(batch.prediction) != count:
        raise ValueError(f"batch {batch.number} has {count} ids and {len(batch.prediction)} predictions")
    return _rows(batch, count)


def without_texts(batch: Batch) -> Batch:
    """A batch as it is written down where no label is waited for: ids and predictions are most of its bytes."""
    return msgspec.structs.replace(batch, id=[], prediction=[], labels=[])


def _rows(batch: Batch, count: int) -> Rows:
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
    texts: list[str] = field(default_factory=list)
    """What the labels said that were joined since the last batch of answers, in their order."""
    _answers: OrderedDict[str, _Answer] = field(default_factory=OrderedDict)
    _early: OrderedDict[str, LabelRow] = field(default_factory=OrderedDict)

    def remember(self, rows: Rows) -> Columns:
        """Answers that a label may come for; gives the joins with labels that were here before them."""
        self.texts = []
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
        self.texts.append(label.label)
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


SEEN = np.dtype([*OUTCOME.descr, ("t", "<f8"), ("serial", "<u8")])
"""An outcome as it arrived: `t` is when its request began, in rollout seconds, `serial` its number among those taken in."""


@dataclass(slots=True)
class LeftOut:
    """Requests that are no evidence, or only half of it, since the rollout began: counted, never silently lost."""

    explicit: int = 0
    client_left: int = 0


@dataclass(frozen=True, slots=True)
class Arrived:
    """What an entry brought: outcomes that may be judged now and answers that now have a label (`null`: it was wrong), both SEEN
    rows, what the labels say, and the rows of its batch that are of this rollout.
    """

    at: float
    outcomes: Columns
    labelled: Columns
    texts: list[str]
    rows: Rows


class Arrivals:
    """Entries in, evidence out: admission in the order of the requests' starts, and the join of labels.

    What arrives depends on the entries and their order alone. `t` never goes back: a request that began while no controller
    watched began, in rollout time, when the watching went on.
    """

    def __init__(self, classes: tuple[str, ...], *, with_labels: bool) -> None:
        self.join = LabelJoin(frozenset(classes))
        self.left_out = LeftOut()
        self._with_labels = with_labels
        self._admission = Admission(SEEN)
        self._first_split: int | None = None
        self._count = 0
        self._last = 0.0

    def fold(self, entry: Entry) -> Arrived:
        """What this entry brought."""
        nothing = np.empty(0, SEEN)
        rows = Rows(nothing, [], [], np.empty(0, bool))
        outcomes = labelled = nothing
        match entry:
            case Began(split=split):
                self._first_split = split if self._first_split is None else self._first_split
            case Intake(router=router, batch=batch):
                rows = self._of_rollout(entry)
                outcomes = self._admission.add(router, scored(rows.columns), batch.watermark)
                if self._with_labels:
                    early, late = self.join.remember(rows), self.join.join(batch.labels)
                    labelled = np.concatenate(
                        [part for part in (nothing, early, late) if len(part)] or [nothing]
                    )
            case Gone(router=router):
                outcomes = self._admission.forget(router)
        if len(outcomes):
            outcomes["t"] = np.maximum(np.maximum.accumulate(outcomes["t"]), self._last)
            self._last = float(outcomes["t"][-1])
        return Arrived(entry.at, outcomes, labelled, self.join.texts if len(labelled) else [], rows)

    def _of_rollout(self, entry: Intake) -> Rows:
        """The rows of a batch that may be evidence, numbered, their starts in rollout time."""
        rows = _rows(entry.batch, len(entry.batch.arm))
        of_rollout = rows.columns["split"] >= (self._first_split or 0)
        self.left_out.explicit += int((of_rollout & rows.explicit).sum())
        self.left_out.client_left += int((of_rollout & (rows.columns["status"] == CLIENT_LEFT)).sum())
        kept = rows.take(of_rollout & ~rows.explicit)
        seen = np.zeros(len(kept.columns), SEEN)
        for name in OUTCOME.names or ():
            seen[name] = kept.columns[name]
        seen["t"] = np.round(kept.columns["start"] - entry.offset, 6)
        seen["serial"] = np.arange(self._count, self._count + len(seen))
        self._count += len(seen)
        return Rows(seen, kept.ids, kept.predictions, kept.explicit)
