"""How a fault comes before one call of a controller: by strace, into whatever its libraries do, or by our own failpoints.

A failpoint is a wrapper around a function of `os`, or around what says something to another process, in the forked controller alone;
it needs no tool and no privilege, and it can tear a write in two. Strace reaches what no wrapper sees: writes inside uvloop and libc.
"""

import ctypes
import errno
import mmap
import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path

from deployctl.controller.workers import SupervisorLink
from deployctl.traffic import builtin
from deployctl.wire import admin

FILE_CALLS = ("open", "write", "fsync", "ftruncate", "rename", "link", "unlink", "mkdir", "fchmod")
"""Functions of `os` through which Python code changes files; `open` counts where it may make one."""

WORDS = ("tell the router", "tell the supervisor", "answer a client")
"""What a controller says to others, as points of their own: between "written down" and "said" lies what a kill can spoil."""

SYSTEM_CALLS = (
    *("write", "pwrite64", "writev", "sendmsg", "sendto", "fsync", "fdatasync", "rename", "link", "unlink"),
    *("mkdir", "rmdir", "ftruncate", "symlink", "fchmod", "openat"),
)
"""System calls that can change something outside the process. Of `openat` those count that may make a file."""

KILL, ENOSPC, EIO = "SIGKILL", "ENOSPC", "EIO"
TORN_KILL, SHORT, FULL = "SIGKILL in mid-write", "half a write", "disk full for a while"
FAILPOINT_MODES = (KILL, ENOSPC, EIO, TORN_KILL, SHORT, FULL)
STRACE_MODES = (KILL, ENOSPC, EIO)
DEADLY = (KILL, TORN_KILL)

NEEDS_ROOM = ("open", "write", "fsync", "rename", "link", "mkdir")


@dataclass(frozen=True)
class Fault:
    """One fault: before the n-th call of this name. `by` is "strace" or "failpoint"."""

    by: str
    mode: str
    call: str
    number: int

    @property
    def injection(self):
        """As strace wants it."""
        how = "signal=KILL" if self.mode == KILL else f"error={self.mode}"
        return f"{self.call}:{how}:when={self.number}"

    def __str__(self):
        return f"{self.mode} before {self.call} {self.number} ({self.by})"


class Board:
    """A page that a controller shares with its lane: whether the fault came, whether it is over, and how many calls there were."""

    def __init__(self):
        self._page = mmap.mmap(-1, 4096)

    @property
    def came(self):
        return self._page[0] == 1

    @came.setter
    def came(self, value):
        self._page[0] = int(value)

    @property
    def lifted(self):
        return self._page[1] == 1

    @lifted.setter
    def lifted(self, value):
        self._page[1] = int(value)

    def begin(self):
        self._page[:] = bytes(4096)

    def count(self, call):
        at = 8 + 4 * (FILE_CALLS + WORDS).index(call)
        number = int.from_bytes(self._page[at : at + 4], "little") + 1
        self._page[at : at + 4] = number.to_bytes(4, "little")
        return number

    def counts(self):
        names = FILE_CALLS + WORDS
        numbers = [int.from_bytes(self._page[8 + 4 * at : 12 + 4 * at], "little") for at in range(len(names))]
        return Counter({name: number for name, number in zip(names, numbers, strict=True) if number})


# ── our own failpoints ─────────────────────────────────────────────────────────────────────────────────────────────


def arm(board, fault):
    """In the forked controller, before it runs: count every call, and let the fault come before its own."""
    for name in FILE_CALLS:
        setattr(os, name, _wrapped(name, getattr(os, name), board, fault))
    builtin.encode = _wrapped("tell the router", builtin.encode, board, fault)
    SupervisorLink._send = _wrapped("tell the supervisor", SupervisorLink._send, board, fault)
    admin._Conversation._write = _wrapped("answer a client", admin._Conversation._write, board, fault)


def _wrapped(name, call, board, fault):
    @wraps(call)
    def at_this_point(*args, **more):
        if name == "open" and not (len(args) > 1 and args[1] & os.O_CREAT):
            return call(*args, **more)
        number = board.count(name)
        if fault and (fault.call, fault.number) == (name, number):
            board.came = True
            return _strike(fault.mode, call, args, more)
        if fault and fault.mode == FULL and board.came and not board.lifted and name in NEEDS_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(*args, **more)

    return at_this_point


def _strike(mode, call, args, more):
    match mode:
        case "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        case "EIO":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        case "SIGKILL in mid-write":
            call(args[0], args[1][: len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        case "half a write":
            return call(args[0], args[1][: len(args[1]) // 2])
        case _:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None


def failpoints(counts):
    """Every fault that makes sense before these calls."""
    for call in (*FILE_CALLS, *WORDS):
        modes = (KILL,) if call in WORDS else FAILPOINT_MODES
        for mode in modes:
            if (mode in {TORN_KILL, SHORT} and call != "write") or (mode == FULL and call not in NEEDS_ROOM):
                continue
            for number in range(1, counts.get(call, 0) + 1):
                yield Fault("failpoint", mode, call, number)


# ── strace ─────────────────────────────────────────────────────────────────────────────────────────────────────────

_LINE = re.compile(r"^(\d+) +(\w+)\((.*)$")
_NO_FILE = re.compile(r"^\d+<(socket|pipe|anon_inode|UNIX|TCP|/dev/null|.*\.stderr)")


@cache
def strace_works():
    """Whether there is a strace that may attach to a process of ours."""
    if shutil.which("strace") is None:
        return False
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        may_be_traced()
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    tracing = Strace(pid, "write")
    try:
        return tracing.attached
    finally:
        tracing.end()
        os.close(writing)
        os.close(reading)
        os.waitpid(pid, 0)


def may_be_traced():
    """Let a process that is not our parent attach, where the kernel would ask for a parent (Yama)."""
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1 & (2**64 - 1)), 0, 0, 0)


class Strace:
    """A strace that is attached to a process; what it saw is in `log`."""

    def __init__(self, pid, calls, inject=None, log=os.devnull):
        self.log = Path(log)
        argv = ["strace", "-f", "-y", "-s", "0", "-o", str(self.log), "-p", str(pid), "-e", f"trace={calls}"]
        argv += ["-e", f"inject={inject}"] if inject else []
        self._process = subprocess.Popen(argv, stderr=subprocess.PIPE)
        self.attached = b"attached" in self._process.stderr.readline()

    def end(self):
        """It lets go of the process, if there still is one."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        self._process.stderr.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def struck(self):
        """Whether an error was injected (a kill shows in the process itself)."""
        return "(INJECTED)" in self.log.read_text(errors="replace")


def traced_points(log):
    """Every fault by strace that makes sense in a story whose calls were traced into this file."""
    numbers = Counter()
    main = None
    for line in log.read_text(errors="replace").splitlines():
        seen = _LINE.match(line)
        if seen is None:
            continue
        pid, call, arguments = seen.groups()
        main = main or pid
        if pid != main:
            continue  # threads count for themselves in strace
        numbers[call] += 1
        if call == "openat" and "O_CREAT" not in arguments:
            continue
        touches_file = not _NO_FILE.match(arguments)
        for mode in STRACE_MODES if touches_file else (KILL,):
            yield Fault("strace", mode, call, numbers[call])
