"""A folder into which label files are put, or written while we look: what is new in it since the last look.

The one rule: a place in a file is remembered only when the labels before it are where they belong (`remember`), so a crash
brings some of them twice and loses none.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec

from deployctl.core.label import Label
from deployctl.durable import publish
from deployctl.errors import UnavailableError
from deployctl.labels.reading import recognised, source_called
from deployctl.labels.source import (
    MAX_DOCUMENT,
    MAX_LINE,
    BadFileError,
    Source,
    Tally,
    UnfinishedError,
    Wanted,
)

MAX_LABELS = 20_000
"""Labels of one poll, where the caller wants no other number."""

MAX_POLL_BYTES = 16 * 1024 * 1024
"""Rows that one poll reads, whatever comes of them; a document is read as a whole."""

MAX_FILES = 10_000
"""Files that are looked at; what is beyond, by name, waits until others are taken away."""

QUIET_SECONDS = 30.0
"""A file that ends in half a row and was not written to for so long is spoken of."""

MAX_NOTES = 1_000
_CHUNK = 256 * 1024
_PROBE = 64 * 1024


@dataclass(slots=True)
class Place:
    """How far a file has been read, and what tells whether it is still that file: `probe` is the digest of the ends of what was read."""

    inode: int
    size: int
    changed: int
    offset: int = 0
    line: int = 1
    probe: str = ""
    idle: bool = False


@dataclass(slots=True)
class _Remembered:
    """The file of places. Another folder's are nobody's."""

    folder: str
    files: dict[str, Place]


@dataclass(slots=True)
class Counts:
    """What the folder gave since this process looks at it."""

    read: int = 0
    labels: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    replaced: int = 0
    vanished: int = 0
    refused_files: int = 0


class Folder:
    """`poll` gives what is new, `remember` makes it durable that it was taken, `notes` are lines for a person, each said once.

    Whole rows of JSONL and CSV are taken as they are written, a JSON document when it parses. A file that was truncated or
    replaced is read again from its start: the join of labels counts what comes twice.
    """

    def __init__(self, path: Path, memory: Path, wanted: Wanted, form: str | None = None) -> None:
        """`memory` is where places are kept. Raises InvalidError for a form that is not known."""
        self.path = path
        self.counts = Counts()
        self.now: Callable[[], float] = time.time
        self._memory = memory
        self._wanted = wanted
        self._kind = source_called(form) if form is not None else None
        self._pending: list[Label] = []
        self._notes: list[str] = []
        self._told: set[str] = set()
        self._last = ""
        self._more = False
        self._dirty = False
        self._places = self._remembered()

    @property
    def more(self) -> bool:
        """Whether the last poll left something that is there already."""
        return self._more or bool(self._pending)

    def notes(self) -> list[str]:
        """What a person should know and was not told yet."""
        notes, self._notes = self._notes, []
        return notes

    def poll(self, limit: int = MAX_LABELS) -> list[Label]:
        """The next labels, at most `limit`. Nothing that is wrong with a file is in the way of the others."""
        labels, self._pending = self._pending[:limit], self._pending[limit:]
        left, self._more = MAX_POLL_BYTES, False
        for name in self._turn(self._names()):
            if len(labels) >= limit or left <= 0 or self._pending:
                self._more = True
                break
            self._last, room = name, limit - len(labels)
            found, read = self._look(name, room, left)
            left -= read
            labels += found[:room]
            self._pending = found[room:]
        self.counts.labels += len(labels)
        return labels

    def remember(self) -> None:
        """The labels of every poll so far are where they belong. Raises UnavailableError when that cannot be kept."""
        if self._pending or not self._dirty:
            return
        temporary = self._memory.with_name(f"{self._memory.name}.new")
        try:
            with temporary.open("wb") as file:
                file.write(msgspec.json.encode(_Remembered(str(self.path), self._places)))
                file.flush()
                os.fsync(file.fileno())
            publish(temporary, self._memory)
        except OSError as error:
            raise UnavailableError(f"{self._memory}: cannot be written: {error.strerror}") from error
        self._dirty = False

    def _remembered(self) -> dict[str, Place]:
        try:
            memory = msgspec.json.decode(self._memory.read_bytes(), type=_Remembered)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self._note(f"{self._memory}: cannot be read, so every label file is read again: {error}")
            return {}
        return memory.files if memory.folder == str(self.path) else {}

    def _note(self, text: str) -> None:
        if text not in self._told and len(self._told) < MAX_NOTES:
            self._told.add(text)
            self._notes.append(text)

    def _names(self) -> list[str]:
        """The files to look at. What is no longer there is forgotten."""
        try:
            with os.scandir(self.path) as entries:
                names = sorted(entry.name for entry in entries if not _is_temporary(entry.name))
        except OSError as error:
            self._note(f"{self.path}: cannot be looked into: {error.strerror}")
            return []
        for name in self._places.keys() - set(names):
            place = self._places.pop(name)
            self._dirty = True
            self.counts.vanished += 1
            if place.offset < place.size:
                self._note(
                    f"{self.path / name}: it is gone, and only {place.offset} of {place.size} bytes were read"
                )
        if len(names) > MAX_FILES:
            self._note(f"{self.path}: more than {MAX_FILES} files; those after {names[MAX_FILES - 1]} wait")
        return names[:MAX_FILES]

    def _turn(self, names: list[str]) -> Iterator[str]:
        """Each name once, from after the last one that was looked at: a long file must not starve the rest."""
        last = self._last
        yield from [name for name in names if name > last] + [name for name in names if name <= last]

    # ── one file ───────────────────────────────────────────────────────────────────────────────────────────────

    def _look(self, name: str, room: int, left: int) -> tuple[list[Label], int]:
        """What is new in one file, and how many bytes were read for it."""
        path = self.path / name
        try:
            status = path.stat()
            place = self._places.get(name)
            if not stat.S_ISREG(status.st_mode) or (
                place is not None and _is_same(place, status) and place.idle
            ):
                return [], 0
            # Without O_NONBLOCK a pipe that took the file's name meanwhile would be waited for.
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(fd, "rb") as file:  # noqa: PTH123 - it is open already
                return self._read(path, file, room, left)
        except FileNotFoundError:
            return [], 0  # the next poll counts it
        except OSError as error:
            self._note(f"{path}: cannot be read: {error.strerror}")
            return [], 0

    def _read(self, path: Path, file: BinaryIO, room: int, left: int) -> tuple[list[Label], int]:
        status = os.fstat(file.fileno())
        place = self._go_on(path, file, status)
        tally = Tally(strict=False)
        labels: list[Label] = []
        before = place.offset
        self._places[path.name], self._dirty = place, True
        try:
            source = self._source(file, place, tally)
            if source is not None and source.reads_whole:
                labels = self._document(file, place, source)
            elif source is not None:
                self._rows(file, place, source, labels, room, left)
            else:
                place.idle = True
        except UnfinishedError as error:
            place.idle = True
            self._if_quiet(path, place, str(error))
        except BadFileError as error:
            place.idle = True
            self.counts.refused_files += 1
            self._note(f"{path}: {error}; nothing more of it is read until it changes")
        else:
            if place.idle and place.offset < place.size:
                self._if_quiet(path, place, f"line {place.line}: the last row is not finished, so it waits")
        place.probe = _probe(file, place.offset)
        self._count(path, tally)
        return labels, place.offset - before

    def _go_on(self, path: Path, file: BinaryIO, status: os.stat_result) -> Place:
        """Where this file is to be read on from: its start, when it is not the one that was read before."""
        place = self._places.get(path.name)
        fresh = Place(status.st_ino, status.st_size, status.st_mtime_ns)
        if place is None:
            return fresh
        same = status.st_ino == place.inode and status.st_size >= place.offset
        if not (same and _probe(file, place.offset) == place.probe):
            self.counts.replaced += 1
            self._note(f"{path}: it was truncated or replaced, so it is read again from its start")
            return fresh
        fresh.offset, fresh.line, fresh.probe = place.offset, place.line, place.probe
        return fresh

    def _source(self, file: BinaryIO, place: Place, tally: Tally) -> Source | None:
        """The reader of this file, at its place; None while its beginning says too little."""
        head = os.pread(file.fileno(), MAX_LINE + 1, 0)
        kind = self._kind or recognised(head, self._wanted, ended=False)
        if kind is None:
            return None
        source = kind(self._wanted, tally)
        if place.offset:
            source.resume(head, place.line)
        return source

    def _document(self, file: BinaryIO, place: Place, source: Source) -> list[Label]:
        """All of a document, when all of it is there. One that has changed is another one."""
        place.idle = True
        place.offset, place.line = 0, 1
        file.seek(0)
        data = file.read(MAX_DOCUMENT + 1)
        found, place.offset = source.take(data, ended=True, room=0)
        return [label for label, _ in found]

    def _rows(
        self, file: BinaryIO, place: Place, source: Source, labels: list[Label], room: int, left: int
    ) -> None:
        """Add the labels of the whole rows that are new, as far as room and bytes reach, also when BadFileError ends it."""
        data = bytearray()
        file.seek(place.offset)
        budget = left
        while len(labels) < room and budget > 0:
            piece = file.read(_CHUNK)
            budget -= len(piece)
            data += piece
            used = 1
            while used and data and len(labels) < room:
                found, used = source.take(data, ended=False, room=room - len(labels))
                del data[:used]
                labels += [label for label, _ in found]
                place.offset, place.line = place.offset + used, source.line
            if not piece:
                place.idle = not used or not data
                break
        else:
            self._more = True

    def _if_quiet(self, path: Path, place: Place, why: str) -> None:
        if self.now() - place.changed / 1e9 >= QUIET_SECONDS:
            self._note(f"{path}: {why}")
        else:
            place.idle = False  # looked at again, until it is whole or quiet

    def _count(self, path: Path, tally: Tally) -> None:
        self.counts.read += tally.read
        for reason, times in tally.skipped.items():
            if times:
                self.counts.skipped[reason] = self.counts.skipped.get(reason, 0) + times
        if tally.notes:
            more = f" ({tally.skipped['unreadable'] - 1} more)" if tally.skipped["unreadable"] > 1 else ""
            self._note(f"{path}: {tally.notes[0]}{more}; the other rows are read")


def _is_temporary(name: str) -> bool:
    return name.startswith(".") or name.endswith((".tmp", "~"))


def _is_same(place: Place, status: os.stat_result) -> bool:
    return (place.inode, place.size, place.changed) == (status.st_ino, status.st_size, status.st_mtime_ns)


def _probe(file: BinaryIO, offset: int) -> str:
    """The digest of both ends of the first `offset` bytes: all of a small file, and of a large one what an edit would move."""
    fd = file.fileno()
    ends = os.pread(fd, min(offset, _PROBE), 0) + os.pread(fd, min(offset, _PROBE), max(0, offset - _PROBE))
    return hashlib.sha256(ends).hexdigest()
