"""Versions against people: what their votes say of a request, who agrees with it, and by how much more than by chance.

Columns in, figures out, a million answers in a second or two. Votes are those that can count (nobody saw the answer first, of each
annotator the last); unlike the live join, which must stop somewhere, this counts all that came until now.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deployctl.core.plan import LabelRules
from deployctl.core.proportion import Difference, Interval, mcnemar, paired_difference, z_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

NONE = -1
"""No prediction, no annotator, or no label that most gave."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers in columns of one length: `request` (-1: lost), `version` (its number), `prediction` and NONE for none, `confidence`
    (NaN: unknown), `latency` (ms), `status` (HTTP), `null` (1: nothing in it), `shown` (1: the caller was given it), `t` (seconds).
    """

    request: Ints
    version: Ints
    prediction: Ints
    confidence: Floats
    latency: Floats
    status: Ints
    null: Ints
    shown: Ints
    t: Floats

    def __len__(self) -> int:
        return len(self.request)

    def of(self, version: int) -> Ints:
        """The rows of a version that label and latency can be of: an answer without an error, by the order of their requests."""
        said = (self.prediction >= 0) | (self.null != 0)
        rows = np.flatnonzero((self.version == version) & (self.request >= 0) & (self.status < 400) & said)
        ordered: Ints = rows[np.argsort(self.request[rows], kind="stable")]
        return ordered


@dataclass(frozen=True, slots=True)
class Votes:
    """Labels in columns of one length: `request`, `label`, `annotator` (NONE: nobody named), `t` (seconds at which it came)."""

    request: Ints
    label: Ints
    annotator: Ints
    t: Floats

    def where(self, which: Flags) -> Votes:
        """Only these."""
        return Votes(self.request[which], self.label[which], self.annotator[which], self.t[which])


@dataclass(frozen=True, slots=True)
class Tally:
    """Votes counted: `count` people gave the request this label. Cells by request, then label; those of request `requests[i]`
    begin at `starts[i]`, and `voters[i]` is how many voted. `labels` is one more than the greatest label.
    """

    request: Ints
    label: Ints
    count: Ints
    requests: Ints
    starts: Ints
    voters: Ints
    labels: int

    @property
    def place(self) -> Ints:
        """For each cell, the place of its request in `requests`."""
        sizes = np.diff(np.append(self.starts, len(self.request)))
        return np.repeat(np.arange(len(self.requests)), sizes)

    def most(self) -> tuple[Ints, Ints]:
        """How many gave each request the label that most gave, and how many labels so many gave."""
        top = np.maximum.reduceat(self.count, self.starts) if len(self.starts) else self.starts
        tied = _sums((self.count == top[self.place]).astype(np.int64), self.starts)
        return top, tied


def tally_of(votes: Votes) -> Tally:
    """Count votes by request and label."""
    labels = int(votes.label.max(initial=-1)) + 1
    keys, count = np.unique(votes.request * max(1, labels) + votes.label, return_counts=True)
    request, label = np.divmod(keys, max(1, labels))
    requests, starts = np.unique(request, return_index=True)
    return Tally(request, label, count, requests, starts, _sums(count, starts), labels)


@dataclass(frozen=True, slots=True)
class Truth:
    """What people say of each request that counts: `label` that most gave (NONE: a tie), and since when (`t`, seconds).

    An answer is as right as the `credit` that its label has in the cells of `tally`. `disputed` requests are tied and left out,
    `waiting` have too few votes yet.
    """

    request: Ints
    label: Ints
    t: Floats
    tally: Tally
    credit: Floats
    disputed: Ints
    waiting: int

    def right(self, request: Ints, prediction: Ints) -> Floats:
        """How right a prediction is of a request that counts, from 0 to 1."""
        return _look_up(self.tally, self.credit, request, prediction)


def adjudicate(votes: Votes, rules: LabelRules, expert: int = NONE) -> Truth:
    """What votes add up to by `rules`. `expert` is the number of the annotator whom they name."""
    needed = rules.votes
    if rules.expert is not None:
        votes, needed = votes.where((votes.annotator == expert) & (votes.annotator != NONE)), 1
    tally = tally_of(votes)
    top, tied = tally.most()
    place = tally.place
    is_top = tally.count == top[place]
    label = np.full(len(tally.requests), NONE, np.int64)
    label[place[is_top]] = tally.label[is_top]
    label[tied > 1] = NONE
    enough = tally.voters >= needed
    match rules.adjudicate:
        case "any":
            counts, credit = enough, np.ones(len(place))
        case "soft":
            counts, credit = enough, tally.count / tally.voters[place]
        case _:
            counts, credit = enough & (tied == 1), is_top.astype(np.float64)
    order = np.lexsort((votes.t, votes.request))
    firsts = np.searchsorted(votes.request[order], tally.requests)
    came = votes.t[order][firsts + np.minimum(needed, tally.voters) - 1] if len(order) else votes.t
    return Truth(
        request=tally.requests[counts],
        label=label[counts],
        t=came[counts],
        tally=tally,
        credit=credit,
        disputed=tally.requests[enough & ~counts],
        waiting=int(np.count_nonzero(~enough)),
    )


@dataclass(frozen=True, slots=True)
class Judged:
    """The answers of one version that people have labelled, by the order of their requests: `row` in Answers, what it `predicted`
    and the `label` (NONE: none), how `right` it was (0 to 1) and the seconds from the request to the label that made it count.
    """

    row: Ints
    request: Ints
    predicted: Ints
    label: Ints
    right: Floats
    delay: Floats

    def __len__(self) -> int:
        return len(self.row)


def judge(answers: Answers, rows: Ints, truth: Truth) -> Judged:
    """These rows of one version (`Answers.of`) against what people say."""
    at = np.searchsorted(truth.request, answers.request[rows])
    at = np.minimum(at, max(0, len(truth.request) - 1))
    counts = truth.request[at] == answers.request[rows] if len(truth.request) else np.zeros(len(rows), bool)
    rows, at = rows[counts], at[counts]
    request, predicted = answers.request[rows], answers.prediction[rows]
    return Judged(
        row=rows,
        request=request,
        predicted=predicted,
        label=truth.label[at],
        right=truth.right(request, predicted),
        delay=truth.t[at] - answers.t[rows],
    )


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many answers people have labelled, and how long that took (seconds; negative: the label was there first)."""

    answered: int
    labelled: int
    share: float | None
    delay_p50: float | None
    delay_p95: float | None


