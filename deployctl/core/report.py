"""What a rollout's versions are worth, in numbers, with the sentence first that whoever pays for it understands.

Only sums up: nothing here decides a rollout. Its size is bounded however many answers, classes and people there were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from deployctl.core.agreement import (
    NONE,
    Answers,
    Coefficient,
    Confusion,
    Coverage,
    Ints,
    Judged,
    Paired,
    PairedLatency,
    Truth,
    Votes,
    acceptance,
    adjudicate,
    cohen_kappa,
    compare,
    compare_latency,
    confusion_of,
    coverage_of,
    gwet_ac1,
    judge,
    same_requests,
    surest_wrong,
    votes_for,
)
from deployctl.core.calibration import Calibration, calibration_of
from deployctl.core.ceiling import AgainstPeople, People, against_people, people_of
from deployctl.core.plan import HUMAN, LabelRules, Version
from deployctl.core.proportion import Interval, Share, holm, share_of
from deployctl.core.rollout import Rollout
from deployctl.core.verdict import CandidateVerdict

ENOUGH = 30
"""Labels of a class, or requests that people labelled twice, below which nothing is concluded from them."""

ALIKE = 0.02
"""A version whose difference from a person is within this, its whole interval, is about as good as a person."""

MAX_CLASSES = 24
MAX_MATRIX = 16
MAX_EXAMPLES = 20


@dataclass(frozen=True, slots=True)
class Recorded:
    """A rollout's log, as a report needs it. `votes` are those that can count, `shown` those of people who saw the answer first;
    `unmatched` votes are of no request that is known, or of two. `ids` gives the request ids of rows.
    """

    service: str
    rollout: Rollout
    versions: tuple[Version, ...]
    texts: Sequence[str]
    annotators: Sequence[str]
    answers: Answers
    votes: Votes
    shown: Votes
    unmatched: int
    ids: Callable[[list[int]], list[str]]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the rollout itself came to: `result` is pass, fail, inconclusive, or None where it still runs or a person ended it."""

    phase: str
    result: str | None
    reason: str
    by: str
    candidates: tuple[CandidateVerdict, ...]
    sentence: str


@dataclass(frozen=True, slots=True)
class Labels:
    """What people said, and what became of it. Requests: `labelled` count, `disputed` are tied and left out, `waiting` have too few
    votes. Votes: `foreign` name no class of the manifest, `unmatched` no request that is known once, `shown` saw the answer first.
    """

    adjudicate: str
    votes_needed: int
    votes: int
    annotators: int
    labelled: int
    disputed: int
    disputed_ids: tuple[str, ...]
    waiting: int
    foreign: int
    unmatched: int
    shown: int
    people: People


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class (None: no answer). What the version answered it for: `coverage` and `precision`; what people say is it: `recall` of
    `n`, its Holm-corrected `interval` and whether it is "below", "above" or "like" the others, or "insufficient" to tell.
    """

    name: str | None
    coverage: Coverage
    precision: float | None
    n: int
    recall: float | None
    interval: Interval | None
    p_value: float | None
    state: str


@dataclass(frozen=True, slots=True)
class Matrix:
    """How often people said a class (a line each) where the version said another; `others` are left in the last line and column."""

    names: tuple[str | None, ...]
    others: int
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Example:
    """An answer that people contradict: `for_it` of the `votes` say the same."""

    id: str
    predicted: str | None
    label: str | None
    confidence: float | None
    for_it: int
    votes: int


@dataclass(frozen=True, slots=True)
class VersionReport:
    """What one version is worth. `failed` answers were errors, `nulls` empty; `accepted` is how often people took what they saw."""

    version: str
    role: str
    sentence: str
    answers: int
    failed: int
    nulls: int
    coverage: Coverage
    agreement: Share
    kappa: Coefficient | None
    ac1: Coefficient | None
    against: AgainstPeople | None
    classes: tuple[ClassRow, ...]
    more_classes: int
    matrix: Matrix
    calibration: Calibration | None
    accepted: Share
    examples: tuple[Example, ...]
    contradicted: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions on the same requests: who is right where people say so, how often they `differ`, who is later."""

    first: str
    second: str
    sentence: str
    paired: Paired
    differ: Share
    latency: PairedLatency | None


