"""How far people agree with each other: what no version can be asked to exceed by much, and what it is measured by.

Votes are taken apart from each other by leaving one out, so a person is never compared with themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deployctl.core.agreement import Floats, Ints, Tally, votes_for
from deployctl.core.proportion import Difference, paired_difference


@dataclass(frozen=True, slots=True)
class People:
    """How people agree on the `doubly` requests that two or more have labelled, each request counting once; None where there are none.

    `pairwise` is two people with each other, `one_with_rest` one with the label that most of the others gave (a tie counts in
    parts), `alpha` Krippendorff's.
    """

    doubly: int
    pairwise: float | None
    one_with_rest: float | None
    alpha: float | None


@dataclass(frozen=True, slots=True)
class AgainstPeople:
    """A version in the place of a person, on the same requests with the same others: `person` and `version` are the shares that
    agree with what most of the others say, `with_one` is the version with one person alone; `difference` is version minus person.
    """

    n: int
    person: float
    version: float
    with_one: float
    difference: Difference


def people_of(tally: Tally) -> People:
    """How people agree with each other."""
    tally = _of_two_or_more(tally)
    n = len(tally.requests)
    if not n:
        return People(0, None, None, None)
    same = np.add.reduceat(tally.count * (tally.count - 1), tally.starts)
    pairwise = same / (tally.voters * (tally.voters - 1))
    person, _ = _left_out(tally, np.zeros(len(tally.request)), np.zeros(len(tally.request)))
    return People(n, float(pairwise.mean()), float(person.mean()), krippendorff_alpha(tally))


def against_people(tally: Tally, request: Ints, prediction: Ints) -> AgainstPeople | None:
    """A version's predictions of these requests (ascending) beside people; None where nobody labelled one of them twice."""
    tally = _of_two_or_more(tally)
    shared, here, there = np.intersect1d(tally.requests, request, assume_unique=True, return_indices=True)
    if not len(shared):
        return None
    tally = _only(tally, np.isin(np.arange(len(tally.requests)), here))
    predicted = prediction[there]
    agreed = votes_for(tally, tally.requests, predicted)
    is_said = (tally.label == predicted[tally.place]).astype(np.float64)
    person, version = _left_out(tally, is_said, agreed[tally.place])
    difference = paired_difference(version - person)
    assert difference is not None
    with_one = float((agreed / tally.voters).mean())
    return AgainstPeople(len(shared), float(person.mean()), float(version.mean()), with_one, difference)


def krippendorff_alpha(tally: Tally) -> float | None:
    """Krippendorff's alpha for nominal labels and any number of votes on each request (Krippendorff 2011, sections C and D); 1 where
    all votes are the same, None without two votes on one request.
    """
    tally = _of_two_or_more(tally)
    if not len(tally.requests):
        return None
    n = int(tally.voters.sum())
    squares = np.add.reduceat(tally.count**2, tally.starts)
    observed = float(((tally.voters**2 - squares) / (tally.voters - 1)).sum()) / n
    of_label = np.bincount(tally.label, tally.count)
    expected = (float(n) ** 2 - float((of_label**2).sum())) / (float(n) * (n - 1))
    return 1.0 if expected == 0 else 1 - observed / expected


def _left_out(tally: Tally, is_said: Floats, agreed: Floats) -> tuple[Floats, Floats]:
    """Leave out each vote in turn: the mean, for each request, of how far the left-out person and the version agree with what most
    of the rest say.

    Of cells: `is_said` is 1 where the label is the version's, `agreed` how many gave the request that label. Every cell stands for
    `count` people who, left out, leave the same rest. If theirs was the label that most gave, alone, the rest may be tied with the
    runners-up; if it was one of several such, the others remain; if not, nothing changes at the top.
    """
    place, count = tally.place, tally.count
    top, tied = (each[place] for each in tally.most())
    leads = (count == top) & (tied == 1)
    second = np.maximum.reduceat(np.where(count == top, 0, count), tally.starts)[place]
    seconds = np.add.reduceat((count == second) & (second > 0), tally.starts, dtype=np.int64)[place]
    still_leads = leads & (count - 1 > second)
    drawn = leads & ~still_leads
    shares_top = (count == top) & (tied > 1)
    person = np.where(still_leads, 1.0, np.where(drawn, 1 / (1 + seconds), 0.0))
    said_top = agreed == top  # not the leader's own label where the leader is left out
    version = np.select(
        [still_leads, drawn, shares_top],
        [
            is_said,
            np.maximum(is_said, agreed == second) / (1 + seconds),
            (said_top * (1 - is_said)) / np.maximum(1, tied - 1),
        ],
        said_top / tied,
    )
    weight = count / tally.voters[place]
    return np.add.reduceat(person * weight, tally.starts), np.add.reduceat(version * weight, tally.starts)


def _of_two_or_more(tally: Tally) -> Tally:
    return _only(tally, tally.voters >= 2)


def _only(tally: Tally, which: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Tally:
    """The cells of these requests alone."""
    kept = which[tally.place]
    request = tally.request[kept]
    requests, starts = np.unique(request, return_index=True)
    return Tally(
        request, tally.label[kept], tally.count[kept], requests, starts, tally.voters[which], tally.labels
    )
