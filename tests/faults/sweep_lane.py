"""One lane of the sweep: a process that has imported everything once and forks the real controller and the real router from itself.

It is no event loop and has no thread, so what it forks is as fresh as a new process, a hundred times quicker. It also holds
the sockets, as a supervisor does, and is the client that asks for the verbs.
"""

import gc
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import fakes
import sweep_faults
import sweep_street

import deployctl.controller.__main__ as controller_process
import deployctl.router.__main__ as router_process
from deployctl.controller import commands
from deployctl.statedir import ServiceHome
from deployctl.supervisor import open_private_socket

NAME = "m"
PATIENCE = 20.0
"""Seconds after which something that should happen counts as a hang."""

FULL_SECONDS = 0.15
"""How long a disk stays full."""

commands.read_manifest = fakes.read_here  # the same reader, without 0.4 s for a process of its own


class EndedError(Exception):
    """The controller is gone; what was asked for may have happened or not."""


class HungUpError(Exception):
    """The controller lives and has hung up on a client; what was asked for may have happened or not."""


class HangError(Exception):
    """Something that should happen did not, in a time that is more than enough."""


@dataclass
class Child:
    """A process that was forked here. `code` is None while it runs, negative for a signal."""

    pid: int
    said: Path
    code: int | None = None

    def __post_init__(self):
        self.pidfd = os.pidfd_open(self.pid)

    @property
    def running(self):
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                os.close(self.pidfd)
        return self.code is None

    def kill(self, number=signal.SIGKILL):
        if self.running:
            os.kill(self.pid, number)

    def end(self):
        self.kill()
        while self.running:
            select.select([self.pidfd], [], [], 1)


@dataclass
class Reply:
    """What a client was told."""

    status: int
    body: dict

    @property
    def good(self):
        return self.status == 200


class Call:
    """One request to the admin socket, until it is answered or its connection ends."""

    def __init__(self, path, method, target, body):
        self.reply = None
        self.lost = False
        self._answer = b""
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        text = json.dumps(body).encode() if body is not None else b""
        head = f"{method} {target} HTTP/1.1\r\nHost: d\r\nContent-Length: {len(text)}\r\n\r\n"
        self.socket.sendall(head.encode() + text)

    def read(self):
        """Take what is there; never waits for more than that."""
        try:
            data = self.socket.recv(1 << 20)
        except OSError:
            data = b""
        self._answer += data
        head, found, body = self._answer.partition(b"\r\n\r\n")
        if found:
            lines = head.decode().lower().split("\r\n")
            length = next(int(line[15:]) for line in lines if line.startswith("content-length:"))
            if len(body) >= length:
                self.reply = Reply(int(lines[0].split()[1]), json.loads(body))
        self.lost = self.reply is None and not data
        if self.reply is not None or self.lost:
            self.socket.close()


