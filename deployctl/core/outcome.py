"""Outcomes become blocks: one split, both arms, counted per component of each metric.

Outcomes are admitted in the order in which their requests *started*, and only once every earlier request is final, so
answers that finish early (failures usually do) cannot bias the comparison. A block closes on counts of units alone,
never on what the units were, and never straddles a split.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from enum import Enum
from typing import Any

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

FEW_CALLERS = 4
"""Where the unit is a routing key, this many requests of the candidate's callers stand for one more caller."""

Columns = NDArray[np.void]
Counts = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Source(Enum):
    """What a metric is read from: the answer itself, the human label that came later, or two answers to one request."""

    OUTCOME = "outcome"
    LABEL = "label"
    PAIR = "pair"


@dataclass(frozen=True, slots=True)
class Block:
    """Counts of both arms under one split: `n` and `bad` are (2, components), arm 0 is the baseline.

    `safe_n` and `safe_bad` are what counts for safety where that is not the same: where the unit is a routing key (`Callers`).
    """

    source: Source
    split: int
    n: Counts
    bad: Counts
    at: float
    safe_n: Counts | None = None
    safe_bad: Counts | None = None

    @property
    def for_safety(self) -> tuple[Counts, Counts]:
        """`n` and `bad` as evidence of safety has them."""
        if self.safe_n is None or self.safe_bad is None:
            return self.n, self.bad
        return self.safe_n, self.safe_bad


def scored(outcomes: Columns) -> Columns:
    """Without the answers that say nothing of a version: 4xx is the caller's doing (499 counts, for latency)."""
    status = outcomes["status"]
    return outcomes[(status < 400) | (status >= CLIENT_LEFT)]


class Admission:
    """Holds outcomes back until every request that started before them is final, then gives them in order of start."""

    def __init__(self, kind: np.dtype[np.void] = OUTCOME) -> None:
        self._waiting = np.empty(0, kind)
        self._watermarks: dict[str, float] = {}

    def add(self, router: str, outcomes: Columns, watermark: float) -> Columns:
        """What may be judged now; `watermark` is the start of this router's oldest request in flight."""
        self._watermarks[router] = max(watermark, self._watermarks.get(router, watermark))
        waiting = self._waiting
        if len(outcomes):
            waiting = np.empty(
                len(self._waiting) + len(outcomes), self._waiting.dtype
            )  # concatenate compares all fields first
            waiting[: len(self._waiting)], waiting[len(self._waiting) :] = self._waiting, outcomes
        return self._release(waiting)

    def forget(self, router: str) -> Columns:
        """A router process is gone: nothing of it is in flight any more."""
        self._watermarks.pop(router, None)
        return self._release(self._waiting)

    @property
    def until(self) -> float:
        """Every outcome whose request started before this has been given."""
        return min(self._watermarks.values(), default=np.inf)

    def _release(self, waiting: Columns) -> Columns:
        start = waiting["start"]
        ready = start < self.until
        self._waiting = waiting[~ready]
        admitted = np.flatnonzero(ready)
        return waiting[admitted[np.argsort(start[admitted], kind="stable")]]


Closed = tuple[int, tuple[NDArray[Any], ...]]
"""A block that is full: the place of its last unit among those that were just added, then its `n` and `bad`, or the arm, key,
known and bad of its callers, which are counted when it is their turn."""


class Blocks:
    """Cuts a stream of units of one source into blocks. `by_key`: the unit is the routing key, bad if anything was.

    Where a block ends depends on the units and their order alone, and blocks come in the order of their last units: the same
    arrivals give the same blocks in whatever pieces they are added.
    """

    def __init__(self, source: Source, components: int, by_key: bool) -> None:
        self.source = source
        self._callers = Callers() if by_key else None
        self._components = components
        self._open: dict[int, _OpenKeys | _OpenRequests] = {}

    def add(
        self,
        columns: Columns,
        time: NDArray[np.float64],
        known: Flags,
        bad: Flags,
        at: float | NDArray[np.float64],
    ) -> Iterator[Block]:
        """Every block that these units complete. `columns` gives arm, key and split; `time` (seconds) orders them;
        `known` and `bad` are (units, components); `at` is the rollout time of their coming in, one or one for each unit.
        """
        split = columns["split"]
        instants = np.broadcast_to(at, split.shape)
        closed: list[tuple[int, int, Closed]] = []
        for number in sorted(set(split.tolist())):
            places = np.flatnonzero(split == number)
            units = (columns["arm"][places], columns["key"][places], time[places])
            rows = self._open.get(number) or self._open.setdefault(number, self._new())
            closed += [
                (int(places[full[0]]), number, full) for full in rows.add(*units, known[places], bad[places])
            ]
        for last, number, (_, full) in sorted(closed, key=lambda one: one[0]):
            counts = full if self._callers is None else self._callers.count(number, *full)
            n, wrong, *safe = counts
            yield Block(self.source, number, n, wrong, float(instants[last]), *safe)

    def copy(self) -> Blocks:
        """The same open units once more, for whoever may have to take back what is added next."""
        other = copy(self)
        other._open = {number: copy(rows) for number, rows in self._open.items()}  # noqa: SLF001 - of the same class
        if self._callers is not None:
            other._callers = self._callers.copy()  # noqa: SLF001 - as above
        return other

    def _new(self) -> _OpenKeys | _OpenRequests:
        return _OpenRequests(self._components) if self._callers is None else _OpenKeys(self._components)


