"""The rollout machine: a rollout is the fold of its events, and this table is all that may happen to it.

Two rules. Everything that changes a rollout is an Event that `apply` accepts; an illegal one is an error and nothing has
changed. And `decide` only proposes: time, verdicts and what was seen are its arguments, so the same history decides the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from deployctl.core.plan import (
    HUMAN,
    Copy,
    Hook,
    HookType,
    OnInconclusive,
    Phase,
    Plan,
    Split,
    Step,
    Version,
)
from deployctl.core.verdict import CandidateVerdict, Result, Verdict, together

DEFAULT_STEP_TIMEOUT = 1800.0
"""Seconds a step may go on after its dwell where neither the manifest nor the traffic says otherwise."""


UNLOADABLE = "the candidate cannot be kept loaded: "
UNWATCHED = "nobody can watch the candidate: "
"""How the reason of such an end begins."""

HALF_AN_ORDER = "the order of a person was not written down in full, so nothing was changed"
"""Why a rollout without steps ends by itself: it was to be promoted by a person's word, in the same breath as it began."""


class Kind(Enum):
    """What can happen to a rollout."""

    STARTED = "started"
    LEARNED = "learned"
    CLIMBED = "climbed"
    AWAITED = "awaited"
    APPROVED = "approved"
    HELD = "held"
    PAUSED = "paused"
    RESUMED = "resumed"
    PROMOTED = "promoted"
    RELEASED = "released"
    JUDGED = "judged"
    ROLLED_BACK = "rolled_back"
    RETIRED = "retired"
    FINISHED = "finished"


class Cause(Enum):
    """Why it happened: evidence, a person, a webhook's answer, too little evidence in time, or time alone."""

    EVIDENCE = "evidence"
    PERSON = "person"
    WEBHOOK = "webhook"
    INCONCLUSIVE = "inconclusive"
    TIME = "time"


