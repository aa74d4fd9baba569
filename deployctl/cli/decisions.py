"""rollback, promote, pause, resume: a person's decision, recorded with who and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from deployctl.cli.options import (
    AsOutput,
    CiOption,
    JunitFile,
    MarkdownFile,
    Name,
    Output,
    Reason,
    person,
)
from deployctl.cli.pipeline import Account, Reports, reporting
from deployctl.cli.services import Service, find_service
from deployctl.errors import Exit, InvalidError
from deployctl.views.console import say, show_document
from deployctl.views.quoting import one_line


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
    ci: CiOption = None,
    junit: JunitFile = None,
    markdown: MarkdownFile = None,
) -> int:
    """Go back at once to the baseline, or to the version before."""

    def order(service: Service) -> dict[str, Any]:
        return service.post("/v1/rollback", {"by": person(), "reason": reason, "to": to})

    return _ordered("rollback", name, order, output, Reports(ci, junit, markdown))


def promote(
    name: Name = None,
    full: Annotated[
        bool, typer.Option("--full", help="Skip all that is left, without evidence; needs --reason.")
    ] = False,
    reason: Reason = "",
    output: AsOutput = Output.TEXT,
    ci: CiOption = None,
    junit: JunitFile = None,
    markdown: MarkdownFile = None,
) -> int:
    """Pass what waits for a person; later gates still apply."""
    if full and not reason.strip():
        raise InvalidError("promote --full skips the evidence and needs a reason: add --reason TEXT")

    def order(service: Service) -> dict[str, Any]:
        # Never sent twice: a second one could pass the next gate.
        return service.post("/v1/promote", {"by": person(), "full": full, "reason": reason}, again=False)

    return _ordered("promote", name, order, output, Reports(ci, junit, markdown))


def pause(name: Name = None, output: AsOutput = Output.TEXT) -> None:
    """Stop climbing, not watching: harm still rolls back."""
    service = find_service(name)
    _tell(service, service.post("/v1/pause", {"by": person()}), output)


def resume(name: Name = None, output: AsOutput = Output.TEXT) -> None:
    """Undo a pause."""
    service = find_service(name)
    _tell(service, service.post("/v1/resume", {"by": person()}), output)


def _ordered(
    verb: str,
    name: str | None,
    order: Callable[[Service], dict[str, Any]],
    output: Output,
    reports: Reports,
) -> int:
    """Give an order to a service, and report what came of it."""
    account = Account(verb)

    def give() -> int:
        service = account.service = find_service(name)
        answer = order(service)
        account.rollout, account.message = answer.get("rollout") or "", answer.get("message") or ""
        _tell(service, answer, output)
        return Exit.DONE

    return reporting(reports, account, give)


def _tell(service: Service, answer: dict[str, Any], output: Output) -> None:
    if output is Output.JSON:
        show_document({"schema_version": 1, "service": service.name, **answer})
    else:
        say(one_line(f"{service.name}: {answer.get('message', 'done')}"))
