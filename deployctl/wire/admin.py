"""CLI ↔ controller: HTTP and JSON on a Unix socket, both ends. `curl --unix-socket` works as well.

The controller serves the socket that its supervisor opened, so a call during a restart waits in the backlog instead of
failing. Only the socket's owner and root are answered. An error is `{"error": "one line", "exit_code": n}`. Every answer names the
release that gives it, as both ends may be of different ones: either passes over keys that it does not know.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, urlsplit

import h11
import msgspec

from deployctl import __version__
from deployctl.errors import DeployctlError, Exit, UnavailableError, error_for

if TYPE_CHECKING:
    import httpx

RELEASE = "deployctl-release"
"""The header that names the release of whoever answers."""

MAX_HEADER = 16 * 1024
MAX_BODY = 1024 * 1024
MAX_CONNECTIONS = 128
IDLE_SECONDS = 30.0
"""How long a connection may take to send its next request, or to take what it was sent."""
HEARTBEAT_SECONDS = 5.0
"""A silent stream says an empty line this often, so that both ends notice when the other is gone."""
CONNECT_SECONDS = 10.0
"""How long a call waits for its answer; covers a controller that is being restarted."""
ACT_SECONDS = 60.0
"""How long a call that changes something waits: the controller confirms within its own, shorter time."""

_STATUS = {
    Exit.INVALID: HTTPStatus.BAD_REQUEST,
    Exit.UNCONFIRMED: HTTPStatus.GATEWAY_TIMEOUT,
    Exit.CONFLICT: HTTPStatus.CONFLICT,
    Exit.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AdminRequest:
    """One call: `path` without its query, `body` the JSON object that came with it ({} for none)."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)
    uid: int = 0


@dataclass(frozen=True, slots=True)
class AdminReply:
    """One answer: anything that msgspec can turn into JSON (NaN and infinity leave as null)."""

    document: Any
    status: int = HTTPStatus.OK


Handle = Callable[[AdminRequest], Awaitable[AdminReply | AsyncIterator[bytes]]]
"""What the controller brings: a reply, or a stream of lines (see `line`). A DeployctlError becomes its document."""


def line(document: Any) -> bytes:
    """One document of a stream."""
    return msgspec.json.encode(document) + b"\n"


def error_reply(error: DeployctlError) -> AdminReply:
    """The document that `AdminClient` turns back into this error."""
    status = _STATUS.get(error.exit_code, HTTPStatus.INTERNAL_SERVER_ERROR)
    return AdminReply({"error": str(error), "exit_code": int(error.exit_code)}, status)


def serve(sock: socket.socket, handle: Handle, release: str = __version__) -> AdminServer:
    """Answer calls on a listening socket until `close()`; needs a running event loop. The socket stays open."""
    return AdminServer(sock, handle, release)


