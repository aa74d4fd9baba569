"""status: where a service stands. Watched without a name, all of them are shown where several run."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from deployctl.cli.listing import WATCH_SECONDS, watch_services
from deployctl.cli.options import AsOutput, CiOption, JunitFile, MarkdownFile, Name, Output
from deployctl.cli.pipeline import Account, Reports, reporting
from deployctl.cli.services import STATUS, Service, find_service, several_run
from deployctl.errors import Exit
from deployctl.views.console import is_screen, layout_for, say, show, show_document

EVENTS_SECONDS = 5.0


def status(
    name: Name = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it, until Ctrl-C.")] = False,
    output: AsOutput = Output.TEXT,
    ci: CiOption = None,
    junit: JunitFile = None,
    markdown: MarkdownFile = None,
) -> int:
    """Show phase, weight, evidence, and what is still needed."""
    if watch and name is None and several_run():
        return watch_services(output)
    account = Account("status")
    reports = Reports(ci, junit, markdown, asked_only=True)
    return reporting(reports, account, lambda: _status(name, output, account, watch=watch))


def _status(name: str | None, output: Output, account: Account, *, watch: bool) -> int:
    service = account.service = find_service(name)
    if watch:
        try:
            _watch(service, output)
        except KeyboardInterrupt:
            return Exit.WATCH_ENDED
    document = service.get(STATUS)
    live = document.get("live")
    account.rollout = document.get("rollout") or ""
    account.message = "people decide" if live is None else f"version {live} serves"
    if output is Output.JSON:
        show_document({"schema_version": 1, **document})
    else:
        from deployctl.views.status import status_lines  # noqa: PLC0415 - rich costs 0.05 s

        show(status_lines(document, layout_for(sys.stdout)))
    return Exit.DONE


def _watch(service: Service, output: Output) -> None:
    if output is Output.TEXT and is_screen(sys.stdout):
        _watch_on_screen(service)
    last = ""
    for document in _statuses(service, WATCH_SECONDS):
        if output is Output.JSON:
            show_document({"schema_version": 1, **document})
            continue
        from deployctl.views.status import status_line  # noqa: PLC0415 - as above

        words = status_line(document)
        if words != last:  # a log of an idle service stays short
            say(words)
        last = words


def _watch_on_screen(service: Service) -> None:
    from deployctl.views.live import LiveScreen  # noqa: PLC0415 - as above

    seen, asked_at = None, 0.0
    service.get(STATUS)  # what there is to warn of stands above the screen
    with LiveScreen() as screen, service.client() as client:
        for document in _statuses(service, WATCH_SECONDS / 2):
            now = (document.get("rollout"), document.get("phase"), document.get("step"))
            if document.get("rollout") and (now != seen or time.monotonic() - asked_at > EVENTS_SECONDS):
                screen.events(client.get("/v1/explain").get("events") or [])
                seen, asked_at = now, time.monotonic()
            screen.status(document)


def _statuses(service: Service, every: float) -> Iterator[dict[str, Any]]:
    """The status again and again, at a steady beat; raises UnavailableError when the service is gone."""
    with service.client() as client:
        while True:
            began = time.monotonic()
            yield client.get(STATUS)
            time.sleep(max(0.0, every - (time.monotonic() - began)))
