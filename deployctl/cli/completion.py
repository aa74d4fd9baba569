"""completion: what a shell needs to finish a half-typed command, and the answers to it.

The script of a shell calls this program again with what was typed. The one rule: an answer only reads, in the state directory and in the
manifest that was named. It asks no service, starts nothing, says nothing on stderr, and imports nothing heavy.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from deployctl.cli.options import AsOutput, Output
from deployctl.errors import DeployctlError

ASKED = "_DEPLOYCTL_COMPLETE"
"""Set by the scripts, to the name of the shell."""

MANIFESTS, ANY_FILE = "*.y*ml", "*"
MAX_BYTES = 256 * 1024
TAIL_BYTES = 32 * 2**20
"""So much of a journal is looked at: what is older than that nobody completes."""

Item = tuple[str, str, str]
"""("word", what may stand here, what it means), or ("files", the pattern of their names, "")."""

Answers = Callable[[dict[str, str]], Iterable[Item]]
"""From the values of the other parameters to what may stand here."""


class Shell(StrEnum):
    """Shells that have a script."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="bash|zsh|fish", help="Which shell.", show_default=False)],
    output: AsOutput = Output.TEXT,
) -> None:
    """Print the script that completes in your shell."""
    from importlib.resources import files  # noqa: PLC0415 - --help does without

    script = files("deployctl.cli").joinpath("shells", shell.value).read_text("utf-8")
    if output is Output.JSON:
        script = json.dumps({"schema_version": 1, "shell": shell.value, "script": script}) + "\n"
    sys.stdout.write(script)


def answer(app: typer.Typer, words: list[str]) -> None:
    """One line for each thing that may stand where the last of these words is; none where that is unknown."""
    with suppress(Exception):
        typed = words[-1].rpartition("=")[2] if words else ""
        for kind, value, meaning in _items(app, words):
            if kind != "word" or value.startswith(typed):
                sys.stdout.write(f"{kind}\t{value}\t{' '.join(meaning.split())}\n")


def _items(app: typer.Typer, words: list[str]) -> Iterator[Item]:
    *before, last = [word for word in words if word != "="] or [""]  # bash makes three words of --output=json
    if words[-1:] == ["="]:
        before, last = [*before, last], ""
    line = _Line(typer.main.get_command(app))
    for word in before:
        line.take(word)
    name, equals, value = last.partition("=")
    option = line.waiting or (line.options.get(name) if equals else None)
    if option is not None:
        yield from _values(option, value if equals and not line.waiting else last, line.values)
    elif last.startswith("-"):
        yield from (
            ("word", name, one.help or "")
            for name, one in line.options.items()
            if one.name not in line.values
        )
    elif line.verbs is not None:
        yield from (("word", name, verb.help or "") for name, verb in line.verbs.items())
    elif (argument := line.argument) is not None:
        yield from _values(argument, last, line.values)


class _Line:
    """What was typed so far: the verb that it leads to, and which of its parameters have their value.

    typer's own walk would do, but it converts every value on its way, and for that imports pydantic: 0.1 s at every press of a key.
    """

    def __init__(self, root: Any) -> None:
        self.command = root
        self.waiting: Any = None
        self.values: dict[str, str] = {}

    @property
    def verbs(self) -> dict[str, Any] | None:
        """The verbs below this one; None where arguments follow."""
        return getattr(self.command, "commands", None)

    @property
    def options(self) -> dict[str, Any]:
        found = [one for one in getattr(self.command, "params", ()) if one.param_type_name == "option"]
        return {name: one for one in found if not one.hidden for name in (*one.opts, *one.secondary_opts)}

    @property
    def argument(self) -> Any:
        """The first argument without a value; the last may have any number of them."""
        for one in getattr(self.command, "params", ()):
            if one.param_type_name == "argument" and (one.name not in self.values or one.nargs < 0):
                return one
        return None

    def take(self, word: str) -> None:
        """One word that is finished."""
        if self.waiting is not None:
            self.values[self.waiting.name], self.waiting = word, None
        elif word.startswith("-") and word != "-":
            name, equals, value = word.partition("=")
            option = self.options.get(name)
            if option is not None and (option.is_flag or equals):
                self.values[option.name] = value
            else:
                self.waiting = option
        elif self.verbs is not None:
            self.command = self.verbs.get(word)
        elif (argument := self.argument) is not None:
            self.values[argument.name] = word


