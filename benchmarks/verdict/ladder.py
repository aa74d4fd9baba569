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
    FEW_CALLERS,
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
SIDES, HARM, SAFETY = 2, 0, 1
"""Counts of a block: for harm, and for safety."""
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
    unit: str = "key",
    trace: bool = False,
) -> Runs:
    """Every rollout to its end or to the horizon; the verdict is read after every block. `unit`: see `Keys`."""
    replicates, length = requests.time.shape
    panel = Panel(plan, learned, replicates)
    keyed = requests.earlier is not None and unit != "request"
    cutter = Keys(requests, unit) if keyed else Units(requests)
    runs = Runs(np.full(replicates, HOLD), np.full(replicates, horizon), *np.zeros((2, replicates)))
    dwell = np.array([one.dwell for one in plan.steps])
    row = np.arange(replicates)  # whose evidence each place of the panel holds
    open_ = np.ones(replicates, dtype=bool)
    step, place, closed = np.zeros((3, replicates), int)
    began, seen, now = np.zeros((3, replicates))
    panel.begin(0, 0.0)
    cutter.enter(row, plan.steps[0].weight)
    while open_.any():
        if open_.mean() < 0.7:  # the others have ended: their places are given up
            keep(panel, open_)
            row, step, place, closed, began, seen, now = (
                values[open_] for values in (row, step, place, closed, began, seen, now)
            )
            open_ = open_[open_]
        wanted = np.where(closed < EARLY_BLOCKS, EARLY_UNITS, LATER_UNITS)
        end, units, n, bad = cutter.cut(row, place, wanted, seen >= SETTLED_UNITS)
        at = requests.time[row, np.minimum(end, length - 1)]
        open_ &= (end < length) & (at <= horizon)
        n[~open_], bad[~open_] = 0.0, 0.0
        now = np.where(open_, at, now)
        panel.add(Source.OUTCOME, n[:, HARM], bad[:, HARM], now, safe=(n[:, SAFETY], bad[:, SAFETY]))
        result = panel.results()
        closed += 1
        units = np.where(open_, units, 0)
        seen += units
        runs.requests[row] += units
        runs.bad[row] += bad[:, HARM, 1, 0]
        if trace and open_[0]:
            runs.paths.append((float(now[0]), float(runs.requests[0]), float(panel.harm()[0].sum())))
        place = np.where(open_, end + 1, place)
        failed = open_ & (result == FAIL)
        passed = open_ & (result == PASS) & (now - began >= dwell[step])
        last = step == len(plan.steps) - 1
        for which, code in ((failed, ROLLED_BACK), (passed & last, PROMOTED)):
            runs.code[row[which]], runs.time[row[which]] = code, now[which]
            open_ &= ~which
        climbing = passed & ~last
        if climbing.any():
            step, began = np.where(climbing, step + 1, step), np.where(climbing, now, began)
            closed, seen = np.where(climbing, 0, closed), np.where(climbing, 0.0, seen)
            panel.begin(step, now, which=climbing)
            for at_step in np.unique(step[climbing]):
                cutter.enter(row[climbing & (step == at_step)], plan.steps[at_step].weight)
    return runs


def keep(panel: Panel, which: Flags) -> None:
    """Give up the evidence of the rollouts that have ended, so that the rest is judged faster; changes no verdict."""
    panel.step = panel.step[which]
    held = panel._evidence  # noqa: SLF001 - only memory is given back; what is judged stays the product's
    held.counts, held._recent = held.counts[:, which], held._recent[:, which]  # noqa: SLF001 - as above
    for name in ("absolute", "_mass", "_unspent", "_restarts", "_began"):
        setattr(held, name, getattr(held, name)[which])
    held._known = None  # noqa: SLF001 - as above


class Units:
    """Blocks of single requests. A block ends where it has the candidate units, a baseline unit and, once settled, the time."""

    def __init__(self, requests: Requests) -> None:
        self._of = requests
        replicates, self._length = requests.time.shape
        components = requests.bad1.shape[2]
        # Running counts, one row after the other in one rising sequence, so that one search serves all rollouts.
        self._start = np.arange(replicates) * (self._length + 1)
        self._candidate = np.zeros((replicates, self._length + 1), np.int32)
        self._baseline = np.zeros((replicates, self._length + 1), np.int32)
        self._bad = np.zeros((2, replicates, self._length + 1, components), np.int32)
        self._late = requests.time + np.arange(replicates)[:, None] * (10 * NEVER)

    def enter(self, rows: Ints, weight: float) -> None:
        """These rollouts are at this weight from now on."""
        candidate = self._of.candidates(rows, weight)
        first = self._start[rows][:, None]
        self._candidate[rows] = first
        self._baseline[rows] = first
        self._candidate[rows, 1:] += np.cumsum(candidate, axis=1, dtype=np.int32)
        self._baseline[rows, 1:] += np.cumsum(~candidate, axis=1, dtype=np.int32)
        wrong = self._of.candidate_bad(rows, weight)
        np.cumsum(
            self._of.bad0[rows] & ~candidate[..., None], axis=1, out=(zero := np.empty(wrong.shape, np.int32))
        )
        np.cumsum(wrong & candidate[..., None], axis=1, out=(one := np.empty(wrong.shape, np.int32)))
        self._bad[0][rows, 1:], self._bad[1][rows, 1:] = zero, one

    def cut(self, row: Ints, place: Ints, wanted: Ints, settled: Flags) -> tuple[Ints, Ints, Floats, Floats]:
        """Of each rollout's next block: the place of its last request, the candidate's units, and what the panel takes,
        (rollouts, 2, 2, components): units and bad ones for harm and for safety.
        """
        start = self._start[row]
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
        shape = (len(row), SIDES, 2, bad.shape[2])
        return (
            end,
            n[:, 1],
            np.broadcast_to(n[:, None, :, None], shape).astype(float),
            np.broadcast_to(bad[:, None], shape).astype(float),
        )


