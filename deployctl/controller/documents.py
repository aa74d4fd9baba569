"""What the admin API answers: status, events, history and explain as JSON-able documents (contract: `-o json`)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from deployctl.controller.fold import Story
from deployctl.controller.loop import Controller
from deployctl.core.plan import HUMAN, HookType, OnInconclusive, Phase, Version
from deployctl.core.rollout import Cause, Event, Kind, Rollout, hooks_to_ask, step_timeout
from deployctl.core.verdict import MetricVerdict, Result, Verdict
from deployctl.errors import Exit

SCHEMA_VERSION = 1

RECORDS_FULL = "the records have reached spec.log.maxSize: nothing more becomes evidence in this rollout"

_EXIT_OF_SHADOW = {
    Result.PASS: Exit.DONE,
    Result.FAIL: Exit.ROLLED_BACK,
    Result.INCONCLUSIVE: Exit.INCONCLUSIVE,
}

_EXIT_OF_END = {
    Cause.EVIDENCE: Exit.ROLLED_BACK,
    Cause.PERSON: Exit.ROLLED_BACK,
    Cause.WEBHOOK: Exit.ROLLED_BACK,
    Cause.TIME: Exit.ROLLED_BACK,
    Cause.INCONCLUSIVE: Exit.INCONCLUSIVE,
}


def status(controller: Controller, address: str, pids: dict[str, Any]) -> dict[str, Any]:
    """The document of `status -o json`; `weight` is what the routers read back."""
    service = controller.service
    rollout = service.rollout if service else None
    split = controller.traffic.confirmed
    live, previous = (service.live, service.previous) if service else (None, None)
    verdict = _current_verdict(controller, rollout)
    return {
        "schema_version": SCHEMA_VERSION,
        "service": controller.name,
        "live": _named(live),
        "previous": _named(previous),
        "phase": rollout.phase.value if rollout else None,
        "finished": rollout.finished if rollout else None,
        "step": _step_number(rollout) if rollout else None,
        "steps": len(rollout.plan.steps) if rollout else None,
        "step_weights": [step.weight for step in rollout.plan.steps] if rollout else [],
        "weight": split.weight if split else None,
        "mirror": split.mirror if split else None,
        "rollout": rollout.id if rollout else None,
        "strategy": rollout.plan.strategy if rollout else None,
        "baseline": _named(rollout.plan.baseline if rollout else live),
        "candidate": rollout.plan.candidate.version if rollout else None,
        "candidates": [version.version for version in rollout.plan.candidates] if rollout else [],
        "at": round(controller.clock.now, 3) if rollout and not rollout.finished else None,
        "waits_for": rollout.waits_for if rollout else None,
        "reason": _reason(rollout, verdict),
        "trouble": _trouble(controller),
        "pids": pids,
        "url": f"{'https' if 'tls' in controller.spec else 'http'}://{address}",
        "model": controller.spec.get("model"),
        "left_out": _left_out(controller),
        "copies_dropped": controller.copies_dropped,
        "labels": controller.observation.labels if controller.observation else {},
        "metrics": [metric(part) for part in verdict.metrics] if verdict else [],
    }


def _trouble(controller: Controller) -> str | None:
    """What is in the way of doing what the journal says, in a line."""
    if controller.trouble is None and controller.awaited is not None:
        return f"version {controller.awaited.version} is not ready: traffic stays as it is until then"
    return controller.trouble or controller.unwell or (RECORDS_FULL if controller.records_full else None)


def event_document(event: Event, rollout: Rollout) -> dict[str, Any]:
    """One event; `rollout` is the state right after it."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "seq": event.seq,
        "rollout": rollout.id,
        "kind": event.kind.value,
        "at": round(event.at, 3),
        "wall": event.wall or None,
        "by": event.by,
        "cause": event.cause.value,
        "reason": event.reason,
        "phase": rollout.phase.value,
        "step": _step_number(rollout),
        "steps": len(rollout.plan.steps),
        "weight": rollout.weight,
        "finished": rollout.finished,
        "verdict": verdict_document(event.verdict) if event.verdict else None,
    }
    if (code := _exit_code(event)) is not None:
        document["exit_code"] = int(code)
    return document


def history(service: str, stories: Iterable[Story]) -> dict[str, Any]:
    """Every rollout of the service with its events."""
    return {
        "schema_version": SCHEMA_VERSION,
        "service": service,
        "rollouts": [_rollout(story) for story in stories],
    }


def _rollout(story: Story) -> dict[str, Any]:
    rollout = story[-1][1]
    plan = rollout.plan
    return {
        "rollout": rollout.id,
        "strategy": plan.strategy,
        "baseline": None if plan.people_alone else _version(plan.baseline),
        "candidate": _version(plan.candidate),
        "candidates": [_version(version) for version in plan.candidates],
        "phase": rollout.phase.value,
        "finished": rollout.finished,
        "events": [event_document(event, state) for event, state in story],
    }


