"""Several services at once: a table of them for a terminal, and one line for each in a log.

Values in, lines out. Columns are as wide as what is in them; where the terminal is too narrow for all, the least needed go first, then the
address stands on a line of its own, then every service is a short paragraph. Nothing is ever cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.text import Text

from deployctl.views import figures
from deployctl.views.console import Layout, fold, terminal_rows
from deployctl.views.status import PHASE_STYLES, phase_words

STATE_STYLES = {"running": "green", "stopped": "dim", "not answering": "bold red", "unreadable": "bold red"}
NONE = "-"
PEOPLE = "people"
GAP = 2
WITHIN = "\xa0"
"""Stands for a blank at which no line is to be broken."""


Row = dict[str, Any]

LESS_NEEDED = ("strategy", "step")
"""Columns that a narrow terminal does without, in this order."""


def service_lines(rows: list[Row], layout: Layout) -> list[Text]:
    """The table with its header."""
    names = [*COLUMNS]
    for dropped in (None, *LESS_NEEDED):
        names = [name for name in names if name != dropped]
        if not layout.edge or _width(rows, names) <= layout.width:
            return _table(rows, names)
    without = [name for name in names if name != "url"]
    if _width(rows, without) <= layout.width:
        return _table(rows, without, below="url")
    return [line for row in rows for line in _paragraph(row, layout)]


def service_line(row: Row) -> str:
    """One service on one line, for a log: what is not there is not said."""
    step, live = _step(row), _live(row)
    said = [
        str(row["service"]),
        str(row["state"]),
        {NONE: "", PEOPLE: "people decide"}.get(live, f"version {live}"),
        _phase(row) if row["state"] == "running" else "",
        f"step {step}" if step != NONE else "",
        _weight(row) if _open(row) else "",
        _strategy(row) if _open(row) else "",
        str(row.get("url") or ""),
    ]
    return "  ".join(word for word in said if word)


def rows_that_fit(rows: list[Row], layout: Layout, height: int) -> list[Text]:
    """The table in at most so many rows of the terminal: where not all services fit, those in need of a look come first."""
    lines = service_lines(rows, layout)
    if not rows or _height(lines, layout) <= height:
        return lines
    first = sorted(rows, key=_calm)
    shown = min(len(rows) - 1, height)
    while True:
        chosen = {row["service"] for row in first[:shown]}
        lines = service_lines([row for row in rows if row["service"] in chosen], layout)
        if shown == 1 or _height(lines, layout) < height:
            return [*lines, Text(f"and {len(rows) - shown} more: deployctl list", style="dim")]
        shown -= 1


def _calm(row: Row) -> tuple[bool, bool, bool]:
    """How little a service needs a look: one that does not answer most, then one with a rollout, one that is stopped least."""
    return row["state"] in {"running", "stopped"}, not _open(row), row["state"] == "stopped"


def _height(lines: list[Text], layout: Layout) -> int:
    return sum(terminal_rows(line.cell_len, layout) for line in lines)


def _state(row: Row) -> str:
    return str(row["state"])


def _live(row: Row) -> str:
    if row["state"] != "running":
        return NONE
    return PEOPLE if row.get("live") is None else str(row["live"])


def _phase(row: Row) -> str:
    return phase_words(row.get("phase")) if row["state"] == "running" else NONE


def _open(row: Row) -> bool:
    return bool(row.get("rollout")) and not row.get("finished")


def _step(row: Row) -> str:
    return f"{row['step']} of {row['steps']}" if _open(row) and row.get("steps") else NONE


def _weight(row: Row) -> str:
    if not _open(row):
        return NONE
    return f"copies {row['mirror']:g} %" if row.get("mirror") else figures.weight(row.get("weight"))


def _strategy(row: Row) -> str:
    return str(row["strategy"]) if _open(row) else NONE


COLUMNS: dict[str, Callable[[Row], str]] = {
    "service": lambda row: str(row["service"]),
    "state": _state,
    "live": _live,
    "phase": _phase,
    "step": _step,
    "weight": _weight,
    "strategy": _strategy,
    "url": lambda row: str(row.get("url") or NONE),
}
STYLES: dict[str, Callable[[Row], str]] = {
    "service": lambda _row: "bold",
    "state": lambda row: STATE_STYLES.get(row["state"], ""),
    "phase": lambda row: PHASE_STYLES.get(str(row.get("phase")), ""),
}


def _widths(rows: list[Row], names: list[str]) -> list[int]:
    return [max(len(name), *(len(COLUMNS[name](row)) for row in rows)) for name in names]


def _width(rows: list[Row], names: list[str]) -> int:
    return sum(_widths(rows, names)) + GAP * (len(names) - 1) if rows else 0


def _table(rows: list[Row], names: list[str], below: str | None = None) -> list[Text]:
    if not rows:
        return []
    widths = _widths(rows, names)
    lines = [_line((name.ljust(width), "dim") for name, width in zip(names, widths, strict=True))]
    for row in rows:
        cells = zip(names, widths, strict=True)
        lines.append(_line((COLUMNS[name](row).ljust(width), _style(name, row)) for name, width in cells))
        if below is not None and (words := COLUMNS[below](row)) != NONE:
            lines.append(Text(f"  {words}"))
    return lines


def _line(cells: Any) -> Text:
    line = Text()
    for number, (words, style) in enumerate(cells):
        line.append(" " * GAP if number else "")
        line.append(words, style=style)
    line.rstrip()
    return line


def _style(name: str, row: Row) -> str:
    return STYLES[name](row) if name in STYLES else ""


def _paragraph(row: Row, layout: Layout) -> list[Text]:
    """For a terminal that is narrower than any table."""
    _, *said = service_line(row | {"url": None}).split("  ")
    facts = Text("  " + ", ".join(fact.replace(" ", WITHIN) for fact in said))
    lines = [Text(str(row["service"]), style="bold")]
    lines += [Text(line.plain.replace(WITHIN, " ")) for line in fold(facts, 2, layout)]
    return lines + ([Text(f"  {row['url']}")] if row.get("url") else [])
