"""What people and pipelines ask for: start a service or a rollout, roll back, promote, pause, resume.

Each verb answers in one line what it changed. Asking twice is the same as once.
"""

from __future__ import annotations

import asyncio
import resource
import secrets
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from deployctl.controller import door
from deployctl.controller.loop import Controller, fingerprint
from deployctl.controller.workers import SupervisorLink
from deployctl.core.metrics import METRICS
from deployctl.core.plan import HUMAN, Phase, Plan, Version
from deployctl.core.rollout import HALF_AN_ORDER, Cause, Event, Kind, Rollout, pass_step
from deployctl.core.service import KEPT_LIVE, KEPT_ROLLOUTS
from deployctl.errors import (
    ConflictError,
    DeployctlError,
    IntegrityError,
    InvalidError,
    UnavailableError,
    UnconfirmedError,
    error_for,
)
from deployctl.labels import LABEL_SOURCES
from deployctl.manifest.apart import read_apart
from deployctl.manifest.manifest import (
    Manifest,
    ModelRef,
    differing_keys,
    label_files,
    plan,
    service_spec,
    webhooks,
)
from deployctl.sources import SOURCE_FORMS
from deployctl.statedir import model_in_cache
from deployctl.traffic import BACKENDS

LOAD_SECONDS = 60.0
"""How long a model may take to load, warm up and report."""

SPARE_FILES = 1024 + 256
"""Files that a router has open beside its callers' connections, at most: those who are told that they are too many, and its own."""

Digests = Mapping[str, str]
"""The digests of fetched models by their places in the manifest."""

MAX_CALLED_OFF = 64
"""Orders that were called off and may still be on their way."""

CONFIRM_SECONDS = 20.0
"""How long it may take until the routers read back what is written down, a worker that has to come back included, before a person
is called."""


@dataclass(slots=True)
class Beginning:
    """A rollout whose candidate is still being loaded; a person who rolls back calls it off."""

    desired: Plan
    ticket: str = ""
    called_off_by: str | None = None


@dataclass(frozen=True, slots=True)
class Changed:
    """What a verb did: whether anything changed, in one line, and the rollout that it was about."""

    changed: bool
    message: str
    rollout: Rollout | None

    def document(self, weight: float) -> dict[str, Any]:
        """The answer of the admin API."""
        return {
            "changed": self.changed,
            "message": self.message,
            "weight": weight,
            "phase": self.rollout.phase.value if self.rollout else None,
            "rollout": self.rollout.id if self.rollout else None,
        }


