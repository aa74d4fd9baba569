"""deployctl on these streams: requests become blocks as the product cuts them, the Panel judges, each rollout climbs in its own time.

The rule of a block is the product's (`core/outcome.py`, whose constants are used here), vectorised over replicates;
`targets.blocks_agree` compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.verdict.streams import NEVER, Requests
from deployctl.core.outcome import (
    EARLY_BLOCKS,
    EARLY_UNITS,
    LATER_UNITS,
    SETTLED_SECONDS,
    SETTLED_UNITS,
    Source,
)
from deployctl.core.panel import FAIL, PASS, Panel
from deployctl.core.plan import MetricRule, Plan, Version
from deployctl.core.rollout import Learned
from deployctl.core.strategies import Canary, CanaryStep

Floats, Ints, Flags = NDArray[np.float64], NDArray[np.int_], NDArray[np.bool_]

HOLD, PROMOTED, ROLLED_BACK = 0, 1, 2
WEIGHTS = (5.0, 10.0, 25.0, 50.0)
DWELL = 20.0


@dataclass(slots=True)
class Runs:
    """How each rollout ended: its code, when (seconds), and what the candidate had answered by then, requests and bad ones."""

    code: Ints
    time: Floats
    requests: Floats
    bad: Floats
    paths: list[tuple[float, float, float]] = field(default_factory=list)
    """(time, candidate requests, evidence of harm) of the first replicate after every block, where asked for."""

    def share(self, code: int) -> float:
        """The fraction of rollouts that ended so."""
        return float((self.code == code).mean())

    def median(self, name: str, code: int = ROLLED_BACK, q: float = 50) -> float:
        """A percentile of `time`, `requests` or `bad` over the rollouts that ended so."""
        chosen = getattr(self, name)[self.code == code]
        return float(np.percentile(chosen, q)) if len(chosen) else float("nan")


def joined(parts: Sequence[Runs]) -> Runs:
    """Batches put together."""
    return Runs(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("code", "time", "requests", "bad")
        ),
        paths=parts[0].paths,
    )


def plan_for(
    rules: Sequence[MetricRule],
    weights: Sequence[float] = WEIGHTS,
    dwell: float = DWELL,
    bake: float = 0.0,
    alpha: float = 0.01,
    beta: float = 0.05,
) -> Plan:
    """A canary as the manifest would compile it."""
    steps = Canary(tuple(CanaryStep(weight) for weight in weights), min_dwell=dwell, bake=bake).steps()
    return Plan("canary", Version("1", "v1"), Version("2", "v2"), steps, tuple(rules), alpha, beta)


def errors(
    base: float, margin: float, relative: float = 0.0, absolute: float = 0.0
) -> tuple[MetricRule, Learned]:
    """The error rate alone: its rule, and what was learnt of the baseline."""
    rule = MetricRule("error-rate", relative, absolute, margin)
    return rule, Learned((), {"error-rate": (base,)}, {"error-rate": (margin,)}, 1800.0, 1000)


def climb(
    requests: Requests,
    plan: Plan,
    learned: Learned,
    horizon: float,
    *,
    per_key: bool = True,
    trace: bool = False,
) -> Runs:
    """Every rollout to its end or to the horizon; the verdict is read after every block."""
    replicates = len(requests.time)
    panel = Panel(plan, learned, replicates)
    cutter = (Keys if per_key and requests.earlier is not None else Units)(requests)
    everyone = np.arange(replicates)
    runs = Runs(
        np.full(replicates, HOLD),
        np.full(replicates, horizon),
        np.zeros(replicates),
        np.zeros(replicates),
    )
    step, began = np.zeros(replicates, int), np.zeros(replicates)
    place, closed, seen = np.zeros(replicates, int), np.zeros(replicates, int), np.zeros(replicates)
    dwell = np.array([one.dwell for one in plan.steps])
    panel.begin(0, 0.0)
    cutter.enter(everyone, plan.steps[0].weight)
    open_ = np.ones(replicates, dtype=bool)
    now = np.zeros(replicates)
    while open_.any():
        wanted = np.where(closed < EARLY_BLOCKS, EARLY_UNITS, LATER_UNITS)
        end, n, bad = cutter.cut(place, wanted, seen >= SETTLED_UNITS)
        inside = end < requests.time.shape[1]
        at = requests.time[everyone, np.minimum(end, requests.time.shape[1] - 1)]
        open_ &= inside & (at <= horizon)
        n, bad = n * open_[:, None, None], bad * open_[:, None, None]
        now = np.where(open_, at, now)
        panel.add(Source.OUTCOME, n, bad, now)
        result = panel.results()
        closed += 1
        seen += n[:, 1, 0]
        runs.requests += n[:, 1, 0]
        runs.bad += bad[:, 1, 0]
        if trace and open_[0]:
            runs.paths.append((float(now[0]), float(runs.requests[0]), float(panel.harm()[0].sum())))
        place = np.where(open_, end + 1, place)
        failed = open_ & (result == FAIL)
        passed = open_ & (result == PASS) & (now - began >= dwell[step])
        last = step == len(plan.steps) - 1
        for which, code in ((failed, ROLLED_BACK), (passed & last, PROMOTED)):
            runs.code[which], runs.time[which] = code, now[which]
            open_ &= ~which
        climbing = passed & ~last
        if climbing.any():
            step, began = np.where(climbing, step + 1, step), np.where(climbing, now, began)
            closed, seen = np.where(climbing, 0, closed), np.where(climbing, 0.0, seen)
            panel.begin(step, now, which=climbing)
            for at_step in np.unique(step[climbing]):
                cutter.enter(np.flatnonzero(climbing & (step == at_step)), plan.steps[at_step].weight)
    return runs


class Units:
    """Blocks of single requests. A block ends where it has the candidate units, a baseline unit and, once settled, the time."""

    def __init__(self, requests: Requests) -> None:
        self._of = requests
        replicates, self._length = requests.time.shape
        components = requests.bad1.shape[2]
        self._row = np.arange(replicates)
        # Running counts, one row after the other in one rising sequence, so that one search serves all rollouts.
        self._start = self._row * (self._length + 1)
        self._candidate = np.zeros((replicates, self._length + 1), np.int32)
        self._baseline = np.zeros((replicates, self._length + 1), np.int32)
        self._bad = np.zeros((2, replicates, self._length + 1, components), np.int32)
        self._late = requests.time + self._row[:, None] * (10 * NEVER)

    def enter(self, rows: Ints, weight: float) -> None:
        """These rollouts are at this weight from now on."""
        candidate = self._of.candidates(rows, weight)
        first = self._start[rows][:, None]
        self._candidate[rows] = first
        self._baseline[rows] = first
        self._candidate[rows, 1:] += np.cumsum(candidate, axis=1, dtype=np.int32)
        self._baseline[rows, 1:] += np.cumsum(~candidate, axis=1, dtype=np.int32)
        wrong = self._of.candidate_bad(rows, weight)
        np.cumsum(self._of.bad0[rows] & ~candidate[..., None], axis=1, out=(zero := np.empty(wrong.shape, np.int32)))
        np.cumsum(wrong & candidate[..., None], axis=1, out=(one := np.empty(wrong.shape, np.int32)))
        self._bad[0][rows, 1:], self._bad[1][rows, 1:] = zero, one

    def cut(self, place: Ints, wanted: Ints, settled: Flags) -> tuple[Ints, Floats, Floats]:
        """Where the next block of each rollout ends (the place of its last request), its units and its bad ones."""
        row, start = self._row, self._start
        place = np.minimum(place, self._length)
        end = np.maximum(
            np.searchsorted(self._candidate.ravel(), self._candidate[row, place] + wanted.astype(np.int32)),
            np.searchsorted(self._baseline.ravel(), self._baseline[row, place] + np.int32(1)),
        )  # in the arrays' own type: another one would copy them whole
        end = end - start - 1
        at = np.minimum(place, self._length - 1)
        calm = np.searchsorted(self._late.ravel(), self._late[row, at] + SETTLED_SECONDS) - row * self._length
        end = np.minimum(np.where(settled, np.maximum(end, calm), end), self._length)
        after = np.minimum(end + 1, self._length)
        n = np.stack(
            [counts[row, after] - counts[row, place] for counts in (self._baseline, self._candidate)], axis=1
        )
        bad = np.stack([counts[row, after] - counts[row, place] for counts in self._bad], axis=1)
        return end, np.repeat(n[..., None], bad.shape[2], axis=2).astype(float), bad.astype(float)


class Keys:
    """Blocks of users: each counts once, and is bad where any of its requests in the block was."""

    WINDOW = 192

    def __init__(self, requests: Requests) -> None:
        assert requests.earlier is not None
        self._of, self._earlier = requests, requests.earlier
        self._candidate = np.zeros(requests.time.shape, dtype=bool)
        self._weight = np.zeros(len(requests.time))

    def enter(self, rows: Ints, weight: float) -> None:
        """These rollouts are at this weight from now on."""
        self._candidate[rows] = self._of.candidates(rows, weight)
        self._weight[rows] = weight

    def cut(self, place: Ints, wanted: Ints, settled: Flags) -> tuple[Ints, Floats, Floats]:
        """As `Units.cut`, in users."""
        rows, length = np.arange(len(place)), self._of.time.shape[1]
        end = np.full(len(place), length)
        n, bad = np.zeros((len(place), 2, 1)), np.zeros((len(place), 2, 1))
        left, window = rows, self.WINDOW
        while len(left):
            at = place[left, None] + np.arange(window)
            inside = at < length
            at = np.minimum(at, length - 1)
            row = left[:, None]
            first = inside & (self._earlier[row, at] < place[left, None])
            candidate = self._candidate[row, at]
            full = (np.cumsum(first & candidate, axis=1) >= wanted[left, None]) & (
                np.cumsum(first & ~candidate, axis=1) >= 1
            )
            time = self._of.time[row, at]
            full &= ~settled[left, None] | (time - time[:, :1] >= SETTLED_SECONDS)
            found = full.any(axis=1)
            last = np.argmax(full, axis=1)
            within = np.arange(window) <= last[:, None]
            for side, arm in ((0, ~candidate), (1, candidate)):
                # A user that fails fails every time (or never twice in a block), so its first request speaks for it.
                wrong = (self._of.bad0 if side == 0 else self._of.bad1)[row, at, 0]
                units = first & within & arm
                n[left, side, 0] = np.where(found, units.sum(axis=1), 0)
                bad[left, side, 0] = np.where(found, (units & wrong).sum(axis=1), 0)
            end[left] = np.where(found, place[left] + last, length)
            left = left[~found & (place[left] + window < length)]
            window *= 4
        return end, n, bad
