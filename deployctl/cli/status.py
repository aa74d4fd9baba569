"""status and list: where a service stands, and which services there are."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from deployctl.cli.options import AsOutput, Name, Output
from deployctl.cli.services import STATUS, Service, all_services, find_service
from deployctl.errors import DeployctlError, Exit
from deployctl.views.console import is_screen, layout_for, note, say, show, show_document

WATCH_SECONDS = 1.0
EVENTS_SECONDS = 5.0


def status(
    name: Name = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it, until Ctrl-C.")] = False,
    output: AsOutput = Output.TEXT,
) -> int:
    """Show phase, weight, evidence, and what is still needed."""
    service = find_service(name)
    if watch:
        try:
            _watch(service, output)
        except KeyboardInterrupt:
            return Exit.WATCH_ENDED
    document = service.get(STATUS)
    if output is Output.JSON:
        show_document(document)
    else:
        from deployctl.views.status import status_lines  # noqa: PLC0415 - rich costs 0.05 s

        show(status_lines(document, layout_for(sys.stdout)))
    return Exit.DONE


def list_services(output: AsOutput = Output.TEXT) -> None:
    """List all services of this user, running or not."""
    rows = [_row(service) for service in all_services()]
    if output is Output.JSON:
        show_document({"schema_version": 1, "services": rows})
        return
    if not rows:
        note("no services yet; start one with: deployctl up FILE")
    wide = max((len(row["service"]) for row in rows), default=0)
    for row in rows:
        words = f"{row['service'].ljust(wide)}  {row['state']:<13}"
        if row["live"]:
            words += f"  version {row['live']}  {row['phase'] or '-':<11}  {row['url']}"
        say(words.rstrip())


def _row(service: Service) -> dict[str, Any]:
    row: dict[str, Any] = {
        "service": service.name,
        "state": "stopped",
        "pid": None,
        "live": None,
        "phase": None,
        "url": None,
    }
    try:
        row["pid"] = service.pid
    except DeployctlError as error:  # its damage hides none of the others
        note(f"{service.name}: {error}")
        return {**row, "state": "unreadable"}
    if row["pid"] is None:
        return row
    try:
        with service.client() as client:
            document = client.get(STATUS, timeout=2.0)
    except DeployctlError:
        return {**row, "state": "not answering"}
    return {**row, "state": "running", **{key: document.get(key) for key in ("live", "phase", "url")}}


def _watch(service: Service, output: Output) -> None:
    if output is Output.TEXT and is_screen(sys.stdout):
        _watch_on_screen(service)
    last = ""
    for document in _statuses(service, WATCH_SECONDS):
        if output is Output.JSON:
            show_document(document)
            continue
        from deployctl.views.status import status_line  # noqa: PLC0415 - as above

        words = status_line(document)
        if words != last:  # a log of an idle service stays short
            say(words)
        last = words


def _watch_on_screen(service: Service) -> None:
    from deployctl.views.live import LiveScreen  # noqa: PLC0415 - as above

    seen, asked_at = None, 0.0
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
