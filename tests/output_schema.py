"""What a command prints with `-o json` is held against docs/output.schema.json. The rigs do it for every command that a test runs."""

import json
import subprocess
from functools import cache
from pathlib import Path

import jsonschema_rs

from deployctl.__main__ import wants_json

SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "output.schema.json").read_text("utf-8"))
COMMANDS = SCHEMA["x-commands"]
"""Verb → the documents of which each line of its stdout is one, beside `error`."""


def hold(arguments, stdout):
    """Every line of a command that has ended, where it was asked for JSON."""
    if _held(arguments):
        for line in stdout.splitlines(keepends=True):
            _hold_line(arguments, line)


def hold_document(document, *names):
    """A document against the definitions of these names: AssertionError with every flaw where it is none of them."""
    flaws = {name: [*_validator(name).iter_errors(document)] for name in names}
    if not all(flaws.values()):
        return
    nearest = min(flaws, key=lambda name: len(flaws[name]))
    words = "\n".join(
        f"  at {'/'.join(map(str, one.instance_path))}: {one.message}" for one in flaws[nearest]
    )
    raise AssertionError(f"docs/output.schema.json, {nearest}:\n{words}\n{json.dumps(document)[:2000]}")


class Command(subprocess.Popen):
    """A command that goes on beside the test; what is read of its stdout is held against the schema."""

    def __init__(self, arguments, argv, **more):
        super().__init__(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
        self._arguments = arguments
        if _held(arguments):
            self.stdout = _Held(self.stdout, arguments)

    def communicate(self, *arguments, **more):
        out, err = super().communicate(*arguments, **more)
        hold(self._arguments, out or "")
        return out, err


class _Held:
    """A stream of lines, each held against the schema as it is read."""

    def __init__(self, stream, arguments):
        self._stream = stream
        self._arguments = arguments

    def readline(self):
        line = self._stream.readline()
        _hold_line(self._arguments, line)
        return line

    def __iter__(self):
        return iter(self.readline, "")

    def read(self):
        return "".join(self)

    def __getattr__(self, name):
        return getattr(self._stream, name)


def _held(arguments):
    """`history --outcomes` prints a log for `replay`, whatever it is asked for."""
    return wants_json([str(one) for one in arguments]) and "--outcomes" not in _options(arguments, "history")


def _hold_line(arguments, line):
    if not line.endswith("\n"):  # the end, or a command that was killed in mid-line
        return
    assert "\x1b" not in line, line
    hold_document(json.loads(line, parse_constant=_no_json), *COMMANDS.get(verb_of(arguments), ()), "error")


def verb_of(arguments):
    """The verb of a command line, None where there is none that we know."""
    words = [str(one) for one in arguments if one != "--debug"]
    return next((verb for verb in COMMANDS if words[: len(verb.split())] == verb.split()), None)


def _options(arguments, verb):
    return [str(one) for one in arguments] if verb_of(arguments) == verb else []


def _no_json(constant):
    raise AssertionError(f"{constant} is no JSON")


@cache
def _validator(name):
    return jsonschema_rs.validator_for(
        {"$schema": SCHEMA["$schema"], "$ref": f"#/$defs/{name}", "$defs": SCHEMA["$defs"]},
        validate_formats=True,
    )
