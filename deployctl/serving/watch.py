"""Ends an inference that runs past its deadline: first by asking onnxruntime, and where that does not help with the whole process.
And has a thread whose inferences take long let those go first who need the processor for a moment only.

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

from deployctl.wire.priority import take_long_turns, take_short_turns

_EVERY = 0.05
"""Seconds between two looks."""

_IDLE_LOOKS = 20
"""Looks without work after which the thread sleeps until there is some."""

STOP_SECONDS = 1.0
"""Of processor time: how long an inference that was told to stop may take for it."""

STUCK_SECONDS = 5.0
"""Of processor time beyond a deadline in which our own thread had no turn: something holds the interpreter."""


_LONG_SECONDS = 0.005
"""Of processor time for one inference (of one row or of many): who takes longer need not be the first to have the processor."""


class Watch:
    """Of the thread that makes it. The deadline (CLOCK_MONOTONIC) of the inference that runs now; `until` is infinite while none does.

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
        self._begun = 0  # inferences
        self._turns: _Turns | None = None
        # The default action ends the process, whatever the interpreter is doing then.
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._thread.start()

    def over(self, deadline: float) -> RunOptions:
        """An inference begins: what it is to be run with. Whoever runs it sets `until` back at its end."""
        self.until = deadline
        self._begun += 1
        if self._asleep:
            self._work.set()
        if self._spent:
            self._options, self._spent = RunOptions(), False
        return self._options

    def weigh(self) -> None:
        """From now on take short turns of the processor while inferences are short, and long ones while they are long."""
        take_short_turns(self._thread.native_id or 0)  # it has the turns that its maker had
        self._turns = _Turns(self._begun)

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
            if self._turns is not None:
                self._turns.look(self._begun)
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


class _Turns:
    """How long the turns are that the thread that makes this asks for, by what its inferences took of the processor lately."""

    def __init__(self, begun: int) -> None:
        self._thread = threading.get_native_id()
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self._begun, self._ran = begun, time.clock_gettime(self._clock)
        self._long = False
        take_short_turns(self._thread)

    def look(self, begun: int) -> None:
        """`begun`: inferences so far."""
        ran = time.clock_gettime(self._clock)
        spent = (ran - self._ran) / max(begun - self._begun, 1)
        if begun == self._begun and spent < _LONG_SECONDS:
            return  # nothing was to do
        self._begun, self._ran = begun, ran
        if spent > _LONG_SECONDS and not self._long:
            self._long = take_long_turns(self._thread)
        elif spent < _LONG_SECONDS / 2 and self._long:
            self._long = not take_short_turns(self._thread)
