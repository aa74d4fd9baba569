"""rollback, promote, pause, resume: a person's decision, recorded with who and why."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from deployctl.cli.options import AsOutput, Name, Output, Reason, person
from deployctl.cli.services import Service, find_service
from deployctl.errors import InvalidError
from deployctl.views.console import say, show_document


def rollback(
    name: Name = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="VERSION",
            help="Go to this version instead of the one before.",
            show_default=False,
        ),
    ] = None,
    reason: Reason = "",
    output: AsOutput = Output.TEXT,
) -> None:
    """Go back at once to the baseline, or to the version before."""
    service = find_service(name)
    _tell(service, service.post("/v1/rollback", {"by": person(), "reason": reason, "to": to}), output)


def promote(
    name: Name = None,
    full: Annotated[
        bool, typer.Option("--full", help="Skip all that is left, without evidence; needs --reason.")
    ] = False,
    reason: Reason = "",
    output: AsOutput = Output.TEXT,
) -> None:
    """Pass what waits for a person; later gates still apply."""
    if full and not reason.strip():
        raise InvalidError("promote --full skips the evidence and needs a reason: add --reason TEXT")
    service = find_service(name)
    # Never sent twice: a second one could pass the next gate.
    answer = service.post("/v1/promote", {"by": person(), "full": full, "reason": reason}, again=False)
    _tell(service, answer, output)


def pause(name: Name = None, output: AsOutput = Output.TEXT) -> None:
    """Stop climbing, not watching: harm still rolls back."""
    service = find_service(name)
    _tell(service, service.post("/v1/pause", {"by": person()}), output)


def resume(name: Name = None, output: AsOutput = Output.TEXT) -> None:
    """Undo a pause."""
    service = find_service(name)
    _tell(service, service.post("/v1/resume", {"by": person()}), output)


def _tell(service: Service, answer: dict[str, Any], output: Output) -> None:
    if output is Output.JSON:
        show_document({"schema_version": 1, "service": service.name, **answer})
    else:
        say(f"{service.name}: {answer.get('message', 'done')}")