class AdminServer:
    """Accepts on an inherited socket, one task per connection. Nothing that a client sends ends it."""

    def __init__(self, sock: socket.socket, handle: Handle, release: str) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._handle = handle
        self._release = release
        self._places = asyncio.Semaphore(MAX_CONNECTIONS)
        self._connections: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.create_task(self._accept())

    async def close(self) -> None:
        """End every connection. The listening socket belongs to whoever opened it and stays as it is."""
        tasks = [self._accepting, *self._connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._places.acquire()
            try:
                connection, _ = await loop.sock_accept(self._sock)
            except OSError as error:  # out of descriptors, or the peer was gone before we came
                self._places.release()
                _log.warning("cannot accept on the admin socket: %s", error)
                await asyncio.sleep(0.1)
                continue
            task = asyncio.create_task(self._talk(connection))
            self._connections.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._places.release()
        if not task.cancelled() and (error := task.exception()):
            _log.error("an admin connection ended badly", exc_info=error)

    async def _talk(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, TimeoutError):
            uid = _peer_uid(connection)
            reader, writer = await asyncio.open_unix_connection(sock=connection)
            try:
                await _Conversation(reader, writer, self._handle, uid, self._release).run()
            finally:
                writer.close()


class _Conversation:
    """The requests of one connection, one after the other."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handle: Handle,
        uid: int,
        release: str,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._handle = handle
        self._uid = uid
        self._release = release
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER)

    async def run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    request = await self._read_request()
            except h11.RemoteProtocolError as error:
                await self._refuse(error.error_status_hint, f"not a valid HTTP request: {error}")
                return
            except _RefusedError as error:
                await self._refuse(error.status, str(error))
                return
            if request is None:
                return
            answer = await self._answer(request)
            if isinstance(answer, AdminReply):
                await self._send(answer)
            else:
                await self._stream(answer)
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _read_request(self) -> AdminRequest | None:
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = self._http.next_event()
            match event:
                case h11.NEED_DATA:
                    if self._http.they_are_waiting_for_100_continue:
                        await self._write(h11.InformationalResponse(status_code=100, headers=[]))
                    self._http.receive_data(await self._reader.read(65536))
                case h11.Request():
                    head = event
                case h11.Data():
                    body += event.data
                    if len(body) > MAX_BODY:
                        raise _RefusedError(413, f"the body is larger than {MAX_BODY} bytes")
                case h11.EndOfMessage():
                    assert head is not None
                    return self._request(head, bytes(body))
                case _:  # the client is done
                    return None

    def _request(self, head: h11.Request, body: bytes) -> AdminRequest:
        if self._uid not in {0, os.geteuid()}:
            raise _RefusedError(403, "only the user who runs the service, and root, may talk to it")
        try:
            target = urlsplit(head.target.decode("ascii"))
            document = msgspec.json.decode(body) if body.strip() else {}
        except ValueError as error:  # msgspec.DecodeError is one
            raise _RefusedError(400, f"the body is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise _RefusedError(400, "the body must be a JSON object")
        query = dict(parse_qsl(target.query))
        return AdminRequest(head.method.decode("ascii"), target.path, query, document, self._uid)

    async def _answer(self, request: AdminRequest) -> AdminReply | AsyncIterator[bytes]:
        try:
            return await self._handle(request)
        except DeployctlError as error:
            return error_reply(error)
        except Exception as error:  # noqa: BLE001 - the outermost loop here: a bug costs one call
            _log.exception("a bug while answering %s %s", request.method, request.path)
            return error_reply(DeployctlError(f"{type(error).__name__}: {error}"))

    async def _refuse(self, status: int, message: str) -> None:
        if self._http.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            await self._send(
                AdminReply({"error": message, "exit_code": int(Exit.INVALID)}, status), close=True
            )

    async def _send(self, reply: AdminReply, *, close: bool = False) -> None:
        body = line(reply.document)
        headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
        headers.append((RELEASE, self._release))
        if close:
            headers.append(("connection", "close"))
        await self._write(
            h11.Response(status_code=int(reply.status), headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )

    async def _stream(self, lines: AsyncIterator[bytes]) -> None:
        """Lines as they come, an empty one when nothing came for a while; ends when either side is done."""
        headers = [
            ("content-type", "application/x-ndjson"),
            ("connection", "close"),
            (RELEASE, self._release),
        ]
        gone = asyncio.ensure_future(self._reader.read(1))
        upcoming: asyncio.Future[bytes] | None = None
        try:
            await self._write(h11.Response(status_code=HTTPStatus.OK, headers=headers))
            while True:
                upcoming = upcoming or asyncio.ensure_future(anext(lines))
                done, _ = await asyncio.wait(
                    {upcoming, gone}, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if upcoming in done:
                    await self._write(h11.Data(data=upcoming.result()))
                    upcoming = None
                elif gone in done:
                    return
                else:
                    await self._write(h11.Data(data=b"\n"))
        except StopAsyncIteration:
            await self._write(h11.EndOfMessage())
        finally:
            left = [future for future in (upcoming, gone) if future is not None]
            for future in left:
                future.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            if close := getattr(lines, "aclose", None):
                await close()

    async def _write(self, *events: h11.Event) -> None:
        for event in events:
            self._writer.write(self._http.send(event) or b"")
        async with asyncio.timeout(IDLE_SECONDS):
            await self._writer.drain()


class _RefusedError(Exception):
    """A request that never reaches the controller."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _peer_uid(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", credentials)
    return int(uid)


