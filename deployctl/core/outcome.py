"""Outcomes become blocks: one split, both arms, counted per component of each metric.

Outcomes are admitted in the order in which their requests *started*, and only once every earlier request is final, so
answers that finish early (failures usually do) cannot bias the comparison. A block closes on counts of units alone,
never on what the units were, and never straddles a split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

OUTCOME = np.dtype(
    [
        ("key", "<u8"),
        ("arm", "i1"),
        ("split", "<u4"),
        ("start", "<f8"),
        ("latency", "<f4"),
        ("status", "<u2"),
        ("null", "i1"),
    ]
)
"""One scored request: key (hash of the routing key), arm (0 baseline, 1 candidate), split (number), start (seconds of the
router's monotonic clock), latency (milliseconds), status (HTTP; 499: the client left), null (1: no answer in it)."""

CLIENT_LEFT = 499

EARLY_BLOCKS, EARLY_UNITS, LATER_UNITS = 6, 1, 4
SETTLED_UNITS, SETTLED_SECONDS = 64, 0.1
"""A block holds at least 1 candidate unit for the first six and then 4; once 64 were seen it lasts at least 100 ms, so that a
fault that shows at once is judged at once (research note: stats 5.6)."""

Columns = NDArray[np.void]
Flags = NDArray[np.bool_]


class Source(Enum):
    """What a metric is read from: the answer itself, or the human label that came later."""

    OUTCOME = "outcome"
    LABEL = "label"


@dataclass(frozen=True, slots=True)
class Block:
    """Counts of both arms under one split: `n` and `bad` are (2, components), arm 0 is the baseline."""

    source: Source
    split: int
    n: NDArray[np.float64]
    bad: NDArray[np.float64]
    at: float


def scored(outcomes: Columns) -> Columns:
    """Without the answers that say nothing of a version: 4xx is the caller's doing (499 counts, for latency)."""
    status = outcomes["status"]
    return outcomes[(status < 400) | (status >= CLIENT_LEFT)]


class Admission:
    """Holds outcomes back until every request that started before them is final, then gives them in order of start."""

    def __init__(self) -> None:
        self._waiting = np.empty(0, OUTCOME)
        self._watermarks: dict[str, float] = {}

    def add(self, router: str, outcomes: Columns, watermark: float) -> Columns:
        """What may be judged now; `watermark` is the start of this router's oldest request in flight."""
        self._watermarks[router] = max(watermark, self._watermarks.get(router, watermark))
        waiting = np.concatenate([self._waiting, outcomes]) if len(outcomes) else self._waiting
        return self._release(waiting)

    def forget(self, router: str) -> Columns:
        """A router process is gone: nothing of it is in flight any more."""
        self._watermarks.pop(router, None)
        return self._release(self._waiting)

    def _release(self, waiting: Columns) -> Columns:
        until = min(self._watermarks.values(), default=np.inf)
        ready = waiting["start"] < until
        self._waiting = waiting[~ready]
        admitted = waiting[ready]
        return admitted[np.argsort(admitted["start"], kind="stable")]


@dataclass(slots=True)
class _Open:
    """The units of one split that no block holds yet."""

    arm: NDArray[np.int8]
    key: NDArray[np.uint64]
    time: NDArray[np.float64]
    known: Flags
    bad: Flags
    closed: int = 0
    candidate_units: int = 0


@dataclass(slots=True)
class Blocks:
    """Cuts a stream of units of one source into blocks. `by_key`: the unit is the routing key, bad if anything was."""

    source: Source
    components: int
    by_key: bool
    _open: dict[int, _Open] = field(default_factory=dict)

    def add(
        self, columns: Columns, time: NDArray[np.float64], known: Flags, bad: Flags, at: float
    ) -> Iterator[Block]:
        """Every block that these units complete. `columns` gives arm, key and split; `time` (seconds) orders them;
        `known` and `bad` are (units, components); `at` is the rollout time of their coming in.
        """
        for split in np.unique(columns["split"]):
            of_split = columns["split"] == split
            part = columns[of_split]
            rows = self._append(int(split), part, time[of_split], known[of_split], bad[of_split])
            while (end := self._cut(rows)) is not None:
                yield self._close(rows, end, int(split), at)

    def _append(
        self, split: int, part: Columns, time: NDArray[np.float64], known: Flags, bad: Flags
    ) -> _Open:
        rows = self._open.get(split)
        if rows is None:
            rows = _Open(part["arm"], part["key"], time, known, bad)
            self._open[split] = rows
            return rows
        rows.arm = np.concatenate([rows.arm, part["arm"]])
        rows.key = np.concatenate([rows.key, part["key"]])
        rows.time = np.concatenate([rows.time, time])
        rows.known = np.concatenate([rows.known, known])
        rows.bad = np.concatenate([rows.bad, bad])
        return rows

    def _cut(self, rows: _Open) -> int | None:
        """How many of the open units the next block takes, or None while it must grow."""
        if not len(rows.arm):
            return None
        first = self._first_of_key(rows)
        candidate = np.cumsum(first & (rows.arm == 1))
        baseline = np.cumsum(first & (rows.arm == 0))
        wanted = EARLY_UNITS if rows.closed < EARLY_BLOCKS else LATER_UNITS
        full = (candidate >= wanted) & (baseline >= 1)
        if rows.candidate_units >= SETTLED_UNITS:
            full &= rows.time - rows.time[0] >= SETTLED_SECONDS
        at = int(np.argmax(full))
        return at + 1 if full[at] else None

    def _first_of_key(self, rows: _Open) -> Flags:
        if not self.by_key:
            return np.ones(len(rows.arm), dtype=bool)
        first = np.zeros(len(rows.arm), dtype=bool)
        first[np.unique(rows.key, return_index=True)[1]] = True
        return first

    def _close(self, rows: _Open, end: int, split: int, at: float) -> Block:
        arm, key = rows.arm[:end], rows.key[:end]
        known, bad = rows.known[:end], rows.bad[:end] & rows.known[:end]
        if self.by_key:
            _, first, unit = np.unique(key, return_index=True, return_inverse=True)
            arm = arm[first]
            known, bad = _any_of(unit, len(first), known), _any_of(unit, len(first), bad)
        n, wrong = np.zeros((2, self.components)), np.zeros((2, self.components))
        for side in (0, 1):
            n[side] = known[arm == side].sum(axis=0)
            wrong[side] = bad[arm == side].sum(axis=0)
        rows.closed += 1
        rows.candidate_units += int((arm == 1).sum())
        for name in ("arm", "key", "time", "known", "bad"):
            setattr(rows, name, getattr(rows, name)[end:])
        return Block(self.source, split, n, wrong, at)


def _any_of(unit: NDArray[np.intp], units: int, flags: Flags) -> Flags:
    merged = np.zeros((units, flags.shape[1]), dtype=bool)
    np.logical_or.at(merged, unit, flags)
    return merged