class Callers:
    """What is known of each caller where the unit is a routing key, so that one who always fails is one bad unit and not many.

    A caller's failures depend on each other, whichever version answers; only who was sent where is random. So harm counts callers
    who have not failed yet, whoever answered them, and each one's first failure: those that a larger weight moves over are as good
    a sample of them as those that stay. Safety counts a caller once in a step, and once more when it fails in it.
    """

    def __init__(self) -> None:
        self._failed: dict[int, int] = {}
        self._of_split: dict[int, tuple[dict[int, int], dict[int, int]]] = {}

    def copy(self) -> Callers:
        """The same memory once more."""
        other = Callers()
        other._failed = dict(self._failed)
        other._of_split = {split: (dict(one), dict(two)) for split, (one, two) in self._of_split.items()}
        return other

    def count(
        self, split: int, arm: NDArray[np.int8], key: NDArray[np.uint64], known: Flags, bad: Flags
    ) -> tuple[Counts, Counts, Counts, Counts]:
        """`n` and `bad` for harm and then for safety, (2, components) each, of a block's distinct callers; remembers them."""
        power = 1 << np.arange(known.shape[1])
        failed, (failed_here, seen_here) = self._failed, self._of_split.setdefault(split, ({}, {}))
        masks = np.zeros((4, len(key)), dtype=np.int64)
        rows = zip(key.tolist(), (known @ power).tolist(), (bad @ power).tolist(), strict=True)
        for at, (caller, is_known, is_bad) in enumerate(rows):
            had_failed, had_failed_here = failed.get(caller, 0), failed_here.get(caller, 0)
            seen = seen_here.get(caller, 0)
            masks[0, at], masks[1, at] = is_known & ~had_failed, is_bad & ~had_failed
            masks[3, at] = is_bad & ~had_failed_here
            masks[2, at] = (is_known & ~had_failed_here & ~seen) | masks[3, at]
            failed[caller] = had_failed | is_bad
            failed_here[caller] = had_failed_here | is_bad
            seen_here[caller] = seen | is_known
        counted = (masks[..., None] & power) > 0
        n, wrong, safe_n, safe_bad = np.stack(
            [counted[:, arm == side].sum(axis=1) for side in (0, 1)], axis=1
        ).astype(float)
        return n, wrong, safe_n, safe_bad


class _Open:
    """The units of one split that no block holds yet. Arrays are replaced and never changed, so a shallow copy is a copy."""

    def __init__(self, components: int) -> None:
        self.closed = 0
        self.candidate_units = 0
        self.began: float | None = None
        self._nothing = np.zeros((2, components))

    @property
    def wanted(self) -> int:
        """How many candidate units the next block asks for."""
        return EARLY_UNITS if self.closed < EARLY_BLOCKS else LATER_UNITS

    @property
    def until(self) -> float:
        """The earliest time at which the next block may end."""
        if self.began is None or self.candidate_units < SETTLED_UNITS:
            return -np.inf
        return self.began + SETTLED_SECONDS

    def close(self, candidate_units: int) -> None:
        self.closed += 1
        self.candidate_units += candidate_units
        self.began = None


