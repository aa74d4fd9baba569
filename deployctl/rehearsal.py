"""`python -m deployctl.rehearsal`: whether this release can take a running service over, found out before anything is changed.

The supervisor of the release that runs starts it with the interpreter of the other one. It reads, changes nothing, and says what it
found in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import deployctl
from deployctl import handover, journal
from deployctl.controller.fold import service_of
from deployctl.errors import DeployctlError
from deployctl.statedir import ServiceHome
from deployctl.wire.lifeline import die_with_parent

CODE = (
    "deployctl.supervisor",
    "deployctl.controller.__main__",
    "deployctl.manifest.load",
    "deployctl.router.__main__",
    "deployctl.serving.__main__",
    "deployctl.serving.model",
    "deployctl.serving.prediction",
    "deployctl.serving.worker",
)
"""What the processes of a service import, at their start or when they need it: an install with a hole in it shows here."""


def main() -> int:
    """The handover on stdin, the answer on stdout."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="deployctl.rehearsal")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--name", required=True)
    given = parser.parse_args()
    try:
        answer = rehearse(ServiceHome(given.state, given.name), sys.stdin.buffer.read())
    except DeployctlError as error:
        answer = {"refused": str(error), "exit_code": int(error.exit_code)}
    sys.stdout.write(json.dumps(answer) + "\n")
    return int(answer.get("exit_code", 0))


def rehearse(home: ServiceHome, letter: bytes) -> dict[str, Any]:
    """Who we are, when we could take this over. Raises what is in the way."""
    for name in CODE:
        import_module(name)
    handover.decoded(letter)
    service_of(journal.read(home.journal), home.journal)
    return {"release": deployctl.__version__, "package": str(Path(deployctl.__file__).parent)}


if __name__ == "__main__":
    sys.exit(main())
