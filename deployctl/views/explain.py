"""Why a rollout ended as it did, on one screen: the sentence, the metrics, what would have changed it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from rich.text import Text

from deployctl.views import figures
from deployctl.views.console import Layout
from deployctl.views.events import event_line
from deployctl.views.status import PHASE_STYLES, metric_lines, phase_words

LAST_EVENTS = 8
MIN_POINTS = 3
"""Fewer points are no chart."""

Document = dict[str, Any]


def explain_lines(document: Document, layout: Layout) -> Iterator[Text]:
    """The sentence first; a reader in a hurry stops there."""
    sentence = str(document.get("sentence") or "no decision yet")
    yield Text(sentence, style=PHASE_STYLES.get(str(document.get("phase")), "bold"))
    decided_by = document.get("decided_by") or document.get("by") or "nobody yet"
    yield Text(
        f"rollout {document.get('rollout')}, {phase_words(document.get('phase'))}, decided by {decided_by}"
    )
    metrics = document.get("metrics") or []
    if metrics:
        yield Text()
        yield from metric_lines(metrics, layout)
        yield from _how_to_read(document)
    yield from _over_time(document, layout)
    if change := document.get("would_change"):
        yield Text()
        yield Text("what would have changed it", style="bold")
        yield Text(f"  {change}")
    if events := document.get("events") or []:
        yield Text()
        yield Text(
            "what happened" if len(events) <= LAST_EVENTS else f"the last {LAST_EVENTS} events", style="bold"
        )
        yield from (Text(f"  {event_line(event)}") for event in events[-LAST_EVENTS:])


def _how_to_read(document: Document) -> Iterator[Text]:
    """Evidence in words, for whoever has never met an e-value."""
    alpha, beta = document.get("alpha"), document.get("beta")
    shadow = document.get("strategy") == "shadow"
    fails, passes = ("fails", "pass") if shadow else ("rolls back", "move on")
    if alpha and beta:
        yield Text(
            f"  harm: a candidate that is within its tolerance reaches {1 / alpha:g} in at most {100 * alpha:g} % of rollouts, "
            f"and that {fails}.",
            style="dim",
        )
        afresh = "" if shadow else " afresh at each step,"
        yield Text(
            f"  safe: one that is worse by the margin reaches {1 / beta:g} in at most {100 * beta:g} %; every metric must,"
            f"{afresh} to {passes}.",
            style="dim",
        )


def _over_time(document: Document, layout: Layout) -> Iterator[Text]:
    points = document.get("evidence_over_time") or []
    if len(points) < MIN_POINTS:
        return
    cells = min(60, layout.width - 40)
    yield Text()
    first, last = (float(point.get("at") or 0.0) for point in (points[0], points[-1]))
    span = f"{first:.0f} to {last:.0f} s"
    yield Text(f"evidence over time, {span} (logarithmic)", style="bold")
    for side, words in (("harm", "of harm"), ("safe", "of safety, weakest metric")):
        values = [math.inf if point.get(side) is None else point[side] for point in points]  # JSON's infinity
        line = figures.sparkline(values, cells, ascii_only=layout.ascii_only)
        yield Text(f"  {line}  {words}, highest {figures.e_value(max(values))}")
