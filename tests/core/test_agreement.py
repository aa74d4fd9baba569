"""Versions against people: on real votes the figures are those of an independent computation, and on small tables the textbooks'."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import shared_data

from deployctl.core.agreement import (
    NONE,
    Answers,
    Confusion,
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
    surest_wrong,
    tally_of,
    votes_for,
)
from deployctl.core.calibration import calibration_of
from deployctl.core.ceiling import against_people, krippendorff_alpha, people_of
from deployctl.core.plan import LabelRules

NEAR = 1e-9


def answers_of(*predictions, **columns) -> Answers:
    """One version after the other answers requests 0, 1, 2… with these predictions (NONE for none)."""
    said = np.concatenate([np.asarray(one, np.int64) for one in predictions])
    n = len(said)
    given = {
        "request": np.concatenate([np.arange(len(one)) for one in predictions]),
        "version": np.repeat(np.arange(len(predictions)), [len(one) for one in predictions]),
        "prediction": said,
        "confidence": np.full(n, np.nan),
        "latency": np.full(n, 5.0),
        "status": np.full(n, 200),
        "null": (said == NONE).astype(np.int64),
        "shown": np.zeros(n, np.int64),
        "t": np.zeros(n),
    }
    return Answers(**{**given, **{name: np.asarray(column) for name, column in columns.items()}})


def votes_of(*votes) -> Votes:
    """Votes as (request, label, annotator), a second apart."""
    columns = np.array(votes, np.int64).reshape(-1, 3).T
    return Votes(*columns, np.arange(1.0, len(votes) + 1))


def judged_of(predictions, votes: Votes, rules: LabelRules | None = None, **columns):
    answers = answers_of(predictions, **columns)
    return judge(answers, answers.of(0), adjudicate(votes, rules or LabelRules()))


def table(*rows) -> Confusion:
    """A table of counts, labels down."""
    counts = np.array(rows)
    label, predicted = np.nonzero(counts)
    return Confusion(label, predicted, counts[label, predicted])


# ── what votes say ─────────────────────────────────────────────────────────────────────────────────────────────────

VOTES = votes_of((0, 7, 0), (0, 7, 1), (0, 3, 2), (1, 7, 0), (1, 3, 1), (2, 3, 2))


def right(rules: LabelRules, expert: int = NONE) -> dict[int, list[float]]:
    """How right 3 and 7 are of each request that counts."""
    truth = adjudicate(VOTES, rules, expert)
    says = [truth.right(truth.request, np.full(len(truth.request), label)) for label in (3, 7)]
    return dict(zip(truth.request.tolist(), np.array(says).T.tolist(), strict=True))


def test_the_majority_decides_and_a_tie_is_disputed_and_left_out():
    assert right(LabelRules()) == {0: [0, 1], 2: [1, 0]}
    assert adjudicate(VOTES, LabelRules()).disputed.tolist() == [1]


def test_any_takes_what_anybody_said_and_soft_takes_shares():
    assert right(LabelRules("any")) == {0: [1, 1], 1: [1, 1], 2: [1, 0]}
    soft = right(LabelRules("soft"))
    assert soft[0] == pytest.approx([1 / 3, 2 / 3])
    assert soft[1] == [0.5, 0.5]


def test_an_expert_decides_alone_and_at_once():
    assert right(LabelRules("expert:x", 2), expert=2) == {0: [1, 0], 2: [1, 0]}
    assert right(LabelRules("expert:nobody"), expert=NONE) == {}


def test_a_request_counts_from_the_vote_that_made_enough():
    truth = adjudicate(VOTES, LabelRules("majority", 3))
    assert truth.request.tolist() == [0]
    assert truth.t.tolist() == [3.0]
    assert truth.waiting == 2


def test_no_answer_is_wrong_and_an_error_is_not_judged():
    votes = votes_of((0, 1, 0), (1, 1, 0), (2, 1, 0))
    judged = judged_of([NONE, 1, NONE], votes, status=[200, 200, 503])
    assert judged.right.tolist() == [0.0, 1.0]
    assert judged.request.tolist() == [0, 1]


def test_coverage_counts_what_is_labelled_and_how_long_it_took():
    judged = judged_of([1, 1, 1, 1], votes_of((0, 1, 0), (3, 1, 0)))
    coverage = coverage_of(4, judged.delay)
    assert (coverage.share, coverage.delay_p50) == (0.5, 1.5)
    assert coverage_of(4, judged.delay[:0]).delay_p95 is None
    assert coverage_of(0, judged.delay[:0]).share is None


# ── textbooks ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_kappa_is_that_of_fleiss_levin_and_paik():
    """Statistical Methods for Rates and Proportions, 3rd ed. (2003), table 18.1 and section 18.1: 0.68 with a deviation of 0.087."""
    kappa = cohen_kappa(table([75, 1, 4], [5, 4, 1], [0, 0, 10]))
    assert kappa.value == pytest.approx(0.23 / 0.34)
    assert (kappa.interval[1] - kappa.interval[0]) / 2 / 1.959964 == pytest.approx(0.087, abs=0.001)
    assert kappa.largest == pytest.approx((0.80 + 0.05 + 0.10 - 0.66) / 0.34)


def test_a_frequent_class_pulls_down_kappa_and_not_ac1():
    """Gwet (2002), Kappa statistic is not satisfactory: 125 subjects, of which 118 are normal to both."""
    paradox = table([118, 5], [2, 0])
    assert cohen_kappa(paradox).value == pytest.approx(-0.0234, abs=5e-5)
    assert gwet_ac1(paradox).value == pytest.approx(0.9408, abs=5e-5)


def test_the_paradox_of_feinstein_and_cicchetti():
    """High agreement but low kappa, I (1990), tables 1 and 2: the same agreement of 0.85, a kappa of 0.70 and of 0.32."""
    even, skewed = table([40, 9], [6, 45]), table([80, 10], [5, 5])
    assert [round(cohen_kappa(one).value, 2) for one in (even, skewed)] == [0.70, 0.32]
    assert gwet_ac1(skewed).value == pytest.approx((0.85 - 0.21875) / 0.78125)


def test_alpha_is_that_of_krippendorff():
    """Computing Krippendorff's Alpha-Reliability (2011), section C: four observers, twelve units, some values missing: 0.743."""
    observers = (
        "123321412...",
        "1233224125.3",
        ".3332342251.",
        "12332441251.",
    )
    votes = [
        (unit, int(value), who)
        for who, values in enumerate(observers)
        for unit, value in enumerate(values)
        if value != "."
    ]
    assert krippendorff_alpha(tally_of(votes_of(*votes))) == pytest.approx(0.743, abs=5e-4)


