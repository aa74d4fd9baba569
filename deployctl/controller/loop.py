"""The loop is the program: observe → judge → decide → record → act, once for every batch, order and tick of a timer.

Nothing here decides about traffic on its own: `core.rollout.decide` proposes, the journal makes it true, and only then are
workers and routers asked for the state that the journal says.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from operator import is_
from pathlib import Path
from typing import Any, Protocol

import msgspec

from deployctl.controller.fold import Story, happened, served, stories, told
from deployctl.controller.observation import Baseline, Observation
from deployctl.controller.workers import worker_id
from deployctl.core.course import UNSEEN, Course
from deployctl.core.metrics import METRICS
from deployctl.core.plan import HUMAN, Hook, Split, Version
from deployctl.core.rollout import (
    Cause,
    Event,
    IllegalEventError,
    Kind,
    Learned,
    Rollout,
    Unloadable,
    Unwatched,
    answered,
)
from deployctl.core.service import Service, with_event
from deployctl.core.verdict import Result, Verdict
from deployctl.errors import IntegrityError, UnavailableError
from deployctl.journal import read
from deployctl.records import (
    LABELS,
    Began,
    Clock,
    Entry,
    Gone,
    Intake,
    Records,
    Rows,
    labels_alone,
    rows_of,
    without_texts,
)
from deployctl.statedir import ServiceHome
from deployctl.store import Store
from deployctl.wire.orders import Batch, LabelRow, Upstream

TICK_SECONDS = 0.05
"""The timer is only the fallback: dwell times end, workers become ready, a router is lost."""

MAX_RECORDS = 4 << 30
"""Bytes of records where the manifest says nothing else."""

LONGEST_WATCH = 1.0
"""Seconds that may pass between two ticks and still count as watched; a suspended machine watches nothing."""

BLIND_SECONDS = 10.0
"""A candidate that answers callers, and of whose answers none can be written down for so long, is rolled back: nobody would see its harm."""

MAX_SETTLED = 16
"""Versions whose worker's settings are remembered: more than are ever loaded together."""

UNHEARD_SECONDS = 5.0
"""A router of which nothing was heard for so long after a restart of the controller is taken for lost."""


class Traffic(Protocol):
    """Whoever carries the traffic. `apply` asks for a whole split, twice is the same as once; `confirmed` is read back;
    `connected` are the digests of the versions that it can reach now, None while nobody says so; `dropped` counts outcomes that were
    lost on the way, `copies_dropped` copies by arm that were never sent.
    """

    def apply(self, split: Split, upstreams: tuple[Upstream, ...]) -> None: ...

    @property
    def ordered(self) -> Split | None: ...

    @property
    def confirmed(self) -> Split | None: ...

    @property
    def connected(self) -> frozenset[str] | None: ...

    @property
    def dropped(self) -> int: ...

    @property
    def copies_dropped(self) -> dict[int, int]: ...


class Versions(Protocol):
    """Whoever runs the versions. `proven` are the reports of those that have been ready since they are wanted, by worker id; `failure` is why
    one cannot be loaded, None for one that can or may yet; `crash_loop` says that one ends again and again, None for all others;
    `runs` says whether there is such a worker, ready or not.
    """

    proven: dict[str, Mapping[str, Any]]

    def runs(self, identity: str) -> bool: ...

    def failure(self, identity: str) -> str | None: ...

    def crash_loop(self, identity: str) -> str | None: ...

    def want(self, settings: list[dict[str, Any]]) -> None: ...


class Log(Protocol):
    """The journal: `append` returns when the record is durable; `spare` lets it have the room that is kept back for a full disk.
    `records` are those of before it was opened; whoever has read them may clear the list.
    """

    @property
    def records(self) -> list[dict[str, Any]]: ...

    def append(self, record: Mapping[str, Any], *, spare: bool = False) -> int: ...


@dataclass(slots=True)
class RolloutClock:
    """Seconds watched by a controller: neither downtime nor suspension nor a stepping wall clock moves it on."""

    now: float = 0.0
    _last: float | None = None
    _instant: float = -1.0

    def advance(self, monotonic: float) -> float:
        """The rollout time at this moment of the monotonic clock."""
        if self._last is not None:
            self.now += min(max(0.0, monotonic - self._last), LONGEST_WATCH)
        self._last = monotonic
        return self.now

    def instant(self, monotonic: float) -> float:
        """The rollout time of what comes in now, in whole microseconds; no two are the same, so their order is in them."""
        self._instant = max(round(self.advance(monotonic), 6), round(self._instant + 1e-6, 6))
        return self._instant

    def go_on_from(self, at: float) -> None:
        """A rollout begins, or is taken up again, at this rollout time."""
        self.now = at
        self._instant = at if at > 0 else -1.0  # nothing has come in yet when a rollout begins


