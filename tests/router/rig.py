"""A street for the router to live in: a controller that speaks wire/orders, workers, and raw clients."""

import contextlib
import json
import math
import signal
import socket
import struct
import subprocess
import sys
import threading
from array import array
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from deployctl.core.plan import HUMAN, Copy, Split, Version
from deployctl.wire.orders import (
    Ack,
    Batch,
    Hello,
    MessageReader,
    Order,
    ReadBack,
    Upstream,
    decode_up,
    encode,
)

COLUMNS = ("id", "key", "arm", "split", "start", "latency", "status", "null", "explicit", "prediction")
COLUMNS += ("serial", "mirrored", "copies", "confidence", "input")
PATIENCE = 20  # seconds until a test that waits for something gives up


class Controller:
    """Listens like the controller does, gives its last order to whoever says Hello, keeps all that comes up."""

    def __init__(self, path):
        self.path = str(path)
        self.order = None
        self.acknowledging = True
        self.hellos, self.read_backs, self.batches = [], [], []
        self.obeying = set()  # pids of routers that have read an order back
        self._news = threading.Condition()
        self._routers = []
        self._threads = []
        self.come_back()

    def send(self, order):
        with self._news:
            self.order = order
            for router in self._routers:
                router.sendall(encode(order))

    def apply(self, order):
        """Sends an order and waits until the router says that it is in force and every version is there."""
        self.send(order)
        everyone = {upstream.digest for upstream in order.upstreams}
        self.wait(lambda: self.read_backs and self.read_backs[-1].split == order.split)
        self.wait(lambda: everyone <= set(self.read_backs[-1].connected))

    def wait(self, condition):
        with self._news:
            assert self._news.wait_for(condition, PATIENCE), "it did not happen"
            return condition()

    def go_away(self):
        """As a crash: the listener and every connection are closed."""
        with self._news:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            Path(self.path).unlink()
            for router in self._routers:
                with contextlib.suppress(OSError):  # it may have gone first
                    router.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)

    def come_back(self):
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._start(self._accept, self._listener)

    @property
    def outcomes(self):
        return [outcome for batch in list(self.batches) for outcome in rows(batch)]

    def outcome_of(self, request_id):
        return self.wait(lambda: [o for o in self.outcomes if o.id == request_id])[0]

    def copies_of(self, request_id, count=1):
        """The rows of so many copies of a request, by arm."""

        def copies():
            found = [o for o in self.outcomes if o.id == request_id and o.mirrored]
            return len(found) == count and found

        return {copy.arm: copy for copy in self.wait(copies)}

    def _accept(self, listener):
        with contextlib.suppress(OSError):
            while True:
                router, _ = listener.accept()
                self._start(self._listen, router)

    def _start(self, work, connection):
        thread = threading.Thread(target=work, args=[connection], daemon=True)
        self._threads.append(thread)
        thread.start()

    def _listen(self, router):
        messages, hello = MessageReader(), None
        with router, contextlib.suppress(OSError):
            while data := router.recv(1 << 20):
                for message in map(decode_up, messages.feed(data)):
                    hello = message if isinstance(message, Hello) else hello
                    if isinstance(message, ReadBack):
                        self.obeying.add(hello.pid)
                    self._take(router, message)
        with self._news:
            self._routers.remove(router)

    def _take(self, router, message):
        with self._news:
            match message:
                case Hello():
                    self.hellos.append(message)
                    self._routers.append(router)
                    if self.order:
                        router.sendall(encode(self.order))
                case ReadBack():
                    self.read_backs.append(message)
                case Batch():
                    self.batches.append(message)
                    if self.acknowledging:
                        router.sendall(encode(Ack(message.number)))
            self._news.notify_all()


def rows(batch):
    count = len(batch.id)
    columns = (
        batch.id,
        array("Q", batch.key),
        array("b", batch.arm),
        array("I", batch.split),
        array("d", batch.start),
        array("f", batch.latency),
        array("H", batch.status),
        array("b", batch.null),
        array("b", batch.explicit),
        batch.prediction,
        array("Q", batch.serial or bytes(8 * count)),
        array("b", batch.mirrored or bytes(count)),
        array("H", batch.copies or bytes(2 * count)),
        array("f", batch.confidence) if batch.confidence else [math.nan] * count,
        array("Q", batch.input or bytes(8 * count)),
    )
    assert len({len(column) for column in columns}) == 1
    return [SimpleNamespace(**dict(zip(COLUMNS, row, strict=True))) for row in zip(*columns, strict=True)]


class Worker:
    """A stand-in worker process; `start` after `kill` is the supervisor's restart."""

    def __init__(self, directory, version):
        self.version = version
        self.process = None
        self.socket = str(Path(directory) / f"worker-{version}.sock")
        self.upstream = Upstream(version, f"sha256:{version}", self.socket)
        self.as_version = Version(version, f"sha256:{version}")
        self.start()

    def start(self):
        if self.process:
            self.process.wait()
        Path(self.socket).unlink(missing_ok=True)
        script = Path(__file__).with_name("stand_in_worker.py")
        self.process = subprocess.Popen([sys.executable, str(script), self.socket, self.version])

    def kill(self):
        self.process.kill()
        self.process.wait()


