"""The clock. Rollouts are timed by the monotonic one and do not care; people, labels' own times and certificates need the other.

The one rule: two looks at both clocks, some time apart, tell whether somebody sets the wall clock meanwhile.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from deployctl.doctor.check import Check, problem, warning

PLAUSIBLE_YEARS = range(2026, 2100)
JUMP_SECONDS = 0.25
AHEAD_SECONDS = 60.0
"""A journal whose last record is so far in the future was written before the clock was set back."""

_STA_UNSYNC = 0x40
_ADVICE = "start an NTP client (chrony, systemd-timesyncd) or set the clock: date -s"


class Clocks(NamedTuple):
    """Both at one moment, in seconds."""

    wall: float
    monotonic: float

    @classmethod
    def now(cls) -> Clocks:
        return cls(time.time(), time.monotonic())


class _Timex(ctypes.Structure):
    """The beginning of the kernel's `struct timex`, and more room than it takes."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


def clock_checks(before: Clocks) -> Iterator[Check]:
    """`before`: when the looking began."""
    now = Clocks.now()
    yield from judged(before, now, synchronised())


def judged(before: Clocks, now: Clocks, kept_right: bool | None) -> Iterator[Check]:
    """What two looks at the clocks and the kernel's word (None: it says nothing) mean."""
    wall = datetime.fromtimestamp(now.wall, UTC)
    told = f"{wall:%Y-%m-%d %H:%M:%S} UTC"
    jump = (now.wall - before.wall) - (now.monotonic - before.monotonic)
    if wall.year not in PLAUSIBLE_YEARS:
        yield problem(
            "clock",
            f"it says {told}, which cannot be: labels with their own times are refused, and certificates fail",
            _ADVICE,
        )
    elif abs(jump) > JUMP_SECONDS:
        yield warning(
            "clock",
            f"it was set by {jump:+.1f} s while we looked; it says {told}",
            "see who sets it, and why",
        )
    elif kept_right is False:
        yield warning("clock", f"it says {told}, and the kernel that nothing keeps it right", _ADVICE)
    else:
        yield Check("clock", f"{told}{', kept right' if kept_right else ''}")


def wall_time() -> datetime:
    """Now, as certificates mean it."""
    return datetime.now(UTC)


def synchronised() -> bool | None:
    """Whether somebody keeps the wall clock right (adjtimex); None where the kernel does not say."""
    if sys.platform != "linux":
        return None
    state = _Timex()
    try:
        answer: int = ctypes.CDLL(None).adjtimex(ctypes.byref(state))  # modes 0: only read
    except AttributeError:
        return None
    return None if answer < 0 else not state.status & _STA_UNSYNC


def journal_is_ahead(wall: str) -> Iterator[Check]:
    """Whether a record's time lies in the future."""
    try:
        ahead = datetime.fromisoformat(wall).timestamp() - time.time()
    except ValueError:
        return
    if ahead > AHEAD_SECONDS:
        yield warning(
            "clock",
            f"the journal's last record was written at {wall}, {ahead:,.0f} s after now: the clock was set back",
            _ADVICE,
        )