@dataclass(frozen=True, slots=True)
class Learned:
    """What was learnt of the baseline before the candidate's first request, frozen for the whole rollout.

    `thresholds` (milliseconds) for latency; `rates` and `margins` (fractions) per metric, one for each component;
    `step_timeout` in seconds; `answers` is how many known baseline answers it rests on.
    """

    thresholds: tuple[float, ...]
    rates: dict[str, tuple[float, ...]]
    margins: dict[str, tuple[float, ...]]
    step_timeout: float
    answers: int


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened, as the journal has it. `at` is rollout time: seconds watched by a controller.

    `seq` is its number in the service's journal; where the event moves traffic it becomes the split's number. `version` says which
    of several candidates was judged.
    """

    seq: int
    kind: Kind
    at: float
    by: str
    cause: Cause
    reason: str = ""
    step: int | None = None
    plan: Plan | None = None
    learned: Learned | None = None
    verdict: Verdict | None = None
    wall: str = ""
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Unloadable:
    """A candidate that cannot be kept loaded, and why: its model is broken, or its worker ends again and again."""

    version: str
    words: str


@dataclass(frozen=True, slots=True)
class Unwatched:
    """What the candidate answers can be written down no more, and why: no evidence comes, of harm neither."""

    words: str


Untenable = Unloadable | Unwatched
"""Why a rollout cannot go on, whatever the evidence says."""

Change = Callable[["Rollout", Event], "Rollout"]


class IllegalEventError(Exception):
    """An event that cannot happen to a rollout in this phase; nothing was changed."""


TRANSITIONS: dict[Phase | None, dict[Kind, Phase | None]] = {
    None: {Kind.STARTED: Phase.PENDING},
    Phase.PENDING: {
        Kind.LEARNED: Phase.PENDING,
        Kind.CLIMBED: Phase.PROGRESSING,
        Kind.AWAITED: Phase.PAUSED,  # a webhook must agree first
        Kind.APPROVED: Phase.PENDING,
        Kind.PAUSED: Phase.PAUSED,
        Kind.HELD: Phase.PAUSED,
        Kind.PROMOTED: Phase.PROMOTED,
        Kind.ROLLED_BACK: Phase.ROLLED_BACK,
        Kind.RETIRED: Phase.RETIRED,
    },
    Phase.PROGRESSING: {
        Kind.LEARNED: Phase.PROGRESSING,  # where a person passed the wait at weight 0
        Kind.CLIMBED: Phase.PROGRESSING,
        Kind.AWAITED: Phase.PAUSED,
        Kind.APPROVED: Phase.PROGRESSING,
        Kind.HELD: Phase.PAUSED,
        Kind.PAUSED: Phase.PAUSED,
        Kind.JUDGED: Phase.PROGRESSING,  # one of several candidates; the others go on
        Kind.PROMOTED: Phase.PROMOTED,
        Kind.ROLLED_BACK: Phase.ROLLED_BACK,
        Kind.RETIRED: Phase.RETIRED,
    },
    Phase.PAUSED: {
        Kind.LEARNED: Phase.PAUSED,
        Kind.CLIMBED: None,  # a person passes the wait; a pause of their own stays
        Kind.APPROVED: None,  # the last webhook that was waited for ends the wait
        Kind.PAUSED: Phase.PAUSED,
        Kind.RESUMED: None,  # back to what it was before, unless something else is waited for
        Kind.JUDGED: Phase.PAUSED,  # one of several candidates; the others go on
        Kind.PROMOTED: Phase.PROMOTED,
        Kind.ROLLED_BACK: Phase.ROLLED_BACK,
        Kind.RETIRED: Phase.RETIRED,
    },
    Phase.PROMOTED: {
        Kind.RELEASED: Phase.PROMOTED,  # the callers that were held back follow the others
        Kind.ROLLED_BACK: Phase.ROLLED_BACK,
        Kind.FINISHED: Phase.PROMOTED,
    },
    Phase.ROLLED_BACK: {},
    Phase.RETIRED: {},
}
"""Phase → what may happen → the phase it leads to; None means that `apply` works it out of what is waited for."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One attempt to replace the baseline by the candidate: the state that its events add up to.

    `step` is -1 before the first weight. `split_number` names the split in force, `step_split` that of the step. `waits_for`
    is what a person must pass: "person" (a `pause: {}`) or "hold", or what webhooks must agree to: "webhook". `idle` are the seconds of this
    step spent waiting for one. `approved` are the webhooks that have agreed since it was entered, by name.
    """

    id: str
    plan: Plan
    phase: Phase = Phase.PENDING
    step: int = -1
    split_number: int = 0
    step_began: float = 0.0
    waits_for: str | None = None
    paused: bool = False
    idle_since: float | None = None
    idle: float = 0.0
    approved: tuple[str, ...] = ()
    learned: Learned | None = None
    ended_by: Event | None = None
    released: bool = False
    judged: tuple[CandidateVerdict, ...] = ()
    finished: bool = False
    at: float = 0.0
    last_seq: int = 0

    @property
    def current(self) -> Step | None:
        """The step it is on, None before the first."""
        return self.plan.steps[self.step] if self.step >= 0 else None

    @property
    def weight(self) -> float:
        """Share of callers (percent) that the candidate should be answering now."""
        if self.phase is Phase.PROMOTED:
            held_back = self.plan.holdback.weight if self.plan.holdback and self.holding_back else 0.0
            return 100.0 - held_back
        if self.phase in {Phase.ROLLED_BACK, Phase.RETIRED} or self.current is None:
            return 0.0
        return self.current.weight

    @property
    def ended(self) -> bool:
        """Whether the gate is done with it: promoted, rolled back or retired."""
        phase = self.phase  # a set of enum members would hash in Python: asked after every block
        return phase is Phase.PROMOTED or phase is Phase.ROLLED_BACK or phase is Phase.RETIRED

    @property
    def holding_back(self) -> bool:
        """Whether some callers stay on the baseline after the promotion, to keep comparing."""
        return self.phase is Phase.PROMOTED and self.plan.holdback is not None and not self.released

    @property
    def watched(self) -> bool:
        """Whether outcomes are evidence: until its end, and on while callers are held back."""
        return not self.ended or self.holding_back

    @property
    def live(self) -> Version:
        """The version that callers are served by when nothing else is being tried."""
        return self.plan.candidate if self.phase is Phase.PROMOTED else self.plan.baseline


def start(rollout_id: str, event: Event) -> Rollout:
    """A rollout from its first event. Raises IllegalEventError for any other kind."""
    if event.kind is not Kind.STARTED or event.plan is None:
        raise IllegalEventError(
            f"a rollout begins with 'started' and its plan, not with {event.kind.value!r}"
        )
    return Rollout(
        id=rollout_id,
        plan=event.plan,
        split_number=event.seq,
        at=event.at,
        step_began=event.at,
        last_seq=event.seq,
    )


def apply(rollout: Rollout, event: Event) -> Rollout:
    """The rollout after this event. Raises IllegalEventError, and nothing has changed, when it cannot happen."""
    legal = TRANSITIONS[rollout.phase]
    if event.kind not in legal:
        raise IllegalEventError(
            f"{event.kind.value!r} cannot happen to a rollout that is {rollout.phase.value}"
        )
    if rollout.finished and event.cause is not Cause.PERSON:
        raise IllegalEventError(f"only a person may roll back the finished rollout {rollout.id}")
    if _unproven(rollout, event):
        raise IllegalEventError(f"{event.kind.value!r} needs evidence that the step is passed, or a person")
    if event.at < rollout.at or event.seq <= rollout.last_seq:
        raise IllegalEventError(f"event {event.seq} at {event.at} comes after one that is later")
    changed = replace(_CHANGES[event.kind](rollout, event), at=event.at, last_seq=event.seq)
    after = legal[event.kind]
    return replace(changed, phase=after if after is not None else _phase_of(changed))


def decide(
    rollout: Rollout,
    verdict: Verdict,
    learned: Learned | None,
    now: float,
    *,
    untenable: Untenable | None = None,
) -> Event | None:
    """What should happen now, or None. `learned` is what could be frozen of the baseline so far, `untenable` a candidate that
    nobody can be answered by, or that nobody can watch any more.

    The automatic actor stops and rolls back on harm at any time; it moves on only with evidence. `seq` and `wall` of the
    event are the writer's to fill in.
    """
    if isinstance(untenable, Unloadable):
        verdict = _without(rollout, verdict, untenable)
    if rollout.ended:
        return _decide_after(rollout, verdict, now)
    if not rollout.plan.steps:
        return Event(0, Kind.ROLLED_BACK, now, "controller", Cause.TIME, HALF_AN_ORDER)
    if rollout.plan.others and (event := _judge_one(rollout, verdict, now)) is not None:
        return event
    if (event := _stop(rollout, verdict, untenable, now)) is not None:
        return event
    if rollout.learned is None and learned is not None:
        return Event(0, Kind.LEARNED, now, "controller", Cause.TIME, _learned_words(learned), learned=learned)
    if rollout.phase is Phase.PAUSED:
        return None  # a paused rollout keeps its weight and is still watched for harm
    if rollout.phase is Phase.PENDING:
        return _decide_first(rollout, verdict, now)
    return _decide_step(rollout, verdict, now)


def _stop(rollout: Rollout, verdict: Verdict, untenable: Untenable | None, now: float) -> Event | None:
    """The end on harm; and, while callers are answered by the candidate, where harm could not be seen."""
    if verdict.result is Result.FAIL:
        return _end(rollout, rollout.plan.failed, now, Cause.EVIDENCE, verdict)
    if isinstance(untenable, Unwatched) and rollout.weight > 0:
        blind = replace(verdict, result=Result.INCONCLUSIVE, reason=f"{UNWATCHED}{untenable.words}")
        return _inconclusive(rollout, blind, now)
    return None


def _inconclusive(rollout: Rollout, verdict: Verdict, now: float) -> Event | None:
    """What the manifest wants where there is too little evidence; None where a person is waited for already."""
    if rollout.plan.on_inconclusive is not OnInconclusive.HOLD:
        return _end(rollout, rollout.plan.failed, now, Cause.INCONCLUSIVE, verdict)
    if rollout.phase is Phase.PAUSED:
        return None
    return Event(0, Kind.HELD, now, "gate", Cause.INCONCLUSIVE, verdict.reason, verdict=verdict)


def _without(rollout: Rollout, verdict: Verdict, unloadable: Unloadable) -> Verdict:
    """The verdict where a candidate cannot be kept loaded: a failure of this one, whatever its answers were."""
    reason = f"{UNLOADABLE}{unloadable.words}"
    if rollout.plan.others and verdict.candidates:
        each = tuple(
            replace(one, result=Result.FAIL, reason=reason) if one.version == unloadable.version else one
            for one in verdict.candidates
        )
        return replace(verdict, candidates=each)
    return verdict if verdict.result is Result.FAIL else replace(verdict, result=Result.FAIL, reason=reason)


def split_for(rollout: Rollout) -> Split:
    """The whole desired traffic of this rollout, safe to ask for again and again."""
    step = rollout.current
    plan = rollout.plan
    mirror = step.mirror if step is not None and not rollout.ended else 0.0
    return Split(
        number=rollout.split_number,
        baseline=plan.baseline,
        candidate=plan.candidate,
        weight=rollout.weight,
        mirror=mirror,
        salt=rollout.id,
        copies=_copies(rollout) if mirror > 0 else (),
        copy_timeout=plan.copy_timeout,
        copy_limit=plan.copy_limit,
    )


def _copies(rollout: Rollout) -> tuple[Copy, ...]:
    """Who gets copies: every candidate that is not judged yet and, where the candidate answers callers, each of the two."""
    done = {one.version for one in rollout.judged}
    candidates = tuple(
        Copy(arm, version)
        for arm, version in enumerate(rollout.plan.candidates, 1)
        if version.version not in done
    )
    return (Copy(0, rollout.plan.baseline), *candidates) if rollout.weight > 0 else candidates


def versions_for(rollout: Rollout) -> tuple[Version, ...]:
    """The versions that must be loaded: both while it runs and, unless `keepWarm` is over, after a promotion."""
    plan = rollout.plan
    if rollout.phase in {Phase.ROLLED_BACK, Phase.RETIRED}:
        wanted: tuple[Version, ...] = (plan.baseline,)
    elif rollout.finished and plan.keep_warm is not None:
        wanted = (plan.candidate,)
    else:
        wanted = (plan.baseline, *plan.candidates)
    return tuple(dict.fromkeys(version for version in wanted if version != HUMAN))


def _judge_one(rollout: Rollout, verdict: Verdict, now: float) -> Event | None:
    """The next of several candidates of which enough is known; the last one retires the rollout."""
    done = {one.version for one in rollout.judged}
    left = [one for one in verdict.candidates if one.version not in done]
    held = rollout.phase is Phase.PAUSED or bool(
        _missing(rollout, *CHECKS)
    )  # then nothing passes, and harm is harm
    counts = {Result.FAIL} if held else {Result.FAIL, Result.PASS}
    known = next((one for one in left if one.result in counts), None)
    if known is None or rollout.phase is Phase.PENDING:
        return None
    if len(left) == 1:
        return _end(rollout, rollout.plan.failed, now, Cause.EVIDENCE, _of_all(rollout, verdict))
    own = Verdict(known.result, known.reason, known.metrics, known.decided_by)
    return Event(
        0, Kind.JUDGED, now, "gate", Cause.EVIDENCE, known.reason, verdict=own, version=known.version
    )


def _of_all(rollout: Rollout, verdict: Verdict) -> Verdict:
    """One verdict of several candidates: those that were judged, and what is known of the others by now."""
    done = {one.version for one in rollout.judged}
    every = (*rollout.judged, *(one for one in verdict.candidates if one.version not in done))
    words = "; ".join(f"version {one.version}: {one.result.value}, {one.reason}" for one in every)
    return Verdict(together(one.result for one in every), words, candidates=every)


def _decide_first(rollout: Rollout, verdict: Verdict, now: float) -> Event | None:
    """Before the first weight or copy: what must be learnt, and who must agree."""
    if rollout.learned is None:
        return _inconclusive_if_late(rollout, verdict, now)
    if (event := _await_confirmation(rollout, now, None)) is not None:
        return event
    if checks := _missing(rollout, *CHECKS):
        return _inconclusive_if_late(rollout, replace(verdict, reason=_not_agreed(checks)), now)
    return Event(0, Kind.CLIMBED, now, "gate", Cause.TIME, "the candidate is ready", step=0)


def _decide_step(rollout: Rollout, verdict: Verdict, now: float) -> Event | None:
    step = rollout.current
    assert step is not None
    if now < dwell_ends(rollout):
        return None
    if step.gate is None:
        if (event := _await_confirmation(rollout, now, None)) is not None:
            return event
        words = "there is no gate before the switch; a person promotes"
        return Event(0, Kind.AWAITED, now, "controller", Cause.TIME, words)
    if verdict.result is not Result.PASS:
        return _inconclusive_if_late(rollout, verdict, now)
    if checks := _missing(rollout, *CHECKS):
        undecided = replace(verdict, result=Result.INCONCLUSIVE, reason=_not_agreed(checks))
        return _inconclusive_if_late(rollout, undecided, now)
    if (event := _await_confirmation(rollout, now, verdict)) is not None:
        return event
    if step.awaits_person:
        words = f"the gate at {step.weight:g} % is passed; a person promotes"
        return Event(0, Kind.AWAITED, now, "gate", Cause.EVIDENCE, words, verdict=verdict)
    return pass_step(rollout, now, "gate", Cause.EVIDENCE, verdict.reason, verdict)


def hooks_to_ask(rollout: Rollout) -> tuple[Hook, ...]:
    """The webhooks whose answer may move this rollout now: those it waits for, its checks, and all that may roll it back."""
    if rollout.ended or not rollout.plan.steps:
        return ()
    waited_for = _confirmations(rollout) if rollout.waits_for == "webhook" else ()
    always = (hook for hook in rollout.plan.hooks if hook.type is HookType.ROLLBACK)
    return (*waited_for, *_missing(rollout, *CHECKS), *always)


def answered(rollout: Rollout, hook: Hook, now: float, words: str) -> Event | None:
    """What it means that this webhook agrees, None where nobody waits for it any more. `words` are what it said."""
    if hook not in hooks_to_ask(rollout):
        return None
    kind = Kind.ROLLED_BACK if hook.type is HookType.ROLLBACK else Kind.APPROVED
    step = rollout.step if kind is Kind.ROLLED_BACK else None
    return Event(0, kind, now, hook.by, Cause.WEBHOOK, words, step)


CHECKS = (HookType.PRE_ROLLOUT, HookType.ROLLOUT)
"""Webhooks that are asked while a step goes on, and within its time."""


def _missing(rollout: Rollout, *types: HookType) -> tuple[Hook, ...]:
    """Webhooks of these types that matter at this step and have not agreed yet."""
    first = rollout.step < 0
    of_the_start = {HookType.CONFIRM_ROLLOUT, HookType.PRE_ROLLOUT}
    return tuple(
        hook
        for hook in rollout.plan.hooks
        if hook.type in types and (hook.type in of_the_start) is first and hook.name not in rollout.approved
    )


def _confirmations(rollout: Rollout) -> tuple[Hook, ...]:
    """Who must still agree to the move that leads out of the current step."""
    if rollout.step < 0:
        return _missing(rollout, HookType.CONFIRM_ROLLOUT)
    following = rollout.step + 1
    if following < len(rollout.plan.steps):
        more = rollout.plan.steps[following].weight > rollout.weight
        return _missing(rollout, HookType.CONFIRM_TRAFFIC_INCREASE) if more else ()
    return _missing(rollout, HookType.CONFIRM_PROMOTION) if rollout.plan.passed is Phase.PROMOTED else ()


def _await_confirmation(rollout: Rollout, now: float, verdict: Verdict | None) -> Event | None:
    waiting = _confirmations(rollout)
    if not waiting:
        return None
    cause = Cause.TIME if verdict is None else Cause.EVIDENCE
    return Event(0, Kind.AWAITED, now, "gate", cause, _not_agreed(waiting), verdict=verdict)


def _not_agreed(hooks: tuple[Hook, ...]) -> str:
    names = " and ".join(f"{hook.name} ({hook.type.value})" for hook in hooks)
    return f"waiting for webhook{'s' if len(hooks) > 1 else ''} {names}"


def pass_step(
    rollout: Rollout, now: float, by: str, cause: Cause, reason: str, verdict: Verdict | None = None
) -> Event:
    """The event that leads out of the current step: the next one, or the plan's end."""
    following = rollout.step + 1
    if following < len(rollout.plan.steps):
        return Event(0, Kind.CLIMBED, now, by, cause, reason, step=following, verdict=verdict)
    kind = Kind.PROMOTED if rollout.plan.passed is Phase.PROMOTED else Kind.RETIRED
    return Event(0, kind, now, by, cause, reason, verdict=verdict)


