"""The rollouts of a service, one event per line, with the evidence under each decision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.text import Text

from deployctl.views import figures
from deployctl.views.events import event_line
from deployctl.views.status import PHASE_STYLES, VERDICT_STYLES, evidence_of, label, phase_words, verdict_of

Document = dict[str, Any]


def history_lines(rollouts: list[Document]) -> Iterator[Text]:
    """Every rollout with its events, the oldest first."""
    for number, rollout in enumerate(rollouts):
        if number:
            yield Text()
        yield _headline(rollout)
        for event in rollout.get("events") or []:
            yield Text(f"  {event_line(event)}")
            for metric in (event.get("verdict") or {}).get("metrics") or []:
                yield _metric(metric)


def _headline(rollout: Document) -> Text:
    line = Text(f"rollout {rollout.get('rollout')}", style="bold")
    versions = f"{label(rollout.get('baseline'))} → {label(rollout.get('candidate'))}"
    line.append(f"  {rollout.get('strategy') or 'canary'}  {versions}  ", style="not bold")
    phase = str(rollout.get("phase"))
    line.append(phase_words(phase), style=PHASE_STYLES.get(phase, ""))
    if not rollout.get("finished"):
        line.append("  not finished", style="dim not bold")
    return line


def _metric(metric: Document) -> Text:
    verdict = verdict_of(metric)
    line = Text(f"      {metric.get('name') or '?':<18}")
    line.append(f"{verdict:<12}", style=VERDICT_STYLES.get(verdict, ""))
    told = "  ".join(
        f"{kind} {figures.evidence(value, threshold)}" for kind, value, threshold in evidence_of(metric)
    )
    line.append(
        f"  baseline {figures.arm(metric.get('baseline'))}, candidate {figures.arm(metric.get('candidate'))}"
        f"  effect {figures.effect(metric.get('effect'), metric.get('interval'))}  {told}"
    )
    return line
