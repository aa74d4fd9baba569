"""accept → assign → claim → forward → copy → record: what the router does with each request.

Choosing a version and claiming a place with it happen in one breath, so no request is ever caught between two orders;
and a request that has its version keeps it, whatever becomes of either.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Literal
from urllib.parse import unquote

import msgspec

from deployctl import __version__
from deployctl.core.assignment import Assignment, key_hash
from deployctl.core.label import flaw
from deployctl.core.plan import HUMAN, Split, Version
from deployctl.router import people
from deployctl.router.headers import (
    CODINGS,
    Refusal,
    accepted_coding,
    encoding_of,
    id_line,
    json_length_of,
    text_of,
)
from deployctl.router.http import ANSWERS, JSON, Connection, Limits, Pending, Request
from deployctl.router.inputs import NO_INPUT, hasher
from deployctl.router.mirror import Mirror, Original
from deployctl.router.outcomes import CLIENT_LEFT, Outcome, Outcomes
from deployctl.router.suspension import Pulse
from deployctl.router.upstreams import Link, Upstreams
from deployctl.wire.credentials import Tokens
from deployctl.wire.frames import NO_BINARY, Answer, Encoding, Kind, request_frame
from deployctl.wire.orders import HELD_UP, LabelPost, Order, Upstream

BASELINE, CANDIDATE, NEITHER = 0, 1, -1
_EXTENSIONS = ["binary_tensor_data"]
_RETRY = b"retry-after: 1\r\n"
_STRANGER = "a bearer token is needed here: Authorization: Bearer TOKEN"
_WHO = b"www-authenticate: Bearer\r\n"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the router is started with. `timeout` is in seconds, for each request from its last byte on.

    `routers`: how many share the callers. `inputs` says what is recorded of a request's body while versions are compared: nothing, a hash
    with the key in the file `input_key`, or beside that the body itself. `tls` is a file with certificate and key, `tokens` one of
    those that are let in; None: everybody, without TLS.
    """

    model: str
    timeout: float
    routing_key: str | None = None
    routers: int = 1
    inputs: Literal["none", "hash", "full"] = "hash"
    input_key: str | None = None
    tls: str | None = None
    tokens: str | None = None
    limits: Limits = field(default_factory=Limits)


Handle = Callable[[Request, Connection, str | None], Pending | None]
"""Answers a request, or takes it; the last argument is the version of the path."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where a path leads: what answers which method, and the version it names."""

    methods: dict[bytes, Handle]
    version: str | None = None
    open: bool = False
    """Whether nobody needs a token here."""


class _NotFound(Exception):  # noqa: N818 - a 404, not a fault
    """Nothing is at this path."""


