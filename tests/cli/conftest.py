"""Fixtures of the CLI's tests; what they are made of is in cli_rig.py."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_rig import MANIFEST, Cli, Playing


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    with tempfile.TemporaryDirectory(prefix="dctl") as state:
        one = Cli(Path(state), tmp_path)
        yield one
        one.end()


@pytest.fixture
def play(cli: Cli) -> Iterator[Callable[..., Playing]]:
    """Start a stand-in service."""
    playing: list[Playing] = []

    def start(name: str = "digits", **more: str) -> Playing:
        playing.append(Playing.of(cli, name, **more))
        return playing[-1]

    yield start
    for one in playing:
        one.end()


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    file = tmp_path / "rollout.yaml"
    file.write_text(MANIFEST.format(name="digits"))
    return str(file)
