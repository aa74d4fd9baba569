"""What `up` runs: opens every listening socket, starts and restarts the processes, decides nothing.

It holds the service's lock and its sockets, so that a killed router or controller costs only what was in flight in it: callers wait
in the backlog instead of being refused. Its children die with it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deployctl.errors import ConflictError, DeployctlError, Exit, UnavailableError
from deployctl.statedir import ServiceHome
from deployctl.wire.lifeline import child_environment

BACKLOG = 4096
STOP_SECONDS = 10.0
"""How long a child may take to finish what it has in hand before it is killed."""

BACK_OFF = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds before the n-th restart in a row; the last one repeats."""

HOPELESS = 3
"""Starts in a row after which a controller that has never served is given up."""

SETTLED_SECONDS = 30.0
"""A child that ran for so long (a worker: was ready for so long) starts at the front of BACK_OFF again."""

NOT_AT_ONCE = 1.0
"""Seconds at least before a worker is started again that could not load its model, or could not be started."""


def open_data_socket(host: str, port: int) -> socket.socket:
    """The listening socket of the data plane. Raises UnavailableError when the port cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    data = socket.socket(family, socket.SOCK_STREAM)
    try:
        data.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        data.bind((host, port))
        data.listen(BACKLOG)
    except OSError as error:
        data.close()
        reason = error.strerror or str(error)
        raise UnavailableError(
            f"cannot listen on {host}:{port}: {reason}; set another spec.service.listen, or port 0 for a free one"
        ) from error
    return data


def open_private_socket(path: Path) -> socket.socket:
    """A listening Unix socket that only its owner may connect to; a stale one is replaced (we hold the lock)."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(str(path))
    finally:
        os.umask(before)
    sock.listen(BACKLOG)
    return sock


LONGEST_LINE = 16 * 1024 * 1024
"""Bytes of one message of a child: every worker's settings are in it, with the names of all classes."""


@dataclass(slots=True)
class Child:
    """One process that is to run: started again whenever it ends, later and later if it ends at once."""

    name: str
    argv: list[str]
    fds: tuple[int, ...] = ()
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0
    stopping: bool = False
    task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        return self.process.pid if self.process and self.process.returncode is None else 0


@dataclass(slots=True)
class WorkerChild(Child):
    """A worker and what it reported of itself. `in_a_row` are its ends since it last was settled, `last_end` the exit code of the
    last one (negative: a signal).
    """

    settings: dict[str, Any] = field(default_factory=dict)
    state: str = "starting"
    report: Mapping[str, Any] = field(default_factory=dict)
    in_a_row: int = 0
    last_end: int = 0

    def described(self) -> dict[str, Any]:
        """The worker as the controller is told of it."""
        return {
            "id": self.settings["id"],
            "digest": self.settings["digest"],
            "pid": self.pid,
            "state": self.state,
            "restarts": self.restarts,
            "report": self.report,
            "in_a_row": self.in_a_row,
            "last_end": self.last_end,
        }


