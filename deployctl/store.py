"""The models of a service, copied in by digest: a stored file is named after its bytes and never changes.

Only the holder of the service's lock adds and removes; workers read, and check the digest of what they have read.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deployctl.durable import publish, sync_directory, write_all
from deployctl.errors import IntegrityError, InvalidError, UnavailableError

MAX_MODEL_BYTES = 2 * 1024**3
"""ONNX files end at 2 GiB: a limit of protobuf."""

CHUNK_BYTES = 1 << 20
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
INCOMING = ".incoming-"


def is_digest(value: object) -> bool:
    """Whether this is the digest of a model."""
    return isinstance(value, str) and DIGEST.fullmatch(value) is not None


class Store:
    """The directory `models/` of a service; made by the first `add`."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_MODEL_BYTES) -> None:
        self.root = path
        self.max_bytes = max_bytes

    def add(self, source: Path, digest: str | None = None) -> tuple[str, bool]:
        """Copy a model in; returns its digest and whether it is new here.

        When `digest` is stored already, and still has its bytes, the source is not looked at: a file that was overwritten
        since changes nothing. A stored copy that was damaged is replaced from a good source. Raises IntegrityError (not
        the bytes that `digest` names), InvalidError (the source cannot be read), UnavailableError (the store cannot be
        written).
        """
        if digest is not None and self.holds(digest):
            return digest, False
        with _opened(source, self.max_bytes) as fd, self._incoming() as (temporary, copy):
            found = self._copy(source, fd, copy)
            if digest is not None and digest != found:
                raise IntegrityError(
                    f"{source}: the file is {found} where {digest} was asked for; put that file there or correct the digest"
                )
            if self.holds(found):
                return found, False
            publish(temporary, self.path(found))
            return found, True

    def path(self, digest: str) -> Path:
        """Where the bytes of a digest are, or would be. Raises InvalidError when it is no digest."""
        if not is_digest(digest):
            raise InvalidError(f"{digest!r} is no digest; write sha256: and 64 hexadecimal digits")
        return self.root / f"{digest.replace(':', '-')}.onnx"

    def holds(self, digest: str) -> bool:
        """Is it here, with the bytes that its name claims? (Reads all of them.)"""
        try:
            with self.path(digest).open("rb") as file:
                return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == digest
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._unavailable("cannot be read", error) from error

    def remove_except(self, digests: Iterable[str]) -> None:
        """Remove every other model, and what interrupted copies left behind."""
        kept = {self.path(digest).name for digest in digests}
        try:
            for entry in self.root.iterdir() if self.root.is_dir() else ():
                if entry.name not in kept and (entry.suffix == ".onnx" or entry.name.startswith(INCOMING)):
                    entry.unlink(missing_ok=True)
        except OSError as error:
            raise self._unavailable("cannot be cleared", error) from error

    @contextmanager
    def _incoming(self) -> Iterator[tuple[Path, int]]:
        """A temporary file of the store, gone at the end unless it was published; OSErrors in the block are the store's."""
        temporary: Path | None = None
        try:
            if not self.root.is_dir():
                self.root.mkdir(mode=0o700)
                sync_directory(self.root.parent)
            fd, name = tempfile.mkstemp(prefix=INCOMING, dir=self.root)
            temporary = Path(name)
            try:
                yield temporary, fd
            finally:
                os.close(fd)
        except OSError as error:
            raise self._unavailable("cannot be written", error) from error
        finally:
            if temporary is not None:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)

    def _copy(self, source: Path, fd: int, copy: int) -> str:
        """Copy the bytes while hashing them, durably and read-only; returns the digest of what was written."""
        digest = hashlib.sha256()
        size = 0
        while chunk := _read(source, fd):
            size += len(chunk)
            if size > self.max_bytes:
                raise _too_large(source, self.max_bytes)
            digest.update(chunk)
            write_all(copy, chunk)
        os.fchmod(copy, 0o400)
        os.fsync(copy)
        return f"sha256:{digest.hexdigest()}"

    def _unavailable(self, what: str, error: OSError) -> UnavailableError:
        reason = error.strerror or error
        return UnavailableError(
            f"{self.root}: the model store {what}: {reason}; check the disk and who owns the directory"
        )


@contextmanager
def _opened(source: Path, max_bytes: int) -> Iterator[int]:
    """A model file open for reading; a fifo or a device is refused instead of waited for."""
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise _unreadable(source, error) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidError(f"{str(source)!r} is not a file; name the ONNX file of the model")
        if status.st_size > max_bytes:
            raise _too_large(source, max_bytes)
        yield fd
    finally:
        os.close(fd)


def _read(source: Path, fd: int) -> bytes:
    try:
        return os.read(fd, CHUNK_BYTES)
    except OSError as error:
        raise _unreadable(source, error) from error


def _unreadable(source: Path, error: OSError | ValueError) -> InvalidError:
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return InvalidError(
        f"{str(source)!r} cannot be read: {reason}; a model's uri is relative to the manifest"
    )


def _too_large(source: Path, max_bytes: int) -> InvalidError:
    return InvalidError(f"{str(source)!r} is too large: a model has at most {max_bytes} bytes")