class Commands:
    """The verbs of one service. Those that start something wait for each other."""

    def __init__(self, controller: Controller, supervisor: SupervisorLink) -> None:
        self._controller = controller
        self._supervisor = supervisor
        self._starting = asyncio.Lock()
        self._beginning: Beginning | None = None
        self._called_off: deque[str] = deque(maxlen=MAX_CALLED_OFF)
        self.confirm_seconds = CONFIRM_SECONDS
        self.token: Callable[[], str] = partial(secrets.token_hex, 3)
        self.read: Callable[[bytes, Path], Awaitable[Manifest]] = read_manifest

    async def up(self, text: str | None, path: Path, baseline: str | None = None) -> None:
        """Serve the baseline of the manifest or, after a restart, what the journal says is live.

        `text` is None for a controller that takes over from one that died: the journal alone counts then. `baseline` is the digest of
        a remote one, which whoever started the service has fetched.
        """
        controller = self._controller
        if text is not None:
            digests = {} if baseline is None else {"baseline": baseline}
            await self._serve(await self.read(text.encode(), path), digests)
        controller.home.make_input_key()
        self._supervisor.start_routers(self.router_settings())
        controller.act(controller.monotonic())
        if text is not None:  # `up` answers for it; a controller that takes over has nobody to tell
            assert controller.service is not None
            assert controller.service.live is not None
            await self._loaded(self._still_stored(controller.service.live), "live version")

    def read_again(self) -> bool:
        """Certificate and tokens, of which somebody says that they are others now. Whether routers have to read them."""
        controller = self._controller
        try:
            door.keep(controller.home, controller.spec)
        except DeployctlError as error:
            sys.stderr.write(f"deployctl: {error}; what was there before stays in use\n")
            return False
        return True

    def router_settings(self) -> dict[str, Any]:
        """What a router of this service is started with."""
        controller = self._controller
        key, callers = controller.spec["routingKey"], _connections(controller.spec)
        return {
            "model": controller.spec["model"],
            "routing_key": key.removeprefix("header:") if key else None,
            "timeout": controller.spec["timeout"],
            "routers": controller.spec.get("routers", 1),
            "inputs": controller.kept["inputs"],
            "input_key": str(controller.home.input_key),
            "tls": str(controller.home.tls) if "tls" in controller.spec else None,
            "tokens": str(controller.home.tokens) if "tokens" in controller.spec else None,
            **({"limits": {"connections": callers}} if callers is not None else {}),
        }

    def _still_stored(self, live: Version) -> Version:
        if live == HUMAN:
            return live
        stored = self._controller.store.path(live.digest)
        if not stored.is_file():
            raise IntegrityError(f"{stored}: the model of live version {live.version} is gone; put it back")
        return live

    async def _serve(self, manifest: Manifest, digests: Digests) -> None:
        """Write down what is served, if that is new."""
        controller = self._controller
        spec = service_spec(manifest)
        _refuse_too_few_files(spec)
        door.keep(controller.home, spec)
        if controller.service is None:
            await self._first_up(manifest, spec, digests)
        elif spec != controller.spec or self._keeps_something_else(manifest):
            live = controller.service.live
            assert live is not None
            self._record_served(manifest, spec, live, controller.prediction_of(live))

    def _keeps_something_else(self, manifest: Manifest) -> bool:
        """Between rollouts the label folder and the log of `up` count; a running rollout keeps its own."""
        controller = self._controller
        assert controller.service is not None
        changed = label_files(manifest) != controller.label_files or asdict(manifest.log) != controller.kept
        return controller.service.running is None and changed

    def _record_served(
        self, manifest: Manifest, spec: dict[str, Any], live: Version, prediction: dict[str, Any] | None
    ) -> None:
        files, log = label_files(manifest), asdict(manifest.log)
        self._controller.record_served(spec, live, prediction, manifest.text, files, log)

    async def _first_up(self, manifest: Manifest, spec: dict[str, Any], digests: Digests) -> None:
        controller = self._controller
        written = manifest.baseline
        baseline = HUMAN if written is None else self._stored(written, digests.get("baseline"))
        controller.spec = spec
        prediction = _prediction(manifest)
        controller.remember_prediction(baseline, prediction)
        await self._loaded(baseline, "baseline")
        self._record_served(manifest, spec, baseline, prediction)

    async def up_again(self, text: str, path: Path) -> str:
        """`up` of a service that runs: nothing to do when `spec.service` is the same. Raises ConflictError otherwise."""
        self._same_service(await self.read(text.encode(), path))
        return f"{self._controller.name} runs already with this spec.service: nothing to do"

    async def wanted(self, text: str, path: Path) -> list[str]:
        """Which models of this manifest have to be fetched for its rollout: by their places, the remote ones that are not here.

        None where it runs already: what an alias means by now is not asked then.
        """
        manifest = await self.read(text.encode(), path)
        self._same_service(manifest)
        if self._is_running(manifest):
            return []
        store = self._controller.store
        return [
            place
            for place, model in manifest.models.items()
            if model.path is None and not (model.digest and store.holds(model.digest))
        ]

    async def start_rollout(
        self, text: str, path: Path, by: str, digests: Digests | None = None, ticket: str = ""
    ) -> dict[str, Any]:
        """Start the rollout of a manifest, or follow it when it runs already. `digests` are those of its fetched models, by their places.

        The candidate is loaded, warmed and compared with the live version's signature before anything is written down. With its
        `ticket` the order can be called off until then.
        """
        manifest = await self.read(text.encode(), path)
        if manifest.candidate is None or manifest.strategy is None:
            raise InvalidError(f"{path}: no candidate and strategy in it: nothing to roll out")
        async with self._starting:
            if ticket in self._called_off:
                raise ConflictError(f"the rollout of version {manifest.candidate.version} was called off")
            try:
                return await self._start(manifest, by, digests or {}, ticket)
            finally:
                self._remove_models()

    async def _start(self, manifest: Manifest, by: str, digests: Digests, ticket: str) -> dict[str, Any]:
        self._same_service(manifest)
        versions = self._versions(manifest, digests)
        baseline = versions.pop("baseline", HUMAN)
        candidates = [*versions.values()]
        desired = plan(manifest, baseline, *candidates)
        settled = self._settled(desired)
        if settled is not None:
            return settled
        undo = [
            self._controller.remember_prediction(version, _prediction(manifest))
            for version in (baseline, *candidates)
            if version != HUMAN
        ]
        self._controller.trying = tuple(candidates)
        self._beginning = Beginning(desired, ticket)
        try:
            for candidate in candidates:
                await self._check_candidate(baseline, candidate, self._refuse_what_may_not_begin)
            self._refuse_what_may_not_begin()
            rollout = self._begin(
                desired,
                by,
                "",
                manifest.text,
                _prediction(manifest),
                label_files(manifest),
                webhooks(manifest),
            )
        except BaseException:
            for take_back in undo:
                take_back()
            raise
        finally:
            self._controller.trying, self._beginning = (), None
            self._controller.wake()
        tried = " and ".join(f"version {candidate.version}" for candidate in candidates)
        against = "people" if baseline == HUMAN else f"version {baseline.version}"
        message = f"rollout {rollout.id} of {tried} against {against} began"
        return {"rollout": rollout.id, "state": "started", "message": message}

    def _remove_models(self) -> None:
        """Remove the models that nobody can ask for any more; with the lock that starts rollouts, so none is on its way in."""
        controller = self._controller
        if controller.service is None:
            return
        try:
            controller.store.remove_except(controller.service.kept)
        except UnavailableError as error:  # tried again at the next start; until then they only take room
            sys.stderr.write(f"deployctl: {error}\n")

    def _settled(self, desired: Plan) -> dict[str, Any] | None:
        """The answer when there is nothing to start. Raises ConflictError when something else is in the way."""
        service = self._controller.service
        assert service is not None
        live, running = service.live, service.running
        assert live is not None
        if live.digest in {candidate.digest for candidate in desired.candidates}:
            return {
                "rollout": None,
                "state": "already_live",
                "message": f"version {live.version} is live already",
            }
        if running is not None:
            if running.plan == desired:
                message = f"rollout {running.id} of this manifest runs already"
                return {"rollout": running.id, "state": "following", "message": message}
            raise ConflictError(
                f"rollout {running.id} (version {running.plan.baseline.version} to {running.plan.candidate.version}) is "
                f"running; wait for it, or end it with: deployctl rollback {self._controller.name}"
            )
        if live.digest != desired.baseline.digest:
            if live == HUMAN:
                raise ConflictError(
                    f"nobody but people is live here, and the manifest's baseline is version {desired.baseline.version}; make a "
                    f"version live first: deployctl promote {self._controller.name} --full --reason TEXT, after its shadow"
                )
            raise ConflictError(
                f"the manifest's baseline is version {desired.baseline.version} ({_short(desired.baseline)}), but version "
                f"{live.version} ({_short(live)}) is live; name the live version as baseline"
            )
        for version in (desired.baseline, *desired.candidates):
            known = service.known.get(version.version)
            if known is not None and known.digest != version.digest:
                raise ConflictError(
                    f"version {version.version} was {_short(known)} before and is {_short(version)} now; give the new bytes "
                    "a new version"
                )
        return None

    def _refuse_what_may_not_begin(self) -> None:
        """A person may go back while a candidate is loaded: nothing begins against their word, or from a version that is live no more.

        Raises ConflictError.
        """
        service, beginning = self._controller.service, self._beginning
        assert beginning is not None
        assert service is not None
        assert service.live is not None
        desired, live = beginning.desired, service.live
        what = f"the rollout of version {desired.candidate.version} did not begin"
        if beginning.called_off_by is not None:
            raise ConflictError(f"{what}: {beginning.called_off_by} called it off")
        if live.digest != desired.baseline.digest:
            now = "nobody but people" if live == HUMAN else f"version {live.version}"
            raise ConflictError(f"{what}: {now} is live meanwhile, not version {desired.baseline.version}")

    async def _check_candidate(
        self, baseline: Version, candidate: Version, refuse: Callable[[], None] = lambda: None
    ) -> None:
        theirs = await self._loaded(candidate, "candidate", refuse)
        if baseline == HUMAN:
            return
        ours = await self._loaded(baseline, "baseline", refuse)
        if problem := signature_difference(ours, theirs):
            raise InvalidError(
                f"version {candidate.version} cannot replace version {baseline.version}: {problem}"
            )

    async def _loaded(
        self, version: Version, role: str, refuse: Callable[[], None] = lambda: None
    ) -> Mapping[str, Any]:
        """The report of a version's worker, once it is loaded and warmed. Raises what the worker said otherwise, and what `refuse` raises
        as soon as nobody wants it any more.
        """
        controller = self._controller
        if version == HUMAN:
            return {}
        identity = controller.settings_id(version)
        deadline = time.monotonic() + LOAD_SECONDS
        while time.monotonic() < deadline:
            refuse()
            if controller.service is not None:
                controller.act(controller.monotonic())
            else:
                controller.want_only(version)
            worker = self._supervisor.workers.get(identity)
            if worker is not None and worker.state == "failed":
                reason = str(worker.report.get("failed", "it ended before it was ready"))
                self._supervisor.forget(identity)
                raise error_for(int(worker.report.get("exit_code", 2)), f"{role} {version.version}: {reason}")
            if (
                worker is not None
                and (words := worker.crash_loop) is not None
                and identity not in self._supervisor.proven
            ):
                raise InvalidError(f"{role} {version.version} cannot be loaded: {words}")
            if (report := self._supervisor.proven.get(identity)) is not None:
                if report.get("nonfinite"):
                    names = ", ".join(report["nonfinite"])
                    raise InvalidError(
                        f"{role} {version.version}: the warm-up on zeros gave NaN or infinity in {names}"
                    )
                return report
            await asyncio.sleep(0.01)
        raise UnavailableError(f"{role} {version.version} was not ready within {LOAD_SECONDS:g} s")

    def _versions(self, manifest: Manifest, digests: Digests) -> dict[str, Version]:
        """Every model of this manifest by its place, in the store; a remote one of the rollout that runs is what it was at its start."""
        pinned: Digests = {}
        if self._is_running(manifest):
            assert self._running is not None
            tried = self._running.plan
            pinned = {f"candidates/{at}": one.digest for at, one in enumerate(tried.candidates)}
            pinned["baseline"] = tried.baseline.digest
        return {
            place: self._stored(model, pinned.get(place) or digests.get(place))
            for place, model in manifest.models.items()
        }

    def _is_running(self, manifest: Manifest) -> bool:
        service = self._controller.service
        if service is None or service.running is None:
            return False
        return self._controller.manifest == fingerprint(manifest.text)

    def _stored(self, model: ModelRef, fetched: str | None) -> Version:
        if model.path is not None:
            digest, _ = self._controller.store.add(model.path, model.digest)
            return Version(model.version, digest)
        wanted = model.digest or fetched
        if wanted is None or fetched not in {None, wanted}:
            raise ConflictError(
                f"version {model.version}: what its uri means has to be found out anew; give the command again"
            )
        store, source = self._controller.store, model_in_cache(self._controller.home.state, wanted)
        if not source.exists() and not store.holds(wanted):
            raise UnavailableError(
                f"version {model.version}: its model {wanted} is not here; give the command again, which fetches it"
            )
        digest, _ = store.add(source, wanted)
        return Version(model.version, digest)

    def _same_service(self, manifest: Manifest) -> None:
        if manifest.name != self._controller.name:
            raise ConflictError(
                f"the manifest is of service {manifest.name}, this is {self._controller.name}"
            )
        differing = differing_keys(self._controller.spec, service_spec(manifest))
        if differing:
            raise ConflictError(
                f"spec.service of the running service differs in {', '.join(differing)}; it is fixed at `up`: stop it with "
                f"`deployctl down {manifest.name}` and start it again to change that"
            )

    def _begin(
        self,
        desired: Plan,
        by: str,
        reason: str,
        manifest: str | None,
        prediction: dict[str, Any] | None,
        labels: dict[str, Any] | None = None,
        hooks: list[dict[str, Any]] | None = None,
    ) -> Rollout:
        controller = self._controller
        now = controller.order_time()  # first: it may be just now that the last one is finished by itself
        assert controller.service is not None
        last = controller.service.rollout
        if last is not None and not last.finished:
            ending = Event(0, Kind.FINISHED, now, by, Cause.PERSON, "the next rollout begins")
            controller.record(last.id, ending)
        number = controller.service.begun + 1
        rollout_id = f"{controller.name}-{number}-{self.token()}"
        started = Event(0, Kind.STARTED, 0.0, by, Cause.PERSON, reason, plan=desired)
        controller.record(
            rollout_id, started, manifest=manifest, prediction=prediction, labels=labels, webhooks=hooks
        )
        return controller.last

    async def rollback(self, by: str, reason: str, to: str | None, only: str | None = None) -> Changed:
        """At once: during a rollout back to the baseline, after a promotion back to the version before.

        With `only` nothing but this rollout is ended, and not when it is finished: whoever orders it is no person who looks.
        """
        if to is not None:
            return await self._rollback_to(to, by, reason)
        controller = self._controller
        now = controller.order_time()
        assert controller.service is not None
        rollout = controller.service.rollout
        if only is not None and rollout is not None and (rollout.id != only or rollout.finished):
            words = (
                f"rollout {only} is over" if rollout.id == only else f"rollout {rollout.id} has begun since"
            )
            return Changed(changed=False, message=f"nothing was rolled back: {words}", rollout=rollout)
        if rollout is None or rollout.phase in {Phase.ROLLED_BACK, Phase.RETIRED}:
            live = controller.service.live
            words = "nothing to roll back"
            if live is not None:
                words += ": people decide" if live == HUMAN else f": version {live.version} is live"
            if (called_off := self._call_off(by)) is not None:
                words += f"; the rollout of version {called_off.version}, whose model was being loaded, does not begin"
            return Changed(changed=False, message=words, rollout=rollout)
        words = reason or "rolled back by hand"
        verdict = controller.full_verdict() if not rollout.ended else None
        event = Event(0, Kind.ROLLED_BACK, now, by, Cause.PERSON, words, rollout.step, verdict=verdict)
        controller.record(rollout.id, event)
        await self._confirm()
        plan = rollout.plan
        who = "people decide" if plan.people_alone else f"version {plan.baseline.version} answers all callers"
        message = f"rolled back: {who}, version {plan.candidate.version} is at weight 0"
        return Changed(changed=True, message=message, rollout=controller.last)

    async def _rollback_to(self, label: str, by: str, reason: str) -> Changed:
        controller = self._controller
        assert controller.service is not None
        target = controller.service.known.get(label)
        if target is None:
            known = ", ".join(sorted(controller.service.known))
            raise InvalidError(f"version {label} was never here; known: {known}")
        self._still_kept(target)
        self._call_off(by)
        async with self._starting:  # nothing begins meanwhile
            ended = None
            if controller.service.running is not None:
                ended = await self.rollback(by, reason or f"to go to version {label}", None)
            left = await self._go_to(target, "rollback", by, reason)
        if left is None:
            words = f"version {label} is live already"
            return ended or Changed(changed=False, message=words, rollout=controller.service.rollout)
        await self._confirm()
        stays = "people decided before" if left == HUMAN else f"version {left.version} stays loaded"
        message = f"version {label} answers all callers, {stays}"
        return Changed(changed=True, message=message, rollout=controller.last)

    def call_off(self, by: str, ticket: str) -> Changed:
        """The order of this ticket, as long as it waits for its turn or its candidate is being loaded; any other goes on."""
        if not ticket:
            return Changed(changed=False, message="nothing to call off", rollout=None)
        self._called_off.append(ticket)
        mine = self._beginning is not None and self._beginning.ticket == ticket
        if mine and (version := self._call_off(by)) is not None:
            words = f"the rollout of version {version.version} does not begin"
            return Changed(changed=True, message=words, rollout=None)
        return Changed(changed=True, message="it does not begin, unless it has begun already", rollout=None)

    def _call_off(self, by: str) -> Version | None:
        """No rollout begins whose candidate is still being loaded; gives that candidate."""
        if self._beginning is None or self._beginning.called_off_by is not None:
            return None
        self._beginning.called_off_by = by
        return self._beginning.desired.candidate

    def _still_kept(self, version: Version) -> None:
        if not self._controller.store.path(version.digest).is_file():
            raise InvalidError(
                f"the model of version {version.version} is not kept any more (those of the last {KEPT_ROLLOUTS} rollouts and {KEPT_LIVE} live "
                "versions are); start a rollout of its file: deployctl canary ramp FILE"
            )

    async def _go_to(self, target: Version, strategy: str, by: str, reason: str) -> Version | None:
        """All callers to this version, loaded and checked first: a rollout of one step, by a person's word alone.

        Gives the version that was live until then, None where it is this one already.
        """
        controller = self._controller
        assert controller.service is not None
        assert controller.service.live is not None
        if controller.service.live.digest == target.digest:
            return None
        self._still_kept(target)
        controller.trying = (target,)
        try:
            await self._check_candidate(controller.service.live, target)
            live = controller.service.live  # a person may have gone back meanwhile
            if live.digest == target.digest:
                return None
            desired = Plan(strategy, live, target, (), ())
            rollout = self._begin(desired, by, reason, None, controller.prediction_of(target))
            words = reason or f"to version {target.version} by hand"
            # At the instant of its start: at any later one a rollout without steps is half an order, and ends.
            event = Event(0, Kind.PROMOTED, rollout.at, by, Cause.PERSON, words)
            controller.record(rollout.id, event)
        finally:
            controller.trying = ()
            self._remove_models()
        return live

    async def promote(self, by: str, reason: str, *, full: bool) -> Changed:
        """Pass what waits for a person; with `full` skip all that is left, recorded as without evidence."""
        controller = self._controller
        now = controller.order_time()
        assert controller.service is not None
        rollout = controller.service.running
        if rollout is None:
            if full and (shadowed := self._last_whole_one) and shadowed.phase is Phase.RETIRED:
                return await self._promote_shadowed(shadowed, by, reason)
            return Changed(
                changed=False,
                message="nothing waits: no rollout is running",
                rollout=controller.service.rollout,
            )
        if not full and rollout.waits_for is None:
            words = (
                "nothing waits for a person: the gate goes on by itself (promote --full skips what is left)"
            )
            return Changed(changed=False, message=words, rollout=rollout)
        if full:
            return await self._promote_in_full(rollout, by, reason)
        verdict = controller.full_verdict()
        controller.record(
            rollout.id, pass_step(rollout, now, by, Cause.PERSON, reason or "passed by hand", verdict)
        )
        return await self._promoted()

    async def _promote_in_full(self, rollout: Rollout, by: str, reason: str) -> Changed:
        """Skip all that is left, as soon as the candidate is loaded: until then a person may still roll back, and that counts."""
        controller = self._controller
        _needs_reason(reason)
        if rollout.plan.others:
            raise InvalidError(
                "several candidates are tried: end the shadow first (rollback), then shadow one of them"
            )

        def refuse() -> None:
            last = controller.last
            if last.id != rollout.id or (last.ended and last.phase is not Phase.PROMOTED):
                raise ConflictError(f"rollout {rollout.id} was ended meanwhile: nothing was promoted")

        await self._loaded(rollout.plan.candidate, "candidate", refuse)
        now = controller.order_time()
        refuse()
        if controller.last.ended:
            words = "it was promoted meanwhile, with its evidence"
            return Changed(changed=False, message=words, rollout=controller.last)
        verdict, words = controller.full_verdict(), f"without evidence: {reason}"
        event = Event(0, Kind.PROMOTED, now, by, Cause.PERSON, words, verdict=verdict)
        controller.record(rollout.id, event)
        if controller.last.holding_back:
            skip = Event(0, Kind.RELEASED, now, by, Cause.PERSON, "nobody is held back: promoted in full")
            controller.record(rollout.id, skip)
        return await self._promoted()

    async def _promoted(self) -> Changed:
        await self._confirm()
        after = self._controller.last
        words = f"{after.phase.value} at weight {after.weight:g} %"
        return Changed(changed=True, message=words, rollout=after)

    @property
    def _last_whole_one(self) -> Rollout | None:
        """The last rollout; an order that was not written down in full is none, and may be given again."""
        assert self._controller.service is not None
        rollouts = reversed(self._controller.service.rollouts)
        return next(
            (one for one in rollouts if not (one.ended_by and one.ended_by.reason == HALF_AN_ORDER)), None
        )

    async def _promote_shadowed(self, shadowed: Rollout, by: str, reason: str) -> Changed:
        """The candidate of a shadow that has ended becomes live: by a person's word, whatever the shadow showed."""
        _needs_reason(reason)
        candidate = shadowed.plan.candidate
        if shadowed.plan.others:
            raise InvalidError(
                "several candidates were tried: name one (deployctl rollback NAME --to VERSION)"
            )
        async with self._starting:
            if self._last_whole_one != shadowed:
                raise ConflictError(
                    f"rollout {self._controller.last.id} has begun meanwhile: nothing was promoted"
                )
            left = await self._go_to(candidate, "promotion", by, reason)
        await self._confirm()
        words = f"version {candidate.version} answers all callers"
        return Changed(changed=left is not None, message=words, rollout=self._controller.last)

    def pause(self, by: str) -> Changed:
        """Stop the climbing, not the watching."""
        now = self._controller.order_time()
        rollout = self._running
        if rollout is None or rollout.paused:
            words = "nothing to pause: no rollout is running" if rollout is None else "it is paused already"
            return Changed(changed=False, message=words, rollout=rollout)
        event = Event(0, Kind.PAUSED, now, by, Cause.PERSON, "paused by hand")
        self._controller.record(rollout.id, event)
        words = f"paused at weight {rollout.weight:g} %; it is still watched and rolls back on harm"
        return Changed(changed=True, message=words, rollout=self._controller.last)

    def resume(self, by: str) -> Changed:
        """Undo `pause`, and nothing else."""
        now = self._controller.order_time()
        rollout = self._running
        if rollout is None or not rollout.paused:
            waits = rollout is not None and rollout.waits_for
            words = "nothing to resume" + (": it waits for `deployctl promote`" if waits else "")
            return Changed(changed=False, message=words, rollout=rollout)
        event = Event(0, Kind.RESUMED, now, by, Cause.PERSON, "resumed by hand")
        self._controller.record(rollout.id, event)
        self._controller.wake()
        return Changed(changed=True, message="resumed", rollout=self._controller.last)

    @property
    def _running(self) -> Rollout | None:
        assert self._controller.service is not None
        return self._controller.service.running

    async def _confirm(self) -> None:
        controller = self._controller
        if await controller.confirmed(self.confirm_seconds):
            return
        within = f"within {self.confirm_seconds:g} s"
        why = f"no router confirmed it {within}"
        if controller.awaited is not None:
            why = f"version {controller.awaited.version} was not ready {within}, and traffic stays as it was until then"
        raise UnconfirmedError(
            f"it is written down, but {why}; look at `deployctl status {controller.name}` and call a person"
        )


