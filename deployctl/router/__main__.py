"""`python -m deployctl.router`: the process around the server, from the inherited socket to the last batch.

It accepts nobody before its first order: until then connections wait in the backlog of the socket that the
supervisor holds. When it ends while a successor serves, its callers do not notice (`heir`); at the end of a service each of them
gets its answer, and a second for a last request.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import gc
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import uvloop

from deployctl.errors import InvalidError
from deployctl.router.heir import Heir, Successor
from deployctl.router.http import Connections
from deployctl.router.orders import OrdersLink
from deployctl.router.server import Server, Settings
from deployctl.wire.credentials import read_tokens, server_context
from deployctl.wire.lifeline import die_with_parent
from deployctl.wire.priority import take_short_turns

_LAST_BATCH = 1.0  # seconds for the controller to confirm the last outcomes
_LAST_REQUEST = 1.0  # seconds in which an idle caller may still send one, and is answered, before its connection is closed
_LOOK = 0.005
_OUT_OF_FILES = 0.1  # seconds until callers are let in again


def main() -> None:
    """Serves until SIGTERM, then finishes what is in flight and exits 0."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m deployctl.router", description=__doc__)
    parser.add_argument("--data-fd", type=int, required=True, help="the listening socket, inherited")
    parser.add_argument("--orders", required=True, help="path of the controller's orders socket")
    parser.add_argument("--heir", type=Path, help="where a successor takes over the connections")
    parser.add_argument(
        "--settings", required=True, help="JSON: model, routing_key, timeout, limits, inputs, input_key"
    )
    args = parser.parse_args()
    try:
        settings = msgspec.json.decode(args.settings, type=Settings)
    except msgspec.DecodeError as error:
        parser.error(f"--settings: {error}")
    _allow_many_connections()
    take_short_turns()
    gc.freeze()  # what is loaded now stays; the collector need not look at it again
    uvloop.run(serve(socket.socket(fileno=args.data_fd), args.orders, args.heir, settings))


