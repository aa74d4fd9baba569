"""docs/cli.md from the commands themselves: what `--help` says of every verb, on one page. Written by nobody's hand.

python -m deployctl.cli.reference > docs/cli.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import typer

from deployctl.cli.app import app

HEAD = """\
# The commands

<!-- made by `python -m deployctl.cli.reference > docs/cli.md`: change the help texts in deployctl/cli, not this page -->

What `deployctl COMMAND --help` says, on one page. NAME is a service, by its `metadata.name` or by its manifest; it may be left out where
exactly one service runs. Every command writes data to stdout and everything else to stderr, takes `-o json` (one document,
or one event per line while following), honours `NO_COLOR`,
waits for no key where stdin is no terminal, and ends with one of [ten exit codes](../README.md#exit-codes). State lives in
`$DEPLOYCTL_STATE_DIR`, else in `$XDG_STATE_HOME/deployctl` or `~/.local/state/deployctl`. From another machine: `ssh box deployctl …`.

Completion with the names of your services, versions and rollouts, for good:

| shell | |
|---|---|
| bash | `source <(deployctl completion bash)` in `~/.bashrc` |
| zsh | `source <(deployctl completion zsh)` in `~/.zshrc`, after `compinit` |
| fish | `deployctl completion fish > ~/.config/fish/completions/deployctl.fish`, once |
"""

EVERYWHERE = {"output", "help"}
"""What every verb takes; the head of the page says it once."""

KINDS = {"float": "NUMBER", "int": "NUMBER", "str": "TEXT"}
"""How a value without a name of its own is called."""

Row = tuple[str, str, str]


def page() -> str:
    """The whole page as Markdown."""
    root = typer.main.get_command(app)
    context = root.make_context("deployctl", [], resilient_parsing=True)
    verbs = list(_verbs(root, context))
    index = [f"| [`{path}`](#{path.replace(' ', '-')}) | {_cell(verb.help)} |" for path, verb, _ in verbs]
    pieces = [HEAD, "\n".join(["| command | |", "|---|---|", *index]) + "\n"]
    pieces += ["\n".join(_described(path, verb, inside)) for path, verb, inside in verbs]
    return "\n".join(pieces)


def _verbs(group: Any, context: Any) -> Iterator[tuple[str, Any, Any]]:
    """Every verb with the words that lead to it, groups opened, in the order of `--help`."""
    for name, command in group.commands.items():
        inside = command.make_context(name, [], parent=context, resilient_parsing=True)
        if hasattr(command, "commands"):
            yield from _verbs(command, inside)
        elif not command.hidden:
            yield inside.command_path.removeprefix("deployctl "), command, inside


def _described(path: str, verb: Any, context: Any) -> Iterator[str]:
    parameters = [one for one in verb.get_params(context) if not (one.hidden or one.name in EVERYWHERE)]
    places = [_place(one) for one in parameters if one.param_type_name == "argument"]
    options = [] if len(places) == len(parameters) else ["[OPTIONS]"]
    yield f"## {path}\n"
    yield f"{verb.help}\n"
    yield f"    {' '.join([context.command_path, *places, *options])}\n"
    if parameters:
        yield "| | default | |"
        yield "|---|---|---|"
    for parameter in parameters:
        name, default, words = map(_cell, _row(parameter, context))
        yield f"| `{name}` | {default} | {words} |"
    example = re.sub(r"\A\x08\nExample:\n", "", verb.epilog or "")
    if parameters:
        yield ""
    yield "Example:\n"
    yield from (f"    {line.strip()}" for line in example.splitlines())
    yield ""


def _place(argument: Any) -> str:
    """How an argument stands in the usage: `NAME`, or `[NAME]` where it may be left out."""
    metavar = str(argument.metavar)
    return metavar if argument.required or metavar.startswith("[") else f"[{metavar}]"


def _row(parameter: Any, context: Any) -> Row:
    """Name, default and meaning, as `--help` has them in one line."""
    name, words = parameter.get_help_record(context)
    if parameter.param_type_name == "argument":
        name = parameter.metavar.strip("[]")
    name = re.sub(r"<([a-z]+)>", lambda kind: KINDS.get(kind[1], kind[1]), name)
    ending = re.search(r"  \[(?:default: )?(.*)\]\Z", words)
    if ending is None:
        return name, "", words
    default = ending[1].removeprefix("(").removesuffix(")")
    return name, default, words[: ending.start()]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    """Write the page to stdout."""
    sys.stdout.write(page())


if __name__ == "__main__":
    main()
