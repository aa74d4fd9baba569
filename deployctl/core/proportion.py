"""Intervals and exact tests for shares: of one sample, of many slices of it, and of two versions on the same requests.

Everything here is for one look at data that are complete: who looks again and again, and stops when it suits, needs
`core/betting.py` instead. Functions take counts and give floats; `level` is the confidence (0.95).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""Confidence of every interval in a report."""

Interval = tuple[float, float]

_CONTINUED = 100_000
"""Terms of the continued fraction; about the square root of the counts are needed."""


@dataclass(frozen=True, slots=True)
class Share:
    """How many of `n`, with two 95 % intervals (fractions). `share` is None where there were none to count.

    `hits` is not whole where votes are shares; then `exact` is None: Clopper and Pearson's interval is one for counts, while Wilson's
    stays on the safe side, as nothing in [0, 1] varies more than a coin of the same mean.
    """

    n: int
    hits: float
    share: float | None = None
    wilson: Interval | None = None
    exact: Interval | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference on the same requests, second minus first, with its 95 % interval (fractions)."""

    n: int
    difference: float
    interval: Interval


def share_of(hits: float, n: int) -> Share:
    """`hits` of `n` with their intervals."""
    if not n:
        return Share(0, 0.0)
    whole = float(hits).is_integer()
    exact = clopper_pearson(round(hits), n) if whole else None
    return Share(n, float(hits), hits / n, wilson(hits, n), exact)


def z_of(level: float = LEVEL) -> float:
    """Standard deviations to either side of a normal mean that hold `level` of it."""
    return NormalDist().inv_cdf(0.5 + level / 2)


def wilson(hits: float, n: int, level: float = LEVEL) -> Interval:
    """Wilson's score interval (Wilson 1927; Brown, Cai and DasGupta 2001, section 3.1.1)."""
    z, p = z_of(level), hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # exactly 0 and 1 at the ends, where rounding would leave 1e-18
    return (0.0 if hits == 0 else middle - half, 1.0 if hits == n else middle + half)


def clopper_pearson(hits: int, n: int, level: float = LEVEL) -> Interval:
    """The exact interval (Clopper and Pearson 1934): the shares at which so many or so few hits have a chance of (1 - level)/2."""
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else _beta_quantile(tail, hits, n - hits + 1)
    high = 1.0 if hits == n else 1.0 - _beta_quantile(tail, n - hits, hits + 1)
    return low, high


def binomial_tails(hits: int, n: int, share: float) -> tuple[float, float]:
    """The chance of so few hits and that of so many, of `n` with this share (Abramowitz and Stegun 26.5.24)."""
    few = 1.0 if hits == n else beta_cdf(1 - share, n - hits, hits + 1)
    many = 1.0 if hits == 0 else beta_cdf(share, hits, n - hits + 1)
    return few, many


def mcnemar(first_only: int, second_only: int) -> float:
    """Two-sided exact p-value that two versions are right equally often, from the requests on which one alone was right (McNemar
    1947, in its exact form: a fair coin for each of them).
    """
    n = first_only + second_only
    if not n:
        return 1.0
    few, _ = binomial_tails(min(first_only, second_only), n, 0.5)
    return min(1.0, 2 * few)


def paired_difference(differences: NDArray[np.float64], level: float = LEVEL) -> Difference | None:
    """The mean of differences in [-1, 1], one for each request, with the adjusted Wald interval of Bonett and Price (2012).

    Two requests are added, one for each side, so the interval has a width where all differences are 0. For differences of -1, 0 and 1
    it is theirs to the letter; None without requests.
    """
    n = len(differences)
    if not n:
        return None
    mean = float(differences.sum()) / (n + 2)
    variance = (float((differences**2).sum()) + 2) / (n + 2) - mean * mean
    half = z_of(level) * math.sqrt(variance / (n + 2))
    return Difference(n, float(differences.mean()), (max(-1.0, mean - half), min(1.0, mean + half)))


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice against a share that all are compared with: its interval at the level of its step, and whether it differs."""

    interval: Interval
    p_value: float
    differs: bool


def holm(slices: Sequence[tuple[int, int]], share: float, level: float = LEVEL) -> list[Slice]:
    """Slices (hits, n; each n above 0) against one share, so that with a chance of `level` none is called different that is not.

    Exact binomial p-values, the smallest first; the j-th of m is tested, and its Clopper-Pearson interval given, at the error
    (1 - level)/(m - j + 1), and from the first that is not different on none is (Holm 1979; for intervals Serlin 1993).
    """
    p_values = [min(1.0, 2 * min(binomial_tails(hits, n, share))) for hits, n in slices]
    found: dict[int, Slice] = {}
    still = True
    for step, at in enumerate(sorted(range(len(slices)), key=p_values.__getitem__)):
        error = (1 - level) / (len(slices) - step)
        still = still and p_values[at] <= error
        interval = clopper_pearson(*slices[at], 1 - error)
        found[at] = Slice(interval, p_values[at], still)
    return [found[at] for at in range(len(slices))]


def beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22, summed as Lentz does)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the other side converges faster
        return 1.0 - beta_cdf(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / a * _continued(x, a, b)


def _continued(x: float, a: float, b: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1 / ((1 - (a + b) * x / (a + 1)) or tiny)
    value = d
    for m in range(1, _CONTINUED):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / ((1 + term * d) or tiny)
            c = (1 + term / c) or tiny
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            return value
    raise ArithmeticError(f"I_x(a, b) did not converge at x = {x}, a = {a}, b = {b}")


def _beta_quantile(chance: float, a: float, b: float) -> float:
    """Where I_x(a, b) reaches `chance`, by halving: as exact as a float."""
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if beta_cdf(middle, a, b) < chance else (low, middle)
        if high - low < 1e-15 * high:
            break
    return (low + high) / 2
