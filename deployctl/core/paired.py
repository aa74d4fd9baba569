"""Evidence from pairs: both versions were asked the same thing, so each unit is compared with itself.

For each component (a bad-or-not question of a metric, or a score where 1 is worst) a unit gives y0 of the baseline and y1 of the
candidate, both in [0, 1]. Every row is an e-process about the mean of a difference:

    harm   null E[y1 - relative * y0 | past] <= absolute     evidence that the candidate is worse than tolerated
    safe   null E[y1 - y0 | past] >= margin                  evidence that it is not worse by the margin

A row bets: with z = y1 - relative * y0 - absolute (harm) or z = margin - (y1 - y0) (safe), a unit multiplies it by
1 + stake * z, with a stake that was chosen before the unit's block and can never go bankrupt. The factor's expectation is at most 1
for every joint distribution within the null, of whatever shape and however it depends on the past, and no test of a mean does
better than some such stake (Waudby-Smith and Ramdas, arXiv 2010.09686). Units that both versions got right, or both wrong, cost
next to nothing: that is why pairs need so few of them. The mean is that of the units in the order in which they come: labels may
be late, and which units get one may depend on the past, but not on what the versions answered to that unit.

`relative` 0 says that there is no baseline: y0 is ignored, and both nulls are about the candidate's own mean and an absolute
budget. For bad-or-not the same factors then are likelihood ratios against a rate at the budget.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from deployctl.core.evidence import Array
from deployctl.core.panel import BIGGEST_LOG, FAIL, INCONCLUSIVE, PASS

Flags = NDArray[np.bool_]

CELLS = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
"""(y0, y1) of the four kinds of bad-or-not units: both good, only the candidate bad, only the baseline bad, both bad."""

STAKES = np.array([0.04, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.92, 0.98])
STAKE_SHARES = np.array([0.08, 0.10, 0.13, 0.13, 0.13, 0.13, 0.13, 0.10, 0.07])
"""Fixed stakes of a row, as shares of the largest that cannot go bankrupt, and how its mass is divided among them.

Nearly even: which stake is best depends on how much the versions agree. `benchmarks/shadow.py` shows what the choice costs and gains.
"""

BUDGET_FACTORS = np.array([1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0])
BUDGET_GAPS = np.array([0.3, 0.9])
"""Without a baseline, harm's stakes are best for a rate of so many times the budget, or of so much more than it."""

PLUG_IN_SHARE = 0.2
"""Of a row's mass, on the stake that would have grown fastest on the units seen so far."""

STEP_BUDGET, TIME_BUDGET = 0.12, 0.1
"""Mass kept for restarts at later steps (together; none where there is one step) and every 30 s (together): a fault may begin late."""

_RESTART_SECONDS, _RESTART_DELAY = 30.0, 4.0
_HARM, _FRESH, _WHOLE = range(3)
_LOWEST_BUDGET, _HIGHEST_BOUND = 1e-6, 0.99  # a null widened to these only loses evidence
_HIGHEST_PLUG_IN = 0.98
# Imagined of each discordant kind; half a unit (Krichevsky, Trofimov) sees a total failure two units later.
_PSEUDO_UNITS = 0.1
_NEWTON_STEPS = 7
_SIGN = np.array([[1.0], [-1.0], [-1.0]])  # of z in the three rows


