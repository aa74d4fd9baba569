"""Small charts as inline SVG: no script, no font, no colour of their own; the page's style sheet gives light, dark and print.

Each has a title that says what it shows in words, as a table stands beside it; texts must come escaped. Shares are fractions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

WIDTH = 420
LEFT, RIGHT = 128, 16
"""Room for the names of rows, and on the other side."""

ROW = 30
SQUARE = 236
EDGE = 42


@dataclass(frozen=True, slots=True)
class Range:
    """A value with its interval, on a row of its own; `kind` is the class of the style sheet."""

    name: str
    value: float
    interval: tuple[float, float] | None
    words: str
    kind: str = "mark"


@dataclass(frozen=True, slots=True)
class Axis:
    """From `low` to `high` with marks that people count in."""

    low: float
    high: float
    step: float

    def at(self, value: float, first: float, last: float) -> float:
        """Where a value is between two places."""
        share = (value - self.low) / (self.high - self.low)
        return first + min(1.0, max(0.0, share)) * (last - first)

    @property
    def ticks(self) -> list[float]:
        """The marks."""
        count = round((self.high - self.low) / self.step)
        return [self.low + at * self.step for at in range(count + 1)]


def axis_for(values: Sequence[float], *, low: float = 0.0, high: float = 1.0) -> Axis:
    """A round axis around values, within limits, with about five marks."""
    least, most = min(values), max(values)
    spread = max(most - least, 0.02)
    raw = spread * 1.15 / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * size for size in (1, 2, 2.5, 5, 10) if power * size >= raw)
    first = max(low, math.floor((least - 0.05 * spread) / step) * step)
    last = min(high, math.ceil((most + 0.05 * spread) / step) * step)
    count = max(1, math.ceil((last - first) / step - 1e-9))
    return Axis(first, first + count * step, step)


def ranges(
    title: str, rows: Sequence[Range], axis: Axis, *, reference: float | None = None, points: bool = False
) -> str:
    """Rows of a value with its interval on one axis, and a line across them all. `points` are differences, with their sign."""
    height = ROW * len(rows) + 40
    bottom, last = height - 28, WIDTH - RIGHT
    parts = list(_across(axis, bottom, points=points))
    if reference is not None:
        x = axis.at(reference, LEFT, last)
        parts.append(f'<line class="reference" x1="{x:.1f}" y1="4" x2="{x:.1f}" y2="{bottom}"/>')
    for at, row in enumerate(rows):
        y = 8 + ROW * at + ROW / 2 - 4
        x = axis.at(row.value, LEFT, last)
        parts.append(f'<text class="name" x="{LEFT - 12}" y="{y + 4:.1f}">{row.name}</text>')
        if row.interval:
            begin, end = (axis.at(one, LEFT, last) for one in row.interval)
            parts.append(
                f'<line class="interval {row.kind}" x1="{begin:.1f}" y1="{y}" x2="{end:.1f}" y2="{y}"/>'
            )
        parts.append(
            f'<circle class="{row.kind}" cx="{x:.1f}" cy="{y}" r="5"><title>{row.words}</title></circle>'
        )
    return _svg(title, WIDTH, height, parts)


def curve(
    title: str,
    points: Sequence[tuple[float, float]],
    axes: tuple[Axis, Axis],
    names: tuple[str, str],
    *,
    diagonal: bool = False,
) -> str:
    """Points joined by a line; `diagonal` is where both are the same."""
    across, up = axes
    width, height = SQUARE + 2 * EDGE + 40, SQUARE + 2 * EDGE - 24
    left, bottom, last, top = EDGE + 14, height - EDGE, width - 20, 12
    parts = []
    for tick in up.ticks:
        y = up.at(tick, bottom, top)
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{last}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{left - 7}" y="{y + 3.5:.1f}">{_percent(tick, up)}</text>')
    for tick in across.ticks:
        x = across.at(tick, left, last)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 17}">{_percent(tick, across)}</text>')
    if diagonal:
        parts.append(_diagonal(axes, (left, bottom, last, top)))
    places = [(across.at(x, left, last), up.at(y, bottom, top)) for x, y in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts.append(f'<polyline class="line" points="{line}"/>')
    parts += [f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in places]
    middle = (left + last) / 2
    parts.append(f'<text class="axis" x="{middle:.1f}" y="{height - 6}">{names[0]}</text>')
    centre = (top + bottom) / 2
    parts.append(f'<text class="axis" transform="translate(13 {centre:.1f}) rotate(-90)">{names[1]}</text>')
    return _svg(title, width, height, parts)


def _diagonal(axes: tuple[Axis, Axis], box: tuple[float, float, float, float]) -> str:
    across, up = axes
    left, bottom, last, top = box
    low, high = max(across.low, up.low), min(across.high, up.high)
    begin = across.at(low, left, last), up.at(low, bottom, top)
    end = across.at(high, left, last), up.at(high, bottom, top)
    return f'<line class="reference" x1="{begin[0]:.1f}" y1="{begin[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"/>'


def _across(axis: Axis, bottom: float, *, points: bool) -> Iterator[str]:
    for tick in axis.ticks:
        x = axis.at(tick, LEFT, WIDTH - RIGHT)
        words = f"{100 * tick:+.3g}" if points and abs(tick) > 1e-9 else _percent(tick, axis)
        yield f'<line class="grid" x1="{x:.1f}" y1="4" x2="{x:.1f}" y2="{bottom}"/>'
        yield f'<text class="tick" x="{x:.1f}" y="{bottom + 18}">{"0" if points and abs(tick) <= 1e-9 else words}</text>'


def _percent(tick: float, axis: Axis) -> str:
    digits = 0 if axis.step >= 0.00999 else 1 if axis.step >= 0.000999 else 2
    return f"{100 * tick:.{digits}f} %"


def _svg(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    # The title is the chart's text alternative; marks without words of their own are hidden behind it.
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}" preserveAspectRatio="xMinYMin meet">'
        f"<title>{title}</title>{''.join(parts)}</svg>"
    )
