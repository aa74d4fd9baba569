"""A batch in columns: what crossed the wire as bytes, as rows that numpy reads; ids and predictions beside them.

Columns that an older router or record does not have read as "nothing known": no serial, no copy, no confidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from deployctl.core.outcome import OUTCOME, Columns
from deployctl.wire.orders import Batch

ROW = np.dtype(
    [
        *OUTCOME.descr,
        ("serial", "<u8"),
        ("mirrored", "i1"),
        ("copies", "<u2"),
        ("confidence", "<f4"),
        ("input", "<u8"),
    ]
)
"""An outcome as the router tells it: `serial` is the number of its request in the router process, `mirrored` 1 for a copy, `copies`
the arms that copies were sent to (a bit each, 0 in a copy's row), `confidence` in [0, 1] or NaN, `input` a hash of the body or 0."""

SEEN = np.dtype(
    [
        *ROW.descr,
        ("t", "<f8"),
        ("number", "<u8"),
        ("router", "<u4"),
        ("said", "<u8"),
        ("wrong", "<f8"),
    ]
)
"""A row as it arrived: `t` is when its request began, in rollout seconds, `number` its place among all that were taken in, `router`
the how many-th router process it is of, `said` the hash of its prediction (0: none, or an error), `wrong` NaN or what people say
of it, in [0, 1] (1: wrong)."""

_NOT_COPIED = {"serial": 0, "mirrored": 0, "copies": 0, "confidence": np.nan, "input": 0}
"""The columns that are empty where nothing is copied, and what stands there then."""


def text_hash(text: str) -> int:
    """Eight bytes that stand for a request id; never 0. Two ids of a million collide with a chance of 3 in 10^8 (birthday bound)."""
    return (
        int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") or 1
    )


word_hash = lru_cache(maxsize=65_536)(text_hash)
"""The same for predictions, labels and annotators, of which there are few."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch decoded: ROW (or SEEN) rows with their ids, predictions and whether they are never evidence (`explicit`)."""

    columns: Columns
    ids: list[str]
    predictions: list[str | None]
    explicit: NDArray[np.bool_]

    def take(self, which: NDArray[np.bool_]) -> Rows:
        """Only these rows."""
        if which.all():
            return self
        at = np.flatnonzero(which)
        ids = [self.ids[i] for i in at] if self.ids else []
        predictions = [self.predictions[i] for i in at] if self.predictions else []
        return Rows(self.columns[at], ids, predictions, self.explicit[at])

    def seen(self) -> Rows:
        """The same as SEEN rows: what each predicts is in `said`; when and where it arrived is for others to say."""
        columns = np.zeros(len(self.columns), SEEN)
        for name in ROW.names or ():
            columns[name] = self.columns[name]
        columns["wrong"] = np.nan
        if self.predictions:
            said = [0 if text is None else word_hash(text) for text in self.predictions]
            columns["said"] = np.where(columns["status"] < 400, np.array(said, np.uint64), 0)
        return Rows(columns, self.ids, self.predictions, self.explicit)


def rows_of(batch: Batch) -> Rows:
    """The columns of a batch as rows. Raises ValueError when their lengths differ."""
    count = len(batch.id)
    if len(batch.prediction) != count:
        raise ValueError(f"batch {batch.number} has {count} ids and {len(batch.prediction)} predictions")
    return _rows(batch, count)


def rows_written(batch: Batch) -> Rows:
    """The rows of a batch as it was written down: perhaps without ids and predictions."""
    return _rows(batch, len(batch.arm))


def without_texts(batch: Batch) -> Batch:
    """A batch as it is written down where no label is waited for: ids and predictions are most of its bytes."""
    return msgspec.structs.replace(batch, id=[], prediction=[], labels=[])


def _rows(batch: Batch, count: int) -> Rows:
    columns = np.zeros(count, ROW)
    for name, raw in (
        ("key", batch.key),
        ("arm", batch.arm),
        ("split", batch.split),
        ("start", batch.start),
        ("latency", batch.latency),
        ("status", batch.status),
        ("null", batch.null),
        ("serial", batch.serial),
        ("mirrored", batch.mirrored),
        ("copies", batch.copies),
        ("confidence", batch.confidence),
        ("input", batch.input),
    ):
        missing = not raw and name in _NOT_COPIED
        columns[name] = _NOT_COPIED[name] if missing else _column(raw, ROW[name], count)
    return Rows(columns, batch.id, batch.prediction, _column(batch.explicit, np.dtype("i1"), count) != 0)


def _column(raw: bytes, kind: np.dtype[Any], count: int) -> NDArray[Any]:
    if len(raw) != count * kind.itemsize:
        raise ValueError(f"a column of {len(raw)} bytes; {count} of {kind} are expected")
    return np.frombuffer(raw, kind)
