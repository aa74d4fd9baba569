"""list, and whoever else wants to see all services at once: they are asked at the same time, so one that hangs costs the others nothing."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Self

import typer

from deployctl.cli.options import AsOutput, Output
from deployctl.cli.services import STATUS, Service, all_services
from deployctl.errors import DeployctlError, Exit
from deployctl.views.console import is_screen, layout_for, note, say, show, show_document

if TYPE_CHECKING:
    from deployctl.wire.admin import AdminClient

WATCH_SECONDS = 1.0
ANSWER_SECONDS = 2.0
"""How long a service may take to say how it is."""

MOST_AT_ONCE = 32
TOLD = ("live", "phase", "finished", "step", "steps", "weight", "mirror", "strategy", "rollout", "url")

Row = dict[str, Any]


def list_services(
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing them, until Ctrl-C.")] = False,
    output: AsOutput = Output.TEXT,
) -> int:
    """List all services of this user, running or not."""
    if watch:
        return watch_services(output)
    with Fleet() as fleet:
        rows = fleet.rows()
    for row in rows:
        if trouble := fleet.trouble.get(row["service"]):
            note(f"{row['service']}: {trouble}")
    if output is Output.JSON:
        _show_rows(rows)
    elif rows:
        from deployctl.views.services import service_lines  # noqa: PLC0415 - rich costs 0.05 s

        show(service_lines(rows, layout_for(sys.stdout)))
    else:
        note("no services yet; start one with: deployctl up FILE")
    return Exit.DONE


def watch_services(output: Output) -> int:
    """All of them, again and again, until Ctrl-C: a table on a screen, one line for each change in a log."""
    try:
        with Fleet() as fleet:
            if output is Output.TEXT and is_screen(sys.stdout):
                _watch_on_screen(fleet)
            _watch_in_a_log(fleet, output)
    except KeyboardInterrupt:
        return Exit.WATCH_ENDED


class Fleet:
    """All services and a connection to each; `trouble` says why one is not readable."""

    def __init__(self) -> None:
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - --help does without

        self.trouble: dict[str, str] = {}
        self._clients: dict[str, AdminClient] = {}
        self._several = ThreadPoolExecutor(MOST_AT_ONCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._several.shutdown()
        for client in self._clients.values():
            client.close()

    def rows(self) -> list[Row]:
        """One for each service, by name; of one that hangs it is known after ANSWER_SECONDS."""
        return list(self._several.map(self._row, all_services()))

    def _row(self, service: Service) -> Row:
        row: Row = {"service": service.name, "state": "stopped", "pid": None, **dict.fromkeys(TOLD)}
        try:
            row["pid"] = service.pid
        except DeployctlError as error:  # its damage hides none of the others
            self.trouble[service.name] = str(error)
            return {**row, "state": "unreadable"}
        if row["pid"] is None:
            return row
        try:
            client = self._clients.get(service.name) or self._clients.setdefault(
                service.name, service.client()
            )
            document = client.get(STATUS, timeout=ANSWER_SECONDS)
        except DeployctlError:
            return {**row, "state": "not answering"}
        return {**row, "state": "running", **{key: document.get(key) for key in TOLD}}


def _watch_on_screen(fleet: Fleet) -> NoReturn:
    from deployctl.views.live import LiveTable  # noqa: PLC0415 - as above

    with LiveTable() as table:
        while True:
            began = time.monotonic()
            table.rows(fleet.rows())
            _wait(began)


def _watch_in_a_log(fleet: Fleet, output: Output) -> NoReturn:
    from deployctl.views.services import service_line  # noqa: PLC0415 - as above

    said: dict[str, str] = {}
    while True:
        began = time.monotonic()
        rows = fleet.rows()
        if output is Output.JSON:
            _show_rows(rows)
        else:
            for row in rows:
                if said.get(row["service"]) != (words := service_line(row)):
                    say(words)
                    said[row["service"]] = words
        _wait(began)


def _wait(began: float) -> None:
    time.sleep(max(0.0, WATCH_SECONDS - (time.monotonic() - began)))


def _show_rows(rows: list[Row]) -> None:
    show_document({"schema_version": 1, "services": rows})
