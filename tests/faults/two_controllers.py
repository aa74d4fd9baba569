"""A supervisor that does what the real one never does: it keeps two controllers of one service at once.

The controllers and the router are the real processes, the workers are stand-ins. Between the router and the controllers is a wire that
the test holds: everything that any controller says reaches the router, however late, and the router's words go to the newest one.
A process may be started with a guarantee taken out (a line of Python that is run first).
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rig import Client, request
from service_rig import NAME, Box

from deployctl.wire.admin import AdminClient
from deployctl.wire.orders import MessageReader, ReadBack, decode_up

NO_LOCK = "import deployctl.journal; deployctl.journal._locked = lambda fd: True"
NO_LENGTH = "from deployctl.journal import Journal; Journal._check_length = lambda self: None"
NO_FENCE = (
    "from deployctl.router.orders import OrdersLink; take = OrdersLink._take; "
    "OrdersLink._take = lambda self, message: (setattr(self, '_fence', -1), take(self, message))"
)
FULL = {"by": "a test", "reason": "a test", "full": True}
STAND_IN_WORKER = Path(__file__).parents[1] / "router" / "stand_in_worker.py"


class Controller:
    """One controller process, with sockets and a channel to its supervisor of its own."""

    def __init__(self, service: "Service", fence: int, without: tuple[str, ...]) -> None:
        self.service, self.fence = service, fence
        self.told: list[dict] = []
        self.channel, theirs = socket.socketpair()
        self.admin_path, self.orders_path = (
            service.short / f"{what}-{len(service.controllers)}.sock" for what in ("admin", "orders")
        )
        admin, orders = (_listening(path) for path in (self.admin_path, self.orders_path))
        fds = [sock.fileno() for sock in (admin, orders, theirs)]
        arguments = [
            str(part)
            for name, fd in zip(("admin", "orders", "control"), fds, strict=True)
            for part in (f"--{name}-fd", fd)
        ]
        arguments += ["--state", str(service.box.state), "--name", NAME, "--fence", str(fence)]
        arguments += ["--manifest", str(service.manifest), "--address", service.address]
        self.process = subprocess.Popen(_argv("controller", without, arguments), pass_fds=fds)
        for sock in (admin, orders, theirs):
            sock.close()
        threading.Thread(target=self._obey, daemon=True).start()

    def client(self) -> AdminClient:
        return AdminClient(self.admin_path, NAME)

    def wait_until_it_serves(self) -> None:
        with self.client() as client:
            assert client.get("/v1/status", timeout=40)["live"]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def wake(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def _obey(self) -> None:
        with contextlib.suppress(OSError), self.channel, self.channel.makefile("r") as lines:
            self._tell(0, [])
            for line in lines:
                message = json.loads(line)
                self.told.append(message)
                if "workers" in message:
                    self.service.start(self.service.run_workers, message["workers"])
                    self._tell(message["number"], message["workers"])
                if "router" in message:
                    self.service.start(self.service.run_router, message["router"])

    def _tell(self, heard: int, wanted: list[dict]) -> None:
        tensors = [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
        workers = [
            {
                "id": one["id"],
                "digest": one["digest"],
                "pid": 1,
                "state": "ready",
                "restarts": 0,
                "report": {"ready": {"digest": one["digest"], "inputs": tensors, "outputs": tensors}},
            }
            for one in wanted
        ]
        state = {"supervisor": os.getpid(), "heard": heard, "routers": [], "workers": workers}
        self.channel.sendall(json.dumps(state).encode() + b"\n")


class Service:
    """The service, its router and its workers, and as many controllers as a test likes."""

    def __init__(self, folder: Path, router_without: tuple[str, ...] = ()) -> None:
        self.box = Box(folder)
        self.box.home.create()
        self.short = self.box.state / "s"
        self.short.mkdir()
        self.box.home.worker_sockets.mkdir()
        self.manifest = self.box.manifest(canary={"minDwell": "60s"})
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = "{}:{}".format(*self.listener.getsockname())
        self.controllers: list[Controller] = []
        self.wire = Wire(self.short / "orders.sock")
        self._router_without = router_without
        self._router: subprocess.Popen | None = None
        self._workers: dict[str, subprocess.Popen] = {}
        self._starter = ThreadPoolExecutor(max_workers=1)

    def start(self, what, *given) -> None:
        """Children die with the thread that started them, so it must be one that stays."""
        self._starter.submit(what, *given).result()

    def controller(self, fence: int, *without: str) -> Controller:
        """Start another controller; from now on it is the one that the router talks to."""
        self.controllers.append(Controller(self, fence, without))
        self.wire.lead_to(self.controllers[-1].orders_path)
        return self.controllers[-1]

    def run_workers(self, wanted: list[dict]) -> None:
        for one in wanted:
            if one["socket"] not in self._workers:
                Path(one["socket"]).unlink(missing_ok=True)
                argv = [sys.executable, str(STAND_IN_WORKER), one["socket"], one["version"]]
                self._workers[one["socket"]] = subprocess.Popen(argv)

    def run_router(self, settings: dict) -> None:
        if self._router is None:
            fd = self.listener.fileno()
            arguments = [
                "--data-fd",
                str(fd),
                "--orders",
                str(self.wire.path),
                "--settings",
                json.dumps(settings),
            ]
            self._router = subprocess.Popen(_argv("router", self._router_without, arguments), pass_fds=[fd])

    def promote(self, controller: Controller) -> None:
        """Version 2 answers all callers from here on."""
        controller.wait_until_it_serves()
        with controller.client() as client:
            order = {"manifest": self.manifest.read_text(), "path": str(self.manifest), "by": "a test"}
            client.post("/v1/rollouts", order)
            assert client.post("/v1/promote", FULL)["weight"] == 100
        assert self.version() == "2"

    def end(self, controller: Controller) -> None:
        """It is killed, and gone when this returns."""
        controller.process.kill()
        controller.process.wait()

    def version(self) -> str:
        """Who answers a caller now."""
        with Client(self.listener.getsockname()) as client:
            client.send(request("POST", f"/v2/models/{NAME}/infer", b"{}"))
            return client.read().json["model_version"]

    def close(self) -> None:
        self.wire.close()
        for process in (*(one.process for one in self.controllers), self._router, *self._workers.values()):
            if process is not None:
                process.kill()
                process.wait()
        for controller in self.controllers:
            with contextlib.suppress(OSError):
                controller.channel.shutdown(socket.SHUT_RDWR)
        self._starter.shutdown()
        self.listener.close()
        self.box.close()


class Wire:
    """The path that the router connects to, and the connections from there to every controller. `refusals` are the router's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = _listening(path)
        self._to: Path | None = None
        self._router: socket.socket | None = None
        self._newest: socket.socket | None = None
        self._hello = b""
        self.refusals: list[str] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def lead_to(self, path: Path) -> None:
        with self._lock:
            self._to = path
            if self._router is not None:
                self._connect()

    def close(self) -> None:
        with self._lock:
            for sock in (self._listener, self._router):
                if sock is not None:
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)
                    sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            router, _ = self._listener.accept()
            hello = router.recv(1 << 16)  # the first message of a router, small enough to come in one piece
            with self._lock:
                self._router, self._hello = router, hello
                self._connect()
            messages = MessageReader()
            while data := router.recv(1 << 20):
                heard = [decode_up(body) for body in messages.feed(data)]
                self.refusals += [one.refused for one in heard if isinstance(one, ReadBack) and one.refused]
                with contextlib.suppress(OSError):
                    self._newest.sendall(data)

    def _connect(self) -> None:
        controller = socket.socket(socket.AF_UNIX)
        controller.connect(str(self._to))
        controller.sendall(self._hello)
        self._newest = controller
        threading.Thread(target=self._pass_on, args=[controller], daemon=True).start()

    def _pass_on(self, controller: socket.socket) -> None:
        with controller, contextlib.suppress(OSError):
            while data := controller.recv(1 << 20):
                self._router.sendall(data)


def _listening(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(16)
    return sock


def _argv(module: str, without: tuple[str, ...], arguments: list[str]) -> list[str]:
    if not without:
        return [sys.executable, "-m", f"deployctl.{module}", *arguments]
    script = "\n".join([*without, f"from deployctl.{module}.__main__ import main", "main()"])
    return [sys.executable, "-c", script, *arguments]
