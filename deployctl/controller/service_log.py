"""The service's log is the stderr of its processes. The one rule: a disk that is too full for a line of it stops nobody."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any

STDERR = 2


class _Lines(io.RawIOBase):
    """What is written to stderr, as far as it can be; the rest is lost."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with suppress(OSError):
            os.write(STDERR, data)
        return len(data)


def go_on_without_a_log() -> None:
    """From now on nothing that is said on stderr fails: not the words about a full disk either, on that very disk."""
    lines = io.BufferedWriter(_Lines())
    sys.stderr = io.TextIOWrapper(lines, "utf-8", "backslashreplace", line_buffering=True)
