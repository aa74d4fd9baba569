"""Processes as the kernel shows them: who was started by whom, who stands still, who listens. Whoever cannot be looked at is left out."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

KINDS = {"deployctl.controller": "controller", "deployctl.router": "router", "deployctl.serving": "worker"}

_LISTEN = "0A"
_STATE, _PARENT, _STARTED, _PAGES = 0, 1, 19, 21
"""Fields of /proc/PID/stat after the name, counted from 0 (proc(5))."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process. `kind` is what it does for a service, empty for others; `state` the kernel's letter; `age` seconds, `memory` bytes."""

    pid: int
    parent: int
    state: str
    kind: str
    age: float
    memory: int


def process(pid: int) -> Process | None:
    """None when there is none of this pid."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2].split()
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        up = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError):
        return None
    kind = next((KINDS[word] for word in words[:4] if word in KINDS), "")
    age = up - int(fields[_STARTED]) / os.sysconf("SC_CLK_TCK")
    memory = int(fields[_PAGES]) * os.sysconf("SC_PAGE_SIZE")
    return Process(pid, int(fields[_PARENT]), fields[_STATE], kind, age, memory)


def children(parent: int) -> list[Process]:
    """Those that a process has started and that are not reaped yet."""
    found = (process(int(entry.name)) for entry in _entries() if entry.name.isdigit())
    return [one for one in found if one is not None and one.parent == parent]


def holder(port: int) -> str:
    """Who listens on this TCP port, in words."""
    sockets = {f"socket:[{inode}]" for inode, taken in _listeners() if taken == port}
    for entry in _entries():
        if entry.name.isdigit() and sockets & _open_in(entry):
            words = ""
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ").strip()
            return f"pid {entry.name}{f' ({words[:80]})' if words else ''}"
    return "a process of another user" if sockets else "a process that cannot be seen here"


def port_of(pid: int) -> int | None:
    """The TCP port that a process listens on, the first of several; None for none."""
    sockets = _open_in(Path(f"/proc/{pid}"))
    return next((port for inode, port in _listeners() if f"socket:[{inode}]" in sockets), None)


def refusal(host: str, port: int) -> OSError | None:
    """Why one could not listen there, or None. The address is taken for a moment and nobody listens on it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        return error
    return None


def _entries() -> Iterator[Path]:
    with suppress(OSError):
        yield from Path("/proc").iterdir()


def _listeners() -> Iterator[tuple[str, int]]:
    """Each listening TCP socket: its inode and its port."""
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN:
                    yield fields[9], int(fields[1].rpartition(":")[2], 16)


def _open_in(entry: Path) -> set[str]:
    found = set()
    with suppress(OSError):
        for link in (entry / "fd").iterdir():
            with suppress(OSError):
                found.add(os.readlink(link))  # noqa: PTH115 - no path: `socket:[4711]`
    return found
