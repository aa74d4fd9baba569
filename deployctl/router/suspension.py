"""Did this process run all the time? A machine that was suspended, or a router that was stopped, makes every answer late that was awaited.

That is no version's fault, and it falls on whoever is slower: so what was under way then is evidence of nothing.
"""

from __future__ import annotations

import asyncio
from time import monotonic

LONGEST_STALL = 1.0
"""Seconds without a turn of the loop after which a process was suspended; what is shorter is the noise of a busy machine."""

_BEAT = 0.25


class Pulse:
    """A clock that knows when this process last woke up. It beats, so that no traffic is not taken for no life."""

    def __init__(self) -> None:
        self.woke_at = 0.0
        """CLOCK_MONOTONIC; whatever began before this was held up."""
        self._last = monotonic()

    def now(self) -> float:
        """CLOCK_MONOTONIC; whoever looks first after a suspension notices it."""
        now = monotonic()
        if now - self._last > LONGEST_STALL:
            self.woke_at = now
        self._last = now
        return now

    async def beat(self) -> None:
        """Never returns."""
        while True:
            await asyncio.sleep(_BEAT)
            self.now()