def _version(version: Version) -> dict[str, str]:
    return {"version": version.version, "digest": version.digest}


def explain(controller: Controller, story: Story) -> dict[str, Any]:
    """Why it was promoted, held or rolled back: the sentence, then each metric with its numbers."""
    rollout = story[-1][1]
    events = [event for event, _ in story]
    decided = _decisive(events)
    running = not rollout.ended
    verdict = controller.full_verdict() if running else (decided.verdict if decided else None)
    plan = rollout.plan
    return {
        "schema_version": SCHEMA_VERSION,
        "service": controller.name,
        "rollout": rollout.id,
        "strategy": plan.strategy,
        "baseline": _named(plan.baseline),
        "candidate": plan.candidate.version,
        "candidates": [version.version for version in plan.candidates],
        "phase": rollout.phase.value,
        "sentence": _sentence(rollout, decided, verdict),
        "decided_by": verdict.decided_by if verdict and rollout.ended else None,
        "by": decided.by if decided else None,
        "cause": decided.cause.value if decided else None,
        "at": round(decided.at, 3) if decided else None,
        "first_weight_at": next((round(e.at, 3) for e in events if e.kind is Kind.CLIMBED), None),
        "alpha": plan.alpha,
        "beta": plan.beta,
        "metrics": [metric(part) for part in verdict.metrics] if verdict else [],
        "would_change": _would_change(rollout, verdict),
        "evidence_over_time": _over_time(controller, rollout),
        "events": [event_document(event, state) for event, state in story],
    }


def metric(part: MetricVerdict) -> dict[str, Any]:
    """One metric. `evidence` is of harm (budget-weighted) against `threshold`; `safe_evidence` is what a pass needs."""
    return {
        "name": part.name,
        "verdict": part.result.value,
        "baseline": {"n": part.baseline.n, "bad": part.baseline.bad},
        "candidate": {"n": part.candidate.n, "bad": part.candidate.bad},
        "effect": part.effect,
        "interval": list(part.interval) if part.interval else None,
        "evidence": part.harm,
        "threshold": part.harm_threshold,
        "safe_evidence": part.safe,
        "safe_threshold": part.safe_threshold,
        "margin": part.margin,
        "needed": part.needed,
        "excluded": part.excluded,
        "words": part.words,
    }


def verdict_document(verdict: Verdict) -> dict[str, Any]:
    """A verdict as it stands in events."""
    document = {
        "result": verdict.result.value,
        "reason": verdict.reason,
        "decided_by": verdict.decided_by,
        "metrics": [metric(part) for part in verdict.metrics],
    }
    if verdict.candidates:
        document["candidates"] = [
            {
                "version": one.version,
                "result": one.result.value,
                "reason": one.reason,
                "decided_by": one.decided_by,
                "metrics": [metric(part) for part in one.metrics],
            }
            for one in verdict.candidates
        ]
    return document


def _named(version: Version | None) -> str | None:
    """The label of a version; people are none."""
    return None if version is None or version == HUMAN else version.version


def _left_out(controller: Controller) -> dict[str, int]:
    """Requests that did not become evidence, by reason."""
    seen = controller.observation.left_out if controller.observation else None
    return {
        "explicit_version": seen.explicit if seen else 0,
        "held_up": seen.held_up if seen else 0,
        "client_left": seen.client_left if seen else 0,
        "lost_pairs": seen.lost_pairs if seen else 0,
        "client_left_pairs": seen.client_left_pairs if seen else 0,
        "not_written_down": controller.left_out,
        "dropped_by_routers": controller.traffic.dropped,
    }


def _over_time(controller: Controller, rollout: Rollout) -> list[dict[str, float]]:
    """Evidence of harm and the weakest evidence of safety, about once a second; of the last rollout only."""
    if controller.observation is None or rollout.id != controller.last.id:
        return []
    return [
        {"at": round(at, 3), "harm": harm, "safe": safe}
        for at, harm, safe in controller.observation.says.history
    ]


def _exit_code(event: Event) -> Exit | None:
    match event.kind:
        case Kind.ROLLED_BACK:
            return _EXIT_OF_END[event.cause]
        case Kind.HELD:
            return Exit.INCONCLUSIVE
        case Kind.RETIRED:
            result = event.verdict.result if event.verdict else Result.INCONCLUSIVE
            return _EXIT_OF_SHADOW[result]
        case Kind.FINISHED:
            return Exit.DONE
        case _:
            return None


def _step_number(rollout: Rollout) -> int:
    """Steps are counted from 1 for people; 0 is before the first."""
    return rollout.step + 1


