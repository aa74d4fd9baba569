"""Entries in, evidence out: outcomes and pairs in the order in which their requests began, and what people say of them.

What arrives depends on the entries and their order alone. A copy's row is never an outcome; it is half of a pair, or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deployctl.core.outcome import CLIENT_LEFT, Admission, Columns, Flags, scored
from deployctl.core.plan import LabelRules
from deployctl.records.entries import LABELS, Began, Entry, Gone, Intake
from deployctl.records.join import LabelJoin
from deployctl.records.rows import SEEN, Rows, rows_written
from deployctl.wire.orders import HELD_UP


@dataclass(slots=True)
class LeftOut:
    """What is no evidence, or only half of it, since the rollout began: counted, never silently lost.

    `explicit` (they named their version), `held_up` (they were under way while their router did not run; copies count, too) and
    `client_left` count requests, `lost_pairs` and `client_left_pairs` pairs: one of the two rows never came (its
    router died, or had no room for it), or nobody waited for the request's answer any more.
    """

    explicit: int = 0
    held_up: int = 0
    client_left: int = 0
    lost_pairs: int = 0
    client_left_pairs: int = 0


@dataclass(frozen=True, slots=True)
class Pairs:
    """The baseline's and a candidate's answer to the same request, SEEN rows, whichever of the two was the copy.

    `arm` is the candidate's; `differs` is 1 where they predict different things, 0 for the same, -1 where one predicts nothing.
    `t` is the same in both rows: when the request began.
    """

    baseline: Columns
    candidate: Columns

    def __len__(self) -> int:
        return len(self.baseline)

    @property
    def arm(self) -> NDArray[np.int8]:
        """The candidate's arm: 1, or more in a shadow with several."""
        return self.candidate["arm"]

    @property
    def differs(self) -> NDArray[np.int8]:
        """1: they predict different things, 0: the same, -1: one of them predicts nothing."""
        one, other = self.baseline["said"], self.candidate["said"]
        return np.where((one == 0) | (other == 0), -1, one != other).astype(np.int8)


NO_ROWS = np.empty(0, SEEN)
NO_PAIRS = Pairs(NO_ROWS, NO_ROWS)


@dataclass(frozen=True, slots=True)
class Arrived:
    """What an entry brought, all of it SEEN rows.

    `outcomes` may be judged now, and so may `pairs`. `labelled` are answers to requests without copies that now have a label
    (`wrong`, and `null`: wrong by more than a half), `labelled_pairs` are pairs that have (`wrong` of both rows); `texts` and
    `pair_texts` are what the labels say. `rows` are those of the batch that are of this rollout, copies among them. No pair will come
    any more of a request that started before `settled_until` (the router's clock).
    """

    at: float
    outcomes: Columns
    labelled: Columns
    texts: list[str]
    rows: Rows
    pairs: Pairs
    labelled_pairs: Pairs
    pair_texts: list[str]
    settled_until: float


