"""Options that the whole suite knows."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no counterexample: what is slow is measured in benchmarks/, never asserted here.
settings.register_profile("deployctl", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("every-run", settings.get_profile("deployctl"), max_examples=50)
settings.load_profile("deployctl")

# What `nohup` ignores would be ignored by every process that the tests start, and some of them are tested with just that.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so does a shell's `&`
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Our own pipeline is not the one that the commands of the tests report to.
for name in ("GITHUB_ACTIONS", "GITLAB_CI"):
    os.environ.pop(name, None)


ALONE = (
    "service/test_examples.py",
    "faults/test_clocks.py",
    "faults/test_kills.py",
    "faults/test_no_request_fails.py",
    "faults/test_poison_models.py",
    "faults/test_rollback_under_fire.py",
    "faults/test_soak.py",
    "faults/test_upgrade.py",
    "test_digits.py",
    "test_priority.py",
)
"""Whole services with clocks, whose stories on two processors another test beside them changes."""


FIRST = (
    "faults/test_kill_sweep.py",
    "service/test_service_life.py",
    "service/test_service_shadow.py",
    "test_replay.py",
    "test_benchmarks.py",
    "faults/test_full_disk.py",
    "service/test_ci_examples.py",
    "core/test_evidence.py",
    "test_controller.py",
    "test_docs.py",
)
"""Files that take longest: begun first, so that no worker is left alone with one at the end."""


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--long"):
        settings.load_profile("every-run")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m alone` need not read two thousand other tests first."""
    if config.getoption("markexpr") != "alone" or not collection_path.name.startswith("test_"):
        return None
    if collection_path.is_dir() or _is_alone(collection_path) or "mark.alone" in collection_path.read_text():
        return None
    return True


def _is_alone(path: Path) -> bool:
    here = Path(__file__).parent
    return path.is_relative_to(here) and path.relative_to(here).as_posix().startswith(ALONE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _is_alone(item.path):
            item.add_marker("alone")
    here = Path(__file__).parent
    turns = {here / name: turn for turn, name in enumerate(FIRST)}
    items.sort(key=lambda item: turns.get(item.path, len(FIRST)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite",
        action="store_true",
        help="re-record tests/transcripts/*.txt; review the diff as you would code",
    )
    parser.addoption(
        "--long",
        action="store_true",
        help="the long versions of the sweeps and the soak in tests/faults, as `make faults` runs them",
    )


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--rewrite"))
