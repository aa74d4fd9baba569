"""Why a rollout ended as it did, on one screen: the sentence, the metrics, what would have changed it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.text import Text

from deployctl.views import figures
from deployctl.views.console import Layout
from deployctl.views.events import event_line
from deployctl.views.status import PHASE_STYLES, evidence_of, metric_lines, phase_words, verdict_of

LAST_EVENTS = 8

Document = dict[str, Any]


def explain_lines(document: Document, layout: Layout) -> Iterator[Text]:
    """The sentence first; a reader in a hurry stops there."""
    phase = str(document.get("phase"))
    line = Text(phase_words(phase), style=PHASE_STYLES.get(phase, "bold"))
    line.append(f": {document.get('sentence') or 'no decision yet'}", style="default not bold")
    yield line
    yield Text(
        f"rollout {document.get('rollout')}, decided by {document.get('decided_by') or 'nobody yet'}",
        style="dim",
    )
    metrics = document.get("metrics") or []
    if metrics:
        yield Text()
        yield from metric_lines(metrics, layout)
    if changes := [*_what_would_have_changed_it(phase, metrics)]:
        yield Text()
        yield Text("what would have changed it", style="bold")
        yield from (Text(f"  {words}") for words in changes)
    if events := document.get("events") or []:
        yield Text()
        yield Text(
            "what happened" if len(events) <= LAST_EVENTS else f"the last {LAST_EVENTS} events", style="bold"
        )
        yield from (Text(f"  {event_line(event)}") for event in events[-LAST_EVENTS:])


def _what_would_have_changed_it(phase: str, metrics: list[Document]) -> Iterator[str]:
    for metric in metrics:
        told = {kind: (value, threshold) for kind, value, threshold in evidence_of(metric)}
        harm, harm_threshold = told.get("harm") or (None, None)
        safe, safe_threshold = told.get("safe") or told.get("evidence") or (None, None)
        match verdict_of(metric):
            case "fail" if harm is not None and harm_threshold is not None:
                yield (
                    f"{metric['name']}: fewer bad answers of the candidate; its evidence of harm is "
                    f"{figures.evidence(harm, harm_threshold)}, and below {figures.e_value(harm_threshold)} "
                    "nothing is rolled back"
                )
            case "inconclusive" if metric.get("needed"):
                yield f"{metric['name']}: about {figures.count(metric['needed'])} more answers of the candidate"
            case "inconclusive" if safe_threshold is not None:
                yield f"{metric['name']}: evidence of safety is {figures.evidence(safe, safe_threshold)}; more answers, or a wider margin"
            case "pass" if phase == "promoted" and harm_threshold is not None:
                yield f"{metric['name']}: evidence of harm at its threshold, it is {figures.evidence(harm, harm_threshold)}"
