"""Live screens: the status of a service, redrawn in place, with its latest events below; or a table of all services.

They draw what they are given and never ask; whoever has news says so.
"""

from __future__ import annotations

import sys
from collections import deque
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from deployctl.views.console import console_for, layout_for, terminal_rows
from deployctl.views.events import event_words
from deployctl.views.services import rows_that_fit
from deployctl.views.status import status_lines

FEWEST_EVENTS, MOST_EVENTS = 2, 12

Document = dict[str, Any]


class LiveScreen:
    """For a terminal that can move its cursor; leaves its last picture behind."""

    def __init__(self) -> None:
        self._stream = sys.stdout
        self._console = console_for(self._stream)
        self._live = _live(self._console)
        self._status: Document | None = None
        self._events: deque[Document] = deque(maxlen=MOST_EVENTS)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def status(self, document: Document) -> None:
        self._status = document
        self._draw()

    def event(self, document: Document) -> None:
        self._events.append(document)
        self._draw()

    def events(self, documents: list[Document]) -> None:
        """The latest events, all at once."""
        self._events = deque(documents, maxlen=MOST_EVENTS)

    def _draw(self) -> None:
        self._live.update(Group(*self.lines()), refresh=True)

    def lines(self) -> list[Text]:
        """The picture: the status whole, and as many events as the terminal has room for."""
        layout = layout_for(self._stream)
        if self._status is None:
            lines = [Text("waiting for the service …", style="dim")]
        else:
            lines = status_lines(self._status, layout)
        lines.append(Text())
        room = self._console.height - 1 - sum(terminal_rows(line.cell_len, layout) for line in lines)
        events: list[Text] = []
        for event in reversed(self._events):
            line = Text(event_words(event, layout.width), style="dim" if events else "")
            room -= terminal_rows(line.cell_len, layout)
            if room < 0 and len(events) >= FEWEST_EVENTS:
                break
            events.insert(0, line)
        return lines + events


class LiveTable:
    """The same for all services, never higher than the terminal: what has left it at the top could not be redrawn."""

    def __init__(self) -> None:
        self._stream = sys.stdout
        self._console = console_for(self._stream)
        self._live = _live(self._console)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def rows(self, rows: list[Document]) -> None:
        lines = rows_that_fit(rows, layout_for(self._stream), self._console.height - 1)
        nothing = [Text("no services yet; start one with: deployctl up FILE", style="dim")]
        self._live.update(Group(*(lines or nothing)), refresh=True)


def _live(console: Console) -> Live:
    return Live(
        console=console,
        auto_refresh=False,
        vertical_overflow="visible",
        redirect_stdout=False,
        redirect_stderr=False,
    )