def _connections(spec: Mapping[str, Any]) -> int | None:
    found: int | None = (spec.get("limits") or {}).get("connections")
    return found


def _refuse_too_few_files(spec: Mapping[str, Any]) -> None:
    """Raises UnavailableError where a router could not open what its callers need."""
    callers = _connections(spec)
    _, may = resource.getrlimit(resource.RLIMIT_NOFILE)
    if callers is not None and may != resource.RLIM_INFINITY and callers + SPARE_FILES > may:
        raise UnavailableError(
            f"limits.connections: {callers} needs {callers + SPARE_FILES} open files, and a process may open {may} here; raise that "
            f"(ulimit -Hn {callers + SPARE_FILES}, LimitNOFILE= of a unit) or lower the limit"
        )


def _needs_reason(reason: str) -> None:
    if not reason:
        raise InvalidError("promote --full needs --reason TEXT: it is recorded as without evidence")


async def read_manifest(text: bytes, path: Path) -> Manifest:
    """The manifest of these bytes, with the names that this build knows. Raises InvalidError with every problem."""
    return await read_apart(
        text,
        path,
        engines=tuple(BACKENDS),
        metrics=tuple(METRICS),
        label_sources=tuple(LABEL_SOURCES),
        model_sources=SOURCE_FORMS,
    )


def signature_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """How the candidate's inputs and outputs differ from the baseline's, in one line; None when they are the same."""
    for side in ("inputs", "outputs"):
        before = {tensor["name"]: tensor for tensor in ours[side]}
        after = {tensor["name"]: tensor for tensor in theirs[side]}
        if before.keys() != after.keys():
            return f"its {side} are {', '.join(sorted(after))} instead of {', '.join(sorted(before))}"
        for name, tensor in before.items():
            for what in ("datatype", "shape"):
                if tensor[what] != after[name][what]:
                    return f"{side[:-1]} {name!r} has {what} {after[name][what]} instead of {tensor[what]}"
    return None


def _prediction(manifest: Manifest) -> dict[str, Any] | None:
    if manifest.prediction is None:
        return None
    return {
        "output": manifest.prediction.output,
        "read": manifest.prediction.read,
        "classes": list(manifest.prediction.classes) if manifest.prediction.classes else None,
        "confidence_below": manifest.prediction.confidence_below,
    }


def _short(version: Version) -> str:
    return version.digest[:19]
