"""Options that the whole suite knows."""

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no counterexample: what is slow is measured in benchmarks/, never asserted here.
settings.register_profile("deployctl", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("deployctl")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite",
        action="store_true",
        help="re-record tests/transcripts/*.txt; review the diff as you would code",
    )


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--rewrite"))
