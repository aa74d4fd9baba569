"""A plot without a plotting library: groups of bars on a logarithmic axis, each with its number."""

from __future__ import annotations

import math

_WIDTH, _NAME, _BAR, _GAP, _TOP = 860, 210, 18, 34, 54
_OURS, _BOUND, _THEIRS = "#1b7f5c", "#d9dee4", "#9aa5b1"
OURS = "deployctl"


def bars(
    title: str,
    groups: dict[str, dict[str, float]],
    *,
    first: int = 0,
    most_first: bool = False,
    bound: str = "",
) -> str:
    """An SVG: group → name → value. The axis begins at 10 to the `first`; `bound` is the name of what nobody can be better than."""
    most = max((value for means in groups.values() for value in means.values()), default=1.0)
    decades = max(1, math.ceil(math.log10(max(most, 10))) - first)
    scale = (_WIDTH - _NAME - 90) / decades
    lines, y = [], _TOP
    for group, means in groups.items():
        lines.append(f'<text x="10" y="{y + 4}" font-weight="bold">{group}</text>')
        y += 14
        for name, value in sorted(means.items(), key=lambda item: item[1], reverse=most_first):
            width = max(2.0, scale * (math.log10(max(value, 10.0**first)) - first))
            colour = _OURS if name == OURS else _BOUND if name == bound else _THEIRS
            lines += [
                f'<text x="{_NAME - 8}" y="{y + 13}" text-anchor="end">{name}</text>',
                f'<rect x="{_NAME}" y="{y}" width="{width:.0f}" height="{_BAR - 4}" fill="{colour}"/>',
                f'<text x="{_NAME + width + 6:.0f}" y="{y + 12}">{value:,.0f}</text>',
            ]
            y += _BAR
        y += _GAP
    grid = [
        f'<path d="M{_NAME + scale * decade:.0f} {_TOP}V{y - _GAP}" stroke="#e3e7eb"/>'
        f'<text x="{_NAME + scale * decade:.0f}" y="{y - _GAP + 16}" text-anchor="middle" fill="#667">{10 ** (decade + first):,}</text>'
        for decade in range(decades + 1)
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="10" y="24" font-size="15">{title}</text>'
    )
    return "\n".join([head, *grid, *lines, "</svg>\n"])
