"""Copies of requests, for versions whose answers nobody is given: bounded, with a deadline of their own, and in nobody's way.

The mirror may lose, the caller may not: what does not fit is dropped, the newest first, and counted, and nothing is sent
twice. Each version has a connection of its own for its copies, so none stands before a caller's frame. Every copy that was taken is recorded
exactly once, after its request.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from time import monotonic
from typing import NamedTuple

import msgspec

from deployctl.core.assignment import goes_to_candidate
from deployctl.core.plan import Copy, Split
from deployctl.router.http import ANSWERS
from deployctl.router.outcomes import CLIENT_LEFT, Outcome, Outcomes
from deployctl.router.suspension import Pulse
from deployctl.router.upstreams import Link
from deployctl.wire.frames import Answer, Encoding, Kind, request_frame
from deployctl.wire.orders import MAX_ARM, Upstream

MAX_WAITING = 256
"""Copies that wait for one version, behind those that are with it."""
MAX_BYTES = 16 * 1024 * 1024
"""Of the bodies of all copies that one version has or waits for, and of those whose requests are not answered yet; a single
larger one may go when there is no other."""
_REST = 0.020
"""Seconds between two looks at the answers of one version while no copy waits for its turn. A worker says itself when it had them."""
_EXPIRY = 0.010
"""Seconds after which copies without an answer are looked at together."""
_LOOK = 0.1
"""Seconds between two looks at which workers get the processor."""


class Original(msgspec.Struct, eq=False):
    """A request that is copied, until the last of its copies is recorded."""

    serial: int
    start: float
    request_id: str
    json_length: int
    encoding: Encoding
    accept: Encoding
    size: int
    outcome: Outcome | None = None
    """Its own row, which is there before a copy is sent."""
    unrecorded: int = 0


class Ended(NamedTuple):
    """What became of one copy; the rest of its row is that of its request."""

    arm: int
    latency: float
    status: int
    null: bool = False
    prediction: str | None = None
    confidence: float = math.nan


class Duplicate(msgspec.Struct, eq=False):
    """One copy on its way to one version. The body is the request's own, not a copy of it."""

    original: Original
    arm: int
    lane: Lane
    body: bytes
    size: int
    timeout: float
    since: float
    """When it was sent; until then, when it was taken."""
    deadline: float
    stream: int = 0

    def frame(self) -> bytes:
        original = self.original
        frame = request_frame(
            self.stream,
            Kind.INFER,
            self.deadline,
            original.request_id,
            self.body,
            original.json_length,
            original.encoding,
            original.accept,  # the same work as for the caller, so that latencies can be compared
        )
        self.body = b""
        return frame

    def answered(self, answer: Answer) -> None:
        if answer.status not in ANSWERS:
            self.lane.ended(self, 502)
        else:
            self.lane.ended(self, answer.status, answer)

    def lost(self) -> None:
        self.lane.ended(self, 502)

    def expired(self) -> None:
        self.lane.ended(self, 504)


