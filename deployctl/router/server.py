"""accept → assign → claim → forward → record: what the router does with each request.

Choosing a version and claiming a place with it happen in one breath, so no request is ever caught between two orders;
and a request that has its version keeps it, whatever becomes of either.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from time import monotonic
from urllib.parse import quote, unquote

import msgspec

from deployctl.core.assignment import goes_to_candidate
from deployctl.core.plan import Split, Version
from deployctl.router.http import JSON, Connection, Limits, Pending, Request
from deployctl.router.outcomes import Outcome, Outcomes
from deployctl.router.upstreams import Link, Upstreams
from deployctl.wire.frames import NO_BINARY, Answer, Encoding, Kind, encode_request
from deployctl.wire.frames import Request as Frame
from deployctl.wire.orders import LabelPost, Order, Upstream

CLIENT_LEFT = 499
BASELINE, CANDIDATE, NEITHER = 0, 1, -1
_ENCODINGS = {
    b"": Encoding.IDENTITY,
    b"identity": Encoding.IDENTITY,
    b"gzip": Encoding.GZIP,
    b"x-gzip": Encoding.GZIP,
    b"deflate": Encoding.DEFLATE,
}
_CODINGS = {Encoding.GZIP: b"gzip", Encoding.DEFLATE: b"deflate"}
_ANSWERS = {status.value for status in HTTPStatus if status >= 200} - {204, 205, 304}  # those have no body
_EXTENSIONS = ["binary_tensor_data"]
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))
_RETRY = b"retry-after: 1\r\n"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the router is started with. `timeout` is in seconds, for each request from its last byte on."""

    model: str
    timeout: float
    routing_key: str | None = None
    limits: Limits = field(default_factory=Limits)


Handle = Callable[[Request, Connection, str | None], Pending | None]
"""Answers a request, or takes it; the last argument is the version of the path."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where a path leads: what answers which method, and the version it names."""

    methods: dict[bytes, Handle]
    version: str | None = None


class _NotFound(Exception):  # noqa: N818 - a 404, not a fault
    """Nothing is at this path."""


