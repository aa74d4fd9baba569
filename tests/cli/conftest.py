"""Fixtures of the CLI's tests; what they are made of is in cli_rig.py."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_rig import MANIFEST, PATIENCE, STAND_IN, Cli, Playing, status_of, wait_for

from deployctl.statedir import ServiceHome, running_pid


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    with tempfile.TemporaryDirectory(prefix="dctl") as state:
        one = Cli(Path(state), tmp_path)
        yield one
        one.end()


@pytest.fixture
def play(cli: Cli) -> Iterator[Callable[..., Playing]]:
    """Start a stand-in service; it answers the status of a canary unless told otherwise."""
    playing: list[Playing] = []

    def start(name: str = "digits") -> Playing:
        home = ServiceHome(cli.state, name)
        home.create()
        (home.path / "events.jsonl").touch()
        process = subprocess.Popen(
            [sys.executable, str(STAND_IN), str(cli.state), name], env=cli.environment()
        )
        one = Playing(home, process)
        one.reply("GET /v1/status", status_of(name))
        playing.append(one)
        wait_for(lambda: running_pid(home) and (home.path / "controller.pid").exists())
        return one

    yield start
    for one in playing:
        one.process.terminate()
        one.process.wait(PATIENCE)


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    file = tmp_path / "rollout.yaml"
    file.write_text(MANIFEST.format(name="digits"))
    return str(file)
