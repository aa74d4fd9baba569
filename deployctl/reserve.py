"""Room on the disk that is kept back for the journal: when the disk is full, a rollback is still written down.

The room is a file of its own beside the journal, given back to the file system piece by piece. Where a file system copies on write, or
somebody else takes what was given back in the same instant, nothing can be kept back and the full disk is an error as before.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

RESERVE_BYTES = 1 << 20
PIECE_BYTES = 64 << 10
"""What is given back at once: room for the largest event without a manifest, and for what the file system itself writes with it."""


def is_full(error: OSError) -> bool:
    """Whether this error says that there is no room, on the disk or for this user."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT}


def _free(fd: int) -> int:
    """How many bytes this user may still write to the file system of this file. Raises OSError."""
    status = os.fstatvfs(fd)
    return status.f_bavail * status.f_frsize


class Reserve:
    """The file that keeps the room. Nothing here raises: a reserve that cannot be made or given back is one that is not there."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def fill(self) -> None:
        """Take what can be had, and never more than is left to others: a nearly full disk shall not be full by our doing."""
        with suppress(OSError):
            if self._path.exists() and self._path.stat().st_size == RESERVE_BYTES:
                return
            with self._opened() as file:
                held = os.fstat(file.fileno()).st_size
                while held < RESERVE_BYTES and _free(file.fileno()) >= held + 2 * PIECE_BYTES:
                    os.posix_fallocate(file.fileno(), held, PIECE_BYTES)
                    held += PIECE_BYTES

    def give_back(self) -> bool:
        """Free a piece for whoever writes next; False when nothing is left to give."""
        with suppress(OSError), self._opened() as file:
            held = os.fstat(file.fileno()).st_size
            os.ftruncate(file.fileno(), max(0, held - PIECE_BYTES))
            os.fsync(
                file.fileno()
            )  # blocks that were freed can be had once the file system's own journal says so
            return held > 0
        return False

    def _opened(self) -> BinaryIO:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.fdopen(os.open(self._path, flags, 0o600), "r+b", buffering=0)
