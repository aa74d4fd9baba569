"""Strategies are data: each one compiles to a Plan, and one machine runs them all.

To add a strategy: one frozen dataclass with a `steps()` method and one line in STRATEGIES.
"""

from __future__ import annotations

from dataclasses import dataclass

from deployctl.core.plan import Gate, Phase, Step


@dataclass(frozen=True, slots=True)
class CanaryStep:
    """A weight in percent, how long to dwell at least (seconds), and whether a person passes it on.

    With weight 0 it is a mirror step: `mirror` percent of the requests are copied to the candidate, whose answers are not used.
    """

    weight: float
    pause: float = 0.0
    awaits_person: bool = False
    mirror: float = 0.0


@dataclass(frozen=True, slots=True)
class Canary:
    """A growing share of callers is answered by the candidate, as far as the evidence allows."""

    canary_steps: tuple[CanaryStep, ...]
    min_dwell: float = 30.0
    bake: float = 300.0
    keeps_mirroring: bool = False
    """Whether requests are copied at the weights after a mirror step, too: a metric of pairs is judged all the way."""

    passed = Phase.PROMOTED
    failed = Phase.ROLLED_BACK

    def steps(self) -> tuple[Step, ...]:
        """The steps below 100 %; promotion follows the last one, after its bake."""
        climbing = [step for step in self.canary_steps if step.weight < 100]
        last = len(climbing) - 1
        mirrored = max((step.mirror for step in climbing), default=0.0) if self.keeps_mirroring else 0.0
        return tuple(
            Step(
                weight=step.weight,
                gate=Gate(next_weight=_first_weight(climbing[at + 1 :]), last=at == last),
                mirror=mirrored if step.weight else step.mirror,
                dwell=max(self.min_dwell, step.pause, self.bake if at == last else 0.0),
                awaits_person=step.awaits_person,
            )
            for at, step in enumerate(climbing)
        )


def _first_weight(steps: list[CanaryStep]) -> float:
    """The share that is put at risk next: a mirror step puts nobody at risk."""
    return next((step.weight for step in steps if step.weight > 0), 100.0)


@dataclass(frozen=True, slots=True)
class Shadow:
    """The candidate answers copies of this share of the requests (percent) and nothing is decided by it.

    It ends on fail at once, on pass with at least `min_labels` labelled answers, else after `max_duration` seconds.
    """

    percentage: float = 100.0
    min_labels: int = 300
    max_duration: float = 72 * 3600.0

    passed = Phase.RETIRED
    failed = Phase.RETIRED

    def steps(self) -> tuple[Step, ...]:
        """One step of weight 0: its margin is the metric's own, for nobody is put at risk by it."""
        return (Step(weight=0.0, gate=Gate(next_weight=100.0), mirror=self.percentage),)


@dataclass(frozen=True, slots=True)
class BlueGreen:
    """All callers at once: the candidate is checked on copies of `mirror` percent of the requests, then it answers everybody, and the
    version before stays beside it.

    After the switch it is compared for at least `bake` seconds: with `holdback` percent of callers that stay on the version before, or,
    where that is 0, with copies that the version before answers. Without `auto_promotion` a person passes on the switch.
    """

    mirror: float
    auto_promotion: bool
    bake: float = 300.0
    holdback: float = 0.0

    passed = Phase.PROMOTED
    failed = Phase.ROLLED_BACK

    def steps(self) -> tuple[Step, ...]:
        """The copies (or, without any, a person's word), then the switch with its bake."""
        by_hand = not self.auto_promotion
        gate = Gate(next_weight=100.0) if self.mirror > 0 else None
        before = Step(weight=0.0, gate=gate, mirror=self.mirror, awaits_person=by_hand)
        copies = (self.mirror or 100.0) if not self.holdback else 0.0
        after = Step(
            weight=100.0 - self.holdback,
            gate=Gate(next_weight=100.0, last=True),
            mirror=copies,
            dwell=self.bake,
        )
        return before, after


STRATEGIES = {"canary": Canary, "shadow": Shadow, "blueGreen": BlueGreen}
"""Key of `spec.strategy` → strategy."""
