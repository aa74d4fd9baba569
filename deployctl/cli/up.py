"""up and down: start a service, here or in the background, and stop it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from deployctl.cli.manifests import read_manifest
from deployctl.cli.models import baseline_for
from deployctl.cli.options import AsOutput, ManifestFile, Name, Output
from deployctl.cli.services import STATUS, Service, find_service, service_called
from deployctl.errors import ConflictError, DeployctlError, Exit, UnavailableError, error_for
from deployctl.views.console import say, show_document

if TYPE_CHECKING:
    from deployctl.manifest.manifest import Manifest
    from deployctl.wire.admin import AdminClient

START_SECONDS = 120.0
"""A large model may load for a while; past this the start has failed."""
ANSWER_SECONDS = 10.0
"""How long a service that another `up` has just started may take to listen."""
STOP_SECONDS = 60.0
"""Callers have the time-out of a request and 10 s, then the workers and the controller 10 s each."""
POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Running:
    """A service that answers, and whether this command started it."""

    status: dict[str, Any]
    pid: int
    state: str

    @property
    def words(self) -> str:
        version = self.status.get("live")
        who = "people decide" if version is None else f"version {version} serves"
        live = f"{self.status.get('service')}: {who} at {self.status.get('url')}"
        return live if self.state == "started" else f"{live} (it was running already)"

    @property
    def document(self) -> dict[str, Any]:
        told = {key: self.status.get(key) for key in ("service", "url", "live")}
        return {"schema_version": 1, **told, "pid": self.pid, "state": self.state}


def up(
    file: ManifestFile,
    *,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when it serves; it goes on in the background.")
    ] = False,
    recover: Annotated[
        bool,
        typer.Option(
            "--recover", help="Keep a damaged journal aside and serve the last live version that is proven."
        ),
    ] = False,
    output: AsOutput = Output.TEXT,
) -> None:
    """Start the service, or start it again where it was."""
    manifest = read_manifest(file)
    service = service_called(manifest.name)
    if pid := service.pid:
        running = _already_running(service, manifest, pid)
    elif detach:
        baseline = baseline_for(service, manifest)
        running = start_detached(service, manifest, recover=recover, baseline=baseline)
    else:
        _become(service, manifest, recover=recover, output=output)
    if output is Output.JSON:
        show_document(running.document)
    else:
        say(running.words)


def down(name: Name = None, output: AsOutput = Output.TEXT) -> None:
    """Drain and stop the service."""
    service = find_service(name)
    pid = service.pid
    if pid is not None:
        _stop(service, pid)
    if output is Output.JSON:
        show_document({"schema_version": 1, "service": service.name, "changed": pid is not None})
    else:
        say(f"{service.name}: {'stopped' if pid is not None else 'nothing to do, it is not running'}")


def start_detached(
    service: Service, manifest: Manifest, *, recover: bool = False, baseline: str | None = None
) -> Running:
    """Start the supervisor in a session of its own and wait until it serves; its error becomes ours. `baseline` is the digest of a remote one."""
    service.home.create()
    log = service.home.log / "service.log"
    try:
        with log.open("ab") as sink:
            began = sink.tell()
            child = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                _supervisor(service, manifest, recover=recover, baseline=baseline),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
    except OSError as error:
        raise UnavailableError(f"cannot start the service: {error}") from error
    try:
        return _wait_until_it_serves(service, child, log, began)
    except ConflictError:
        if pid := service.pid:  # another `up` was quicker; ours has ended by itself
            return _already_running(service, manifest, pid)
        raise
    except BaseException:
        if child.poll() is None:
            child.terminate()
        raise


def _wait_until_it_serves(service: Service, child: subprocess.Popen[bytes], log: Path, began: int) -> Running:
    deadline = time.monotonic() + START_SECONDS
    with service.client() as client:
        while time.monotonic() < deadline:
            if (code := child.poll()) is not None:
                raise error_for(code if code > 0 else Exit.BUG, _last_words(log, began))
            status = _status_or_none(client)
            # Another `up` may have been quicker; ours then ends by itself.
            if (
                status
                and status.get("weight") is not None
                and (status.get("pids") or {}).get("supervisor") == child.pid
            ):
                return Running(status, child.pid, "started")
            time.sleep(POLL_SECONDS)
    raise UnavailableError(f"service '{service.name}' does not serve after {START_SECONDS:g} s; see {log}")


def _status_or_none(client: AdminClient) -> dict[str, Any] | None:
    try:
        return client.get(STATUS, timeout=1.0)
    except DeployctlError:
        return None


def _last_words(log: Path, began: int) -> str:
    with log.open("rb") as written:
        written.seek(began)
        lines = written.read().decode(errors="replace").split("\n")
    words = [line.strip() for line in lines if line.strip()]
    return words[-1].removeprefix("deployctl: ") if words else f"the service ended without a word; see {log}"


def _already_running(service: Service, manifest: Manifest, pid: int) -> Running:
    """Compare what it runs with what is asked for; the service refuses another `spec.service` with a conflict."""
    deadline = time.monotonic() + ANSWER_SECONDS
    with service.client() as client:
        while True:
            try:
                client.post("/v1/up", {"manifest": manifest.text, "path": str(_path(manifest))})
                return Running(client.get(STATUS), pid, "running")
            except UnavailableError:  # it holds its lock, but does not listen yet
                if service.pid is None or time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)


def _become(service: Service, manifest: Manifest, *, recover: bool, output: Output) -> NoReturn:
    """The supervisor takes this process over, and with it the terminal; it says itself where it serves."""
    baseline = baseline_for(service, manifest)
    arguments = [
        *_supervisor(service, manifest, recover=recover, baseline=baseline),
        *("--output", output.value),
    ]
    os.execv(sys.executable, arguments)  # noqa: S606 - our own interpreter and module


def _supervisor(service: Service, manifest: Manifest, *, recover: bool, baseline: str | None) -> list[str]:
    """The command line of a service; where it listens is there because the supervisor reads no manifest."""
    listen = manifest.service
    arguments = [sys.executable, "-m", "deployctl.supervisor", "--manifest", str(_path(manifest))]
    arguments += ["--state", str(service.home.path), "--listen", f"{listen.host}:{listen.port}"]
    if baseline is not None:
        arguments += ["--baseline-digest", baseline]
    return [*arguments, "--recover"] if recover else arguments


def _path(manifest: Manifest) -> Path:
    return Path(manifest.source).absolute()


def _stop(service: Service, pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while service.pid == pid:
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"service '{service.name}' (pid {pid}) has not stopped within {STOP_SECONDS:g} s; see {service.home.log}"
            )
        time.sleep(POLL_SECONDS)
