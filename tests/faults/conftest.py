import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "service"))

from service_rig import Box


@pytest.fixture
def box(tmp_path):
    """A service at version 1, in a box of its own."""
    box = Box(tmp_path)
    try:
        yield box.up()
    finally:
        box.close()
