"""Entries on disk: written before they count, and read again by a controller that is started anew.

The records of a rollout are a row of segments, `ID.records`, `ID.records.1` and so on, read as one. Entries go to the page cache at
once and to the platter once a second, beside the loop: kill -9 loses nothing, a power cut at most the last second (evidence then
is less, never other). An unfinished last entry is cut; any other damage is an IntegrityError.
"""

from __future__ import annotations

import errno
import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import BinaryIO, Self

from deployctl.durable import sync_directory
from deployctl.errors import IntegrityError, UnavailableError
from deployctl.records.entries import Began, Clock, Entry, Intake, decode, encode

SEGMENT_BYTES = 64 * 1024 * 1024
"""When the next segment begins."""

MAX_BYTES = 4 * 1024 * 1024 * 1024
"""What the records of all rollouts of a service may take; `spec.log.maxSize` says otherwise."""

SUFFIX = ".records"

_HEAD = Struct("<III")
"""Length of the body, checksum of the length, checksum of the body: a damaged length must not pass for an unfinished end."""


class Records:
    """The records of one rollout, open for append. `began` are the steps that began in what was read or written so far."""

    def __init__(self, path: Path, max_bytes: int, segment_bytes: int) -> None:
        """Use `Records.open`."""
        self.path = path
        self.began: list[Began] = []
        self.dropped_bytes = 0
        self.full = False
        """Whether the last batch found no room within `max_bytes`: evidence stays what it was."""
        self._max_bytes, self._segment_bytes = max_bytes, segment_bytes
        self._fd = -1
        self._segment = 0
        self._length = 0  # of the last segment
        self._earlier = 0  # bytes in the segments before it
        self._others = 0  # bytes of other rollouts
        self._syncing: threading.Thread | None = None
        self._unsynced: OSError | None = None

    @classmethod
    def open(cls, path: Path, *, max_bytes: int = MAX_BYTES, segment_bytes: int = SEGMENT_BYTES) -> Self:
        """Open (or make) the records; an unfinished last entry is cut. Raises IntegrityError for other damage."""
        records = cls(path, max_bytes, segment_bytes)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            *earlier, last = segments_of(path) or [path]
            for segment in earlier:
                records._earlier += _checked(segment, last=False)[0]
            records._fd, records._segment = _opened(last), len(earlier)
            records._length, size = _checked(last, last=True)
            if size > records._length:
                os.ftruncate(records._fd, records._length)
            records.dropped_bytes = size - records._length
            records._others = sum(size for _, size in _others(path))
        except OSError as error:
            records.close()
            raise UnavailableError(f"{path}: cannot be opened: {error.strerror}") from error
        except BaseException:
            records.close()
            raise
        return records

    def read(self) -> Iterator[Entry]:
        """All that was written, entry by entry."""
        self.began = []
        for entry in entries_of(self.path):
            if isinstance(entry, Began):
                self.began.append(entry)
            yield entry

    def append(self, entry: Entry) -> None:
        """Write one entry down. Raises UnavailableError when the disk or the limit does not take it; it then does not count."""
        body = encode(entry)
        data = _HEAD.pack(len(body), _crc_of_length(len(body)), zlib.crc32(body)) + body
        try:
            if isinstance(entry, Intake):  # the rest is small, and time goes on
                self._make_room(len(data))
            self._write(data)
        except OSError as error:
            raise UnavailableError(f"{self.path}: an outcome cannot be written: {error.strerror}") from error
        self._length += len(data)
        if isinstance(entry, Began):
            self.began.append(entry)
        elif isinstance(entry, Clock):
            self._sync_beside()

    def close(self) -> None:
        """Close the file; twice is the same as once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, data: bytes) -> None:
        if (failed := self._unsynced) is not None:
            self._unsynced = None
            raise failed
        now = os.fstat(self._fd)
        if not now.st_nlink:
            raise OSError(errno.ENOENT, "it was removed; nothing counts until the service is started again")
        if now.st_size > self._length:
            os.ftruncate(self._fd, self._length)  # half an entry that a full disk left behind
        if self._length and self._length + len(data) > self._segment_bytes:
            self._rotate()
        if os.write(self._fd, data) != len(data):
            raise OSError(errno.ENOSPC, "the disk is full")

    def _rotate(self) -> None:
        """The next segment. All before it is on the platter first, so no gap can come to be."""
        os.fsync(self._fd)
        following = _opened(_segment(self.path, self._segment + 1))
        os.close(self._fd)
        self._fd = following
        self._segment += 1
        self._earlier += self._length
        self._length = 0

    def _make_room(self, wanted: int) -> None:
        """Rollouts that are over go first, the oldest as a whole: half a log would replay to something else."""
        own = self._earlier + self._length + wanted
        if own + self._others > self._max_bytes:
            self._others = _collect(self.path, self._max_bytes - own)
        self.full = own + self._others > self._max_bytes
        if self.full:
            raise UnavailableError(
                f"{self.path}: {self._max_bytes} bytes are full (spec.log.maxSize); outcomes are not counted any more"
            )

    def _sync_beside(self) -> None:
        """To the platter, without the loop waiting for it."""
        if self._syncing is not None and self._syncing.is_alive():
            return
        self._syncing = threading.Thread(target=self._sync, args=(os.dup(self._fd),), daemon=True)
        self._syncing.start()

    def _sync(self, fd: int) -> None:
        try:
            os.fsync(fd)
        except OSError as error:
            self._unsynced = error
        finally:
            os.close(fd)


def segments_of(path: Path) -> list[Path]:
    """The files that the records of a rollout are in, in order; none when there are none."""
    found: list[Path] = []
    while (segment := _segment(path, len(found))).exists():
        found.append(segment)
    return found


def size_of(path: Path) -> int:
    """How many bytes of records there are now. Raises OSError."""
    return sum(segment.stat().st_size for segment in segments_of(path))


def read(path: Path) -> list[Entry]:
    """The entries of a rollout's records, for looking only."""
    return list(entries_of(path))