class Server:
    """One router: the split in force, the workers behind it, and every request under way."""

    def __init__(self, settings: Settings, changed: Callable[[], None]) -> None:
        self.settings = settings
        self.upstreams = Upstreams(changed)
        self.outcomes = Outcomes(self._watermark)
        self._split = Split(0, Version("", ""))
        self._timeout = settings.timeout
        self._routing_key = (settings.routing_key or "").lower().encode()
        self._routes: dict[bytes, Route] = {}  # targets as they are sent, once they were understood
        self._prefix = os.urandom(8).hex()
        self._made = 0

    # -- orders

    def apply(self, order: Order) -> None:
        """Puts an order in force for every request that comes after it; those in flight keep what they have."""
        split = order.split
        candidate = (split.candidate,) if split.candidate and split.weight > 0 else ()
        self.upstreams.apply(
            order.upstreams,
            [Upstream(who.version, who.digest, "") for who in (split.baseline, *candidate)],
        )
        self._split = split

    def _watermark(self) -> float:
        """The start of the oldest request whose outcome is still to be recorded, or now."""
        calls = (call for _, call in self.upstreams.in_flight.values())
        return next(
            (call.start for call in calls if isinstance(call, Exchange) and call.awaited), monotonic()
        )

    # -- routes

    def serve(self, request: Request, client: Connection) -> Pending | None:
        """Answers or takes one request; the HTTP side calls this for each, in order per connection."""
        route = self._routes.get(request.target)
        if route is None:
            try:
                route = self._find(request.target)
            except _NotFound as error:
                client.fail(404, str(error))
                return None
            if len(self._routes) < 64:
                self._routes[request.target] = route
        handle = route.methods.get(request.method)
        if handle is None:
            allowed = b", ".join(route.methods)
            client.fail(405, f"use {allowed.decode()} here", b"allow: %b\r\n" % allowed)
            return None
        return handle(request, client, route.version)

    def _find(self, target: bytes) -> Route:
        path = target.partition(b"?")[0]
        if path[:4].lower() == b"http":  # absolute form, as proxies are asked
            path = b"/" + path.partition(b"//")[2].partition(b"/")[2]
        match [unquote(part) for part in path.decode("latin-1").split("/")][1:]:
            case ["v2"] | ["v2", ""]:
                return _reads(self._about)
            case ["v2", "health", "live"]:
                return _reads(self._live)
            case ["v2", "health", "ready"]:
                return _reads(self._ready)
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
        about = {"name": "deployctl", "version": _own_version(), "extensions": _EXTENSIONS}
        client.answer(200, msgspec.json.encode(about))

    def _live(self, _request: Request, client: Connection, _version: str | None) -> None:
        client.answer(200, msgspec.json.encode({"live": True}))

    def _ready(self, _request: Request, client: Connection, _version: str | None) -> None:
        ready = self.upstreams.links[self._split.baseline.digest].connected
        client.answer(200 if ready else 503, msgspec.json.encode({"live": True, "ready": ready}))

    def _model_ready(self, _request: Request, client: Connection, label: str | None) -> None:
        try:
            link, _ = self._named(self._split.baseline.version if label is None else label)
        except Refusal as refusal:
            client.fail(refusal.status, str(refusal))
            return
        body = {"name": self.settings.model, "ready": link.connected}
        client.answer(200 if link.connected else 503, msgspec.json.encode(body))

    def _labels(self, request: Request, client: Connection, _version: str | None) -> None:
        if len(request.body) > self.settings.limits.label_bytes:
            client.fail(413, f"labels are taken up to {self.settings.limits.label_bytes} bytes at once")
            return
        try:
            rows = msgspec.json.decode(request.body, type=LabelPost).labels
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            client.fail(400, f'labels are {{"labels": [{{"id": …, "label": …}}]}}: {error}')
            return
        if self.outcomes.add_labels(rows):
            client.answer(200, msgspec.json.encode({"accepted": len(rows)}))
        else:
            client.fail(503, "no room for labels while the controller is away", _RETRY)

    # -- what a worker answers

    def _metadata(self, request: Request, client: Connection, label: str | None) -> Pending | None:
        return self._ask(Kind.METADATA, request, client, label)

    def _infer(self, request: Request, client: Connection, label: str | None) -> Pending | None:
        return self._ask(Kind.INFER, request, client, label)

    def _ask(self, kind: Kind, request: Request, client: Connection, label: str | None) -> Pending | None:
        """Assigns a version and claims a place with it; nothing in here waits."""
        headers, body = request.headers, request.body
        request_id = _text(headers.get(b"x-request-id")) or self._make_id()
        key = _text(headers.get(self._routing_key)) or request_id
        try:
            link, arm = self._choose(kind, key, label)
            encoding = _encoding(headers.get(b"content-encoding"))
            json_length = _json_length(headers.get(b"inference-header-content-length"), len(body), encoding)
            self._check_room(link, len(body))
        except Refusal as refusal:
            retry = _RETRY if refusal.status == 503 else b""
            client.fail(refusal.status, str(refusal), _id_line(request_id) + retry)
            return None
        start = monotonic()
        exchange = Exchange(
            server=self,
            client=client,
            kind=kind,
            start=start,
            deadline=start + self._timeout,
            request_id=request_id,
            key=key,
            version=link.upstream.version,
            split=self._split.number,
            arm=arm,
            explicit=label is not None,
            body=body,
            size=len(body),
            json_length=json_length,
            encoding=encoding,
            accept=_accepted(headers.get(b"accept-encoding")),
            awaited=kind is Kind.INFER,
        )
        self.upstreams.send(link, exchange)
        return exchange

    def _choose(self, kind: Kind, key: str, label: str | None) -> tuple[Link, int]:
        """The path decides where it names a version, else the routing key; what is asked of a model, its baseline."""
        split, links = self._split, self.upstreams.links
        if label is not None:
            return self._named(label)
        candidate = split.candidate
        if (
            candidate is not None
            and split.weight > 0
            and kind is Kind.INFER
            and goes_to_candidate(split.salt, key, split.weight)
        ):
            return links[candidate.digest], CANDIDATE
        return links[split.baseline.digest], BASELINE

    def _named(self, label: str) -> tuple[Link, int]:
        """The version with this label. A candidate that serves nobody is not there for anybody."""
        split, links = self._split, self.upstreams.links
        if label == split.baseline.version:
            return links[split.baseline.digest], BASELINE
        if split.candidate is not None and label == split.candidate.version:
            if split.weight > 0:
                return links[split.candidate.digest], CANDIDATE
        else:
            for link in links.values():
                if link.upstream.version == label:
                    return link, NEITHER
        raise Refusal(404, f"no version {label!r} of {self.settings.model!r} is serving")

    def _check_room(self, link: Link, size: int) -> None:
        limits = self.settings.limits
        if len(link.pending) >= limits.in_flight or link.pending_bytes + size > limits.in_flight_bytes:
            raise Refusal(503, "too many requests in flight")

    def _make_id(self) -> str:
        self._made += 1
        return f"{self._prefix}-{self._made:x}"


