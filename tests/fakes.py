"""A service without processes: the real controller, journal and records, with callers, routers and workers that are made up.

`FakeTraffic` and `FakeVersions` implement the Protocols of the loop. `Callers` send requests on a fake clock and are answered by
versions that behave as a test says; who is answered by which version is decided by the split in force, as in the router.
Everything is drawn from one seed, so the same test sees the same requests again.
"""

import asyncio
import heapq
import json
import random
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

from deployctl.controller.commands import Commands
from deployctl.controller.loop import Controller
from deployctl.controller.workers import Worker
from deployctl.core.assignment import goes_to_candidate
from deployctl.core.metrics import METRICS
from deployctl.core.plan import HUMAN, Split
from deployctl.core.rollout import Event, Rollout
from deployctl.journal import Journal
from deployctl.manifest.load import load
from deployctl.manifest.manifest import Manifest
from deployctl.sources import SOURCE_FORMS
from deployctl.statedir import ServiceHome
from deployctl.store import Store
from deployctl.traffic import BACKENDS
from deployctl.wire.orders import Batch, LabelRow, Upstream

STEP = 0.05
"""Seconds of fake time between two batches, and between two ticks."""

BY = "person:ann"

CANARY = {
    "steps": [5, 10, 30, 50],
    "minDwell": "2s",
    "bake": "2s",
    "stepTimeout": "60s",
    "metrics": [{"name": "error-rate", "margin": "2%", "tolerance": {"relative": "10%", "absolute": "0.1%"}}],
}
"""A short canary: the keys of `spec.strategy.canary`, and the metrics that belong into `spec.analysis`."""


SHADOW = {
    "minLabels": 100,
    "maxDuration": "60s",
    "metrics": [{"name": "error-rate", "margin": "2%"}, {"name": "label-error-rate", "margin": "2%"}],
}
"""A short shadow, written the same way."""

SWITCH = {"stepTimeout": "60s", "metrics": [{"name": "error-rate", "margin": "2%"}]}
"""A blue-green, written the same way; `autoPromotion` has to be said."""

BUDGETS = [{"name": "error-rate", "max": "2%"}, {"name": "label-error-rate", "max": "10%"}]
"""The metrics of a shadow over people alone."""


@dataclass(frozen=True)
class Behaviour:
    """How a version answers: rates are fractions; latency is uniform between 0.7 and 1.3 of `latency_ms`."""

    errors: float = 0.0
    nulls: float = 0.0
    wrong: float = 0.0
    latency_ms: float = 10.0


@dataclass(frozen=True)
class Outcome:
    """One answered request, and the label that people will give it."""

    id: str
    key: str
    arm: int
    version: str
    split: int
    start: float
    latency_ms: float
    status: int
    null: bool
    prediction: str | None
    truth: str
    serial: int = 0
    mirrored: bool = False
    copies: int = 0


class FakeTraffic:
    """A router that does at once what it is told; `refuses` is what it raises instead."""

    def __init__(self) -> None:
        self.in_force: Split | None = None
        self.ordered: Split | None = None
        self.applied: list[Split] = []
        self.upstreams: tuple[Upstream, ...] = ()
        self.refuses: Exception | None = None
        self.unreachable: set[str] = set()
        """Labels of versions whose worker is gone for the moment."""
        self.dropped = 0
        self.copies_dropped: dict[int, int] = {}

    def apply(self, split: Split, upstreams: tuple[Upstream, ...]) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.upstreams = upstreams
        self.ordered = split
        if split != self.in_force:
            self.in_force = split
            self.applied.append(split)

    @property
    def confirmed(self) -> Split | None:
        return self.in_force

    @property
    def connected(self) -> frozenset[str] | None:
        there = {upstream.digest for upstream in self.upstreams if upstream.version not in self.unreachable}
        return frozenset(there) if self.in_force else None

    def reconnected(self) -> None:
        """Another controller: it has asked for nothing yet, and traffic flows as before."""
        self.ordered = None