def _inconclusive_if_late(rollout: Rollout, verdict: Verdict, now: float) -> Event | None:
    if now < late_at(rollout):
        return None
    if rollout.plan.others:
        verdict = _of_all(rollout, verdict)
    reason = f"not enough evidence within the step's time: {verdict.reason}"
    return _inconclusive(rollout, replace(verdict, reason=reason), now)


def next_due(rollout: Rollout, after: float) -> float | None:
    """The next instant, after this one, at which time alone may change what `decide` says; None when there is none."""
    if rollout.finished or rollout.phase is Phase.PAUSED:
        return None
    after_end = held_back_until(rollout) if rollout.holding_back else cold_at(rollout)
    due = (after_end,) if rollout.ended else (dwell_ends(rollout), late_at(rollout))
    return min((at for at in due if after < at < math.inf), default=None)


def dwell_ends(rollout: Rollout) -> float:
    """When the current step, or the wait before the first one, has lasted as long as it must."""
    return rollout.step_began + (rollout.current.dwell if rollout.current else 0.0)


def late_at(rollout: Rollout) -> float:
    """When the current step has had its time; it stands still while a person is awaited."""
    return dwell_ends(rollout) + rollout.idle + step_timeout(rollout)


def held_back_until(rollout: Rollout) -> float:
    """When the callers that stayed on the baseline follow the others."""
    return rollout.step_began + (rollout.plan.holdback.duration if rollout.plan.holdback else 0.0)


