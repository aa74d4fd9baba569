"""Bytes to a tree of plain values, by the rules of YAML 1.2, with the position of every key and value.

Nothing is guessed: whatever makes a file mean two things (duplicate keys, anchors, tags, merge keys) is a problem.
Size, depth and number of values are bounded while the parser's events come in, before anything is built.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

from deployctl.manifest.quantities import shown

MAX_BYTES = 256 * 1024
MAX_DEPTH = 20
MAX_VALUES = 20_000
"""PyYAML reads about 30,000 values a second; a manifest that the controller is sent must not stop it for longer."""
MAX_NUMBER_LENGTH = 100

Path = tuple[str | int, ...]
"""Where a value stands: keys and list indexes from the root."""


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """A position as editors count it: line and column start at 1."""

    line: int
    column: int


@dataclass(slots=True)
class Tree:
    """What the file says. `unread` are values whose meaning is open because a problem was reported there."""

    value: object = None
    keys: dict[Path, Mark] = field(default_factory=dict)
    values: dict[Path, Mark] = field(default_factory=dict)
    texts: dict[Path, str] = field(default_factory=dict)
    unread: set[Path] = field(default_factory=set)
    problems: list[tuple[Mark, str]] = field(default_factory=list)

    def at_value(self, path: Path) -> Mark:
        """The position of this value, or of the nearest thing around it that was written."""
        while path not in self.values:
            path = path[:-1]
        return self.values[path]

    def at_key(self, path: Path) -> Mark:
        """The position of the key that leads to this value; a list item has none and stands for itself."""
        return self.keys.get(path) or self.at_value(path)


class BrokenYamlError(Exception):
    """The text cannot be read any further."""

    def __init__(self, mark: Mark, message: str) -> None:
        super().__init__(message)
        self.mark = mark
        self.message = message


def read_yaml(text: bytes) -> Tree:
    """The tree of a manifest; problems that leave the rest readable are in `tree.problems`.

    Raises BrokenYamlError where nothing behind the problem can be trusted.
    """
    builder = _Builder()
    for event in _events(_decoded(text)):
        if not builder.take(event):
            break
    return builder.tree


def _decoded(text: bytes) -> str:
    if len(text) > MAX_BYTES:
        raise BrokenYamlError(Mark(1, 1), f"the file is larger than {MAX_BYTES // 1024} KiB")
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = text[: error.start].decode("utf-8-sig", errors="replace")
        raise BrokenYamlError(_mark_after(before), "this is not UTF-8") from error


def _events(text: str) -> Iterator[yaml.Event]:
    """PyYAML's events, with its exceptions translated; its parser is iterative, so depth costs no stack."""
    parser: yaml.SafeLoader | None = None
    try:
        parser = yaml.SafeLoader(text)
        while parser.check_event():
            yield parser.get_event()  # type: ignore[no-untyped-call]  # a gap in types-PyYAML
    except yaml.reader.ReaderError as error:
        mark = _mark_after(text[: error.position])
        raise BrokenYamlError(
            mark, f"the character U+{ord(text[error.position]):04X} is not allowed"
        ) from error
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error) from error
    except (ValueError, OverflowError) as error:  # an escape such as "\UFFFFFFFF" names no character
        assert parser is not None
        raise BrokenYamlError(
            Mark(parser.line + 1, parser.column + 1), "this escape names no character"
        ) from error


def _syntax_error(error: yaml.MarkedYAMLError) -> BrokenYamlError:
    mark = error.problem_mark or error.context_mark
    assert mark is not None
    problem = error.problem or "cannot be read"
    if "\\t" in problem or "tab" in problem.split():
        problem = "a tab stands here; YAML is indented and separated with spaces"
    elif error.context:
        problem = f"{problem} ({error.context})"
    return BrokenYamlError(Mark(mark.line + 1, mark.column + 1), " ".join(problem.split()))


def _mark_after(before: str) -> Mark:
    lines = re.split("\r\n|[\r\n\x85\u2028\u2029]", before)
    return Mark(len(lines), len(lines[-1]) + 1)


@dataclass(slots=True)
class _Open:
    """A mapping or list that is being read. Without a path it is only read to be skipped."""

    into: dict[str, object] | list[object]
    path: Path | None
    key: str | None = None
    skip: bool = False

    @property
    def wants_key(self) -> bool:
        return isinstance(self.into, dict) and self.key is None


