"""How far long work is, for whoever waits at a terminal: one line of stderr, drawn again in its place and gone at the end.

Nothing at all is shown where stderr is no terminal, or where the work is done within a second.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import IO, Self

from deployctl.views import figures
from deployctl.views.console import is_screen

PATIENCE_SECONDS = 1.0
REDRAW_SECONDS = 0.1


class Progress:
    """Call it with how many bytes are done, and of how many where that is known."""

    def __init__(
        self,
        what: str,
        *,
        shown: bool = True,
        stream: IO[str] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`what` is said in front; `shown` False: not even a terminal is told."""
        self._what = what
        self._stream = stream or sys.stderr
        self._now = now
        self._shown = shown and is_screen(self._stream)
        self._began = self._drawn_at = now()
        self._cells = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The line is gone, whatever follows it."""
        if self._cells:
            self._write(f"\r{' ' * self._cells}\r")

    def __call__(self, done: int, total: int | None = None, words: str = "") -> None:
        """`words` say more of what is done."""
        if not self._shown:
            return
        now = self._now()
        if now - self._began < PATIENCE_SECONDS or (self._cells and now - self._drawn_at < REDRAW_SECONDS):
            return
        self._drawn_at = now
        line = _fitting(self._parts(done, total, words, now - self._began), self._width)
        self._write(f"\r{line.ljust(self._cells)}")
        self._cells = len(line)

    def _parts(self, done: int, total: int | None, words: str, seconds: float) -> Iterator[str]:
        yield self._what
        if total:
            yield f"{min(100, 100 * done // total)} %"
        if words:
            yield words
        if total:
            yield f"{figures.size(done)} of {figures.size(total)}"
        if done:
            yield f"{figures.size(done / seconds)}/s"
        if total and done:
            yield f"{figures.span(max(0.0, total - done) * seconds / done)} left"

    @property
    def _width(self) -> int:
        """The last column stays free: a terminal may begin the next row there."""
        return shutil.get_terminal_size().columns - 1

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _fitting(parts: Iterator[str], width: int) -> str:
    """As many of them as the row has room for."""
    line = ""
    for part in parts:
        longer = f"{line}  {part}" if line else part
        if len(longer) > width:
            break
        line = longer
    return line
