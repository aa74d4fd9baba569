"""How other tools decide, as rules on the same streams: re-implementations of the rule, not the products.

One metric, clean data, no scrape delay, which flatters them. "tuned" means that the operator knows the baseline's rate and sets the
limit one point over it. Read in the sources of fluxcd/flagger, argoproj/argo-rollouts and spinnaker/kayenta, and in the
documentation of SageMaker's deployment guardrails.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.verdict.ladder import HOLD, PROMOTED, ROLLED_BACK, Runs
from benchmarks.verdict.streams import Windows

Floats = NDArray[np.float64]
Z_ONE_PERCENT = 2.3263
"""One-sided 1 % of the normal distribution, as the e-process's alpha."""


@dataclass(slots=True)
class Course:
    """Rollouts under one policy: weights in force, what the candidate answered, and how each ended."""

    windows: Windows
    weight: Floats
    runs: Runs
    at: float = 0.0

    @classmethod
    def begin(cls, windows: Windows, weight: float, horizon: float) -> Course:
        count = len(windows.n)
        runs = Runs(np.full(count, HOLD), np.full(count, horizon), *np.zeros((2, count)))
        return cls(windows, np.full(count, weight), runs)

    @property
    def open(self) -> NDArray[np.bool_]:
        return self.runs.code == HOLD

    def until(self, at: float) -> None:
        """Time passes at the weights in force."""
        n, bad = self.windows.candidate(self.at, at, self.weight)
        self.runs.requests += n * self.open
        self.runs.bad += bad * self.open
        self.at = at

    def end(self, which: NDArray[np.bool_], code: int) -> None:
        which = which & self.open
        self.runs.code[which], self.runs.time[which] = code, self.at


def flagger(
    windows: Windows, horizon: float, limit: float, interval: float = 60.0, threshold: int = 5
) -> Runs:
    """Every interval the candidate's error rate against a limit; failed checks add up and are never forgotten."""
    course = Course.begin(windows, 5.0, horizon)
    failures = np.zeros(len(windows.n), int)
    for at in np.arange(interval, horizon + 1, interval):
        course.until(at)
        course.end(failures >= threshold, ROLLED_BACK)
        n, bad = windows.candidate(at - interval, at, course.weight)
        fails = (n == 0) | (bad > limit * n)  # "no values found" is a failure
        failures += fails
        course.end(~fails & (course.weight >= 50), PROMOTED)
        course.weight = np.where(fails, course.weight, np.minimum(course.weight + 5, 50))
    return course.runs