class Arrivals:
    """`t` never goes back: a request that began while no controller watched began, in rollout time, when the watching went on.

    `human`: people decide, so the baseline of a pair is never wrong.
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        *,
        with_labels: bool,
        rules: LabelRules | None = None,
        human: bool = False,
    ) -> None:
        self.join = LabelJoin(frozenset(classes), rules, human=human)
        self.left_out = LeftOut()
        self._with_labels = with_labels
        self._admission = Admission(SEEN)
        self._matching = Matching(self.left_out)
        self._first_split: int | None = None
        self._count = 0
        self._routers: dict[str, int] = {}
        self._began: dict[int, float] = {}
        """When requests began, as their outcomes say, until their pairs say the same."""
        self._last = self._last_pair = 0.0

    def fold(self, entry: Entry) -> Arrived:
        """What this entry brought."""
        rows = Rows(NO_ROWS, [], [], np.empty(0, bool))
        outcomes, matched = NO_ROWS, NOTHING_MATCHED
        match entry:
            case Began(split=split):
                self._first_split = split if self._first_split is None else self._first_split
            case Intake(router=router, batch=batch) if router != LABELS:
                rows = self._of_rollout(entry)
                original = rows.columns["mirrored"] == 0
                outcomes = self._admission.add(router, scored(rows.columns[original]), batch.watermark)
                if self._with_labels and rows.ids:
                    requests = rows if original.all() else rows.take(original)
                    self.join.remember(requests, requests.columns["copies"] != 0)
                until = batch.watermark if batch.mirror_watermark is None else batch.mirror_watermark
                matched = self._matching.add(router, rows.columns, min(until, batch.watermark))
            case Gone(router=router):
                outcomes = self._admission.forget(router)
                matched = self._matching.forget(router)
        outcomes["t"], self._last = _never_back(outcomes["t"], self._last)
        copied = outcomes[outcomes["copies"] != 0]
        self._began |= zip(copied["number"].tolist(), copied["t"].tolist(), strict=True)
        pairs = self._paired(matched)
        labels = entry.batch.labels if isinstance(entry, Intake) and self._with_labels else []
        self.join.join(labels)
        judged = self.join.joined()
        return Arrived(
            at=entry.at,
            outcomes=outcomes,
            labelled=judged.labelled,
            texts=judged.texts,
            rows=rows,
            pairs=pairs,
            labelled_pairs=Pairs(judged.baseline, judged.candidate),
            pair_texts=judged.pair_texts,
            settled_until=self._matching.until,
        )

    def _of_rollout(self, entry: Intake) -> Rows:
        """The rows of a batch that may be evidence, numbered, their starts in rollout time."""
        rows = rows_written(entry.batch)
        of_rollout = rows.columns["split"] >= (self._first_split or 0)
        original = of_rollout & (rows.columns["mirrored"] == 0)
        held_up = np.frombuffer(entry.batch.explicit, np.int8) == HELD_UP
        self.left_out.explicit += int((of_rollout & rows.explicit & ~held_up).sum())
        self.left_out.held_up += int((of_rollout & held_up).sum())
        self.left_out.client_left += int((original & (rows.columns["status"] == CLIENT_LEFT)).sum())
        kept = rows.take(of_rollout & ~rows.explicit).seen()
        columns = kept.columns
        columns["t"] = np.round(columns["start"] - entry.offset, 6)
        columns["number"] = np.arange(self._count, self._count + len(columns))
        columns["router"] = self._routers.setdefault(entry.router, len(self._routers))
        self._count += len(columns)
        return kept

    def _paired(self, matched: Matched) -> Pairs:
        """What was matched, as pairs; requests whose copies are there can be joined with labels from here on."""
        if not len(matched.requests):
            return NO_PAIRS
        rows = matched.rows
        own = zip(matched.requests["number"].tolist(), matched.requests["t"].tolist(), strict=True)
        began = np.array([self._began.pop(number, t) for number, t in own])
        t, self._last_pair = _never_back(began, self._last_pair)
        rows["t"] = np.repeat(t, matched.counts)
        self.join.complete(matched.requests, rows, matched.counts)
        of_baseline = np.repeat(np.cumsum(matched.counts) - matched.counts, matched.counts)
        candidates = np.flatnonzero(rows["arm"] > 0)
        return Pairs(rows[of_baseline[candidates]], rows[candidates])


@dataclass(frozen=True, slots=True)
class Matched:
    """Requests in the order of their starts; of `rows` the first `counts[0]` belong to the first of them, and so on: the
    baseline's row, then each candidate's, or none where nothing can be compared.
    """

    requests: Columns
    rows: Columns
    counts: NDArray[np.int64]


NOTHING_MATCHED = Matched(NO_ROWS, NO_ROWS, np.empty(0, np.int64))


class Matching:
    """Finds the copies of each request. Below the mirror watermark nothing is outstanding: what is missing there never comes."""

    def __init__(self, left_out: LeftOut) -> None:
        self._left_out = left_out
        self._admission = Admission(SEEN)

    @property
    def until(self) -> float:
        """Every request that started before this has been matched."""
        return self._admission.until

    def add(self, router: str, rows: Columns, watermark: float) -> Matched:
        """The requests that are complete now."""
        copied = rows[((rows["copies"] != 0) | (rows["mirrored"] != 0)) & (rows["arm"] >= 0)]
        return self._match(self._admission.add(router, copied, watermark))

    def forget(self, router: str) -> Matched:
        """No copy comes from this router any more."""
        return self._match(self._admission.forget(router))

    def _match(self, rows: Columns) -> Matched:
        if not len(rows):
            return NOTHING_MATCHED
        # A copy has the start of its request, so both are admitted together. The baseline's row comes first.
        rows = rows[np.lexsort((rows["arm"], rows["serial"], rows["router"], rows["start"]))]
        new = (np.diff(rows["serial"]) != 0) | (np.diff(rows["router"]) != 0)
        group = np.concatenate([[0], np.cumsum(new)])
        originals = np.flatnonzero(rows["mirrored"] == 0)
        known, first = np.unique(group[originals], return_index=True)
        requests = rows[originals[first]]
        request_of = np.full(group[-1] + 1, -1)
        request_of[known] = np.arange(len(known))
        of_request = request_of[group]
        self._left_out.lost_pairs += int((of_request < 0).sum())
        return self._compared(requests, rows[of_request >= 0], of_request[of_request >= 0])

    def _compared(self, requests: Columns, rows: Columns, of_request: NDArray[np.int64]) -> Matched:
        """Of each request (`of_request` says of which a row is) the rows that can be compared; counts those that cannot."""
        lowest = rows[np.searchsorted(of_request, np.arange(len(requests)))]
        has_baseline, left = lowest["arm"] == 0, requests["status"] == CLIENT_LEFT
        candidate = rows["arm"] > 0
        sent = (1 << requests["arm"].astype(np.int64)) | requests["copies"]
        wanted = np.bitwise_count(sent >> 1).astype(np.int64)
        came = np.bincount(of_request[candidate], minlength=len(requests)) * has_baseline
        self._left_out.lost_pairs += int((wanted - came)[~left].sum())
        self._left_out.client_left_pairs += int(wanted[left].sum())
        both_refused = _refused(rows["status"]) & _refused(lowest["status"])[of_request]
        kept = candidate & (has_baseline & ~left)[of_request] & ~both_refused
        counts = np.bincount(of_request[kept], minlength=len(requests))
        kept |= ~candidate & (counts > 0)[of_request]
        return Matched(requests, rows[kept], counts + (counts > 0))


def _refused(status: NDArray[np.uint16]) -> Flags:
    """4xx is the caller's doing."""
    return (status >= 400) & (status < CLIENT_LEFT)


def _never_back(t: NDArray[np.float64], last: float) -> tuple[NDArray[np.float64], float]:
    """Times that do not go back, also behind the last one."""
    if not len(t):
        return t, last
    forward = np.maximum(np.maximum.accumulate(t), last)
    return forward, float(forward[-1])
