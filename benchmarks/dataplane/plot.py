"""A plot without a plotting library: requests a second of every stack, on a logarithmic axis."""

from __future__ import annotations

import math

_WIDTH, _NAME, _BAR, _GAP, _TOP = 860, 190, 18, 34, 54
_OURS, _BOUND, _THEIRS = "#1b7f5c", "#d9dee4", "#9aa5b1"


def bars(rates: dict[str, dict[str, float]]) -> str:
    """An SVG: workload → stack → requests a second."""
    most = max((value for of in rates.values() for value in of.values()), default=10.0)
    decades = max(1, math.ceil(math.log10(max(most, 10))) - 1)  # the axis begins at 10
    scale = (_WIDTH - _NAME - 90) / decades
    lines, y = [], _TOP
    for workload, of in rates.items():
        lines.append(f'<text x="10" y="{y + 4}" font-weight="bold">{workload}</text>')
        y += 14
        for name, value in sorted(of.items(), key=lambda item: -item[1]):
            width = max(2.0, scale * (math.log10(max(value, 10.0)) - 1))
            colour = _OURS if name == "deployctl" else _BOUND if name.startswith("bare") else _THEIRS
            lines += [
                f'<text x="{_NAME - 8}" y="{y + 13}" text-anchor="end">{name}</text>',
                f'<rect x="{_NAME}" y="{y}" width="{width:.0f}" height="{_BAR - 4}" fill="{colour}"/>',
                f'<text x="{_NAME + width + 6:.0f}" y="{y + 12}">{value:,.0f}</text>',
            ]
            y += _BAR
        y += _GAP
    grid = [
        f'<path d="M{_NAME + scale * decade:.0f} {_TOP}V{y - _GAP}" stroke="#e3e7eb"/>'
        f'<text x="{_NAME + scale * decade:.0f}" y="{y - _GAP + 16}" text-anchor="middle" fill="#667">{10 ** (decade + 1):,}</text>'
        for decade in range(decades + 1)
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        '<text x="10" y="24" font-size="15">Requests a second on one core, 64 connections (median)</text>'
    )
    return "\n".join([head, *grid, *lines, "</svg>\n"])
