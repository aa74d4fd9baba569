"""The links to the workers: one multiplexed connection per version, held through a worker's restart.

A call that is not written yet waits for its worker until its deadline; one that is written is never written again,
neither here nor to another version.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Protocol, cast

from deployctl.wire.frames import Answer, FrameError, FrameReader, decode_answer
from deployctl.wire.orders import Upstream
from deployctl.wire.priority import ENOUGH, Starvation

_RECONNECT = 0.02  # seconds between two attempts
_WRITE = 256 * 1024  # bytes joined into one write
_CREDENTIALS = struct.Struct("3i")  # of unix(7): process, user, group


class Call(Protocol):
    """One request to a worker. It ends once, `answered`, `lost` with its worker, or `expired`; whoever sent it is told then."""

    deadline: float
    stream: int
    size: int

    def frame(self) -> bytes:
        """What is written to the worker."""

    def answered(self, answer: Answer) -> None: ...

    def lost(self) -> None: ...

    def expired(self) -> None: ...


class Link(asyncio.Protocol):
    """The connection to one version's worker, and every call that is with it or waits for it.

    `rest`: seconds for which nothing is read after answers were, where several at once cost less and nobody waits for one.
    """

    def __init__(self, upstream: Upstream, changed: Callable[[], None], rest: float = 0.0) -> None:
        self.upstream = upstream
        self.pending: dict[int, Call] = {}
        self.pending_bytes = 0
        self._changed = changed
        self._unsent: dict[int, Call] = {}
        self._rest = rest
        self._resting: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._starvation: Starvation | None = None
        self._frames = FrameReader()
        self._writable = False
        self._flushing = False
        self._wanted = True
        self._gone = asyncio.Event()
        self._life = asyncio.ensure_future(self._stay_connected())

    @property
    def connected(self) -> bool:
        return self._transport is not None

    def send(self, call: Call) -> None:
        """Takes a call; all calls of one turn of the loop leave in one write."""
        self.pending[call.stream] = call
        self.pending_bytes += call.size
        self._unsent[call.stream] = call
        if self._writable and not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def drop(self, call: Call) -> None:
        """Forgets a call: its deadline has passed. An answer that still comes finds nobody."""
        self._unsent.pop(call.stream, None)
        if self.pending.pop(call.stream, None) is not None:
            self._finished(call)

    def take_unsent(self) -> list[Call]:
        """The calls that this worker has not seen, given up for another link to the same version."""
        calls = list(self._unsent.values())
        for call in calls:
            self.drop(call)
        return calls

    def leave(self) -> None:
        """The version is wanted no more: what is in flight is finished, then the connection is closed."""
        self._wanted = False
        if not self.pending:
            self.close()

    def read_now(self) -> None:
        """Ends a rest: somebody waits after all."""
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    def close(self) -> None:
        self._life.cancel()
        self.read_now()
        if self._transport is not None:
            self._transport.close()

    def watch(self) -> None:
        """To be called ten times a second or so where `was_starved` is to know something."""
        if self.pending and self._starvation is not None:
            self._starvation.look(monotonic())

    def was_starved(self, since: float, timeout: float) -> bool:
        """Whether the worker waited for a processor that others had, from `since` on (CLOCK_MONOTONIC), for so long that a call that may
        take `timeout` seconds can be late for that reason alone.
        """
        if self._starvation is None:
            return False
        self._starvation.look(monotonic())
        return self._starvation.waited(since) > ENOUGH * timeout

    # -- the connection

    async def _stay_connected(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.create_unix_connection(lambda: self, self.upstream.socket)
                await self._gone.wait()
                self._gone.clear()
            except OSError:
                pass  # not there yet, or not any more
            await asyncio.sleep(_RECONNECT)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._starvation = _starvation(transport)
        self._frames = FrameReader()
        self._writable = True
        self._changed()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._transport = None
        self.read_now()
        self._writable = False
        self._gone.set()
        for call in [call for stream, call in self.pending.items() if stream not in self._unsent]:
            self.drop(call)
            call.lost()
        self._changed()

    def pause_writing(self) -> None:
        """The worker does not read: calls wait here, where their deadline can still take them back."""
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._flush()

    def data_received(self, data: bytes) -> None:
        pending = self.pending
        try:
            for frame in self._frames.feed(data):
                answer = decode_answer(frame)
                call = pending.pop(answer.stream, None)
                if call is not None:
                    call.answered(answer)
                    self._finished(call)
        except (FrameError, ValueError):  # a worker that writes no frames is as good as dead
            if self._transport is not None:
                self._transport.abort()
            return
        if self._rest and not self._frames.unfinished:
            self._begin_rest()

    def _begin_rest(self) -> None:
        if self._resting is None and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            self._resting = asyncio.get_running_loop().call_later(self._rest, self.read_now)

    def _flush(self) -> None:
        self._flushing = False
        unsent = self._unsent
        while unsent and self._writable and self._transport is not None:
            frames = []
            size = 0
            while unsent and size < _WRITE:
                call = unsent.pop(next(iter(unsent)))
                frames.append(call.frame())
                size += call.size
            self._transport.write(b"".join(frames))

    def _finished(self, call: Call) -> None:
        self.pending_bytes -= call.size
        if not self._wanted and not self.pending:
            self.close()


class Upstreams:
    """Every version that an order names, every call in flight in the order of its start, and one timer for them all."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.links: dict[str, Link] = {}
        self.in_flight: dict[int, tuple[Link, Call]] = {}
        self._changed = changed
        self._stream = 0
        self._timer: asyncio.TimerHandle | None = None

    def apply(self, upstreams: Iterable[Upstream], needed: Iterable[Upstream]) -> None:
        """Makes the links be those of an order. A needed version without a worker keeps or gets a link that waits."""
        wanted = {upstream.digest: upstream for upstream in upstreams}
        for upstream in needed:
            held = self.links.get(upstream.digest)
            wanted.setdefault(upstream.digest, held.upstream if held else upstream)
        leaving = {
            digest: link
            for digest, link in self.links.items()
            if digest not in wanted or wanted[digest].socket != link.upstream.socket
        }
        for digest, link in leaving.items():
            del self.links[digest]
            link.leave()
        for digest, upstream in wanted.items():
            if digest not in self.links:
                self.links[digest] = Link(upstream, self._changed)
                if digest in leaving:  # the same version on another socket
                    self._move(leaving[digest], self.links[digest])

    @property
    def connected(self) -> tuple[str, ...]:
        """Digests of the versions whose worker is there."""
        return tuple(digest for digest, link in self.links.items() if link.connected)

    def send(self, link: Link, call: Call) -> None:
        """Puts a call in flight; its deadline is not before that of any other call (all time-outs are equal)."""
        self._stream = stream = (self._stream + 1) & 0xFFFFFFFF
        call.stream = stream
        self.in_flight[stream] = (link, call)
        link.send(call)
        if self._timer is None:
            self._arm(call.deadline)

    def finished(self, call: Call) -> None:
        """The call has ended, however it did, and was recorded."""
        self.in_flight.pop(call.stream, None)

    def _move(self, old: Link, new: Link) -> None:
        for call in old.take_unsent():
            self.in_flight[call.stream] = (new, call)
            new.send(call)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for link in self.links.values():
            link.close()

    def _arm(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(deadline - monotonic(), 0.001), self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = monotonic()
        while self.in_flight:
            link, call = next(iter(self.in_flight.values()))
            if call.deadline > now:
                self._arm(call.deadline)
                return
            link.drop(call)
            call.expired()


def _starvation(transport: asyncio.BaseTransport) -> Starvation | None:
    """Of the process at the other end, where the system tells which that is."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    peer = transport.get_extra_info("socket").getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
    )
    return Starvation(_CREDENTIALS.unpack(peer)[0])