class Server:
    """One router: the split in force, the workers behind it, and every request under way."""

    def __init__(self, settings: Settings, changed: Callable[[], None]) -> None:
        self.settings = settings
        self.upstreams = Upstreams(changed)
        self.outcomes = Outcomes(self._watermarks)
        self.pulse = Pulse()
        self.mirror = Mirror(self.outcomes, self.pulse)
        self.tokens: Tokens | None = None
        """Who is let in; None: everybody."""
        self._hash_input = None if settings.inputs == "none" else hasher(settings.input_key)
        self._split = Split(0, Version("", ""))
        self._baseline: Link | None = None  # None where people decide, and the router answers itself
        self._candidate: Link | None = None
        self._assignment = Assignment("", 0)
        self._records_inputs = False
        self._hidden: set[str] = set()  # labels of versions that serve nobody, whatever the path says
        self._timeout = settings.timeout
        self._routing_key = (settings.routing_key or "").lower().encode()
        self._routes: dict[bytes, Route] = {}  # targets as they are sent, once they were understood
        self._prefix = os.urandom(8).hex()
        self._made = 0
        self._serial = 0

    # -- orders

    def apply(self, order: Order) -> None:
        """Puts an order in force for every request that comes after it; those in flight keep what they have."""
        split = order.split
        candidate = split.candidate if split.weight > 0 else None
        serving = [who for who in (split.baseline, candidate) if who is not None and who != HUMAN]
        watched = [
            who for who in (split.candidate, *(copy.version for copy in split.copies)) if who is not None
        ]
        self.upstreams.apply(order.upstreams, [Upstream(who.version, who.digest, "") for who in serving])
        self.mirror.apply(split, order.upstreams, self._timeout)
        self._hidden = {who.version for who in watched if who not in serving}
        compares = candidate is not None or bool(split.copies)
        self._records_inputs = compares and (self.settings.inputs == "full" or self._hash_input is not None)
        self._split = split
        links = self.upstreams.links
        self._baseline = None if split.baseline == HUMAN else links[split.baseline.digest]
        self._candidate = None if candidate is None or candidate == HUMAN else links[candidate.digest]
        self._assignment = Assignment(split.salt, split.weight)

    def input_of(self, exchange: Exchange) -> bytes:
        """The hash of a request's body, which is kept, too, where the manifest wants it. Its caller has been answered."""
        if self.settings.inputs == "full":
            self.outcomes.add_input(exchange.serial, exchange.body)
        return NO_INPUT if self._hash_input is None else self._hash_input(exchange.body)

    def _watermarks(self) -> tuple[float, float]:
        """The start of the oldest request whose outcome is still to be recorded, or now; and that of its copies."""
        calls = (call for _, call in self.upstreams.in_flight.values())
        oldest = next(
            (call.start for call in calls if isinstance(call, Exchange) and call.awaited), monotonic()
        )
        return oldest, self.mirror.watermark(oldest)

    # -- routes

    def serve(self, request: Request, client: Connection) -> Pending | None:
        """Answers or takes one request; the HTTP side calls this for each, in order per connection."""
        route = self._routes.get(request.target)
        if route is None:
            try:
                route = self._find(request.target)
            except _NotFound as error:
                if self._may_ask(request):
                    client.fail(404, str(error))
                else:
                    client.fail(401, _STRANGER, _WHO)
                return None
            if len(self._routes) < 64:
                self._routes[request.target] = route
        if self.tokens is not None and not route.open and not self._may_ask(request):
            client.fail(401, _STRANGER, _WHO)
            return None
        handle = route.methods.get(request.method)
        if handle is None:
            allowed = b", ".join(route.methods)
            client.fail(405, f"use {allowed.decode()} here", b"allow: %b\r\n" % allowed)
            return None
        return handle(request, client, route.version)

    def _may_ask(self, request: Request) -> bool:
        return self.tokens is None or self.tokens.admit(request.headers.get(b"authorization"))

    def _find(self, target: bytes) -> Route:
        path = target.partition(b"?")[0]
        if path[:4].lower() == b"http":  # absolute form, as proxies are asked
            path = b"/" + path.partition(b"//")[2].partition(b"/")[2]
        match [unquote(part) for part in path.decode("latin-1").split("/")][1:]:
            case ["v2"] | ["v2", ""]:
                return _reads(self._about)
            case ["v2", "health", "live"]:
                return _reads(self._live, open=True)
            case ["v2", "health", "ready"]:
                return _reads(self._ready, open=True)
            case ["v2", "models", model, *rest]:
                if model != self.settings.model:
                    raise _NotFound(f"no model {model!r} here; this service has {self.settings.model!r}")
                return self._find_in_model(rest, path)
        raise _NotFound(f"nothing at {path.decode('latin-1')!r}; GET /v2 says what this is")

    def _find_in_model(self, rest: list[str], path: bytes) -> Route:
        match rest:
            case ["labels"]:
                return Route({b"POST": self._labels})
            case [*place, "infer"]:
                route = Route({b"POST": self._infer})
            case [*place, "ready"]:
                route = _reads(self._model_ready)
            case place:
                route = _reads(self._metadata)
        match place:
            case []:
                return route
            case ["versions", label]:
                return Route(route.methods, label)
        raise _NotFound(f"nothing at {path.decode('latin-1')!r}")

    # -- what is answered here

    def _about(self, _request: Request, client: Connection, _version: str | None) -> None:
        about = {"name": "deployctl", "version": __version__, "extensions": _EXTENSIONS}
        client.answer(200, msgspec.json.encode(about))

    def _live(self, _request: Request, client: Connection, _version: str | None) -> None:
        client.answer(200, msgspec.json.encode({"live": True}))

    def _ready(self, _request: Request, client: Connection, _version: str | None) -> None:
        ready = self._baseline is None or self._baseline.connected
        client.answer(200 if ready else 503, msgspec.json.encode({"live": True, "ready": ready}))

    def _model_ready(self, _request: Request, client: Connection, label: str | None) -> None:
        try:
            link, _ = self._named(self._split.baseline.version if label is None else label)
        except Refusal as refusal:
            client.fail(refusal.status, str(refusal))
            return
        ready = link is None or link.connected
        body = {"name": self.settings.model, "ready": ready}
        client.answer(200 if ready else 503, msgspec.json.encode(body))

    def _labels(self, request: Request, client: Connection, _version: str | None) -> None:
        if len(request.body) > self.settings.limits.label_bytes:
            client.fail(413, f"labels are taken up to {self.settings.limits.label_bytes} bytes at once")
            return
        try:
            rows = msgspec.json.decode(request.body, type=LabelPost).labels
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            client.fail(400, f'labels are {{"labels": [{{"id": …, "label": …}}]}}: {error}')
            return
        now = datetime.now(UTC)
        for at, row in enumerate(rows):
            if why := flaw(row, now):
                client.fail(400, f"labels[{at}]: {why}; none of them was taken")
                return
        if self.outcomes.add_labels(rows):
            client.answer(200, msgspec.json.encode({"accepted": len(rows)}))
        else:
            client.fail(503, "no room for labels while the controller is away", _RETRY)

    # -- what a worker answers, or the people

    def _metadata(self, request: Request, client: Connection, label: str | None) -> Pending | None:
        return self._ask(Kind.METADATA, request, client, label)

    def _infer(self, request: Request, client: Connection, label: str | None) -> Pending | None:
        return self._ask(Kind.INFER, request, client, label)

    def _ask(self, kind: Kind, request: Request, client: Connection, label: str | None) -> Pending | None:
        """Assigns a version and claims a place with it; nothing in here waits."""
        headers, body = request.headers, request.body
        request_id = text_of(headers.get(b"x-request-id")) or self._make_id()
        key = key_hash(text_of(headers.get(self._routing_key)) or request_id)
        try:
            link, arm = self._choose(kind, key, label)
            encoding = encoding_of(headers.get(b"content-encoding"))
            json_length = json_length_of(headers.get(b"inference-header-content-length"), len(body), encoding)
            if link is not None:
                self._check_room(link, len(body))
        except Refusal as refusal:
            retry = _RETRY if refusal.status == 503 else b""
            client.fail(refusal.status, str(refusal), id_line(request_id) + retry)
            return None
        start = monotonic()
        self._serial += 1
        exchange = Exchange(  # by position: by name it takes ten times as long
            self,
            client,
            kind,
            start,
            start + self._timeout,
            request_id,
            key,
            HUMAN.version if link is None else link.upstream.version,
            self._split.number,
            arm,
            label is not None,
            body,
            len(body),
            json_length,
            encoding,
            accepted_coding(headers.get(b"accept-encoding")),
            kind is Kind.INFER,
            self._serial,
            self._records_inputs and kind is Kind.INFER,
        )
        if link is not None:
            self.upstreams.send(link, exchange)
        if kind is Kind.INFER and label is None and self.mirror.wants(request_id):
            exchange.expect_copies(crowded=link is not None and self._is_crowded(link))
        if link is None:
            exchange.answered(self._answer_of_people(exchange))
            return None
        return exchange

    def _choose(self, kind: Kind, key: bytes, label: str | None) -> tuple[Link | None, int]:
        """The path decides where it names a version, else the routing key; what is asked of a model, its baseline."""
        if label is not None:
            return self._named(label)
        if kind is Kind.METADATA:
            return self._baseline or self._shadow(), BASELINE
        if self._candidate is not None and self._assignment.takes(key):
            return self._candidate, CANDIDATE
        return self._baseline, BASELINE

    def _shadow(self) -> Link | None:
        """The link to a version that gets copies and is there: it knows the model's signature."""
        for copy in self._split.copies:
            link = self.upstreams.links.get(copy.version.digest)
            if link is not None and link.connected:
                return link
        return None

    def _named(self, label: str) -> tuple[Link | None, int]:
        """The version with this label. A candidate that serves nobody is not there for anybody."""
        split, links = self._split, self.upstreams.links
        if label == split.baseline.version:
            return self._baseline, BASELINE
        if label not in self._hidden:
            if split.candidate is not None and label == split.candidate.version:
                return links[split.candidate.digest], CANDIDATE
            for link in links.values():
                if link.upstream.version == label:
                    return link, NEITHER
        raise Refusal(404, f"no version {label!r} of {self.settings.model!r} is serving")

    def _check_room(self, link: Link, size: int) -> None:
        limits = self.settings.limits
        if len(link.pending) >= limits.in_flight or link.pending_bytes + size > limits.in_flight_bytes:
            raise Refusal(503, "too many requests in flight")

    def _is_crowded(self, link: Link) -> bool:
        """Whether more than half of the room is taken."""
        limits = self.settings.limits
        return 2 * len(link.pending) > limits.in_flight or 2 * link.pending_bytes > limits.in_flight_bytes

    def _answer_of_people(self, exchange: Exchange) -> Answer:
        if exchange.kind is Kind.METADATA:
            return people.metadata(self.settings.model)
        return people.answer(
            self.settings.model,
            exchange.request_id,
            exchange.body,
            exchange.json_length,
            exchange.encoding,
            exchange.accept,
        )

    def _make_id(self) -> str:
        self._made += 1
        return f"{self._prefix}-{self._made:x}"