@dataclass(frozen=True, slots=True)
class Blind:
    """From when to when (rollout time) batches came and none could be written down, and why."""

    since: float
    last: float
    words: str


class Controller:
    """One service's loop. Everything it knows is in the journal and the records; the rest is asked for again."""

    def __init__(self, home: ServiceHome, journal: Log, store: Store) -> None:
        self.home = home
        self.journal = journal
        self.store = store
        self.traffic: Traffic
        self.workers: Versions
        self.service: Service | None = None
        self.spec: dict[str, Any] = {}
        self.label_files: dict[str, Any] | None = None
        """The folder of label files, as the newest manifest in force has it."""
        self.webhooks: list[dict[str, Any]] = []
        """Who is asked and told, and how, as the newest manifest of a rollout has it (`manifest.webhooks`)."""
        self.kept: dict[str, Any] = {"inputs": "hash", "max_bytes": MAX_RECORDS}
        """What of requests is written down, and how many bytes of records: `spec.log` of the manifest of `up`."""
        self.manifest: str | None = None
        """The fingerprint of the manifest that the last rollout was begun with; None for a person's order."""
        self.name = home.name
        self.stories: dict[str, Story] = {}
        """Of the rollouts that the service remembers; of those before them `story` asks the journal."""
        self.baseline = Baseline()
        self.observation: Observation | None = None
        self.course: Course | None = None
        self.trying: tuple[Version, ...] = ()
        self.verdict: Verdict = UNSEEN
        self.clock = RolloutClock()
        self.left_out = 0
        self.trouble: str | None = None
        self.awaited: Version | None = None
        """The version that must be ready before traffic can be as the journal says; it stays as it is until then."""
        self.generation = 0
        """How often the service has been taken over by other code: workers of another generation are other workers."""
        self.broken: IntegrityError | None = None
        """Why nothing is decided any more: the journal is not what was written. Traffic stays as it is."""
        self.monotonic: Callable[[], float] = time.monotonic
        self.wall: Callable[[], str] = wall_time
        self._records: Records | None = None
        self._seen_batches: dict[str, int] = {}
        self._predictions: dict[str, dict[str, Any] | None] = {}
        self._serving: dict[str, str] = {}
        self._blind: Blind | None = None
        self._dropped_before: dict[int, int] = {}
        self._lingering: dict[str, float] = {}
        self._settings: dict[str, dict[str, Any]] = {}
        self._settled: dict[tuple[Version, bool], tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._took_over = False
        self._checkpoint = self._resumed_at = 0.0
        self._unheard: set[str] = set()
        self._seq = self._unwritten = 0
        self._news = asyncio.Event()
        self._awake = False
        self._fold_journal()

    # ── what the journal says ──────────────────────────────────────────────────────────────────────────────────

    def _fold_journal(self) -> None:
        for record, event in told(self.journal.records, self.home.journal):
            self._seq = record["seq"]
            if event is None:
                self._fold_served(record)
            else:
                self._fold_event(record["rollout"], event)
                self._fold_prediction(record)
        self.journal.records.clear()  # a long life's are many, and nobody needs them any more
        rollout = self.service.rollout if self.service else None
        if rollout is not None:
            self.clock.go_on_from(rollout.at)
        if rollout is not None and not rollout.finished:
            self._resume(rollout)

    def _fold_served(self, record: Mapping[str, Any]) -> None:
        self.spec = record["spec"]
        self._fold_prediction(record)
        self.service = served(self.service, record, self.home.journal)

    def _fold_prediction(self, record: Mapping[str, Any]) -> None:
        if "digests" in record:
            kept = {version.digest for version in self.trying} | (
                self.service.kept if self.service else set()
            )
            self._predictions = {one: said for one, said in self._predictions.items() if one in kept}
            self._predictions |= dict.fromkeys(record["digests"], record["prediction"])
            if record["type"] == "event":
                written = record.get("manifest")
                self.manifest = None if written is None else fingerprint(written)
        if "labels" in record:
            self.label_files = record["labels"]
        if "webhooks" in record:
            self.webhooks = record["webhooks"]
        self.kept = record.get("log") or self.kept

    def _fold_event(self, rollout_id: str, event: Event) -> None:
        self.service = happened(self.service, rollout_id, event, self.home.journal)
        self.stories.setdefault(rollout_id, []).append((event, self.last))
        if event.kind is Kind.STARTED:
            self.stories = {rollout.id: self.stories[rollout.id] for rollout in self.service.rollouts}

    def _resume(self, rollout: Rollout) -> None:
        """Take up a rollout that was running: the same records give the same evidence."""
        self._records = Records.open(self._records_path(rollout.id), max_bytes=self.kept["max_bytes"])
        if self._records.dropped_bytes:
            lost = f"{self._records.dropped_bytes} bytes of outcomes that were not on the disk yet were cut"
            sys.stderr.write(f"deployctl: {self._records.path}: {lost}\n")
        if rollout.learned is not None:
            self.observation = Observation(rollout.plan, rollout.learned)
        last, self._seen_batches = rollout.at, {}
        for entry in self._records.read():
            last = max(last, entry.at)
            if self.observation is not None:
                self.observation.fold(entry)
            if isinstance(entry, Intake):
                self._seen_batches[entry.router] = entry.batch.number
        self._take_course(rollout, last)
        self._unheard, self._resumed_at = set(self._seen_batches) - {LABELS}, self.clock.now
        self._begin_step_if_new(rollout)

    def _take_course(self, rollout: Rollout, at: float) -> None:
        """Go on from this instant; what should have been decided at it is decided first."""
        self.clock.go_on_from(at)
        judge = self.observation.says if self.observation else None
        self.course = Course(rollout, self._record_decided, judge, settled=at, owed=at)

    def _records_path(self, rollout_id: str) -> Path:
        return self.home.records / f"{rollout_id}.records"

    # ── recording ──────────────────────────────────────────────────────────────────────────────────────────────

    def record_served(
        self,
        spec: dict[str, Any],
        version: Version,
        prediction: dict[str, Any] | None,
        manifest: str,
        labels: dict[str, Any] | None = None,
        log: dict[str, Any] | None = None,
    ) -> None:
        """The service starts, or starts again with another `spec.service`: written down first."""
        record = {
            "type": "served",
            "wall": self.wall(),
            "spec": spec,
            "version": msgspec.to_builtins(version),
            "prediction": prediction,
            "digests": [version.digest],
            "manifest": manifest,
            "labels": labels,
            "log": log,
        }
        self._seq = self.journal.append(record)
        self._fold_served({**record, "seq": self._seq})

    def record(
        self,
        rollout_id: str,
        event: Event,
        manifest: str | None = None,
        prediction: dict[str, Any] | None = None,
        labels: dict[str, Any] | None = None,
        webhooks: list[dict[str, Any]] | None = None,
    ) -> Event:
        """Legal? → written and fsynced → the state moves. Raises IllegalEventError and UnavailableError, nothing changed."""
        assert self.service is not None
        event = replace(event, seq=self._seq + 1, wall=self.wall())
        with_event(self.service, rollout_id, event)
        body = msgspec.to_builtins(event)
        record = {"type": "event", "wall": event.wall, "rollout": rollout_id, "event": body}
        if event.plan is not None:
            digests = [
                version.digest
                for version in (event.plan.baseline, *event.plan.candidates)
                if version != HUMAN
            ]
            record |= {"manifest": manifest, "prediction": prediction, "digests": digests}
            if (
                manifest is not None
            ):  # a rollback by hand has none, and leaves the folder and the webhooks as they are
                record |= {"labels": labels, "webhooks": webhooks or []}
            # What a person's rollback to another version needs is written in any case; a new candidate can wait for a disk with room.
            self._append_start(rollout_id, record, spare=manifest is None)
        else:
            self._seq = self.journal.append(record, spare=self._cannot_wait(event))
        if self._seq != event.seq:
            raise IntegrityError(f"the journal gave number {self._seq} to event {event.seq}")
        self._fold_prediction(record)
        self._fold_event(rollout_id, event)
        self._after(event)
        return event

    def _cannot_wait(self, event: Event) -> bool:
        """Whether an event is written down on a full disk, too: what the gate decides, and every way back of a person."""
        a_way_back = event.kind in {Kind.ROLLED_BACK, Kind.FINISHED} or not self.last.plan.steps
        return event.cause not in {Cause.PERSON, Cause.WEBHOOK} or a_way_back

    def _append_start(self, rollout_id: str, record: Mapping[str, Any], *, spare: bool) -> None:
        """A rollout begins when there is a place for its records: one that had none would be refused, and begin all the same."""
        path = self._records_path(rollout_id)
        opened = Records.open(path, max_bytes=self.kept["max_bytes"])
        try:
            self._seq = self.journal.append(record, spare=spare)
        except BaseException:
            opened.close()
            with suppress(OSError):
                path.unlink()
            raise
        self._records = opened

    def _record_decided(self, event: Event) -> Rollout:
        self.record(self.last.id, event)
        return self.last

    def _after(self, event: Event) -> None:
        """What follows from an event for the things that are only remembered, not decided."""
        rollout = self.last
        if self.course is not None:
            self.course.rollout, self.course.owed = rollout, event.at
        match event.kind:
            case Kind.STARTED:
                self._checkpoint = event.at
                self._dropped_before = self.traffic.copies_dropped
                self._unheard = set()
                self._blind = None
                self.observation, self.verdict, self._seen_batches = None, UNSEEN, {}
                self._take_course(rollout, event.at)
            case Kind.LEARNED:
                assert rollout.learned is not None
                assert self.course is not None
                self.observation = Observation(rollout.plan, rollout.learned)
                self.course.judge = self.observation.says
                self._begin_step_if_new(rollout)  # a person may have passed the wait at weight 0
            case Kind.CLIMBED:
                self._begin_step_if_new(rollout)
            case Kind.PROMOTED | Kind.ROLLED_BACK:
                self.baseline = Baseline()
        if rollout.finished and self._records is not None:
            self._records.close()
            self._records = None
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _begin_step_if_new(self, rollout: Rollout) -> None:
        if self.observation is None or rollout.step < 0 or rollout.ended:
            return
        assert self._records is not None
        begun = Began(rollout.step, rollout.split_number, rollout.at)
        if all(entry.step != begun.step for entry in self._records.began):
            self._take(begun)

    def _begin_step_late(self) -> None:
        """A step whose beginning could not be written down begins now: without it, none of its answers would count."""
        if self._records is not None:
            self._begin_step_if_new(self.last)

    # ── observing ──────────────────────────────────────────────────────────────────────────────────────────────

    def on_batch(self, router: str, batch: Batch) -> None:
        """A batch of raw outcomes: written down, then counted; one that is known already is left out.

        Raises ValueError, and nothing is written, when its columns do not fit together.
        """
        self._unheard.discard(router)
        rows = rows_of(batch)
        if batch.number <= self._seen_batches.get(router, 0):
            return
        self._seen_batches[router] = batch.number
        monotonic = self.monotonic()
        at = self.clock.instant(monotonic)
        self._tried(self._pass_time, at)
        if self._judging:
            assert self.observation is not None
            kept = batch if self.observation.reads_texts else without_texts(batch)
            self._take(Intake(router, at, kept, monotonic - at))
        else:
            self._know(Intake(router, at, batch), rows)
        self.wake()

    def on_labels(self, labels: list[LabelRow]) -> dict[str, int]:
        """Labels that no router posted: taken in like a router's, so that they are in the records and a replay sees them.

        Gives how the counts of labels moved; `unused` are labels that nothing in the running rollout asks for. Raises
        UnavailableError when they cannot be written down.
        """
        seen = self.observation if self._judging else None
        if seen is not None and not seen.uses_labels:
            return {"unused": len(labels)}
        counted: Observation | Baseline = seen or self.baseline  # these labels may be what ends the rollout
        before, lost = counted.labels, self._unwritten
        number = self._seen_batches.get(LABELS, 0) + 1
        self.on_batch(LABELS, labels_alone(labels, number, self.monotonic()))
        if self._unwritten > lost:
            raise UnavailableError(
                "the labels cannot be written down: look at the disk, then send them again"
            )
        return {name: count - before[name] for name, count in counted.labels.items()}

    async def keep_labels(self) -> None:
        """Return when the labels that were taken in are safe from a power cut: their work is a person's. Raises UnavailableError."""
        if self._records is not None:
            await asyncio.to_thread(self._records.sync())

    def on_router_gone(self, router: str) -> None:
        """Nothing of a lost router is in flight any more."""
        self._lose(router)
        self.wake()

    def _lose(self, router: str) -> None:
        at = self.clock.instant(self.monotonic())
        self._tried(self._pass_time, at)
        if self._judging:
            self._take(Gone(router, at))

    @property
    def copies_dropped(self) -> dict[str, int]:
        """Copies of the last rollout that were never sent, by version; those before a restart of a router are not in it."""
        rollout = self.service.rollout if self.service else None
        if rollout is None:
            return {}
        versions = (rollout.plan.baseline, *rollout.plan.candidates)
        return {
            versions[arm].version: max(0, count - self._dropped_before.get(arm, 0))
            for arm, count in sorted(self.traffic.copies_dropped.items())
            if arm < len(versions)
        }

    @property
    def records_full(self) -> bool:
        """Whether the records of the running rollout have reached `spec.log.maxSize`: what comes now is no evidence any more."""
        return self._records is not None and self._records.full

    @property
    def _judging(self) -> bool:
        rollout = self.service.rollout if self.service else None
        return self.observation is not None and rollout is not None and rollout.watched

    def _take(self, entry: Entry) -> None:
        assert self.observation is not None
        assert self._records is not None
        try:
            self._records.append(entry)
        except UnavailableError as error:
            # What is not written down does not count: evidence can only be less than it was.
            self._unwritten += 1
            self.left_out += len(entry.batch.arm) if isinstance(entry, Intake) else 0
            if isinstance(entry, Intake):
                since = self._blind.since if self._blind else entry.at
                self._blind = Blind(since, entry.at, str(error))
            return
        if isinstance(entry, Intake):
            self._blind = None
        self.observation.fold(entry)
        if not isinstance(entry, Began):
            self._tried(self._settle, entry.at)

    def _forget_unheard(self, now: float) -> None:
        """A router that died while no controller watched would hold back every later outcome by its last watermark."""
        if not self._unheard or now - self._resumed_at < UNHEARD_SECONDS:
            return
        lost, self._unheard = sorted(self._unheard), set()
        for router in lost:
            self._lose(router)

    def _know(self, entry: Intake, rows: Rows) -> None:
        """Outside of evidence: what the live version answers is learnt from."""
        if self.service is None:
            return
        split = self.service.split
        live_arm = 1 if split.weight >= 100 else 0
        live = (
            (rows.columns["arm"] == live_arm)
            & (rows.columns["split"] >= self._first_known_split)
            & (rows.columns["mirrored"] == 0)
            & ~rows.explicit
        )
        self.baseline.take_in(rows.take(live), entry)

    @property
    def _first_known_split(self) -> int:
        """Outcomes of older splits may be of another live version."""
        assert self.service is not None
        rollout = self.service.rollout
        if rollout is None:
            return self.service.base_seq
        if rollout.ended:
            return rollout.split_number
        return 0

    # ── deciding and acting ────────────────────────────────────────────────────────────────────────────────────

    @property
    def news(self) -> asyncio.Event:
        """Set at the next event; there is another one for what comes after it."""
        return self._news

    @property
    def last_seq(self) -> int:
        """The number of the journal's last record."""
        return self._seq

    @property
    def last_began(self) -> int:
        """The journal's number of the last rollout's first event, or of the next record where there is none yet."""
        rollout = self.service.rollout if self.service else None
        return self.stories[rollout.id][0][0].seq if rollout is not None else self._seq + 1

    @property
    def last(self) -> Rollout:
        """The last rollout; there must be one."""
        assert self.service is not None
        assert self.service.rollout is not None
        return self.service.rollout

    def wake(self) -> None:
        """Tick as soon as the loop is free; many calls are one tick."""
        if not self._awake:
            self._awake = True
            asyncio.get_running_loop().call_soon(self._tick_now)

    def _tick_now(self) -> None:
        self._awake = False
        self.tick(self.monotonic())

    def tick(self, monotonic: float) -> None:
        """Observe → judge → decide → record → act. A failing step is an observation; the next tick tries again."""
        now = self.clock.advance(monotonic)
        if self.service is None or self.broken is not None:
            return
        failures = [self._tried(self._move_on, now)]
        self._begin_step_late()
        self._checkpoint_clock(now)
        self._forget_unheard(now)
        failures.append(self._tried(self.act, monotonic))
        self.trouble = next((failure for failure in failures if failure), None)

    def _tried(self, step: Callable[[float], None], when: float) -> str | None:
        """What was in the way of a step, if anything: an observation and not the end of the loop."""
        try:
            step(when)
        except (UnavailableError, OSError) as error:
            if str(error) != self.trouble:
                sys.stderr.write(f"deployctl: {error}\n")
            return str(error)
        except (IntegrityError, IllegalEventError) as error:
            self.broken = IntegrityError(f"{error}; traffic stays as it was")
            sys.stderr.write(f"deployctl: {self.broken}\n")
            return str(error)
        return None

    def _move_on(self, now: float) -> None:
        """Judge → decide → record: what time alone decides, then what the workers have to say."""
        self._pass_time(now)
        course = self.course
        if course is None or course.rollout.finished:
            return
        learned = self._could_learn(course.rollout)
        untenable = self._unloadable(course.rollout) or self._unwatched(course.rollout)
        if learned is not None or untenable is not None:
            course.settle(self.clock.instant(self.monotonic()), learned, untenable)

    def _unloadable(self, rollout: Rollout) -> Unloadable | None:
        """A version that is tried and cannot be kept loaded, None while all can."""
        judged = {one.version for one in rollout.judged}
        for version in rollout.plan.candidates:
            identity = self.settings_id(version)
            words = self.workers.failure(identity) or self.workers.crash_loop(identity)
            if words is not None and version.version not in judged:
                return Unloadable(version.version, words)
        return None

    def _unwatched(self, rollout: Rollout) -> Unwatched | None:
        """Whether callers are answered by a candidate that nobody has been able to watch for a while."""
        blind = self._blind
        if blind is None or rollout.ended or rollout.weight == 0 or blind.last - blind.since < BLIND_SECONDS:
            return None
        return Unwatched(f"for {BLIND_SECONDS:g} s no answer could be written down: {blind.words}")

    @property
    def unwell(self) -> str | None:
        """What is wrong with the worker of the live version, which is started again for ever; None while all is well."""
        live = self.service.live if self.service else None
        if live is None or live == HUMAN:
            return None
        identity = self._serving.get(live.digest) or self.settings_id(live)
        words = self.workers.failure(identity) or self.workers.crash_loop(identity)
        return f"version {live.version}: {words}; it is started again and again" if words else None

    def _pass_time(self, until: float) -> None:
        if self.course is not None:
            self.course.pass_time(until)

    def _settle(self, at: float) -> None:
        if self.course is not None:
            self.course.settle(at)

    def on_agreed(self, rollout_id: str, step: int | None, hook: Hook, words: str) -> None:
        """A webhook that was asked at this step (None: at any) has agreed; nothing happens where nobody waits for it any more.

        Raises UnavailableError where that cannot be written down.
        """
        at = self.order_time()
        if self.broken is not None or self.last.id != rollout_id or step not in {None, self.last.step}:
            return
        event = answered(self.last, hook, at, words)
        if event is None:
            return
        if event.kind is Kind.ROLLED_BACK:
            event = replace(event, verdict=self.full_verdict())
        self.record(rollout_id, event)
        self.wake()

    def order_time(self) -> float:
        """The instant of an order that is given now; all that was to be decided before it has been."""
        at = self.clock.instant(self.monotonic())
        self._pass_time(at)
        return at

    def act(self, monotonic: float) -> None:
        """Ask for the workers and the traffic that the journal says; safe to repeat."""
        assert self.service is not None
        split, in_force = self.service.split, self.traffic.ordered or self.traffic.confirmed
        if not self._took_over:
            self._take_over(monotonic)
        wanted = [*dict.fromkeys((*self.service.versions, *self.trying))]
        preferred = {version.digest: self._settings_of(version) for version in wanted}
        for digest, settings in preferred.items():
            if settings["id"] in self.workers.proven:
                self._serving[digest] = settings["id"]
        upstreams = self._upstreams([*dict.fromkeys((*wanted, *_shares(in_force)))])
        ready = {upstream.digest for upstream in upstreams} - self._stepped_back(preferred)
        desired, self.awaited = _possible(split, ready, self.traffic.connected, in_force)
        if order := desired or in_force:
            self.traffic.apply(order, upstreams)
        kept = {settings["id"] for settings in preferred.values()} | {
            self._serving[digest] for digest in preferred if digest in self._serving
        }
        running = self._linger(kept, desired, monotonic)
        self.workers.want([self._settings[i] for i in running])
        ids = {*running, *(settings["id"] for settings in preferred.values())}
        self._settings = {one: settings for one, settings in self._settings.items() if one in ids}
        # A version that is unloaded must be ready again before it is sent anything.
        self._serving = {digest: one for digest, one in self._serving.items() if one in running}

    def _take_over(self, monotonic: float) -> None:
        """What runs already may be answering callers, whatever the journal says by now: it stays until traffic is as it should be."""
        self._took_over = True
        last = self.service.rollout if self.service else None
        for version in (last.plan.baseline, *last.plan.candidates) if last is not None else ():
            if version == HUMAN or not self.workers.runs(identity := self.settings_id(version)):
                continue
            self._lingering[identity] = monotonic + self._grace
            if identity in self.workers.proven:
                self._serving[version.digest] = identity

    def _stepped_back(self, preferred: Mapping[str, Mapping[str, Any]]) -> set[str]:
        """Versions that shall answer callers, but whose only worker so far is one that lets everybody else go first."""
        return {
            digest
            for digest, settings in preferred.items()
            if not settings["idle"]
            and digest in self._serving
            and self._settings[self._serving[digest]]["idle"]
        }

    def _upstreams(self, wanted: list[Version]) -> tuple[Upstream, ...]:
        return tuple(
            Upstream(version.version, version.digest, self._settings[self._serving[version.digest]]["socket"])
            for version in wanted
            if version.digest in self._serving
        )

    def _linger(self, kept: set[str], desired: Split | None, monotonic: float) -> list[str]:
        """Workers that must run: the wanted ones, and for a while those that callers may still be waiting on."""
        settled = desired is not None and self.traffic.confirmed == desired
        for one in kept:
            self._lingering[one] = monotonic + self._grace
        if not settled:
            for one in self._lingering:
                self._lingering[one] = max(self._lingering[one], monotonic + self._grace)
        self._lingering = {one: until for one, until in self._lingering.items() if until > monotonic}
        return sorted(self._lingering)

    @property
    def _grace(self) -> float:
        """Seconds that a caller may still be waiting for a version that no new caller is sent to."""
        return float(self.spec.get("timeout", 1.0)) + 1.0

    def adopt(self, running: Iterable[Mapping[str, Any]]) -> None:
        """Workers that are ready since before this controller: they serve until those that should are ready."""
        for settings in running:
            self._settings[settings["id"]] = dict(settings)
            self._serving[settings["digest"]] = settings["id"]

    def serves(self, version: Version) -> bool:
        """Whether a worker is there for this version, be it one of before."""
        return version.digest in self._serving

    def want_only(self, version: Version) -> None:
        """Ask for one worker, before there is a service."""
        self.workers.want([self._settings_of(version)])

    def prediction_of(self, version: Version) -> dict[str, Any] | None:
        """How the answers of this version are read."""
        return self._predictions.get(version.digest)

    def settings_id(self, version: Version) -> str:
        """The id of the worker that this version should be served by."""
        return str(self._settings_of(version)["id"])

    def _settings_of(self, version: Version) -> dict[str, Any]:
        idle, prediction = self._only_copies(version), self._predictions.get(version.digest)
        # Asked for at every tick: they are made anew when one of these has been replaced.
        made_of = (self.spec, prediction, self.generation)
        found = self._settled.get((version, idle))
        if found is None or not all(map(is_, found[0], made_of)):
            if len(self._settled) >= MAX_SETTLED:
                self._settled.clear()
            found = made_of, self._make_settings(version, prediction, idle=idle)
            self._settled[version, idle] = found
        settings = found[1]
        self._settings[settings["id"]] = settings
        return settings

    def _make_settings(
        self, version: Version, prediction: dict[str, Any] | None, *, idle: bool
    ) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "model": self.spec["model"],
            "version": version.version,
            "digest": version.digest,
            "file": str(self.store.path(version.digest)),
            "prediction": prediction,
            "idle": idle,
            "memory": (self.spec.get("limits") or {}).get("workerMemory"),
            "batching": self.spec.get("batching", True),
            "max_batch_delay": self.spec.get("maxBatchDelay", 0.0),
            "generation": self.generation,
        }
        identity = worker_id(settings)
        return {**settings, "id": identity, "socket": str(self.home.worker_sockets / f"{identity}.sock")}

    def _only_copies(self, version: Version) -> bool:
        """Whether this version answers nobody, so that its worker may wait for the processor until all others have had it.

        Where a shadow's latency is judged it must not: it would be slow for no fault of its own.
        """
        rollout = self.service.rollout if self.service else None
        if rollout is None or rollout.ended or version not in rollout.plan.candidates:
            return False
        step = rollout.current or next(iter(rollout.plan.steps), None)
        timed = any(METRICS[rule.name].quantiles or METRICS[rule.name].bound for rule in rollout.plan.metrics)
        return step is not None and step.weight == 0 and step.mirror > 0 and not timed

    def remember_prediction(self, version: Version, prediction: dict[str, Any] | None) -> Callable[[], None]:
        """Serve this version with this way of reading its answer; the returned function takes it back."""
        before = self._predictions.get(version.digest)
        self._predictions[version.digest] = prediction

        def undo() -> None:
            self._predictions[version.digest] = before

        return undo

    def _could_learn(self, rollout: Rollout) -> Learned | None:
        if rollout.learned is not None or rollout.ended:
            return None
        if any(self.settings_id(version) not in self.workers.proven for version in rollout.plan.candidates):
            return None
        return self.baseline.learn(rollout.plan)

    def full_verdict(self) -> Verdict:
        """The verdict with every number and word."""
        if self.observation is None:
            known = self.baseline.known
            return Verdict(
                Result.INCONCLUSIVE, f"waiting for baseline answers to learn from ({known} known so far)"
            )
        self.verdict = self.observation.says.verdict()
        return self.verdict

    def _checkpoint_clock(self, now: float) -> None:
        if self._records is None or now - self._checkpoint < 1.0:
            return
        self._checkpoint = now
        try:
            self._records.append(Clock(now))
        except UnavailableError:
            return

    # ── being waited for ───────────────────────────────────────────────────────────────────────────────────────

    async def confirmed(self, seconds: float) -> bool:
        """Whether the routers read back, within this time, what the journal says."""
        assert self.service is not None
        waited = RolloutClock()  # a machine that was suspended meanwhile is no router that does not answer
        while waited.advance(time.monotonic()) < seconds:
            self._tried(self.act, self.monotonic())
            read_back = self.traffic.confirmed
            if read_back is not None and read_back == self.service.split:
                return True
            await asyncio.sleep(0.005)
        return False

    async def story(self, rollout_id: str) -> Story:
        """The events of a rollout so far; empty where there is none of this name. Raises IntegrityError and UnavailableError."""
        return self.stories.get(rollout_id) or (await self.history()).get(rollout_id, [])

    async def history(self) -> dict[str, Story]:
        """The stories of all rollouts, the oldest first, as the journal tells them. Raises IntegrityError and UnavailableError."""
        return await asyncio.to_thread(lambda: stories(read(self.home.journal), self.home.journal))

    async def follow(self, rollout_id: str, after: int) -> AsyncIterator[tuple[Event, Rollout]]:
        """Events of a rollout as they happen, from after this number until the rollout is finished."""
        while True:
            news = self._news
            # As it is now: what comes while it is told is told in the next round.
            story = [*await self.story(rollout_id)]
            for event, state in story:
                if event.seq > after:
                    after = event.seq
                    yield event, state
            if story[-1][1].finished:
                return
            await news.wait()