def entries_of(path: Path, length: int | None = None) -> Iterator[Entry]:
    """The entries of a rollout's records one by one, of the first `length` bytes; an unfinished last one is left out.

    Raises IntegrityError for other damage and UnavailableError when it cannot be read.
    """
    try:
        segments = segments_of(path) or [path]
        for segment in segments:
            with segment.open("rb") as file:
                for body, end in _bodies(file, segment, last=segment == segments[-1]):
                    if length is not None and end > length:
                        return
                    yield decode(body)
                length = None if length is None else length - file.tell()
    except OSError as error:
        raise UnavailableError(f"{path}: cannot be read: {error.strerror}") from error


def _opened(segment: Path) -> int:
    fd = os.open(segment, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        sync_directory(segment.parent)
    except OSError:
        os.close(fd)
        raise
    return fd


def _segment(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}") if number else path


def _checked(path: Path, *, last: bool) -> tuple[int, int]:
    """Where the last whole entry of a segment ends, and the size of the file."""
    whole = 0
    with path.open("rb") as file:
        for _, whole in _bodies(file, path, last=last):  # noqa: B007 - where the last one ends is the result
            pass
        return whole, os.fstat(file.fileno()).st_size


def _bodies(file: BinaryIO, path: Path, *, last: bool) -> Iterator[tuple[bytes, int]]:
    """Each entry, and the place after it. Only the last segment may end in the middle of one."""
    at = number = 0
    while head := file.read(_HEAD.size):
        number += 1
        damage = f"{path}: entry {number} at byte {at} does not match its checksum"
        if len(head) == _HEAD.size:
            size, size_checksum, checksum = _HEAD.unpack(head)
            if size_checksum != _crc_of_length(size):
                raise IntegrityError(damage)
            body = file.read(size)
            if len(body) == size:
                if zlib.crc32(body) != checksum:
                    raise IntegrityError(damage)
                at += _HEAD.size + size
                yield body, at
                continue
        if not last:
            raise IntegrityError(f"{path}: ends in the middle of entry {number}, and is not the last segment")
        return


def _crc_of_length(length: int) -> int:
    return zlib.crc32(length.to_bytes(4, "little"))


def _others(path: Path) -> list[tuple[Path, int]]:
    """The records of the other rollouts of this service and their sizes, the one that was written last at the end."""
    found = [
        (other, sum(segment.stat().st_size for segment in segments_of(other)))
        for other in path.parent.glob(f"*{SUFFIX}")
        if other != path
    ]
    return sorted(found, key=lambda one: (segments_of(one[0])[-1].stat().st_mtime, one[0].name))


def _collect(path: Path, room: int) -> int:
    """Remove the records of other rollouts, the oldest first, until what is left fits; gives what is left."""
    others = _others(path)
    left = sum(size for _, size in others)
    while others and left > room:
        oldest, size = others.pop(0)
        for segment in reversed(segments_of(oldest)):
            segment.unlink()
        left -= size
    return left