def test_where_all_say_the_same_kappa_is_unknown_and_alpha_is_one():
    assert cohen_kappa(table([5])) is None
    assert gwet_ac1(table([5])) is None
    assert gwet_ac1(table([5]), classes=2).value == 1.0
    assert krippendorff_alpha(tally_of(votes_of((0, 1, 0), (0, 1, 1)))) == 1.0


# ── by other ways ──────────────────────────────────────────────────────────────────────────────────────────────────

PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), min_size=2, max_size=60)


@given(PAIRS)
def test_kappa_and_its_interval_are_those_of_the_dense_formula(pairs):
    votes = votes_of(*[(at, label, 0) for at, (label, _) in enumerate(pairs)])
    confusion = confusion_of(judged_of([said for _, said in pairs], votes))
    dense = np.zeros((5, 5))
    for label, said in pairs:
        dense[label, said] += 1 / len(pairs)
    by_row, by_column, observed = dense.sum(1), dense.sum(0), np.trace(dense)
    chance = by_row @ by_column
    kappa = cohen_kappa(confusion)
    if math.isclose(chance, 1):
        assert kappa is None
        return
    value = (observed - chance) / (1 - chance)
    variance = -((value - chance * (1 - value)) ** 2)
    for row, column in itertools.product(range(5), repeat=2):
        if row == column:
            variance += dense[row, row] * (1 - (by_row[row] + by_column[row]) * (1 - value)) ** 2
        else:
            variance += (1 - value) ** 2 * dense[row, column] * (by_column[row] + by_row[column]) ** 2
    half = 1.959963984540054 * math.sqrt(max(0, variance) / (1 - chance) ** 2 / len(pairs))
    assert kappa.value == pytest.approx(value, abs=NEAR)
    assert kappa.interval == pytest.approx((max(-1, value - half), min(1, value + half)), abs=1e-7)


@given(PAIRS)
def test_the_variance_of_ac1_is_that_of_gwets_closed_form(pairs):
    votes = votes_of(*[(at, label, 0) for at, (label, _) in enumerate(pairs)])
    p = np.zeros((5, 5))
    for label, said in pairs:
        p[label, said] += 1 / len(pairs)
    pi, q, pa = (p.sum(0) + p.sum(1)) / 2, 5, np.trace(p)
    pe = float((pi * (1 - pi)).sum()) / (q - 1)
    value = (pa - pe) / (1 - pe)
    of_cells = sum(p[k, m] * (1 - (pi[k] + pi[m]) / 2) ** 2 for k, m in itertools.product(range(5), repeat=2))
    braces = pa * (1 - pa) - 4 * (1 - value) * ((np.diag(p) * (1 - pi)).sum() / (q - 1) - pa * pe)
    braces += 4 * (1 - value) ** 2 * (of_cells / (q - 1) ** 2 - pe**2)
    half = 1.959963984540054 * math.sqrt(max(0, braces) / (1 - pe) ** 2 / len(pairs))
    ac1 = gwet_ac1(confusion_of(judged_of([said for _, said in pairs], votes)), classes=q)
    assert ac1.value == pytest.approx(value, abs=NEAR)
    assert ac1.interval == pytest.approx((max(-1, value - half), min(1, value + half)), abs=1e-7)