class AdminClient:
    """Calls to one service. Every failure is a DeployctlError: the service's own, or UnavailableError.

    `heard` is called with the release of each answer; None is one from before answers named it.
    """

    def __init__(
        self,
        socket_path: Path | str,
        service: str | None = None,
        heard: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        import httpx  # noqa: PLC0415 - 0.1 s that only a client needs

        self._heard = heard
        self._service = service or "the service"
        self._path = Path(socket_path)
        transport = httpx.HTTPTransport(uds=str(socket_path))
        self._http = httpx.Client(transport=transport, base_url="http://deployctl", trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, *, timeout: float = CONNECT_SECONDS) -> dict[str, Any]:
        """The answer to a question; asked again when the controller dies over it, until `timeout` seconds."""
        return self._call("GET", path, None, timeout, again=True)

    def post(
        self, path: str, body: dict[str, Any], *, timeout: float = ACT_SECONDS, again: bool = True
    ) -> dict[str, Any]:
        """Change something. `again=False` for what must not be sent twice when the controller dies over it."""
        return self._call("POST", path, body, timeout, again=again)

    def stream(
        self, path: str, *, timeout: float = CONNECT_SECONDS, answered: Callable[[], None] = lambda: None
    ) -> Iterator[dict[str, Any]]:
        """Documents as they come, until the service ends the stream; UnavailableError when it breaks off. `answered` is called when it
        has begun, which may be long before the first of them.
        """
        import httpx  # noqa: PLC0415 - as above

        limits = httpx.Timeout(timeout, read=max(timeout, 3 * HEARTBEAT_SECONDS))
        try:
            with self._http.stream("GET", path, timeout=limits) as response:
                self._heard(response.headers.get(RELEASE) or None)
                if response.status_code >= 400:
                    response.read()
                    raise _error_of(response)
                answered()
                for text in response.iter_lines():
                    if text.strip():
                        yield msgspec.json.decode(text)
        except (httpx.TransportError, msgspec.DecodeError) as error:
            raise self._unavailable(error) from error

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None, timeout: float, *, again: bool
    ) -> dict[str, Any]:
        import httpx  # noqa: PLC0415 - as above

        deadline = time.monotonic() + timeout
        while True:
            left = max(0.1, deadline - time.monotonic())
            try:
                response = self._http.request(method, path, json=body, timeout=left)
            except httpx.TransportError as error:
                refused = _errno_of(error) in {errno.ENOENT, errno.ECONNREFUSED, errno.EACCES}
                # A full backlog (EAGAIN) is a service that restarts; a read error a controller that was killed.
                unsent = isinstance(error, httpx.ConnectError)
                if refused or not (again or unsent) or time.monotonic() + 0.05 >= deadline:
                    raise self._unavailable(error) from error
                time.sleep(0.05)
                continue
            self._heard(response.headers.get(RELEASE) or None)
            if response.status_code >= 400:
                raise _error_of(response)
            document = msgspec.json.decode(response.content)
            assert isinstance(document, dict)
            return document

    def _unavailable(self, error: Exception) -> UnavailableError:
        name = f"service '{self._service}'" if self._service != "the service" else self._service
        match _errno_of(error):
            case errno.ENOENT | errno.ECONNREFUSED:
                return UnavailableError(f"{name} is not running; start it with: deployctl up FILE")
            case errno.EACCES | errno.EPERM:
                return UnavailableError(
                    f"{name} belongs to another user: no permission for {self._path}; "
                    "run deployctl as the user who started it"
                )
        return UnavailableError(f"{name} does not answer ({error or type(error).__name__})")


def _error_of(response: httpx.Response) -> DeployctlError:
    try:
        document = msgspec.json.decode(response.content)
        return error_for(int(document["exit_code"]), str(document["error"]))
    except (ValueError, KeyError, TypeError):
        return DeployctlError(f"the service answered {response.status_code} without saying why")


def _errno_of(error: BaseException | None) -> int | None:
    """The operating system's reason at the bottom of a chain of translated exceptions."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        error = error.__cause__ or error.__context__
    return None
