"""What `up` runs: opens every listening socket, starts and restarts the processes, decides nothing.

It holds the service's lock and its sockets, so that a killed router or controller costs only what was in flight in it: callers wait
in the backlog instead of being refused. Its children die with it. In an upgrade it becomes another release by exec (`handover.py`).
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

from deployctl import __version__, handover
from deployctl.errors import ConflictError, DeployctlError, Exit, UnavailableError
from deployctl.handover import Adopted, Handover, Held, Process
from deployctl.statedir import ServiceHome, ServiceLock
from deployctl.wire.lifeline import child_environment
from deployctl.wire.priority import step_back, take_long_turns

BACKLOG = 4096
STOP_SECONDS = 10.0
"""How long a child may take to finish what it has in hand before it is killed."""

DRAIN_SECONDS = 15.0
"""What a router may take beyond the time-out of a request: its callers have ten seconds to get on with what they send."""

BACK_OFF = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds before the n-th restart in a row; the last one repeats."""

HOPELESS = 3
"""Starts in a row after which a controller that has never served is given up."""

SETTLED_SECONDS = 30.0
"""A child that ran for so long (a worker: was ready for so long) starts at the front of BACK_OFF again."""

ROUTER_SETTLED_SECONDS = 3.0
"""The same for a router, which is quick to start and which every caller waits for."""

NOT_AT_ONCE = 1.0
"""Seconds at least before a worker is started again that could not load its model, or could not be started."""


def back_off(in_a_row: int) -> float:
    """Seconds before a child is started again that has ended so often in a row; 0 times: it had settled, and starts at once."""
    return BACK_OFF[max(0, min(in_a_row, len(BACK_OFF)) - 1)]


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


REPORT_LOOK = 0.02

LONGEST_LINE = 16 * 1024 * 1024
"""Bytes of one message of a child: every worker's settings are in it, with the names of all classes."""


@dataclass(slots=True)
class Child:
    """One process that is to run: started again whenever it ends, later and later if it ends at once."""

    name: str
    argv: list[str]
    fds: tuple[int, ...] = ()
    process: Process | None = None
    restarts: int = 0
    stopping: bool = False
    task: asyncio.Task[None] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        return self.process.pid if self.process and self.process.returncode is None else 0

    @property
    def of_before(self) -> bool:
        """Whether it runs code of the release before."""
        return isinstance(self.process, Adopted) and self.process.returncode is None

    def held(self) -> Held:
        """The child for whoever takes it over."""
        return Held(self.pid, self.settings)


@dataclass(slots=True)
class WorkerChild(Child):
    """A worker and what it reported of itself. `in_a_row` are its ends since it last was settled, `last_end` the exit code of the
    last one (negative: a signal).
    """

    state: str = "starting"
    report: Mapping[str, Any] = field(default_factory=dict)
    in_a_row: int = 0
    last_end: int = 0

    def held(self) -> Held:
        """As any child, with what it reported."""
        return Held(self.pid, self.settings, self.state, dict(self.report), self.restarts, self.in_a_row)

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
            "settings": self.settings,
        }


@dataclass(frozen=True, slots=True)
class Sockets:
    """The three that listen for as long as the service runs."""

    data: socket.socket
    admin: socket.socket
    orders: socket.socket


