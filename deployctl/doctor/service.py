"""One service: whether it runs, whether all of it answers, and what keeps it from starting where it does not."""

from __future__ import annotations

import errno
import http.client
import os
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from deployctl import __version__
from deployctl.core.plan import HUMAN
from deployctl.doctor.check import PATIENCE_SECONDS, Check, Result, examined, of_service, problem, warning
from deployctl.doctor.door import certificate_checks, label_checks, token_checks
from deployctl.doctor.machine import CONNECTIONS, free_memory, open_files
from deployctl.doctor.processes import Process, children, holder, port_of, process, refusal
from deployctl.doctor.state import privacy
from deployctl.doctor.stored import (
    Told,
    journal_checks,
    leftover_checks,
    model_checks,
    record_checks,
    room_checks,
)
from deployctl.errors import DeployctlError, IntegrityError, UnavailableError
from deployctl.statedir import ServiceHome, running_pid
from deployctl.views.figures import size, span
from deployctl.wire.admin import AdminClient

STATUS, READY = "/v1/status", "/v2/health/ready"
LOOK_SECONDS = 0.1
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where one that listens everywhere is asked
STOPPED = "tT"
"""States of a process that a signal or a debugger holds."""


@dataclass(slots=True)
class Seen:
    """What is known of a service when its checks are made. `pid` None: it does not run; `silence`: why there is no status."""

    home: ServiceHome
    pid: int | None = None
    status: dict[str, Any] | None = None
    silence: DeployctlError | None = None
    story: Told = field(default_factory=Told)

    @property
    def runs(self) -> bool:
        return self.pid is not None


def service_checks(home: ServiceHome) -> list[Check]:
    """All of them, the journal's first: it says what the service should look like."""
    seen = Seen(home)
    try:
        there = home.path.is_dir()
        seen.pid = running_pid(home) if there else None
    except (DeployctlError, OSError) as error:
        found = [*examined("directory", _directory, home), *examined("running", _raise, error)]
        return of_service(home.name, found)
    if not there:
        told = problem(
            "running", f"there is no state of a service of this name in {home.state}", "see `deployctl list`"
        )
        return of_service(home.name, [told])
    journal = [*examined("journal", lambda: journal_checks(home, seen.story, runs=seen.runs))]
    if seen.runs:
        seen.status, seen.silence = _asked(home)
    living = _running(seen) if seen.runs else _stopped(seen)
    return of_service(
        home.name, [*examined("directory", _directory, home), *living, *journal, *_stored(seen)]
    )


def _raise(error: Exception) -> Iterator[Check]:
    raise error


def _asked(home: ServiceHome) -> tuple[dict[str, Any] | None, DeployctlError | None]:
    try:
        if not home.admin_socket.exists():
            return None, UnavailableError(f"{home.admin_socket} is gone")
        with AdminClient(home.admin_socket, home.name) as client:
            return client.get(STATUS, timeout=PATIENCE_SECONDS), None
    except DeployctlError as error:
        return None, error
    except OSError as error:
        return None, UnavailableError(f"{error.filename}: {error.strerror}")


def _directory(home: ServiceHome) -> Iterator[Check]:
    found = [privacy("directory", home.path)]
    found += [privacy("directory", path) for path in (home.records, home.models, home.log) if path.exists()]
    bad = [one for one in found if one.result is not Result.OK]
    yield from bad or found[:1]


def _running(seen: Seen) -> Iterator[Check]:
    assert seen.pid is not None
    yield from examined("running", _lives, seen)
    yield from examined("processes", _processes, seen)
    yield from examined("admin", _admin, seen)
    yield from examined("ready", _ready, seen)
    if seen.status is not None:
        yield from examined("release", _release, seen.home.name, seen.status)
        yield from examined("rollout", _rollout, seen.home.name, seen.status)
        yield from examined("trouble", _trouble, seen)
        yield from examined("memory", _memory, seen)


def _stopped(seen: Seen) -> Iterator[Check]:
    yield Check("running", "stopped")
    yield from examined("port", _port, seen)
    rollout = seen.story.service.rollout if seen.story.service else None
    if rollout is not None and not rollout.finished:
        yield warning(
            "rollout",
            f"rollout {rollout.id} stands still at {rollout.weight:g} %, phase {rollout.phase.value.replace('_', ' ')}: the service is stopped",
            "deployctl up FILE: it goes on from there",
        )