def argo(
    windows: Windows, horizon: float, limit: float, interval: float, failure_limit: int, pause: float
) -> Runs:
    """A background analysis beside the ladder 5/20/40/60/80: failed at failure_limit + 1 measurements over the limit."""
    course = Course.begin(windows, 5.0, horizon)
    failures = np.zeros(len(windows.n), int)
    ladder = (5.0, 20.0, 40.0, 60.0, 80.0)
    for at in np.arange(min(interval, pause), horizon + 1, min(interval, pause)):
        course.until(at)
        if at % interval == 0:
            n, bad = windows.candidate(at - min(interval, pause), at, course.weight)
            failures += bad > limit * n
        course.end(failures > failure_limit, ROLLED_BACK)
        reached = int(at // pause)
        if reached >= len(ladder):
            course.end(course.open, PROMOTED)
            break
        course.weight[:] = ladder[reached]
    return course.runs


def sagemaker(windows: Windows, horizon: float, limit: float) -> Runs:
    """5 % for ten minutes; two minutes in a row over the limit raise the alarm."""
    course = Course.begin(windows, 5.0, horizon)
    before = np.zeros(len(windows.n), bool)
    for at in np.arange(60.0, min(horizon, 600.0) + 1, 60.0):
        course.until(at)
        n, bad = windows.candidate(at - 60, at, course.weight)
        over = bad > limit * n
        course.end(over & before, ROLLED_BACK)
        before = over
    course.end(course.open, PROMOTED)
    return course.runs


def kayenta(windows: Windows, horizon: float) -> Runs:
    """Ten minutes each at 5, 25 and 50 % beside an equal share of the baseline; then Mann-Whitney's interval of the shift, 98 %."""
    course = Course.begin(windows, 5.0, horizon)
    points, seconds = 60, 10.0
    k = int(points**2 / 2 - Z_ONE_PERCENT * np.sqrt(points * points * (2 * points + 1) / 12))
    for number, weight in enumerate((5.0, 25.0, 50.0)):
        course.weight[:] = weight
        begin = number * points * seconds
        if begin + points * seconds > horizon:
            break
        both = []
        for point in range(points):
            span = (begin + point * seconds, begin + (point + 1) * seconds)
            canary = windows.candidate(*span, course.weight)
            control = windows.baseline(*span, course.weight, 2 * course.weight)
            both.append([bad / np.maximum(n, 1) for n, bad in (canary, control)])
        course.until(begin + points * seconds)
        canary, control = (np.array(rates).T for rates in zip(*both, strict=True))
        shifts = np.sort((canary[:, :, None] - control[:, None, :]).reshape(len(canary), -1), axis=1)
        middle, low = np.median(shifts, axis=1), shifts[:, k]
        grown = canary.mean(axis=1) >= control.mean(axis=1)
        course.end((low > 0.25 * np.abs(middle)) & grown, ROLLED_BACK)
    else:
        course.end(course.open, PROMOTED)
    return course.runs


def _pooled(windows: Windows, horizon: float, looks: Floats, critical: Callable[[int], float]) -> Runs:
    """A one-sided z-test on counts pooled over the ramp 5/10/25/50, 150 s each, read at these times."""
    course = Course.begin(windows, 5.0, horizon)
    counts = np.zeros((4, len(windows.n)))
    for number, at in enumerate(looks):
        for begin in np.arange(course.at, at, 5.0):
            course.weight[:] = (5.0, 10.0, 25.0, 50.0)[min(3, int(begin // 150))]
            counts += np.stack(
                [
                    *windows.candidate(begin, begin + 5, course.weight),
                    *windows.baseline(begin, begin + 5, course.weight),
                ]
            )
            course.until(begin + 5)
        n1, k1, n0, k0 = counts
        pooled = (k0 + k1) / np.maximum(n0 + n1, 1)
        spread = np.sqrt(
            np.maximum(pooled * (1 - pooled), 1e-12) * (1 / np.maximum(n0, 1) + 1 / np.maximum(n1, 1))
        )
        z = (k1 / np.maximum(n1, 1) - k0 / np.maximum(n0, 1)) / spread
        course.end((z > critical(number)) & (k0 + k1 > 0), ROLLED_BACK)
    course.end(course.open, PROMOTED)
    return course.runs


def z_peeking(windows: Windows, horizon: float) -> Runs:
    """The z-test of a fixed sample size, read every 5 s."""
    return _pooled(windows, horizon, np.arange(5.0, 601.0, 5.0), lambda _look: Z_ONE_PERCENT)


def group_sequential(windows: Windows, horizon: float) -> Runs:
    """O'Brien and Fleming's boundary for ten looks, 1 % in all."""
    return _pooled(
        windows,
        horizon,
        np.arange(60.0, 601.0, 60.0),
        lambda look: _obrien_fleming() * np.sqrt(10 / (look + 1)),
    )


@functools.cache
def _obrien_fleming() -> float:
    walks = np.random.default_rng(0).standard_normal((200_000, 10)).cumsum(axis=1) / np.sqrt(10)
    return float(np.quantile(walks.max(axis=1), 0.99))


POLICIES: dict[str, Callable[[Windows, float, float], Runs]] = {
    "Flagger, documented": lambda windows, horizon, _base: flagger(windows, horizon, 0.01),
    "Flagger, tuned": lambda windows, horizon, base: flagger(windows, horizon, base + 0.01),
    "Flagger, tuned, 10 s": lambda windows, horizon, base: flagger(windows, horizon, base + 0.01, 10.0),
    "Argo Rollouts, documented": lambda windows, horizon, _base: argo(windows, horizon, 0.05, 300, 3, 600),
    "Argo Rollouts, tuned": lambda windows, horizon, base: argo(windows, horizon, base + 0.01, 60, 2, 120),
    "SageMaker guardrails": lambda windows, horizon, base: sagemaker(windows, horizon, base + 0.01),
    "Kayenta": lambda windows, horizon, _base: kayenta(windows, horizon),
    "z-test with peeking": lambda windows, horizon, _base: z_peeking(windows, horizon),
    "group-sequential z-test": lambda windows, horizon, _base: group_sequential(windows, horizon),
}
"""Name → policy (windows, horizon, the baseline's rate) → how the rollouts ended."""
