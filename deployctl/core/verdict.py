"""What the judge says of a rollout: pass, fail or inconclusive, with the reason in words and numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Result(Enum):
    """The three answers; no evidence is never a pass."""

    PASS = "pass"  # noqa: S105 - the verdict's name, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Arm:
    """How many units one arm has answered, and how many of them were bad."""

    n: int = 0
    bad: int = 0

    @property
    def words(self) -> str:
        """Bad ones of all, with their share."""
        return f"{self.bad} of {self.n} ({100 * self.bad / self.n:.3g} %)" if self.n else "none of 0"


@dataclass(frozen=True, slots=True)
class MetricVerdict:
    """One metric: counts of both arms, effect with its any-time valid interval, evidence against its threshold.

    `effect` and `interval` are differences of rates (candidate minus baseline, fractions). `harm` and `safe` are
    e-values; `harm_threshold` and `safe_threshold` are what each must reach. `needed` is an estimate of the
    candidate units (requests or labels) still missing for a pass, None where it cannot be said. `excluded` is the smallest increase
    (a fraction) that this step's evidence has excluded so far, None where it has excluded none.
    """

    name: str
    result: Result
    baseline: Arm
    candidate: Arm
    effect: float | None
    interval: tuple[float, float] | None
    harm: float
    harm_threshold: float
    safe: float
    safe_threshold: float
    margin: float
    needed: int | None
    words: str
    excluded: float | None = None


@dataclass(frozen=True, slots=True)
class CandidateVerdict:
    """What is said of one of several candidates of a shadow, by its version."""

    version: str
    result: Result
    reason: str
    metrics: tuple[MetricVerdict, ...] = ()
    decided_by: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judge's answer for a step, with each metric's part in it and one sentence for a person.

    `candidates` is empty where one candidate is tried; else it holds what is said of each that is not judged yet.
    """

    result: Result
    reason: str
    metrics: tuple[MetricVerdict, ...] = ()
    decided_by: str | None = None
    candidates: tuple[CandidateVerdict, ...] = ()


def together(results: Iterable[Result]) -> Result:
    """One result of several candidates': fail if any failed, pass if all passed."""
    seen = set(results)
    if Result.FAIL in seen:
        return Result.FAIL
    return Result.INCONCLUSIVE if Result.INCONCLUSIVE in seen or not seen else Result.PASS
