"""How a command ended, as far as a pipeline wants to know: one value, from which the reports are made.

It says only what was seen: where the watching ended before the rollout did, there is no verdict.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from deployctl.views import figures
from deployctl.views.status import evidence_of, needed_words, phase_words, verdict_of

Document = dict[str, Any]

LONGEST_WORDS = 2000
"""Characters of a reason or a message; reports are read by people."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a file of the user; `line` and `column` start at 1, 0 where only the file is known."""

    file: str
    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: `result` is pass, fail, inconclusive or error, `why` says it in a sentence."""

    name: str
    result: str
    why: str = ""
    facts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Note:
    """One thing to tell beside the code: `level` is error, warning or notice."""

    level: str
    title: str
    message: str
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """A command that is over. `title` is what came of it in a few words; `checks` and `notes` what was looked at and what to tell of it;
    `details` what the command printed instead of events; `hints` pairs of a purpose and a command line. `events` and `metrics` are
    documents as in `-o json`.
    """

    command: str
    exit_code: int
    title: str
    sentence: str
    verdict: str = "none"
    service: str = ""
    rollout: str = ""
    phase: str = ""
    weight: float | None = None
    baseline: str = ""
    candidate: str = ""
    metrics: tuple[Document, ...] = ()
    events: tuple[Document, ...] = ()
    checks: tuple[Check, ...] = ()
    notes: tuple[Note, ...] = ()
    details: tuple[str, ...] = ()
    hints: tuple[tuple[str, str], ...] = ()

    @property
    def where(self) -> str:
        """Which rollout it is about and where that stands, in a line; empty where there is none."""
        if not self.rollout:
            return ""
        weight = "" if self.weight is None else f" at {figures.weight(self.weight)}"
        over = f" over {self.baseline}" if self.baseline else ""
        versions = f"version {self.candidate}{over}, " if self.candidate else ""
        return f"rollout {self.rollout}: {versions}{phase_words(self.phase or 'unknown')}{weight}"


def metric_check(metric: Document) -> Check:
    """What the gate says of one metric."""
    return Check(name_of(metric), verdict_of(metric), metric_sentence(metric), tuple(metric_facts(metric)))


def name_of(metric: Document) -> str:
    """The metric, and of which version it speaks where there are several."""
    name = str(metric.get("name") or figures.UNKNOWN)
    return f"{name} (version {metric['version']})" if metric.get("version") else name


def metric_sentence(metric: Document) -> str:
    """What the gate says of this metric, and what is still missing."""
    words = str(metric.get("words") or f"{verdict_of(metric)}: {_effect(metric)}")
    needed = needed_words(metric)
    return f"{words}; {needed}" if needed and needed not in words else words


def metric_facts(metric: Document) -> Iterator[str]:
    """Counts of both arms, effect with interval, evidence against its threshold; one line each."""
    yield f"baseline: {figures.arm(metric.get('baseline'))} bad"
    yield f"candidate: {figures.arm(metric.get('candidate'))} bad"
    yield f"effect: {_effect(metric)}"
    for kind, value, threshold in evidence_of(metric):
        words = "evidence" if kind == "evidence" else f"evidence of {'harm' if kind == 'harm' else 'safety'}"
        yield f"{words}: {figures.evidence(value, threshold)}"


def _effect(metric: Document) -> str:
    return figures.effect(metric.get("effect"), metric.get("interval"))