def left_out_by_hand(votes: dict[int, list[int]], predicted: list[int]) -> tuple[float, float]:
    """Leave out one vote after the other, and count the rest each time."""
    people, versions = [], []
    for request, labels in votes.items():
        person = version = 0.0
        for at, label in enumerate(labels):
            rest = Counter(labels[:at] + labels[at + 1 :])
            top = {one for one, count in rest.items() if count == max(rest.values())}
            person += (label in top) / len(top) / len(labels)
            version += (predicted[request] in top) / len(top) / len(labels)
        people.append(person)
        versions.append(version)
    return float(np.mean(people)), float(np.mean(versions))


@settings(max_examples=300)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=7), min_size=1, max_size=8),
    st.lists(st.integers(-1, 4), min_size=8, max_size=8),
)
def test_leaving_votes_out_in_columns_is_leaving_them_out_one_by_one(labels, predicted):
    tally = tally_of(
        votes_of(*[(at, one, who) for at, said in enumerate(labels) for who, one in enumerate(said)])
    )
    doubly = {at: said for at, said in enumerate(labels) if len(said) > 1}
    found = against_people(tally, np.arange(len(labels)), np.array(predicted[: len(labels)]))
    if not doubly:
        assert found is None
        assert people_of(tally).one_with_rest is None
        return
    person, version = left_out_by_hand(doubly, predicted)
    assert (found.person, found.version) == pytest.approx((person, version), abs=NEAR)
    assert people_of(tally).one_with_rest == pytest.approx(person, abs=NEAR)
    assert found.difference.difference == pytest.approx(version - person, abs=NEAR)


# ── two versions ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_versions_are_compared_on_what_both_answered_and_people_labelled():
    answers = answers_of([1, 1, 2, 1], [1, 2, 1], latency=[5, 5, 5, 5, 4, 9, 6])
    truth = adjudicate(votes_of((0, 1, 0), (1, 1, 0), (2, 1, 0), (3, 1, 0)), LabelRules())
    first, second = (judge(answers, answers.of(version), truth) for version in (0, 1))
    paired = compare(first, second)
    assert (paired.n, paired.first_only, paired.second_only, paired.p_value) == (3, 1, 1, 1.0)
    latency = compare_latency(answers, answers.of(0), answers.of(1))
    assert (latency.n, latency.difference_p50, latency.slower) == (3, 1.0, pytest.approx(2 / 3))
    assert compare(first, judge(answers, answers.of(7), truth)).difference is None
    assert compare_latency(answers, answers.of(0), answers.of(7)) is None


def test_what_people_took_who_saw_the_answer_is_counted_apart():
    answers = answers_of([1, 2, NONE])
    assert acceptance(
        answers, answers.of(0), votes_of((0, 1, 0), (1, 1, 0), (1, 2, 1), (2, 1, 0), (9, 1, 0))
    ) == (2, 3)


def test_the_surest_wrong_answers_come_first_and_unknown_confidence_last():
    judged = judged_of(
        [1, 2, 1, 1], votes_of(*[(at, 2, 0) for at in range(4)]), confidence=[0.5, 1.0, math.nan, 0.9]
    )
    answers = answers_of([1, 2, 1, 1], confidence=[0.5, 1.0, math.nan, 0.9])
    assert judged.request[surest_wrong(answers, judged, 3)].tolist() == [3, 0, 2]
    assert len(surest_wrong(answers, judged, 1)) == 1


# ── calibration ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_bins_hold_equally_many_and_equal_confidences_stay_together():
    sure = np.concatenate([np.linspace(0.01, 0.5, 50), np.full(50, 0.9)])
    found = calibration_of(sure, np.ones(100))
    assert [one.n for one in found.bins] == [10] * 5 + [50]
    assert found.bins[-1].confidence == pytest.approx(0.9)
    assert found.risks[-1].coverage == 1.0


@given(
    st.lists(
        st.tuples(st.sampled_from([0.1, 0.35, 0.5, 0.9, math.nan]), st.booleans()), min_size=1, max_size=80
    )
)
def test_calibration_is_that_of_one_by_one(answers):
    sure, was_right = np.array([one for one, _ in answers]), np.array([float(one) for _, one in answers])
    known = [(one, truth) for one, truth in answers if not math.isnan(one)]
    found = calibration_of(sure, was_right)
    if not known:
        assert found is None
        return
    assert found.n + found.left_out == len(answers)
    assert found.brier == pytest.approx(
        sum((one - truth) ** 2 for one, truth in known) / len(known), abs=NEAR
    )
    for one in found.bins:
        inside = [truth for sureness, truth in known if one.low <= sureness <= one.high]
        assert (one.n, one.right) == (len(inside), pytest.approx(sum(inside) / len(inside)))
    for point in found.risks:
        kept = [truth for sureness, truth in known if sureness >= point.confidence]
        assert (point.n, point.risk) == (len(kept), pytest.approx(1 - sum(kept) / len(kept), abs=NEAR))
    assert sum(one.n for one in found.bins) == found.n


