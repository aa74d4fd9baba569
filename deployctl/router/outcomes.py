"""What happened to each request, in numbered batches on their way to the controller.

A batch is kept until the controller says that it is written down, and sent again after a reconnect, so every outcome
counts exactly once. Its watermarks never pass the start of a request, or of one with a copy, that is still to be reported.
"""

from __future__ import annotations

import asyncio
import math
from array import array
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from msgspec.structs import replace

from deployctl.router.inputs import NO_INPUT
from deployctl.wire.orders import Batch, LabelRow, encode

CLIENT_LEFT = 499
_AGE = 0.010  # seconds that an outcome waits for others
_CROWD = 64  # outcomes in a batch from which on the next waits twice as long: each costs the controller a millisecond, however small
_TEXT = 1024 * 1024  # of ids, predictions, labels and inputs in a batch, so that no message is too large
MAX_KEPT = (
    256 * 1024
)  # outcomes and labels that wait for the controller; what comes after is dropped and counted
MAX_INPUT = 1024 * 1024
"""Bytes of one request's body that is kept."""
MAX_INPUTS = 64 * 1024 * 1024
"""Bytes of all bodies that wait for the controller."""


class Outcome(NamedTuple):
    """One request, or one copy of it, as it ended; the columns of `wire.orders.Batch`."""

    id: str
    key: bytes
    arm: int
    split: int
    start: float
    latency: float
    status: int
    null: bool
    explicit: int  # 0, 1 or HELD_UP
    prediction: str | None
    serial: int = 0
    mirrored: bool = False
    copies: int = 0
    confidence: float = math.nan
    input: bytes = NO_INPUT


class Sent(NamedTuple):
    """A batch that the controller has not confirmed."""

    number: int
    rows: int
    input_bytes: int
    message: bytes


class Outcomes:
    """The buffer between the requests and the controller."""

    def __init__(self, watermarks: Callable[[], tuple[float, float]]) -> None:
        self.dropped = 0
        self.mirror_dropped: Counter[int] = Counter()
        self.send: Callable[[bytes], None] | None = None
        self._watermarks = watermarks
        self._rows: list[Outcome] = []
        self._labels: list[LabelRow] = []
        self._inputs: dict[int, bytes] = {}
        self._inputs_dropped = 0
        self._text = 0
        self._unacknowledged: deque[Sent] = deque()
        self._room = MAX_KEPT  # for outcomes and labels, sent or not
        self._input_room = MAX_INPUTS
        self._number = 0
        self._crowded = False
        self._announced = (0.0, 0.0)
        self._latest = 0.0  # the latest start that the controller was told of
        self._timer: asyncio.TimerHandle | None = None

    @property
    def all_written_down(self) -> bool:
        """Whether the controller has confirmed everything that was recorded."""
        return not (self._rows or self._labels or self._unacknowledged)

    def record(self, outcome: Outcome) -> None:
        """Takes one outcome; from here on the watermark does not wait for its request any more."""
        if self._room < 1:
            self.dropped += 1
        else:
            self._room -= 1
            self._rows.append(outcome)
            self._text += len(outcome.id) + len(outcome.prediction or "")
        self._soon()

    def add_labels(self, rows: list[LabelRow]) -> bool:
        """Takes all of these labels, or none where there is no room."""
        if self._room < len(rows):
            return False
        self._room -= len(rows)
        self._labels += rows
        self._text += sum(len(row.id) + len(row.label) for row in rows)
        self._soon()
        return True

    def add_input(self, serial: int, body: bytes) -> None:
        """Takes the body of a request that is about to be recorded, where there is room for it."""
        if len(body) > min(MAX_INPUT, self._input_room):
            self._inputs_dropped += 1
            return
        self._input_room -= len(body)
        self._inputs[serial] = body
        self._text += len(body)

    def acknowledged(self, number: int) -> None:
        """The controller has written down every batch up to this one."""
        while self._unacknowledged and self._unacknowledged[0].number <= number:
            written = self._unacknowledged.popleft()
            self._room += written.rows
            self._input_room += written.input_bytes

    def connected(self, send: Callable[[bytes], None]) -> None:
        """The controller is there (again): what it has not confirmed goes to it first, in order."""
        self.send = send
        for batch in self._unacknowledged:
            send(batch.message)

    def disconnected(self) -> None:
        self.send = None

    def flush(self) -> None:
        """Makes a batch of what there is, or of the watermark alone where the controller waits for it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        watermarks = self._watermarks()
        if not (self._rows or self._labels or self._waited_for(watermarks)):
            return
        self._number += 1
        message = _encoded(self._batch(*watermarks))
        input_bytes = sum(map(len, self._inputs.values()))
        self._unacknowledged.append(
            Sent(self._number, len(self._rows) + len(self._labels), input_bytes, message)
        )
        self._announced = watermarks
        self._crowded = len(self._rows) > _CROWD
        self._rows, self._labels, self._inputs, self._text = [], [], {}, 0
        if self.send is not None:
            self.send(message)

    def _waited_for(self, watermarks: tuple[float, float]) -> bool:
        """Whether the controller holds outcomes that these let it admit, and is there to be told."""
        moved = zip(self._announced, watermarks, strict=True)
        return self.send is not None and any(told <= self._latest and told < now for told, now in moved)

    def _soon(self) -> None:
        if self._text > _TEXT:
            self.flush()
        elif self._timer is None:
            age = 2 * _AGE if self._crowded else _AGE
            self._timer = asyncio.get_running_loop().call_later(age, self.flush)

    def _batch(self, watermark: float, mirror_watermark: float) -> Batch:
        rows = self._rows
        columns = list(zip(*rows, strict=True)) or [()] * len(Outcome._fields)
        ids, keys, arms, splits, starts, latencies, statuses, nulls, explicits, predictions = columns[:10]
        serials, mirrored, copies, confidences, inputs = columns[10:]
        self._latest = max((self._latest, *starts))
        paired = any(copies) or any(mirrored) or bool(self._inputs)
        return Batch(
            number=self._number,
            watermark=watermark,
            id=list(ids),
            key=b"".join(keys),
            arm=array("b", arms).tobytes(),
            split=array("I", splits).tobytes(),
            start=array("d", starts).tobytes(),
            latency=array("f", latencies).tobytes(),
            status=array("H", statuses).tobytes(),
            null=array("b", nulls).tobytes(),
            explicit=array("b", explicits).tobytes(),
            prediction=list(predictions),
            labels=self._labels,
            dropped=self.dropped,
            serial=array("Q", serials).tobytes() if paired else b"",
            mirrored=array("b", mirrored).tobytes() if paired else b"",
            copies=array("H", copies).tobytes() if paired else b"",
            confidence=b"" if all(map(math.isnan, confidences)) else array("f", confidences).tobytes(),
            input=b"" if inputs.count(NO_INPUT) == len(inputs) else b"".join(inputs),
            inputs=self._inputs,
            inputs_dropped=self._inputs_dropped,
            mirror_watermark=mirror_watermark,
            mirror_dropped=dict(self.mirror_dropped),
        )


def _encoded(batch: Batch) -> bytes:
    try:
        return encode(batch)
    except UnicodeEncodeError:  # a lone surrogate in an id or a prediction must not cost its whole batch
        predictions = [text and _clean(text) for text in batch.prediction]
        return encode(replace(batch, id=[_clean(text) for text in batch.id], prediction=predictions))


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