async def serve(listener: socket.socket, orders: str, path: Path | None, settings: Settings) -> None:
    """The life of one router on a socket that already listens; `path` is where routers give their connections on."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the starter's business, which then says SIGTERM
    server = Server(settings, lambda: link.read_back())  # noqa: PLW0108 - `link` is made in the next line
    link = OrdersLink(orders, server.outcomes, server.apply, lambda: server.upstreams.connected)
    heir = _heir(path)  # before we read anything back: then the router before us may be told to end
    controller = asyncio.ensure_future(link.stay_connected())
    beating = asyncio.ensure_future(server.pulse.beat())
    watching = asyncio.ensure_future(server.mirror.watch(server.upstreams.links.values))
    clients = Connections(server.serve, settings.limits)
    door = Door(server, settings)
    loop.add_signal_handler(signal.SIGHUP, door.read_again)
    ordered = asyncio.ensure_future(link.first_order.wait())
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait([ordered, stopped], return_when=asyncio.FIRST_COMPLETED)
    if ordered.done():
        stop_listening = await _listen(listener, clients, settings, door)
        adopting = _adopt(clients, heir) if heir is not None else set()
        await stopped
        stop_listening()
        if heir is not None:
            heir.close()
            await asyncio.gather(*adopting, return_exceptions=True)
        await _drain(clients, path, settings.timeout + settings.limits.patience)
    server.mirror.close()
    server.outcomes.flush()
    if server.outcomes.send is not None:
        await _until(lambda: server.outcomes.all_written_down, _LAST_BATCH)
    server.upstreams.close()
    controller.cancel()
    beating.cancel()
    watching.cancel()
    ordered.cancel()


class Door:
    """What callers need to come in: the certificate that they are shown, and their token. Read from files, again when we are told."""

    def __init__(self, server: Server, settings: Settings) -> None:
        """Raises InvalidError."""
        self._server = server
        self._tls, self._tokens = (Path(name) if name else None for name in (settings.tls, settings.tokens))
        self.context = server_context(self._tls, self._tls) if self._tls else None
        self._current = self.context
        if self.context is not None:
            # A context keeps a certificate of each type of key, so a new one in it might leave the old one in use: each has its own.
            self.context.sni_callback = self._show_current
        server.tokens = read_tokens(self._tokens) if self._tokens else None

    def read_again(self) -> None:
        """For connections and requests from now on; what cannot be read stays as it was."""
        for read in (self._read_certificate, self._read_tokens):
            try:
                read()
            except InvalidError as error:
                sys.stderr.write(f"deployctl: {error}; what was there before stays in use\n")

    def _read_certificate(self) -> None:
        if self._tls is not None:
            self._current = server_context(self._tls, self._tls)

    def _read_tokens(self) -> None:
        if self._tokens is not None:
            self._server.tokens = read_tokens(self._tokens)

    def _show_current(self, caller: Any, _name: str | None, _context: ssl.SSLContext) -> None:
        caller.context = self._current


async def _listen(
    listener: socket.socket, clients: Connections, settings: Settings, door: Door
) -> Callable[[], None]:
    """Lets callers in; the result is how to stop that. Of several routers each takes one at a time, so that all get their share."""
    loop = asyncio.get_running_loop()
    patience = settings.limits.patience if door.context else None
    if settings.routers == 1:
        listening = await loop.create_server(
            clients.connect, sock=listener, ssl=door.context, ssl_handshake_timeout=patience
        )
        return listening.close
    listener.setblocking(False)
    arriving: set[asyncio.Task[object]] = set()

    def accept() -> None:
        try:
            caller, _ = listener.accept()
        except OSError as error:  # another router was quicker, or the caller is gone again
            if error.errno in {errno.EMFILE, errno.ENFILE}:  # asking at once again would take a processor
                loop.remove_reader(listener.fileno())
                waiting[:] = [loop.call_later(_OUT_OF_FILES, loop.add_reader, listener.fileno(), accept)]
            return
        caller.setblocking(False)
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        welcome = loop.connect_accepted_socket(
            clients.connect, caller, ssl=door.context, ssl_handshake_timeout=patience
        )
        task = loop.create_task(welcome)
        arriving.add(task)
        task.add_done_callback(arrived)

    def arrived(task: asyncio.Task[object]) -> None:
        arriving.discard(task)
        if not task.cancelled():
            task.exception()  # of a handshake that failed: the caller's affair

    waiting: list[asyncio.TimerHandle] = []
    loop.add_reader(listener.fileno(), accept)

    def stop() -> None:
        for timer in waiting:
            timer.cancel()
        loop.remove_reader(listener.fileno())

    return stop


def _heir(path: Path | None) -> Heir | None:
    """Nobody passes anything on to a router that has no such path; it serves all the same."""
    if path is None:
        return None
    try:
        return Heir(path)
    except OSError as error:
        sys.stderr.write(f"deployctl: {path}: no connections can be taken over here: {error.strerror}\n")
        return None


def _adopt(clients: Connections, heir: Heir) -> set[asyncio.Task[object]]:
    """Serves the connections of the router before this one; the result is those that are just arriving."""
    loop = asyncio.get_running_loop()
    arriving: set[asyncio.Task[object]] = set()

    def adopted(caller: socket.socket) -> None:
        caller.setblocking(False)
        task = loop.create_task(loop.connect_accepted_socket(clients.inherit, caller))
        arriving.add(task)
        task.add_done_callback(arriving.discard)

    heir.adopt(adopted)
    return arriving


async def _drain(clients: Connections, path: Path | None, seconds: float) -> None:
    """Until every caller has its answer and is with the successor or gone; who takes longer than this is cut off."""
    successor = Successor.find(path) if path is not None else None
    clients.close(successor)
    began = monotonic()
    while clients.open and (spent := monotonic() - began) < seconds:
        clients.let_go(idle_too=spent > _LAST_REQUEST)
        await asyncio.sleep(_LOOK)
    clients.abort()
    if successor is not None:
        successor.close()


async def _until(done: Callable[[], bool], seconds: float) -> None:
    end = monotonic() + seconds
    while not done() and monotonic() < end:  # noqa: ASYNC110 - twice in a life; events would cross every module
        await asyncio.sleep(_LOOK)


def _allow_many_connections() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
