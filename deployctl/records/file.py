"""Entries on disk: written before they count, and read again by a controller that is started anew.

The records of a rollout are a row of segments, `ID.records`, `ID.records.1` and so on, read as one. Entries go to the page cache at
once and to the platter once a second, beside the loop: kill -9 loses nothing, a power cut at most the last second (evidence then
is less, never other). An unfinished last entry is cut, and so is what a power cut left behind of the last second: from the first entry
that lacks a whole sector on, unless a mark behind it says that it was on the platter. Any other damage is an IntegrityError.
"""

from __future__ import annotations

import errno
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import BinaryIO, Self

from deployctl.durable import never_arrived, sync_directory
from deployctl.errors import IntegrityError, UnavailableError
from deployctl.records.entries import Began, Clock, Entry, Intake, decode, encode

SEGMENT_BYTES = 64 * 1024 * 1024
"""When the next segment begins."""

MAX_BYTES = 4 * 1024 * 1024 * 1024
"""What the records of all rollouts of a service may take; `spec.log.maxSize` says otherwise."""

SUFFIX = ".records"

_HEAD = Struct("<III")
"""Length of the body, checksum of the length, checksum of the body: a damaged length must not pass for an unfinished end."""

_MARK = b"on the platter: "
"""Begins the body of a mark, which is no entry: so many bytes of its segment were safe when it was written."""
_PLACE = Struct("<Q")


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
        self._safe = (0, 0)  # a segment, and how many of its bytes are on the platter
        self._marked = 0  # of how many bytes of the last segment a mark says so
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
                # Else what is written next could come to stand between the remains of what was cut.
                os.fsync(records._fd)
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
        data = _framed(encode(entry))
        try:
            if isinstance(entry, Intake):  # the rest is small, and time goes on
                self._make_room(len(data))
            self._write(data)
            if isinstance(entry, Clock):
                self._mark()
        except OSError as error:
            raise UnavailableError(f"{self.path}: an outcome cannot be written: {error.strerror}") from error
        if isinstance(entry, Began):
            self.began.append(entry)
        elif isinstance(entry, Clock):
            self._sync_beside()

    def sync(self) -> Callable[[], None]:
        """What any thread may call to bring all that was appended until now to the platter. It raises UnavailableError."""
        of = os.dup(self._fd), self._segment, self._length

        def sync() -> None:
            try:
                self._sync(*of)
            except OSError as error:
                raise UnavailableError(
                    f"{self.path}: cannot be brought to the disk: {error.strerror}"
                ) from error

        return sync

    def close(self) -> None:
        """Bring the rest to the platter and close the file; twice is the same as once."""
        if self._fd >= 0:
            with suppress(OSError):  # then a power cut would leave less evidence, and nobody can do anything
                os.fsync(self._fd)
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
            os.fsync(self._fd)
        if self._length and self._length + len(data) > self._segment_bytes:
            self._rotate()
        if os.write(self._fd, data) != len(data):
            raise OSError(errno.ENOSPC, "the disk is full")
        self._length += len(data)

    def _rotate(self) -> None:
        """The next segment. All before it is on the platter first, so no gap can come to be."""
        os.fsync(self._fd)
        following = _opened(_segment(self.path, self._segment + 1))
        os.close(self._fd)
        self._fd = following
        self._segment += 1
        self._earlier += self._length
        self._length = self._marked = 0

    def _mark(self) -> None:
        """Say in the file how much of it is safe: damage in there is then never taken for the work of a power cut."""
        segment, safe = self._safe
        mark = _framed(_MARK + _PLACE.pack(safe))
        fits = self._length + len(mark) <= self._segment_bytes
        if fits and segment == self._segment and safe > self._marked:
            self._write(mark)
            self._marked = safe

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
        of = os.dup(self._fd), self._segment, self._length
        self._syncing = threading.Thread(target=self._sync_or_say_so, args=of, daemon=True)
        self._syncing.start()

    def _sync_or_say_so(self, fd: int, segment: int, length: int) -> None:
        try:
            self._sync(fd, segment, length)
        except OSError as error:
            self._unsynced = error

    def _sync(self, fd: int, segment: int, length: int) -> None:
        """Bring this segment to the platter, as far as it goes now; `fd` is closed."""
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        self._safe = max(self._safe, (segment, length))


