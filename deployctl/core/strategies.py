"""Strategies are data: each one compiles to a Plan, and one machine runs them all.

To add a strategy: one frozen dataclass with a `steps()` method and one line in STRATEGIES.
"""

from __future__ import annotations

from dataclasses import dataclass

from deployctl.core.plan import Gate, Phase, Step


@dataclass(frozen=True, slots=True)
class CanaryStep:
    """A weight in percent, how long to dwell at least (seconds), and whether a person passes it on."""

    weight: float
    pause: float = 0.0
    awaits_person: bool = False


@dataclass(frozen=True, slots=True)
class Canary:
    """A growing share of callers is answered by the candidate, as far as the evidence allows."""

    canary_steps: tuple[CanaryStep, ...]
    min_dwell: float = 30.0
    bake: float = 300.0

    passed = Phase.PROMOTED
    failed = Phase.ROLLED_BACK

    def steps(self) -> tuple[Step, ...]:
        """The steps below 100 %; promotion follows the last one, after its bake."""
        climbing = [step for step in self.canary_steps if step.weight < 100]
        following = [step.weight for step in climbing[1:]] + [100.0]
        last = len(climbing) - 1
        return tuple(
            Step(
                weight=step.weight,
                gate=Gate(next_weight=next_weight, last=at == last),
                dwell=max(self.min_dwell, step.pause, self.bake if at == last else 0.0),
                awaits_person=step.awaits_person,
            )
            for at, (step, next_weight) in enumerate(zip(climbing, following, strict=True))
        )


STRATEGIES = {"canary": Canary}
"""Key of `spec.strategy` → strategy."""