def _current_verdict(controller: Controller, rollout: Rollout | None) -> Verdict | None:
    if rollout is None:
        return None
    if not rollout.ended:
        return controller.full_verdict()
    decided = _decisive([event for event, _ in controller.stories[rollout.id]])
    return decided.verdict if decided else None


def _reason(rollout: Rollout | None, verdict: Verdict | None) -> str:
    if rollout is None:
        return ""
    if rollout.ended_by is not None:
        return rollout.ended_by.reason
    return verdict.reason if verdict else ""


def _decisive(events: list[Event]) -> Event | None:
    """The event that a person asks about: the end of the rollout, or else the last thing the gate did."""
    ends = [event for event in events if event.kind in {Kind.PROMOTED, Kind.ROLLED_BACK, Kind.RETIRED}]
    if ends:
        return ends[-1]
    gate = [event for event in events if event.kind in {Kind.CLIMBED, Kind.HELD, Kind.AWAITED}]
    return gate[-1] if gate else None


def _sentence(rollout: Rollout, decided: Event | None, verdict: Verdict | None) -> str:
    candidate, baseline = rollout.plan.candidate.version, rollout.plan.baseline.version
    reason = decided.reason if decided and rollout.ended else verdict.reason if verdict else ""
    who = "" if decided is None or decided.by == "gate" else f" by {decided.by}"
    match rollout.phase:
        case Phase.PROMOTED:
            over = "people" if rollout.plan.people_alone else f"version {baseline}"
            return f"Version {candidate} was promoted over {over}{who}: {reason}."
        case Phase.ROLLED_BACK:
            at = rollout.plan.steps[rollout.step].weight if rollout.step >= 0 else 0.0
            serves = "people decide" if rollout.plan.people_alone else f"version {baseline} serves"
            return f"Version {candidate} was rolled back at {at:g} %{who}; {serves}: {reason}."
        case Phase.PAUSED:
            waits = {
                "person": "it waits for `deployctl promote`",
                "webhook": f"it waits for {_asked(rollout)}",
                "hold": "it holds for want of evidence and waits for a person",
                None: "it was paused by hand",
            }[rollout.waits_for]
            return f"Version {candidate} stays at {rollout.weight:g} %: {waits}; {reason}."
        case Phase.RETIRED:
            result = decided.verdict.result if decided and decided.verdict else Result.INCONCLUSIVE
            said = {
                Result.PASS: "passed its shadow",
                Result.FAIL: "failed its shadow",
                Result.INCONCLUSIVE: "ended its shadow without enough evidence",
            }
            tried = " and ".join(version.version for version in rollout.plan.candidates)
            return f"Version {tried} {said[result]}: {reason}."
        case _ if rollout.current is not None and rollout.current.mirror > 0 and not rollout.weight:
            tried = " and ".join(version.version for version in rollout.plan.candidates)
            share = f"{rollout.current.mirror:g} % of the requests"
            return f"Version {tried} answers copies of {share} and decides nothing: {reason}."
        case _:
            return f"Version {candidate} is at {rollout.weight:g} %: {reason}."


def _asked(rollout: Rollout) -> str:
    return " and ".join(
        f"webhook {hook.name}" for hook in hooks_to_ask(rollout) if hook.type is not HookType.ROLLBACK
    )


def _would_change(rollout: Rollout, verdict: Verdict | None) -> str:
    """What would have made the decision another one, in a sentence; empty where nothing would have."""
    if verdict is None or not verdict.metrics:
        return ""
    plan = rollout.plan
    harm = sum(part.harm for part in verdict.metrics)
    if rollout.phase is Phase.RETIRED:
        return ""
    if rollout.phase is Phase.ROLLED_BACK and verdict.decided_by:
        return (
            f"The evidence of harm stood at {harm:.3g} and rolls back at {1 / plan.alpha:.3g}; fewer bad candidate answers, or "
            f"as many from the baseline at the same time, would have kept it going."
        )
    if rollout.phase is Phase.PROMOTED:
        return f"Harm evidence of {1 / plan.alpha:.3g} on any mix of metrics would have rolled it back; it stood at {harm:.3g}."
    return _moves_on(rollout, verdict)


def _moves_on(rollout: Rollout, verdict: Verdict) -> str:
    waiting = [part for part in verdict.metrics if part.safe < part.safe_threshold]
    if not waiting:
        return (
            "Every metric shows what this step asks for; the step's dwell is not over or a person is awaited."
        )
    names = ", ".join(f"{part.name} ({part.safe:.3g} of {part.safe_threshold:.3g})" for part in waiting)
    after = {OnInconclusive.ROLLBACK: "rolls back", OnInconclusive.HOLD: "holds for a person"}
    limit = step_timeout(rollout)
    time_out = f" Without it the step {after[rollout.plan.on_inconclusive]} after {limit:.0f} s."
    return f"It moves on when the evidence of safety is there for: {names}.{time_out if math.isfinite(limit) else ''}"
