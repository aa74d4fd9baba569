"""Begin the rollout of a manifest, or join the one that runs, and follow it: what `canary ramp` and `shadow` have in common."""

from __future__ import annotations

import secrets
import shlex
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from deployctl.cli.follow import Answered, Arrivals, Document, Following, Until, follow, in_background, undo
from deployctl.cli.manifests import read_manifest
from deployctl.cli.models import baseline_for, digests_for
from deployctl.cli.options import Output, person
from deployctl.cli.pipeline import NO_REPORTS, Account, Reports, reporting
from deployctl.cli.services import Service, service_called
from deployctl.cli.signals import Cancelled, Signals, StoppedError, listen
from deployctl.errors import ConflictError, Exit, InvalidError, UnavailableError
from deployctl.views.console import last_words, note, say, show_document

if TYPE_CHECKING:
    from deployctl.manifest.manifest import Manifest

VERBS = {"canary": "canary ramp", "shadow": "shadow", "blueGreen": "blue-green switch"}
"""Key of `spec.strategy` → the verb that carries it out."""
CALL_OFF_SECONDS = 0.2
"""How often an order is called off that the service has not come to yet."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the command was called."""

    up: bool = False
    timeout: str | None = None
    until: Until | None = None
    detach: bool = False
    rollback_on_cancel: bool = False
    output: Output = Output.TEXT
    reports: Reports = NO_REPORTS


def begin(file: str, strategy: str, wanted: Wanted) -> int:
    """Begin or join, then follow to the end that was asked for, and report it to the pipeline that runs the command."""
    account = Account(VERBS[strategy], file, again=f"deployctl {VERBS[strategy]} {shlex.quote(file)}")
    return reporting(wanted.reports, account, lambda: _begin(file, strategy, wanted, account))


def _begin(file: str, strategy: str, wanted: Wanted, account: Account) -> int:
    arrivals: Arrivals = SimpleQueue()
    signals = listen(arrivals)
    try:
        with signals.interruptible():  # nothing has begun yet
            seconds = _seconds(wanted.timeout) if wanted.timeout is not None else None
            manifest = read_manifest(file)
            _carries_out(file, manifest, strategy)
            service = account.service = service_called(manifest.name)
            _start_if_wanted(service, manifest, up=wanted.up)
            path = str(Path(file).absolute())
            digests = digests_for(service, manifest, path)
            service.client().close()  # what it imports takes longer than all the rest of the order
    except StoppedError as stopped:
        account.cancelled, account.message = stopped.by, "No rollout was begun."
        last_words(f"deployctl: {stopped.by}: no rollout was begun")
        return Exit.WATCH_ENDED
    told = {"manifest": manifest.text, "path": path, "strategy": strategy, "by": person()}
    beginning = Beginning(service, {**told, "digests": digests}, account, arrivals, signals)
    ended = beginning.give(call_off=wanted.rollback_on_cancel)
    if ended is not None:
        return ended
    answer = beginning.answer
    rollout, message = answer.get("rollout"), answer.get("message")
    account.rollout, account.message = rollout or "", message or ""
    if wanted.detach or answer.get("state") == "already_live" or rollout is None:
        if wanted.output is Output.JSON:
            show_document({"schema_version": 1, "service": service.name, **answer})
        else:
            say(f"{service.name}: {message}")
        return Exit.DONE
    note(f"{service.name}: {message}")
    following = Following(
        service=service,
        rollout=rollout,
        account=account,
        joined_at=_last_event(service, rollout) if answer.get("state") == "following" else 0,
        until=wanted.until,
        timeout=seconds,
        rollback_on_cancel=wanted.rollback_on_cancel,
        output=wanted.output,
    )
    return follow(following, arrivals, signals)


