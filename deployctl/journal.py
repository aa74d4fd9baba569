"""The append-only event log of one service: what is not in here has not happened.

A line is `<sha256> <compact JSON>`, its hash taken over the hash before it and its own bytes, so that no record can be
changed, lost or swapped unseen. An append returns when the record is on the disk.

One process at a time has it open for append: the kernel's lock on the file itself, held until that process is gone for good, says who.
The service's lock alone would not do. A supervisor that is killed lets go of it before the kernel kills its controller, and a
process that is killed in the middle of a write finishes that first. That a record is only appended at the length that the last one
left is the second line: it notices whoever asks for no lock, and cannot stop one who writes in the very same moment.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

from deployctl.durable import never_arrived, publish, sync_directory, write_all
from deployctl.errors import IntegrityError, UnavailableError
from deployctl.reserve import Reserve, is_full

FIRST_HASH = hashlib.sha256(b"deployctl journal 1").digest()
MAX_RECORD_BYTES = 4 * 1024 * 1024
"""A manifest of 256 KiB, escaped as JSON, is the largest thing that a record carries."""

HASH_CHARS = 64
LOCK_SECONDS = 10.0
"""How long a killed process may take to let go of the journal: as long as its last write does."""

LOCK_RETRY_SECONDS = 0.02
OPEN_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a journal, for looking only; none when there is no journal yet.

    A last record that is still being written is left out. Raises IntegrityError when a record is damaged and
    UnavailableError when the file cannot be read.
    """
    return _undamaged(path).records


@dataclass(frozen=True, slots=True)
class Inspection:
    """A journal as it lies on the disk: the records that are proven, how many bytes of an unfinished one follow, and what is wrong
    with the record after them; nothing is, where `damage` is empty.
    """

    records: list[dict[str, Any]]
    unfinished_bytes: int
    damage: str


def inspect(path: Path) -> Inspection | None:
    """Look at a journal, damaged or not, without a lock; None where there is none. Raises UnavailableError."""
    if not os.path.lexists(path):
        return None
    contents = _contents(path)
    return Inspection(contents.records, contents.unfinished_bytes, contents.damage)


class Journal:
    """A journal open for append. `records` and `dropped_bytes` tell what was found when it was opened.

    `append` is durable when it returns; after an error the record is not in the journal.
    """

    def __init__(self, path: Path, fd: int, contents: _Contents) -> None:
        """Use `Journal.open`."""
        self.path = path
        self.records = contents.records
        self.dropped_bytes = contents.unfinished_bytes
        self._fd = fd
        self._seq = len(contents.records)
        self._hash = contents.last_hash
        self._length = contents.proven_bytes
        self._closed_by: str | None = None
        self._torn_by: OSError | None = None
        self._foreign = False
        self._reserve = Reserve(path.with_name(f"{path.name}.reserve"))
        self._reserve.fill()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the journal, made if need be; an unfinished last record is cut and its bytes are counted.

        Raises IntegrityError when any other record is damaged (nothing is changed then), UnavailableError when disk or
        permission is in the way or another process has it open and does not end.
        """
        fd = _opened(path)
        try:
            contents = _undamaged(path)
            os.ftruncate(fd, contents.proven_bytes)
            os.fsync(fd)
            sync_directory(path.parent)
        except OSError as error:
            os.close(fd)
            raise _unavailable(path, "cannot be opened", error) from error
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, contents)

    def append(self, record: Mapping[str, Any], *, spare: bool = False) -> int:
        """Write one record down, durably, and return its sequence number (`seq`, which is added to it).

        `spare`: where the disk is full, use the room that is kept back for this. Raises UnavailableError when it could not be written: it
        is then not in the journal, and a later append may succeed unless the message says that the journal is closed.
        """
        if self._closed_by is not None:
            error = IntegrityError if self._foreign else UnavailableError
            raise error(f"{self.path}: closed for writing: {self._closed_by}; restart the service")
        seq = self._seq + 1
        body, digest = _encoded({**record, "seq": seq}, self._hash)
        line = _line(body, digest)
        if self._torn_by is not None:
            self._take_back(self._torn_by)
        self._check_length()
        while (failure := self._write(line)) is not None:
            if not (spare and is_full(failure) and self._torn_by is None and self._reserve.give_back()):
                raise _unavailable(self.path, "a record could not be written", failure) from failure
        self._reserve.fill()
        self._seq, self._hash, self._length = seq, digest, self._length + len(line)
        return seq

    def close(self) -> None:
        """Close the file; twice is the same as once."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
        self._closed_by = self._closed_by or "it was closed"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, line: bytes) -> OSError | None:
        """Write it, or take it back and say why."""
        try:
            _write_line(self._fd, line)
        except OSError as error:
            with suppress(UnavailableError):  # it is tried again before the next append
                self._take_back(error)
            return error
        return None

    def _check_length(self) -> None:
        """A second writer, or someone's `> journal`, shows in the length before it can spoil the chain."""
        try:
            length = os.fstat(self._fd).st_size
        except OSError as error:
            raise _unavailable(self.path, "a record could not be written", error) from error
        if length != self._length:
            self._closed_by = f"it has {length} bytes where {self._length} were written"
            self._foreign = True
            raise IntegrityError(
                f"{self.path}: changed by someone else: {self._closed_by}; "
                "stop the service and try `deployctl up --recover`"
            )

    def _take_back(self, cause: OSError) -> None:
        """Cut what a failed append may have left, so that the next record is not glued to half of one."""
        self._torn_by = cause
        try:
            os.ftruncate(self._fd, self._length)
            # After a failed fsync the kernel may call dirty pages clean: only a good fsync makes the cut certain.
            os.fsync(self._fd)
        except OSError as error:
            raise UnavailableError(
                f"{self.path}: a failed append ({cause.strerror or cause}) cannot be taken back: {error.strerror or error}; "
                "nothing is written before it can; check the disk"
            ) from error
        self._torn_by = None


