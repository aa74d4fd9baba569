"""report: what the versions of a rollout are worth, from its log, with or without a running service."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployctl.cli.options import AsOutput, Name, Output
from deployctl.cli.services import find_service
from deployctl.views.console import layout_for, note, show, show_document
from deployctl.views.progress import Progress

if TYPE_CHECKING:
    from deployctl.core.report import Recorded
    from deployctl.statedir import ServiceHome


def report(
    name: Name = None,
    rollout: Annotated[
        str | None,
        typer.Option(
            "--rollout", metavar="ID", help="An earlier rollout; default: the last.", show_default=False
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write it as one page, with charts, that needs nothing beside it.",
            show_default=False,
        ),
    ] = None,
    output: AsOutput = Output.TEXT,
) -> None:
    """Compare the versions with people and with each other."""
    from deployctl.core.report import report_of  # noqa: PLC0415 - numpy: --help does without
    from deployctl.views.report import document, report_lines  # noqa: PLC0415 - as above

    service = find_service(name)
    found = report_of(recorded(service.home, rollout))
    if html is not None:
        from deployctl.views.report_html import report_page  # noqa: PLC0415 - as above

        publish_text(html, report_page(found))
    if output is Output.JSON:
        show_document(document(found))
    elif html is None:
        show(report_lines(found, layout_for(sys.stdout)))
    else:
        show([found.sentence])
        note(f"the report is in {html}")


def recorded(home: ServiceHome, rollout: str | None) -> Recorded:
    """The log of a rollout (default: the last) as a report needs it. Raises InvalidError where there is none."""
    import numpy as np  # noqa: PLC0415 - as above

    from deployctl.core.agreement import Answers, Votes  # noqa: PLC0415 - as above
    from deployctl.core.report import Recorded  # noqa: PLC0415 - as above
    from deployctl.prediction_log import read_log  # noqa: PLC0415 - as above

    with Progress("reading the records") as progress:
        log = read_log(home, rollout, progress)
    given = log.predictions
    answers = Answers(
        request=given["request"],
        version=given["arm"],
        prediction=given["prediction"].astype(np.int64),
        confidence=given["confidence"].astype(np.float64),
        latency=given["latency"].astype(np.float64),
        status=given["status"],
        null=given["null"],
        shown=given["shown"],
        t=given["t"],
    )

    def votes(rows: np.ndarray[tuple[int], np.dtype[np.void]]) -> Votes:
        return Votes(
            rows["request"], rows["label"].astype(np.int64), rows["annotator"].astype(np.int64), rows["t"]
        )

    def ids(rows: list[int]) -> list[str]:
        with Progress("looking ids up") as progress:
            return log.ids(rows, progress)

    known = log.votes["request"] >= 0
    return Recorded(
        service=home.name,
        rollout=log.rollout,
        versions=log.versions,
        texts=log.texts,
        annotators=log.annotators,
        answers=answers,
        votes=votes(log.standing_votes()),
        shown=votes(log.votes[known & (log.votes["shown"] != 0)]),
        unmatched=int(np.count_nonzero(~known)),
        ids=ids,
    )


def publish_text(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all. Raises UnavailableError where it cannot be.

    What is no file (a pipe, /dev/stdout) is written into, and a link is followed: neither is replaced.
    """
    from deployctl.errors import UnavailableError  # noqa: PLC0415 - as above

    if path.is_dir():
        raise UnavailableError(f"{path}: cannot be written: it is a directory; name a file in it")
    try:
        if path.exists() and not path.is_file():
            _write(path, text)
        else:
            _replace(path.resolve(), text)
    except OSError as error:
        raise UnavailableError(f"{path}: cannot be written: {error.strerror or error}") from error


def _replace(path: Path, text: str) -> None:
    from deployctl.durable import publish  # noqa: PLC0415 - as above

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _write(temporary, text, sync=True)
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(path: Path, text: str, *, sync: bool = False) -> None:
    with path.open("w", encoding="utf-8", errors="replace") as file:
        file.write(text)
        file.flush()
        if sync:
            os.fsync(file.fileno())
