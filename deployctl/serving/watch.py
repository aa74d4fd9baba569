"""Ends an inference that runs past its deadline: first by asking onnxruntime, and where that does not help with the whole process.

The answering thread must pay next to nothing for it: it stores when its inference is to end and takes no lock. A second thread looks
twenty times a second while there is work. Whether that thread gets a turn is the kernel's to watch: a timer that it sets
again and again ends the process when it does not.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time

from onnxruntime import RunOptions

_EVERY = 0.05
"""Seconds between two looks."""

_IDLE_LOOKS = 20
"""Looks without work after which the thread sleeps until there is some."""

STOP_SECONDS = 1.0
"""Of processor time: how long an inference that was told to stop may take for it."""

STUCK_SECONDS = 5.0
"""Of processor time beyond a deadline in which our own thread had no turn: something holds the interpreter."""


class Watch:
    """The deadline (CLOCK_MONOTONIC) of the inference that runs now; `until` is infinite while none does.

    The order of the stores is what makes a lock superfluous: whoever answers sets `until` before it looks whether its options are
    spent, and whoever stops it spends the options before it looks whether `until` is still the same.
    """

    def __init__(self, every: float = _EVERY, stuck: float = STUCK_SECONDS) -> None:
        self._every, self._stuck = every, stuck
        self.until = math.inf
        self._options = RunOptions()
        self._spent = False
        self._asleep = True
        self._work = threading.Event()
        # The default action ends the process, whatever the interpreter is doing then.
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        threading.Thread(target=self._look, name="watch", daemon=True).start()

    def over(self, deadline: float) -> RunOptions:
        """An inference begins: what it is to be run with. Whoever runs it sets `until` back at its end."""
        self.until = deadline
        if self._asleep:
            self._work.set()
        if self._spent:
            self._options, self._spent = RunOptions(), False
        return self._options

    def _look(self) -> None:
        try:
            self._look_again_and_again()
        except MemoryError:
            os.abort()  # nobody may go on unwatched; the supervisor starts another

    def _look_again_and_again(self) -> None:
        idle = 0
        stopped = math.inf
        while True:
            until = self.until
            if until == math.inf:
                idle += 1
                signal.setitimer(signal.ITIMER_PROF, 0.0)
            elif until is not stopped:
                idle = 0
                left = until - time.monotonic()
                if left < 0:
                    stopped = until
                    self._stop(until)
                else:
                    signal.setitimer(signal.ITIMER_PROF, left + self._stuck)
            if idle >= _IDLE_LOOKS:
                self._sleep()
                idle = 0
            time.sleep(self._every)

    def _sleep(self) -> None:
        self._asleep = True
        if self.until == math.inf:
            self._work.wait()
        self._asleep = False
        self._work.clear()

    def _stop(self, until: float) -> None:
        options, self._spent = self._options, True
        if self.until is until:  # the very same one: the next inference has other options
            signal.setitimer(signal.ITIMER_PROF, STOP_SECONDS)
            options.terminate = True
