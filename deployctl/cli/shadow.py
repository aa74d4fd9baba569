"""shadow: the candidate answers copies of the traffic, and is compared; nothing is decided by what it says."""

from __future__ import annotations

from deployctl.cli.begin import Wanted, begin
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


def shadow(
    file: ManifestFile,
    *,
    up: Up = False,
    timeout: WatchFor = None,
    detach: Detach = False,
    rollback_on_cancel: RollbackOnCancel = False,
    output: AsOutput = Output.TEXT,
    ci: CiOption = None,
    junit: JunitFile = None,
    markdown: MarkdownFile = None,
) -> int:
    """Compare on copies of the traffic; nothing is decided by it."""
    reports = Reports(ci, junit, markdown)
    return begin(file, "shadow", Wanted(up, timeout, None, detach, rollback_on_cancel, output, reports))
