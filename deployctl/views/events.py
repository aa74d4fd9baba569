"""An event on one line, and what a rollout's end means, in the words of the screen, the log and `history`."""

from __future__ import annotations

from typing import Any

from deployctl.views import figures
from deployctl.views.quoting import one_line

Document = dict[str, Any]


def event_line(event: Document) -> str:
    """Time, phase, weight, step, words. The time is the wall clock's, in UTC; `+s` is rollout time."""
    phase = str(event.get("phase") or figures.UNKNOWN).replace("_", " ")
    where = f"{phase:<11}  {figures.weight(event.get('weight')):>6}"
    return f"{_clock(event)}  {_elapsed(event)}  {where}  {_step(event):<9}  {words_of(event)}"


def event_words(event: Document, width: int) -> str:
    """The line where it fits; on a narrow screen only time, weight and words, as the status above says the rest."""
    line = event_line(event)
    if len(line) <= width:
        return line
    return f"{_clock(event)}  {figures.weight(event.get('weight')):>6}  {words_of(event)}"


def words_of(event: Document) -> str:
    """What happened, why, and who said so when it was a person or a webhook."""
    kind = str(event.get("kind") or "event").replace("_", " ")
    reason = one_line(str(event.get("reason") or ""))
    words = f"{kind}: {reason}" if reason else kind
    by = one_line(str(event.get("by") or ""))
    return f"{words} ({by})" if by.startswith(("person", "webhook:")) else words


def _clock(event: Document) -> str:
    """`2026-01-01T12:00:01.5Z` as `12:00:01`."""
    wall = str(event.get("wall") or "")
    return wall[11:19] if len(wall) >= 19 else "--:--:--"


def _elapsed(event: Document) -> str:
    at = event.get("at")
    return f"{f'+{at:.1f}s' if isinstance(at, int | float) else '':>9}"


def _step(event: Document) -> str:
    step, steps = event.get("step"), event.get("steps")
    if step is None or not steps:
        return ""
    return f"step {step}/{len(steps) if isinstance(steps, list) else steps}"
