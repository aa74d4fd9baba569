"""The live screen: the status of a service, redrawn in place, with its latest events below.

It draws what it is given and never asks; whoever has news calls `status` and `event`.
"""

from __future__ import annotations

import sys
from collections import deque
from types import TracebackType
from typing import Any, Self

from rich.console import Group
from rich.live import Live
from rich.text import Text

from deployctl.views.console import console_for, layout_for
from deployctl.views.events import event_line
from deployctl.views.status import status_lines

FEWEST_EVENTS, MOST_EVENTS = 2, 12

Document = dict[str, Any]


class LiveScreen:
    """For a terminal that can move its cursor; leaves its last picture behind."""

    def __init__(self) -> None:
        self._console = console_for(sys.stdout)
        self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="visible")
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
        layout = layout_for(sys.stdout)
        lines = (
            status_lines(self._status, layout)
            if self._status
            else [Text("waiting for the service …", style="dim")]
        )
        room = self._console.height - len(lines) - 3
        shown = list(self._events)[-max(FEWEST_EVENTS, room) :]
        if shown:
            lines += [Text(), *(Text(event_line(event), style="dim") for event in shown[:-1])]
            lines.append(Text(event_line(shown[-1])))
        return lines