@dataclass(slots=True)
class Beginning:
    """The order to begin, on its way: the candidate is loaded and checked first, which may take a minute."""

    service: Service
    order: Document
    account: Account
    arrivals: Arrivals
    signals: Signals
    answer: Document = field(default_factory=dict)
    ticket: str = field(default_factory=partial(secrets.token_hex, 8))
    """Names this order, so that it alone is called off."""

    def give(self, *, call_off: bool) -> Exit | None:
        """Wait for the answer; an exit code where a signal comes first. With `call_off` that signal ends what was ordered.

        Raises what the service refuses.
        """
        order = {**self.order, "ticket": self.ticket}
        in_background(
            lambda: self.arrivals.put(Answered(self.service.post("/v1/rollouts", order))), self.arrivals
        )
        match self.arrivals.get():
            case Cancelled() as cancelled if call_off:
                self.account.cancelled = cancelled.by
                return self._call_off(cancelled)
            case Cancelled(by):
                name, ordered = (
                    self.service.name,
                    "the rollout was ordered and begins once its candidate is loaded",
                )
                self.account.cancelled, self.account.message = by, f"{ordered.capitalize()}."
                last_words(
                    f"deployctl: {by}: {ordered}; follow it: {self.account.again}; undo it: deployctl rollback {name}"
                )
                return Exit.WATCH_ENDED
            case news:
                self.answer = _answer(news)
                return None

    def _call_off(self, cancelled: Cancelled) -> Exit:
        """Not by a rollback, which would end a rollout of somebody else while ours is not begun."""
        with self.signals.deaf():
            called_off = False
            while True:
                called_off = called_off or self._is_called_off()
                try:
                    self.answer = _answer(self.arrivals.get(timeout=CALL_OFF_SECONDS))
                except Empty:
                    continue
                except ConflictError:
                    if not called_off:
                        raise
                    self.account.message = "the rollout was called off before it began"
                    last_words(f"{cancelled.by}: {self.service.name}: {self.account.message}")
                    return Exit.ROLLED_BACK
                break
        self.account.rollout = self.answer.get("rollout") or ""
        self.account.message = self.answer.get("message") or ""
        if self.answer.get("rollout") is None:
            last_words(f"{cancelled.by}: {self.service.name}: {self.answer.get('message')}")
            return Exit.DONE
        return undo(self.service, self.account.rollout, cancelled, self.signals)

    def _is_called_off(self) -> bool:
        try:
            answer = self.service.post("/v1/call-off", {"by": person(), "ticket": self.ticket})
        except InvalidError:  # a service of an older release: it is rolled back once it has begun
            return False
        return bool(answer.get("changed"))


def _answer(news: object) -> Document:
    match news:
        case Answered(document):
            return document
        case Exception() as error:
            raise error
    raise AssertionError(f"nobody else sends news yet: {news}")


def _carries_out(file: str, manifest: Manifest, strategy: str) -> None:
    """Raises InvalidError where the manifest asks for another strategy than the verb carries out."""
    from deployctl.core.strategies import STRATEGIES  # noqa: PLC0415 - --help does without

    if manifest.strategy is None or isinstance(manifest.strategy, STRATEGIES[strategy]):
        return
    written = next(name for name, kind in STRATEGIES.items() if isinstance(manifest.strategy, kind))
    raise InvalidError(
        f"{file}: its strategy is {written}, not {strategy}; use: deployctl {VERBS[written]} {shlex.quote(file)}"
    )


def _last_event(service: Service, rollout: str) -> int:
    """The number of the latest event: a hold that a person has passed long ago must not end the watching."""
    events = service.get(f"/v1/explain?rollout={rollout}").get("events") or []
    return max((int(event.get("seq") or 0) for event in events), default=0)


def _seconds(duration: str) -> float:
    from deployctl.manifest.quantities import seconds  # noqa: PLC0415 - --help does without

    try:
        return seconds(duration)
    except ValueError as error:
        raise InvalidError(f"--timeout: {error}") from error


def _start_if_wanted(service: Service, manifest: Manifest, *, up: bool) -> None:
    if service.pid is not None:
        return
    if not up:
        raise UnavailableError(
            f"service '{service.name}' is not running; start it with: deployctl up FILE, or add --up"
        )
    from deployctl.cli.up import start_detached  # noqa: PLC0415 - only with --up

    baseline = baseline_for(service, manifest)
    note(start_detached(service, manifest, baseline=baseline).words)