def cold_at(rollout: Rollout) -> float:
    """When the version before a promotion need not be kept warm any longer."""
    return rollout.step_began + (rollout.plan.keep_warm or 0.0)


def step_timeout(rollout: Rollout) -> float:
    """Seconds that a step may last beyond its dwell: the manifest's, else what the traffic asks for."""
    if rollout.plan.step_timeout is not None:
        return rollout.plan.step_timeout
    return rollout.learned.step_timeout if rollout.learned else DEFAULT_STEP_TIMEOUT


def _end(rollout: Rollout, phase: Phase, now: float, cause: Cause, verdict: Verdict) -> Event:
    kind = Kind.RETIRED if phase is Phase.RETIRED else Kind.ROLLED_BACK
    return Event(0, kind, now, "gate", cause, verdict.reason, step=rollout.step, verdict=verdict)


def _decide_after(rollout: Rollout, verdict: Verdict, now: float) -> Event | None:
    """A promoted rollout is watched while callers are held back, and finished when `keepWarm` is over, too.

    Until then the version before is loaded, so one whose worker ends again and again goes back to it.
    """
    if rollout.phase is not Phase.PROMOTED or rollout.finished:
        return None
    if verdict.result is Result.FAIL:
        return _end(rollout, rollout.plan.failed, now, Cause.EVIDENCE, verdict)
    if rollout.holding_back:
        if now >= held_back_until(rollout):
            words = "no harm was seen while callers were held back"
            return Event(0, Kind.RELEASED, now, "gate", Cause.TIME, words, verdict=verdict)
        return None
    if now >= cold_at(rollout):
        return Event(0, Kind.FINISHED, now, "controller", Cause.TIME, "nothing is left to watch")
    return None


