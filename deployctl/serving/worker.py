"""The worker's server: frames in from the router, answers out, on one Unix socket and one thread.

All requests that one turn of the loop can read are handled in one go, those that fit together in one inference, and their
answers leave in one write. Whatever has arrived is answered: also at SIGTERM, and also when the other side has closed its half of the connection.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from deployctl.errors import UnavailableError
from deployctl.serving.batching import OFF, Batching
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


class _Asked(NamedTuple):
    """A request that was read and fits the signature."""

    at: int
    """Its place among those that are answered together."""
    request: Request
    asked: oip.InferRequest
    request_id: str
    names: list[str] | None
    """Outputs to compute: those that it asks for, and the one that the prediction is read from; None for all."""


class Worker:
    """One version at work: requests in, their answers out. Knows nothing of sockets."""

    def __init__(self, settings: Settings, model: Model, reader: Reader, batching: Batching = OFF) -> None:
        self._model_name = settings.model
        self._version = settings.version
        self._model = model
        self._reader = reader
        self._metadata = oip.metadata(settings.model, [settings.version], model.inputs, model.outputs)
        self.rows = batching.rows
        """How many rows an inference may have."""

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers, in the order of the requests; every failure is one too. Requests of the same form share inferences."""
        answers: dict[int, Answer] = {}
        groups: dict[object, list[_Asked]] = {}
        for at, request in enumerate(requests):
            read = self._read(at, request)
            if isinstance(read, Answer):
                answers[at] = read
            else:
                groups.setdefault(self._form(read) if len(requests) > 1 else None, []).append(read)
        for group in groups.values():
            self._answer_alike(group, answers)
        return [answers[at] for at in range(len(requests))]

    def _read(self, at: int, request: Request) -> _Asked | Answer:
        if request.kind is Kind.METADATA:
            return Answer(request.stream, 200, self._metadata, request.request_id)
        request_id = request.request_id
        try:
            asked = oip.decode(request.body, request.json_length, request.encoding, self._model.inputs)
            request_id = asked.id or request_id
            names = self._names(asked)
            self._model.check(asked.inputs)
        except Exception as error:  # noqa: BLE001  # as in `_attempt`
            return self._failed(request, request_id, error)
        return _Asked(at, request, asked, request_id, names)

    def _names(self, asked: oip.InferRequest) -> list[str] | None:
        wanted = asked.outputs
        if wanted is None:
            return None
        names = list(wanted)
        self._model.check_outputs(names)
        read = self._reader.output
        if read is not None and read not in wanted:
            names.append(read)
        return names

    def _form(self, read: _Asked) -> object:
        """Equal for requests that fit into one inference."""
        inputs = read.asked.inputs
        shapes = tuple(inputs[spec.name].shape[1:] for spec in self._model.inputs)
        return shapes if read.names is None else (shapes, *read.names)

    def _answer_alike(self, group: Sequence[_Asked], answers: dict[int, Answer]) -> None:
        """Requests of one form, as many at a time as an inference may have rows."""
        if self.rows == 1:
            for read in group:
                answers[read.at] = self._attempt(read, None)
            return
        batch: list[_Asked] = []
        rows = 0
        for read in group:
            own = _rows_of(read) or self.rows
            if batch and rows + own > self.rows:
                self._answer_batch(batch, answers)
                batch, rows = [], 0
            batch.append(read)
            rows += own
        self._answer_batch(batch, answers)

    def _answer_batch(self, batch: Sequence[_Asked], answers: dict[int, Answer]) -> None:
        shares = self._run_together(batch) if len(batch) > 1 else None
        for place, read in enumerate(batch):
            answers[read.at] = self._attempt(read, None if shares is None else shares[place])

    def _run_together(self, batch: Sequence[_Asked]) -> list[dict[str, Array]] | None:
        """What each is due of one inference; None where each is to be run by itself, because that one failed or was none of rows."""
        rows = [_rows_of(read) for read in batch]
        first = batch[0]
        try:
            inputs = {
                name: np.concatenate([read.asked.inputs[name] for read in batch])
                for name in first.asked.inputs
            }
            deadline = min(read.request.deadline for read in batch)
            outputs = self._model.run(inputs, first.names, deadline)
        except Exception:  # noqa: BLE001  # whatever it is, it is known of a request only where that is run alone
            return None
        ends = np.cumsum(rows).tolist()
        if any(array.ndim == 0 or len(array) != ends[-1] for array in outputs.values()):
            return None
        return [
            {name: array[end - own : end] for name, array in outputs.items()}
            for own, end in zip(rows, ends, strict=True)
        ]

    def _attempt(self, read: _Asked, outputs: dict[str, Array] | None) -> Answer:
        """The answer to a request; `outputs` where an inference has already given them."""
        try:
            if outputs is None:
                if read.request.deadline < time.monotonic():  # over while it was in a batch that failed
                    raise Stopped("the model was stopped: its time was over")
                outputs = self._model.run(read.asked.inputs, read.names, read.request.deadline)
            return self._written(read, outputs)
        except Exception as error:  # noqa: BLE001  # the outermost loop: one request must not end the others
            return self._failed(read.request, read.request_id, error)

    def _written(self, read: _Asked, outputs: dict[str, Array]) -> Answer:
        request, wanted = read.request, read.asked.outputs
        for array in outputs.values():
            if array.size > _MANY:
                _refuse_if_too_large(outputs)
                break
        prediction, null, confidence = self._reader.read(outputs)
        if wanted is not None and len(outputs) > len(wanted):
            outputs = {name: outputs[name] for name in wanted}
        body, json_length = oip.encode(self._model_name, self._version, read.request_id, outputs, read.asked)
        encoding = request.accept
        if encoding is not Encoding.IDENTITY:
            body = compress(body, encoding)
        if len(body) > _LARGEST:
            raise ModelFailure(f"the answer has {len(body)} bytes, which is too large")
        return Answer(
            request.stream, 200, body, read.request_id, prediction, null, confidence, json_length, encoding
        )

    def _failed(self, request: Request, request_id: str, error: Exception) -> Answer:
        if isinstance(error, BadRequest):
            status, message = error.status, error.message
        elif isinstance(error, ModelFailure):
            # Stopped at its deadline it is 504, whether the router or this worker looks at the clock first.
            status, message = 504 if isinstance(error, Stopped) else 500, str(error)
        else:
            status, message = 500, f"the worker failed: {type(error).__name__}"
        return Answer(request.stream, status, oip.error_body(message, self._version), request_id)


