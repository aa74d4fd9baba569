"""Watch a rollout until it is finished, and say with an exit code how it ended.

Watching never steers: when it ends early the rollout goes on, and the last line says how to follow or undo it. News comes
over one queue, from a thread that reads the events and from signals, so nothing but printing is interrupted half-way.
"""

from __future__ import annotations

import errno
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from deployctl.cli.options import Output, person
from deployctl.cli.pipeline import Account
from deployctl.cli.services import STATUS, Service
from deployctl.cli.signals import Cancelled, Signals, StoppedError
from deployctl.errors import DeployctlError, Exit, UnavailableError
from deployctl.views.console import abandon, is_screen, last_words, note, say, show_document
from deployctl.views.events import event_line, words_of

if TYPE_CHECKING:
    from deployctl.views.live import LiveScreen

RECONNECT_SECONDS = 30.0
"""How long a service may be gone before following it fails."""
RETRY_SECONDS = 0.2
REDRAW_SECONDS = 0.5
NOBODY_READS = {errno.EPIPE, errno.EIO}
"""Of stdout: its reader has left, or its terminal is gone."""

Document = dict[str, Any]


class Until(StrEnum):
    """Where following may end before the rollout is finished."""

    PAUSED = "paused"
    PROMOTED = "promoted"


@dataclass(frozen=True, slots=True)
class StatusSeen:
    """A status for the live screen."""

    document: Document


@dataclass(frozen=True, slots=True)
class Answered:
    """What the service says of the order to begin."""

    document: Document


@dataclass(frozen=True, slots=True)
class Missed:
    """The service does not answer just now, and is waited for."""

    words: str


News = Document | StatusSeen | Answered | Missed | Cancelled | Exception
Arrivals = SimpleQueue[News]


@dataclass(frozen=True, slots=True)
class Following:
    """What is followed, how it is shown, and when to stop. What is seen goes into the account.

    Events before `joined_at` are the past of a rollout that ran already: they are shown, and end nothing.
    """

    service: Service
    rollout: str
    account: Account
    joined_at: int = 0
    until: Until | None = None
    timeout: float | None = None
    rollback_on_cancel: bool = False
    output: Output = Output.TEXT


def follow(following: Following, arrivals: Arrivals, signals: Signals) -> Exit:
    """Show each event until the end that was asked for. Raises what the service refuses, UnavailableError when it is gone."""
    in_background(lambda: _read_events(following.service, following.rollout, arrivals), arrivals)
    watcher = _Watcher(following, signals)
    deadline = time.monotonic() + following.timeout if following.timeout is not None else None
    try:
        with _screen(following, arrivals) as screen:
            code = watcher.watch(arrivals, screen, deadline)
        return watcher.farewell(code)
    except OSError as error:
        return watcher.unheard(error)


def undo(service: Service, rollout: str, cancelled: Cancelled, signals: Signals) -> Exit:
    """Roll back what a cancelled command began or followed, and nobody else's, whatever other signals come meanwhile."""
    reason = f"the command that followed it was cancelled ({cancelled.by})"
    order = {"by": person(), "reason": reason, "to": None, "rollout": rollout}
    with signals.deaf():
        answer = service.post("/v1/rollback", order)
    last_words(f"{cancelled.by}: {service.name}: {answer.get('message')}")
    return Exit.ROLLED_BACK if answer.get("changed") or answer.get("phase") == "rolled_back" else Exit.DONE