class Mirror:
    """All copies of this router: who gets one, and the rows of those that were taken."""

    def __init__(self, outcomes: Outcomes, pulse: Pulse) -> None:
        self._outcomes = outcomes
        self._pulse = pulse
        self._lanes: dict[str, Lane] = {}
        self._open: dict[int, Original] = {}  # by serial, and so in the order of their start
        self._expected_bytes = 0  # of bodies whose requests are not answered yet
        self._number = -1
        self._copies: tuple[Copy, ...] = ()
        self._percentage = 0.0
        self._salt = ""
        self._timeout = 0.0

    def apply(self, split: Split, upstreams: Iterable[Upstream], timeout: float) -> None:
        """Copies requests from now on as this split says; copies that were taken before end as they would have.

        A version that is not loaded any more takes no copies: those that wait for it are dropped.
        """
        loaded = {upstream.digest: upstream for upstream in upstreams}
        self._copies = tuple(copy for copy in split.copies if 0 <= copy.arm <= MAX_ARM)
        self._percentage = split.mirror
        self._number = split.number
        self._salt = f"mirror/{split.salt}"  # in front: a salt is used up to its 64th byte
        self._timeout = timeout if split.copy_timeout is None else split.copy_timeout
        for digest in self._lanes.keys() - loaded.keys():
            self._lanes.pop(digest).leave()
        for digest, lane in self._lanes.items():
            if loaded[digest].socket != lane.link.upstream.socket:
                lane.move(loaded[digest])
        for copy in self._copies:
            digest = copy.version.digest
            if digest in loaded:
                if digest not in self._lanes:
                    self._lanes[digest] = Lane(loaded[digest], self._pulse, self._ended, self._dropped)
                self._lanes[digest].limit = split.copy_limit

    def wants(self, request_id: str) -> bool:
        """Whether this request is copied: drawn by its id with a salt of its own, so independent of who answers it."""
        return bool(self._copies) and goes_to_candidate(self._salt, request_id, self._percentage)

    def expect(self, original: Original, *, answered_by: int, crowded: bool) -> bool:
        """Whether this request's body shall be kept until it is answered, to be copied then. In a crowd, copies are the first to go."""
        held, size = self._expected_bytes, original.size
        if crowded or (held and held + size > MAX_BYTES):
            for copy in self._copies:
                if copy.arm != answered_by:
                    self._dropped(copy.arm)
            return False
        self._expected_bytes += size
        self._open[original.serial] = original
        return True

    def copy(self, original: Original, body: bytes, *, answered_by: int, split: int) -> int:
        """Takes a copy for every version but the one that answered; the arms that get one, a bit for each.

        The caller has its answer already: neither the sending of copies nor what a quick version says to one is ever before it.
        A request that began under another split is not copied, for the arms of this one may be other versions.
        """
        self._expected_bytes -= original.size
        arms, now = 0, monotonic()
        for copy in self._copies if split == self._number else ():
            if copy.arm == answered_by:
                continue
            lane = self._lanes.get(copy.version.digest)
            if lane is None or not lane.has_room(len(body)):
                self._dropped(copy.arm)
                continue
            lane.take(
                Duplicate(original, copy.arm, lane, body, len(body), self._timeout, now, now + self._timeout)
            )
            arms |= 1 << copy.arm
            original.unrecorded += 1
        if not arms:
            del self._open[original.serial]
        return arms

    def forgo(self, original: Original, *, answered_by: int, split: int) -> None:
        """A copy would be compared with nothing: its request ran out of time because its worker was starved by others."""
        self._expected_bytes -= original.size
        del self._open[original.serial]
        for copy in self._copies if split == self._number else ():
            if copy.arm != answered_by:
                self._dropped(copy.arm)

    async def watch(self, links: Callable[[], Iterable[Link]]) -> None:
        """Sees which of these workers, and of those that get copies, are starved. Never returns."""
        while True:
            await asyncio.sleep(_LOOK)
            if self._copies:
                lanes = (link for lane in self._lanes.values() for link in lane.links)
                for link in (*links(), *lanes):
                    link.watch()

    def watermark(self, watermark: float) -> float:
        """The start of the oldest request with a copy still to be recorded; never after that of the requests."""
        oldest = next(iter(self._open.values()), None)
        return watermark if oldest is None else min(oldest.start, watermark)

    def close(self) -> None:
        """The router ends: what is under way is given up, which is no version's fault."""
        for lane in self._lanes.values():
            lane.close()

    def _dropped(self, arm: int) -> None:
        self._outcomes.mirror_dropped[arm] += 1

    def _ended(self, original: Original, ended: Ended) -> None:
        assert original.outcome is not None
        original.unrecorded -= 1
        if not original.unrecorded:
            del self._open[original.serial]
        of = original.outcome
        self._outcomes.record(
            Outcome(
                of.id,
                of.key,
                ended.arm,
                of.split,
                of.start,
                ended.latency,
                ended.status,
                ended.null,
                of.explicit,
                ended.prediction,
                of.serial,
                True,  # a copy
                0,
                ended.confidence,
                of.input,
            )
        )