@dataclass(frozen=True, slots=True)
class Report:
    """All of it. `sentence` is what there is to say; the rest is what it rests on."""

    service: str
    rollout: str
    strategy: str
    sentence: str
    decision: Decision
    labels: Labels
    versions: tuple[VersionReport, ...]
    comparisons: tuple[Comparison, ...]


def report_of(recorded: Recorded) -> Report:
    """The report of a rollout, running or not."""
    rules, plan = recorded.rollout.plan.labels, recorded.rollout.plan
    votes, foreign = _of_classes(recorded, recorded.votes)
    shown, _ = _of_classes(recorded, recorded.shown)
    expert = NONE
    if rules.expert in recorded.annotators:
        expert = recorded.annotators.index(rules.expert)
    truth = adjudicate(votes, rules, expert)
    arms = [arm for arm, version in enumerate(recorded.versions) if version != HUMAN]
    rows = {arm: recorded.answers.of(arm) for arm in arms}
    judged = {arm: judge(recorded.answers, rows[arm], truth) for arm in arms}
    everybody = truth if rules.expert is None else adjudicate(votes, LabelRules())
    people = people_of(everybody.tally)
    named = _named(recorded, truth, list(judged.values()))
    parts = [_version(recorded, arm, rows[arm], judged[arm], everybody, people, shown, named) for arm in arms]
    first, *others = arms
    comparisons = tuple(
        _comparison(
            recorded, (first, other), (rows[first], rows[other]), compare(judged[first], judged[other])
        )
        for other in others
    )
    tried = parts if plan.people_alone else parts[1:]
    decision = _decision(recorded.rollout)
    return Report(
        service=recorded.service,
        rollout=recorded.rollout.id,
        strategy=plan.strategy,
        sentence=" ".join(part.sentence for part in tried),
        decision=decision,
        labels=_labels(recorded, votes, truth, foreign, people, named),
        versions=tuple(parts),
        comparisons=comparisons,
    )


def _of_classes(recorded: Recorded, votes: Votes) -> tuple[Votes, int]:
    """The votes that name a class that there is, and how many do not."""
    classes = set(recorded.rollout.plan.classes)
    known = np.array([not classes or text in classes for text in recorded.texts], bool)
    kept = votes.label >= 0
    if len(known):
        kept &= known[np.maximum(0, votes.label)]
    return votes.where(kept), int(np.count_nonzero(~kept))


def _labels(
    recorded: Recorded, votes: Votes, truth: Truth, foreign: int, people: People, named: dict[int, str]
) -> Labels:
    rules = recorded.rollout.plan.labels
    disputed = [named[row] for row in _rows_of(recorded, truth.disputed[:MAX_EXAMPLES])]
    return Labels(
        adjudicate=rules.adjudicate,
        votes_needed=1 if rules.expert is not None else rules.votes,
        votes=len(votes.request),
        annotators=len(np.unique(votes.annotator[votes.annotator >= 0])),
        labelled=len(truth.request),
        disputed=len(truth.disputed),
        disputed_ids=tuple(filter(None, disputed)),
        waiting=truth.waiting,
        foreign=foreign,
        unmatched=recorded.unmatched,
        shown=len(recorded.shown.request),
        people=people,
    )


def _rows_of(recorded: Recorded, requests: Ints) -> list[int]:
    """The first answer to each of these requests."""
    asked = recorded.answers.request
    rows = np.flatnonzero(np.isin(asked, requests)) if len(requests) else requests
    _, firsts = np.unique(asked[rows], return_index=True)
    found: list[int] = rows[firsts].tolist()
    return found


def _named(recorded: Recorded, truth: Truth, judged: list[Judged]) -> dict[int, str]:
    """The ids of the rows that a report names, by row: all at once, as the whole log is read for them."""
    wanted = _rows_of(recorded, truth.disputed[:MAX_EXAMPLES])
    for one in judged:
        wanted += one.row[surest_wrong(recorded.answers, one, MAX_EXAMPLES)].tolist()
    return dict(zip(wanted, recorded.ids(wanted), strict=True)) if wanted else {}