class _Builder:
    """Puts events together. A stack of its own instead of recursion: depth is an error, never a crash."""

    def __init__(self) -> None:
        self.tree = Tree(values={(): Mark(1, 1)})
        self._open: list[_Open] = []
        self._documents = 0
        self._count = 0

    def take(self, event: yaml.Event) -> bool:
        """Whether to go on: only the first document is read."""
        if isinstance(event, yaml.DocumentStartEvent):
            return self._start_document(event)
        if isinstance(event, yaml.NodeEvent):
            self._count += 1
            if self._count > MAX_VALUES:
                raise BrokenYamlError(_mark(event), f"the file has more than {MAX_VALUES} values")
            self._take_node(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._open.pop()
        return True

    def _start_document(self, event: yaml.DocumentStartEvent) -> bool:
        self._documents += 1
        if self._documents > 1:
            self._problem(event, "a second document starts here; a manifest is one document")
            return False
        if event.tags:
            self._problem(event, "tags are not read; leave the %TAG directive out")
        if event.version and event.version != (1, 2):
            self._problem(event, "a manifest is read as YAML 1.2; leave the %YAML directive out")
        return True

    def _take_node(self, event: yaml.NodeEvent) -> None:
        unread = isinstance(event, yaml.AliasEvent)
        if isinstance(event, yaml.AliasEvent):
            self._problem(event, "aliases are not read; write the value out")
        elif event.anchor is not None:
            self._problem(event, "anchors are not read; leave this one out")
        tag = getattr(event, "tag", None)
        if tag is not None:
            self._problem(event, "tags are not read; leave this one out, and quote what is text")
            unread = True
        if self._open and self._open[-1].wants_key:
            self._take_key(event)
        else:
            self._take_value(event, unread=unread)

    def _take_key(self, event: yaml.NodeEvent) -> None:
        parent = self._open[-1]
        if not isinstance(event, yaml.ScalarEvent):
            parent.key, parent.skip = "", True
            if isinstance(event, yaml.CollectionStartEvent):
                self._problem(event, "a key must be a word, not a list or a mapping")
                self._push(event, _container(event), None)
            return
        parent.key = event.value
        parent.skip = parent.path is None
        if event.value == "<<" and event.style is None:
            self._problem(event, "merge keys are not read; write the keys out")
            parent.skip = True
        elif parent.path is not None and (*parent.path, event.value) in self.tree.keys:
            first = self.tree.keys[(*parent.path, event.value)]
            self._problem(event, f"duplicate key {shown(event.value)} (first in line {first.line})")
            parent.skip = True
        if not parent.skip and parent.path is not None:
            self.tree.keys[(*parent.path, event.value)] = _mark(event)

    def _take_value(self, event: yaml.NodeEvent, *, unread: bool) -> None:
        path = self._next_path()
        if path is not None:
            self.tree.values[path] = _mark(event)
            if unread:
                self.tree.unread.add(path)
        if isinstance(event, yaml.CollectionStartEvent):
            into = _container(event)
            self._keep(into)
            self._push(event, into, path)
        else:
            self._keep(self._scalar(event, path) if isinstance(event, yaml.ScalarEvent) else None)

    def _next_path(self) -> Path | None:
        if not self._open:
            return ()
        parent = self._open[-1]
        if parent.path is None or parent.skip:
            return None
        return (*parent.path, len(parent.into) if parent.key is None else parent.key)

    def _push(self, event: yaml.Event, into: dict[str, object] | list[object], path: Path | None) -> None:
        if len(self._open) == MAX_DEPTH:
            raise BrokenYamlError(_mark(event), f"this is nested deeper than {MAX_DEPTH} levels")
        self._open.append(_Open(into, path))

    def _keep(self, value: object) -> None:
        if not self._open:
            self.tree.value = value
            return
        parent = self._open[-1]
        if isinstance(parent.into, list):
            parent.into.append(value)
            return
        assert parent.key is not None
        if not parent.skip:
            parent.into[parent.key] = value
        parent.key, parent.skip = None, False

    def _scalar(self, event: yaml.ScalarEvent, path: Path | None) -> object:
        if any("\ud800" <= character <= "\udfff" for character in event.value):
            self._problem(event, "this text holds half a character (a lone surrogate)")
            if path is not None:
                self.tree.unread.add(path)
        if path is not None:
            self.tree.texts[path] = event.value
        if event.style is not None or len(event.value) > MAX_NUMBER_LENGTH:  # int() refuses very long numbers
            return event.value
        return plain_value(event.value)

    def _problem(self, event: yaml.Event, message: str) -> None:
        self.tree.problems.append((_mark(event), message))


def _container(event: yaml.Event) -> dict[str, object] | list[object]:
    return {} if isinstance(event, yaml.MappingStartEvent) else []


def _mark(event: yaml.Event) -> Mark:
    assert event.start_mark is not None
    return Mark(event.start_mark.line + 1, event.start_mark.column + 1)


def plain_value(text: str) -> object:
    """What an unquoted word means in the core schema of YAML 1.2.2, section 10.3.2."""
    for pattern, meaning in _CORE_SCHEMA:
        if pattern.fullmatch(text):
            return meaning(text)
    return text


_CORE_SCHEMA = (
    (re.compile(r"null|Null|NULL|~|"), lambda _: None),
    (re.compile(r"true|True|TRUE"), lambda _: True),
    (re.compile(r"false|False|FALSE"), lambda _: False),
    (re.compile(r"[-+]?[0-9]+"), int),
    (re.compile(r"0o[0-7]+"), lambda text: int(text, base=0)),
    (re.compile(r"0x[0-9a-fA-F]+"), lambda text: int(text, base=0)),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
    (re.compile(r"[-+]?\.(inf|Inf|INF)"), lambda text: float(text.replace(".", ""))),
    (re.compile(r"\.(nan|NaN|NAN)"), lambda _: float("nan")),
)