def _learned_words(learned: Learned) -> str:
    if not learned.rates:
        return "nothing has to be learnt first: every metric has its limit"
    if not learned.thresholds:
        return f"learnt from {learned.answers} baseline answers"
    limits = " / ".join(f"{threshold:.3g}" for threshold in learned.thresholds)
    return f"learnt from {learned.answers} baseline answers: latency p50 / p90 / p95 / p99 {limits} ms"


def _unproven(rollout: Rollout, event: Event) -> bool:
    """Whether an event puts more callers at risk and nobody has shown or said that it may."""
    if event.cause is Cause.PERSON or event.kind not in {Kind.CLIMBED, Kind.PROMOTED}:
        return False
    if event.kind is Kind.CLIMBED and rollout.step < 0:
        return False  # the first step is where evidence begins
    passed = event.verdict is not None and event.verdict.result is Result.PASS
    return not passed or (event.kind is Kind.PROMOTED and rollout.step + 1 < len(rollout.plan.steps))


def _phase_of(rollout: Rollout) -> Phase:
    if rollout.paused or rollout.waits_for:
        return Phase.PAUSED
    return Phase.PENDING if rollout.step < 0 else Phase.PROGRESSING


def _enter_step(rollout: Rollout, event: Event) -> Rollout:
    assert event.step is not None
    if event.step != rollout.step + 1:
        raise IllegalEventError(f"step {event.step} does not follow step {rollout.step}")
    if event.step >= len(rollout.plan.steps):
        raise IllegalEventError(f"there is no step {event.step}: promotion follows step {rollout.step}")
    return replace(
        rollout,
        step=event.step,
        split_number=event.seq,
        step_began=event.at,
        waits_for=None,
        idle_since=event.at if rollout.paused else None,
        idle=0.0,
        approved=(),
    )


