"""What must survive a power cut: the rule is temp file, fsync, rename, fsync of the directory.

A disk writes sectors. Where the power was cut before an fsync, some of those that were written are there and others are not, in any
order; one that never arrived reads as zeros.
"""

from __future__ import annotations

import os
from pathlib import Path

SECTOR_BYTES = 512
"""What a disk writes whole or not at all; larger sectors are several of these."""


def never_arrived(data: bytes, at: int, end: int | None = None) -> bool:
    """Whether a sector with some of data[:end] in it has nothing but zeros; `at` is the place of `data` in its file.

    `data` reaches to the end of the file, or to where something else is known to follow.
    """
    before = at % SECTOR_BYTES
    starts = range(-before, len(data) if end is None else min(end, len(data)), SECTOR_BYTES)
    return any(not any(data[max(0, start) : start + SECTOR_BYTES]) for start in starts)


def sync_directory(path: Path) -> None:
    """Make the names in a directory (created, renamed, removed) durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: Path) -> None:
    """Make a directory and all that is missing above it, each 0700 and its name durable. Raises OSError."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    sync_directory(path.parent)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte; write(2) may take fewer than it was given. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def publish(temporary: Path, path: Path) -> None:
    """Give a finished and fsynced temporary file its name, replacing what had it. Raises OSError."""
    temporary.rename(path)
    sync_directory(path.parent)