@dataclass
class Lane:
    """The home of a service, its sockets, and the processes that run in it now."""

    root: Path
    fence: int = 0
    controller: Child | None = None
    router: Child | None = None
    exits: list = field(default_factory=list)
    sabotage: object = None

    def __post_init__(self):
        self.root.mkdir(parents=True, exist_ok=True)
        self.home = ServiceHome(self.root / "s", NAME)
        self.board = sweep_faults.Board()
        self.data = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = self.data.getsockname()
        self.sockets = ()
        self.manifest = self.root / "nothing.yaml"
        self._street, theirs = socket.socketpair()
        self._news = b""
        gc.collect()
        gc.freeze()
        self._street_process = self._fork(lambda: sweep_street.main(theirs), "street", (theirs.fileno(),))
        theirs.close()

    # ── processes ──────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, snapshot, manifest):
        """A service that is not running, in the state that was kept in `snapshot`."""
        self.end()
        shutil.rmtree(self.home.state, ignore_errors=True)
        if snapshot is not None:
            shutil.copytree(snapshot, self.home.path)
        else:
            self.home.create()
        self.home.worker_sockets.mkdir(exist_ok=True)
        self.sockets = (
            open_private_socket(self.home.admin_socket),
            open_private_socket(self.home.orders_socket),
        )
        self.manifest = manifest
        self.fence, self.exits = 0, []

    def end(self):
        """Everything of the last service is gone."""
        if self.controller is not None:
            self.controller.end()
        self.end_router()
        for one in self.sockets:
            one.close()
        self.sockets = ()
        self._street.send(sweep_street.RESET)
        while sweep_street.RESET not in self._street.recv(1 << 16):
            pass
        self._news = b""
        # Requests that were never accepted must not be served by the next router.
        self.data.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                self.data.accept()[0].close()
        self.data.setblocking(True)

    def end_router(self):
        """As when a service ends."""
        if self.router is not None:
            self.router.end()
        self.router = None

    def start_controller(self, fault=None, *, recover=False):
        """A controller with the next fencing number; gives what traces it, or None. A fault may be names of calls, to be seen only."""
        self.fence += 1
        self.board.begin()
        traced_calls = (
            fault if isinstance(fault, str) else fault.call if fault and fault.by == "strace" else None
        )
        ours, theirs = socket.socketpair()
        go, released = os.pipe()
        admin, orders = self.sockets
        argv = [
            *("controller", "--admin-fd", str(admin.fileno()), "--orders-fd", str(orders.fileno())),
            *("--control-fd", str(theirs.fileno()), "--fence", str(self.fence)),
            *("--state", str(self.home.state), "--name", NAME, "--manifest", str(self.manifest)),
            *("--address", f"127.0.0.1:{self.address[1]}"),
        ]
        argv += ["--recover"] if recover else []

        def run():
            sweep_faults.may_be_traced()
            if traced_calls is None:
                sweep_faults.arm(self.board, fault)
            if self.sabotage is not None:
                self.sabotage()
            os.read(go, 1)
            sys.argv = argv
            controller_process.main()

        fds = (admin.fileno(), orders.fileno(), theirs.fileno(), go)
        self.controller = self._fork(run, f"controller-{self.fence}", fds)
        theirs.close()
        os.close(go)
        socket.send_fds(self._street, [sweep_street.CONTROL], [ours.fileno()])
        ours.close()
        traced = None
        if traced_calls is not None:
            inject = None if isinstance(fault, str) else fault.injection
            traced = sweep_faults.Strace(self.controller.pid, traced_calls, inject, self.root / "strace.log")
        os.write(released, b"g")
        os.close(released)
        return traced

    def _start_router(self, settings):
        argv = ["router", "--data-fd", str(self.data.fileno()), "--orders", str(self.home.orders_socket)]

        def run():
            sys.argv = [*argv, "--settings", json.dumps(settings)]
            router_process.main()

        self.router = self._fork(run, "router", (self.data.fileno(),))

    def _fork(self, run, name, fds):
        """A child that runs this and has no other descriptors; what it says goes into a file."""
        said = self.root / f"{name}.stderr"
        pid = os.fork()
        if pid:
            return Child(pid, said)
        code = 1
        try:
            _keep_only(fds)
            out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.close(out)
            run()
            code = 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        except BaseException:  # noqa: BLE001 - the end of a process, as the interpreter would end it
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    # ── asking and waiting ─────────────────────────────────────────────────────────────────────────────────────

    def call(self, method, target, body=None):
        """The answer of the controller. Raises EndedError when it died over it."""
        call = Call(self.home.admin_socket, method, target, body)
        try:
            self.wait(lambda: call.reply is not None or call.lost, f"{method} {target}", call)
        finally:
            call.socket.close()
        if call.reply is None:
            with suppress(HangError):
                self.wait(lambda: False, "its end", within=1.0)
            raise HungUpError(f"the controller hung up on {target}")
        return call.reply

    def wait(self, claim, what, call=None, within=PATIENCE):
        """Poll until it is true. Raises EndedError when the controller is gone, HangError when it takes too long."""
        deadline = time.monotonic() + within
        came_at = None
        while True:
            if call is not None and select.select([call.socket], [], [], 0)[0]:
                call.read()
            if value := claim():
                return value
            self._hear()
            if not self.controller.running:
                self._refuse_backlog()
                raise EndedError(what)
            if time.monotonic() > deadline:
                raise HangError(f"{what} did not happen within {within:g} s")
            if self.board.came and not self.board.lifted:
                came_at = came_at or time.monotonic()
                self.board.lifted = time.monotonic() - came_at > FULL_SECONDS
            ears = [self.controller.pidfd, self._street, *([call.socket] if call is not None else [])]
            select.select(ears, [], [], 0.005)

    def _hear(self):
        """What the controller wants of its supervisor."""
        while select.select([self._street], [], [], 0)[0]:
            self._news += self._street.recv(1 << 16)
            *lines, self._news = self._news.split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "router" in message and self.router is None:
                    self._start_router(message["router"])
                if "exit" in message:
                    self.exits.append((message["exit"]["code"], message["exit"]["message"]))
                    self.controller.end()

    def _refuse_backlog(self):
        """Calls that nobody has accepted: their clients have given up."""
        admin = self.sockets[0]
        admin.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                admin.accept()[0].close()
        admin.setblocking(True)


def _keep_only(fds):
    last = 2
    for fd in sorted(fds):
        os.closerange(last + 1, fd)
        last = fd
    os.closerange(last + 1, 1 << 16)
