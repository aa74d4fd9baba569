"""How numbers are written for people: counts, shares, effects, evidence and their bars.

Rates arrive as fractions and are shown in percent; differences of rates in points, so that they are not mistaken.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

UNKNOWN = "?"
HUGE = 1e6
"""Evidence beyond this is written as a power of ten."""


def count(number: float | None) -> str:
    """`19000` as `19,000`."""
    return UNKNOWN if number is None else f"{number:,.0f}"


def percent(share: float | None) -> str:
    """A fraction as percent, with as many digits as a small rate needs."""
    if share is None:
        return UNKNOWN
    value = 100 * share
    return f"{value:.0f} %" if value in {0.0, 100.0} else f"{value:.3g} %"


def size(number: float) -> str:
    """Bytes: `12.3 GiB`, `240 MiB`, `17 KiB`."""
    for unit, power in (("GiB", 30), ("MiB", 20)):
        if number >= 1 << power:
            value = number / (1 << power)
            return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{number / 1024:.3g} KiB"


def span(seconds: float) -> str:
    """`40 s`, `3 min`, `5 h`, `12 days`."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def weight(percentage: float | None) -> str:
    """A weight is a percentage already."""
    return UNKNOWN if percentage is None else f"{percentage:g} %"


def arm(document: dict[str, int] | None) -> str:
    """`12 of 19,000 (0.0632 %)`: how many answers were bad."""
    if not document:
        return UNKNOWN
    n, bad = document.get("n") or 0, document.get("bad") or 0
    return f"{count(bad)} of {count(n)} ({percent(bad / n)})" if n else "none yet"


def points(difference: float) -> str:
    """A difference of rates in points, always with its sign."""
    value = 100 * difference
    return f"{value:+.2f}" if abs(value) < 10 else f"{value:+.1f}"


def effect(difference: float | None, interval: Sequence[float | None] | None) -> str:
    """`+0.04 points [-0.10, +0.31]`: the difference with its any-time valid interval."""
    if difference is None:
        return UNKNOWN
    words = f"{points(difference)} points"
    if interval and None not in interval:
        low, high = (points(end) for end in interval if end is not None)
        words += f" [{low}, {high}]"
    return words


def evidence(value: float | None, threshold: float | None) -> str:
    """`40 / 120`: an e-value and what it must reach."""
    return f"{e_value(value)} / {e_value(threshold)}"


def progress(value: float | None, threshold: float | None) -> float:
    """How far evidence has come on a log scale: 0 at an e-value of 1 or less, 1 at its threshold."""
    if value is None or threshold is None or threshold <= 1 or value <= 1:
        return 0.0
    return min(1.0, math.log(value) / math.log(threshold))


def bar(share: float, cells: int, *, ascii_only: bool) -> str:
    """A bar of so many cells; it is full only when the share is, and empty only when there is none."""
    full, empty = ("#", "-") if ascii_only else ("█", "░")
    filled = math.floor(cells * share)
    if share > 0:
        filled = max(1, filled)
    return full * filled + empty * (cells - filled)


def e_value(value: float | None) -> str:
    """Evidence as a number that fits a column: `0.21`, `43`, `1e8`."""
    if value is None:
        return UNKNOWN
    if value >= HUGE:
        return f"1e{math.floor(math.log10(value))}" if math.isfinite(value) else "∞"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def sparkline(values: Sequence[float], cells: int, *, ascii_only: bool) -> str:
    """Evidence over time, one character per stretch of it, on a logarithmic scale from 1/100 to the largest."""
    if not values:
        return ""
    levels = "_.-=#" if ascii_only else "▁▂▃▄▅▆▇█"
    logs = [math.log10(min(max(value, 0.01), 1e9)) for value in values]
    top = max(2.0, *logs)
    cells = min(cells, len(logs))
    edges = [at * len(logs) // cells for at in range(cells + 1)]
    heights = [max(logs[begin:end]) for begin, end in itertools.pairwise(edges)]
    return "".join(levels[round((height + 2) / (top + 2) * (len(levels) - 1))] for height in heights)
