"""shadow: the candidate answers copies of the traffic, and is compared; nothing is decided by what it says."""

from __future__ import annotations

from deployctl.cli.begin import Wanted, begin
from deployctl.cli.options import AsOutput, Detach, ManifestFile, Output, RollbackOnCancel, Up, WatchFor


def shadow(
    file: ManifestFile,
    *,
    up: Up = False,
    timeout: WatchFor = None,
    detach: Detach = False,
    rollback_on_cancel: RollbackOnCancel = False,
    output: AsOutput = Output.TEXT,
) -> int:
    """Compare on copies of the traffic; nothing is decided by it."""
    return begin(file, "shadow", Wanted(up, timeout, None, detach, rollback_on_cancel, output))
