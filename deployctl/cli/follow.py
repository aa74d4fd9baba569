"""Watch a rollout until it is finished, and say with an exit code how it ended.

Watching never steers: when it ends early the rollout goes on, and the last line says how to follow or undo it. News comes
over one queue, from a thread that reads the events and from signals, so nothing is interrupted half-way.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from deployctl.cli.options import Output, person
from deployctl.cli.services import STATUS, Service
from deployctl.errors import DeployctlError, Exit, UnavailableError
from deployctl.views.console import is_screen, note, say, show_document
from deployctl.views.events import event_line, words_of

if TYPE_CHECKING:
    from deployctl.views.live import LiveScreen

RECONNECT_SECONDS = 30.0
"""How long a service may be gone before following it fails."""
RETRY_SECONDS = 0.2
REDRAW_SECONDS = 0.5
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Document = dict[str, Any]


class Until(StrEnum):
    """Where following may end before the rollout is finished."""

    PAUSED = "paused"
    PROMOTED = "promoted"


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody or something wants this command to end."""

    by: str


@dataclass(frozen=True, slots=True)
class StatusSeen:
    """A status for the live screen."""

    document: Document


News = Document | StatusSeen | Cancelled | Exception
Arrivals = SimpleQueue[News]


@dataclass(frozen=True, slots=True)
class Following:
    """What is followed, how it is shown, and when to stop. `again` is the command line that follows it again.

    Events before `joined_at` are the past of a rollout that ran already: they are shown, and end nothing.
    """

    service: Service
    rollout: str
    again: str
    joined_at: int = 0
    until: Until | None = None
    timeout: float | None = None
    rollback_on_cancel: bool = False
    output: Output = Output.TEXT


@contextmanager
def signals_into(arrivals: Arrivals) -> Iterator[None]:
    """Signals arrive as news; a second one ends the command at once. What was ignored (nohup) stays ignored."""
    first = True

    def arrived(number: int, _frame: object) -> None:
        nonlocal first
        if not first:
            raise KeyboardInterrupt
        first = False
        arrivals.put(Cancelled(signal.Signals(number).name))

    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, arrived)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(following: Following, arrivals: Arrivals) -> Exit:
    """Show each event until the end that was asked for. Raises what the service refuses, UnavailableError when it is gone."""
    _in_background(lambda: _read_events(following.service, following.rollout, arrivals), arrivals)
    watcher = _Watcher(following)
    deadline = time.monotonic() + following.timeout if following.timeout is not None else None
    try:
        with _screen(following, arrivals) as screen:
            code = watcher.watch(arrivals, screen, deadline)
    except BrokenPipeError:
        return Exit.WATCH_ENDED
    return watcher.farewell(code)


def outcome(event: Document, until: Until | None) -> Exit | None:
    """The exit code that this event means to whoever follows, None to go on."""
    if (code := event.get("exit_code")) is not None:
        return Exit(code)
    phase = event.get("phase")
    if until is not None and phase == until.value:
        return Exit.DONE
    if event.get("kind") == "held":
        return Exit.INCONCLUSIVE
    if not event.get("finished"):
        return None
    if phase == "rolled_back":
        verdict = event.get("verdict") or {}
        undecided = "inconclusive" in {event.get("cause"), verdict.get("result"), verdict.get("verdict")}
        ordered = str(event.get("by") or "").startswith(("person", "webhook:"))
        return Exit.INCONCLUSIVE if undecided and not ordered else Exit.ROLLED_BACK
    return Exit.DONE


class _Watcher:
    """One watch: the last event seen, and what is said at the end."""

    def __init__(self, following: Following) -> None:
        self._following = following
        self._last: Document = {}
        self._cancelled: Cancelled | None = None

    def watch(self, arrivals: Arrivals, screen: LiveScreen | None, deadline: float | None) -> Exit:
        while True:
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                news = arrivals.get(timeout=left)
            except Empty:
                self._cancelled = Cancelled("time-out")
                return Exit.WATCH_ENDED
            match news:
                case Exception():
                    raise news
                case Cancelled():
                    self._cancelled = news
                    return Exit.WATCH_ENDED
                case StatusSeen():
                    if screen:
                        screen.status(news.document)
                case _:
                    self._show(news, screen)
                    code = outcome(news, self._following.until)
                    if code is not None and news["seq"] >= self._following.joined_at:
                        return code

    def farewell(self, code: Exit) -> Exit:
        """The last words; a cancelled command may undo what it started."""
        following = self._following
        if self._cancelled is None:
            if following.output is Output.TEXT:
                say(f"{following.service.name}: {words_of(self._last)}")
                note(f"why: deployctl explain {following.service.name} --rollout {following.rollout}")
            return code
        if following.rollback_on_cancel and self._cancelled.by.startswith("SIG"):
            return self._undo(self._cancelled)
        at = f" at {self._last['weight']:g} %" if isinstance(self._last.get("weight"), int | float) else ""
        note(
            f"deployctl: {self._cancelled.by}: rollout {following.rollout} goes on{at}; follow it: {following.again}; "
            f"undo it: deployctl rollback {following.service.name}"
        )
        return code

    def _undo(self, cancelled: Cancelled) -> Exit:
        reason = f"the command that followed it was cancelled ({cancelled.by})"
        body = {"by": person(), "reason": reason, "to": None}
        answer = self._following.service.post("/v1/rollback", body)
        note(f"{cancelled.by}: {self._following.service.name}: {answer['message']}")
        return Exit.ROLLED_BACK if answer.get("phase") == "rolled_back" else Exit.DONE

    def _show(self, event: Document, screen: LiveScreen | None) -> None:
        self._last = event
        if screen:
            screen.event(event)
        elif self._following.output is Output.JSON:
            show_document(event)
        else:
            say(event_line(event))


def _screen(following: Following, arrivals: Arrivals) -> AbstractContextManager[LiveScreen | None]:
    if following.output is Output.JSON or not is_screen(sys.stdout):
        return nullcontext()
    from deployctl.views.live import LiveScreen  # noqa: PLC0415 - rich costs 0.05 s

    _in_background(lambda: _read_status(following.service, arrivals), arrivals)
    return LiveScreen()


def _in_background(read: Callable[[], None], arrivals: Arrivals) -> None:
    def run() -> None:
        try:
            read()
        except Exception as error:  # noqa: BLE001 - the thread's outermost: the main thread raises it
            arrivals.put(error)

    threading.Thread(target=run, daemon=True).start()


def _read_events(service: Service, rollout: str, arrivals: Arrivals) -> None:
    """Every event once and in order, across restarts of the controller."""
    after, gone_since = 0, None
    while True:
        try:
            with service.client() as client:
                for event in client.stream(f"/v1/rollouts/{rollout}/events?after={after}"):
                    gone_since = None
                    if event["seq"] > after:
                        after = event["seq"]
                        arrivals.put(event)
            error: DeployctlError = UnavailableError(
                f"the events of rollout {rollout} ended without a result"
            )
        except UnavailableError as unavailable:
            error = unavailable
        gone_since = gone_since or time.monotonic()
        if time.monotonic() - gone_since > RECONNECT_SECONDS:
            raise error
        time.sleep(RETRY_SECONDS)


def _read_status(service: Service, arrivals: Arrivals) -> None:
    """The status twice a second; a service that restarts is simply not seen for a while."""
    while True:
        try:
            arrivals.put(StatusSeen(service.get(STATUS)))
        except UnavailableError:
            time.sleep(RETRY_SECONDS)
        time.sleep(REDRAW_SECONDS)
