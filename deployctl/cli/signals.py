"""SIGINT, SIGTERM and SIGHUP while a rollout is begun and followed: news like any other, and what is under way is ended in order.

The one rule: a rollback that was asked for is not interrupted, whoever insists. What was ignored (nohup) stays ignored.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody or something wants this command to end."""

    by: str


class StoppedError(BaseException):
    """A signal came where it may interrupt; no Exception, so that nothing on the way takes it for a failure."""

    def __init__(self, by: str) -> None:
        super().__init__(by)
        self.by = by


class Signals:
    """What a signal does: the first is put among the news, a second one ends the command at once."""

    def __init__(self, arrivals: SimpleQueue[Any]) -> None:
        self._arrivals = arrivals
        self._first: Cancelled | None = None
        self._raises = False
        self._deaf = False
        self._insisted = False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """What is done in here may be left half-way: raises StoppedError at the first signal, also where that has come already."""
        self._raises = True
        try:
            if self._first is not None:
                raise StoppedError(self._first.by)
            yield
        finally:
            self._raises = False

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """What is done in here is done to its end: a runner sends SIGTERM some seconds after SIGINT."""
        self._deaf = True
        try:
            yield
        finally:
            self._deaf = False

    def arrived(self, number: int, _frame: object) -> None:
        """The handler."""
        if self._deaf or self._insisted:
            return
        if self._first is not None:
            self._insisted = True
            raise KeyboardInterrupt
        self._first = Cancelled(signal.Signals(number).name)
        self._arrivals.put(self._first)
        if self._raises:
            raise StoppedError(self._first.by)


def listen(arrivals: SimpleQueue[Any]) -> Signals:
    """From here to the end of the process: once a command knows its exit code, a signal does not give it another one."""
    signals = Signals(arrivals)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signals.arrived)
    return signals
