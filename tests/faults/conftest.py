import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "service"))
sys.path.insert(0, str(Path(__file__).parents[1] / "router"))

from rig import Street
from service_rig import Box
from tally import Tally

_TALLY = pytest.StashKey[Tally]()


def pytest_configure(config):
    config.stash[_TALLY] = Tally()


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[_TALLY].rows:
        terminalreporter.section("faults")
        for line in config.stash[_TALLY].lines():
            terminalreporter.write_line(line)


@pytest.fixture
def tally(request):
    """Where a test says how many faults it tried."""
    return request.config.stash[_TALLY]


@pytest.fixture
def long(request):
    """Whether the long versions were asked for (`make faults`)."""
    return request.config.getoption("--long")


@pytest.fixture
def street(tmp_path):
    """A router and stand-in workers."""
    street = Street(tmp_path)
    yield street
    street.close()


@pytest.fixture
def service_box(tmp_path):
    """A box of its own, in which no service was started yet."""
    box = Box(tmp_path)
    yield box
    box.close()


@pytest.fixture
def box(service_box):
    """A service at version 1, in a box of its own."""
    return service_box.up()
