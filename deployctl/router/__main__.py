"""`python -m deployctl.router`: the process around the server, from the inherited socket to the last batch.

It accepts nobody before its first order: until then connections wait in the backlog of the socket that the
supervisor holds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import signal
import socket
from collections.abc import Callable
from time import monotonic

import msgspec
import uvloop

from deployctl.router.http import Connections
from deployctl.router.orders import OrdersLink
from deployctl.router.server import Server, Settings
from deployctl.wire.lifeline import die_with_parent

_LAST_BATCH = 1.0  # seconds for the controller to confirm the last outcomes
_LOOK = 0.005


def main() -> None:
    """Serves until SIGTERM, then finishes what is in flight and exits 0."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m deployctl.router", description=__doc__)
    parser.add_argument("--data-fd", type=int, required=True, help="the listening socket, inherited")
    parser.add_argument("--orders", required=True, help="path of the controller's orders socket")
    parser.add_argument(
        "--settings", required=True, help="JSON: model, routing_key, timeout, limits, inputs, input_key"
    )
    args = parser.parse_args()
    try:
        settings = msgspec.json.decode(args.settings, type=Settings)
    except msgspec.DecodeError as error:
        parser.error(f"--settings: {error}")
    _allow_many_connections()
    gc.freeze()  # what is loaded now stays; the collector need not look at it again
    uvloop.run(serve(socket.socket(fileno=args.data_fd), args.orders, settings))


async def serve(listener: socket.socket, orders: str, settings: Settings) -> None:
    """The life of one router on a socket that already listens."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the starter's business, which then says SIGTERM
    server = Server(settings, lambda: link.read_back())  # noqa: PLW0108 - `link` is made in the next line
    link = OrdersLink(orders, server.outcomes, server.apply, lambda: server.upstreams.connected)
    controller = asyncio.ensure_future(link.stay_connected())
    beating = asyncio.ensure_future(server.pulse.beat())
    clients = Connections(server.serve, settings.limits)
    ordered = asyncio.ensure_future(link.first_order.wait())
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait([ordered, stopped], return_when=asyncio.FIRST_COMPLETED)
    if ordered.done():
        listening = await loop.create_server(clients.connect, sock=listener)
        await stopped
        listening.close()
        clients.close()
        await _until(lambda: not clients.open, settings.timeout + 1)
        clients.abort()
    server.mirror.close()
    server.outcomes.flush()
    if server.outcomes.send is not None:
        await _until(lambda: server.outcomes.all_written_down, _LAST_BATCH)
    server.upstreams.close()
    controller.cancel()
    beating.cancel()
    ordered.cancel()


async def _until(done: Callable[[], bool], seconds: float) -> None:
    end = monotonic() + seconds
    while not done() and monotonic() < end:  # noqa: ASYNC110 - twice in a life; events would cross every module
        await asyncio.sleep(_LOOK)


def _allow_many_connections() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
