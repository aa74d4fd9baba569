"""One line of the table, and how work is shared between processes: every batch has its own seed, so the order never matters."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.verdict.ladder import Runs, climb, errors, joined, plan_for
from benchmarks.verdict.others import POLICIES
from benchmarks.verdict.streams import Scenario, draw, windows

SIGMAS = 2.33
"""A guarantee counts as broken only where chance explains what was seen with less than 1 %."""


@dataclass(frozen=True, slots=True)
class Row:
    """A target, its limit in words, what was reached; `held` is None where nothing was promised or nothing measured."""

    target: str
    what: str
    limit: str
    reached: str
    held: bool | None
    guarantee: bool = False
    value: float | None = None

    def shown(self) -> dict[str, Any]:
        """As JSON has it; numpy's own booleans and numbers become Python's."""
        return {
            "target": self.target,
            "what": self.what.strip(),
            "limit": self.limit,
            "reached": self.reached,
            "held": None if self.held is None else bool(self.held),
            "guarantee": self.guarantee,
            "value": None if self.value is None else float(self.value),
        }


def at_most(share: float, rollouts: int) -> float:
    """The largest observed share that a true share of at most this explains."""
    return share + SIGMAS * (share * (1 - share) / rollouts) ** 0.5


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def guaranteed(target: str, what: str, share: float, limit: float, rollouts: int) -> Row:
    """A share that must stay under a limit, but for chance."""
    allowed = at_most(limit, rollouts)
    return Row(
        target,
        what,
        f"≤ {percent(limit)} (pass ≤ {percent(allowed)})",
        f"{percent(share)} of {rollouts:,}",
        share <= allowed,
        guarantee=True,
        value=share,
    )


class Pool:
    """Runs batches, in this process or in several."""

    def __init__(self, jobs: int) -> None:
        self._executor = ProcessPoolExecutor(jobs, initializer=os.nice, initargs=(10,)) if jobs > 1 else None

    def map(self, function: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
        """function(*arguments) for each, in order."""
        if self._executor is None:
            return [function(*each) for each in arguments]
        return list(self._executor.map(function, *zip(*arguments, strict=True)))

    def batches(
        self, function: Callable[..., Any], rollouts: int, size: int, seed: int, *rest: Any
    ) -> list[Any]:
        """function(rollouts of the batch, seed, *rest) until there are as many rollouts."""
        sizes = [min(size, rollouts - done) for done in range(0, rollouts, size)]
        return self.map(function, [(count, seed * 10_000 + at, *rest) for at, count in enumerate(sizes)])

    def climb(self, scenario: Scenario, rollouts: int, seed: int = 1, **settings: Any) -> Runs:
        """deployctl on so many rollouts of a scenario; for `settings` see `_climb`."""
        return joined(self.batches(_climb, rollouts, scenario.batch, seed, scenario, settings))

    def beside(
        self, scenario: Scenario, rollouts: int, names: list[str], seed: int = 1, **settings: Any
    ) -> dict[str, Runs]:
        """deployctl and other policies on the same streams."""
        parts = self.batches(_beside, rollouts, scenario.batch, seed, scenario, names, settings)
        return {name: joined([part[name] for part in parts]) for name in parts[0]}

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown()


@contextmanager
def pool(jobs: int) -> Iterator[Pool]:
    opened = Pool(jobs)
    try:
        yield opened
    finally:
        opened.close()


OURS = "deployctl"


def _climb(rollouts: int, seed: int, scenario: Scenario, settings: dict[str, Any]) -> Runs:
    return _ours(draw(scenario, rollouts, seed), scenario, **settings)


def _ours(
    requests: Any,
    scenario: Scenario,
    *,
    margin: float = 0.005,
    relative: float = 0.0,
    absolute: float = 0.0,
    unit: str = "key",
    trace: bool = False,
    **plan: Any,
) -> Runs:
    """The error rate alone; tolerance 0 unless said, which is where a false rollback is likeliest."""
    rule, learned = errors(scenario.base, margin, relative, absolute)
    return climb(requests, plan_for([rule], **plan), learned, scenario.horizon, unit=unit, trace=trace)


def _beside(
    rollouts: int, seed: int, scenario: Scenario, names: list[str], settings: dict[str, Any]
) -> dict[str, Runs]:
    requests = draw(scenario, rollouts, seed)
    runs = {OURS: _ours(requests, scenario, **settings)}
    counted = windows(requests, scenario.horizon)
    for name in names:
        runs[name] = POLICIES[name](counted, scenario.horizon, scenario.base)
    return runs
