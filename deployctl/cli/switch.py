"""blue-green switch: the candidate is checked beside the baseline, then all callers go to it at once."""

from __future__ import annotations

from typing import Annotated

import typer

from deployctl.cli.begin import Wanted, begin
from deployctl.cli.follow import Until
from deployctl.cli.options import AsOutput, Detach, ManifestFile, Output, RollbackOnCancel, Up, WatchFor


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
) -> int:
    """Check the candidate, then switch all callers at once."""
    return begin(file, "blueGreen", Wanted(up, timeout, until, detach, rollback_on_cancel, output))