class Supervisor:
    """The parent of one service. Obeys the controller's messages and the signals of whoever started it."""

    def __init__(
        self, home: ServiceHome, manifest: Path, data: socket.socket, *, recover: bool, as_json: bool
    ) -> None:
        self._home = home
        self._as_json = as_json
        self._manifest = manifest
        self._recover = recover
        self._data = data
        self._admin = open_private_socket(home.admin_socket)
        self._orders = open_private_socket(home.orders_socket)
        self._workers: dict[str, WorkerChild] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._heard = 0
        self._router: Child | None = None
        self._controller: Child | None = None
        self._control: asyncio.StreamWriter | None = None
        self._fence = 0
        self._ended = asyncio.Event()
        self._exit = (Exit.DONE, "")
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Until a signal or the controller ends the service; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._ended.set)
        self._background(self._keep_controller())
        await self._ended.wait()
        await self._stop_all()
        code, message = self._exit
        if message:
            print(f"deployctl: {message}", file=sys.stderr, flush=True)  # noqa: T201 - the service's last line
        return int(code)

    async def _keep_controller(self) -> None:
        """A controller at all times, each with a channel and a fencing number of its own."""
        loop = asyncio.get_running_loop()
        in_a_row = 0
        while not self._ended.is_set():
            began = loop.time()
            ours, theirs = socket.socketpair()
            self._fence += 1
            argv = [
                *_module("controller"),
                *("--admin-fd", str(self._admin.fileno()), "--orders-fd", str(self._orders.fileno())),
                *("--control-fd", str(theirs.fileno()), "--fence", str(self._fence)),
                *("--state", str(self._home.state), "--name", self._home.name),
                *("--manifest", str(self._manifest), "--address", _address(self._data)),
            ]
            if self._recover:
                argv.append("--recover")
            fds = (self._admin.fileno(), self._orders.fileno(), theirs.fileno())
            child = Child("controller", argv, fds)
            self._controller = child
            child.process = await asyncio.create_subprocess_exec(
                *argv, pass_fds=fds, stdin=asyncio.subprocess.DEVNULL, env=child_environment()
            )
            theirs.close()
            await self._obey(ours)
            await child.process.wait()
            # One that was killed before it had recovered is followed by one that recovers.
            self._recover = self._recover and self._router is None
            in_a_row = 0 if loop.time() - began > SETTLED_SECONDS else in_a_row + 1
            if in_a_row > HOPELESS and self._router is None:
                self._exit = (
                    Exit.BUG,
                    "the controller ends again and again before it serves; its trace is above",
                )
                self._ended.set()
            await asyncio.sleep(BACK_OFF[min(in_a_row, len(BACK_OFF)) - 1] if in_a_row else 0.0)

    async def _obey(self, channel: socket.socket) -> None:
        """Carry out one controller's messages until its channel ends."""
        reader, writer = await asyncio.open_unix_connection(sock=channel, limit=LONGEST_LINE)
        self._control = writer
        self._heard = 0
        self._tell()
        try:
            while line := await reader.readline():
                self._carry_out(json.loads(line))
        except ConnectionError:
            pass
        finally:
            self._control = None
            writer.close()

    def _carry_out(self, message: dict[str, Any]) -> None:
        if "workers" in message:
            self._heard = message["number"]
            self._want_workers(message["workers"])
        if "router" in message and self._router is None:
            self._start_router(message["router"])
        if "say" in message:
            line = json.dumps(message["document"]) if self._as_json else message["say"]
            with contextlib.suppress(OSError):
                print(line, flush=True)  # noqa: T201 - `up` in the foreground says where it serves
        if "exit" in message:
            self._exit = (Exit(message["exit"]["code"]), message["exit"]["message"])
            self._ended.set()

    def _want_workers(self, wanted: list[dict[str, Any]]) -> None:
        by_id = {settings["id"]: settings for settings in wanted}
        for gone in self._workers.keys() - by_id.keys():
            self._leaving[gone] = self._background(_stop(self._workers.pop(gone)))
        for worker_id, settings in by_id.items():
            if worker_id not in self._workers:
                worker = WorkerChild(f"worker {settings['version']}", [], settings=settings)
                self._workers[worker_id] = worker
                worker.task = self._background(self._keep_worker(worker))
        self._tell()

    def _start_router(self, settings: dict[str, Any]) -> None:
        argv = [
            *_module("router"),
            *("--data-fd", str(self._data.fileno()), "--orders", str(self._home.orders_socket)),
            *("--settings", json.dumps(settings)),
        ]
        self._router = Child("router", argv, (self._data.fileno(),))
        self._router.task = self._background(self._keep(self._router))

    async def _keep(self, child: Child) -> None:
        """Start a child, and start it again whenever it ends, until it is to stop."""
        loop = asyncio.get_running_loop()
        in_a_row = 0
        while not child.stopping and not self._ended.is_set():
            began = loop.time()
            child.process = await asyncio.create_subprocess_exec(
                *child.argv, pass_fds=child.fds, stdin=asyncio.subprocess.DEVNULL, env=child_environment()
            )
            self._tell()
            await child.process.wait()
            in_a_row = 0 if loop.time() - began > SETTLED_SECONDS else in_a_row + 1
            child.restarts += 1
            if not child.stopping and not self._ended.is_set():
                await asyncio.sleep(BACK_OFF[min(in_a_row - 1, len(BACK_OFF) - 1)])

    async def _keep_worker(self, worker: WorkerChild) -> None:
        """As `_keep`, with a report pipe. Whoever is wanted is started again, also after it could not load its model: its bytes or the
        memory may come back, and a candidate of whom that is known is not wanted any more.
        """
        if leaving := self._leaving.pop(worker.settings["id"], None):
            await asyncio.wait([leaving])  # the one before it has the same socket
        while not worker.stopping and not self._ended.is_set():
            worker.state, worker.report = "starting", {}
            reading, writing = os.pipe()
            if started := await _start_worker(worker, writing):
                self._tell()
                await self._read_report(worker, reading)
                await self._until_it_ends(worker)
                worker.in_a_row += 1
                worker.restarts += 1
            else:
                os.close(reading)
            if worker.state != "failed":
                worker.state = "starting"
            self._tell()
            if not worker.stopping and not self._ended.is_set():
                back_off = BACK_OFF[min(max(worker.in_a_row, 1), len(BACK_OFF)) - 1]
                hopeful = started and worker.state != "failed"
                await asyncio.sleep(back_off if hopeful else max(back_off, NOT_AT_ONCE))

    async def _until_it_ends(self, worker: WorkerChild) -> None:
        process = worker.process
        assert process is not None
        try:
            # Not from its start: a model that takes longer than this to load would be settled before it answers anything.
            await asyncio.wait_for(process.wait(), SETTLED_SECONDS if worker.state == "ready" else None)
        except TimeoutError:
            worker.in_a_row = 0
            self._tell()
            await process.wait()
        worker.last_end = process.returncode or 0

    async def _read_report(self, worker: WorkerChild, reading: int) -> None:
        reader = asyncio.StreamReader(limit=LONGEST_LINE)
        pipe = os.fdopen(reading, "rb", buffering=0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            line = await reader.readline()
            if line.endswith(b"\n"):
                worker.report = json.loads(line)
                worker.state = "ready" if "ready" in worker.report else "failed"
                self._tell()
        finally:
            transport.close()

    def _tell(self) -> None:
        """Tell the controller how things stand; called at every change."""
        if self._control is None:
            return
        state = {
            "supervisor": os.getpid(),
            "heard": self._heard,
            "routers": [self._router.pid] if self._router else [],
            "workers": [worker.described() for worker in self._workers.values()],
        }
        self._control.write(json.dumps(state).encode() + b"\n")

    async def _stop_all(self) -> None:
        """The router first, so that it can finish what it has in hand; then those whom it needs for that."""
        if self._router is not None:
            await _stop(self._router)
        await asyncio.gather(*(_stop(worker) for worker in self._workers.values()))
        if self._controller is not None:
            await _stop(self._controller)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for path in (self._home.admin_socket, self._home.orders_socket):
            path.unlink(missing_ok=True)

    def _background(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _start_worker(worker: WorkerChild, report: int) -> bool:
    """Whether its process could be started; `report` is closed here either way. Without memory it is tried again later."""
    argv = [
        *_module("serving"),
        *("--socket", worker.settings["socket"], "--report-fd", str(report)),
        *("--settings", json.dumps(worker.settings)),
    ]
    try:
        worker.process = await asyncio.create_subprocess_exec(
            *argv, pass_fds=(report,), stdin=asyncio.subprocess.DEVNULL, env=child_environment()
        )
    except OSError as error:
        if error.errno == errno.E2BIG:
            words = "the names of its classes are too long for a process: 128 KiB at most"
            worker.state, worker.report = "failed", {"failed": words, "exit_code": int(Exit.INVALID)}
        return False
    finally:
        os.close(report)
    return True


async def _stop(child: Child) -> None:
    """SIGTERM, then SIGKILL for one that does not finish in time."""
    child.stopping = True
    process = child.process
    if process is None or process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", f"deployctl.{name}"]


def _address(data: socket.socket) -> str:
    host, port = data.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def main() -> int:
    """Entry point of `python -m deployctl.supervisor`; the CLI has checked the manifest before."""
    parser = argparse.ArgumentParser(prog="deployctl.supervisor")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True, help="the service's own directory")
    parser.add_argument("--listen", required=True, help="HOST:PORT")
    parser.add_argument("--recover", action="store_true")
    parser.add_argument("--output", choices=["text", "json"], help="given by `up` in the foreground")
    given = parser.parse_args()
    host, _, port = given.listen.rpartition(":")
    try:
        with ServiceHome(given.state.parent, given.state.name).lock() as lock:
            data = open_data_socket(host.strip("[]"), int(port))
            supervisor = Supervisor(
                lock.home, given.manifest, data, recover=given.recover, as_json=given.output == "json"
            )
            return asyncio.run(supervisor.run())
    except ConflictError as error:
        if given.output is None:
            return _refused(error)
        # Another `up` was quicker: ours starts over, finds the service running, and compares.
        again = [sys.executable, "-m", "deployctl", "up", str(given.manifest), "-o", given.output]
        os.execv(sys.executable, again)  # noqa: S606 - our own interpreter and module
    except DeployctlError as error:
        return _refused(error)


def _refused(error: DeployctlError) -> int:
    print(f"deployctl: {error}", file=sys.stderr)  # noqa: T201 - the service's last line
    return int(error.exit_code)


if __name__ == "__main__":
    sys.exit(main())