class Street:
    """One router on a listening socket that the street holds, its controller, two workers or more."""

    def __init__(
        self,
        directory,
        *,
        order=True,
        routing_key=None,
        timeout=5.0,
        limits=None,
        versions=("1", "2"),
        worker=None,
        **settings,
    ):
        self.controller = Controller(directory / "orders.sock")
        self.workers = [(worker or Worker)(directory, version) for version in versions]
        self.heir = directory / "heir.sock"
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.address = self.listener.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self.settings = {"model": "m", "routing_key": routing_key, "timeout": timeout, "limits": limits or {}}
        self.settings |= settings
        self.number = 0
        self.start()
        if order:
            self.split(0)

    def start(self):
        fd = self.listener.fileno()
        arguments = [
            "--data-fd",
            str(fd),
            "--orders",
            self.controller.path,
            *(["--heir", str(self.heir)] if self.heir else []),
            "--settings",
            json.dumps(self.settings),
        ]
        self.router = subprocess.Popen([sys.executable, "-m", "deployctl.router", *arguments], pass_fds=[fd])

    def succeed(self):
        """A new router beside the old one; once it does what was ordered the old one is told to end. Gives the old process."""
        old = self.router
        self.start()
        self.controller.wait(lambda: self.router.pid in self.controller.obeying)
        old.send_signal(signal.SIGTERM)
        return old

    def order(self, weight, *, candidate=True, fence=1, upstreams=None, **split):
        self.number += 1
        baseline, other = (worker.as_version for worker in self.workers[:2])
        split = {"baseline": baseline, "salt": "rollout-1"} | split
        split["candidate"] = other if candidate else None
        split = Split(self.number, weight=weight, **split)
        every = tuple(worker.upstream for worker in self.workers)
        return Order(fence, split, every if upstreams is None else upstreams)

    def split(self, weight, **kwargs):
        order = self.order(weight, **kwargs)
        self.controller.apply(order)
        return order.split

    def mirror(self, percentage=100.0, *, weight=0.0, arms=(1,), **kwargs):
        """Copies for these arms: the first worker is 0, the baseline, the second 1, the candidate, and so on."""
        copies = tuple(Copy(arm, self.workers[arm].as_version) for arm in arms)
        return self.split(weight, mirror=percentage, copies=copies, **kwargs)

    def decided_by_people(self):
        """No version is live; the second worker's gets copies of everything."""
        return self.mirror(baseline=HUMAN, candidate=None)

    def connect(self):
        return Client(self.address)

    def ask(self, *args, **kwargs):
        with self.connect() as client:
            return client.ask(*args, **kwargs)

    def infer(self, body=b"{}", *, path="/v2/models/m/infer", **headers):
        return self.ask("POST", path, body, **headers)

    def close(self):
        for process in (self.router, *(worker.process for worker in self.workers)):
            process.kill()
            process.wait()
        self.controller.go_away()
        self.listener.close()

    def suspend(self, seconds):
        """The router does not run for so long, as on a machine that sleeps."""
        self.router.send_signal(signal.SIGSTOP)
        threading.Event().wait(seconds)
        self.router.send_signal(signal.SIGCONT)

    def stop(self):
        self.router.send_signal(signal.SIGTERM)
        return self.router.wait(PATIENCE)


class Answer(NamedTuple):
    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class Client:
    """A TCP connection on which a test writes what bytes it likes."""

    def __init__(self, address):
        self.socket = socket.create_connection(address, timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.file.close()
        self.socket.close()

    def leave(self, *, reset=False):
        """Goes away without reading on; with a reset, as a process that was killed with unread bytes."""
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def send(self, data):
        self.socket.sendall(data)

    def ask(self, method, path, body=b"", **headers):
        self.send(request(method, path, body, **headers))
        return self.read(head_only=method == "HEAD")

    def read(self, *, head_only=False):
        status = self.file.readline()
        if not status:
            raise EOFError
        headers = {}
        while (line := self.file.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            headers[name.decode().lower()] = value.strip().decode()
        length = 0 if head_only else int(headers.get("content-length", 0))
        return Answer(int(status.split()[1]), headers, self.file.read(length))

    def at_end(self):
        """Whether the router has closed its side and there is nothing more to read."""
        return self.file.read(1) == b""


def request(method, path, body=b"", **headers):
    lines = [f"{method} {path} HTTP/1.1", "Host: test"]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def do(what, **wishes):
    """The body that makes a stand-in worker do something."""
    return json.dumps({"do": what, **wishes}).encode()


def versions_of(street, keys, *, at_once=200):
    """Asks for every key once, pipelined over eight connections: which version answered whom."""
    answered = {}

    def ask(keys):
        with street.connect() as client:
            for start in range(0, len(keys), at_once):
                some = keys[start : start + at_once]
                client.send(
                    b"".join(request("POST", "/v2/models/m/infer", b"{}", x_user_id=key) for key in some)
                )
                for key in some:
                    answered[key] = client.read().json["model_version"]

    threads = [threading.Thread(target=ask, args=[keys[n::8]]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answered) == len(keys)
    return answered


class Load:
    """Closed-loop clients that ask without a pause until they are told to stop; every answer is counted."""

    def __init__(self, street, clients=8, body=b"{}"):
        self.street = street
        self.statuses = Counter()
        self.versions = Counter()
        self.errors = []
        self._body = body
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self):
        with self.street.connect() as client:
            while not self._over.is_set():
                try:
                    answer = client.ask("POST", "/v2/models/m/infer", self._body)
                except (OSError, EOFError) as error:
                    self.errors.append(error)
                    return
                self.statuses[answer.status] += 1
                self.versions[answer.json.get("model_version")] += 1
