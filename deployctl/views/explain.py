"""Why a rollout ended as it did, on one screen: the sentence, the metrics, what would have changed it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.text import Text

from deployctl.views.console import Layout
from deployctl.views.events import event_line
from deployctl.views.status import PHASE_STYLES, metric_lines, phase_words

LAST_EVENTS = 8

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