# ── ten thousand pictures, half a million votes of people, fifteen published models ────────────────────────────────


@pytest.fixture(scope="module")
def cifar():
    folder = shared_data("cifar10h")
    counts, truth = (
        np.load(folder / "votes.npy").astype(np.int64),
        np.load(folder / "truth.npy").astype(np.int64),
    )
    with np.load(folder / "predictions.npz") as models:
        predictions = {name: models[name].astype(np.int64) for name in models}
    request, label = (np.repeat(each, counts.ravel()) for each in np.divmod(np.arange(counts.size), 10))
    votes = Votes(request, label, np.arange(len(request)), np.zeros(len(request)))
    return counts, truth, predictions, votes


def best_of(cifar) -> np.ndarray:
    _, truth, predictions, _ = cifar
    return max(predictions.values(), key=lambda said: (said == truth).mean())


def test_a_person_is_right_on_95_percent_the_plurality_on_99_and_the_best_model_on_97(cifar):
    counts, truth, _, votes = cifar
    tally, pictures = tally_of(votes), np.arange(10_000)
    person = votes_for(tally, pictures, truth) / tally.voters
    assert person.mean() == pytest.approx(0.952, abs=5e-4)
    assert person.mean() == pytest.approx((counts[pictures, truth] / counts.sum(1)).mean(), abs=NEAR)
    assert (
        adjudicate(votes, LabelRules()).label == truth[adjudicate(votes, LabelRules()).request]
    ).mean() == (pytest.approx(0.992, abs=1e-3))
    best = best_of(cifar)
    assert (best == truth).mean() == pytest.approx(0.971, abs=5e-4)
    against = against_people(tally, pictures, best)
    assert against.with_one == pytest.approx(0.934, abs=5e-4)
    assert against.n == 10_000


def test_agreement_on_real_votes_is_what_scikit_learn_says(cifar):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is an extra")
    counts, _, _, votes = cifar
    best = best_of(cifar)
    judged = judged_of(best, votes)
    clear = (counts == counts.max(1, keepdims=True)).sum(1) == 1
    label, said = counts.argmax(1)[clear], best[clear]
    assert np.array_equal(judged.label, label)
    confusion = confusion_of(judged)
    assert cohen_kappa(confusion).value == pytest.approx(metrics.cohen_kappa_score(label, said), abs=NEAR)
    dense = np.zeros((10, 10), np.int64)
    dense[confusion.label, confusion.predicted] = confusion.count
    assert np.array_equal(dense, metrics.confusion_matrix(label, said))


def test_people_on_real_votes_agree_as_a_dense_computation_says(cifar):
    counts, _, _, votes = cifar
    people = people_of(tally_of(votes))
    n = counts.sum(1)
    pairwise = (counts * (counts - 1)).sum(1) / (n * (n - 1))
    coincidences = (counts[:, :, None] * (counts[:, None, :] - np.eye(10)) / (n - 1)[:, None, None]).sum(0)
    by_label, total = coincidences.sum(0), coincidences.sum()
    alpha = 1 - (total - 1) * (total - np.trace(coincidences)) / (total**2 - (by_label**2).sum())
    assert people.pairwise == pytest.approx(pairwise.mean(), abs=NEAR)
    assert people.alpha == pytest.approx(alpha, abs=NEAR)
    some = {at: np.repeat(np.arange(10), counts[at]).tolist() for at in range(150)}
    few = tally_of(votes.where(votes.request < 150))
    person, version = left_out_by_hand(some, best_of(cifar).tolist())
    found = against_people(few, np.arange(150), best_of(cifar)[:150])
    assert (found.person, found.version) == pytest.approx((person, version), abs=NEAR)


def test_a_better_model_is_found_better_and_a_disaster_a_disaster(cifar):
    _, _, predictions, votes = cifar
    truth = adjudicate(votes, LabelRules())

    def gain(first: str, second: str):
        answers = answers_of(predictions[first], predictions[second])
        return compare(*(judge(answers, answers.of(version), truth) for version in (0, 1)))

    better = gain("resnet_basic_32", "resnet_basic_110")
    assert better.difference.interval[0] > 0
    assert better.p_value < 0.01
    disaster = gain("wrn_28_10_cutout16", "alexnet_tf_ben")
    assert disaster.difference.interval[1] < -0.13
    assert disaster.p_value < 1e-100