def _rows_of(read: _Asked) -> int:
    """How many rows each of its inputs has; 0 where they have not the same number, or none: such a one has its inference for itself."""
    rows = {len(array) if array.ndim else 0 for array in read.asked.inputs.values()}
    return rows.pop() if len(rows) == 1 else 0


def _refuse_if_too_large(outputs: Mapping[str, Array]) -> None:
    """Before it is written out, which would take many times as much memory, and seconds. Raises ModelFailure."""
    least = sum(
        array.size * min(array.itemsize, _LEAST.get(array.dtype.kind, 1)) for array in outputs.values()
    )
    if least > _LARGEST:
        raise ModelFailure(f"the answer would have {least} bytes or more, which is too large")


class Server:
    """Every connection of one worker, and the turns in which their requests are handled.

    `delay`: seconds for which the first of the requests that wait may wait for others, as long as they do not fill an inference.
    """

    def __init__(self, worker: Worker, delay: float = 0.0) -> None:
        self._worker = worker
        self._delay = delay if worker.rows > 1 else 0.0
        self._loop = asyncio.get_running_loop()
        self._links: set[Link] = set()
        self._waiting: deque[Link] = deque()
        self._requests = 0  # that wait
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
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

    def left(self, link: Link, unanswered: int) -> None:
        """A connection is gone, and with it what waited there."""
        self._links.discard(link)
        self._requests -= unanswered
        self._finish()

    def arrived(self, requests: int) -> None:
        """So many more wait, on connections that are in line or come there by `wake`."""
        self._requests += requests
        if self._timer is not None and self._requests >= self._worker.rows:
            self._schedule()

    def wake(self, link: Link) -> None:
        """A connection has something to answer: it has its part in the next turn."""
        self._waiting.append(link)
        if not self._delay or self._draining or self._requests >= self._worker.rows:
            self._schedule()
        elif not self._scheduled and self._timer is None:
            self._timer = self._loop.call_later(self._delay, self._schedule)

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        until = time.monotonic() + _TURN
        served: set[Link] = set()
        while self._waiting:
            served.update(self._answer_some())
            if time.monotonic() > until:
                break
        for link in served:
            link.end_turn()
        if self._waiting:
            self._schedule()

    def _answer_some(self) -> list[Link]:
        """Answers as many requests as an inference may have rows, one of each connection at a time; gives whose they were."""
        links: list[Link] = []
        requests: list[Request] = []
        turns: list[Link] = []
        while self._waiting and len(requests) < self._worker.rows:
            link = self._waiting.popleft()
            turns.append(link)
            frames = link.waiting
            request = link.take()
            self._requests -= frames - link.waiting
            if request is not None:
                links.append(link)
                requests.append(request)
            if link.in_line:
                self._waiting.append(link)
        try:
            for link, answer in zip(links, self._worker.answer(requests), strict=True):
                link.put(encode_answer(answer, time.monotonic()))
        except MemoryError:
            # No room for a frame: the router takes what was on these connections for lost, and makes others.
            for link in links:
                link.abort()
        return turns

    def _drain(self) -> None:
        self._draining = True
        self._server.close()
        for link in self._links:
            link.end_reading()
        if self._waiting:
            self._schedule()  # nobody comes whom they could wait for
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
        self._answers: list[bytes] = []
        self._size = 0
        self._reading = True
        self._writable = True
        self._ended = False
        self.in_line = False
        """Whether it has its part in the next turn."""

    @property
    def waiting(self) -> int:
        """Requests that are not taken yet."""
        return len(self._frames)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has no common base with it
        self._server.joined(self)

    def data_received(self, data: bytes) -> None:
        before = len(self._frames)
        try:
            for frame in self._reader.feed(data):
                self._frames.append(frame)
                self._backlog += len(frame)
        except FrameError:
            self._transport.abort()
        self._server.arrived(len(self._frames) - before)
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
        unanswered = len(self._frames)
        self._frames.clear()
        self._ended = True
        self._server.left(self, unanswered)

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

    def take(self) -> Request | None:
        """The next request, if there is one that somebody still waits for. Leaves the line with the last, or if nobody reads."""
        request = None
        while self._frames and self._writable and request is None:
            frame = self._frames.popleft()
            self._backlog -= len(frame)
            try:
                request = decode_request(frame)
            except (FrameError, MemoryError):
                self.abort()
                break
            # Past its deadline the router has answered 504: nobody reads what would be said here.
            if request.deadline < time.monotonic():
                request = None
        self.in_line = bool(self._frames) and self._writable
        return request

    def put(self, answer: bytes) -> None:
        """An answer that leaves with the others of this turn, or at once when they are many."""
        self._answers.append(answer)
        self._size += len(answer)
        if self._size >= _WRITE:
            self._write()

    def end_turn(self) -> None:
        """Sends what is left, and reads on or closes."""
        self._write()
        if self._ended:
            if not self._frames:
                self._transport.close()
        elif not self._reading and self._backlog <= _BACKLOG // 2:
            self._reading = True
            self._transport.resume_reading()

    def abort(self) -> None:
        """Ends the connection: what came is no frame, or there is no room for one. The router takes it for lost, and makes another."""
        self._transport.abort()

    def _write(self) -> None:
        answers, self._answers, self._size = self._answers, [], 0
        if answers and not self._transport.is_closing():
            try:
                self._transport.write(b"".join(answers))
            except MemoryError:
                self.abort()

    def _wake(self) -> None:
        if self._frames and self._writable and not self.in_line:
            self.in_line = True
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
