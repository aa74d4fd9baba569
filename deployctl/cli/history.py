"""history and explain: what happened, and why."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from deployctl.cli.options import AsOutput, Name, Output
from deployctl.cli.services import Service, find_service
from deployctl.errors import InvalidError
from deployctl.views.console import layout_for, note, show, show_document
from deployctl.views.progress import Progress


def history(
    name: Name = None,
    outcomes: Annotated[
        bool, typer.Option("--outcomes", help="The recorded outcomes of a rollout, as `replay` reads them.")
    ] = False,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            metavar="FILE",
            help="Write every answer of every version, with what people said, into FILE.jsonl or FILE.parquet.",
            show_default=False,
        ),
    ] = None,
    rollout: Annotated[
        str | None,
        typer.Option(
            "--rollout",
            metavar="ID",
            help="Whose outcomes or predictions; default: the last rollout's.",
            show_default=False,
        ),
    ] = None,
    output: AsOutput = Output.TEXT,
) -> None:
    """Show what happened, by whom, and on what evidence."""
    service = find_service(name)
    if outcomes and predictions is not None:
        raise InvalidError("--outcomes and --predictions are two exports: ask for one of them")
    if outcomes:
        _export(service, rollout)
        return
    if predictions is not None:
        _export_predictions(service, rollout, predictions, output)
        return
    if rollout is not None:
        raise InvalidError("--rollout says whose outcomes are wanted: add --outcomes or --predictions FILE")
    document = service.get("/v1/history")
    if output is Output.JSON:
        show_document({"schema_version": 1, "service": service.name, **document})
    elif rollouts := document.get("rollouts"):
        from deployctl.views.history import history_lines  # noqa: PLC0415 - rich costs 0.05 s

        show(history_lines(rollouts))
    else:
        note(f"{service.name}: no rollout yet")


def _export(service: Service, rollout: str | None) -> None:
    """Straight from the state directory: the service need not run."""
    from deployctl.export import export  # noqa: PLC0415 - numpy: --help does without

    # On a terminal that shows the lines themselves, another one among them would only disturb.
    with Progress("exporting", shown=not sys.stdout.isatty()) as progress:
        for piece in export(service.home, rollout, progress):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


def _export_predictions(service: Service, rollout: str | None, path: Path, output: Output) -> None:
    from deployctl.prediction_export import export_predictions  # noqa: PLC0415 - as above

    with Progress("exporting") as progress:
        count = export_predictions(service.home, rollout, path, progress)
    if output is Output.JSON:
        show_document({"schema_version": 1, "service": service.name, "file": str(path), "rows": count})
    else:
        note(f"{count} predictions written to {path}")


def explain(
    name: Name = None,
    rollout: Annotated[
        str | None,
        typer.Option(
            "--rollout", metavar="ID", help="An earlier rollout; default: the last.", show_default=False
        ),
    ] = None,
    output: AsOutput = Output.TEXT,
) -> None:
    """Say why a rollout was promoted, held or rolled back."""
    from urllib.parse import urlencode  # noqa: PLC0415 - --help does without

    service = find_service(name)
    query = f"?{urlencode({'rollout': rollout})}" if rollout else ""
    document = service.get(f"/v1/explain{query}")
    if output is Output.JSON:
        show_document({"schema_version": 1, "service": service.name, **document})
        return
    from deployctl.views.explain import explain_lines  # noqa: PLC0415 - as above

    show(explain_lines(document, layout_for(sys.stdout)))