# ── one version ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _version(
    recorded: Recorded,
    arm: int,
    rows: Ints,
    judged: Judged,
    everybody: Truth,
    people: People,
    shown: Votes,
    named: dict[int, str],
) -> VersionReport:
    answers, version = recorded.answers, recorded.versions[arm]
    mine = answers.version == arm
    table = confusion_of(judged)
    coverage = coverage_of(len(rows), judged.delay)
    agreement = share_of(float(judged.right.sum()), len(judged))
    # Of all that people labelled twice, disputed or not: without the disputes people would seem to agree more than they do.
    against = against_people(everybody.tally, answers.request[rows], answers.prediction[rows])
    seen = rows if recorded.rollout.plan.people_alone else rows[answers.shown[rows] != 0]
    return VersionReport(
        version=version.version,
        role="baseline" if arm == 0 else "candidate",
        sentence=_sentence(version.version, len(rows), agreement, people, against),
        answers=int(np.count_nonzero(mine)),
        failed=int(np.count_nonzero(mine & (answers.status >= 400))),
        nulls=int(np.count_nonzero(mine & (answers.status < 400) & (answers.null != 0))),
        coverage=coverage,
        agreement=agreement,
        kappa=cohen_kappa(table),
        ac1=gwet_ac1(table, len(recorded.rollout.plan.classes)),
        against=against,
        classes=_class_rows(recorded, rows, judged, table),
        more_classes=max(0, len(table.categories) - MAX_CLASSES),
        matrix=_matrix(recorded, table),
        calibration=calibration_of(answers.confidence[judged.row], judged.right),
        accepted=share_of(*acceptance(answers, seen, shown)),
        examples=_examples(recorded, judged, everybody, named),
        contradicted=int(np.count_nonzero(judged.right < 0.5)),
    )


def _class_rows(recorded: Recorded, rows: Ints, judged: Judged, table: Confusion) -> tuple[ClassRow, ...]:
    """The most frequent classes, each against the agreement on all of them."""
    predicted = recorded.answers.prediction[rows]
    shown = table.categories[:MAX_CLASSES]
    said = {one: int(table.count[table.label == one].sum()) for one in shown}
    agreed = {one: int(table.count[(table.label == one) & (table.predicted == one)].sum()) for one in shown}
    hits = int(table.count[table.label == table.predicted].sum())
    enough = [one for one in shown if said[one] >= ENOUGH]
    judged_slices = holm([(agreed[one], said[one]) for one in enough], hits / max(1, table.n))
    slices = dict(zip(enough, judged_slices, strict=True))
    found = []
    for one in shown:
        slice_ = slices.get(one)
        recall = agreed[one] / said[one] if said[one] else None
        answered = int(table.count[table.predicted == one].sum())
        state = "insufficient"
        if slice_ and recall is not None:
            below = recall < hits / table.n
            state = ("below" if below else "above") if slice_.differs else "like"
        found.append(
            ClassRow(
                name=_name(recorded, one),
                coverage=coverage_of(
                    int(np.count_nonzero(predicted == one)), judged.delay[judged.predicted == one]
                ),
                precision=agreed[one] / answered if answered and one != NONE else None,
                n=said[one],
                recall=recall,
                interval=slice_.interval if slice_ else None,
                p_value=slice_.p_value if slice_ else None,
                state=state,
            )
        )
    return tuple(found)


def _matrix(recorded: Recorded, table: Confusion) -> Matrix:
    categories = table.categories
    shown = categories[:MAX_MATRIX]
    others = len(categories) - len(shown)
    size = len(shown) + (others > 0)
    place = {one: at for at, one in enumerate(shown)}
    label, predicted = (
        np.array([place.get(one, size - 1) for one in column.tolist()], np.int64)
        for column in (table.label, table.predicted)
    )
    counts = np.bincount(label * size + predicted, table.count, size * size).astype(np.int64)
    lines = counts.reshape(size, size).tolist() if size else []
    return Matrix(tuple(_name(recorded, one) for one in shown), others, tuple(map(tuple, lines)))


def _examples(
    recorded: Recorded, judged: Judged, everybody: Truth, named: dict[int, str]
) -> tuple[Example, ...]:
    at = surest_wrong(recorded.answers, judged, MAX_EXAMPLES)
    rows = judged.row[at]
    for_it = votes_for(everybody.tally, judged.request[at], judged.predicted[at])
    voters = everybody.tally.voters[np.searchsorted(everybody.tally.requests, judged.request[at])]
    confidence = recorded.answers.confidence[rows].tolist()
    return tuple(
        Example(
            id=named[row],
            predicted=_name(recorded, predicted),
            label=_name(recorded, label),
            confidence=sure if np.isfinite(sure) else None,
            for_it=int(agreeing),
            votes=votes,
        )
        for row, predicted, label, sure, agreeing, votes in zip(
            rows.tolist(),
            judged.predicted[at].tolist(),
            judged.label[at].tolist(),
            confidence,
            for_it.tolist(),
            voters.tolist(),
            strict=True,
        )
    )