class _OpenRequests(_Open):
    """Every request is a unit: what is open is two sums, and adding costs as much as what is added."""

    def __init__(self, components: int) -> None:
        super().__init__(components)
        self._units = (0, 0)
        self._n, self._bad = self._nothing, self._nothing

    def add(
        self,
        arm: NDArray[np.int8],
        _key: NDArray[np.uint64],
        time: NDArray[np.float64],
        known: Flags,
        bad: Flags,
    ) -> list[Closed]:
        counts = [self._units[side] + np.cumsum(arm == side) for side in (0, 1)]
        ends = self._ends(counts[0], counts[1], np.maximum.accumulate(time))
        sides = np.stack([arm == 0, arm == 1], axis=1)[:, :, None]
        n = _sums(sides & known[:, None], ends)
        wrong = _sums(sides & (bad & known)[:, None], ends)
        n[0] += self._n
        wrong[0] += self._bad
        self._n, self._bad = n[-1], wrong[-1]
        return [(end - 1, (n[i], wrong[i])) for i, end in enumerate(ends)]

    def _ends(
        self, baseline: NDArray[np.int_], candidate: NDArray[np.int_], time: NDArray[np.float64]
    ) -> list[int]:
        """Where blocks end; the counts go on from what was open."""
        ends: list[int] = []
        start, before, count = 0, (0, 0), len(time)
        while start < count:
            if self.began is None:
                self.began = float(time[start])
            last = max(
                int(candidate.searchsorted(before[1] + self.wanted)),
                int(baseline.searchsorted(before[0] + 1)),
                start,
            )
            if (until := self.until) > -np.inf:
                last = max(last, int(time.searchsorted(until)))
            if last >= count:
                break
            self.close(int(candidate[last]) - before[1])
            before = (int(baseline[last]), int(candidate[last]))
            start = last + 1
            ends.append(start)
        if count:
            self._units = (int(baseline[-1]) - before[0], int(candidate[-1]) - before[1])
        return ends


def _sums(flags: NDArray[np.bool_], ends: list[int]) -> NDArray[np.float64]:
    """Sums over the units up to each end, and over the rest, (ends + 1, 2, components)."""
    sums = np.zeros((len(ends) + 1, *flags.shape[1:]))
    starts = [0, *ends]
    if starts[-1] == len(flags):  # nothing is left over, and reduceat wants every part to have a unit
        starts.pop()
    if starts:
        sums[: len(starts)] = np.add.reduceat(flags, starts, axis=0, dtype=np.int64)
    return sums


class _OpenKeys(_Open):
    """Every routing key is one unit of a block, however often it calls: the requests themselves are kept until it ends."""

    def __init__(self, components: int) -> None:
        super().__init__(components)
        self._rows: tuple[NDArray[Any], ...] = ()

    def add(
        self,
        arm: NDArray[np.int8],
        key: NDArray[np.uint64],
        time: NDArray[np.float64],
        known: Flags,
        bad: Flags,
    ) -> list[Closed]:
        rows: tuple[NDArray[Any], ...] = (arm, key, np.maximum.accumulate(time), known, bad & known)
        if self._rows:
            rows = tuple(np.concatenate(pair) for pair in zip(self._rows, rows, strict=True))
        earlier, start = _earlier(rows[1]), 0
        before = len(rows[0]) - len(arm)
        closed: list[Closed] = []
        while (end := self._end(rows[0], rows[2], earlier, start)) is not None:
            callers = _callers_in(*(column[start:end] for column in rows))
            self.close(int((callers[0] == 1).sum()))
            closed.append((end - 1 - before, callers))
            start = end
        self._rows = tuple(column[start:] for column in rows)
        return closed

    def _end(
        self, arm: NDArray[np.int8], time: NDArray[np.float64], earlier: NDArray[np.intp], start: int
    ) -> int | None:
        """Where the block that begins here ends; looked for in ever larger windows, as most blocks are small."""
        window, count = 256, len(arm)
        if start < count and self.began is None:
            self.began = float(time[start])
        while start < count:
            here = slice(start, min(start + window, count))
            first = earlier[here] < start
            candidate = np.cumsum(first & (arm[here] == 1))
            baseline = np.cumsum(first & (arm[here] == 0))
            # A few callers who call often fill a block, too: counted by requests, never by what came of them.
            requests = np.cumsum(arm[here] == 1)
            enough = (candidate >= self.wanted) | (requests >= FEW_CALLERS * self.wanted)
            full = enough & (baseline >= 1) & (time[here] >= self.until)
            at = int(np.argmax(full))
            if full[at]:
                return start + at + 1
            if here.stop == count:
                return None
            window *= 4
        return None


def _callers_in(
    arm: NDArray[np.int8], key: NDArray[np.uint64], _time: NDArray[np.float64], known: Flags, bad: Flags
) -> tuple[NDArray[Any], ...]:
    """The distinct callers of a block, each with what is known of it and whether anything was bad."""
    _, first, unit = np.unique(key, return_index=True, return_inverse=True)
    return arm[first], key[first], _any_of(unit, len(first), known), _any_of(unit, len(first), bad)


def _earlier(key: NDArray[np.uint64]) -> NDArray[np.intp]:
    """For each unit the place of the one before it with the same key, -1 where there is none."""
    order = np.argsort(key, kind="stable")
    earlier = np.full(len(key), -1)
    same = key[order[1:]] == key[order[:-1]]
    earlier[order[1:][same]] = order[:-1][same]
    return earlier


def _any_of(unit: NDArray[np.intp], units: int, flags: Flags) -> Flags:
    merged = np.zeros((units, flags.shape[1]), dtype=bool)
    np.logical_or.at(merged, unit, flags)
    return merged