def outcome(event: Document, until: Until | None) -> Exit | None:
    """The exit code that this event means to whoever follows, None to go on."""
    code = event.get("exit_code")
    if code is not None and code in [*Exit]:  # a service of a newer release may know others
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

    def __init__(self, following: Following, signals: Signals) -> None:
        self._following = following
        self._signals = signals
        self._last: Document = {}
        self._cancelled: Cancelled | None = None

    def watch(self, arrivals: Arrivals, screen: LiveScreen | None, deadline: float | None) -> Exit:
        while True:
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                news = arrivals.get(timeout=left)
            except Empty:
                self._cancel(Cancelled("time-out"))
                return Exit.WATCH_ENDED
            if (code := self._take(news, screen)) is not None:
                return code

    def _take(self, news: News, screen: LiveScreen | None) -> Exit | None:
        match news:
            case Exception():
                raise news
            case Cancelled():
                self._cancel(news)
                return Exit.WATCH_ENDED
            case StatusSeen() if screen:
                screen.status(news.document)
            case Missed() if screen is None:
                note(f"deployctl: {news.words}")
            case dict():
                self._show(news, screen)
                code = outcome(news, self._following.until)
                return code if news["seq"] >= self._following.joined_at else None
        return None

    def _cancel(self, cancelled: Cancelled) -> None:
        self._cancelled = cancelled
        self._following.account.cancelled = cancelled.by

    def farewell(self, code: Exit) -> Exit:
        """The last words; a cancelled command may undo what it started."""
        following = self._following
        if self._cancelled is None:
            if following.output is Output.TEXT:
                try:
                    self._print(lambda: say(f"{following.service.name}: {words_of(self._last)}"))
                except OSError:  # how it ended is what the command ends with, read or not
                    abandon(sys.stdout)
                last_words(f"why: deployctl explain {following.service.name} --rollout {following.rollout}")
            return code
        if following.rollback_on_cancel and self._cancelled.by.startswith("SIG"):
            return undo(following.service, following.rollout, self._cancelled, self._signals)
        last_words(f"deployctl: {self._cancelled.by}: {self._goes_on}")
        return code

    def unheard(self, error: OSError) -> Exit:
        """The end of the watching where stdout takes nothing more. Raises UnavailableError when that is the disk's fault."""
        abandon(sys.stdout)
        if error.errno not in NOBODY_READS:
            raise UnavailableError(f"stdout: {error.strerror or error}; {self._goes_on}") from error
        last_words(f"deployctl: nobody reads stdout any more: {self._goes_on}")
        return Exit.WATCH_ENDED

    @property
    def _goes_on(self) -> str:
        following = self._following
        at = f" at {self._last['weight']:g} %" if isinstance(self._last.get("weight"), int | float) else ""
        return (
            f"rollout {following.rollout} goes on{at}; follow it: {following.account.again}; "
            f"undo it: deployctl rollback {following.service.name}"
        )

    def _show(self, event: Document, screen: LiveScreen | None) -> None:
        self._last = event
        self._following.account.events.append(event)
        if screen:
            screen.event(event)
        elif self._following.output is Output.JSON:
            self._print(lambda: show_document({"schema_version": 1, **event}))
        else:
            self._print(lambda: say(event_line(event)))

    def _print(self, write: Callable[[], None]) -> None:
        """A reader that takes nothing must not keep us from obeying a signal: what it has not taken then is lost."""
        try:
            with self._signals.interruptible():
                write()
        except StoppedError:
            abandon(sys.stdout)


def _screen(following: Following, arrivals: Arrivals) -> AbstractContextManager[LiveScreen | None]:
    if following.output is Output.JSON or not is_screen(sys.stdout):
        return nullcontext()
    from deployctl.views.live import LiveScreen  # noqa: PLC0415 - rich costs 0.05 s

    in_background(lambda: _read_status(following.service, arrivals), arrivals)
    return LiveScreen()


def in_background(read: Callable[[], None], arrivals: Arrivals) -> None:
    """What it raises arrives as news."""

    def run() -> None:
        try:
            read()
        except OSError as error:  # told apart from one of stdout
            arrivals.put(UnavailableError(f"the service cannot be asked: {error}"))
        except Exception as error:  # noqa: BLE001 - the thread's outermost: the main thread raises it
            arrivals.put(error)

    threading.Thread(target=run, daemon=True).start()


def _read_events(service: Service, rollout: str, arrivals: Arrivals) -> None:
    """Every event once and in order, across restarts of the controller."""
    after = 0
    gone_since: float | None = None
    missed = False

    def answered() -> None:
        nonlocal gone_since, missed
        gone_since, missed = None, False

    while True:
        try:
            with service.client() as client:
                for event in client.stream(f"/v1/rollouts/{rollout}/events?after={after}", answered=answered):
                    seq = int(event.get("seq") or after + 1)
                    if seq > after:
                        after = seq
                        arrivals.put(event | {"seq": seq})
            error: DeployctlError = UnavailableError(
                f"the events of rollout {rollout} ended without a result"
            )
        except UnavailableError as unavailable:
            error = unavailable
        gone_since = gone_since or time.monotonic()
        if not missed and service.pid is None:  # and no controller that is just restarted
            missed = True
            arrivals.put(Missed(f"{error}; it is waited for, {RECONNECT_SECONDS:g} s"))
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