def _name(recorded: Recorded, number: int) -> str | None:
    return recorded.texts[number] if number >= 0 else None


# ── two versions ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _comparison(
    recorded: Recorded, arms: tuple[int, int], rows: tuple[Ints, Ints], paired: Paired
) -> Comparison:
    answers = recorded.answers
    first, second = (recorded.versions[arm].version for arm in arms)
    one, other = same_requests(answers, *rows)
    differing = int(np.count_nonzero(answers.prediction[one] != answers.prediction[other]))
    return Comparison(
        first=first,
        second=second,
        sentence=_compared(first, second, len(one), paired),
        paired=paired,
        differ=share_of(differing, len(one)),
        latency=compare_latency(answers, *rows),
    )


# ── in words ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _sentence(
    version: str, answered: int, agreement: Share, people: People, against: AgainstPeople | None
) -> str:
    if agreement.share is None or agreement.wilson is None:
        if not answered:
            return f"Version {version} has answered nothing yet, so nothing can be said of it."
        return (
            f"Version {version} has answered {answered:,} requests and people have labelled none of them, "
            f"so how good it is is unknown."
        )
    agrees = (
        f"Version {version} agrees with people on {_percent(agreement.share)} of {agreement.n:,} requests "
        f"({_between(agreement.wilson)})"
    )
    return f"{agrees}; {_beside_people(people, against)}."


def _beside_people(people: People, against: AgainstPeople | None) -> str:
    if against is None:
        return "nobody labelled a request twice, so how far people agree with each other is unknown"
    if against.n < ENOUGH:
        return f"only {against.n} requests were labelled by two people or more, too few to say how good a person would be"
    low, high = against.difference.interval
    if high < 0:
        points = f"{-100 * against.difference.difference:.1f}"
        verdict = f"it is not as good as a person yet ({points} points behind)"
    elif low > 0:
        verdict = "it is better than a single person"
    elif low >= -ALIKE and high <= ALIKE:
        verdict = "it is about as good as a person"
    else:
        verdict = (
            f"whether it is as good as a person is not settled ({_points(low)} to {_points(high)} points)"
        )
    person, version = _percent(against.person), _percent(against.version)
    beside = f"a person agrees with the rest of them on {person}, it with the same rest on {version}"
    if people.pairwise == people.one_with_rest:
        beside = f"two people agree with each other on {person}, it with one of them on {version}"
    return f"{beside}, so {verdict}"


def _compared(first: str, second: str, both: int, paired: Paired) -> str:
    if not both:
        return (
            f"No request was answered by both version {first} and version {second}, so they are not compared."
        )
    if paired.difference is None:
        return f"Versions {first} and {second} both answered {both:,} requests, and people labelled none of them."
    low, high = paired.difference.interval
    interval = f"{_points(low)} to {_points(high)}"
    on = f"On the {paired.n:,} labelled requests that both answered"
    if low > 0 or high < 0:
        than = (
            f"{100 * abs(paired.difference.difference):.1f} points {'more' if low > 0 else 'less'} often than"
        )
        return f"{on}, version {second} is right {than} version {first} ({interval})."
    return (
        f"{on}, no difference between versions {first} and {second} is shown; "
        f"it may be anything from {interval} points."
    )


def _decision(rollout: Rollout) -> Decision:
    phase, end = rollout.phase.value, rollout.ended_by
    if end is None:
        said = f"Rollout {rollout.id} is still running ({phase}): nothing is decided yet."
        return Decision(phase, None, "", "", rollout.judged, said)
    result = end.verdict.result.value if end.verdict else None
    who = "the evidence" if end.by == "gate" else end.by
    reason = end.reason.rstrip(".") or "no reason was given"
    words = f"The rollout was {phase.replace('_', ' ')} by {who}"
    said = f"{words}, with the verdict {result}: {reason}." if result else f"{words}: {reason}."
    return Decision(phase, result, end.reason, end.by, rollout.judged, said)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _between(interval: Interval) -> str:
    low, high = interval
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"
