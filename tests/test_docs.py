"""Every command in the README and in docs/ is run, in order, against a real service: who types them gets what the page says.

A page's ```sh blocks are one session of bash, in a folder with the examples. A comment `exit code N` says how a command ends, and a
```text block after it what it prints: any number stands for any other, … for anything. A block that cannot run says why, in a comment
before it: <!-- not run: REASON -->.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>]+?) -->\n+)?^```sh\n(?P<commands>.*?)^```\n(?:\n*^```text\n(?P<shown>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
PORT = "8080"
QUICKER = (
    (r"(?m)^( *minDwell:) \S+", r"\1 0.1s"),
    (r"(?m)^( *bake:) \w+", r"\1 0.1s"),
    (r"minLabels: \d+", "minLabels: 50"),
    (r"max: 1%", "max: 8%"),
    (r"max: 12%", "max: 25%"),
)
"""What the manifests of the examples ask for in less time here; what they decide stays."""
PATIENCE = 100.0
TAKE_LONG = {"shadow"}


@dataclass(frozen=True)
class Block:
    """The commands of one ```sh block, with the line of the page at which each begins."""

    commands: list[tuple[int, str]]
    reason: str | None
    shown: list[str]


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    found = [
        Block(
            list(_commands(one["commands"], text[: one.start("commands")].count("\n") + 1)),
            one["reason"],
            (one["shown"] or "").splitlines(),
        )
        for one in BLOCK.finditer(text)
    ]
    assert len(found) == len(re.findall(r"(?m)^ *```sh", text)), f"{page.name}: a ```sh block is not read"
    return found


def _commands(text: str, line: int) -> Iterator[tuple[int, str]]:
    """One command after the other; what goes on over several lines is one."""
    lines = text.splitlines()
    begun = ""
    for number, piece in enumerate(lines):
        begun += piece + "\n"
        ending = re.search(r"<<-?'?(\w+)'?", begun)
        if piece.endswith("\\") or (ending and piece != ending[1]):
            continue
        if begun.strip():
            yield line + number, begun
        begun = ""
    assert not begun


WITH_COMMANDS = [page for page in PAGES if blocks(page)]


@pytest.fixture
def desk(tmp_path):
    """A folder as the reader of a page has it, and the environment of the shell in which it is read; its services end with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "manifests").mkdir()
    for manifest in (ROOT / "manifests").glob("*.yaml"):
        text = manifest.read_text("utf-8").replace(PORT, port)
        for slow, quick in QUICKER:
            text = re.sub(slow, quick, text)
        (tmp_path / "manifests" / manifest.name).write_text(text, "utf-8")
    (tmp_path / "bin").mkdir()
    _script(tmp_path / "bin/python", f'exec {sys.executable} "$@"')
    # What `init` writes listens where the template says.
    own = f'{sys.executable} -m deployctl "$@"; code=$?; [ "$1" = init ] && sed -i s/{PORT}/{port}/ "$2"/*.yaml; exit $code'
    _script(tmp_path / "bin/deployctl", own)
    with tempfile.TemporaryDirectory(prefix="dctl", dir="/tmp") as state:
        pipeline = re.compile("CI$|CI_|GITHUB_|GITLAB_")
        environment = {key: value for key, value in os.environ.items() if not pipeline.match(key)} | {
            "DEPLOYCTL_STATE_DIR": state,
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "NO_COLOR": "1",
        }
        yield tmp_path, environment, port
        for name in sorted(path.name for path in Path(state).iterdir()):
            subprocess.run(
                [sys.executable, "-m", "deployctl", "down", name],
                env=environment,
                check=False,
                capture_output=True,
            )


def _script(path: Path, command: str) -> None:
    path.write_text(f"#!/bin/bash\n{command}\n")
    path.chmod(0o700)


def _session(run: list[Block], port: str) -> str:
    """One script: every command, its output after its line in the page, and the code that it ended with where that is another."""
    script = ["exec 2>&1 </dev/null"]
    for block in run:
        for line, command in block.commands:
            wanted = re.search(r"exit code (\d)", command)
            background = command.split(" #")[0].rstrip().endswith("&")
            script += [f"echo '@@ {line}'", command.replace(PORT, port).rstrip("\n")]
            if not background:
                script.append(
                    f'code=$?; [ $code = {wanted[1] if wanted else 0} ] || {{ echo "@@ ended with $code"; exit; }}'
                )
    return "\n".join([*script, "echo '@@ end'"])


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.stem)
def test_every_command_of_a_page_does_what_the_page_says(page, desk, tmp_path, request):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    if page.stem in TAKE_LONG and not request.config.getoption("--long"):
        pytest.skip("a whole shadow takes a quarter of all the pages' time: with --long")
    if "\ncurl " in page.read_text("utf-8") and not shutil.which("curl"):
        pytest.skip("curl is not installed")
    folder, environment, port = desk
    run = [block for block in blocks(page) if block.reason is None]
    with (tmp_path / "said").open("w+b") as said:
        # A session of its own, so that what the page leaves in the background ends with it.
        shell = subprocess.Popen(
            ["bash", "--norc", "-c", _session(run, port)],
            cwd=folder,
            env=environment,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            shell.wait(PATIENCE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGTERM)
            shell.wait(PATIENCE)
        said.seek(0)
        text = said.read().decode()
    assert text.endswith("@@ end\n"), f"{page.name}:\n{text}"
    printed = {int(at): words for at, words in re.findall(r"@@ (\d+)\n(.*?)(?=@@ )", text, re.DOTALL)}
    for block in run:
        words = "".join(printed[line] for line, _ in block.commands)
        missing = [line for line in block.shown if line.strip() and not _pattern(line).search(words)]
        assert not missing, f"{page.name}: after {block.commands}:\n{words}"


def _pattern(line: str) -> re.Pattern[str]:
    pieces = re.split(r"(\d+(?:[.,]\d+)*|…|\s+|[█░]+)", line.strip())
    return re.compile("".join(map(_piece, pieces)))


def _piece(one: str) -> str:
    """A piece of a printed line as a pattern: numbers, bars and room are never the same twice."""
    for kind, pattern in ((r"…", ".*"), (r"\s+", r"\s+"), (r"\d.*", r"\d+(?:[.,]\d+)*"), (r"[█░]+", "[█░]+")):
        if re.fullmatch(kind, one):
            return pattern
    return re.escape(one)


def test_a_block_that_is_not_run_says_why():
    reasons = {page.name: [block.reason for block in blocks(page) if block.reason] for page in WITH_COMMANDS}
    assert all(len(reason) > 10 for given in reasons.values() for reason in given), reasons
    ran = sum(len(block.commands) for page in WITH_COMMANDS for block in blocks(page) if not block.reason)
    left_out = sum(len(block.commands) for page in WITH_COMMANDS for block in blocks(page) if block.reason)
    assert ran > 2 * left_out, "most of the commands are run"


def test_the_links_of_every_page_lead_somewhere():
    broken = []
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", *(ROOT / "examples").glob("*/README.md")]:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
            path, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            there = (page.parent / path).resolve() if path else page
            if not there.exists():
                broken.append(f"{page.name}: {target}")
            elif anchor and there.suffix == ".md" and anchor not in _anchors(there):
                broken.append(f"{page.name}: {target}: no such heading")
    assert not broken


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text("utf-8"))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_picture_shows_a_rollback_and_loads_nothing():
    picture = (ROOT / "docs/rollback.svg").read_text("utf-8")
    assert ET.fromstring(picture).tag.endswith("svg")
    assert "url(http" not in picture
    assert "<script" not in picture
    frames = picture.split('<g class="frame">')[1:]
    assert len(frames) > 2
    assert "progressing" in frames[0]
    assert "rolled&#160;back" in frames[-1]


def test_the_picture_can_be_made_anew(request):
    if not request.config.getoption("--long"):
        pytest.skip("half a minute on a busy machine: pytest --long")
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    made = subprocess.run(
        [sys.executable, ROOT / "docs/rollback.py"], capture_output=True, text=True, check=True
    )
    assert "rolled&#160;back" in made.stdout.split('<g class="frame">')[-1]