class Keys:
    """Blocks of callers. `unit` "key" is the product's rule (`core.outcome.Callers`): harm counts callers that have not failed
    yet, whichever version answered them, and safety a caller once in a step, and once more when it fails. "block", to compare:
    a caller counts once in every block. A caller is bad in a block where its first request of it is.
    """

    WINDOW = 192

    def __init__(self, requests: Requests, unit: str) -> None:
        assert requests.earlier is not None
        assert requests.user is not None
        self._of, self._user, self._earlier = requests, np.maximum(requests.user, 0), requests.earlier
        self._remembers = unit == "key"
        self._candidate = np.zeros(requests.time.shape, dtype=bool)
        callers = (len(requests.time), int(self._user.max()) + 1)
        self._failed, self._failed_in, self._seen_in = np.zeros((3, *callers), dtype=bool)

    def enter(self, rows: Ints, weight: float) -> None:
        """These rollouts are at this weight from now on."""
        self._candidate[rows] = self._of.candidates(rows, weight)
        self._failed_in[rows], self._seen_in[rows] = False, False

    def cut(self, row: Ints, place: Ints, wanted: Ints, settled: Flags) -> tuple[Ints, Ints, Floats, Floats]:
        """As `Units.cut`, in callers."""
        length = self._of.time.shape[1]
        end = np.full(len(place), length)
        n, bad = np.zeros((2, len(place), SIDES, 2, 1))
        units = np.zeros(len(place), int)
        left, window = np.arange(len(place)), self.WINDOW
        while len(left):
            at = place[left, None] + np.arange(window)
            inside = at < length
            at = np.minimum(at, length - 1)
            of = row[left, None]
            candidate = self._candidate[of, at]
            first = inside & (self._earlier[of, at] < place[left, None])
            asked = wanted[left, None]
            full = (np.cumsum(first & candidate, axis=1) >= asked) | (
                np.cumsum(inside & candidate, axis=1) >= FEW_CALLERS * asked
            )
            full &= np.cumsum(first & ~candidate, axis=1) >= 1
            time = self._of.time[of, at]
            full &= inside & (~settled[left, None] | (time - time[:, :1] >= SETTLED_SECONDS))
            found = full.any(axis=1)
            last = np.argmax(full, axis=1)
            callers = first & (np.arange(window) <= last[:, None]) & found[:, None]
            units[left] = (callers & candidate).sum(axis=1)
            n[left, ..., 0], bad[left, ..., 0] = self._count(of, at, callers, candidate)
            end[left] = np.where(found, place[left] + last, length)
            left = left[~found & (place[left] + window < length)]
            window *= 4
        return end, units, n, bad

    def _count(self, of: Ints, at: Ints, callers: Flags, candidate: Flags) -> tuple[Floats, Floats]:
        """(rollouts, sides, arms) of these callers, known and bad; remembers them."""
        where, _ = np.nonzero(callers)
        rollout, request = of[where, 0], at[callers]
        arm = candidate[callers].astype(int)
        wrong = np.where(arm == 1, self._of.bad1[rollout, request, 0], self._of.bad0[rollout, request, 0])
        who = (rollout, self._user[rollout, request])
        n, bad = np.zeros((2, len(of), SIDES, 2))
        for side, failed in ((HARM, self._failed), (SAFETY, self._failed_in)):
            open_ = ~failed[who] if self._remembers else np.ones(len(arm), bool)
            known = open_ if side == HARM or not self._remembers else open_ & (wrong | ~self._seen_in[who])
            np.add.at(n, (where, side, arm), known)
            np.add.at(bad, (where, side, arm), open_ & wrong)
        for failed in (self._failed, self._failed_in):
            failed[who] |= wrong
        self._seen_in[who] = True
        return n, bad
