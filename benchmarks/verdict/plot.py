"""A plot without a plotting library: bad answers that callers got from the candidate, by policy, on a logarithmic axis."""

from __future__ import annotations

import math

_WIDTH, _NAME, _BAR, _GAP, _TOP = 860, 210, 18, 34, 54
_OURS, _THEIRS = "#1b7f5c", "#9aa5b1"


def bars(served: dict[str, dict[str, float]]) -> str:
    """An SVG: scenario → policy → mean of bad answers until the rollout ended."""
    most = max((value for means in served.values() for value in means.values()), default=1.0)
    decades = max(1, math.ceil(math.log10(max(most, 10))))
    scale = (_WIDTH - _NAME - 90) / decades
    lines, y = [], _TOP
    for scenario, means in served.items():
        lines.append(f'<text x="10" y="{y + 4}" font-weight="bold">{scenario}</text>')
        y += 14
        for name, value in sorted(means.items(), key=lambda item: item[1]):
            width = max(2.0, scale * math.log10(max(value, 1.0)))
            colour = _OURS if name == "deployctl" else _THEIRS
            lines += [
                f'<text x="{_NAME - 8}" y="{y + 13}" text-anchor="end">{name}</text>',
                f'<rect x="{_NAME}" y="{y}" width="{width:.0f}" height="{_BAR - 4}" fill="{colour}"/>',
                f'<text x="{_NAME + width + 6:.0f}" y="{y + 12}">{value:,.0f}</text>',
            ]
            y += _BAR
        y += _GAP
    grid = [
        f'<path d="M{_NAME + scale * decade:.0f} {_TOP}V{y - _GAP}" stroke="#e3e7eb"/>'
        f'<text x="{_NAME + scale * decade:.0f}" y="{y - _GAP + 16}" text-anchor="middle" fill="#667">{10**decade:,}</text>'
        for decade in range(decades + 1)
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        '<text x="10" y="24" font-size="15">Bad answers that callers got from the candidate until it was rolled back (mean)</text>'
    )
    return "\n".join([head, *grid, *lines, "</svg>\n"])
