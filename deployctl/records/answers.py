"""Answers that a label may come for, a quarter of a million requests together, found by the hash of their request id.

An answer costs about 100 bytes and no object of its own. Nothing is ever taken out of one `Answers`: it goes as a whole, when the
newer ones suffice, so nobody waits while room is made.
"""

from __future__ import annotations

from array import array
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from deployctl.core.outcome import Columns
from deployctl.records.rows import SEEN

CAPACITY = 1 << 18
"""Requests of one `Answers`."""

_CACHE_LINE = np.arange(8, dtype=np.uint64)

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]


class State(IntEnum):
    """What is known of a request. A label counts for one that is PLAIN or PAIRED."""

    UNANSWERED = 0
    OPEN = 1
    PLAIN = 2
    PAIRED = 3
    AMBIGUOUS = 4


class Fate(IntEnum):
    """What became of the votes on a request. DECIDED: what they say is settled, and the copies are not there yet."""

    NONE = 0
    WAITING = 1
    DISPUTED = 2
    DECIDED = 3
    COUNTED = 4


class IdTable:
    """Hash of an id → place, by open addressing with linear probing; at most half of it is ever taken."""

    def __init__(self, capacity: int) -> None:
        slots = 2 * capacity  # a power of two, so that the low bits of a hash are a slot
        self._mask = np.uint64(slots - 1)
        self._keys = np.zeros(slots, np.uint64)
        self._places = np.zeros(slots, np.int32)

    def find(self, ids: Hashes) -> Places:
        """The place of each id, -1 for one that is not there."""
        places = np.full(len(ids), -1)
        slots, searched = (ids & self._mask)[:, None] + _CACHE_LINE, np.arange(len(ids))
        while len(searched):
            # All slots of a cache line at once: the next ones cost nothing, and each round of numpy calls costs more than they do.
            slots &= self._mask
            keys = self._keys[slots]
            found = keys == ids[searched, None]
            end = (found | (keys == 0)).argmax(axis=1)
            row = np.arange(len(searched))
            here = found[row, end]
            places[searched[here]] = self._places[slots[here, end[here]]]
            on = ~here & (keys[row, end] != 0)
            if not on.any():
                break
            slots, searched = slots[on] + np.uint64(len(_CACHE_LINE)), searched[on]
        return places

    def add(self, ids: Hashes, places: Places) -> None:
        """Ids that are all new and all different."""
        slots, left = ids & self._mask, np.arange(len(ids))
        while len(left):
            free = self._keys[slots] == 0
            self._keys[slots[free]] = ids[left[free]]  # of several for one slot the last gets it
            settled = self._keys[slots] == ids[left]
            self._places[slots[settled]] = places[left[settled]]
            slots, left = (slots[~settled] + np.uint64(1)) & self._mask, left[~settled]


class Answers:
    """Requests by place: what state each is in, its rows, and the votes of people on it."""

    def __init__(self) -> None:
        self.count = 0
        self.rows = np.empty(1024, SEEN)
        self.texts: dict[int, str] = {}
        """What the labels say, by hash."""
        self._filled = 0
        self._table = IdTable(CAPACITY)
        self._states = np.zeros(CAPACITY, np.uint8)
        self._firsts = np.zeros(CAPACITY, np.int32)
        self._row_counts = np.zeros(CAPACITY, np.uint8)
        # Views give Python's own integers, five times as fast as numpy's scalars.
        self.state = self._states.data
        self.first = self._firsts.data
        self.row_count = self._row_counts.data
        self._fates = np.zeros(CAPACITY, np.uint8)
        self.fate = self._fates.data
        self.live_votes = np.zeros(CAPACITY, np.uint32).data
        self._last_vote = np.zeros(CAPACITY, np.int32).data
        self._said, self._annotator, self._before = array("Q"), array("Q"), array("i")

    def find(self, ids: Hashes) -> Places:
        """The place of each request, -1 for one that is not here."""
        return self._table.find(ids)

    def add(self, ids: Hashes, states: NDArray[np.uint8], rows: Columns) -> Places:
        """New requests with different ids; those that are PLAIN have a row each in `rows`. Gives their places."""
        places = np.arange(self.count, self.count + len(ids))
        self._table.add(ids, places)
        self._states[places] = states
        plain = places[states == State.PLAIN]
        self._firsts[plain] = np.arange(self._filled, self._filled + len(plain))
        self._row_counts[plain] = 1
        self._append(rows)
        self.count += len(ids)
        return places

    def pair(self, places: Places, counts: Places, rows: Columns) -> None:
        """The rows of open requests that are compared, `counts` of each, the baseline's first; none: it cannot be compared."""
        self._firsts[places] = self._filled + np.cumsum(counts) - counts
        self._row_counts[places] = counts
        waited = self._states[places] == State.OPEN
        self._states[places[waited]] = np.where(counts[waited] > 0, State.PAIRED, State.UNANSWERED)
        self._append(rows)

    def untouched(self, place: int) -> bool:
        """Whether a label could count for this request and none has come."""
        usable = State.UNANSWERED < self.state[place] < State.AMBIGUOUS
        return usable and not self._last_vote[place] and self.fate[place] == Fate.NONE

    def votes(self, place: int) -> list[int]:
        """The votes on a request in the order in which they came."""
        found, vote = [], self._last_vote[place] - 1
        while vote >= 0:
            found.append(vote)
            vote = self._before[vote]
        return found[::-1]

    def said(self, vote: int) -> int:
        """What a vote says, as a hash."""
        return self._said[vote]

    def annotator(self, vote: int) -> int:
        """Whose vote it is, as a hash; 0: nobody said."""
        return self._annotator[vote]

    def vote(self, place: int, said: int, annotator: int) -> None:
        """One vote more."""
        self._said.append(said)
        self._annotator.append(annotator)
        self._before.append(self._last_vote[place] - 1)
        self._last_vote[place] = len(self._said)

    def change(self, vote: int, said: int) -> None:
        """The annotator thought again."""
        self._said[vote] = said

    def in_suspense(self) -> list[int]:
        """The places of requests whose votes have not counted and still may."""
        return np.flatnonzero((self._fates != Fate.NONE) & (self._fates != Fate.COUNTED)).tolist()

    def _append(self, rows: Columns) -> None:
        end = self._filled + len(rows)
        if end > len(self.rows):
            grown = np.empty(max(2 * len(self.rows), end), SEEN)
            grown[: self._filled] = self.rows[: self._filled]
            self.rows = grown
        self.rows[self._filled : end] = rows
        self._filled = end
