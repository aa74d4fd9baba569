"""The worker's server: frames in from the router, answers out, on one Unix socket and one thread.

All requests that one turn of the loop can read are handled in one go and their answers leave in one write. Whatever
has arrived is answered: also at SIGTERM, and also when the other side has closed its half of the connection.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from deployctl.errors import UnavailableError
from deployctl.serving.model import Model, ModelFailure, Stopped
from deployctl.serving.prediction import Reader
from deployctl.serving.settings import Settings
from deployctl.wire import oip
from deployctl.wire.coding import BadRequest, compress
from deployctl.wire.frames import (
    MAX_FRAME,
    Answer,
    Encoding,
    FrameError,
    FrameReader,
    Kind,
    Request,
    decode_request,
    encode_answer,
)
from deployctl.wire.oip import Array

_TURN = 0.001
"""A turn ends after this many seconds, so that answers leave and signals are seen while more waits."""

_BACKLOG = 1024 * 1024
"""A connection with this many bytes of unanswered requests is read again when half of them are answered."""

_WRITE = 64 * 1024
"""Answers that leave in one write are no more than this and one answer."""

_LARGEST = MAX_FRAME - 256 * 1024
"""Bytes of the body of an answer."""

_MANY = 1 << 20
"""Elements of an output from which on it is asked whether they fit into an answer at all."""

_LEAST = {"f": 4, "i": 2, "u": 2}
"""Bytes that a number takes in JSON at least, with its comma."""


class Worker:
    """One version at work: a request in, its answer out. Knows nothing of sockets."""

    def __init__(self, settings: Settings, model: Model, reader: Reader) -> None:
        self._model_name = settings.model
        self._version = settings.version
        self._model = model
        self._reader = reader
        self._metadata = oip.metadata(settings.model, [settings.version], model.inputs, model.outputs)

    def answer(self, request: Request) -> Answer:
        """The answer to one request; every failure is one too."""
        if request.kind is Kind.METADATA:
            return Answer(request.stream, 200, self._metadata, request.request_id)
        request_id = request.request_id
        try:
            asked = oip.decode(request.body, request.json_length, request.encoding, self._model.inputs)
            request_id = asked.id or request_id
            return self._infer(request, asked, request_id)
        except BadRequest as error:
            return self._failed(request, request_id, error.status, error.message)
        except ModelFailure as error:
            # Stopped at its deadline it is 504, whether the router or this worker looks at the clock first.
            return self._failed(request, request_id, 504 if isinstance(error, Stopped) else 500, str(error))
        except Exception as error:  # noqa: BLE001  # the outermost loop: one request must not end the others
            return self._failed(request, request_id, 500, f"the worker failed: {type(error).__name__}")

    def _infer(self, request: Request, asked: oip.InferRequest, request_id: str) -> Answer:
        model, wanted = self._model, asked.outputs
        names: list[str] | None = None
        if wanted is not None:
            names = list(wanted)
            model.check_outputs(names)
            read = self._reader.output
            if read is not None and read not in wanted:
                names.append(read)
        model.check(asked.inputs)
        outputs = model.run(asked.inputs, names, request.deadline)
        for array in outputs.values():
            if array.size > _MANY:
                _refuse_if_too_large(outputs)
                break
        prediction, null, confidence = self._reader.read(outputs)
        if wanted is not None and len(outputs) > len(wanted):
            outputs = {name: outputs[name] for name in wanted}
        body, json_length = oip.encode(self._model_name, self._version, request_id, outputs, asked)
        encoding = request.accept
        if encoding is not Encoding.IDENTITY:
            body = compress(body, encoding)
        if len(body) > _LARGEST:
            raise ModelFailure(f"the answer has {len(body)} bytes, which is too large")
        return Answer(
            request.stream, 200, body, request_id, prediction, null, confidence, json_length, encoding
        )

    def _failed(self, request: Request, request_id: str, status: int, message: str) -> Answer:
        return Answer(request.stream, status, oip.error_body(message, self._version), request_id)


def _refuse_if_too_large(outputs: Mapping[str, Array]) -> None:
    """Before it is written out, which would take many times as much memory, and seconds. Raises ModelFailure."""
    least = sum(
        array.size * min(array.itemsize, _LEAST.get(array.dtype.kind, 1)) for array in outputs.values()
    )
    if least > _LARGEST:
        raise ModelFailure(f"the answer would have {least} bytes or more, which is too large")


class Server:
    """Every connection of one worker, and the turns in which their requests are handled."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._loop = asyncio.get_running_loop()
        self._links: set[Link] = set()
        self._waiting: deque[Link] = deque()
        self._scheduled = False
        self._draining = False
        self._drained = self._loop.create_future()

    async def start(self, listener: socket.socket) -> None:
        """Answer from now on, until SIGTERM."""
        self._loop.add_signal_handler(signal.SIGTERM, self._drain)
        self._server = await self._loop.create_unix_server(lambda: Link(self), sock=listener)

    async def drained(self) -> None:
        """Returns after SIGTERM, when all that had arrived by then is answered."""
        await self._drained

    def joined(self, link: Link) -> None:
        """A connection was made."""
        self._links.add(link)
        if self._draining:
            link.end_reading()

    def left(self, link: Link) -> None:
        """A connection is gone."""
        self._links.discard(link)
        self._finish()

    def wake(self, link: Link) -> None:
        """A connection has something to answer: it has its part in the next turn."""
        self._waiting.append(link)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        until = time.monotonic() + _TURN
        for _ in range(len(self._waiting)):
            link = self._waiting.popleft()
            if link.work(until):
                self._waiting.append(link)
        if self._waiting:
            self._schedule()

    def _drain(self) -> None:
        self._draining = True
        self._server.close()
        for link in self._links:
            link.end_reading()
        self._finish()

    def _finish(self) -> None:
        if self._draining and not self._links and not self._drained.done():
            self._drained.set_result(None)


