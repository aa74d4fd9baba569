"""What stands around a controller in the sweep: a stand-in supervisor with stand-in workers, in one process for a whole lane.

It does what `deployctl.supervisor` does at the other end of the control channel, but a worker is a socket that is served here: it is
ready at once. Sockets of new controllers come in over `link`; what a controller wants of its supervisor goes out over it.
"""

import asyncio
import json
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1] / "router"))

from stand_in_worker import Worker

from deployctl.wire.lifeline import die_with_parent

TENSORS = [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
CONTROL, RESET = b"\1", b"\0"
"""What the lane says: here is the control channel of a new controller; everything begins anew."""


class Street:
    """The workers of the service that is being tried, and the controller that asks for them now."""

    def __init__(self, link):
        self._link = link
        self._workers = {}
        self._writer = None
        self._heard = 0
        self._talks = set()

    async def live(self):
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._link, self._hear, over)
        await over.wait()

    def _hear(self, over):
        said, fds, _, _ = socket.recv_fds(self._link, 1, 1)
        if not said:
            over.set()
        elif said == CONTROL:
            talk = asyncio.ensure_future(self._obey(socket.socket(fileno=fds[0])))
            self._talks.add(talk)
            talk.add_done_callback(self._talks.discard)
        else:
            self._want([])
            self._link.send(RESET)

    async def _obey(self, channel):
        reader, writer = await asyncio.open_unix_connection(sock=channel, limit=1 << 24)
        self._writer, self._heard = writer, 0
        self._tell()
        with suppress(ConnectionError):
            while line := await reader.readline():
                await self._carry_out(json.loads(line))
        writer.close()
        if self._writer is writer:
            self._writer = None

    async def _carry_out(self, message):
        if "workers" in message:
            self._heard = message["number"]
            starting = self._want(message["workers"])
            for worker, settings in starting:
                await self._start(worker, settings)
            if starting:
                self._tell()
        else:
            self._link.send(json.dumps(message).encode() + b"\n")

    def _want(self, wanted):
        """Ends who is not wanted any more; gives those that have to be started."""
        by_id = {settings["id"]: settings for settings in wanted}
        for gone in self._workers.keys() - by_id.keys():
            worker = self._workers.pop(gone)
            if worker["server"] is not None:
                worker["server"].close()
            Path(worker["socket"]).unlink(missing_ok=True)
        starting = []
        for one in by_id.keys() - self._workers.keys():
            settings = by_id[one]
            self._workers[one] = {
                "server": None,
                "socket": settings["socket"],
                "described": {
                    "id": one,
                    "digest": settings["digest"],
                    "pid": os.getpid(),
                    "state": "starting",
                },
            }
            starting.append((self._workers[one], settings))
        self._tell()
        return starting

    async def _start(self, worker, settings):
        version, loop = settings["version"], asyncio.get_running_loop()
        worker["server"] = await loop.create_unix_server(lambda: Worker(version), settings["socket"])
        ready = {"digest": settings["digest"], "platform": "stand-in", "nonfinite": []}
        ready |= {"inputs": TENSORS, "outputs": TENSORS}
        worker["described"] |= {"state": "ready", "report": {"ready": ready}}

    def _tell(self):
        if self._writer is not None:
            state = {"supervisor": os.getpid(), "heard": self._heard, "routers": []}
            state["workers"] = [worker["described"] for worker in self._workers.values()]
            self._writer.write(json.dumps(state).encode() + b"\n")


def main(link):
    """The life of the process, forked from a lane."""
    die_with_parent()
    uvloop.run(Street(link).live())
