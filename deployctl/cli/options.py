"""Arguments and options that several verbs share, said once so that they read the same everywhere."""

from __future__ import annotations

import getpass
import os
from enum import StrEnum
from typing import Annotated

import typer

from deployctl.cli.pipeline import CiSystem


class Output(StrEnum):
    """What a command prints on stdout."""

    TEXT = "text"
    JSON = "json"


AsOutput = Annotated[
    Output,
    typer.Option(
        "--output", "-o", help="text for people, json for programs: one document, or one event per line."
    ),
]
Name = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME",
        help="A service or its manifest; may be left out when exactly one service runs.",
        show_default=False,
    ),
]
ManifestFile = Annotated[str, typer.Argument(metavar="FILE", help="The manifest.", show_default=False)]
Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why; it is recorded.", show_default=False)
]


Up = Annotated[
    bool, typer.Option("--up", help="Start the service if it does not run; it outlives this command.")
]
WatchFor = Annotated[
    str | None,
    typer.Option(
        "--timeout",
        metavar="DURATION",
        help="Watch for at most this long, e.g. 30m; the rollout goes on.",
        show_default=False,
    ),
]
Detach = Annotated[bool, typer.Option("--detach", help="Start it and return at once.")]
RollbackOnCancel = Annotated[
    bool,
    typer.Option(
        "--rollback-on-cancel",
        help="SIGINT, SIGTERM and SIGHUP roll back, instead of ending the watching only.",
    ),
]


CiOption = Annotated[
    CiSystem | None,
    typer.Option(
        "--ci",
        help="Report to this pipeline.",
        show_default="what the environment says",
        metavar="github|gitlab|none",
    ),
]
JunitFile = Annotated[
    str | None,
    typer.Option("--junit", metavar="FILE", help="Write how it ended as JUnit XML.", show_default=False),
]
MarkdownFile = Annotated[
    str | None,
    typer.Option("--markdown", metavar="FILE", help="Write how it ended as Markdown.", show_default=False),
]


def person() -> str:
    """Who gives the order, as the journal records it."""
    try:
        return f"person:{getpass.getuser()}"
    except (KeyError, OSError, ImportError):  # a container's uid without a name
        return f"person:{os.getuid()}"