class Exchange(msgspec.Struct, kw_only=True, eq=False):
    """One request that has its version: what goes to the worker, what comes back, what is recorded of it."""

    server: Server
    client: Connection
    kind: Kind
    start: float
    deadline: float
    request_id: str
    key: str
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
    stream: int = 0

    def frame(self) -> bytes:
        frame = encode_request(
            Frame(
                stream=self.stream,
                kind=self.kind,
                deadline=self.deadline,
                request_id=self.request_id,
                body=self.body,
                json_length=self.json_length,
                encoding=self.encoding,
                accept=self.accept,
            )
        )
        self.body = b""  # written once, here and nowhere else
        return frame

    def answered(self, answer: Answer) -> None:
        if answer.status not in _ANSWERS:
            self._fail(502, f"the worker of this version answered with status {answer.status}")
            return
        self.request_id = answer.request_id or self.request_id
        content_type, headers = JSON, _id_line(self.request_id)
        if answer.json_length != NO_BINARY:
            content_type = b"application/octet-stream"
            headers += b"inference-header-content-length: %d\r\n" % answer.json_length
        if answer.encoding:
            headers += b"content-encoding: %b\r\n" % _CODINGS[answer.encoding]
        latency = self._latency()
        self.client.answer(answer.status, answer.body, headers, content_type)
        self._record(answer.status, latency, null=answer.null, prediction=answer.prediction)
        self.server.upstreams.finished(self)

    def lost(self) -> None:
        self._fail(502, "the worker of this version went away")

    def expired(self) -> None:
        self._fail(504, f"no answer within {self.server.settings.timeout:g} s")

    def client_left(self) -> None:
        self._record(CLIENT_LEFT, self._latency())

    def _fail(self, status: int, reason: str) -> None:
        latency = self._latency()
        self.client.fail(status, reason, _id_line(self.request_id), self.version)
        self._record(status, latency)
        self.server.upstreams.finished(self)

    def _latency(self) -> float:
        """Milliseconds until now. An exchange stays in flight until it is recorded: the watermark waits for it."""
        return (monotonic() - self.start) * 1000

    def _record(
        self, status: int, latency: float, *, null: bool = False, prediction: str | None = None
    ) -> None:
        if self.awaited:
            self.awaited = False
            key = blake2b(self.key.encode(), digest_size=8).digest()
            self.server.outcomes.record(
                Outcome(
                    self.request_id,
                    key,
                    self.arm,
                    self.split,
                    self.start,
                    latency,
                    status,
                    null,
                    self.explicit,
                    prediction,
                )
            )


class Refusal(Exception):  # noqa: N818 - a 4xx or 503 of the router's own, not a fault
    """A request that is not taken; it belongs to no version and leaves no outcome."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def _reads(handle: Handle) -> Route:
    return Route({b"GET": handle, b"HEAD": handle})


def _text(value: bytes | None) -> str:
    if not value:
        return ""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _id_line(request_id: str) -> bytes:
    """The id as a header: a body may have brought any character."""
    if not (request_id.isascii() and request_id.isprintable()):
        request_id = quote(request_id, safe=_PRINTABLE, errors="replace")
    return b"x-request-id: %b\r\n" % request_id.encode()


def _encoding(name: bytes | None) -> Encoding:
    encoding = _ENCODINGS.get(name.lower()) if name else Encoding.IDENTITY
    if encoding is None:
        raise Refusal(415, "Content-Encoding may be gzip or deflate")
    return encoding


def _json_length(value: bytes | None, size: int, encoding: Encoding) -> int:
    """Inference-Header-Content-Length: of the bytes before compression, so only the worker can check it then."""
    if value is None:
        return NO_BINARY
    if not (value.isdigit() and len(value) < 10):
        raise Refusal(400, "Inference-Header-Content-Length is a number of bytes")
    length = int(value)
    if encoding is Encoding.IDENTITY and length > size:
        raise Refusal(400, f"Inference-Header-Content-Length {length} is more than the body has ({size})")
    return length


def _accepted(value: bytes | None) -> Encoding:
    """The first of gzip and deflate that the client takes; a weight of 0 means that it does not."""
    if not value:
        return Encoding.IDENTITY
    for item in value.lower().split(b","):
        name, _, weight = item.replace(b" ", b"").partition(b";q=")
        if name in _ENCODINGS and (weight.strip(b"0.") or not weight):
            return _ENCODINGS[name]
    return Encoding.IDENTITY


def _own_version() -> str:
    try:
        return version("deployctl")
    except PackageNotFoundError:
        return "0"