class FakeVersions:
    """Workers that are ready as soon as they are wanted, except those of versions in `slow`. Also the supervisor of `Commands`."""

    def __init__(self) -> None:
        self.proven: dict[str, dict[str, Any]] = {}
        self.workers: dict[str, Worker] = {}
        self.wanted: list[str] = []
        self.running: dict[str, dict[str, Any]] = {}
        self.slow: set[str] = set()
        self.broken: dict[str, str] = {}
        self.crashing: dict[str, str] = {}

    def want(self, settings: list[dict[str, Any]]) -> None:
        self.wanted = sorted({one["version"] for one in settings})
        self.running = {one["id"]: one for one in settings}
        self.proven = {one: report for one, report in self.proven.items() if one in self.running}
        self.workers = {one: worker for one, worker in self.workers.items() if one in self.running}
        for one in settings:
            if one["version"] not in self.slow | self.broken.keys():
                tensors = [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}]
                self.proven[one["id"]] = {"digest": one["digest"], "inputs": tensors, "outputs": tensors}
            refused = self.broken.get(one["version"])
            state, report = ("failed", {"failed": refused}) if refused else ("ready", {})
            self.workers[one["id"]] = Worker(one["id"], one["digest"], 1, state, report=report)
        self._labels = {one["id"]: one["version"] for one in settings}

    def runs(self, identity: str) -> bool:
        return identity in self.workers

    def failure(self, identity: str) -> str | None:
        return self.broken.get(self._labels.get(identity, "")) if self.wanted else None

    def crash_loop(self, identity: str) -> str | None:
        return self.crashing.get(self._labels.get(identity, "")) if self.wanted else None

    def forget(self, identity: str) -> None:
        self.workers.pop(identity, None)

    def start_routers(self, settings: dict[str, Any]) -> None:
        pass


