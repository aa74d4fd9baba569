"""Plans, verdicts and events for the tests of core: a canary, a shadow and a blue-green, all of them data."""

from typing import Any

from deployctl.core.plan import Gate, MetricRule, Phase, Plan, Step, Version
from deployctl.core.rollout import Cause, Event, Kind, Learned, Rollout, start
from deployctl.core.strategies import Canary, CanaryStep
from deployctl.core.verdict import Result, Verdict

BASELINE, CANDIDATE = Version("1", "sha256:" + "1" * 64), Version("2", "sha256:" + "2" * 64)
ERRORS = MetricRule("error-rate", 0.1, 0.001, margin=0.005)

PASS, FAIL, UNSURE = (Verdict(result, f"the judge says {result.value}") for result in Result)
LEARNED = Learned((), {"error-rate": (0.01,)}, {"error-rate": (0.005,)}, 1800.0, 200)


def canary(*weights: Any, **changes: Any) -> Plan:
    """A canary over these weights: a CanaryStep, or a number for one; dwell 10 s, bake 20 s, time-out 60 s."""
    steps = [
        step if isinstance(step, CanaryStep) else CanaryStep(step) for step in weights or (5, 10, 30, 50)
    ]
    strategy = Canary(tuple(steps), min_dwell=10.0, bake=20.0)
    given = {"strategy": "canary", "steps": strategy.steps(), "step_timeout": 60.0} | changes
    return Plan(baseline=BASELINE, candidate=CANDIDATE, **{"metrics": (ERRORS,), **given})


def shadow() -> Plan:
    """Copies only; it retires whatever the verdict is."""
    steps = (Step(weight=0.0, mirror=100.0, gate=Gate(next_weight=100.0, last=True), dwell=10.0),)
    return canary(strategy="shadow", steps=steps, passed=Phase.RETIRED, failed=Phase.RETIRED)


def blue_green(*, by_hand: bool) -> Plan:
    """Copies first, then everything at once, with a bake in which the baseline stays loaded."""
    steps = (
        Step(weight=0.0, mirror=100.0, gate=Gate(next_weight=100.0), dwell=10.0, awaits_person=by_hand),
        Step(weight=100.0, gate=Gate(next_weight=100.0, last=True), mirror=100.0, dwell=30.0),
    )
    return canary(strategy="blueGreen", steps=steps)


def begun(plan: Plan) -> Rollout:
    return start("r-1", Event(1, Kind.STARTED, 0.0, "person:ann", Cause.PERSON, plan=plan))


def event(rollout: Rollout, kind: Kind, cause: Cause = Cause.PERSON, **more: Any) -> Event:
    """The next thing that happens to a rollout, a second after the last one."""
    given = {"seq": rollout.last_seq + 1, "at": rollout.at + 1.0, "by": "person:ann"} | more
    return Event(kind=kind, cause=cause, **given)
