"""What is written into the records of a rollout, entry by entry, in the order in which it came in.

An entry holds all that evidence is made of, so folding the same entries again gives the same evidence.
"""

from __future__ import annotations

import msgspec

from deployctl.wire.orders import Batch, LabelRow

LABELS = "labels"
"""Whom labels come from that no router posted (`deployctl labels add`, a watched folder): it carries no requests, so its
watermark holds nothing back.
"""


class Began(msgspec.Struct, tag="began", frozen=True):
    """A step began under this split number, at this rollout time (seconds)."""

    step: int
    split: int
    at: float


class Intake(msgspec.Struct, tag="intake", frozen=True):
    """A batch of one router process, taken in at this rollout time, when the router's clock was `offset` seconds ahead of it."""

    router: str
    at: float
    batch: Batch
    offset: float = 0.0


class Gone(msgspec.Struct, tag="gone", frozen=True):
    """A router process is gone: nothing of it is in flight any more."""

    router: str
    at: float


class Clock(msgspec.Struct, tag="clock", frozen=True):
    """The rollout time, once a second: downtime does not count, and a resumed rollout goes on from here."""

    at: float


Entry = Began | Intake | Gone | Clock

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Entry] = msgspec.msgpack.Decoder(Entry)


def encode(entry: Entry) -> bytes:
    """An entry as it stands in the file, without length and checksum."""
    return _encoder.encode(entry)


def decode(body: bytes) -> Entry:
    """The entry of these bytes."""
    return _decoder.decode(body)


def labels_alone(labels: list[LabelRow], number: int, now: float) -> Batch:
    """Labels as a batch without requests; `now` (CLOCK_MONOTONIC seconds) is when they came."""
    return Batch(number, now, [], *(b"",) * 8, prediction=[], labels=labels)
