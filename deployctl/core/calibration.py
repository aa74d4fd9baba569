"""Whether a version is as sure as it is right: by bins of confidence, and by how much is left to people."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from deployctl.core.agreement import Floats, Ints

BINS = 10
RISK_POINTS = 20


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers of like confidence: their mean confidence and the share of them that was right."""

    low: float
    high: float
    n: int
    confidence: float
    right: float


@dataclass(frozen=True, slots=True)
class RiskPoint:
    """The share of answers that are at least so sure, and the share of these that is wrong."""

    coverage: float
    confidence: float
    n: int
    risk: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """`ece` is the expected calibration error, `brier` the mean squared distance of confidence from right or wrong; lower is better.

    `left_out` answers had no confidence.
    """

    n: int
    left_out: int
    ece: float
    brier: float
    bins: tuple[Bin, ...]
    risks: tuple[RiskPoint, ...]


def calibration_of(confidence: Floats, right: Floats) -> Calibration | None:
    """Calibration of the answers that have a confidence, `right` from 0 to 1; None where none has.

    Bins hold equally many answers, those of equal confidence together (Naeini, Cooper and Hauskrecht 2015; the error is theirs,
    the sum over bins of n/N · |right - confidence|). The Brier score is that of the answer given, not of every class.
    """
    known = np.isfinite(confidence)
    left_out = int(np.count_nonzero(~known))
    sure, right = confidence[known], right[known]
    n = len(sure)
    if not n:
        return None
    order = np.argsort(sure, kind="stable")
    sure, right = sure[order], right[order]
    ends = _ends(sure, BINS)
    firsts = np.append(0, ends[:-1])
    sizes = ends - firsts
    means = np.add.reduceat(sure, firsts) / sizes
    rights = np.add.reduceat(right, firsts) / sizes
    bins = tuple(
        Bin(float(sure[first]), float(sure[end - 1]), int(end - first), mean, share)
        for first, end, mean, share in zip(firsts, ends, means.tolist(), rights.tolist(), strict=True)
    )
    ece = float((sizes / n * np.abs(rights - means)).sum())
    return Calibration(n, left_out, ece, float(((sure - right) ** 2).mean()), bins, _risks(sure, right))


def _ends(ascending: Floats, parts: int) -> Ints:
    """Where equal parts end, moved up to where the value changes."""
    n = len(ascending)
    wanted = [math.ceil(n * part / parts) for part in range(1, parts + 1)]
    ends: Ints = np.unique(np.searchsorted(ascending, ascending[np.array(wanted) - 1], side="right"))
    return ends


def _risks(sure: Floats, right: Floats) -> tuple[RiskPoint, ...]:
    """The risk among the surest part, for parts that grow (El-Yaniv and Wiener 2010), from ascending confidence."""
    n = len(sure)
    firsts = np.append(0, _ends(sure, RISK_POINTS)[:-1])[::-1]
    wrong = np.cumsum((1 - right)[::-1])
    return tuple(
        RiskPoint((n - first) / n, float(sure[first]), n - first, float(wrong[n - first - 1]) / (n - first))
        for first in firsts.tolist()
    )