def _stored(seen: Seen) -> Iterator[Check]:
    home, story, runs = seen.home, seen.story, seen.runs

    def free() -> int:
        status = os.statvfs(home.path)
        return status.f_bavail * status.f_frsize

    yield from examined("records", record_checks, home, story)
    yield from examined("models", lambda: model_checks(home, story, runs=runs))
    yield from examined("log-size", lambda: room_checks(home, story, free, runs=runs))
    callers = (story.spec.get("limits") or {}).get("connections", CONNECTIONS)
    if callers > CONNECTIONS:
        yield from examined("open-files", open_files, callers)
    yield from examined("tls", certificate_checks, home, story.spec, seen.pid)
    yield from examined("tokens", token_checks, home, story.spec, seen.pid)
    yield from examined("label-files", label_checks, story.label_files, seen.status)
    yield from examined("leftovers", lambda: leftover_checks(home, runs=runs))


# ── one that runs ──────────────────────────────────────────────────────────────────────────────────────────────────


def _lives(seen: Seen) -> Iterator[Check]:
    pid = seen.pid
    assert pid is not None
    supervisor = process(pid)
    if supervisor is None and process(os.getpid()) is not None:
        yield problem(
            "running",
            f"its lock is held, though the process that wrote itself into it (pid {pid}) is gone",
            f"end the holder: fuser {seen.home.lock_file}",
        )
        return
    since = f" for {span(supervisor.age)}" if supervisor else ""
    url = f" at {seen.status['url']}" if seen.status else ""
    yield Check("running", f"runs{since}{url} (pid {pid})")


def _processes(seen: Seen) -> Iterator[Check]:
    """Whether there is one of each kind, and none stands still. One that is missing may just be on its way."""
    pid = seen.pid
    assert pid is not None
    deadline = time.monotonic() + PATIENCE_SECONDS
    found, missing = _family(seen, pid)
    while missing and time.monotonic() < deadline and running_pid(seen.home) == pid:
        time.sleep(LOOK_SECONDS)
        found, missing = _family(seen, pid)
    if not found:
        yield Check("processes", "this system does not show them")
        return
    names = {one.pid: "supervisor" if one.pid == pid else one.kind for one in found}
    held = [one for one in found if one.state in STOPPED]
    for one in held:
        yield problem(
            "processes",
            f"the {names[one.pid]} (pid {one.pid}) stands still: a signal or a debugger holds it",
            f"kill -CONT {one.pid}",
        )
    for kind, number in missing.items():
        how_many = f"{number} {kind}{'s are' if number > 1 else ' is'}"
        yield problem(
            "processes", f"{how_many} missing", f"see {seen.home.log / 'service.log'}: it says why it ended"
        )
    if not held and not missing:
        said = ", ".join(f"{name} {one}" for one, name in names.items())
        yield Check("processes", f"{said}: {size(sum(one.memory for one in found))} of memory")


def _family(seen: Seen, pid: int) -> tuple[list[Process], dict[str, int]]:
    """The processes of a service, the supervisor first, and how many are missing of which kind."""
    supervisor = process(pid)
    if supervisor is None:
        return [], {}
    living = [one for one in children(pid) if one.kind and one.state not in "ZX"]
    service = seen.story.service
    workers = [version for version in service.versions if version != HUMAN] if service else []
    wanted = {"controller": 1, "router": int(seen.story.spec.get("routers", 1)), "worker": len(workers)}
    missing = {kind: number - sum(one.kind == kind for one in living) for kind, number in wanted.items()}
    return [supervisor, *living], {kind: number for kind, number in missing.items() if number > 0}


def _admin(seen: Seen) -> Iterator[Check]:
    home = seen.home
    if seen.status is not None:
        yield Check("admin", f"its controller answers on {home.admin_socket}")
    elif isinstance(seen.silence, IntegrityError):
        raise seen.silence
    elif not home.admin_socket.exists():
        yield problem(
            "admin",
            f"{home.admin_socket} is gone, so no command reaches it; callers are served as before",
            f"deployctl down {home.name}, then deployctl up FILE; see who removes files there",
        )
    else:
        yield problem(
            "admin",
            f"its controller does not answer within {PATIENCE_SECONDS:g} s ({seen.silence}); callers are served as before",
            f"see {home.log / 'service.log'}; a controller that is killed is started again and goes on: {_kill_controller(seen)}",
        )


def _kill_controller(seen: Seen) -> str:
    assert seen.pid is not None
    controllers = [str(one.pid) for one in children(seen.pid) if one.kind == "controller"]
    return f"kill -9 {' '.join(controllers) or 'PID'}"


def _ready(seen: Seen) -> Iterator[Check]:
    """A router's own word on the address that callers use."""
    url = (seen.status or {}).get("url") or _url(seen)
    if url is None:
        yield warning(
            "ready", "where it listens is not known, as its controller does not answer", "see above"
        )
        return
    try:
        code = _health(url)
    except (OSError, http.client.HTTPException) as error:
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        yield problem(
            "ready",
            f"no router answers at {url}{READY} within {PATIENCE_SECONDS:g} s: {words}",
            f"see {seen.home.log / 'service.log'}",
        )
        return
    if code == http.HTTPStatus.OK:
        yield Check("ready", f"a router answers at {url} and reaches the live version")
    else:
        yield problem(
            "ready",
            f"{url}{READY} answers {code}: the live version is not connected",
            f"see {seen.home.log / 'service.log'}; it is started again by itself",
        )