def _possible(
    split: Split, ready: set[str], connected: frozenset[str] | None, in_force: Split | None
) -> tuple[Split | None, Version | None]:
    """What can be asked for now, and the version that is waited for: callers are sent only to versions that are ready, and nothing is taken
    away for them. None: keep what is in force.

    A version whose worker is gone for the moment keeps the callers that it has (its failures are its own), and is given no more: a
    rollback waits until the baseline is back.
    """
    before = {version.digest: share for version, share in _shares(in_force).items()}
    for version, share in _shares(split).items():
        gone = connected is not None and version.digest not in connected
        if version.digest in ready and not (gone and share > before.get(version.digest, 0.0)):
            continue
        if in_force is None and version == split.candidate and split.weight < 100:
            # A service that starts in mid-rollout serves before its candidate is loaded.
            return replace(split, weight=0.0), version
        return None, version
    return split, None


def _shares(split: Split | None) -> dict[Version, float]:
    """The versions that answer callers, each with its share in percent."""
    if split is None:
        return {}
    shares = {split.baseline: 100.0 - split.weight}
    if split.candidate is not None:
        shares[split.candidate] = shares.get(split.candidate, 0.0) + split.weight
    return {version: share for version, share in shares.items() if share > 0 and version != HUMAN}


def fingerprint(manifest: str) -> str:
    """Of the text of a manifest: to see that it is the same one, without keeping it."""
    return hashlib.sha256(manifest.encode()).hexdigest()


def wall_time() -> str:
    """Now, for people only: no decision reads it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
