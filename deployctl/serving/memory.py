"""How much memory a worker may take. What goes beyond it fails in the worker, and touches nobody else.

RLIMIT_DATA counts what a process may write to. RLIMIT_AS would count address space, of which onnxruntime and its threads reserve far
more than they use, and a cgroup needs rights that a user's service does not have.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

SHARE = 3
"""Without a limit in the manifest a worker gets one part of so many of the machine: two versions run side by side, and the rest."""

LEAST = 512 << 20
"""Bytes of the default at least; a worker with a small model takes 130 MiB."""

_CONTAINER = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_RATHER_THIS_ONE = 500
_OUT_OF_MEMORY = ("bad_alloc", "Failed to allocate memory", "MemoryError", "Unable to allocate")


def limit_memory(asked: int | None) -> str:
    """Bound this process from now on, to so many bytes or by default; gives the bound in words, for those who meet it."""
    with suppress(OSError):  # no such file elsewhere than on Linux
        Path("/proc/self/oom_score_adj").write_text(str(_RATHER_THIS_ONE))
    if sys.platform != "linux":
        return "the machine's memory"
    import resource  # noqa: PLC0415 - not on every system

    limit = max(LEAST, _machine() // SHARE) if asked is None else asked
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most != resource.RLIM_INFINITY:
        limit = min(limit, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    said = "by default" if asked is None else "as the manifest says"
    return f"spec.service.limits.workerMemory, which is {limit / 2**20:.0f}MiB {said}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it was memory that was missing; libraries say so in many ways."""
    words = f"{type(error).__name__}: {error}"
    return any(sign in words for sign in _OUT_OF_MEMORY)


def _machine() -> int:
    """Bytes of memory of the machine, or of the container that we are in."""
    bytes_of = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CONTAINER:
        with suppress(OSError, ValueError):  # "max": no limit
            bytes_of = min(bytes_of, int(path.read_text()))
    return bytes_of
