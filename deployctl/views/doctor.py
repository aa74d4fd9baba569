"""What doctor found, for people: a line for each thing that was looked at, and under what is not right what to try.

Values in, lines out; a line that does not fit is broken between words, and nothing is cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from rich.text import Text

from deployctl.views.console import Layout, fold

STYLES = {"ok": "green", "warning": "bold yellow", "problem": "bold red"}
NARROW = 60
"""Below it what was found stands on a line of its own."""

Document = dict[str, Any]


def doctor_lines(told: Document, layout: Layout) -> Iterator[Text]:
    """The machine first, then one service after the other, then how many of each there are."""
    checks: list[Document] = told["checks"]
    wide = max((len(check["name"]) for check in checks), default=0)
    for service, group in groupby(checks, key=lambda check: check["service"]):
        yield Text(f"{service}" if service else f"this machine, deployctl {told['release']}", style="bold")
        for check in group:
            yield from _check(check, wide, layout)
    yield _sum(told)


def _check(check: Document, wide: int, layout: Layout) -> Iterator[Text]:
    result = str(check["result"])
    head = Text("  ")
    head.append(f"{result:<7}", style=STYLES[result])
    head.append(f"  {check['name'].ljust(wide)}")
    broad = layout.width >= NARROW
    indent = head.cell_len + 2 if broad else 4
    found = Text(check["found"], style="dim" if result == "ok" else "")
    if broad:
        yield from fold(head.append("  ").append_text(found), indent, layout)
    else:
        head.rstrip()
        yield head
        yield from _indented(found, indent, indent, layout)
    if check["advice"]:
        yield from _indented(Text(f"try: {check['advice']}", style="cyan"), indent, indent + 5, layout)


def _indented(line: Text, first: int, others: int, layout: Layout) -> Iterator[Text]:
    line.pad_left(first)
    return fold(line, others, layout)


def _sum(told: Document) -> Text:
    problems, warnings = told["problems"], told["warnings"]
    if not problems and not warnings:
        return Text("nothing is wrong", style="bold green")
    parts = [_number(problems, "problem"), _number(warnings, "warning")]
    return Text(", ".join(part for part in parts if part), style=STYLES["problem" if problems else "warning"])


def _number(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}" if number else ""