class Supervisor:
    """The parent of one service. Obeys the controller's messages and the signals of whoever started it."""

    def __init__(
        self,
        lock: ServiceLock,
        manifest: Path,
        sockets: Sockets,
        *,
        recover: bool,
        as_json: bool,
        baseline_digest: str | None = None,
    ) -> None:
        self._lock = lock
        self._home = lock.home
        self._as_json = as_json
        self._manifest = manifest
        self._recover = recover
        self._baseline_digest = baseline_digest
        self._data = sockets.data
        self._admin = sockets.admin
        self._orders = sockets.orders
        self._workers: dict[str, WorkerChild] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._heard = 0
        self._routers: list[Child] = []
        """Those that are kept, each at its place."""
        self._controller: Child | None = None
        self._retiring: list[Child] = []
        """Routers that serve on until the one that is to follow them does what was ordered."""
        self._going: list[Child] = []
        """Children that have been told to end."""
        self._leavers: list[Child] = []
        """Those of them that were taken over."""
        self._becoming = False
        self._control: asyncio.StreamWriter | None = None
        self._fence = 0
        self._generation = 0
        self._hung_up = False
        self._trouble: str | None = None
        self._ended = asyncio.Event()
        self._exit = (Exit.DONE, "")
        self._tasks: set[asyncio.Task[None]] = set()

    def take_over(self, before: Handover) -> None:
        """Everything goes on where the release before left it; `run` then replaces one child after the other."""
        self._fence, self._generation = before.fence, before.generation
        for held in before.workers:
            worker = WorkerChild(f"worker {held.settings['version']}", [], settings=held.settings)
            worker.state, worker.report = held.state, held.report
            worker.restarts, worker.in_a_row = held.restarts, held.in_a_row
            worker.process = Adopted(held.pid) if held.pid else None
            self._workers[held.settings["id"]] = worker
        for place, held in enumerate(before.routers):
            router = self._new_router(held.settings, place)
            router.process = Adopted(held.pid) if held.pid else None
            self._routers.append(router)
        self._leavers = [Child("one that ends", [], process=Adopted(held.pid)) for held in before.leaving]
        if before.controller is not None:
            self._controller = Child("controller", [], process=Adopted(before.controller.pid))

    async def run(self) -> int:
        """Until a signal or the controller ends the service; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in handover.SIGNALS:
            loop.add_signal_handler(number, self._ended.set)
        if not _has_terminal():  # one that has it ends with it
            loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handover.SIGNALS)  # they waited for us during an upgrade
        self._go_on()
        self._background(self._keep_controller())
        await self._ended.wait()
        await self._stop_all()
        code, message = self._exit
        if message:
            print(f"deployctl: {message}", file=sys.stderr, flush=True)  # noqa: T201 - the service's last line
        return int(code)

    def _go_on(self) -> None:
        """Keep what was taken over."""
        for child in self._leavers:
            self._background(self._let_go(child))
        for router in self._routers:
            router.task = self._background(self._keep(router))
        for worker_id, worker in self._workers.items():
            if worker.state == "starting" and worker.of_before:
                # What it says goes nowhere now. It has served nobody yet, so that another one costs nothing.
                before, worker.process = Child(worker.name, [], process=worker.process), None
                self._leaving[worker_id] = self._background(self._let_go(before))
            worker.task = self._background(self._keep_worker(worker))

    async def _keep_controller(self) -> None:
        """A controller at all times, each with a channel and a fencing number of its own."""
        loop = asyncio.get_running_loop()
        in_a_row = 0
        if self._controller is not None:
            await _stop(self._controller)
        while not self._ended.is_set():
            began = loop.time()
            ours, theirs = socket.socketpair()
            self._fence += 1
            argv = [
                *_module("controller"),
                *("--admin-fd", str(self._admin.fileno()), "--orders-fd", str(self._orders.fileno())),
                *("--control-fd", str(theirs.fileno()), "--fence", str(self._fence)),
                *("--state", str(self._home.state), "--name", self._home.name),
                *("--generation", str(self._generation)),
                *("--manifest", str(self._manifest), "--address", _address(self._data)),
            ]
            if self._recover:
                argv.append("--recover")
            if self._baseline_digest is not None:
                argv += ["--baseline-digest", self._baseline_digest]
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
            self._recover = self._recover and not self._routers
            in_a_row = 0 if loop.time() - began > SETTLED_SECONDS else in_a_row + 1
            if in_a_row > HOPELESS and not self._routers:
                self._exit = (
                    Exit.BUG,
                    "the controller ends again and again before it serves; its trace is above",
                )
                self._ended.set()
            await asyncio.sleep(back_off(in_a_row))

    async def _obey(self, channel: socket.socket) -> None:
        """Carry out one controller's messages until its channel ends."""
        reader, writer = await asyncio.open_unix_connection(sock=channel, limit=LONGEST_LINE)
        self._control = writer
        self._heard = 0
        self._tell()
        if self._hung_up:
            self._hang_up()
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
        self._carry_out_for_routers(message)
        if "rehearse" in message:
            self._background(self._rehearse(message["rehearse"]))
        if "become" in message:
            self._background(self._become(message["become"]))
        if "say" in message:
            line = json.dumps(message["document"]) if self._as_json else message["say"]
            with contextlib.suppress(OSError):
                print(line, flush=True)  # noqa: T201 - `up` in the foreground says where it serves
        if "exit" in message:
            self._exit = (Exit(message["exit"]["code"]), message["exit"]["message"])
            self._ended.set()

    def _carry_out_for_routers(self, message: dict[str, Any]) -> None:
        if "router" in message and not self._routers:
            self._start_routers(message["router"])
        if "renew" in message and any(router.of_before for router in self._routers):
            for router in self._routers:
                router.stopping = True  # it serves on, and is not started again
            self._retiring += self._routers
            self._start_routers(message["renew"])
        if "in_force" in message and {router.pid for router in self._routers} <= {*message["in_force"]}:
            for router in self._retiring:
                self._background(self._let_go(router, _patience_of(router)))
            self._retiring = []
        if "hung_up" in message:
            self._hung_up = False
            for router in self._all_routers if message["hung_up"] else ():
                if router.pid and not router.of_before:  # another release may take it for the end
                    # One that has just ended is followed by one that reads them anyway.
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(router.pid, signal.SIGHUP)

    def _hang_up(self) -> None:
        """SIGHUP: the controller reads what lies in files again, and then the routers do; with the next one where there is none now."""
        self._hung_up = True
        self._say({"hang_up": True})

    def _want_workers(self, wanted: list[dict[str, Any]]) -> None:
        by_id = {settings["id"]: settings for settings in wanted}
        for gone in self._workers.keys() - by_id.keys():
            self._leaving[gone] = self._background(self._let_go(self._workers.pop(gone)))
        for worker_id, settings in by_id.items():
            if worker_id not in self._workers:
                worker = WorkerChild(f"worker {settings['version']}", [], settings=settings)
                self._workers[worker_id] = worker
                worker.task = self._background(self._keep_worker(worker))
        self._tell()

    def _start_routers(self, settings: dict[str, Any]) -> None:
        self._routers = [self._new_router(settings, place) for place in range(settings["routers"])]
        for router in self._routers:
            router.task = self._background(self._keep(router))

    def _new_router(self, settings: dict[str, Any], place: int) -> Child:
        argv = [
            *_module("router"),
            *("--data-fd", str(self._data.fileno()), "--orders", str(self._home.orders_socket)),
            *("--heir", str(self._home.heir_socket(place)), "--settings", json.dumps(settings)),
        ]
        return Child("router", argv, (self._data.fileno(),), settings=settings)

    async def _let_go(self, child: Child, seconds: float = STOP_SECONDS) -> None:
        """Have a child end; until then it is one of those that go."""
        self._going.append(child)
        await _stop(child, seconds)
        self._going.remove(child)
        self._tell()

    async def _keep(self, child: Child) -> None:
        """Start a router, and start it again whenever it ends, until it is to stop."""
        loop = asyncio.get_running_loop()
        in_a_row = 0
        if child.process is not None:  # it was taken over
            await child.process.wait()
            self._tell()
        while not child.stopping and not self._ended.is_set():
            began = loop.time()
            child.process = await asyncio.create_subprocess_exec(
                *child.argv, pass_fds=child.fds, stdin=asyncio.subprocess.DEVNULL, env=child_environment()
            )
            self._tell()
            await child.process.wait()
            in_a_row = 0 if loop.time() - began > ROUTER_SETTLED_SECONDS else in_a_row + 1
            child.restarts += 1
            if not child.stopping and not self._ended.is_set():
                await asyncio.sleep(back_off(in_a_row))

    async def _keep_worker(self, worker: WorkerChild) -> None:
        """As `_keep`, with a report pipe. Whoever is wanted is started again, also after it could not load its model: its bytes or the
        memory may come back, and a candidate of whom that is known is not wanted any more.
        """
        if leaving := self._leaving.pop(worker.settings["id"], None):
            await asyncio.wait([leaving])  # the one before it has the same socket
        if worker.process is not None:  # it was taken over
            await self._until_it_ends(worker)
            worker.in_a_row += 1
            worker.restarts += 1
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
                wait = back_off(worker.in_a_row)
                hopeful = started and worker.state != "failed"
                await asyncio.sleep(wait if hopeful else max(wait, NOT_AT_ONCE))

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
            "routers": [router.pid for router in self._all_routers],
            "workers": [worker.described() for worker in self._workers.values()],
            "takeover": {
                "left": [child.name for child in self._children if child.of_before],
                "trouble": self._trouble,
            },
        }
        self._say(state)

    def _say(self, message: dict[str, Any]) -> None:
        if self._control is not None:
            self._control.write(json.dumps(message).encode() + b"\n")

    @property
    def _all_routers(self) -> list[Child]:
        """Those that are kept, and those that still finish what they have."""
        going = [child for child in (*self._retiring, *self._going) if child.name == "router" and child.pid]
        return [*self._routers, *going]

    @property
    def _children(self) -> list[Child]:
        controller = [self._controller] if self._controller is not None else []
        return [*controller, *self._routers, *self._workers.values(), *self._retiring, *self._going]

    # ── becoming another release ───────────────────────────────────────────────────────────────────────────────

    async def _rehearse(self, python: str) -> None:
        """Whether the release of this interpreter could take over; the controller is told, and nothing is changed."""
        self._trouble = None
        try:
            if self._becoming:
                raise ConflictError("another upgrade is just beginning; see `deployctl status`")
            found = await handover.rehearse(python, self._holdings(), self._home.state, self._home.name)
        except DeployctlError as error:
            found = {"refused": str(error), "exit_code": int(error.exit_code)}
        self._say({"rehearsal": found})

    async def _become(self, python: str) -> None:
        """Exec: the same process, other code. Whatever keeps that from happening is told, and everything goes on as it was."""
        self._becoming = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + STOP_SECONDS
        # A report that is on its way would be lost with our end of the pipe.
        while any(worker.state == "starting" and worker.pid for worker in self._workers.values()):
            if loop.time() > deadline:
                break
            await asyncio.sleep(REPORT_LOOK)
        if self._ended.is_set():
            return
        argv = [python, "-m", "deployctl.supervisor", "--manifest", str(self._manifest)]
        argv += ["--state", str(self._home.path), "--listen", _address(self._data)]
        if self._as_json:
            argv += ["--output", "json"]
        try:
            handover.become(argv, self._holdings(), self._home.path)
        except UnavailableError as error:
            self._becoming, self._trouble = False, str(error)
            self._tell()

    def _holdings(self) -> Handover:
        # Where routers were to be followed and are not yet, those that serve are those to go on with.
        serving = self._retiring or self._routers
        going = [*self._going, *(self._routers if self._retiring else [])]
        return Handover(
            release=__version__,
            generation=self._generation + 1,
            fence=self._fence,
            lock=self._lock.fd,
            data=self._data.fileno(),
            admin=self._admin.fileno(),
            orders=self._orders.fileno(),
            controller=self._controller.held() if self._controller and self._controller.pid else None,
            routers=[router.held() for router in serving],
            workers=[worker.held() for worker in self._workers.values()],
            leaving=[child.held() for child in going if child.pid],
        )

    # ── the end ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _stop_all(self) -> None:
        """The routers first, so that they can finish what they have in hand; then those whom they need for that."""
        of_before = self._all_routers[len(self._routers) :]
        for routers in (
            of_before,
            self._routers,
        ):  # those of before give their callers to those that are kept
            await asyncio.gather(*(_stop(router, _patience_of(router)) for router in routers))
        await asyncio.gather(*(_stop(worker) for worker in self._workers.values()))
        if self._controller is not None:
            await _stop(self._controller)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        heirs = [self._home.heir_socket(place) for place in range(len(self._routers))]
        for path in (self._home.admin_socket, self._home.orders_socket, *heirs):
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
    # It does so itself, too; but until then its start takes the processor from callers.
    if worker.settings.get("idle"):
        step_back(worker.process.pid)
    else:
        take_long_turns(worker.process.pid)
    return True