def _wait(waits_for: str | None, *, paused: bool | None = None) -> Change:
    def change(rollout: Rollout, event: Event) -> Rollout:
        return replace(
            rollout,
            waits_for=waits_for or rollout.waits_for,
            paused=rollout.paused if paused is None else paused,
            idle_since=rollout.idle_since if rollout.idle_since is not None else event.at,
        )

    return change


def _resume(rollout: Rollout, event: Event) -> Rollout:
    if not rollout.paused:
        raise IllegalEventError("nobody has paused this rollout")
    return _no_longer_idle(replace(rollout, paused=False), event)


def _await(rollout: Rollout, event: Event) -> Rollout:
    """Whoever else must agree does so first: the last word is a person's, where the manifest says so."""
    return _wait("webhook" if _confirmations(rollout) else "person")(rollout, event)


def _approve(rollout: Rollout, event: Event) -> Rollout:
    asked = (hook for hook in hooks_to_ask(rollout) if hook.type is not HookType.ROLLBACK)
    hook = next((hook for hook in asked if hook.by == event.by), None)
    if hook is None:
        raise IllegalEventError(f"nobody waits for {event.by}")
    agreed = replace(rollout, approved=(*rollout.approved, hook.name))
    if rollout.waits_for != "webhook" or _confirmations(agreed):
        return agreed
    return _no_longer_idle(replace(agreed, waits_for=None), event)


