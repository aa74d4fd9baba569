"""From one release to the next in the same process: what a supervisor holds, for the code that takes its place by exec.

The process, its lock, its sockets and its children stay. A handover is read with patience: a key that is missing or unknown is that
of another release.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

from deployctl.errors import UnavailableError, error_for
from deployctl.wire.lifeline import child_environment

FORMAT = 1
REHEARSAL_SECONDS = 60.0
REAP_SECONDS = 0.02
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""They end a service; while nobody is there to take them they wait."""


@dataclass(frozen=True, slots=True)
class Held:
    """A child that lives on: its pid, what it was started for, and what it said of itself."""

    pid: int
    settings: dict[str, Any] = field(default_factory=dict)
    state: str = ""
    report: dict[str, Any] = field(default_factory=dict)
    restarts: int = 0
    in_a_row: int = 0


@dataclass(frozen=True, slots=True)
class Handover:
    """All that a supervisor holds. Sockets and the lock are descriptors, which exec keeps."""

    release: str
    generation: int
    """How often this service has been taken over, the one that is under way included."""
    fence: int
    lock: int
    data: int
    admin: int
    orders: int
    controller: Held | None
    routers: list[Held]
    workers: list[Held]
    leaving: list[Held]
    """Those that have been told to end."""
    format: int = FORMAT

    @property
    def descriptors(self) -> tuple[int, ...]:
        return (self.lock, self.data, self.admin, self.orders)


class Process(Protocol):
    """A child of ours, whoever started it."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    async def wait(self) -> int: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class Adopted:
    """A child that was started by the code that ran in this process before: `asyncio` knows nothing of it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._returncode: int | None = None

    @property
    def returncode(self) -> int | None:
        """None while it runs. A child that is not reaped keeps its pid, so none but it can be meant."""
        if self._returncode is None:
            try:
                ended, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # it ended, and was reaped, just before the exec
                self._returncode = 0
            else:
                self._returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self._returncode

    async def wait(self) -> int:
        while (code := self.returncode) is None:  # noqa: ASYNC110 - a signal of the kernel, not an event of ours
            await asyncio.sleep(REAP_SECONDS)
        return code

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)


async def rehearse(python: str, handover: Handover, state: Path, name: str) -> dict[str, Any]:
    """Have the release of this interpreter say whether it can take the service over; its own words of itself.

    Raises UnavailableError for one that does not start, and whatever it raises itself; nothing has changed then.
    """
    argv = [python, "-m", "deployctl.rehearsal", "--state", str(state), "--name", name]
    pipe = asyncio.subprocess.PIPE
    try:
        child = await asyncio.create_subprocess_exec(
            *argv, stdin=pipe, stdout=pipe, stderr=pipe, env=child_environment()
        )
    except OSError as error:
        raise UnavailableError(f"{python}: {error.strerror or error}; nothing was changed") from error
    try:
        async with asyncio.timeout(REHEARSAL_SECONDS):
            said, trouble = await child.communicate(encoded(handover))
    except TimeoutError as error:
        raise UnavailableError(
            f"{python}: the release did not rehearse within {REHEARSAL_SECONDS:g} s; nothing was changed"
        ) from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
    return _judged(python, child.returncode, said, trouble)


def _judged(python: str, code: int | None, said: bytes, trouble: bytes) -> dict[str, Any]:
    try:
        document = json.loads(said)
    except ValueError:
        document = {}
    if code == 0 and isinstance(document, dict) and "release" in document:
        return document
    if isinstance(document, dict) and "refused" in document:
        raise error_for(int(document["exit_code"]), f"{document['refused']}; nothing was changed")
    words = trouble.decode(errors="replace").strip().splitlines() or [f"it ended with {code}"]
    raise UnavailableError(
        f"{python}: the release there does not start: {words[-1]}; nothing was changed; repair it, then try again"
    )


def become(argv: list[str], handover: Handover, home: Path) -> None:
    """Replace the code of this process; the new one finds the handover behind the descriptor that ends its command line.

    Returns never, or raises UnavailableError with everything as it was.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        with tempfile.TemporaryFile(dir=home) as letter, _inheritable(*handover.descriptors, letter.fileno()):
            letter.write(encoded(handover))
            letter.flush()
            letter.seek(0)
            os.execv(argv[0], [*argv, "--take-over", str(letter.fileno())])  # noqa: S606 - rehearsed
    except OSError as error:
        raise UnavailableError(f"{argv[0]}: cannot take over: {error.strerror or error}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def taken(descriptor: int) -> Handover:
    """What the code before left for us. Our children do not inherit it."""
    with os.fdopen(descriptor, "rb") as letter:
        handover = decoded(letter.read())
    for one in handover.descriptors:
        os.set_inheritable(one, False)
    return handover


def encoded(handover: Handover) -> bytes:
    document = asdict(handover)
    if len(handover.routers) < 2:  # a release that knows of one only can take over as well
        document["router"] = document["routers"][0] if document["routers"] else None
    return json.dumps(document).encode()


def decoded(data: bytes) -> Handover:
    """Raises UnavailableError for what no release that we know has written."""
    try:
        document = json.loads(data)
        if document["format"] != FORMAT:
            raise UnavailableError(
                f"the running release hands over in format {document['format']}, this one reads {FORMAT}; "
                "upgrade to a release between the two first"
            )
        document["controller"] = _known(Held, document["controller"]) if document["controller"] else None
        if "routers" not in document:  # a release that knew of one only
            document["routers"] = [document["router"]] if document["router"] else []
        for name in ("routers", "workers", "leaving"):
            document[name] = [_known(Held, held) for held in document[name]]
        return _known(Handover, document)
    except (ValueError, KeyError, TypeError) as error:
        raise UnavailableError(
            f"the running release hands over what this one cannot read: {error!r}"
        ) from error


Kind = TypeVar("Kind", Held, Handover)


def _known(kind: type[Kind], document: Mapping[str, Any]) -> Kind:
    known = {each.name for each in fields(kind)}
    return kind(**{name: value for name, value in document.items() if name in known})


@contextlib.contextmanager
def _inheritable(*descriptors: int) -> Iterator[None]:
    flags = {one: fcntl.fcntl(one, fcntl.F_GETFD) for one in descriptors}
    try:
        for one in descriptors:
            os.set_inheritable(one, True)
        yield
    finally:
        for one, flag in flags.items():
            fcntl.fcntl(one, fcntl.F_SETFD, flag)
