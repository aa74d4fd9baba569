"""Controller ↔ router: orders go down, read-backs and outcome batches come up.

The controller listens, the router connects, says Hello, and is given the whole desired split at once. Each message is
a u32 little-endian length and a MessagePack document tagged with its type. Orders carry the fencing number of the
controller that sent them: a router refuses an older one, so a controller that wakes up late changes nothing.
Batches are numbered from 1 by each router process and kept until they are acknowledged, so none counts twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Annotated

import msgspec

from deployctl.core.label import Label
from deployctl.core.plan import Split

MAX_MESSAGE = 64 * 1024 * 1024
MAX_ARM = 15
"""The highest number of an arm that can get copies: a request has one bit for each."""
HELD_UP = 2
"""In the column `explicit` of a batch: the router did not run for a while, and whatever was under way then was late by nobody's fault."""
_LENGTH = Struct("<I")


class Upstream(msgspec.Struct, frozen=True):
    """A version that the router may send to: its digest, its label, the Unix socket of its worker."""

    version: str
    digest: str
    socket: str


class Order(msgspec.Struct, tag="order", frozen=True):
    """The whole desired traffic. `upstreams` are all versions that are loaded, in the split or not."""

    fence: int
    split: Split
    upstreams: tuple[Upstream, ...]


class Ack(msgspec.Struct, tag="ack", frozen=True):
    """Every batch up to this number is written down."""

    batch: int


class Hello(msgspec.Struct, tag="hello", frozen=True):
    """A router process introduces itself; `router` is unique for each process that ever ran."""

    router: str
    pid: int


class ReadBack(msgspec.Struct, tag="read_back", frozen=True):
    """What the router does now: the split in force and which upstreams are connected (digests)."""

    fence: int
    split: Split | None
    connected: tuple[str, ...]
    refused: str | None = None


LabelRow = Label
"""One human label as it was posted."""


class LabelPost(msgspec.Struct, frozen=True):
    """The body of POST /v2/models/{model}/labels."""

    labels: Annotated[list[LabelRow], msgspec.Meta(max_length=100_000)]


class Batch(msgspec.Struct, tag="batch", frozen=True):
    """Raw outcomes in columns of equal length, at most 20 ms old, and the labels posted meanwhile.

    `watermark` is the start of the oldest request still in flight (CLOCK_MONOTONIC seconds; the time of sending when
    there is none): every request that started before it is in this batch or an earlier one. Numeric columns are the
    bytes of little-endian arrays: key u8 (8 bytes, hash of the routing key), arm i1 (0 baseline, 1 candidate, -1 a
    loaded version outside the split, always explicit; 2… further versions that get copies), split u4,
    start f8 (CLOCK_MONOTONIC seconds), latency f4 (milliseconds), status u2 (499: the client left), null i1,
    explicit i1 (never evidence: 1 a versioned path, or HELD_UP). `prediction` is None where none could be read.
    `dropped` counts outcomes that this router had to throw away since it started.

    Where requests are copied: serial u8 (number of the request in this router process; a copy has that of its request),
    mirrored i1 (1: a copy, whose answer was used for nothing; its start is that of its request, its latency its own), copies u2 (of
    a request itself: the arms that copies were taken for, a bit for each), confidence f4 (NaN where unknown), input u8 (keyed hash
    of the body, of a long one of its length and first MiB; 0 where none is asked for). A column is empty where a batch has
    nothing in it; serial, mirrored and copies come together. `inputs` are bodies, by serial, where the manifest wants them;
    `inputs_dropped` counts those that were too large or too many, since the router started.

    Every copy that was taken has a row, in the batch of its request's row or a later one. Its status is that of its worker, 504 when
    it was not sent or not answered in time, 502 when its worker went away, and 499, which is no evidence, when it was given up
    because its version is no longer loaded or the router ends. `mirror_watermark` is the start of the oldest request with a copy
    still to be reported, never later than `watermark`, which it is without one. `mirror_dropped` counts copies by arm that were
    never sent, since the router started.
    """

    number: int
    watermark: float
    id: list[str]
    key: bytes
    arm: bytes
    split: bytes
    start: bytes
    latency: bytes
    status: bytes
    null: bytes
    explicit: bytes
    prediction: list[str | None]
    labels: list[LabelRow]
    dropped: int = 0
    serial: bytes = b""
    mirrored: bytes = b""
    copies: bytes = b""
    confidence: bytes = b""
    input: bytes = b""
    inputs: dict[int, bytes] = {}
    inputs_dropped: int = 0
    mirror_watermark: float | None = None
    mirror_dropped: dict[int, int] = {}


Down = Order | Ack
Up = Hello | ReadBack | Batch

_encoder = msgspec.msgpack.Encoder()
_down: msgspec.msgpack.Decoder[Down] = msgspec.msgpack.Decoder(Down)
_up: msgspec.msgpack.Decoder[Up] = msgspec.msgpack.Decoder(Up)


def encode(message: Down | Up) -> bytes:
    """A message with its length in front."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def decode_down(body: bytes) -> Down:
    """A message for the router; raises msgspec.ValidationError for anything else."""
    return _down.decode(body)


def decode_up(body: bytes) -> Up:
    """A message for the controller; raises msgspec.ValidationError for anything else."""
    return _up.decode(body)


class MessageReader:
    """Bytes in, whole message bodies out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Every message that `data` completes, in order; ValueError for a length that cannot be."""
        buffer = self._buffer
        buffer += data
        start, end = 0, len(buffer)
        while end - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if length > MAX_MESSAGE:
                raise ValueError(f"a message of {length} bytes; the limit is {MAX_MESSAGE}")
            stop = start + _LENGTH.size + length
            if stop > end:
                break
            yield bytes(buffer[start + _LENGTH.size : stop])
            start = stop
        del buffer[:start]
