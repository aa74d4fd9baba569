"""What is wrong with a manifest, where, and what to write instead: pydantic's findings in the user's words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from deployctl.errors import InvalidError
from deployctl.manifest.loader import Mark, Path, Tree
from deployctl.manifest.quantities import shown, unknown
from deployctl.manifest.schema import LATER_ANYWHERE, LATER_WORDS, UnknownNameError, section_at


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to correct. Lines and columns start at 1."""

    source: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}: {self.message}"


class ManifestError(InvalidError):
    """The manifest is invalid; `problems` has everything that is wrong with it, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems), key=lambda one: (one.line, one.column, one.message)))
        super().__init__("\n".join(map(str, self.problems)))


def findings(error: ValidationError, tree: Tree) -> Iterator[tuple[Mark, str]]:
    """The position and the wording of everything that pydantic found."""
    for detail in error.errors(include_url=False):
        path: Path = detail["loc"]
        if not _is_unread(path, tree):
            yield _position(detail, tree), _worded(detail, tree)


def _is_unread(path: Path, tree: Tree) -> bool:
    """Whether something around this value was already reported, so that its meaning is open."""
    return any(path[:end] in tree.unread for end in range(len(path) + 1))


def _position(detail: ErrorDetails, tree: Tree) -> Mark:
    path = detail["loc"]
    if detail["type"] == "missing":
        return tree.at_key(path[:-1])
    return tree.at_key(path) if detail["type"] == "extra_forbidden" else tree.at_value(path)


def _worded(detail: ErrorDetails, tree: Tree) -> str:
    path = detail["loc"]
    name = next((str(key) for key in reversed(path) if isinstance(key, str)), "the manifest")
    match detail["type"]:
        case "missing":
            where = next((f" in {key!r}" for key in reversed(path[:-1]) if isinstance(key, str)), "")
            return f"missing key {name!r}{where}"
        case "extra_forbidden":
            return _unknown_key(path)
        case "string_type":
            return f"{name}: must be text{_quoted(path, tree)}"
        case "literal_error":
            return _unknown_word(name, detail)
        case "value_error":
            error = detail["ctx"]["error"]
            return str(error) if isinstance(error, UnknownNameError) else f"{name}: {error}"
    plain = PLAIN.get(detail["type"])
    if plain is None:
        return f"{name}: {detail['msg']}"
    return f"{name}: {plain.format(**detail.get('ctx', {}), written=shown(detail['input']))}"


PLAIN = {
    "model_type": "must be a mapping of keys, not {written}",
    "dict_type": "must be a mapping of keys, not {written}",
    "tuple_type": "must be a list, not {written}",
    "bool_type": "must be true or false, not {written}",
    "int_type": "must be a whole number, not {written}",
    "less_than_equal": "at most {le}, not {written}",
    "greater_than_equal": "at least {ge}, not {written}",
}
"""pydantic's findings that need no more than other words."""


def _unknown_key(path: Path) -> str:
    key, section = str(path[-1]), section_at(path[:-1])
    if key in section.later or key in LATER_ANYWHERE:
        return f"key {key!r} is not supported yet"
    return unknown("key", key, [str(field.alias) for field in section.model_fields.values()])


def _unknown_word(name: str, detail: ErrorDetails) -> str:
    known = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
    word = detail["input"]
    if not isinstance(word, str):
        return f"{name}: must be one of {', '.join(known)}, not {shown(word)}"
    if word in LATER_WORDS:
        return f"{name}: {word!r} is not supported yet (known: {', '.join(known)})"
    return unknown(name, word, known)


def _quoted(path: Path, tree: Tree) -> str:
    """How to write the same thing as text, from what stands in the file: 1.10 is not the number 1.1."""
    if path not in tree.texts:
        return ", not a list or a mapping"
    return f'; put it in quotes: "{tree.texts[path]}"'
