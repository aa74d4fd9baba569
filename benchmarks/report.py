"""How long `deployctl report` takes over a million answers and 200,000 labels, and in how much memory, beside the bounds.

The log is read, checked, decoded and joined (`read_log`), then summed up (`report_of`) and laid out as a page: all that the command
does but start Python. Most of it is the reading.

python benchmarks/report.py [PREDICTIONS] [LABELS]      exit code 1 where a bound is missed
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from join import LABELS, PREDICTIONS, write

from deployctl.cli.report import recorded
from deployctl.core.report import report_of
from deployctl.statedir import ServiceHome
from deployctl.views.report_html import report_page

MAX_SECONDS, MAX_BYTES = 15.0, 600e6


def measure(folder: Path, labels: int) -> None:
    """In a process of its own, as peak memory is a process's: prints seconds for log, sums and page, and bytes."""
    began = time.perf_counter()
    log = recorded(ServiceHome(folder, "digits"), None)
    read = time.perf_counter()
    found = report_of(log)
    summed = time.perf_counter()
    page = report_page(found)
    ended = time.perf_counter()
    assert found.labels.labelled == labels
    assert len(page.encode()) < 1_000_000
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(read - began, summed - read, ended - summed, peak)


def main() -> int:
    """The parts, their sum and its bound."""
    predictions, labels = [int(one) for one in sys.argv[1:3]] or [PREDICTIONS, LABELS]
    with tempfile.TemporaryDirectory() as folder:
        write(ServiceHome(Path(folder), "digits"), predictions, labels)
        run = subprocess.run(
            [sys.executable, __file__, "--measure", folder, str(labels)],
            capture_output=True,
            text=True,
            check=True,
        )
    *parts, peak = map(float, run.stdout.split())
    print(f"{predictions:,} predictions, {labels:,} labels")
    for name, seconds in zip(("the log read and joined", "summed up", "as a page"), parts, strict=True):
        print(f"{name:<28}{seconds:>8.2f} s")
    print(f"{'together':<28}{sum(parts):>8.2f} s  (at most {MAX_SECONDS:.0f})")
    print(f"{'peak memory':<28}{peak / 1e6:>8.0f} MB (at most {MAX_BYTES / 1e6:.0f})")
    return 1 if sum(parts) > MAX_SECONDS or peak > MAX_BYTES else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        sys.exit(main())