@dataclass(frozen=True, slots=True)
class Recovery:
    """What `recover` found: the records that are proven, and where the damaged file was kept."""

    records: list[dict[str, Any]]
    kept: Path
    damage: str


def recover(
    path: Path, ending: Callable[[list[dict[str, Any]]], Mapping[str, Any] | None]
) -> Recovery | None:
    """Keep a damaged journal aside and put its proven records, those before the damage, in its place.

    `ending` gives the record that has to follow them, if any. One rename does it all, so a crash leaves either the damaged journal or
    the proven one with its ending, never a rollout that goes on as if nothing had come after it. None when nothing is damaged.
    The caller holds the service's lock. Raises UnavailableError.
    """
    if not path.exists():
        return None
    lock = _opened(path)
    try:
        contents = _contents(path)
        return _recovered(path, contents, ending(contents.records)) if contents.damage else None
    finally:
        os.close(lock)


def _recovered(path: Path, contents: _Contents, ending: Mapping[str, Any] | None) -> Recovery:
    kept, temporary = _free_name(path), path.with_name(f".{path.name}.recovered")
    try:
        if not kept.exists():
            kept.hardlink_to(path)
            sync_directory(path.parent)
        with path.open("rb") as damaged:
            proven = damaged.read(contents.proven_bytes)
        if ending is not None:
            seq = len(contents.records) + 1
            body, digest = _encoded({**ending, "seq": seq}, contents.last_hash)
            proven += _line(body, digest)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            write_all(fd, proven)
            os.fsync(fd)
        finally:
            os.close(fd)
        publish(temporary, path)
    except OSError as error:
        raise _unavailable(path, "cannot be recovered", error) from error
    return Recovery(records=contents.records, kept=kept, damage=contents.damage)


def _free_name(path: Path) -> Path:
    """Where a damaged journal is kept: a new name, or the one that it was given before a crash in mid-recovery."""
    number = 1
    while (kept := path.with_name(f"{path.name}.damaged-{number}")).exists() and not kept.samefile(path):
        number += 1
    return kept


@dataclass(slots=True)
class _Contents:
    """The proven start of a journal file, and what came after it."""

    records: list[dict[str, Any]] = field(default_factory=list)
    last_hash: bytes = FIRST_HASH
    proven_bytes: int = 0
    unfinished_bytes: int = 0
    damage: str = ""


