"""Who else must agree, and who is told: asks the webhooks that the rollout waits for, and tells the others what happened.

Runs beside the loop and never in it; what a webhook agrees to becomes an event, and only `core.rollout` says what that means.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import msgspec

from deployctl.controller import documents
from deployctl.controller.loop import Controller
from deployctl.core.plan import Hook, HookType
from deployctl.core.rollout import Event, Kind, Rollout, hooks_to_ask
from deployctl.errors import DeployctlError

TOLD = frozenset({HookType.EVENT, HookType.POST_ROLLOUT})
"""Types that are told, in order, and never asked."""

ENDS = frozenset({Kind.PROMOTED, Kind.ROLLED_BACK, Kind.RETIRED})

LOOK_SECONDS = 10.0
"""How often is looked after tasks that ended by a fault, where nothing happens meanwhile."""

LONGEST_PAUSE, GIVE_UP_SECONDS = 300.0, 24 * 3600.0
"""Seconds between two tries to tell, and after which an event that nobody takes is given up."""


class Answer(Protocol):
    """What came back of a call."""

    @property
    def agreed(self) -> bool: ...

    @property
    def refused(self) -> bool: ...

    @property
    def words(self) -> str: ...


class Calls(Protocol):
    """Whoever makes the calls. `hook` is as the journal has it; an answer comes in any case, however the call went."""

    async def call(self, hook: Mapping[str, Any], event: bytes) -> Answer: ...


@dataclass(slots=True)
class _Seen:
    """What came of asking or telling one webhook, since this controller runs."""

    tries: int = 0
    last: str = ""
    given_up: int = 0


class Question(NamedTuple):
    """What one webhook is asked. What may roll back is asked the same through all steps: an answer that takes longer than one counts."""

    rollout: str
    step: int | None
    name: str

    @classmethod
    def of(cls, rollout: Rollout, hook: Hook) -> Question:
        return cls(rollout.id, None if hook.type is HookType.ROLLBACK else rollout.step, hook.name)

    @property
    def id(self) -> str:
        """The same whenever it is asked again."""
        return "/".join(str(part) for part in self if part is not None)


class Hooks:
    """The webhooks of one service: one task for each that is asked or told."""

    def __init__(self, controller: Controller, calls: Calls) -> None:
        self._controller = controller
        self._calls = calls
        self._asking: dict[Question, asyncio.Task[None]] = {}
        self._telling: dict[tuple[str, HookType], asyncio.Task[None]] = {}
        self._begun = False
        self._seen: dict[str, _Seen] = {}
        self._told_until = _read_cursor(controller)

    async def run(self) -> None:
        """Ask and tell until this task is cancelled; what there is to ask changes with events."""
        try:
            while True:
                news = self._controller.news
                self._see_to_asking()
                self._see_to_telling()
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await news.wait()
        finally:
            for task in (*self._asking.values(), *self._telling.values()):
                task.cancel()

    def describe(self) -> list[dict[str, Any]]:
        """Each webhook in force, for `status`."""
        service = self._controller.service
        rollout = service.rollout if service else None
        asked = {hook.name for hook in hooks_to_ask(rollout)} if rollout else set()
        return [
            self._described(hook, rollout, waiting=hook["name"] in asked)
            for hook in self._controller.webhooks
        ]

    def _described(
        self, hook: Mapping[str, Any], rollout: Rollout | None, *, waiting: bool
    ) -> dict[str, Any]:
        name, kind = hook["name"], HookType(hook["type"])
        seen = self._seen.get(name, _Seen())
        return {
            "name": name,
            "type": kind.value,
            "waiting": waiting and kind is not HookType.ROLLBACK,
            "agreed": rollout is not None and name in rollout.approved,
            "tries": seen.tries,
            "last": seen.last,
            "behind": sum(1 for _ in self._untold(name, kind)) if kind in TOLD else 0,
            "given_up": seen.given_up,
        }

    # ── asking ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _see_to_asking(self) -> None:
        service = self._controller.service
        rollout = service.rollout if service else None
        wanted = {Question.of(rollout, hook): hook for hook in hooks_to_ask(rollout)} if rollout else {}
        for key in [key for key, task in self._asking.items() if key not in wanted or task.done()]:
            self._asking.pop(key).cancel()
        for key, hook in wanted.items():
            if key not in self._asking:
                self._seen[hook.name] = _Seen()
                self._asking[key] = _begun(self._ask(key, hook))

    async def _ask(self, key: Question, hook: Hook) -> None:
        """Ask until it agrees; the task is cancelled when nobody waits for it any more."""
        seen = self._seen[hook.name]
        while True:
            target = self._target(hook.name)
            answer = await self._calls.call(target, self._question(key, hook, target))
            seen.tries += 1
            seen.last = answer.words
            if answer.agreed:
                try:
                    self._controller.on_agreed(key.rollout, key.step, hook, answer.words)
                except DeployctlError as error:  # a full disk, say: it is asked again
                    seen.last = str(error)
                    sys.stderr.write(f"deployctl: webhook {hook.name}: {error}\n")
                else:
                    return
            await asyncio.sleep(target["interval"])

    def _target(self, name: str) -> Mapping[str, Any]:
        return next(hook for hook in self._controller.webhooks if hook["name"] == name)

    def _question(self, key: Question, hook: Hook, target: Mapping[str, Any]) -> bytes:
        controller = self._controller
        rollout = controller.last
        verdict = controller.full_verdict()
        words = f"{controller.name}: {hook.type.value} of version {rollout.plan.candidate.version} at {rollout.weight:g} %"
        return _cloud_event(
            controller,
            rollout,
            target,
            identity=key.id,
            kind=f"webhook.{hook.type.value}",
            time=controller.wall(),
            text=f"{words}: {verdict.reason}",
            more={"verdict": documents.verdict_document(verdict)},
        )

    # ── telling ────────────────────────────────────────────────────────────────────────────────────────────────

    def _see_to_telling(self) -> None:
        every = ((hook["name"], HookType(hook["type"])) for hook in self._controller.webhooks)
        wanted = [(name, kind) for name, kind in every if kind in TOLD]
        for name, kind in [key for key in self._telling if key not in wanted]:
            if (untold := sum(1 for _ in self._untold(name, kind))) > 0:
                words = (
                    f"webhook {name} was not told of {untold} events: no manifest in force names it any more"
                )
                sys.stderr.write(f"deployctl: {words}\n")
            self._telling.pop((name, kind)).cancel()
        for key in wanted:
            name = key[0]
            if key not in self._telling:
                if self._begun or name not in self._told_until:  # what was before it came is nothing to it
                    self._told_until[name] = self._controller.last_began - 1
                self._telling[key] = _begun(self._tell(*key))
            elif self._telling[key].done():
                self._telling[key] = _begun(self._tell(*key))
        self._begun = True

    def _untold(self, name: str, kind: HookType) -> Iterator[tuple[Event, Rollout]]:
        """What this webhook is to be told yet, of the rollouts that the service remembers."""
        until = self._told_until.get(name, 0)
        for story in self._controller.stories.values():
            for event, rollout in story:
                if event.seq > until and (kind is HookType.EVENT or event.kind in ENDS):
                    yield event, rollout

    async def _tell(self, name: str, kind: HookType) -> None:
        """Everything in its order, the next one when the one before was taken or given up."""
        seen = self._seen.setdefault(name, _Seen())
        while True:
            news = self._controller.news
            while (found := next(self._untold(name, kind), None)) is not None:
                await self._tell_one(name, seen, *found)
                self._told_until[name] = found[0].seq
                with suppress(DeployctlError):  # then one is told twice after a crash
                    await asyncio.to_thread(_keep_cursor, self._controller, dict(self._told_until))
            await news.wait()

    async def _tell_one(self, name: str, seen: _Seen, event: Event, rollout: Rollout) -> None:
        """Until it is taken, refused for good, or a day is over."""
        loop = asyncio.get_running_loop()
        began, pause = loop.time(), 1.0
        while True:
            target = self._target(name)
            answer = await self._calls.call(target, self._news(target, event, rollout))
            seen.tries += 1
            seen.last = answer.words
            if answer.agreed:
                return
            if answer.refused or loop.time() - began > GIVE_UP_SECONDS:
                seen.given_up += 1
                sys.stderr.write(
                    f"deployctl: webhook {name} was not told of event {event.seq}: {answer.words}\n"
                )
                return
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - so that many boxes do not come at once
            pause = min(2 * pause, LONGEST_PAUSE)

    def _news(self, target: Mapping[str, Any], event: Event, rollout: Rollout) -> bytes:
        controller = self._controller
        words = f"{controller.name}: version {rollout.plan.candidate.version} {event.kind.value.replace('_', ' ')}"
        return _cloud_event(
            controller,
            rollout,
            target,
            identity=f"{rollout.id}/{event.seq}",
            kind=f"rollout.{event.kind.value}",
            time=event.wall,
            text=f"{words}: {event.reason}" if event.reason else words,
            more={"event": documents.event_document(event, rollout)},
        )


def _begun(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task beside the loop; one that fails by a fault of ours says so, and is begun again with the next event."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            sys.stderr.write(f"deployctl: this is a bug in deployctl: {type(error).__name__}: {error}\n")

    task = asyncio.create_task(work)
    task.add_done_callback(ended)
    return task


def _cloud_event(
    controller: Controller,
    rollout: Rollout,
    target: Mapping[str, Any],
    *,
    identity: str,
    kind: str,
    time: str,
    text: str,
    more: dict[str, Any],
) -> bytes:
    """CloudEvents 1.0, structured mode in JSON. `text` is an extension: a sentence for people."""
    data = {
        "service": controller.name,
        "rollout": rollout.id,
        "strategy": rollout.plan.strategy,
        "baseline": rollout.plan.baseline.version,
        "candidate": rollout.plan.candidate.version,
        "phase": rollout.phase.value,
        "step": rollout.step + 1,
        "steps": len(rollout.plan.steps),
        "weight": rollout.weight,
        "webhook": target["name"],
        "metadata": target["metadata"],
        **more,
    }
    return msgspec.json.encode(
        {
            "specversion": "1.0",
            "id": identity,
            "source": f"/deployctl/{controller.name}",
            "type": f"dev.deployctl.{kind}.v1",
            "subject": rollout.id,
            "time": time,
            "datacontenttype": "application/json",
            "text": text,
            "data": data,
        }
    )


def _read_cursor(controller: Controller) -> dict[str, int]:
    """Up to which event each webhook was told; where that is not known, of the last rollout again."""
    try:
        found = json.loads(controller.home.webhooks.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    # A journal that was recovered is shorter than it was.
    return {name: min(seq, controller.last_seq) for name, seq in found.items() if isinstance(seq, int)}


def _keep_cursor(controller: Controller, told_until: dict[str, int]) -> None:
    controller.home.keep_private(controller.home.webhooks, json.dumps(told_until).encode())
