"""The built-in router as a traffic backend: orders down, read-backs and batches up (see `wire/orders.py`).

Several routers may be connected; a split is confirmed when every one of them has read it back.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import cast

import msgspec

from deployctl.core.plan import Split
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


@dataclass(slots=True)
class Router:
    """One connected router process and what it last read back."""

    name: str
    pid: int
    transport: asyncio.Transport
    read_back: ReadBack | None = None
    dropped: int = 0
    copies_dropped: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class RouterLink:
    """The controller's end of the orders socket.

    `on_batch(router, batch)` must write the batch down before it returns: it is acknowledged then. `on_change` is called when a
    router comes, reads back or goes; `on_gone(router)` when one is lost.
    """

    fence: int
    on_batch: Callable[[str, Batch], None]
    on_change: Callable[[], None]
    on_gone: Callable[[str], None]
    running: Callable[[], Collection[int]] = lambda: ()
    """The pids of the router processes that there are, connected or not."""
    routers: dict[str, Router] = field(default_factory=dict)
    _owing: set[int] = field(default_factory=set)
    _order: Order | None = None
    _server: asyncio.Server | None = None

    async def listen(self, orders: socket.socket) -> None:
        """Accept routers on this inherited listening socket."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _RouterProtocol(self), sock=orders)

    def apply(self, split: Split, upstreams: tuple[Upstream, ...]) -> None:
        """Ask every router for this whole traffic; asking for what is in force costs nothing."""
        order = Order(self.fence, split, upstreams)
        if order == self._order:
            return
        self._order = order
        for router in self.routers.values():
            router.transport.write(encode(order))

    @property
    def ordered(self) -> Split | None:
        """The split that was last asked for."""
        return self._order.split if self._order else None

    @property
    def dropped(self) -> int:
        """Outcomes that the connected routers had to throw away since they started."""
        return sum(router.dropped for router in self.routers.values())

    @property
    def copies_dropped(self) -> dict[int, int]:
        """Copies by arm that the connected routers never sent since they started: the sample has a hole there."""
        total: Counter[int] = Counter()
        for router in self.routers.values():
            total.update(router.copies_dropped)
        return dict(total)

    def expect(self, pids: Collection[int]) -> None:
        """These routers may be serving callers: nothing is confirmed before each of them has said what it does, or is gone."""
        self._owing.update(pids)

    @property
    def confirmed(self) -> Split | None:
        """The split that every router does now that serves callers; None while they differ, or one is there that does not say."""
        return None if self._owing and self._owing & set(self.running()) else self.agreed

    @property
    def agreed(self) -> Split | None:
        """The split that every connected router does now, None while they differ or none is there."""
        splits = [router.read_back.split if router.read_back else None for router in self.routers.values()]
        return splits[0] if splits and all(split == splits[0] for split in splits) else None

    @property
    def connected(self) -> frozenset[str] | None:
        """Digests of the versions that every connected router has a connection to, None while no router has read back anything."""
        reached = [router.read_back.connected for router in self.routers.values() if router.read_back]
        return frozenset.intersection(*map(frozenset, reached)) if reached else None

    @property
    def obedient(self) -> list[int]:
        """The pids of the routers that do what was ordered last, and have every version that callers may need."""
        if self._order is None:
            return []
        split = self._order.split
        serving = {split.baseline.digest} if split.weight < 100 else set()
        if split.candidate is not None and split.weight > 0:
            serving.add(split.candidate.digest)
        needed = serving & {upstream.digest for upstream in self._order.upstreams}
        return sorted(
            router.pid
            for router in self.routers.values()
            if router.read_back is not None
            and (router.read_back.fence, router.read_back.split) == (self.fence, split)
            and needed <= set(router.read_back.connected)
        )

    def welcome(self, router: Router) -> None:
        """A router introduced itself: it is told the whole desired traffic at once."""
        self.routers[router.name] = router
        self._owing.discard(router.pid)
        if self._order is not None:
            router.transport.write(encode(self._order))
        self.on_change()

    def take(self, router: Router, message: ReadBack | Batch) -> None:
        """A read-back or a batch; a batch is acknowledged once it is written down."""
        if isinstance(message, ReadBack):
            router.read_back = message
            self.on_change()
            return
        router.dropped, router.copies_dropped = message.dropped, message.mirror_dropped
        self.on_batch(router.name, message)
        router.transport.write(encode(Ack(message.number)))

    def lost(self, router: Router) -> None:
        """A router's connection ended."""
        if self.routers.get(router.name) is router:
            del self.routers[router.name]
            # It serves on, unless it is gone.
            self._owing = (self._owing & set(self.running())) | {router.pid}
            self.on_gone(router.name)
            self.on_change()


class _RouterProtocol(asyncio.Protocol):
    """One router's connection. A message that is none ends it: the router comes back and is told everything again."""

    def __init__(self, link: RouterLink) -> None:
        self._link = link
        self._reader = MessageReader()
        self._router: Router | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are of no common class

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        try:
            for body in self._reader.feed(data):
                message = decode_up(body)
                if isinstance(message, Hello):
                    self._router = Router(message.router, message.pid, self._transport)
                    self._link.welcome(self._router)
                elif self._router is not None:
                    self._link.take(self._router, message)
        except (ValueError, msgspec.DecodeError):
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self._router is not None:
            self._link.lost(self._router)
