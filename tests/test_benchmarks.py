"""The guarantees of the verdict, on fewer rollouts than `make bench-verdict` runs: one that does not hold fails here."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_guarantees_of_the_verdict_hold():
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.verdict", "--short"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 guarantees broken" in run.stdout
