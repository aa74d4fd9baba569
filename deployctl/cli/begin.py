"""Begin the rollout of a manifest, or join the one that runs, and follow it: what `canary ramp` and `shadow` have in common."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from deployctl.cli.follow import Arrivals, Following, Until, follow, signals_into
from deployctl.cli.manifests import read_manifest
from deployctl.cli.models import baseline_for, digests_for
from deployctl.cli.options import Output, person
from deployctl.cli.services import Service, service_called
from deployctl.errors import Exit, InvalidError, UnavailableError
from deployctl.views.console import note, say, show_document

if TYPE_CHECKING:
    from deployctl.manifest.manifest import Manifest

VERBS = {"canary": "canary ramp", "shadow": "shadow", "blueGreen": "blue-green switch"}
"""Key of `spec.strategy` → the verb that carries it out."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the command was called."""

    up: bool = False
    timeout: str | None = None
    until: Until | None = None
    detach: bool = False
    rollback_on_cancel: bool = False
    output: Output = Output.TEXT


def begin(file: str, strategy: str, wanted: Wanted) -> int:
    """Begin or join, then follow to the end that was asked for."""
    seconds = _seconds(wanted.timeout) if wanted.timeout is not None else None
    manifest = read_manifest(file)
    _carries_out(file, manifest, strategy)
    path, name = Path(file).absolute(), manifest.name
    service = service_called(name)
    arrivals: Arrivals = SimpleQueue()
    _start_if_wanted(service, manifest, arrivals, up=wanted.up)
    digests = digests_for(service, manifest, str(path))  # Ctrl-C ends a download at once: nothing has begun
    with signals_into(arrivals):
        told = {"manifest": manifest.text, "path": str(path), "strategy": strategy, "by": person()}
        order = {**told, "digests": digests}
        answer = service.post("/v1/rollouts", order)
        if wanted.detach or answer["state"] == "already_live" or answer["rollout"] is None:
            if wanted.output is Output.JSON:
                show_document({"schema_version": 1, "service": name, **answer})
            else:
                say(f"{name}: {answer['message']}")
            return Exit.DONE
        note(f"{name}: {answer['message']}")
        following = Following(
            service=service,
            rollout=answer["rollout"],
            again=f"deployctl {VERBS[strategy]} {shlex.quote(file)}",
            joined_at=_last_event(service, answer["rollout"]) if answer["state"] == "following" else 0,
            until=wanted.until,
            timeout=seconds,
            rollback_on_cancel=wanted.rollback_on_cancel,
            output=wanted.output,
        )
        return follow(following, arrivals)


def _carries_out(file: str, manifest: Manifest, strategy: str) -> None:
    """Raises InvalidError where the manifest asks for another strategy than the verb carries out."""
    from deployctl.core.strategies import STRATEGIES  # noqa: PLC0415 - --help does without

    if manifest.strategy is None or isinstance(manifest.strategy, STRATEGIES[strategy]):
        return
    written = next(name for name, kind in STRATEGIES.items() if isinstance(manifest.strategy, kind))
    raise InvalidError(
        f"{file}: its strategy is {written}, not {strategy}; use: deployctl {VERBS[written]} {shlex.quote(file)}"
    )


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


def _start_if_wanted(service: Service, manifest: Manifest, arrivals: Arrivals, *, up: bool) -> None:
    if service.pid is not None:
        return
    if not up:
        raise UnavailableError(
            f"service '{service.name}' is not running; start it with: deployctl up FILE, or add --up"
        )
    from deployctl.cli.up import start_detached  # noqa: PLC0415 - only with --up

    baseline = baseline_for(service, manifest)
    with signals_into(arrivals):
        note(start_detached(service, manifest, baseline=baseline).words)