@dataclass
class Callers:
    """Requests at an even pace. `batch(now)` is what a router would send at this moment of its monotonic clock.

    Every request takes the same number of draws whoever answers it, so two runs with other splits see the same requests.
    """

    traffic: FakeTraffic
    versions: dict[str, Behaviour]
    per_second: float = 400.0
    labelled: float = 0.0
    label_delay: tuple[float, float] = (1.0, 3.0)
    keys: int | None = None
    seed: int = 1
    router: str = "router-1"
    shared_errors: float = 0.0
    number: int = 0
    served: dict[str, list[int]] = field(default_factory=dict)
    _next: float = 0.0
    _count: int = 0
    _flying: list[Outcome] = field(default_factory=list)
    _labels: list[tuple[float, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._copying = random.Random(self.seed + 1)

    def skip_to(self, now: float) -> None:
        """Nobody called since the last batch."""
        self._next = max(self._next, now)

    def batch(self, now: float) -> Batch:
        split = self.traffic.in_force
        if split is None or self.per_second <= 0:
            self._next = now
        while self._next < now:
            request = self._answer(split, self._next)
            copies = self._copies(split, request)
            arms = sum(1 << copy.arm for copy in copies)
            self._flying += [replace(request, serial=self._count, copies=arms), *copies]
            self._next += 1 / self.per_second
        done = [one for one in self._flying if one.start + one.latency_ms / 1000 <= now]
        self._flying = [one for one in self._flying if one.start + one.latency_ms / 1000 > now]
        # Quick answers are reported first, as in life: the controller has to put them in order.
        done.sort(key=lambda one: one.start + one.latency_ms / 1000)
        for one in done:
            if not one.mirrored:
                self._count_and_label(one)
        self.number += 1
        watermark = min((one.start for one in self._flying if not one.mirrored), default=now)
        all_reported = min((one.start for one in self._flying), default=now)
        return batch_of(done, self.number, watermark, self._due_labels(now), min(watermark, all_reported))

    def _answer(self, split: Split, start: float) -> Outcome:
        self._count += 1
        draws = [self._random.random() for _ in range(5)]
        identity = f"r{self._count}"
        key = f"user-{self._count % self.keys}" if self.keys else identity
        arm = int(goes_to_candidate(split.salt, key, split.weight)) if split.candidate else 0
        version = (split.candidate if arm else split.baseline).version
        how = self.versions[version] if version != HUMAN.version else Behaviour(latency_ms=0.1)
        failed = draws[0] < 1 - (1 - how.errors) * (1 - self.shared_errors)
        null = not failed and draws[1] < how.nulls
        truth = int(draws[2] * 10)
        prediction = None if failed or null else str((truth + (draws[3] < how.wrong)) % 10)
        return Outcome(
            id=identity,
            key=key,
            arm=arm,
            version=version,
            split=split.number,
            start=start,
            latency_ms=how.latency_ms * (0.7 + 0.6 * draws[4]),
            status=500 if failed else 200,
            null=null,
            prediction=None if version == HUMAN.version else prediction,
            truth=str(truth),
        )

    def _copies(self, split: Split, request: Outcome) -> list[Outcome]:
        """What the versions that get copies would have said; errors of an input that is hard for all are not made up."""
        copies = []
        copied = split.mirror > 0 and self._copying.random() * 100 < split.mirror
        for copy in split.copies if copied else ():
            if copy.arm == request.arm:
                continue
            draws = [self._copying.random() for _ in range(5)]
            how = self.versions.get(copy.version.version, Behaviour())
            failed, null = draws[0] < how.errors, draws[1] < how.nulls
            says = str((int(request.truth) + (draws[3] < how.wrong)) % 10)
            changes = {
                "arm": copy.arm,
                "version": copy.version.version,
                "latency_ms": how.latency_ms * (0.7 + 0.6 * draws[4]),
                "status": 500 if failed else 200,
                "null": null and not failed,
                "prediction": None if failed or null else says,
                "serial": self._count,
                "mirrored": True,
            }
            copies.append(replace(request, **changes))
        return copies

    def _count_and_label(self, one: Outcome) -> None:
        count = self.served.setdefault(one.version, [0, 0])
        count[0] += 1
        by_people = one.version == HUMAN.version
        count[1] += not by_people and (one.status >= 500 or one.null or one.prediction != one.truth)
        chosen, late = self._random.random(), self._random.random()
        if chosen < self.labelled and (one.prediction is not None or one.version == HUMAN.version):
            low, high = self.label_delay
            at = one.start + one.latency_ms / 1000 + low + (high - low) * late
            heapq.heappush(self._labels, (at, one.id, one.truth))

    def _due_labels(self, now: float) -> list[LabelRow]:
        due = []
        while self._labels and self._labels[0][0] <= now:
            _, identity, truth = heapq.heappop(self._labels)
            due.append(LabelRow(identity, truth))
        return due


def batch_of(
    outcomes: list[Outcome],
    number: int,
    watermark: float,
    labels: list[LabelRow] | None = None,
    mirror_watermark: float | None = None,
) -> Batch:
    """Outcomes in the columns of the wire; those of copies are there where there are copies."""
    copied = any(one.mirrored or one.copies for one in outcomes)
    return Batch(
        number=number,
        watermark=watermark,
        id=[one.id for one in outcomes],
        key=b"".join(blake2b(one.key.encode(), digest_size=8).digest() for one in outcomes),
        arm=array("b", [one.arm for one in outcomes]).tobytes(),
        split=array("I", [one.split for one in outcomes]).tobytes(),
        start=array("d", [one.start for one in outcomes]).tobytes(),
        latency=array("f", [one.latency_ms for one in outcomes]).tobytes(),
        status=array("H", [one.status for one in outcomes]).tobytes(),
        null=array("b", [one.null for one in outcomes]).tobytes(),
        explicit=bytes(len(outcomes)),
        prediction=[one.prediction for one in outcomes],
        labels=labels or [],
        dropped=0,
        serial=array("Q", [one.serial for one in outcomes]).tobytes() if copied else b"",
        mirrored=array("b", [one.mirrored for one in outcomes]).tobytes() if copied else b"",
        copies=array("H", [one.copies for one in outcomes]).tobytes() if copied else b"",
        mirror_watermark=mirror_watermark,
    )


class SteppedController(Controller):
    """A controller that ticks as soon as it is woken, on a clock that stands still meanwhile."""

    def wake(self) -> None:
        self.tick(self.monotonic())


async def read_here(text: bytes, path: Path) -> Manifest:
    known = {"engines": BACKENDS, "metrics": METRICS, "model_sources": SOURCE_FORMS}
    return load(text, str(path), base=path.parent, **known)


class FakeService:
    """One service on a fake clock. The verbs are those of the CLI; `restart` kills the controller and starts another."""

    def __init__(self, state: Path, versions: dict[str, Behaviour], **callers: Any) -> None:
        state.mkdir(exist_ok=True)
        self.home = ServiceHome(state, "digits")
        self.home.create()
        self.clock = 1000.0
        self.wall: Callable[[], str] = lambda: "2026-01-01T12:00:00.000Z"
        self.traffic = FakeTraffic()
        self.workers = FakeVersions()
        self.callers = Callers(self.traffic, versions, **callers)
        self.callers.skip_to(self.clock)
        self._models = state / "models-of-the-user"
        self._models.mkdir(exist_ok=True)
        self.controller, self.commands = self._start()

    def _start(self) -> tuple[SteppedController, Commands]:
        self.journal = Journal.open(self.home.journal)
        controller = SteppedController(self.home, self.journal, Store(self.home.models))
        controller.traffic, controller.workers = self.traffic, self.workers
        controller.monotonic, controller.wall = (lambda: self.clock), self._wall_time
        commands = Commands(controller, self.workers)
        commands.token = lambda: "cafe00"
        commands.read = read_here  # the same reader, without the process of its own
        return controller, commands

    def _wall_time(self) -> str:
        return self.wall()

    def restart(self, generation: int = 0) -> None:
        """kill -9 of the controller, and another one in its place (of another release, then); callers notice nothing."""
        ready = [settings for one, settings in self.workers.running.items() if one in self.workers.proven]
        self.close()
        self.traffic.reconnected()
        self.controller, self.commands = self._start()
        self.controller.generation = generation
        self.controller.adopt(ready)
        asyncio.run(self.commands.up(None, self.home.path))
        self.controller.tick(self.clock)

    def close(self) -> None:
        self.journal.close()
        if self.controller._records is not None:
            self.controller._records.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ── the verbs ──────────────────────────────────────────────────────────────────────────────────────────────

    def up(self, version: str | None = "1") -> None:
        """The service starts with this version, or with people alone."""
        text = (
            self._manifest(version, None, CANARY)
            if version is not None
            else self._manifest(None, ["1"], {**SHADOW, "metrics": BUDGETS}, "shadow")
        )
        asyncio.run(self.commands.up(text, self._path))
        self.controller.tick(self.clock)

    def ramp(self, candidate: str = "2", canary: dict[str, Any] | None = None) -> str:
        """`canary ramp` from the live version to this one; `canary` changes single keys of CANARY."""
        live = self.controller.service.live.version
        text = self._manifest(live, candidate, {**CANARY, **(canary or {})})
        return asyncio.run(self.commands.start_rollout(text, self._path, BY))["message"]

    def shadow(self, *candidates: str, shadow: dict[str, Any] | None = None) -> str:
        """`shadow` of these versions over the live one (or over people); `shadow` changes single keys of SHADOW."""
        live = self.controller.service.live
        baseline = None if live == HUMAN else live.version
        text = self._manifest(baseline, list(candidates), {**SHADOW, **(shadow or {})}, "shadow")
        return asyncio.run(self.commands.start_rollout(text, self._path, BY))["message"]

    def switch(self, candidate: str, blue_green: dict[str, Any]) -> str:
        """`blue-green switch` from the live version to this one; `blue_green` changes single keys of SWITCH."""
        live = self.controller.service.live.version
        text = self._manifest(live, candidate, {**SWITCH, **blue_green}, "blueGreen")
        return asyncio.run(self.commands.start_rollout(text, self._path, BY))["message"]

    def rollback(self, reason: str = "", to: str | None = None) -> str:
        return asyncio.run(self.commands.rollback(BY, reason, to)).message

    def promote(self, reason: str = "", *, full: bool = False) -> str:
        return asyncio.run(self.commands.promote(BY, reason, full=full)).message

    def pause(self) -> str:
        return self.commands.pause(BY).message

    def resume(self) -> str:
        return self.commands.resume(BY).message

    # ── time ───────────────────────────────────────────────────────────────────────────────────────────────────

    def watch(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass, batch by batch, until this is so."""
        for _ in range(round(seconds / STEP)):
            if until():
                return
            self.step()

    def step(self) -> None:
        self.clock = round(self.clock + STEP, 6)
        self.controller.tick(self.clock)
        self.controller.on_batch(self.callers.router, self.callers.batch(self.clock))

    def watch_until_over(self, seconds: float = 120.0) -> None:
        """Until the gate is done with the rollout."""
        self.watch(seconds, lambda: self.rollout.ended)
        assert self.rollout.ended, self.controller.full_verdict().reason

    # ── what is seen ───────────────────────────────────────────────────────────────────────────────────────────

    @property
    def rollout(self) -> Rollout:
        return self.controller.last

    @property
    def events(self) -> list[Event]:
        """Of the last rollout."""
        return [event for event, _ in self.controller.stories[self.rollout.id]]

    @property
    def kinds(self) -> list[str]:
        return [event.kind.value for event in self.events]

    @property
    def weight(self) -> float:
        """The share of callers that the router really sends to the candidate."""
        return self.traffic.in_force.weight

    @property
    def records_path(self) -> Path:
        return self.home.records / f"{self.rollout.id}.records"

    def with_behaviour(self, version: str, **changes: float) -> None:
        self.callers.versions[version] = replace(self.callers.versions.get(version, Behaviour()), **changes)

    @property
    def _path(self) -> Path:
        return self._models / "rollout.yaml"

    def _manifest(
        self,
        baseline: str | None,
        candidate: str | list[str] | None,
        canary: dict[str, Any],
        strategy_name: str = "canary",
    ) -> str:
        """A manifest as text. JSON is YAML, so the real loader reads it."""
        metrics, extra = canary["metrics"], {k: v for k, v in canary.items() if k in {"alpha", "beta"}}
        strategy = {k: v for k, v in canary.items() if k not in {"metrics", "alpha", "beta", "routingKey"}}
        service = {"listen": "127.0.0.1:0", "model": "digits", "timeout": "500ms"}
        if self.callers.keys:
            service["routingKey"] = "header:x-user-id"
        spec: dict[str, Any] = {
            "service": service,
            "prediction": {"output": "probabilities", "read": "argmax"},
        }
        if baseline is not None:
            spec["baseline"] = self._model(baseline)
        if candidate is not None:
            models = [self._model(one) for one in (candidate if isinstance(candidate, list) else [candidate])]
            spec |= {"candidate": models[0]} if len(models) == 1 else {"candidates": models}
            spec |= {"strategy": {strategy_name: strategy}, "analysis": {**extra, "metrics": metrics}}
        head = {"apiVersion": "deployctl/v1", "kind": "Rollout", "metadata": {"name": "digits"}}
        return json.dumps({**head, "spec": spec})

    def _model(self, version: str) -> dict[str, str]:
        file = self._models / f"v{version}.onnx"
        if not file.exists():
            file.write_bytes(f"the bytes of version {version}".encode())
        return {"version": version, "uri": file.name}
