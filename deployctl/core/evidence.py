"""The e-processes: growth-optimal two-sample Bernoulli evidence with an affine margin, all rows in one array.

An e-process starts at 1 and, while its null hypothesis holds, its expectation never exceeds 1 whenever one looks; so it
passes 1/alpha with a probability of at most alpha (Ville's inequality; Ramdas, Grünwald, Vovk, Shafer, arXiv 2210.01948).
Each row tests one null about a pair of rates (p0 of the baseline, p1 of the candidate):

    harm   null p1 <= tau(p0) = relative * p0 + absolute       evidence that the candidate is worse than tolerated
    safe   null p1 >= p0 + margin                              evidence that it is not worse by the margin

For a block with n0 and n1 units and the realised share w = n1 / (n0 + n1), the factor of one alternative (p0, p1) is the
likelihood ratio against the null point (q0, q1) that is nearest to it in the block's own mixture (reverse information
projection; Turner, Ly, Grünwald, arXiv 2106.02693). Its expectation is at most 1 for every null pair, whatever the rates did
before: the inequality of arithmetic and geometric means carries it from one unit to the block's realised counts. Alternatives
come from the past only. Incidents shared by both arms, drift and weight changes therefore cost nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

HARM_GAPS = np.array([0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.16, 0.35, 0.65, 0.95])
HARM_SHARES = np.array([0.08, 0.16, 0.16, 0.10, 0.16, 0.08, 0.03, 0.02, 0.02, 0.03])
"""Fixed alternatives of a harm row, this much over the tolerance, and how its mass is shared among them: most on the increases of
1 to 5 points, where a request tells least. `benchmarks/verdict` shows what the choice costs and gains."""

PLUG_IN_SHARE = 0.15
"""Of a harm row, on the rates seen so far."""

START = 0.78
"""Mass spent at the start; the rest pays for restarts, so that a fault or an incident may begin later."""

STEP_BUDGET, TIME_BUDGET = 0.12, 0.1
"""Mass of a row for restarts at the steps of the ladder (together), and in time (every 30 s, together)."""

RECENT_UNITS, RECENT_SIGMAS = 100.0, 2.0
"""A safe row takes the baseline's rate for at least that of about so many last units, less so many standard errors. A stake that is
right for 2 % is nine times too large while an incident has both arms at 22 %, and would lose what was earned before."""

_LOWEST, _HIGHEST = 1e-4, 0.995
_FAR_BEYOND = 50.0  # logarithms over its cap; evidence that is there is boosted no more
_NEWTON_STEPS, _CLOSE = 9, 1e-10
_RESTART_SECONDS = 30.0
_RESTART_NORM = 1.07  # sum over j >= 1 of 1 / ((j + 2) ln²(j + 2)) is 1.069


def project(p0: Array, p1: Array, w: Array, relative: Array, absolute: Array) -> tuple[Array, Array]:
    """The null point (q0, q1 = relative * q0 + absolute) nearest to (p0, p1) in the mixture with share w.

    All arguments broadcast. q0 is the root of `w relative (q1 - p1) q0 (1 - q0) + (1 - w) (q0 - p0) q1 (1 - q1)`, whose
    sign changes once between p0 and the baseline rate that makes p1 tolerable; Newton's method, kept inside the bracket.
    """
    edge = (p1 - absolute) / relative
    highest = (1.0 - 1e-9 - absolute) / relative
    low = np.clip(np.minimum(p0, edge), 0.0, highest)
    high = np.clip(np.maximum(p0, edge), 0.0, highest)
    q = np.clip(w * edge + (1 - w) * p0, low, high)
    done = np.zeros(
        q.shape, dtype=bool
    )  # each root stops by itself: its bits do not depend on what else is in the array
    for _ in range(_NEWTON_STEPS):
        q1 = relative * q + absolute
        a, b, c, d = q1 - p1, q - p0, q * (1 - q), q1 * (1 - q1)
        value = w * relative * a * c + (1 - w) * b * d
        slope = w * relative * (relative * c + a * (1 - 2 * q)) + (1 - w) * (d + b * relative * (1 - 2 * q1))
        below = value < 0
        low, high = np.where(below, q, low), np.where(below, high, q)
        step = q - value / np.where(slope == 0, 1.0, slope)
        step = np.where((step >= low) & (step <= high) & (slope > 0), step, 0.5 * (low + high))
        close = np.abs(step - q) < _CLOSE
        q = np.where(done, q, step)
        done |= close
        if done.all():  # what is left of the error is divided out by `log_factor`
            break
    return q, relative * q + absolute


def log_factor(
    counts: tuple[Array, Array, Array, Array],
    p0: Array,
    p1: Array,
    relative: Array,
    absolute: Array,
) -> Array:
    """Log of the block's factor for the alternative (p0, p1); `counts` are (n0, bad0, n1, bad1), all broadcast.

    Exact by construction: the largest expectation that any null pair could give, which the projection brings to 1 up to its
    rounding, is divided out, so an imprecise root costs evidence and never validity (a sloppy solver measured 1.014).
    """
    n0, k0, n1, k1 = counts
    n = n0 + n1
    w = n1 / np.maximum(n, 1)
    q0, q1 = project(p0, p1, w, relative, absolute)
    tiny = 1e-12
    q0 = np.clip(q0, tiny, 1 - tiny)
    q1 = np.clip(q1, tiny, 1 - tiny)
    up1, down1, up0, down0 = p1 / q1, (1 - p1) / (1 - q1), p0 / q0, (1 - p0) / (1 - q0)
    # The expectation is linear along the null's edge r1 = relative r0 + absolute: its largest value is at an end.
    last = np.minimum((1 - absolute) / relative, 1.0)
    at_start = w * (absolute * up1 + (1 - absolute) * down1) + (1 - w) * down0
    r1 = np.minimum(relative * last + absolute, 1.0)
    at_end = w * (r1 * up1 + (1 - r1) * down1) + (1 - w) * (last * up0 + (1 - last) * down0)
    excess = np.log(np.maximum(np.maximum(at_start, at_end), 1.0))
    return (
        k1 * np.log(up1)
        + (n1 - k1) * np.log(down1)
        + k0 * np.log(up0)
        + (n0 - k0) * np.log(down0)
        - n * excess
    )


class Evidence:
    """Rows of e-processes, advanced together by one block at a time.

    `harm` (rows,) says which side a row is on; `relative` (rows,) and `absolute` (rows,) give its null; `prior` (rows,) is the
    baseline's rate before the rollout, used only to choose alternatives. Leading dimension `replicates`: independent rollouts
    judged side by side (1 in production, thousands in a benchmark). `robust` (rows,) rows of tolerance 0 use the conditional form,
    which needs nothing but a random split. `caps` (rows,) is the evidence at which a row alone ends the rollout: robust rows are
    then boosted up to it (`log_boost`), so their evidence is good for this one limit and none above. All alternatives of all rows
    lie in one flat array, so a block costs a few dozen numpy calls however many metrics there are.
    """

    def __init__(
        self,
        harm: NDArray[np.bool_],
        relative: Array,
        absolute: Array,
        prior: Array,
        *,
        replicates: int = 1,
        steps: int = 1,
        robust: NDArray[np.bool_] | None = None,
        caps: Array | None = None,
    ) -> None:
        shape = (replicates, len(harm))
        self.harm = harm
        self.relative = relative.astype(float)
        self.absolute = np.broadcast_to(absolute.astype(float), shape).copy()
        """Per replicate, because each may be at another step of its ladder."""
        self.counts = np.zeros((4, *shape))
        """(n0, bad0, n1, bad1) of everything that was added, per replicate and row."""
        self._recent = np.zeros((2, *shape))
        """(n0, bad0) of the last units, older ones fading."""
        self._prior = np.clip(prior.astype(float), _LOWEST, 0.9)
        self._lay_out(harm)
        self._lay_out_conditional(np.zeros(len(harm), dtype=bool) if robust is None else robust, caps)
        self._mass = np.empty((replicates, len(self._row)))
        self._unspent = np.ones(shape)
        self._step_share = STEP_BUDGET / max(2, steps - 1)
        self._restarts = np.zeros(shape, dtype=int)
        self._began = np.zeros(shape)
        self._foreseen: deque[tuple[Array, Array, Array]] = deque()
        self._known: Array | None = None
        self.start(np.ones(len(harm), dtype=bool), 0.0)

    def start(self, rows: NDArray[np.bool_], at: float | Array) -> None:
        """Forget what these rows have seen and begin afresh at this rollout time (seconds).

        `rows` is (rows,) or (replicates, rows), `at` one time or one for each replicate.
        """
        self._foreseen.clear()
        self._known = None
        which = np.broadcast_to(rows, self._unspent.shape)
        self._mass = np.where(which[:, self._row], self._log_mix + math.log(START), self._mass)
        self._unspent = np.where(which, 1.0 - START, self._unspent)
        self._restarts = np.where(which, 0, self._restarts)
        self._began = np.where(which, _per_replicate(at), self._began)

    def renew_at_step(self, rows: NDArray[np.bool_]) -> None:
        """Spend a part of the change-point budget: a fault may begin with the step that begins now."""
        self._renew(np.where(np.broadcast_to(rows, self._unspent.shape), self._step_share, 0.0))

    def add(self, counts: tuple[Array, Array, Array, Array], at: float | Array) -> None:
        """Advance every row by its block: (n0, bad0, n1, bad1), each (replicates, rows), at this rollout time.

        A row whose block lacks one of the arms is left as it is: nothing can be compared.
        """
        self._renew_in_time(_per_replicate(at))
        block = _usable(np.stack(counts))
        if self._foreseen and np.array_equal(self._foreseen[0][0], block[:, 0]):
            _, factor, log_odds = self._foreseen.popleft()
        else:
            self._foreseen.clear()
            factor, log_odds = self._factors(block, self.counts, self._recent, self.absolute)
        if len(self._boosted):
            self._boost(block[:, :, self._boosted], factor, log_odds)
        self._mass += factor
        self.counts += block
        self._recent = _faded(self._recent, block)
        self._known = None

    def foresee(self, blocks: Array) -> None:
        """Work out the factors of the blocks that will be added next, together: (4, blocks, rows), of one replicate.

        Alternatives come from counts alone, so all are known in advance; a block then costs a tenth, and its factor has the same
        bits. What is added is compared with what was foreseen, and a step that begins makes it void.
        """
        blocks = _usable(blocks)
        before = self.counts + np.cumsum(blocks, axis=1) - blocks
        absolute = np.broadcast_to(self.absolute, before.shape[1:])
        recent, last = [], self._recent
        for at in range(blocks.shape[1]):
            recent.append(last)
            last = _faded(last, blocks[:, at : at + 1])
        factors, log_odds = self._factors(blocks, before, np.concatenate(recent, axis=1), absolute)
        self._foreseen = deque(
            (blocks[:, at], factors[at : at + 1], log_odds[at : at + 1]) for at in range(blocks.shape[1])
        )

    def _factors(self, counts: Array, before: Array, recent: Array, absolute: Array) -> tuple[Array, Array]:
        """Log factors of blocks, (replicates, alternatives), where these counts were known before each; 0 for no alternative.

        And the log odds of those in the conditional form, (replicates, conditional alternatives).
        """
        p0, p1, valid = self._alternatives(before, recent, absolute)
        n0, k0, n1, k1 = counts
        block = (n0[:, self._row], k0[:, self._row], n1[:, self._row], k1[:, self._row])
        factor = log_factor(block, p0, p1, self.relative[self._row], absolute[:, self._row])
        factor = np.where(valid, factor, 0.0)
        tilted = self._conditional
        if not len(tilted):
            return factor, factor[:, :0]
        odds = (p1 * (1 - p0) / (p0 * (1 - p1)))[:, tilted]
        odds = np.where(valid[:, tilted], odds, 1.0)
        n0, k0, n1, k1 = (x[:, tilted] for x in block)
        factor[:, tilted] = log_conditional_factor(n0, k0, n1, k1, odds)
        return factor, np.log(odds)

    def _boost(self, block: Array, factor: Array, log_odds: Array) -> None:
        """Raise what the rows with a cap have by what they would overshoot it by: see `log_boost`."""
        tilted, row = self._conditional, self._row_of_conditional
        mass = self._mass[:, tilted]
        n0, k0, n1, k1 = block
        log_pmf = _log_hypergeometric(n0, k0 + k1, n1)
        j = np.arange(log_pmf.shape[-1])
        # What each alternative would have after each number of bad units of the candidate, as a part of the cap.
        then = mass + factor[:, tilted] - k1[:, row] * log_odds - self._log_caps[row]
        grown = then[..., None] + j * log_odds[..., None] + log_pmf[:, row]
        chance = np.exp(log_pmf)
        unspent = self._unspent[:, self._boosted] * np.exp(-self._log_caps)
        wealth = chance * unspent[..., None] + np.add.reduceat(
            np.exp(np.minimum(grown, _FAR_BEYOND)), self._first_of_conditional, axis=1
        )
        boost = log_boost(chance, wealth)
        self._mass[:, tilted] = mass + boost[:, row]
        self._unspent[:, self._boosted] *= np.exp(boost)

    def log_evidence(self) -> Array:
        """Log of each row's e-value, (replicates, rows)."""
        if self._known is not None:
            return self._known
        top = np.maximum.reduceat(self._mass, self._first, axis=1)
        grown = np.log(np.add.reduceat(np.exp(self._mass - top[:, self._row]), self._first, axis=1)) + top
        with np.errstate(divide="ignore"):
            self._known = np.logaddexp(grown, np.log(self._unspent))
        return self._known

    def _lay_out(self, harm: NDArray[np.bool_]) -> None:
        """One flat place per alternative: its row, its share of the row's mass, and how its p1 is chosen."""
        shares = np.append(HARM_SHARES / HARM_SHARES.sum() * (1 - PLUG_IN_SHARE), PLUG_IN_SHARE)
        harm_mix = np.log(shares)
        row, log_mix, gap, factor = [], [], [], []
        for at, is_harm in enumerate(harm):
            fixed = len(HARM_GAPS) if is_harm else 2
            row += [at] * (fixed + 1)
            gap += [*HARM_GAPS, np.nan] if is_harm else [np.nan] * 3
            factor += [np.nan] * (fixed + 1) if is_harm else [1.0, 0.7, np.nan]
            log_mix += list(harm_mix) if is_harm else [math.log(1 / 3)] * 3
        self._row = np.array(row, dtype=int)
        self._first = np.flatnonzero(np.diff(self._row, prepend=-1))
        self._log_mix = np.array(log_mix)
        self._gap, self._factor = np.array(gap), np.array(factor)

    def _lay_out_conditional(self, robust: NDArray[np.bool_], caps: Array | None) -> None:
        """Which alternatives are of the conditional form, and which rows are boosted: all of these, where caps are given."""
        self._conditional = np.flatnonzero(robust[self._row])
        self._boosted = np.flatnonzero(robust) if caps is not None else np.empty(0, dtype=int)
        self._log_caps = np.log(caps[self._boosted]) if caps is not None else np.empty(0)
        rows = self._row[self._conditional]
        self._row_of_conditional = np.searchsorted(np.flatnonzero(robust), rows)
        self._first_of_conditional = np.flatnonzero(np.diff(rows, prepend=-1))

    def _alternatives(
        self, counts: Array, recent: Array, absolute: Array
    ) -> tuple[Array, Array, NDArray[np.bool_]]:
        """p0, p1 and whether it is an alternative at all, (replicates, alternatives), from the past only."""
        n0, k0, n1, k1 = counts
        p0_of_row = np.clip((k0 + 20 * self._prior) / (n0 + 20), _LOWEST, 0.9)
        p0_of_row = np.where(self.harm, p0_of_row, np.maximum(p0_of_row, _surely(*recent)))
        seen = np.clip((k1 + 2 * p0_of_row) / (n1 + 2), _LOWEST, _HIGHEST)[:, self._row]
        p0 = p0_of_row[:, self._row]
        null = self.relative[self._row] * p0 + absolute[:, self._row]
        p1 = np.where(np.isnan(self._gap), seen, np.minimum(null + self._gap, _HIGHEST))
        p1 = np.where(np.isnan(self._factor), p1, np.maximum(self._factor * p0, _LOWEST))
        on_harm = self.harm[self._row]
        return p0, p1, np.where(on_harm, p1 > null + 1e-6, p1 < null - 1e-6)

    def _renew_in_time(self, at: Array) -> None:
        due = ((at - self._began) // _RESTART_SECONDS).astype(int)
        while (late := due > self._restarts).any():
            self._restarts += late
            j = self._restarts + 2.0
            self._renew(np.where(late, TIME_BUDGET / _RESTART_NORM / (j * np.log(j) ** 2), 0.0))

    def _renew(self, share: Array) -> None:
        share = np.minimum(share, self._unspent)
        self._unspent = self._unspent - share
        with np.errstate(divide="ignore"):
            fresh = self._log_mix + np.log(share)[:, self._row]
        self._mass = np.logaddexp(self._mass, fresh)
        self._known = None


def _usable(counts: Array) -> Array:
    """Counts (4, replicates, rows) without those of rows whose block lacks one of the arms: nothing can be compared there."""
    usable: Array = np.where((counts[0] > 0) & (counts[2] > 0), counts, 0.0)
    return usable


def _faded(recent: Array, block: Array) -> Array:
    """(n0, bad0) of the last units after one more block (n0, bad0, n1, bad1)."""
    faded: Array = recent * (RECENT_UNITS / (RECENT_UNITS + block[0])) + block[:2]
    return faded


def _surely(n: Array, bad: Array) -> Array:
    """A rate that these units show to be exceeded, nearly for sure; at most 0.9."""
    rate = bad / np.maximum(n, 1.0)
    lower: Array = rate - RECENT_SIGMAS * np.sqrt(rate * (1 - rate) / np.maximum(n, 1.0))
    return np.minimum(lower, 0.9)


def _per_replicate(at: float | Array) -> Array:
    """A time as something that broadcasts against (replicates, rows)."""
    return np.asarray(at, dtype=float).reshape(-1, 1)


def log_conditional_factor(n0: Array, bad0: Array, n1: Array, bad1: Array, odds: Array) -> Array:
    """Robust form for tolerance 0: given how many of a block were bad, which arm did they fall on?

    The candidate's bad units tilted by `odds`, over the expectation of that under a random split (hypergeometric). Needs no
    weight and no independence between requests (Lindon and Malek, arXiv 2011.03567, for counts); costs 6 to 14 % more requests.
    Arguments broadcast; blocks without either arm give 0.
    """
    log_pmf = _log_hypergeometric(n0, bad0 + bad1, n1)
    j = np.arange(log_pmf.shape[-1])
    log_odds = np.log(np.asarray(odds, dtype=float))
    normal = np.logaddexp.reduce(log_pmf + j * log_odds[..., None], axis=-1)
    factor: Array = np.where((n0 > 0) & (n1 > 0), bad1 * log_odds - normal, 0.0)
    return factor


def _log_hypergeometric(n0: Array, bad: Array, n1: Array) -> Array:
    """Log chance that 0, 1, … of a block's bad units fall on the candidate's by a random split, along a new last axis."""
    size = int(np.max(np.minimum(n1, bad), initial=0))
    j = np.arange(size + 1.0)
    total = np.asarray(n0 + n1, dtype=float)[..., None]
    n1_, bad_ = (np.asarray(x, dtype=float)[..., None] for x in (n1, bad))
    with np.errstate(invalid="ignore"):
        log_pmf = _log_choose(bad_, j) + _log_choose(total - bad_, n1_ - j) - _log_choose(total, n1_)
    possible: Array = np.where((j <= np.minimum(n1_, bad_)) & (n1_ - j <= total - bad_), log_pmf, -np.inf)
    return possible


def log_boost(chance: Array, wealth: Array) -> Array:
    """Log of the factor by which evidence may be raised before a block because what exceeds its cap is not needed.

    Sequential boosting (Fischer and Ramdas, arXiv 2410.16076): a test that ends at evidence C never uses what lies above, so with
    G(j) the evidence after outcome j of the block, the largest b with E min(b G, C) <= E G under the null keeps its
    expectation, and P(ever C) <= 1 / C by Ville's inequality as before. Here j is how many of a block's bad units fell on the
    candidate: `chance` (..., j) is its distribution under a random split, which is all that the conditional form's null says
    (with fewer of them, where the candidate is better, E min(b G, C) only shrinks, because G rises in j), and `wealth` (..., j)
    is chance * G / C. As min(b G, C) is the smallest of "C from J on, b G below", over all J, b is the largest of
    (E G - C P(j >= J)) / E[G; j < J]. 0 once C is reached.
    """
    below = np.cumsum(wealth, axis=-1)
    from_here = np.cumsum(chance[..., ::-1], axis=-1)[..., ::-1]
    now = below[..., -1:]
    left = np.where(now < 1, now - from_here[..., 1:], 0.0)
    raised = left / np.maximum(below[..., :-1], 1e-300)
    boost: Array = np.log(np.maximum(raised.max(axis=-1, initial=1.0), 1.0))
    return boost


def growth(p0: float, p1: float, weight: float, relative: float, absolute: float) -> float:
    """Expected growth of the log evidence per candidate unit, in nats: the best that any test of this null can do.

    `weight` is the candidate's share as a fraction. log(1/beta) / growth is the known-truth bound on candidate units.
    """
    p0, p1 = max(p0, _LOWEST), max(p1, _LOWEST)
    q0, q1 = project(
        *(np.array([x]) for x in (p0, p1)), *(np.array([x]) for x in (weight, relative, absolute))
    )
    return _kl(p1, float(q1[0])) + (1 - weight) / weight * _kl(p0, float(q0[0]))


def _kl(p: float, q: float) -> float:
    total = 0.0
    if p > 0:
        total += p * math.log(p / q)
    if p < 1:
        total += (1 - p) * math.log((1 - p) / (1 - q))
    return total


def confidence_sequence(n: int, bad: int, alpha: float) -> tuple[float, float]:
    """An interval for a rate that holds at all times at once with probability 1 - alpha (Beta(1/2, 1/2) mixture).

    Robbins' method of mixtures: the mixture's likelihood over that of p exceeds 1/alpha for the true p with probability
    alpha at most. Assumes a constant rate; the verdict itself does not.
    """
    if n == 0:
        return 0.0, 1.0
    log_mixture = (
        math.lgamma(bad + 0.5) + math.lgamma(n - bad + 0.5) - math.lgamma(n + 1.0) - 2 * math.lgamma(0.5)
    )

    def excluded(p: float) -> bool:
        return log_mixture - (bad * math.log(p) + (n - bad) * math.log1p(-p)) >= math.log(1 / alpha)

    centre = min(max(bad / n, 1e-12), 1 - 1e-12)
    low = 0.0 if bad == 0 else _edge(1e-12, centre, excluded)
    high = 1.0 if bad == n else _edge(1 - 1e-12, centre, excluded)
    return low, high


def _edge(outside: float, inside: float, excluded: Callable[[float], bool]) -> float:
    """Where exclusion begins, between a rate that may be excluded and one that is not."""
    for _ in range(50 if excluded(outside) else 0):
        middle = 0.5 * (outside + inside)
        outside, inside = (middle, inside) if excluded(middle) else (outside, middle)
    return outside


_LOG_FACTORIAL: NDArray[np.float64] = np.array([math.lgamma(i + 1.0) for i in range(4096)])


def _log_choose(n: Array, k: Array) -> Array:
    return _log_factorial(n) - _log_factorial(k) - _log_factorial(n - k)


def _log_factorial(n: Array) -> Array:
    whole = np.clip(np.asarray(n), 0, None)
    small: Array = _LOG_FACTORIAL[np.minimum(whole, 4095).astype(int)]
    with np.errstate(divide="ignore", invalid="ignore"):
        # Stirling's series; its error at 4096 is below 1e-15 of the value
        large = (whole + 0.5) * np.log(whole) - whole + 0.5 * math.log(2 * math.pi) + 1 / (12 * whole)
    value: Array = np.where(whole < 4096, small, large)
    return value