class Lane:
    """The copies of one version: those that are with its worker, and those that wait behind them.

    A copy may wait for its turn as long as it may then take, and is 504 after either; it counts as dropped if meanwhile its worker was
    starved by others.
    """

    def __init__(
        self,
        upstream: Upstream,
        pulse: Pulse,
        ended: Callable[[Original, Ended], None],
        dropped: Callable[[int], None],
    ) -> None:
        self.link = Link(upstream, _unnoticed, _REST)
        self.links: tuple[Link, ...] = (self.link,)
        """That to the worker of now, and that to the one before, which may have copies still."""
        self._pulse = pulse
        self.limit = 0
        self._ended = ended
        self._dropped = dropped
        self._waiting: deque[Duplicate] = deque()
        self._in_flight: dict[int, tuple[Link, Duplicate]] = {}
        self._bytes = 0
        self._stream = 0
        self._sending = False
        self._timer: asyncio.TimerHandle | None = None

    def has_room(self, size: int) -> bool:
        held = len(self._waiting) + len(self._in_flight)
        return not held or (held < self.limit + MAX_WAITING and self._bytes + size <= MAX_BYTES)

    def take(self, copy: Duplicate) -> None:
        """Lets a copy wait for its turn, at the earliest in the next one of the loop."""
        self._waiting.append(copy)
        self._bytes += copy.size
        self._watch(copy.deadline)
        self._send_soon()

    def ended(self, copy: Duplicate, status: int, answer: Answer | None = None) -> None:
        """A copy that was sent has its answer or will have none."""
        del self._in_flight[copy.stream]
        self._end(copy, status, answer)
        self._send_soon()

    def move(self, upstream: Upstream) -> None:
        """The version has another worker: what the old one has not seen goes to that, the rest it finishes."""
        old, self.link = self.link, Link(upstream, _unnoticed, _REST)
        old.read_now()
        self.links = self.link, old
        for call in old.take_unsent():
            copy = self._in_flight[call.stream][1]
            self._in_flight[copy.stream] = self.link, copy
            self.link.send(copy)
        old.leave()

    def leave(self) -> None:
        """The version goes: what waits is dropped, what is with its worker is finished or lost with it."""
        self._drop_waiting()
        self.link.leave()

    def close(self) -> None:
        self._drop_waiting()
        for link, copy in tuple(self._in_flight.values()):
            link.drop(copy)
            self.ended(copy, CLIENT_LEFT)
        if self._timer is not None:
            self._timer.cancel()
        self.link.close()

    def _drop_waiting(self) -> None:
        """Its request may have told of the copy already: a row that is no evidence says that it is over."""
        while self._waiting:
            copy = self._waiting.popleft()
            self._dropped(copy.arm)
            self._end(copy, CLIENT_LEFT)

    def _end(self, copy: Duplicate, status: int, answer: Answer | None = None) -> None:
        self._bytes -= copy.size
        copy.body = b""
        now = self._pulse.now()
        if answer is not None:
            if answer.ended > copy.deadline:
                status, answer = 504, None
            elif not math.isnan(answer.ended):
                now = answer.ended
        latency = (now - copy.since) * 1000
        if copy.since <= self._pulse.woke_at:
            status, answer = CLIENT_LEFT, None  # it was held up while this process did not run: no evidence
        elif status == 504 and self._was_starved(copy):
            status = CLIENT_LEFT
            self._dropped(copy.arm)
        read = () if answer is None else (answer.null, answer.prediction, answer.confidence)
        self._ended(copy.original, Ended(copy.arm, latency, status, *read))

    def _was_starved(self, copy: Duplicate) -> bool:
        """Whether the worker that had this copy, or those that it waited behind, was starved by others."""
        began = copy.deadline - 2 * copy.timeout
        return any(link.was_starved(began, copy.timeout) for link in self.links)

    def _send_soon(self) -> None:
        if self._waiting and not self._sending:
            self._sending = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._sending = False
        now = monotonic()
        while self._waiting and len(self._in_flight) < self.limit:
            copy = self._waiting.popleft()
            copy.since, copy.deadline = now, now + copy.timeout
            self._stream = copy.stream = (self._stream + 1) & 0xFFFFFFFF
            self._in_flight[copy.stream] = self.link, copy
            self.link.send(copy)
            self._watch(copy.deadline)
        if self._waiting:
            for link in self.links:
                link.read_now()

    def _watch(self, deadline: float) -> None:
        """One timer for all. Copies end in the order in which they were taken, so it is due with the first of them."""
        if self._timer is None:
            seconds = max(deadline - monotonic(), 0.0) + _REST + _EXPIRY
            self._timer = asyncio.get_running_loop().call_later(seconds, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = monotonic()
        while self._waiting and self._waiting[0].deadline <= now:
            self._end(self._waiting.popleft(), 504)
        while self._in_flight:
            link, copy = next(iter(self._in_flight.values()))
            if copy.deadline + _REST > now:  # its answer may be there, and not be read yet
                break
            link.drop(copy)
            copy.expired()
        first = [*islice(self._waiting, 1), *(copy for _, copy in islice(self._in_flight.values(), 1))]
        if first:
            self._watch(min(copy.deadline for copy in first))


def _unnoticed() -> None:
    """Whether a worker is there is told of the callers' link to it."""
