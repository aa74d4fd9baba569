"""Entries on disk: written before they count, and read again by a controller that is started anew.

One file per rollout. Entries go to the page cache and not to the disk platter: kill -9 loses nothing, a power cut at most the last
second (evidence then is less, never other). An unfinished last entry is cut.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import BinaryIO, Self

from deployctl.errors import IntegrityError, UnavailableError
from deployctl.records.entries import Entry, Intake, decode, encode

_HEAD = Struct("<III")
"""Length of the body, checksum of the length, checksum of the body: a damaged length must not pass for an unfinished end."""


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
        body = encode(entry)
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
        yield decode(body), at


def _crc_of_length(length: int) -> int:
    return zlib.crc32(length.to_bytes(4, "little"))


def iter_batches(entries: list[Entry]) -> Iterator[tuple[str, int]]:
    """(router, batch number) of every intake: what need not be taken in again."""
    for entry in entries:
        if isinstance(entry, Intake):
            yield entry.router, entry.batch.number