def _opened(path: Path) -> int:
    """The file, made if need be, with the kernel's word that nobody else appends to it."""
    try:
        fd = os.open(path, OPEN_FLAGS, 0o600)
    except OSError as error:
        raise _unavailable(path, "cannot be opened", error) from error
    until = time.monotonic() + LOCK_SECONDS
    try:
        while not _locked(fd):
            if time.monotonic() > until:
                raise UnavailableError(
                    f"{path}: another process has it open for writing and does not end; try `fuser {path}`"
                )
            time.sleep(LOCK_RETRY_SECONDS)
    except OSError as error:
        os.close(fd)
        raise _unavailable(path, "cannot be locked", error) from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _undamaged(path: Path) -> _Contents:
    contents = _contents(path)
    if contents.damage:
        raise _damaged(path, contents)
    return contents


def _contents(path: Path) -> _Contents:
    try:
        with path.open("rb") as file:
            return _proven(file)
    except FileNotFoundError:
        return _Contents()
    except OSError as error:
        raise _unavailable(path, "cannot be read", error) from error


def _proven(file: BinaryIO) -> _Contents:
    """Follow the chain from the first line to the end, or to the first line that does not hold."""
    contents = _Contents()
    while line := file.readline(MAX_RECORD_BYTES + 1):
        if len(line) > MAX_RECORD_BYTES:
            contents.damage = "it is longer than any record"
            break
        record, damage = _record(line[:-1], contents)
        if record is None or not line.endswith(b"\n"):
            # A torn append ends inside its record, or lacks sectors. A whole record with one strange byte after it is damage.
            torn = record is None and not line.endswith(b"\n")
            if torn or (_lacks_sectors(line, contents) and not file.read(1)):
                contents.unfinished_bytes = len(line)
            else:
                contents.damage = damage or "its last byte is no newline"
            break
        contents.records.append(record)
        contents.last_hash = bytes.fromhex(line[:HASH_CHARS].decode())
        contents.proven_bytes += len(line)
    return contents


def _lacks_sectors(line: bytes, before: _Contents) -> bool:
    """Whether this is one append of which sectors never arrived, and not the remains of several: the number stands at the end of each."""
    ending = b'"seq":%d}\n' % (len(before.records) + 1)
    rest = line.rpartition(b"\0")[2]
    return never_arrived(line, before.proven_bytes) and (rest.endswith(ending) or ending.endswith(rest))


def _record(line: bytes, before: _Contents) -> tuple[dict[str, Any] | None, str]:
    """The record of a line without its newline, or None and what is wrong with it."""
    claimed, space, body = line[:HASH_CHARS], line[HASH_CHARS : HASH_CHARS + 1], line[HASH_CHARS + 1 :]
    if space != b" " or claimed != hashlib.sha256(before.last_hash + body).hexdigest().encode():
        return None, "its hash does not match"
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):
        return None, "it is not JSON"
    if not isinstance(record, dict):
        return None, "it is not a JSON object"
    expected = len(before.records) + 1
    if type(record.get("seq")) is not int or record["seq"] != expected:
        return None, f"its number is {record.get('seq')!r} where {expected} should follow"
    return record, ""


def _encoded(record: dict[str, Any], previous: bytes) -> tuple[bytes, bytes]:
    body = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
    if len(body) + HASH_CHARS + 2 > MAX_RECORD_BYTES:
        raise ValueError(f"a journal record has {len(body)} bytes; at most {MAX_RECORD_BYTES} are allowed")
    return body, hashlib.sha256(previous + body).digest()


def _line(body: bytes, digest: bytes) -> bytes:
    return digest.hex().encode() + b" " + body + b"\n"


def _write_line(fd: int, line: bytes) -> None:
    """One write(2), so that no reader sees half a line of a process that lives; then the disk."""
    written = os.write(fd, line)
    if written < len(line):
        raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes were written (is the disk full?)")
    os.fsync(fd)


def _damaged(path: Path, contents: _Contents) -> IntegrityError:
    return IntegrityError(
        f"{path}:{len(contents.records) + 1}: this record of the journal is damaged: {contents.damage}; nothing was changed; "
        "`deployctl up --recover` keeps the file aside and serves the last version that is proven"
    )


def _unavailable(path: Path, what: str, error: OSError) -> UnavailableError:
    return UnavailableError(
        f"{path}: {what}: {error.strerror or error}; check the disk and who owns the directory"
    )