class Exchange(msgspec.Struct, eq=False):
    """One request that has its version: what goes to the worker, what comes back, what is recorded of it."""

    server: Server
    client: Connection
    kind: Kind
    start: float
    deadline: float
    request_id: str
    key: bytes
    """The hash of the routing key."""
    version: str
    split: int
    arm: int
    explicit: bool
    body: bytes
    size: int
    json_length: int
    encoding: Encoding
    accept: Encoding
    awaited: bool
    """Whether an outcome is still to be recorded; never of a question for metadata."""
    serial: int
    body_is_recorded: bool
    original: Original | None = None
    """Itself in the eyes of its copies, where it shall have any."""
    stream: int = 0

    def expect_copies(self, *, crowded: bool) -> None:
        """Has its body kept, so that it can be copied when the caller has been answered."""
        original = Original(
            self.serial, self.start, self.request_id, self.json_length, self.encoding, self.accept, self.size
        )
        if self.server.mirror.expect(original, answered_by=self.arm, crowded=crowded):
            self.original = original

    def frame(self) -> bytes:
        frame = request_frame(
            self.stream,
            self.kind,
            self.deadline,
            self.request_id,
            self.body,
            self.json_length,
            self.encoding,
            self.accept,
        )
        if self.original is None and not self.body_is_recorded:
            self.body = b""  # written once, here and nowhere else
        return frame

    def answered(self, answer: Answer) -> None:
        if answer.status not in ANSWERS:
            self._fail(502, f"the worker of this version answered with status {answer.status}")
            return
        self.request_id = answer.request_id or self.request_id
        content_type, headers = JSON, id_line(self.request_id)
        if answer.json_length != NO_BINARY:
            content_type = b"application/octet-stream"
            headers += b"inference-header-content-length: %d\r\n" % answer.json_length
        if answer.encoding:
            headers += b"content-encoding: %b\r\n" % CODINGS[answer.encoding]
        latency = self._latency()
        self.client.answer(answer.status, answer.body, headers, content_type)
        self._record(
            answer.status,
            latency,
            null=answer.null,
            prediction=answer.prediction,
            confidence=answer.confidence,
        )
        self.server.upstreams.finished(self)

    def lost(self) -> None:
        self._fail(502, "the worker of this version went away")

    def expired(self) -> None:
        self._fail(504, f"no answer within {self.server.settings.timeout:g} s")

    def client_left(self) -> None:
        self._record(CLIENT_LEFT, self._latency())

    def _fail(self, status: int, reason: str) -> None:
        latency = self._latency()
        self.client.fail(status, reason, id_line(self.request_id), self.version)
        self._record(status, latency)
        self.server.upstreams.finished(self)

    def _was_starved(self) -> bool:
        """Whether others had the processor that its worker waited for: its copy would come when they are done."""
        link, _ = self.server.upstreams.in_flight[self.stream]
        return link.was_starved(self.start, self.deadline - self.start)

    def _latency(self) -> float:
        """Milliseconds until now. An exchange stays in flight until it is recorded: the watermark waits for it."""
        return (self.server.pulse.now() - self.start) * 1000

    def _record(
        self,
        status: int,
        latency: float,
        *,
        null: bool = False,
        prediction: str | None = None,
        confidence: float = math.nan,
    ) -> None:
        if not self.awaited:
            return
        self.awaited = False
        server, original = self.server, self.original
        copies = 0
        if original is not None and status == 504 and self._was_starved():
            server.mirror.forgo(original, answered_by=self.arm, split=self.split)
            original = self.original = None
        if original is not None:
            copies = server.mirror.copy(original, self.body, answered_by=self.arm, split=self.split)
        outcome = Outcome(
            self.request_id,
            self.key,
            self.arm,
            self.split,
            self.start,
            latency,
            status,
            null,
            HELD_UP if self.start <= server.pulse.woke_at else int(self.explicit),
            prediction,
            self.serial,
            False,  # not a copy
            copies,
            confidence,
            server.input_of(self) if self.body_is_recorded else NO_INPUT,
        )
        server.outcomes.record(outcome)
        if original is not None:
            original.outcome = outcome
            self.original, self.body = None, b""


def _reads(handle: Handle, *, open: bool = False) -> Route:  # noqa: A002 - as the attribute is called
    return Route({b"GET": handle, b"HEAD": handle}, open=open)
