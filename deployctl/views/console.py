"""Where views are printed: a terminal gets colour and its own width, anything else plain lines that are never cut.

Whatever is printed is data: no line of it is a command to the runner of a pipeline, but for those of `command`.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast

from deployctl.views.quoting import no_command, no_command_in_json

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

PLAIN_WIDTH = 200
"""The layout of plain output; lines may be longer, a log has no edge."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a view must fit into: columns, whether block characters can be shown, and whether there is an edge at which a terminal
    breaks lines that are longer.
    """

    width: int = PLAIN_WIDTH
    ascii_only: bool = False
    edge: bool = False


def layout_for(stream: IO[str]) -> Layout:
    """The layout of whatever `stream` is; COLUMNS counts for terminals only."""
    edge = stream.isatty()
    width = shutil.get_terminal_size().columns if edge else PLAIN_WIDTH
    ascii_only = not str(getattr(stream, "encoding", "")).lower().startswith("utf")
    return Layout(width, ascii_only=ascii_only, edge=edge)


def terminal_rows(cells: int, layout: Layout) -> int:
    """How many rows of the terminal a line of so many cells takes, at the least."""
    return max(1, -(-cells // max(1, layout.width)))


def fold(line: Text, indent: int, layout: Layout) -> Iterator[Text]:
    """A line in pieces that a terminal need not break, from the second on with so many blanks before them; where there is no edge, as it is.

    A word is never cut: one that is too long for its row has a row for itself, and the terminal breaks it.
    """
    words, begin, at = line.plain, 0, 0
    if layout.edge and line.cell_len > layout.width:
        last = len(words) - len(words.lstrip())
        first = last
        while (at := words.find(" ", last + 1)) >= 0 or last < len(words):
            end = at if at >= 0 else len(words)
            if end - begin + (indent if begin else 0) > layout.width and last > max(begin, first):
                yield _piece(line[begin:last], indent if begin else 0)
                begin = last + 1
            last = end
    yield _piece(line[begin:], indent if begin else 0)


def _piece(piece: Text, indent: int) -> Text:
    piece.pad_left(indent)
    return piece


def is_screen(stream: IO[str]) -> bool:
    """Whether a live screen can be drawn there: a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in {"", "dumb", "unknown"}


def console_for(stream: IO[str]) -> Console:
    """A console without rich's guesses: no markup in our words, no ANSI unless `stream` is a terminal.

    FORCE_COLOR and the like are for terminals that rich does not recognise; a pipe stays plain whatever they say.
    """
    from rich.console import Console  # noqa: PLC0415 - 0.05 s that --help does without

    plain: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
    if is_screen(stream):
        return Console(file=stream, no_color=bool(os.environ.get("NO_COLOR")), **plain)
    plainly = cast("IO[str]", _Plain(stream))
    return Console(file=plainly, force_terminal=False, color_system=None, width=PLAIN_WIDTH, **plain)


def show(renderables: Iterable[RenderableType], stream: IO[str] | None = None) -> None:
    """Print a view, line by line, and see it off: whoever reads has it when the next call starts."""
    stream = stream or sys.stdout
    console = console_for(stream)
    for renderable in renderables:
        console.print(renderable, soft_wrap=not console.is_terminal)
    stream.flush()


def show_document(document: Any) -> None:
    """One JSON document on one line of stdout."""
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(document), ensure_ascii=False, allow_nan=False)
    print(no_command_in_json(text), flush=True)  # noqa: T201 - this is where output leaves the program


def _finite(value: Any) -> Any:
    """JSON knows no infinity: what never comes, or is larger than a number can be, is null."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def say(text: str) -> None:
    """One line of data on stdout."""
    print(no_command(text), flush=True)  # noqa: T201 - as above


def note(text: str) -> None:
    """One line on stderr: what is not data."""
    print(no_command(text), file=sys.stderr, flush=True)  # noqa: T201 - as above


def command(line: str) -> None:
    """One line on stderr that the runner of a pipeline shall obey."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - as above


def last_words(text: str) -> None:
    """A note of a command that knows its exit code: where nobody takes it, the command ends with that code all the same."""
    try:
        note(text)
    except (OSError, KeyboardInterrupt):
        abandon(sys.stderr)


def abandon(stream: IO[str]) -> None:
    """Whatever is left in this stream, or comes into it, goes nowhere: nobody reads it, and we must not wait for that."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Plain(io.TextIOBase):
    """A stream for rich, which prints whole lines: no command gets through."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]  # rich asks which characters the stream can show
        return str(getattr(self._stream, "encoding", "utf-8"))

    def write(self, text: str) -> int:
        self._stream.write(no_command(text))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()