def _no_longer_idle(rollout: Rollout, event: Event) -> Rollout:
    """The step's time goes on, unless something else is waited for."""
    if rollout.paused or rollout.waits_for:
        return rollout
    waited = event.at - rollout.idle_since if rollout.idle_since is not None else 0.0
    return replace(rollout, idle_since=None, idle=rollout.idle + waited)


def _judged(rollout: Rollout, event: Event) -> Rollout:
    verdict = event.verdict
    if event.version is None or verdict is None:
        raise IllegalEventError("'judged' needs a version and its verdict")
    left = {version.version for version in rollout.plan.candidates} - {one.version for one in rollout.judged}
    if event.version not in left or len(left) == 1:
        raise IllegalEventError(f"version {event.version} is not one of several that are still to be judged")
    one = CandidateVerdict(event.version, verdict.result, verdict.reason, verdict.metrics, verdict.decided_by)
    return replace(rollout, judged=(*rollout.judged, one), split_number=event.seq)


def _release(rollout: Rollout, event: Event) -> Rollout:
    if not rollout.holding_back:
        raise IllegalEventError(f"nobody is held back in rollout {rollout.id}")
    return replace(rollout, released=True, split_number=event.seq)


def _finish(rollout: Rollout, event: Event) -> Rollout:
    if rollout.finished:
        raise IllegalEventError(f"rollout {rollout.id} is finished already")
    # The next rollout ends a hold-back, too: nobody is left to release it.
    number = event.seq if rollout.holding_back else rollout.split_number
    return replace(
        rollout, finished=True, released=True, split_number=number, ended_by=rollout.ended_by or event
    )


def _end_with(*, finished: bool) -> Change:
    def change(rollout: Rollout, event: Event) -> Rollout:
        return replace(
            rollout,
            split_number=event.seq,
            step_began=event.at,
            waits_for=None,
            paused=False,
            ended_by=event,
            finished=finished,
        )

    return change


_CHANGES: dict[Kind, Change] = {
    Kind.LEARNED: lambda rollout, event: replace(rollout, learned=event.learned),
    Kind.CLIMBED: _enter_step,
    Kind.AWAITED: _await,
    Kind.APPROVED: _approve,
    Kind.HELD: _wait("hold"),
    Kind.PAUSED: _wait(None, paused=True),
    Kind.RESUMED: _resume,
    Kind.PROMOTED: _end_with(finished=False),
    Kind.RELEASED: _release,
    Kind.JUDGED: _judged,
    Kind.ROLLED_BACK: _end_with(finished=True),
    Kind.RETIRED: _end_with(finished=True),
    Kind.FINISHED: _finish,
}
