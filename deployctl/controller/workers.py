"""The controller's end of the supervisor's channel: which workers are wanted, which are there, and how it all ends.

The controller asks for the whole set of workers; the supervisor starts, restarts and stops them and says what became of each.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, cast

from deployctl.errors import ConflictError, Exit, error_for

CRASH_LOOP = 5
"""Ends of a worker in a row, none after it had been ready for 30 s, that are no accident any more."""


def worker_id(settings: Mapping[str, Any]) -> str:
    """The name of a worker: the same settings give the same one, other settings another (and another socket)."""
    return blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Worker:
    """What the supervisor says of one worker. `report` is the worker's own first line, when it had one; `in_a_row` are its ends since
    it last was ready for a while, `last_end` the exit code of the last (negative: a signal).
    """

    id: str
    digest: str
    pid: int
    state: str
    restarts: int = 0
    report: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    in_a_row: int = 0
    last_end: int = 0

    @property
    def crash_loop(self) -> str | None:
        """That it ends again and again, in words; None for one that does not."""
        if self.in_a_row < CRASH_LOOP:
            return None
        return (
            f"its worker ended {self.in_a_row} times in a row, the last time {_end_in_words(self.last_end)}"
        )

    @property
    def ready(self) -> bool:
        """Loaded, warmed and listening."""
        return self.state == "ready"


@dataclass(frozen=True, slots=True)
class Takeover:
    """What the supervisor says of an upgrade: which processes of the release before still run, and what is in its way."""

    left: tuple[str, ...] = ()
    trouble: str | None = None


class SupervisorLink(asyncio.Protocol):
    """JSON lines over the socketpair; the end of it is the end of the controller."""

    def __init__(self, on_change: Callable[[], None], on_lost: Callable[[], None]) -> None:
        self.workers: dict[str, Worker] = {}
        self.pids: dict[str, Any] = {"supervisor": 0, "routers": []}
        self.proven: dict[str, Mapping[str, Any]] = {}
        self.takeover = Takeover()
        self._read_again: Callable[[], bool] | None = None
        self._hung_up = False
        self._told = asyncio.Event()
        self._rehearsal: asyncio.Future[dict[str, Any]] | None = None
        self._in_force: list[int] = []
        self._on_change = on_change
        self._on_lost = on_lost
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._asked: list[dict[str, Any]] | None = None
        self._number = 0

    async def connect(self, control: socket.socket) -> None:
        """Take over the inherited socketpair; returns when the supervisor has said what runs, or is gone."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=control)
        await self._told.wait()

    @property
    def ready(self) -> list[Mapping[str, Any]]:
        """The settings of the workers that are ready, whoever asked for them; of two of one version the newer is last."""
        return [worker.settings for worker in self.workers.values() if worker.ready and worker.settings]

    def want(self, settings: Sequence[dict[str, Any]]) -> None:
        """Ask for exactly these workers; asking again for the same costs nothing."""
        wanted = list(settings)
        if wanted != self._asked:
            self._asked = wanted
            self._number += 1
            ids = {settings["id"] for settings in wanted}
            self.proven = {one: report for one, report in self.proven.items() if one in ids}
            self._send({"workers": wanted, "number": self._number})

    def runs(self, identity: str) -> bool:
        """Whether there is such a worker, ready or not."""
        return identity in self.workers

    def failure(self, identity: str) -> str | None:
        """Why this worker cannot load its model, None for one that can or may yet."""
        worker = self.workers.get(identity)
        if worker is None or worker.state != "failed":
            return None
        return str(worker.report.get("failed", "it ended before it was ready"))

    def crash_loop(self, identity: str) -> str | None:
        """That this worker ends again and again, in words; None for one that does not."""
        worker = self.workers.get(identity)
        return worker.crash_loop if worker is not None else None

    def forget(self, identity: str) -> None:
        """A worker that could not load is asked for anew when it is wanted again."""
        self.workers.pop(identity, None)
        self.want([settings for settings in self._asked or [] if settings["id"] != identity])

    def start_routers(self, settings: dict[str, Any]) -> None:
        """Ask for the data plane: as many routers as the settings say, all alike."""
        self._send({"router": settings})

    def renew_routers(self, settings: dict[str, Any]) -> None:
        """Ask for routers of this release beside those of before; asking again changes nothing."""
        self._send({"renew": settings})

    def in_force(self, routers: Sequence[int]) -> None:
        """Say which routers do what was ordered: those of before may end."""
        if list(routers) != self._in_force:
            self._in_force = list(routers)
            self._send({"in_force": self._in_force})

    async def rehearse(self, python: str) -> dict[str, Any]:
        """Have the release of another interpreter say whether it can take the service over. Raises what is in its way."""
        if self._rehearsal is not None:
            raise ConflictError("an upgrade is under way; see `deployctl status`")
        self._rehearsal = asyncio.get_running_loop().create_future()
        try:
            self._send({"rehearse": python})
            answer = await self._rehearsal
        finally:
            self._rehearsal = None
        if "refused" in answer:
            raise error_for(int(answer["exit_code"]), str(answer["refused"]))
        return answer

    def take_over(self, python: str) -> None:
        """Have the supervisor become the release of this interpreter, which has rehearsed it. Our end comes with that."""
        self._send({"become": python})

    def when_hung_up(self, read_again: Callable[[], bool]) -> None:
        """What is to be done at SIGHUP, also at one that came before this; it says whether the routers have something to read again."""
        self._read_again = read_again
        self._hang_up()

    def say(self, line: str, document: dict[str, Any]) -> None:
        """Have the supervisor tell whoever started the service, in a line or as a document."""
        self._send({"say": line, "document": document})

    def exit(self, code: Exit, message: str) -> None:
        """Have the supervisor end the whole service with this code and line."""
        self._send({"exit": {"code": int(code), "message": message}})

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are of no common class

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "rehearsal" in message:
                if self._rehearsal is not None and not self._rehearsal.done():
                    self._rehearsal.set_result(message["rehearsal"])
            elif "hang_up" in message:
                self._hung_up = True
                self._hang_up()
            else:
                self._take(message)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._told.set()
        self._on_lost()

    def _take(self, state: dict[str, Any]) -> None:
        self.workers = {worker["id"]: Worker(**worker) for worker in state.pop("workers")}
        takeover = state.pop("takeover", {})
        self.takeover = Takeover(tuple(takeover.get("left", ())), takeover.get("trouble"))
        # News from before our last wish may be of a worker that is being stopped.
        up_to_date = state.pop("heard") == self._number
        for worker in self.workers.values():
            if worker.ready and up_to_date:
                self.proven[worker.id] = worker.report["ready"]
        self.pids = state
        self._told.set()
        self._on_change()

    def _hang_up(self) -> None:
        if self._hung_up and self._read_again is not None:
            self._hung_up = False
            self._send({"hung_up": self._read_again()})

    def _send(self, message: dict[str, Any]) -> None:
        assert self._transport is not None
        self._transport.write(json.dumps(message).encode() + b"\n")


def _end_in_words(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"by {name}{_MEANS.get(name, '')}"


_MEANS = {
    "SIGKILL": " (out of memory?)",
    "SIGABRT": " (out of memory?)",
    "SIGPROF": " (an inference that did not end)",
}
