"""Real data beside the checkout: never copied into the project, so a test that needs it skips where it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def shared_data(name: str) -> Path:
    """The folder of a data set in `../shared/data`, or in $DEPLOYCTL_SHARED/data; skips the test where there is none."""
    folder = Path(os.environ.get("DEPLOYCTL_SHARED", ROOT.parent / "shared"), "data", name)
    if not folder.is_dir():
        pytest.skip(f"needs the data set {name} in {folder}")
    return folder
