"""Bytes → requests → bytes: the parser's events, every limit and time-out, keep-alive, pipelining in order.

A connection has at most one request with the service; whatever else has arrived waits, bounded, and is not parsed.
The parser (llhttp) refuses ambiguous framing; what it leaves open (Host, sizes, versions, time) is settled here.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import socket
import termios
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from struct import Struct
from time import monotonic, time
from typing import Protocol, cast

import httptools
import msgspec

JSON = b"application/json"
ANSWERS = {status.value for status in HTTPStatus if status >= 200} - {204, 205, 304}
"""Every status that an answer with a body may have."""
_SLICE = 16 * 1024  # fed to the parser at once, so that few pipelined requests are parsed before their turn
_SWEEP = 0.25  # seconds between two looks at the clock; time-outs come early by up to this, never late
_TURNED_AWAY = 1024  # who comes too many and is told so; more than these are cut off
_AT_ONCE = 256  # connections that are looked at in one go
_LINGER = 2.0  # seconds in which a refused client may read the reason before its unread bytes cause a reset


@dataclass(frozen=True, slots=True)
class Limits:
    """What one router accepts; everything beyond is refused with its status, never buffered."""

    url_bytes: int = 8 * 1024
    head_bytes: int = 16 * 1024
    headers: int = 100
    body_bytes: int = 64 * 1024 * 1024
    bodies_bytes: int = 512 * 1024 * 1024
    """Of all bodies that are arriving at the same time."""
    label_bytes: int = 8 * 1024 * 1024
    connections: int = 1024
    in_flight: int = 256
    in_flight_bytes: int = 256 * 1024 * 1024
    patience: float = 10.0
    """Seconds for a head, for a body to go on arriving, for an answer to go on being read."""
    rate: float = 16 * 1024
    """Bytes per second under which a body or a reader uses up its patience."""
    idle: float = 60.0


class Request(msgspec.Struct):
    """One whole request. Header names are lower case; repeated ones are joined with a comma."""

    method: bytes
    target: bytes
    headers: dict[bytes, bytes]
    keep_alive: bool
    old: bool
    body: bytes = b""


class Pending(Protocol):
    """A request that the service has taken and not yet answered."""

    def client_left(self) -> None:
        """The client closed its side. It may still read: an answer that comes is written all the same."""


Serve = Callable[[Request, "Connection"], Pending | None]
"""The service: calls `answer` once for each request, at once (and returns None) or later."""


class Takes(Protocol):
    """Whoever serves on when this router ends: takes a connection by its descriptor, or says that it cannot just now."""

    gone: bool

    def take(self, descriptor: int) -> bool: ...


class _Refused(Exception):  # noqa: N818 - raised through the parser to stop it, never seen outside
    """A message that ends here with this status, and its connection with it."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Connections:
    """All clients of this router: counted, watched by one clock, closed together at the end."""

    def __init__(self, serve: Serve, limits: Limits) -> None:
        self.serve = serve
        self.limits = limits
        self.open: set[Connection] = set()
        self.arriving_bytes = 0
        self.closing = False
        self.successor: Takes | None = None
        self.date = _date()
        self._timer: asyncio.TimerHandle | None = None

    def connect(self) -> Connection:
        """The protocol factory of the listening socket."""
        return self._new(inherited=False)

    def inherit(self) -> Connection:
        """The protocol factory of a connection that another router passes on: it was let in there."""
        return self._new(inherited=True)

    def _new(self, *, inherited: bool) -> Connection:
        if self._timer is None:
            self._sweep()
        return Connection(self, inherited=inherited)

    def close(self, successor: Takes | None) -> None:
        """From now on every client leaves: for the successor as soon as nothing is under way, else with its next answer."""
        self.closing = True
        self.successor = successor

    def let_go(self, *, idle_too: bool) -> None:
        """Passes on whoever has nothing under way; without a successor those are closed once `idle_too`."""
        if self.successor is not None and self.successor.gone:
            self.successor = None
        for connection in tuple(self.open):
            if self.successor is not None and not connection.secure:
                connection.pass_on(self.successor)
            elif idle_too:
                connection.close_if_idle()

    def abort(self) -> None:
        """Ends what is left without another word."""
        if self._timer is not None:
            self._timer.cancel()
        for connection in tuple(self.open):
            connection.abort()

    def _sweep(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_SWEEP, self._sweep)
        self.date = _date()
        self._check(tuple(self.open), 0, monotonic() + _SWEEP)

    def _check(self, clients: tuple[Connection, ...], begin: int, now: float) -> None:
        """Some at a time: ten thousand in one go would keep a caller waiting for milliseconds."""
        for connection in clients[begin : begin + _AT_ONCE]:
            connection.check(now)
        if (begin := begin + _AT_ONCE) < len(clients):
            asyncio.get_running_loop().call_soon(self._check, clients, begin, now)


