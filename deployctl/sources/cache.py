"""Fetched models by digest, and what is there of those that are on their way.

The one rule: what has a digest as its name has had those bytes, and whoever uses it looks again. Only the commands of one user write here.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deployctl.durable import publish, write_all
from deployctl.errors import InvalidError, UnavailableError
from deployctl.sources.source import ChangedError
from deployctl.statedir import make_model_cache, model_in_cache
from deployctl.store import MAX_MODEL_BYTES

MAX_CACHE_BYTES = 10 * 1024**3
IN_USE_SECONDS = 3600.0
"""What was used so lately is not removed: a service may be copying it."""

PARTIAL_SECONDS = 7 * 24 * 3600.0
"""A download that nobody took up again for so long is removed."""

KEPT_FREE_BYTES = 64 * 1024**2
"""A download leaves so much of the disk to the journals and records of the services on it."""

LOCK_SECONDS = 0.1
CHUNK_BYTES = 1 << 20
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class ModelCache:
    """The models that commands have fetched for the services under `state`. OSErrors become UnavailableError."""

    def __init__(
        self,
        state: Path,
        *,
        max_bytes: int = MAX_CACHE_BYTES,
        largest: int = MAX_MODEL_BYTES,
        kept_free: int = KEPT_FREE_BYTES,
        boot: Path = BOOT_ID,
    ) -> None:
        self.state = state
        self.max_bytes, self.largest, self.kept_free = max_bytes, largest, kept_free
        self.boot = _boot(boot)
        self.root = make_model_cache(state)

    def path(self, digest: str) -> Path:
        """Where the bytes of a digest are, or would be."""
        return model_in_cache(self.state, digest)

    def holds(self, digest: str) -> bool:
        """Is it here, with its bytes? One that was damaged is removed; one that is asked for is used, and stays."""
        path = self.path(digest)
        with self._translated(path, "cannot be read"):
            try:
                with path.open("rb") as file:
                    found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            except FileNotFoundError:
                return False
            if found != digest:
                path.unlink(missing_ok=True)
                return False
            os.utime(path)
            return True

    @contextmanager
    def incoming(self, key: str) -> Iterator[Partial]:
        """What is here of the file with this key; whoever else is fetching it is waited for."""
        path = self.root / "incoming" / hashlib.sha256(key.encode()).hexdigest()
        with self._translated(path, "cannot be written"):
            fd = _locked(path)
            try:
                yield Partial(self, path, fd)
            finally:
                os.close(fd)

    def tidy(self) -> None:
        """Remove what was not used for longest until the rest fits, and downloads that were given up. Called when one has just come."""
        with self._translated(self.root, "cannot be cleared"):
            entries = sorted(_looked_at(self.root / "sha256"), key=lambda entry: -entry[1].st_mtime)
            now, kept = entries[0][1].st_mtime if entries else 0.0, 0
            for path, status in entries:
                kept += status.st_size
                if kept > self.max_bytes and now - status.st_mtime > IN_USE_SECONDS:
                    path.unlink(missing_ok=True)
            for path, status in _looked_at(self.root / "incoming"):
                if now - status.st_mtime > PARTIAL_SECONDS:
                    path.unlink(missing_ok=True)

    @contextmanager
    def _translated(self, path: Path, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UnavailableError(
                f"{path}: the model cache {what}: {error.strerror or error}; check the disk and who owns the directory"
            ) from error


class Partial:
    """A file that is being fetched: its bytes so far, and what is known of the file that they are of. Holds a lock."""

    def __init__(self, cache: ModelCache, path: Path, fd: int) -> None:
        """Use `ModelCache.incoming`."""
        self._cache = cache
        self._path = path
        self._about = path.with_suffix(".json")
        self._fd = fd
        self._hash = hashlib.sha256()
        self.size = 0
        self.resumed = False

    def resume(self, *, proven: bool) -> str | None:
        """Take up what an earlier attempt left; gives the validator that it was of. Without one only where its end will be `proven`."""
        about = self._read_about()
        validator = about.get("validator")
        # After a power cut the last pages may be zeros; only a digest would notice.
        if not proven and (
            validator is None or self._cache.boot is None or about.get("boot") != self._cache.boot
        ):
            self.restart()
            return None
        self._hash, self.size = hashlib.sha256(), 0
        os.lseek(self._fd, 0, os.SEEK_SET)
        while chunk := os.read(self._fd, CHUNK_BYTES):
            self._hash.update(chunk)
            self.size += len(chunk)
        self.resumed = self.size > 0
        return validator if isinstance(validator, str) else None

    def begin(self, start: int, total: int | None, validator: str | None) -> None:
        """Bytes come from `start` on. Raises ChangedError where ours are not those before it, UnavailableError where the disk has no
        room for them.
        """
        if start == 0:
            self.restart()
        elif start != self.size or self._read_about().get("total") not in {None, total}:
            raise ChangedError
        if total is not None:
            self.make_sure_of_room(total - start)
        about = {"validator": validator, "total": total, "boot": self._cache.boot}
        self._about.write_text(json.dumps(about), encoding="utf-8")

    def make_sure_of_room(self, needed: int) -> None:
        """Raises UnavailableError, and gives back what is here, where so many bytes would fill the disk."""
        disk = os.fstatvfs(self._fd)
        free = disk.f_bavail * disk.f_frsize - self._cache.kept_free
        if needed > free:
            needed_mib, free_mib = -(-needed // 2**20), max(0, free // 2**20)
            self.discard()
            raise UnavailableError(
                f"{self._path.parent}: {needed_mib} MiB are to come and {free_mib} MiB may be used of this disk; make room, or move "
                "$DEPLOYCTL_STATE_DIR"
            )

    def restart(self) -> None:
        """Nothing of it is here any more."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._about.unlink(missing_ok=True)
        self._hash, self.size, self.resumed = hashlib.sha256(), 0, False

    def write(self, chunk: bytes | memoryview) -> None:
        """The next bytes. What does not fit on the disk is given back to it."""
        try:
            write_all(self._fd, chunk)
        except OSError:
            with suppress(OSError):
                self.discard()
            raise
        self._hash.update(chunk)
        self.size += len(chunk)

    def refuse_too_large(self, size: int | None, shown: str) -> None:
        """Raises InvalidError, and keeps nothing, where a model of so many bytes is none."""
        if size is not None and size > self._cache.largest:
            self.discard()
            raise InvalidError(f"{shown}: is too large: a model has at most {self._cache.largest} bytes")

    @property
    def digest(self) -> str:
        """Of all bytes so far."""
        return f"sha256:{self._hash.hexdigest()}"

    def finish(self) -> str:
        """Give the file the name of its digest, durably."""
        os.fchmod(self._fd, 0o400)
        os.utime(self._fd)
        os.fsync(self._fd)
        publish(self._path, self._cache.path(self.digest))
        self._about.unlink(missing_ok=True)
        self._cache.tidy()
        return self.digest

    def discard(self) -> None:
        """Keep nothing of it."""
        os.ftruncate(self._fd, 0)
        self._path.unlink(missing_ok=True)
        self._about.unlink(missing_ok=True)

    def _read_about(self) -> dict[str, Any]:
        try:
            about = json.loads(self._about.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return about if isinstance(about, dict) else {}


def _locked(path: Path) -> int:
    """A file that nobody else has open so. It has been renamed by whoever was waited for when that one has finished: then a new one."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(LOCK_SECONDS)
            if path.exists() and path.stat().st_ino == os.fstat(fd).st_ino:
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _looked_at(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in directory.iterdir():
        with suppress(FileNotFoundError):  # another command tidies as well
            yield path, path.stat()


def _boot(told: Path) -> str | None:
    """Which boot of this machine this is; None where nobody says."""
    try:
        return told.read_text(encoding="ascii").strip()
    except OSError:
        return None
