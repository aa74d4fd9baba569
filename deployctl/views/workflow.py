"""A command's end as pipelines read it: annotations and outputs of GitHub Actions, a dotenv report of GitLab.

The formats are those of the runner's source (ActionCommand.cs, FileCommandManager.cs) and of GitLab's ParseDotenvArtifactService.
"""

from __future__ import annotations

from collections.abc import Iterator

from deployctl.views.ending import LONGEST_WORDS, Ending, Note
from deployctl.views.quoting import command_data, command_property, dotenv_value, one_line, shortened

MOST_NOTES = 10
"""So many annotations of a kind GitHub shows for a step."""
LONGEST_REPORT = 60_000
"""Bytes of the output `report`: a comment takes 65,536 characters, a variable of the environment 128 KiB."""


def workflow_commands(ending: Ending) -> list[str]:
    """Workflow commands, one line each; at most ten of a kind, and the last of too many says how many there are."""
    lines = []
    for level in ("error", "warning", "notice"):
        notes = [note for note in ending.notes if note.level == level]
        if len(notes) > MOST_NOTES:
            left = len(notes) - MOST_NOTES + 1
            words = f"and {left} more; the summary of this step lists what fits"
            notes = [*notes[: MOST_NOTES - 1], Note(level, notes[-1].title, words)]
        lines += [_command(note) for note in notes]
    return lines


def _command(note: Note) -> str:
    place = note.place
    properties = {} if place is None else {"file": one_line(place.file)}
    if place is not None and place.line:
        properties |= {"line": str(place.line), "col": str(place.column)}
    properties["title"] = _words(note.title)
    written = ",".join(f"{name}={command_property(value)}" for name, value in properties.items() if value)
    return f"::{note.level} {written}::{command_data(_words(note.message))}"


def outputs(ending: Ending, report: str, delimiter: str) -> str:
    """What is appended to `$GITHUB_OUTPUT`. `delimiter` is a line that nobody could guess."""
    values = {**_values(ending), "report": report.rstrip("\n")}
    return "".join(f"{name}<<{delimiter}\n{value}\n{delimiter}\n" for name, value in values.items())


def dotenv(ending: Ending) -> str:
    """The variables for later jobs of a GitLab pipeline; no empty line, no quotes, nothing that would be expanded."""
    named = {**_values(ending), "service": ending.service, "candidate": ending.candidate}
    return "".join(f"{line}\n" for line in _variables(named))


def _variables(values: dict[str, str]) -> Iterator[str]:
    for name, value in values.items():
        yield f"DEPLOYCTL_{name.upper()}={dotenv_value(value)}"


def _values(ending: Ending) -> dict[str, str]:
    told = {
        "verdict": ending.verdict,
        "phase": ending.phase,
        "rollout": ending.rollout,
        "exit_code": str(ending.exit_code),
    }
    return {name: one_line(value) for name, value in told.items()}


def _words(text: str) -> str:
    return shortened(one_line(text), LONGEST_WORDS)