class Link(asyncio.Protocol):
    """One connection: frames that wait, answers that leave together, back-pressure in both directions."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._reader = FrameReader()
        self._frames: deque[bytes] = deque()
        self._backlog = 0
        self._waiting = False
        self._reading = True
        self._writable = True
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has no common base with it
        self._server.joined(self)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                self._frames.append(frame)
                self._backlog += len(frame)
        except FrameError:
            self._transport.abort()
            return
        if self._backlog > _BACKLOG and self._reading:
            self._reading = False
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """The other side sends no more; what it sent is answered before the connection closes."""
        self._ended = True
        if not self._frames:
            self._transport.close()
        return True

    def connection_lost(self, _: Exception | None) -> None:
        self._frames.clear()
        self._ended = True
        self._server.left(self)

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._wake()

    def end_reading(self) -> None:
        """Take no more requests: what the kernel already holds is still read, then comes the end of the stream."""
        # The transport has no such call; its socket is asked through a second descriptor.
        descriptor = os.dup(self._transport.get_extra_info("socket").fileno())
        with socket.socket(fileno=descriptor) as own:
            own.shutdown(socket.SHUT_RD)

    def work(self, until: float) -> bool:
        """Answer what waits, until the time is over or the other side reads too slowly. True: more can be done now."""
        try:
            return self._work(until)
        except (FrameError, MemoryError):
            # No frame, or no room for one: the router takes what was on this connection for lost, and makes another.
            self._transport.abort()
            return False

    def _work(self, until: float) -> bool:
        frames = self._frames
        answers: list[bytes] = []
        size = 0
        while frames and self._writable and size < _WRITE:
            now = time.monotonic()
            if answers and now > until:
                break
            frame = frames.popleft()
            self._backlog -= len(frame)
            request = decode_request(frame)
            # Past its deadline the router has answered 504: nobody reads what would be said here.
            if request.deadline < now:
                continue
            answer = encode_answer(self._server.worker.answer(request), time.monotonic())
            answers.append(answer)
            size += len(answer)
        if answers:
            self._transport.write(b"".join(answers))
        return self._after_work()

    def _after_work(self) -> bool:
        if self._ended:
            if not self._frames:
                self._transport.close()
        elif not self._reading and self._backlog <= _BACKLOG // 2:
            self._reading = True
            self._transport.resume_reading()
        self._waiting = bool(self._frames) and self._writable
        return self._waiting

    def _wake(self) -> None:
        if self._frames and self._writable and not self._waiting:
            self._waiting = True
            self._server.wake(self)


def listen(path: Path) -> socket.socket:
    """The worker's socket, for its owner only. A file that a killed worker left there is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise UnavailableError(f"{path}: cannot listen: {error.strerror or error}") from error
    finally:
        os.umask(umask)
    return listener
