"""blue-green switch: the candidate is checked beside the baseline, then all callers go to it at once."""

from __future__ import annotations

from typing import Annotated

import typer

from deployctl.cli.begin import Wanted, begin
from deployctl.cli.follow import Until
from deployctl.cli.options import (
    AsOutput,
    CiOption,
    Detach,
    JunitFile,
    ManifestFile,
    MarkdownFile,
    Output,
    RollbackOnCancel,
    Up,
    WatchFor,
)
from deployctl.cli.pipeline import Reports


def switch(
    file: ManifestFile,
    *,
    up: Up = False,
    timeout: WatchFor = None,
    until: Annotated[
        Until | None,
        typer.Option(
            "--until", help="Watch only until the rollout is paused or promoted.", show_default=False
        ),
    ] = None,
    detach: Detach = False,
    rollback_on_cancel: RollbackOnCancel = False,
    output: AsOutput = Output.TEXT,
    ci: CiOption = None,
    junit: JunitFile = None,
    markdown: MarkdownFile = None,
) -> int:
    """Check the candidate, then switch all callers at once."""
    reports = Reports(ci, junit, markdown)
    return begin(file, "blueGreen", Wanted(up, timeout, until, detach, rollback_on_cancel, output, reports))
