"""The link to the controller: whole orders come down, what is done about them and all outcomes go up.

While the controller is gone the last order stays in force; an order of an older controller is refused.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import cast
from uuid import uuid4

import msgspec

from deployctl.core.plan import Split
from deployctl.router.outcomes import Outcomes
from deployctl.wire.orders import Ack, Hello, MessageReader, Order, ReadBack, decode_down, encode

_RECONNECT = 0.05  # seconds between two attempts


class OrdersLink(asyncio.Protocol):
    """The connection to the controller, kept up for as long as the router lives."""

    def __init__(
        self,
        path: str,
        outcomes: Outcomes,
        apply: Callable[[Order], None],
        connected: Callable[[], tuple[str, ...]],
    ) -> None:
        self.first_order = asyncio.Event()
        self._path = path
        self._outcomes = outcomes
        self._apply = apply
        self._connected = connected
        self._hello = Hello(router=uuid4().hex, pid=os.getpid())
        self._fence = -1
        self._split: Split | None = None
        self._messages = MessageReader()
        self._transport: asyncio.Transport | None = None
        self._gone = asyncio.Event()

    async def stay_connected(self) -> None:
        """Connects and connects again; never returns."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.create_unix_connection(lambda: self, self._path)
                await self._gone.wait()
                self._gone.clear()
            except OSError:
                pass  # not there yet, or not any more
            await asyncio.sleep(_RECONNECT)

    def read_back(self, refused: str | None = None) -> None:
        """Tells the controller what is in force; called after every order and whenever a worker comes or goes."""
        if self._transport is not None and self._fence >= 0:
            message = ReadBack(self._fence, self._split, self._connected(), refused)
            self._transport.write(encode(message))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._messages = MessageReader()
        self._transport.write(encode(self._hello))
        self._outcomes.connected(self._transport.write)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._transport = None
        self._outcomes.disconnected()
        self._gone.set()

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._messages.feed(data):
                self._take(decode_down(body))
        except (msgspec.MsgspecError, ValueError):  # not our controller, or another release of it
            if self._transport is not None:
                self._transport.abort()

    def _take(self, message: Order | Ack) -> None:
        if isinstance(message, Ack):
            self._outcomes.acknowledged(message.batch)
        elif message.fence < self._fence:
            self.read_back(refused=f"fence {message.fence} is older than {self._fence}")
        else:
            self._fence, self._split = message.fence, message.split
            self._apply(message)
            self.read_back()
            self.first_order.set()
