"""What happened to each request, in numbered batches on their way to the controller.

A batch is kept until the controller says that it is written down, and sent again after a reconnect, so every outcome
counts exactly once. Its watermark never passes the start of a request that is still to be reported.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from msgspec.structs import replace

from deployctl.wire.orders import Batch, LabelRow, encode

_AGE = 0.010  # seconds that an outcome waits for others
_TEXT = 1024 * 1024  # characters of ids, predictions and labels in one batch, so that no message is too large
MAX_KEPT = (
    256 * 1024
)  # outcomes and labels that wait for the controller; what comes after is dropped and counted


class Outcome(NamedTuple):
    """One request as it ended; the columns of `wire.orders.Batch`."""

    id: str
    key: bytes
    arm: int
    split: int
    start: float
    latency: float
    status: int
    null: bool
    explicit: bool
    prediction: str | None


class Outcomes:
    """The buffer between the requests and the controller."""

    def __init__(self, watermark: Callable[[], float]) -> None:
        self.dropped = 0
        self.send: Callable[[bytes], None] | None = None
        self._watermark = watermark
        self._rows: list[Outcome] = []
        self._labels: list[LabelRow] = []
        self._text = 0
        self._unacknowledged: deque[tuple[int, int, bytes]] = deque()  # number, how many, the message
        self._room = MAX_KEPT  # for outcomes and labels, sent or not
        self._number = 0
        self._announced = 0.0
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

    def acknowledged(self, number: int) -> None:
        """The controller has written down every batch up to this one."""
        while self._unacknowledged and self._unacknowledged[0][0] <= number:
            self._room += self._unacknowledged.popleft()[1]

    def connected(self, send: Callable[[bytes], None]) -> None:
        """The controller is there (again): what it has not confirmed goes to it first, in order."""
        self.send = send
        for _, _, message in self._unacknowledged:
            send(message)

    def disconnected(self) -> None:
        self.send = None

    def flush(self) -> None:
        """Makes a batch of what there is, or of the watermark alone where the controller waits for it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        watermark = self._watermark()
        waited_for = self._latest >= self._announced and watermark > self._announced and self.send is not None
        if not (self._rows or self._labels or waited_for):
            return
        self._number += 1
        message = _encoded(self._batch(watermark))
        self._unacknowledged.append((self._number, len(self._rows) + len(self._labels), message))
        self._announced = watermark
        self._rows, self._labels, self._text = [], [], 0
        if self.send is not None:
            self.send(message)

    def _soon(self) -> None:
        if self._text > _TEXT:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_AGE, self.flush)

    def _batch(self, watermark: float) -> Batch:
        rows = self._rows
        columns = list(zip(*rows, strict=True)) or [()] * len(Outcome._fields)
        ids, keys, arms, splits, starts, latencies, statuses, nulls, explicits, predictions = columns
        self._latest = max((self._latest, *starts))
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
        )


def _encoded(batch: Batch) -> bytes:
    try:
        return encode(batch)
    except UnicodeEncodeError:  # a lone surrogate in an id or a prediction must not cost its whole batch
        predictions = [text and _clean(text) for text in batch.prediction]
        return encode(replace(batch, id=[_clean(text) for text in batch.id], prediction=predictions))


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