def segments_of(path: Path) -> list[Path]:
    """The files that the records of a rollout are in, in order; none when there are none."""
    found: list[Path] = []
    while (segment := _segment(path, len(found))).exists():
        found.append(segment)
    return found


def keep_aside(path: Path) -> Path:
    """Give damaged records another name, and so their rollout new ones; they still count as records of the service.

    Raises UnavailableError. A crash in the middle of it leaves damaged records, and it can be done again.
    """
    number = 1
    while (kept := path.with_name(f"{path.stem}.damaged-{number}{SUFFIX}")).exists():
        number += 1
    try:
        for at, segment in reversed([*enumerate(segments_of(path))]):
            segment.rename(_segment(kept, at))
        sync_directory(path.parent)
    except OSError as error:
        raise UnavailableError(f"{path}: cannot be kept aside: {error.strerror}") from error
    return kept


def size_of(path: Path) -> int:
    """How many bytes of records there are now. Raises OSError."""
    return sum(segment.stat().st_size for segment in segments_of(path))


def check(path: Path) -> int:
    """How many bytes of an unfinished entry the records of a rollout end with; nothing is changed.

    Raises IntegrityError for other damage and UnavailableError when they cannot be read.
    """
    try:
        *earlier, last = segments_of(path) or [path]
        for segment in earlier:
            _checked(segment, last=False)
        whole, size = _checked(last, last=True)
    except OSError as error:
        raise UnavailableError(f"{path}: cannot be read: {error.strerror}") from error
    return size - whole


def read(path: Path) -> list[Entry]:
    """The entries of a rollout's records, for looking only."""
    return list(entries_of(path))


def entries_of(
    path: Path, length: int | None = None, heard: Callable[[int], object] = lambda _: None
) -> Iterator[Entry]:
    """The entries of a rollout's records one by one, of the first `length` bytes; an unfinished last one is left out. `heard` is told
    after each how many bytes have been read.

    Raises IntegrityError for other damage and UnavailableError when it cannot be read.
    """
    before = 0
    try:
        segments = segments_of(path) or [path]
        for segment in segments:
            with segment.open("rb") as file:
                for body, end in _bodies(file, segment, last=segment == segments[-1]):
                    if length is not None and before + end > length:
                        return
                    heard(before + end)
                    if not body.startswith(_MARK):
                        yield decode(body)
                before += file.tell()
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
    """Each entry and mark, and the place after it. Only the last segment may end in the middle of one, or lack sectors."""
    at = number = 0
    while head := file.read(_HEAD.size):
        number += 1
        body, size = _body(file, head)
        if body is not None:
            at += _HEAD.size + len(body)
            yield body, at
            continue
        if last and (size is None or _was_lost(file, at, size)):
            return
        what = f"{path}: entry {number} at byte {at} does not match its checksum"
        if size is None:
            what = f"{path}: ends in the middle of entry {number}, and is not the last segment"
        raise IntegrityError(
            f"{what}; nothing was changed; `deployctl up --recover` keeps the file aside and serves without the rollout"
        )


def _body(file: BinaryIO, head: bytes) -> tuple[bytes | None, int | None]:
    """The body after this head, or None and how many bytes the damage is in; None twice where the file ends in the middle."""
    if len(head) < _HEAD.size:
        return None, None
    size, size_checksum, checksum = _HEAD.unpack(head)
    if size_checksum != _crc_of_length(size):
        return None, _HEAD.size
    body = file.read(size)
    if len(body) < size:
        return None, None
    return (body, size) if zlib.crc32(body) == checksum else (None, _HEAD.size + size)


def _was_lost(file: BinaryIO, at: int, size: int) -> bool:
    """Whether a power cut explains what is wrong with the entry at this place: it was not on the platter yet, and lacks a sector."""
    file.seek(at)
    rest = file.read()
    if not never_arrived(rest, at, size):
        return False
    found = 0
    while (found := rest.find(_MARK, found)) >= 0:
        start, found = found - _HEAD.size, found + len(_MARK)
        place = rest[found : found + _PLACE.size]
        whole = start >= 0 and len(place) == _PLACE.size and rest.startswith(_framed(_MARK + place), start)
        if whole and _PLACE.unpack(place)[0] > at:
            return False
    return True


def _framed(body: bytes) -> bytes:
    return _HEAD.pack(len(body), _crc_of_length(len(body)), zlib.crc32(body)) + body


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