def _health(url: str) -> int:
    parts = urlsplit(url)
    host = ANYWHERE.get(parts.hostname or "", parts.hostname or "")
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname = (
            False  # `tls` looks at the certificate; here it is asked whether somebody answers
        )
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, parts.port, timeout=PATIENCE_SECONDS, context=context)
    else:
        connection = http.client.HTTPConnection(host, parts.port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("GET", READY)
        return connection.getresponse().status
    finally:
        connection.close()


def _url(seen: Seen) -> str | None:
    """Where it listens, when its controller does not say so."""
    host, _, _ = str(seen.story.spec.get("listen", "")).rpartition(":")
    port = port_of(seen.pid) if seen.pid is not None else None
    return f"{'https' if 'tls' in seen.story.spec else 'http'}://{host}:{port}" if host and port else None


def _release(name: str, status: dict[str, Any]) -> Iterator[Check]:
    theirs, upgrade = status.get("release") or "an old one", status.get("upgrade") or {}
    if upgrade.get("trouble"):
        yield problem(
            "release",
            f"an upgrade to {theirs}: {upgrade['trouble']}",
            f"mend it, then deployctl upgrade {name}",
        )
    elif upgrade.get("left"):
        yield warning(
            "release",
            f"an upgrade to {theirs} is under way; still of the release before: {', '.join(upgrade['left'])}",
            "wait for it; it goes on by itself",
        )
    elif theirs != __version__:
        yield warning(
            "release",
            f"it is of release {theirs}, and this command of {__version__}",
            f"deployctl upgrade {name}",
        )
    else:
        yield Check("release", f"{theirs}, as this command")


def _rollout(name: str, status: dict[str, Any]) -> Iterator[Check]:
    rollout = status.get("rollout")
    if not rollout or status.get("finished"):
        yield Check("rollout", "none is open")
        return
    weight = "?" if status.get("weight") is None else f"{status['weight']:g}"
    phase = str(status.get("phase")).replace("_", " ")
    told = f"rollout {rollout}: {phase}, step {status.get('step')} of {status.get('steps')}, {weight} %"
    if status.get("waits_for"):
        reason = f" ({status['reason']})" if status.get("reason") else ""
        yield warning(
            "rollout",
            f"{told}; waits for a person{reason}",
            f"deployctl promote {name}, or deployctl rollback {name}",
        )
    elif status.get("phase") == "paused":
        yield warning("rollout", f"{told}; paused by a person", f"deployctl resume {name}")
    else:
        yield Check("rollout", f"{told}{f'; {said}' if (said := status.get('reason')) else ''}")


def _trouble(seen: Seen) -> Iterator[Check]:
    trouble = (seen.status or {}).get("trouble")
    if trouble:
        log = seen.home.log / "service.log"
        yield problem("trouble", str(trouble), f"see {log} and deployctl explain {seen.home.name}")


def _memory(seen: Seen) -> Iterator[Check]:
    """Whether one more version would fit beside those that run."""
    assert seen.pid is not None
    largest = max((one.memory for one in children(seen.pid) if one.kind == "worker"), default=0)
    free = free_memory()
    if free is not None and free < largest:
        yield warning(
            "memory",
            f"its largest worker takes {size(largest)}, and {size(free)} are free: a candidate like it would not fit",
            "make room before the next rollout, or bound the workers by spec.service.limits.workerMemory",
        )


# ── one that does not ──────────────────────────────────────────────────────────────────────────────────────────────


def _port(seen: Seen) -> Iterator[Check]:
    """Whether it could listen where it did when it was last started."""
    listen = str(seen.story.spec.get("listen", ""))
    host, _, port = listen.rpartition(":")
    if not listen:
        return
    if port == "0":
        yield Check("port", f"any free one of {host}")
        return
    error = refusal(host.strip("[]"), int(port))
    if error is None:
        yield Check("port", f"{listen} is free")
    elif error.errno == errno.EADDRINUSE:
        yield problem(
            "port", f"{listen} is held by {holder(int(port))}", "end it, or set another spec.service.listen"
        )
    elif error.errno == errno.EACCES:
        yield problem(
            "port",
            f"{listen}: you may not listen there",
            "set spec.service.listen to a port from 1024 on, or lower net.ipv4.ip_unprivileged_port_start",
        )
    else:
        yield problem(
            "port", f"{listen}: {error.strerror}", "set spec.service.listen to an address of this machine"
        )
