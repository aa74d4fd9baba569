"""canary ramp: start a canary, or join the one that runs, and follow it."""

from __future__ import annotations

import shlex
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Annotated

import typer

from deployctl.cli.follow import Arrivals, Following, Until, follow, signals_into
from deployctl.cli.manifests import read_manifest
from deployctl.cli.options import AsOutput, ManifestFile, Output, person
from deployctl.cli.services import Service, service_called
from deployctl.errors import Exit, InvalidError, UnavailableError
from deployctl.views.console import note, say, show_document

if TYPE_CHECKING:
    from deployctl.manifest.manifest import Manifest


def ramp(
    file: ManifestFile,
    *,
    up: Annotated[
        bool, typer.Option("--up", help="Start the service if it does not run; it outlives this command.")
    ] = False,
    timeout: Annotated[
        str | None,
        typer.Option(
            "--timeout",
            metavar="DURATION",
            help="Watch for at most this long, e.g. 30m; the rollout goes on.",
            show_default=False,
        ),
    ] = None,
    until: Annotated[
        Until | None,
        typer.Option(
            "--until", help="Watch only until the rollout is paused or promoted.", show_default=False
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start it and return at once.")] = False,
    rollback_on_cancel: Annotated[
        bool,
        typer.Option(
            "--rollback-on-cancel", help="SIGINT and SIGTERM roll back, instead of ending the watching only."
        ),
    ] = False,
    output: AsOutput = Output.TEXT,
) -> int:
    """Give the candidate more and more traffic, or none on harm."""
    seconds = _seconds(timeout) if timeout is not None else None
    manifest = read_manifest(file)
    path, name = Path(file).absolute(), manifest.name
    service = service_called(name)
    arrivals: Arrivals = SimpleQueue()
    with signals_into(arrivals):
        if service.pid is None:
            _start(service, manifest, up=up)
        order = {"manifest": manifest.text, "path": str(path), "strategy": "canary", "by": person()}
        answer = service.post("/v1/rollouts", order)
        if detach or answer["state"] == "already_live" or answer["rollout"] is None:
            if output is Output.JSON:
                show_document({"schema_version": 1, "service": name, **answer})
            else:
                say(f"{name}: {answer['message']}")
            return Exit.DONE
        note(f"{name}: {answer['message']}")
        following = Following(
            service=service,
            rollout=answer["rollout"],
            again=f"deployctl canary ramp {shlex.quote(file)}",
            joined_at=_last_event(service, answer["rollout"]) if answer["state"] == "following" else 0,
            until=until,
            timeout=seconds,
            rollback_on_cancel=rollback_on_cancel,
            output=output,
        )
        return follow(following, arrivals)


def _last_event(service: Service, rollout: str) -> int:
    """The number of the latest event: a hold that a person has passed long ago must not end the watching."""
    events = service.get(f"/v1/explain?rollout={rollout}")["events"]
    return max((int(event["seq"]) for event in events), default=0)


def _seconds(duration: str) -> float:
    from deployctl.manifest.quantities import seconds  # noqa: PLC0415 - --help does without

    try:
        return seconds(duration)
    except ValueError as error:
        raise InvalidError(f"--timeout: {error}") from error


def _start(service: Service, manifest: Manifest, *, up: bool) -> None:
    if not up:
        raise UnavailableError(
            f"service '{service.name}' is not running; start it with: deployctl up FILE, or add --up"
        )
    from deployctl.cli.up import start_detached  # noqa: PLC0415 - only with --up

    note(start_detached(service, manifest).words)