async def _stop(child: Child, seconds: float = STOP_SECONDS) -> None:
    """SIGTERM, then SIGKILL for one that does not finish in time."""
    child.stopping = True
    process = child.process
    if process is None or process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), seconds)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _patience_of(router: Child) -> float:
    """How long a router may take to give every caller an answer."""
    return float(router.settings.get("timeout", 0.0)) + DRAIN_SECONDS


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
    parser.add_argument("--baseline-digest", help="of a remote baseline, which `up` has fetched")
    parser.add_argument("--output", choices=["text", "json"], help="given by `up` in the foreground")
    parser.add_argument(
        "--take-over", type=int, help="where the release that ran until now left what it held"
    )
    given = parser.parse_args()
    home = ServiceHome(given.state.parent, given.state.name)
    try:
        if given.take_over is not None:
            return asyncio.run(_taken_over(home, given).run())
        host, _, port = given.listen.rpartition(":")
        with home.lock() as lock:
            data = open_data_socket(host.strip("[]"), int(port))
            admin, orders = map(open_private_socket, (home.admin_socket, home.orders_socket))
            return asyncio.run(_supervisor(lock, Sockets(data, admin, orders), given).run())
    except ConflictError as error:
        if given.output is None:
            return _refused(error)
        # Another `up` was quicker: ours starts over, finds the service running, and compares.
        again = [sys.executable, "-m", "deployctl", "up", str(given.manifest), "-o", given.output]
        os.execv(sys.executable, again)  # noqa: S606 - our own interpreter and module
    except DeployctlError as error:
        return _refused(error)


def _supervisor(lock: ServiceLock, sockets: Sockets, given: argparse.Namespace) -> Supervisor:
    return Supervisor(
        lock,
        given.manifest,
        sockets,
        recover=given.recover,
        as_json=given.output == "json",
        baseline_digest=given.baseline_digest,
    )


def _taken_over(home: ServiceHome, given: argparse.Namespace) -> Supervisor:
    """A supervisor that goes on with what the code before it held in this process."""
    before = handover.taken(given.take_over)
    data, admin, orders = (socket.socket(fileno=fd) for fd in (before.data, before.admin, before.orders))
    supervisor = _supervisor(ServiceLock(home, before.lock), Sockets(data, admin, orders), given)
    supervisor.take_over(before)
    print(f"deployctl: release {before.release} became {__version__}", file=sys.stderr, flush=True)  # noqa: T201 - the service's log
    return supervisor


def _refused(error: DeployctlError) -> int:
    print(f"deployctl: {error}", file=sys.stderr)  # noqa: T201 - the service's last line
    return int(error.exit_code)


if __name__ == "__main__":
    sys.exit(main())