def _values(parameter: Any, typed: str, values: dict[str, str]) -> Iterator[Item]:
    answers = ANSWERS.get((parameter.param_type_name, str(parameter.metavar)))
    if answers is not None:
        yield from answers(values)
    else:
        yield from (("word", str(one.value), "") for one in parameter.shell_complete(None, typed))


def _services(_: dict[str, str]) -> Iterator[Item]:
    from deployctl.statedir import list_services, state_dir  # noqa: PLC0415 - only where a service is asked for

    with suppress(DeployctlError):
        yield from (("word", name, "service") for name in list_services(state_dir()))
    yield "files", MANIFESTS, ""


def _versions(values: dict[str, str]) -> Iterator[Item]:
    """Every version that the journal of the service knows, the newest first."""
    found: dict[str, str] = {}
    for name, record in _records(values.get("name")):
        plan = _mapping(record, "event", "plan")
        tried = [record.get("version"), plan.get("candidate"), *plan.get("others", ()), plan.get("baseline")]
        for version in filter(None, tried):
            found.setdefault(version["version"], f"{name}, {version['digest'][:19]}")
    yield from (("word", version, words) for version, words in found.items() if version != "human")


def _rollouts(values: dict[str, str]) -> Iterator[Item]:
    """Every rollout of the service, the newest first."""
    found: dict[str, str] = {}
    for name, record in _records(values.get("name")):
        plan = _mapping(record, "event", "plan")
        if plan and "rollout" in record:
            words = f"{name}, {plan['strategy']} of {plan['candidate']['version']}, {record.get('wall', '')}"
            found.setdefault(record["rollout"], words)
    yield from (("word", rollout, words) for rollout, words in found.items())


def _records(named: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records that name versions, of this service or of all, the newest first; unproven, for this is no decision."""
    from deployctl.statedir import ServiceHome, list_services, state_dir  # noqa: PLC0415 - as above

    state = state_dir()
    for name in list_services(state) if named is None else [_called(named)]:
        with suppress(OSError, DeployctlError), ServiceHome(state, name).journal.open("rb") as journal:
            journal.seek(max(0, journal.seek(0, os.SEEK_END) - TAIL_BYTES))
            for line in reversed(journal.readlines()):
                if b'"plan":{' in line or b'"type":"served"' in line:
                    with suppress(ValueError):
                        yield name, json.loads(line.partition(b" ")[2])


def _called(named: str) -> str:
    """The name of a service, from itself or from its manifest."""
    path = Path(named).expanduser()
    if not named.endswith((".yaml", ".yml")) or not path.is_file():
        return named
    with path.open("rb") as manifest:
        text = manifest.read(MAX_BYTES).decode(errors="replace")
    found = re.search(r"^metadata:\s*(?:\{\s*|\n\s+)name:\s*[\"']?([a-z0-9-]+)", text, re.MULTILINE)
    return found[1] if found else ""


def _mapping(record: dict[str, Any], *path: str) -> dict[str, Any]:
    for key in path:
        record = record.get(key) or {}
    return record


def _words(*words: str) -> Answers:
    return lambda _: [("word", word, "") for word in words]


def _files(pattern: str) -> Answers:
    return lambda _: [("files", pattern, "")]


ANSWERS: dict[tuple[str, str], Answers] = {
    ("argument", "NAME"): _services,
    ("argument", "FILE"): _files(MANIFESTS),
    ("argument", "FILE..."): _files(MANIFESTS),
    ("argument", "FILE|-"): _files(ANY_FILE),
    ("argument", "[DIR]"): _files("/"),
    ("argument", "[canary|shadow|digits-shadow|blue-green]"): _words(
        "canary", "shadow", "digits-shadow", "blue-green"
    ),
    ("option", "VERSION"): _versions,
    ("option", "ID"): _rollouts,
    ("option", "FORMAT"): _words("jsonl", "csv", "label-studio", "label-studio-min"),
    ("option", "FILE"): _files(ANY_FILE),
    ("option", "FILE.jsonl"): _files("*.jsonl"),
}
"""How a parameter is called in `--help` says what may stand there; values of closed sets typer knows itself."""
