"""What must survive a power cut: the rule is temp file, fsync, rename, fsync of the directory."""

from __future__ import annotations

import os
from pathlib import Path


def sync_directory(path: Path) -> None:
    """Make the names in a directory (created, renamed, removed) durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte; write(2) may take fewer than it was given. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def publish(temporary: Path, path: Path) -> None:
    """Give a finished and fsynced temporary file its name, replacing what had it. Raises OSError."""
    temporary.rename(path)
    sync_directory(path.parent)