class Connection(asyncio.Protocol):
    """One client: what it sent and has not been served yet, and how long it may take for the next step."""

    def __init__(self, connections: Connections, *, inherited: bool = False) -> None:
        self._all = connections
        self._inherited = inherited
        self.secure = False
        """Whether it speaks TLS: then it cannot be passed on, and no half of it can be closed."""
        self._limits = connections.limits
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._request: Request | None = None  # with the service, not answered yet
        self._pending: Pending | None = None
        self._ready: deque[Request] = deque()
        self._backlog = b""
        self._refusal: _Refused | None = None  # comes after the answers to what was asked before it
        self._advancing = False
        self._paused = False  # we do not read
        self._stalled = False  # the client does not read
        self._unread = 0
        self._lingering = False
        self._ended = False  # the client will send no more
        self._deadline = math.inf
        self._now = 0.0
        self._message = _Message()
        self._arriving = False  # a message has begun and is not complete

    # -- the transport's events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.secure = transport.get_extra_info("sslcontext") is not None
        self._deadline = monotonic() + (self._limits.idle if self._inherited else self._limits.patience)
        limit = self._limits.connections
        if len(self._all.open) >= limit + min(limit, _TURNED_AWAY):
            self._transport.abort()
            return
        self._all.open.add(self)
        if len(self._all.open) > self._limits.connections and not self._inherited:
            self._refuse(_Refused(503, "too many connections"))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._transport = None
        self._all.open.discard(self)
        self._take_body()
        self._leave()

    def eof_received(self) -> bool:
        """A client that only half-closes cannot be told from one that left: it counts as left, and is answered."""
        self._ended = True
        self._leave()
        return not self.secure and (self._request is not None or bool(self._ready or self._backlog))

    def pause_writing(self) -> None:
        self._stalled = True
        self._unread = self._count_unread()
        self._deadline = monotonic() + self._limits.patience

    def resume_writing(self) -> None:
        self._stalled = False
        self._wait()
        self._advance()

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        at_once = len(data) <= _SLICE or len(data) <= self._message.left
        if self._request is None and not self._backlog and not self._stalled and at_once:
            self._feed(data)
            if self._ready or self._refusal:
                self._advance()
        else:
            self._backlog += data
            self._advance()

    def check(self, now: float) -> None:
        """Ends what takes too long: 408 for a message that does not get on, no word for silence."""
        transport = self._transport
        if transport is None:
            return
        if self._stalled:
            unread = self._count_unread()
            self._extend(now, self._unread - unread)
            self._unread = unread
        if now < self._deadline:
            return
        if self._stalled or transport.is_closing():
            self.abort()
        elif self._arriving and not self._lingering:
            what = "body" if self._message.complete else "headers"
            self._refuse(_Refused(408, f"the {what} took too long to arrive"))
        else:
            self._deadline = now + self._limits.patience
            transport.close()

    # -- what the service and the set of connections call

    def answer(self, status: int, body: bytes, headers: bytes = b"", content_type: bytes = JSON) -> None:
        """Writes the answer to the request in hand; `headers` are whole lines. Nothing if the client is gone."""
        request, self._request, self._pending = self._request, None, None
        transport = self._transport
        if request is None or transport is None:
            return
        more = not self._ended or self._ready or self._backlog
        leaving = self._all.closing and (self._all.successor is None or self.secure)
        keep_alive = request.keep_alive and more and not leaving
        transport.write(
            b"".join(
                (
                    _STATUS_LINE[status],
                    content_type,
                    self._all.date,
                    headers,
                    _CLOSE if not keep_alive else _KEEP if request.old else b"",
                    b"content-length: %d\r\n\r\n" % len(body),
                    body if request.method != b"HEAD" else b"",
                )
            )
        )
        if not keep_alive:
            self._linger()
            return
        self._wait()
        if self._ready or self._backlog or self._refusal or self._paused or self._arriving:
            self._advance()
        if self._all.successor is not None:
            self.pass_on(self._all.successor)

    def fail(self, status: int, reason: str, headers: bytes = b"", version: str | None = None) -> None:
        """Answers with an error in the one form that every client reads; `version` where it was one that failed."""
        document = {"error": reason} if version is None else {"error": reason, "model_version": version}
        self.answer(status, msgspec.json.encode(document), headers)

    def close_if_idle(self) -> None:
        """Closes a connection that nothing has come on, the kernel asked as well."""
        if self._idle and self._transport is not None and not self._count_arrived():
            self._transport.close()
            self._deadline = monotonic() + _LINGER  # whoever speaks TLS may never say goodbye in return

    def pass_on(self, successor: Takes) -> None:
        """Gives the connection away between two requests. Closing our descriptor then ends nothing: the successor has its own."""
        transport = self._transport
        if transport is None or self.secure or not self._idle or transport.get_write_buffer_size():
            return
        transport.pause_reading()
        if successor.take(transport.get_extra_info("socket").fileno()):
            transport.abort()
        else:
            transport.resume_reading()

    @property
    def _idle(self) -> bool:
        """Whether nothing is under way: no answer owed, no part of a message read, and the client still there."""
        busy = self._request is not None or self._ready or self._backlog or self._refusal is not None
        closing = self._transport is None or self._transport.is_closing() or self._lingering or self._ended
        return not (busy or self._arriving or self._advancing or self._paused or self._stalled or closing)

    def abort(self) -> None:
        """Ends the connection and drops what the kernel still holds for a client that does not read."""
        if self._transport is not None:
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()

    # -- one request after the other

    def _advance(self) -> None:
        """Serves what has arrived, one at a time, until it must wait for an answer, a reader or more bytes."""
        if self._advancing:
            return  # the service answered at once, and the loop below goes on by itself
        self._advancing = True
        while (
            self._request is None
            and not self._stalled
            and not self._lingering
            and self._transport is not None
        ):
            if self._ready:
                self._request = request = self._ready.popleft()
                self._deadline = math.inf
                pending = self._all.serve(request, self)
                if self._request is request:
                    self._pending = pending
            elif self._refusal is not None:
                self._refuse(self._refusal)
            elif self._backlog:
                size = max(_SLICE, self._message.left)
                piece, self._backlog = self._backlog[:size], self._backlog[size:]
                self._feed(piece)
            else:
                break
        self._advancing = False
        if self._message.continue_due and self._request is None:
            self._say_continue()
        self._read_on(wanted=not self._backlog and not self._ready)

    def _read_on(self, *, wanted: bool) -> None:
        if self._transport is None or self._transport.is_closing() or self._paused is not wanted:
            return
        self._paused = not wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _feed(self, data: bytes) -> None:
        if self._refusal is not None:
            return
        self._now = monotonic()
        if self._arriving and self._message.complete:
            self._extend(self._now, len(data))
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            self._refusal = error.__context__ if isinstance(error.__context__, _Refused) else _MALFORMED
        except httptools.HttpParserError as error:
            self._refusal = _Refused(400, f"malformed request: {error}")
        except httptools.HttpParserUpgrade:
            return  # it is served as if it had not asked, and its connection closes with the answer
        message = self._message
        if self._arriving and not message.complete:
            message.fed += len(data)
            if message.fed > self._limits.head_bytes + _SLICE:
                self._refusal = self._refusal or _Refused(431, "the headers are too large")
        if message.continue_due and not self._ready and self._refusal is None:
            self._say_continue()

    def _wait(self) -> None:
        """Sets the clock for whatever the client has to do next."""
        if self._stalled:
            return  # it has to read: `pause_writing` has set the clock
        if self._request is not None:
            self._deadline = math.inf
        elif self._lingering:
            self._deadline = monotonic() + _LINGER
        else:
            self._deadline = monotonic() + (self._limits.patience if self._arriving else self._limits.idle)

    def _extend(self, now: float, progress: int) -> None:
        """Whoever gets on at the least rate never runs out of patience; a trickle does."""
        self._deadline = min(self._deadline + progress / self._limits.rate, now + self._limits.patience)

    def _say_continue(self) -> None:
        self._message.continue_due = False
        if self._transport is not None and not self._lingering:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse(self, refusal: _Refused) -> None:
        """The last answer of this connection, to a message that was not taken."""
        self._ready.clear()
        self._take_body()
        self._request = Request(b"", b"", {}, keep_alive=False, old=False)
        self.fail(refusal.status, str(refusal), _RETRY if refusal.status == 503 else b"")

    def _linger(self) -> None:
        """Closes our side and drops what still comes, so that the last answer is read and not reset."""
        transport = self._transport
        assert transport is not None
        unread = bool(self._arriving or self._backlog or self._ready or self._refusal)
        self._lingering = True
        self._backlog = b""
        self._ready.clear()
        if self._ended or (self.secure and not unread):
            transport.close()
            return
        self._wait()
        self._read_on(wanted=True)
        if not self.secure:
            transport.write_eof()

    def _count_unread(self) -> int:
        """Bytes of answers that the client's machine has not taken: ours, and what the kernel holds."""
        assert self._transport is not None
        fd = self._transport.get_extra_info("socket").fileno()
        (queued,) = _INT.unpack(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(_INT.size)))
        return int(queued) + self._transport.get_write_buffer_size()

    def _count_arrived(self) -> int:
        """Bytes that the kernel has for us and that we have not read."""
        assert self._transport is not None
        fd = self._transport.get_extra_info("socket").fileno()
        (arrived,) = _INT.unpack(fcntl.ioctl(fd, termios.FIONREAD, bytes(_INT.size)))
        return int(arrived)

    def _leave(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.client_left()

    # -- the parser's events

    def on_message_begin(self) -> None:
        self._message = _Message()
        self._arriving = True
        self._deadline = self._now + self._limits.patience

    def on_url(self, url: bytes) -> None:
        message = self._message
        message.target += url
        message.size += len(url)
        if message.size > self._limits.url_bytes:
            raise _Refused(414, f"the URL is longer than {self._limits.url_bytes} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        message = self._message
        message.size += len(name) + len(value) + 4
        message.count += 1
        if message.size > self._limits.head_bytes or message.count > self._limits.headers:
            raise _Refused(
                431, f"more than {self._limits.headers} headers or {self._limits.head_bytes} bytes of them"
            )
        if message.complete:
            return  # a trailer: allowed, and not used for anything
        name = name.lower()
        headers = message.headers
        if name in headers:
            if name == b"host":
                raise _Refused(400, "more than one Host header")
            value = headers[name] + b", " + value
        headers[name] = value

    def on_headers_complete(self) -> None:
        message = self._message
        headers = message.headers
        version = self._parser.get_http_version()
        message.complete = True
        message.old = version == "1.0"
        if version not in {"1.1", "1.0"}:
            raise _Refused(505, f"HTTP/{version} is not spoken here; use HTTP/1.1")
        if b"host" not in headers and not message.old:
            raise _Refused(400, "no Host header")
        if b"content-length" in headers or b"transfer-encoding" in headers:
            self._expect_body(message)
        if b"expect" in headers:
            if headers[b"expect"].lower() != b"100-continue":
                raise _Refused(417, "Expect knows 100-continue only")
            message.continue_due = not message.old

    def _expect_body(self, message: _Message) -> None:
        length = message.headers.get(b"content-length")
        if length is not None and int(length) > self._limits.body_bytes:
            raise _Refused(413, f"the body is larger than {self._limits.body_bytes} bytes")
        coding = message.headers.get(b"transfer-encoding", b"chunked")
        if coding.lower() != b"chunked":
            raise _Refused(501, "Transfer-Encoding knows chunked only")
        if self._parser.should_upgrade() or (message.old and length is None):
            raise _Refused(400, "a body whose end is not certain")
        message.left = int(length or 0)
        self._deadline = self._now + self._limits.patience

    def on_body(self, body: bytes) -> None:
        message = self._message
        message.received += len(body)
        message.left -= len(body)
        self._all.arriving_bytes += len(body)
        if message.received > self._limits.body_bytes:
            raise _Refused(413, f"the body is larger than {self._limits.body_bytes} bytes")
        if self._all.arriving_bytes > self._limits.bodies_bytes:
            raise _Refused(503, "too many bodies are arriving")
        message.body.append(body)

    def on_message_complete(self) -> None:
        message = self._message
        parts = self._take_body()
        message.continue_due = False
        self._arriving = False
        self._ready.append(
            Request(
                self._parser.get_method(),
                message.target,
                message.headers,
                self._parser.should_keep_alive() and not self._parser.should_upgrade(),
                message.old,
                (parts[0] if len(parts) == 1 else b"".join(parts)) if parts else b"",
            )
        )

    def _take_body(self) -> list[bytes]:
        message = self._message
        self._all.arriving_bytes -= message.received
        parts, message.body, message.received = message.body, [], 0
        return parts


class _Message(msgspec.Struct):
    """What has come of the message that is arriving."""

    target: bytes = b""
    headers: dict[bytes, bytes] = {}
    body: list[bytes] = []
    size: int = 0  # of the request line and the headers, as far as they are parsed
    fed: int = 0  # bytes read while the head is not complete, up to a slice too many
    count: int = 0
    received: int = 0
    left: int = 0  # of a body whose length is known: what comes until then is no next request
    complete: bool = False  # the head is
    continue_due: bool = False
    old: bool = False  # HTTP/1.0


def _date() -> bytes:
    return b"\r\ndate: %b\r\n" % formatdate(time(), usegmt=True).encode()


_MALFORMED = _Refused(400, "malformed request")
_INT = Struct("i")
_RESET = Struct("ii").pack(1, 0)  # SO_LINGER for no time at all
_CLOSE = b"connection: close\r\n"
_KEEP = b"connection: keep-alive\r\n"
_RETRY = b"retry-after: 1\r\n"
_STATUS_LINE = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: ".encode()
    for status in HTTPStatus
}