def coverage_of(answered: int, delay: Floats) -> Coverage:
    """Coverage of so many answers, of which those with a delay are labelled."""
    share = len(delay) / answered if answered else None
    if not len(delay):
        return Coverage(answered, 0, share, None, None)
    p50, p95 = np.quantile(delay, (0.5, 0.95)).tolist()
    return Coverage(answered, len(delay), share, p50, p95)


# ── tables of label against prediction ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often people said `label` where the version said `predicted` (NONE: no answer). Only cells that are not empty."""

    label: Ints
    predicted: Ints
    count: Ints

    @property
    def n(self) -> int:
        """Answers in the table."""
        return int(self.count.sum())

    @property
    def categories(self) -> list[int]:
        """Everything that either said, the most frequent labels first, NONE last."""
        said, where = np.unique(np.concatenate([self.label, self.predicted]), return_inverse=True)
        as_label = np.bincount(where[: len(self.label)], self.count, len(said))
        order = np.lexsort((said, -as_label, said == NONE))
        ordered: list[int] = said[order].tolist()
        return ordered


def confusion_of(judged: Judged) -> Confusion:
    """The table of those answers on which people have one label."""
    clear = judged.label != NONE
    label, predicted = judged.label[clear], judged.predicted[clear] + 1  # NONE is 0
    width = int(predicted.max(initial=0)) + 1
    cells, count = np.unique(label * width + predicted, return_counts=True)
    return Confusion(cells // width, cells % width - 1, count)


@dataclass(frozen=True, slots=True)
class Coefficient:
    """Agreement beyond chance: 1 is all of it, 0 what chance gives. `largest` is what κ can be at most with these frequencies."""

    value: float
    interval: Interval
    largest: float | None = None


def cohen_kappa(table: Confusion) -> Coefficient | None:
    """Cohen's κ (1960) with the asymptotic interval of Fleiss, Cohen and Everitt (1969, equation 13); None where both said one and
    the same of everything, as chance then agrees as well.
    """
    p, row, column, by_label, by_predicted = _shares(table)
    if not table.n:
        return None
    diagonal = row == column
    observed, chance = float(p[diagonal].sum()), float((by_label * by_predicted).sum())
    if chance >= 1:
        return None
    kappa = (observed - chance) / (1 - chance)
    # Of a cell: its label's share among predictions, and its prediction's among labels.
    crossed = by_predicted[row] + by_label[column]
    on = float((p * (1 - crossed * (1 - kappa)) ** 2)[diagonal].sum())
    off = (1 - kappa) ** 2 * float((p * crossed**2)[~diagonal].sum())
    variance = max(0.0, on + off - (kappa - chance * (1 - kappa)) ** 2) / (1 - chance) ** 2 / table.n
    half = z_of() * math.sqrt(variance)
    largest = (float(np.minimum(by_label, by_predicted).sum()) - chance) / (1 - chance)
    return Coefficient(kappa, (max(-1.0, kappa - half), min(1.0, kappa + half)), largest)


def gwet_ac1(table: Confusion, classes: int = 0) -> Coefficient | None:
    """Gwet's AC1 and its interval (Gwet 2008, equations 4 and 35), which frequent classes do not pull down as they do κ.

    `classes` is how many there are to choose from, where more than were seen. None with fewer than two.
    """
    p, row, column, by_label, by_predicted = _shares(table)
    q = max(classes, len(by_label))
    if not table.n or q < 2:
        return None
    prevalence = (by_label + by_predicted) / 2
    observed = float(p[row == column].sum())
    chance = float((prevalence * (1 - prevalence)).sum()) / (q - 1)
    ac1 = (observed - chance) / (1 - chance)
    # The linearised form: what each answer adds, of which the sum over answers is the estimate.
    of_chance = (1 - (prevalence[row] + prevalence[column]) / 2) / (q - 1)
    adds = ((row == column) - 2 * (1 - ac1) * of_chance) / (1 - chance)
    variance = float((p * adds**2).sum()) - float((p * adds).sum()) ** 2
    half = z_of() * math.sqrt(max(0.0, variance) / table.n)
    return Coefficient(ac1, (max(-1.0, ac1 - half), min(1.0, ac1 + half)))


def _shares(table: Confusion) -> tuple[Floats, Ints, Ints, Floats, Floats]:
    """Cells as shares, with their places among the categories, and the shares of each category by label and by prediction."""
    said, where = np.unique(np.concatenate([table.label, table.predicted]), return_inverse=True)
    p = table.count / max(1, table.n)
    row, column = where[: len(p)].astype(np.int64), where[len(p) :].astype(np.int64)
    by_label, by_predicted = (np.bincount(each, p, len(said)).astype(np.float64) for each in (row, column))
    return p, row, column, by_label, by_predicted


# ── two versions on the same requests ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Paired:
    """Two versions on the same `n` labelled requests: on how many the first alone was right (or more right), on how many the second,
    how much that makes, and the exact p-value of no difference (McNemar's; for votes as shares the sign test's).
    """

    n: int
    first_only: int
    second_only: int
    difference: Difference | None
    p_value: float


def compare(first: Judged, second: Judged) -> Paired:
    """The second against the first, on what both answered."""
    _, one, other = np.intersect1d(first.request, second.request, assume_unique=True, return_indices=True)
    gain = second.right[other] - first.right[one]
    worse, better = int(np.count_nonzero(gain < 0)), int(np.count_nonzero(gain > 0))
    return Paired(len(gain), worse, better, paired_difference(gain), mcnemar(worse, better))


@dataclass(frozen=True, slots=True)
class PairedLatency:
    """How much later the second version answers the same request (ms), and on which share of `n` requests it does."""

    n: int
    difference_p50: float
    difference_p95: float
    slower: float


def compare_latency(answers: Answers, first: Ints, second: Ints) -> PairedLatency | None:
    """The rows of the second version against those of the first (`Answers.of`), on what both answered; None where that is nothing."""
    one, other = same_requests(answers, first, second)
    if not len(one):
        return None
    later = answers.latency[other] - answers.latency[one]
    p50, p95 = np.quantile(later, (0.5, 0.95)).tolist()
    return PairedLatency(len(later), p50, p95, float((later > 0).mean()))


def same_requests(answers: Answers, first: Ints, second: Ints) -> tuple[Ints, Ints]:
    """Of the rows of two versions those that answer the same requests, side by side."""
    _, one, other = np.intersect1d(
        answers.request[first], answers.request[second], assume_unique=True, return_indices=True
    )
    return first[one], second[other]


# ── people who saw the answer first ──────────────────────────────────────────────────────────────────────────────────


def acceptance(answers: Answers, rows: Ints, shown: Votes) -> tuple[int, int]:
    """How many votes of people who saw these answers first say the same, and how many there are. No evidence of who is right:
    people tend to take what they are shown.
    """
    said = rows[answers.prediction[rows] >= 0]
    if not len(said) or not len(shown.request):
        return 0, 0
    at = np.minimum(np.searchsorted(answers.request[said], shown.request), len(said) - 1)
    known = answers.request[said][at] == shown.request
    same = answers.prediction[said][at] == shown.label
    return int(np.count_nonzero(known & same)), int(np.count_nonzero(known))


def surest_wrong(answers: Answers, judged: Judged, at_most: int) -> Ints:
    """The places in `judged` of the answers that people contradict most, those with the greatest confidence first."""
    wrong = np.flatnonzero(judged.right < 0.5)
    confidence = np.nan_to_num(answers.confidence[judged.row[wrong]], nan=-1.0)
    surest: Ints = wrong[np.lexsort((judged.request[wrong], judged.right[wrong], -confidence))[:at_most]]
    return surest


def _sums(values: Ints, starts: Ints) -> Ints:
    """Sums of stretches that begin at `starts`."""
    sums: Ints = np.add.reduceat(values, starts) if len(starts) else values[:0]
    return sums


def votes_for(tally: Tally, request: Ints, prediction: Ints) -> Floats:
    """How many people gave each request this label."""
    return _look_up(tally, tally.count.astype(np.float64), request, prediction)


def _look_up(tally: Tally, values: Floats, request: Ints, prediction: Ints) -> Floats:
    """The values of the cells of these requests and labels, 0 where there is no such cell."""
    if not len(tally.request):
        return np.zeros(len(request))
    cells = tally.request * tally.labels + tally.label
    wanted = request * tally.labels + prediction
    at = np.minimum(np.searchsorted(cells, wanted), len(cells) - 1)
    there = (cells[at] == wanted) & (prediction >= 0) & (prediction < tally.labels)
    return np.where(there, values[at], 0.0)
