"""A worker whose answers nobody is given lets everybody else go first; did it get the processor at all?

One that waits for it answers late for no fault of its version, so what ran out of time then is evidence of nothing. The kernel counts how
long each thread ran and how long it waited for its turn (`/proc/PID/task/TID/schedstat`), but the wait only once it is over: of one
that goes on it can be seen that the thread is runnable, as it was at the last look, and had no turn in between.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections import deque
from pathlib import Path
from struct import Struct
from typing import NamedTuple

ENOUGH = 0.25
"""Of the time that somebody had: who waited for longer than this may be late for that reason alone."""

_BUSY = 0.5
"""Processors: who runs on more than this is not starved by others."""

_SHORTEST = 0.02
"""Seconds between two looks that say something."""

_NICEST = 19

_SHORT_TURN, _LONG_TURN = 200_000, 100_000_000
"""Nanoseconds; the kernel takes no longer ones."""

_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_ATTRIBUTES = Struct("=IIQiIQQQ")
"""The kernel's `struct sched_attr`: size, policy, flags, nice, priority, runtime (here: the slice), deadline, period."""

_REMEMBERED = 4096
"""Looks; at ten in a second more than six minutes."""


def step_back(process: int = 0) -> str:
    """Has a process (0: this one) leave the processor to everybody else, and says whether it does: only where the kernel counts what that
    costs it.
    """
    if not Path("/proc/self/schedstat").exists():
        return "normal"
    try:
        # Threads that libraries start inherit it. Not SCHED_IDLE, which costs callers twice as much (docs/decisions/0005).
        os.setpriority(os.PRIO_PROCESS, process, _NICEST)
    except OSError:
        return "normal"
    take_long_turns(process)
    return "idle"


def take_short_turns(thread: int = 0) -> bool:
    """Has a thread (0: this one) answer for callers: whenever it wakes up it comes before whoever computes for longer, and says whether
    it does.

    It gets no more of the processor than before, only sooner: a slice that is shorter than the usual one (kernel documentation: EEVDF,
    `sched_setattr`; Linux 6.12 and newer take it, older ones leave it at the usual).
    """
    return _take_turns(_SHORT_TURN, thread)


def take_long_turns(thread: int = 0) -> bool:
    """Has a thread (0: this one) compute for long: it gets no less of the processor than before, only later, when all who
    answer quickly have been served.
    """
    return _take_turns(_LONG_TURN, thread)


def _take_turns(nanoseconds: int, thread: int) -> bool:
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None or sys.platform != "linux":
        return False
    try:
        nice = os.getpriority(os.PRIO_PROCESS, thread)
    except OSError:  # it has ended
        return False
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, nanoseconds, 0, 0)
    failed: int = ctypes.CDLL(None, use_errno=True).syscall(number, thread, attributes, 0)
    return failed == 0


class _Thread(NamedTuple):
    ran: int
    """Nanoseconds on a processor."""
    waited: int
    """Nanoseconds of the waits for one that are over."""
    turns: int
    runnable: bool


class Starvation:
    """What one process got of the processor.

    One that goes last was starved when it waited; of any other that is so only if it did not itself run for most of the time, since
    whoever takes the processor up with threads of its own waits for them. `process`: its id.
    """

    def __init__(self, process: int) -> None:
        self._directory = f"/proc/{process}/task"
        self._process = process
        self._looked = 0.0
        self._threads: dict[str, _Thread] = {}
        self._waits: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)  # when seen, seconds

    def look(self, now: float) -> None:
        """Compares with the last look. `now`: seconds, CLOCK_MONOTONIC."""
        seconds = now - self._looked
        if seconds < _SHORTEST:
            return
        self._looked = now
        before, self._threads = self._threads, self._read()
        both = [(before[name], is_) for name, is_ in self._threads.items() if name in before]
        waited = max((_waited(was, is_, seconds) for was, is_ in both), default=0.0)
        ran = sum(is_.ran - was.ran for was, is_ in both) * 1e-9
        if waited > 0 and (ran < _BUSY * seconds or _goes_last(self._process)):
            self._waits.append((now, min(waited, seconds)))

    def waited(self, since: float) -> float:
        """Seconds for which a thread of it was seen to wait at looks after `since` (CLOCK_MONOTONIC)."""
        total = 0.0
        for seen, seconds in reversed(self._waits):
            if seen <= since:
                break
            total += seconds
        return total

    def _read(self) -> dict[str, _Thread]:
        threads = {}
        try:
            for name in os.listdir(self._directory):  # noqa: PTH208 - as below
                ran, waited, turns = map(int, _content(f"{self._directory}/{name}/schedstat").split())
                state = _content(f"{self._directory}/{name}/stat").rpartition(b") ")[2][:1]
                threads[name] = _Thread(ran, waited, turns, state == b"R")
        except (OSError, ValueError):
            return {}  # it has ended, or one of its threads has: the next look begins anew
        return threads


def _content(path: str) -> bytes:
    """Of a short file. The router reads ten of them ten times a second between two requests: this is the cheapest way."""
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, 512)
    finally:
        os.close(file)


def _waited(was: _Thread, is_: _Thread, seconds: float) -> float:
    """Seconds out of `seconds` that a thread wanted a processor and had none."""
    waited = (is_.waited - was.waited) * 1e-9
    if was.runnable and is_.runnable and is_.turns == was.turns:
        return max(waited, seconds - (is_.ran - was.ran) * 1e-9)
    return waited


def _goes_last(process: int) -> bool:
    try:
        return os.getpriority(os.PRIO_PROCESS, process) == _NICEST
    except OSError:
        return False
