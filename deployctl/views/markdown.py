"""A command's end as Markdown, for the page of a pipeline: the verdict first, the metrics, what happened, and how to go on.

Never longer than asked for: what is left out first are the oldest events.
"""

from __future__ import annotations

from collections.abc import Iterator

from deployctl.views import figures
from deployctl.views.ending import LONGEST_WORDS, Document, Ending, Note, name_of
from deployctl.views.events import words_of
from deployctl.views.quoting import indented, markdown_code, markdown_text, shortened
from deployctl.views.status import evidence_of, verdict_of

_MOST = (1000, 200, 50, 10, 0)
"""How many events, notes and details are tried, until it fits."""


def markdown(ending: Ending, longest: int) -> str:
    """At most `longest` bytes of UTF-8; empty where not even the verdict fits."""
    for most in _MOST:
        text = "\n".join([*_head(ending), *_body(ending, most), *_after(ending)]) + "\n\n"
        if len(text.encode()) <= longest:
            return text
    title = _title(ending) + "\n\n"
    return title if len(title.encode()) <= longest else ""


def _title(ending: Ending) -> str:
    return f"### {_prose(f'{ending.service or ending.command}: {ending.title}')}"


def _head(ending: Ending) -> Iterator[str]:
    yield _title(ending)
    yield ""
    if ending.sentence and ending.sentence != ending.title:
        yield f"**{_prose(ending.sentence)}**"
        yield ""
    facts = [f"exit code {ending.exit_code} of {markdown_code(f'deployctl {ending.command}')}"]
    yield "; ".join([*([_prose(ending.where)] if ending.where else []), *facts])
    if ending.metrics:
        yield ""
        yield from _metrics(ending.metrics)


def _metrics(metrics: tuple[Document, ...]) -> Iterator[str]:
    kinds = list(dict.fromkeys(kind for metric in metrics for kind, _, _ in evidence_of(metric)))
    heads = ["metric", "verdict", "baseline, bad", "candidate, bad", "effect [interval]", *kinds]
    yield _row(heads)
    yield "|" + " --- |" * len(heads)
    for metric in metrics:
        told = {kind: figures.evidence(value, threshold) for kind, value, threshold in evidence_of(metric)}
        verdict = verdict_of(metric)
        yield _row(
            [
                name_of(metric),
                verdict,
                figures.arm(metric.get("baseline")),
                figures.arm(metric.get("candidate")),
                figures.effect(metric.get("effect"), metric.get("interval")),
                *(told.get(kind, "") for kind in kinds),
            ]
        )


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(_prose(cell) for cell in cells) + " |"


def _body(ending: Ending, most: int) -> Iterator[str]:
    notes = [] if ending.metrics else [note for note in ending.notes if note.message != ending.sentence]
    yield from _listed("What is wrong", [_note(note) for note in notes[:most]], len(notes))
    events = ending.events[-most:] if most else ()
    yield from _listed("What happened", [_event(event) for event in events], len(ending.events))
    # A line that begins with four spaces is code, whatever it holds.
    details = [f"    {indented(shortened(line, LONGEST_WORDS))}" for line in ending.details[:most]]
    yield from _listed("In detail", details, len(ending.details), "")


def _listed(title: str, lines: list[str], of: int, bullet: str = "- ") -> Iterator[str]:
    if not of:
        return
    yield ""
    left_out = f" ({len(lines)} of {of})" if len(lines) < of else ""
    yield f"**{title}**{left_out}"
    yield ""
    yield from (f"{bullet}{line}" for line in lines)


def _note(note: Note) -> str:
    place = note.place
    if place is None:
        return _prose(note.message)
    where = f"{place.file}:{place.line}:{place.column}" if place.line else place.file
    return f"{markdown_code(where)} {_prose(note.message)}"


def _event(event: Document) -> str:
    wall, at = str(event.get("wall") or ""), event.get("at")
    clock = wall[11:19] if len(wall) >= 19 else "--:--:--"
    elapsed = f", {at:.1f} s" if isinstance(at, int | float) else ""
    weight = figures.weight(event.get("weight"))
    return _prose(f"{clock}{elapsed}, {weight}: {words_of(event)}")


def _after(ending: Ending) -> Iterator[str]:
    lines = [f"{_prose(purpose)}: {markdown_code(command)}" for purpose, command in ending.hints]
    yield from _listed("What now", lines, len(lines))


def _prose(text: str) -> str:
    return markdown_text(shortened(text, LONGEST_WORDS))