class PairedPanel:
    """Evidence of `replicates` rollouts from pairs: three rows (harm, fresh safety, whole safety) per component.

        panel = PairedPanel(relative, absolute, margins, shares, alpha=0.01, beta=0.05, prior=rates)
        panel.begin(0, at=0.0)
        panel.add(y0, y1, known, at=now)          # or add_cells(cells, at=now): one block
        codes = panel.results()                   # FAIL, PASS or INCONCLUSIVE per replicate

    `relative`, `absolute` (components,) give the tolerance of harm: relative * p0 + absolute; relative 0 stands for an absolute
    budget without a baseline. `margins` (steps, components) are what fresh safety must exclude at each step, NaN where a step
    asks for nothing; `whole` (components,) what the whole rollout must exclude at the last one, by default the last step's.
    `shares` (components,) divide alpha among them. `prior` (components,) are the baseline's rates, or the budgets: they only
    choose stakes. Errors: ValueError for shapes or values that would void the guarantee.

    All stakes of a block are fixed before it and units are counted, so the evidence depends on the blocks and their order alone;
    what else is in the array changes no bit.
    """

    def __init__(
        self,
        relative: Array,
        absolute: Array,
        margins: Array,
        shares: Array,
        *,
        alpha: float,
        beta: float,
        prior: Array,
        whole: Array | None = None,
        replicates: int = 1,
    ) -> None:
        relative, absolute, margins, shares, prior = (
            np.asarray(given, dtype=float) for given in (relative, absolute, margins, shares, prior)
        )
        _check(relative, absolute, margins, shares, prior)
        self.alpha, self.beta = alpha, beta
        self.step = np.full(replicates, -1)
        """The step that each rollout is on, -1 before the first."""
        steps, components = margins.shape
        self._margins, self._shares = margins, shares
        of_whole = margins[-1] if whole is None else np.asarray(whole, dtype=float)
        paired = (relative > 0).astype(float)
        self._weight = np.stack([relative, paired, paired])
        """What y0 is multiplied by in each row, (3, components)."""
        budget = np.maximum(absolute, np.where(relative > 0, 0.0, _LOWEST_BUDGET))
        self._bound = np.empty((replicates, 3, components))
        self._bound[:] = np.stack([budget, np.full(components, _HIGHEST_BOUND), _bound(of_whole)])
        self._fractions = _fractions(relative, budget)
        self._log_mix = _log_mix()
        self._pseudo = _pseudo_cells(prior, relative)
        self.cells = np.zeros((4, replicates, components))
        """Bad-or-not units of everything that was added, by kind (`CELLS`)."""
        self._moments = np.zeros((6, replicates, components))
        self._step_share = STEP_BUDGET / max(2, steps - 1) if steps > 1 else 0.0
        self._start_mass = 1.0 - TIME_BUDGET - (STEP_BUDGET if steps > 1 else 0.0)
        self._mass = np.empty((replicates, 3, components, len(self._log_mix)))
        self._unspent = np.ones((replicates, 3))
        self._restarts, self._began = np.zeros((replicates, 3)), np.zeros((replicates, 3))
        self._table: Array | None = None
        self._known: Array | None = None
        self._start(np.ones((replicates, 3), dtype=bool), 0.0)

    def begin(self, step: int | NDArray[np.int_], at: float | Array, which: Flags | None = None) -> None:
        """A step begins at this rollout time (seconds), for all rollouts or for `which` (replicates,).

        Safety starts afresh with that step's margin; harm and the whole go on, with a part of their mass begun anew.
        """
        chosen = np.ones(len(self.step), dtype=bool) if which is None else which
        first = chosen & (self.step < 0)
        self.step = np.where(chosen, step, self.step)
        margins = _bound(self._margins[self.step])
        self._bound[:, _FRESH] = np.where(chosen[:, None], margins, self._bound[:, _FRESH])
        self._table = None
        rows = np.repeat(first[:, None], 3, axis=1)
        rows[:, _FRESH] = chosen
        self._start(rows, at)
        self._renew(np.where(rows | ~chosen[:, None], 0.0, self._step_share))

    def add(
        self, y0: Array, y1: Array, known: Flags, at: float | Array, *, of_step: bool | Flags = True
    ) -> None:
        """One block of pairs at this rollout time: floats in [0, 1] or booleans, each ([replicates,] units, components).

        Where a unit is not `known` for a component it counts for nothing there. `of_step` (False, or one for each replicate) says
        that the block began under an earlier step: it counts for harm and for the whole, not as fresh. Scores that are 0 or 1
        are counted (`add_cells`), so the evidence is the same to the last bit; others cost a logarithm each.
        """
        shape = (len(self.step), -1, self._shares.shape[0])
        known = np.asarray(known, dtype=bool).reshape(shape)
        y0, y1 = (np.where(known, np.asarray(y, dtype=float).reshape(known.shape), 0.0) for y in (y0, y1))
        if not ((y0 >= 0) & (y0 <= 1) & (y1 >= 0) & (y1 <= 1)).all():
            raise ValueError("scores must lie in [0, 1]: the guarantee rests on it; scale them first")
        whole = ((y0 == 0) | (y0 == 1)) & ((y1 == 0) | (y1 == 1))
        cells = np.stack(
            [(known & whole & (y0 == a) & (y1 == b)).sum(axis=1) for a, b in CELLS.tolist()], axis=1
        )
        partial = known & ~whole
        self._advance(cells, (y0, y1, partial) if partial.any() else None, at, of_step)

    def add_cells(self, cells: Array, at: float | Array, *, of_step: bool | Flags = True) -> None:
        """One block of bad-or-not pairs from its counts, ([replicates,] 4, components), in the order of `CELLS`."""
        counted = np.asarray(cells, dtype=float).reshape(len(self.step), 4, -1)
        if not (counted >= 0).all():
            raise ValueError("counts of pairs are at least 0")
        self._advance(counted, None, at, of_step)

    def harm(self) -> Array:
        """Budget-weighted harm evidence, (replicates, components); its sum is held against 1/alpha."""
        weighted: Array = self._shares * np.exp(np.minimum(self._log_evidence()[:, _HARM], BIGGEST_LOG))
        return weighted

    def safe_log(self) -> Array:
        """Log evidence since the step began that the step's margin is excluded, (replicates, components)."""
        return self._log_evidence()[:, _FRESH]

    def whole_log(self) -> Array:
        """Log evidence of the whole rollout that the last margin is excluded, (replicates, components)."""
        return self._log_evidence()[:, _WHOLE]

    def results(self) -> NDArray[np.int8]:
        """FAIL, PASS or INCONCLUSIVE of every rollout; at the last step the whole rollout must show safety, too.

        No evidence is never a pass, and neither is a step that asks for none.
        """
        failed = self.harm().sum(axis=1) >= 1 / self.alpha
        asked = (self.step >= 0) & np.isfinite(self._margins[self.step]).all(axis=1)
        last = self.step == len(self._margins) - 1
        shown = np.where(last[:, None], np.minimum(self.safe_log(), self.whole_log()), self.safe_log())
        passed = asked & (shown >= math.log(1 / self.beta)).all(axis=1)
        return np.where(failed, FAIL, np.where(passed, PASS, INCONCLUSIVE)).astype(np.int8)

    def keep(self, which: Flags) -> None:
        """Give up the rollouts that have ended, all but `which` (replicates,), so that the rest is judged faster."""
        self.cells, self._moments = self.cells[:, which], self._moments[:, which]
        for name in ("step", "_bound", "_mass", "_unspent", "_restarts", "_began"):
            setattr(self, name, getattr(self, name)[which])
        self._table = self._known = None

    def _advance(
        self,
        cells: Array,
        scores: tuple[Array, Array, Flags] | None,
        at: float | Array,
        of_step: bool | Flags,
    ) -> None:
        """Restarts that are due, then the block: its counts (replicates, 4, components) and the scores between 0 and 1."""
        self._renew_in_time(np.asarray(at, dtype=float).reshape(-1, 1))
        most = self._largest_stakes()
        plug_in = self._plug_in() * most
        if self._table is None:
            self._table = np.log1p((self._fractions * most[..., None])[None] * self._gains(CELLS)[..., None])
        counts = np.moveaxis(cells, 1, 0)[:, :, None]
        grown = np.empty_like(self._mass)
        # One product after the other: a sum over an axis may round differently with the number of replicates.
        own = counts * np.log1p(plug_in * self._gains(CELLS))
        grown[..., -1] = own[0] + own[1] + own[2] + own[3]
        fixed = counts[..., None] * self._table
        grown[..., :-1] = fixed[0] + fixed[1] + fixed[2] + fixed[3]
        if scores is not None:
            stakes = np.concatenate([self._fractions * most[..., None], plug_in[..., None]], axis=-1)
            grown += self._grown_by_scores(stakes, *scores)
        stale = np.zeros((len(self.step), 3), dtype=bool)
        stale[:, _FRESH] = ~np.broadcast_to(of_step, self.step.shape)
        self._mass += np.where(stale[..., None, None], 0.0, grown)
        self.cells += np.moveaxis(cells, 1, 0)
        self._known = None

    def _grown_by_scores(self, stakes: Array, y0: Array, y1: Array, partial: Flags) -> Array:
        """Log factors of units whose scores lie between 0 and 1, (replicates, 3, components, stakes); they are remembered."""
        z = y1[:, :, None] - self._weight * y0[:, :, None] - self._bound[:, None]
        z *= _SIGN
        counted = partial[:, :, None, :, None]
        grown: Array = np.where(counted, np.log1p(stakes[:, None] * z[..., None]), 0.0).sum(axis=1)
        terms = (np.ones_like(y0), y0, y1, y0 * y0, y0 * y1, y1 * y1)
        self._moments += np.stack([(partial * term).sum(axis=1) for term in terms])
        return grown

    def _gains(self, pairs: Array) -> Array:
        """What each pair (y0, y1) gains in each row, z of above, (pairs, replicates, 3, components)."""
        y0, y1 = (pairs[:, at, None, None, None] for at in (0, 1))
        gains: Array = _SIGN * (y1 - self._weight * y0 - self._bound)
        return gains

    def _largest_stakes(self) -> Array:
        """Above these a row could lose more than it has, (replicates, 3, components): one over the largest loss."""
        most: Array = 1.0 / np.where(_SIGN > 0, self._weight + self._bound, 1.0 - self._bound)
        return most

    def _plug_in(self) -> Array:
        """The fraction of the largest stake that would have grown fastest on the past, (replicates, 3, components)."""
        most = self._largest_stakes()
        gains = self._gains(CELLS) * most
        counts = np.broadcast_to((self.cells + self._pseudo[:, None])[:, :, None], gains.shape)
        if self._moments[0].any():
            scored, points = self._two_points(most)
            counts, gains = np.concatenate([counts, scored]), np.concatenate([gains, points])
        return fastest_fraction(counts, gains)

    def _two_points(self, most: Array) -> tuple[Array, Array]:
        """The scores between 0 and 1 seen so far as two kinds of units with their mean and variance: counts and gains."""
        y0, y1, y00, y01, y11 = self._moments[1:, :, None] / np.maximum(self._moments[0], 1.0)[:, None]
        mean = y1 - self._weight * y0
        spread = np.sqrt(np.maximum(y11 - self._weight * (2 * y01 - self._weight * y00) - mean**2, 0.0))
        gain = _SIGN * (mean - self._bound)
        points = np.maximum(np.stack([gain - spread, gain + spread]) * most, -1.0)
        half = np.broadcast_to(0.5 * self._moments[0][:, None], mean.shape)
        return np.stack([half, half]), points

    def _start(self, rows: Flags, at: float | Array) -> None:
        """Forget what these rows (replicates, 3) have gained and begin afresh."""
        fresh = self._log_mix + math.log(self._start_mass)
        self._mass = np.where(rows[..., None, None], fresh, self._mass)
        self._unspent = np.where(rows, 1.0 - self._start_mass, self._unspent)
        self._restarts = np.where(rows, 0.0, self._restarts)
        self._began = np.where(rows, np.asarray(at, dtype=float).reshape(-1, 1), self._began)
        self._known = None

    def _renew_in_time(self, at: Array) -> None:
        due = np.maximum((at - self._began) // _RESTART_SECONDS, self._restarts)
        if (due > self._restarts).any():
            self._renew(TIME_BUDGET * (_spent(due) - _spent(self._restarts)))
            self._restarts = due

    def _renew(self, share: Array) -> None:
        """Move so much (replicates, 3) of the unspent mass into stakes that begin now."""
        share = np.minimum(share, self._unspent)
        self._unspent = self._unspent - share
        with np.errstate(divide="ignore"):
            self._mass = np.logaddexp(self._mass, self._log_mix + np.log(share)[..., None, None])
        self._known = None

    def _log_evidence(self) -> Array:
        """Log of each row's e-value, (replicates, 3, components)."""
        if self._known is None:
            top = self._mass.max(axis=-1)
            grown = np.log(np.exp(self._mass - top[..., None]).sum(axis=-1)) + top
            with np.errstate(divide="ignore"):
                self._known = np.logaddexp(grown, np.log(self._unspent)[..., None])
        return self._known


def fastest_fraction(counts: Array, gains: Array) -> Array:
    """The t in [0, 0.98] with the largest sum of counts * log(1 + t * gains) over the first axis; 0 where no stake pays.

    `gains` are at least -1. The sum is concave in t; Newton's method, kept inside a bracket, a fixed number of steps, so that a
    root does not depend on what else is in the array. An imprecise root costs growth, never validity.
    """
    pull = counts * gains
    low, high = np.zeros(gains.shape[1:]), np.full(gains.shape[1:], _HIGHEST_PLUG_IN)
    mean, square = np.add.reduce(pull), np.add.reduce(pull * gains)
    t = np.clip(mean / np.maximum(square, 1e-300), low, high)
    for _ in range(_NEWTON_STEPS):
        share = gains / (1.0 + t * gains)
        slope, bend = np.add.reduce(counts * share), np.add.reduce(counts * share * share)
        low, high = np.where(slope > 0, t, low), np.where(slope > 0, high, t)
        step = t + slope / np.maximum(bend, 1e-300)
        t = np.where((step >= low) & (step <= high), step, 0.5 * (low + high))
    return np.where(mean > 0, t, 0.0)


def growth(cells: Array, *, relative: float, bound: float, harm: bool) -> tuple[float, float]:
    """(nats per unit, stake) of the best bet against a null when the shares of the four kinds (`CELLS`) are known.

    No test of the null can grow faster; log(1/alpha) / growth is the known-truth bound on units. `bound` is the tolerance or the
    margin. Zero where the null holds.
    """
    sign, weight = (1.0, relative) if harm else (-1.0, float(relative > 0))
    most = 1.0 / (weight + bound if harm else 1.0 - bound)
    gains = sign * (CELLS[:, 1] - weight * CELLS[:, 0] - bound) * most
    fraction = float(fastest_fraction(np.asarray(cells, dtype=float)[:, None], gains[:, None])[0])
    return float((cells * np.log1p(fraction * gains)).sum()), fraction * most


def _check(relative: Array, absolute: Array, margins: Array, shares: Array, prior: Array) -> None:
    components = shares.shape
    if not (relative.shape == absolute.shape == prior.shape == components) or margins.shape[1:] != components:
        raise ValueError(
            "relative, absolute, shares, prior and each step's margins have one value per component"
        )
    if (shares < 0).any() or shares.sum() > 1 + 1e-9:
        raise ValueError(f"the shares of alpha add up to {shares.sum():g}; at most 1 keeps the guarantee")
    if (relative < 0).any() or (absolute < 0).any():
        raise ValueError("a tolerance is at least 0")


def _bound(margins: Array) -> Array:
    """Margins as bounds of safety; a step that asks for nothing has the widest."""
    return np.minimum(np.nan_to_num(margins, nan=_HIGHEST_BOUND), _HIGHEST_BOUND)


def _fractions(relative: Array, budget: Array) -> Array:
    """The fixed stakes of each row as shares of its largest, (3, components, stakes)."""
    fractions = np.broadcast_to(STAKES, (3, len(budget), len(STAKES))).copy()
    # A rate p has its fastest stake at (p - budget) / (1 - budget) of the largest.
    room = np.maximum(1.0 - budget, 1e-9)[:, None]
    rises = np.concatenate(
        [budget[:, None] * (BUDGET_FACTORS - 1.0) / room, np.tile(BUDGET_GAPS, (len(budget), 1))], axis=1
    )
    alone = relative == 0
    fractions[_HARM, alone] = np.minimum(rises, STAKES[-1])[alone]
    return fractions


def _log_mix() -> Array:
    fixed = STAKE_SHARES / STAKE_SHARES.sum() * (1.0 - PLUG_IN_SHARE)
    log_mix: Array = np.log(np.append(fixed, PLUG_IN_SHARE))
    return log_mix


def _pseudo_cells(prior: Array, relative: Array) -> Array:
    """Imagined units of two versions that err alike and independently, (4, components): where the plug-in begins."""
    rate = np.clip(prior, 1e-4, 0.4)
    only0 = np.where(relative > 0, _PSEUDO_UNITS, 0.0)
    only1 = np.full(len(rate), _PSEUDO_UNITS)
    return np.stack([_PSEUDO_UNITS / rate - only1 - only0, only1, only0, np.zeros(len(rate))])


def _spent(restarts: Array) -> Array:
    """Part of the time budget that is spent after so many restarts: all of it at last, but ever more slowly."""
    spent: Array = 1.0 - math.log(_RESTART_DELAY) / np.log(restarts + _RESTART_DELAY)
    return spent
