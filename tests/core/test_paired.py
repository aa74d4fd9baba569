"""Evidence from pairs: exact under every null joint distribution, the same from scores and from counts, and quick."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import shared_data

from benchmarks.verdict import pairs
from benchmarks.verdict.pairs import Question, Votes
from benchmarks.verdict.rows import at_most
from deployctl.core.paired import CELLS, PairedPanel, growth
from deployctl.core.panel import FAIL, INCONCLUSIVE, PASS

EXACT = 1 + 1e-9
KINDS = len(CELLS)

tolerances = st.tuples(
    st.floats(0.1, 2.0) | st.sampled_from([0.0, 1.0, 1.1]),
    st.floats(0.0, 0.6) | st.sampled_from([0.0, 0.001]),
)
margins = st.floats(1e-4, 0.9)
pasts = st.lists(st.tuples(*[st.integers(0, 40)] * KINDS), max_size=6)
scores = st.floats(0.0, 1.0)


def panel(relative=1.0, absolute=0.0, margin=0.005, prior=0.05, components=1, steps=1, **more) -> PairedPanel:
    """Components alike, an equal share of alpha for each."""
    every = np.ones(components)
    given = {"alpha": 0.01, "beta": 0.05, "replicates": 1} | more
    opened = PairedPanel(
        relative * every,
        absolute * every,
        np.full((steps, components), margin),
        every / components,
        prior=prior * every,
        **given,
    )
    opened.begin(0, 0.0)
    return opened


def evidence(of: PairedPanel) -> np.ndarray:
    """Log of the e-values of the three rows (harm, fresh, whole) of the first component, (replicates, 3)."""
    return of._log_evidence()[:, :, 0]


def null_vertices(z: np.ndarray) -> list[np.ndarray]:
    """The corners of all distributions over these outcomes with a mean of z of at most 0: every null lies between them."""
    corners = [np.eye(len(z))[at] for at in range(len(z)) if z[at] <= 0]
    for up, down in itertools.product(np.flatnonzero(z > 0), np.flatnonzero(z <= 0)):
        chance = np.zeros(len(z))
        chance[up] = -z[down] / (z[up] - z[down])
        chance[down] = 1 - chance[up]
        corners.append(chance)
    return corners


def largest_expected_factor(factors: np.ndarray, z: np.ndarray) -> float:
    """Over all null joint distributions of the outcomes that these factors belong to."""
    return max((float(chance @ factors) for chance in null_vertices(z)), default=0.0)


@settings(max_examples=300)
@given(
    tolerance=tolerances, margin=margins, past=pasts, prior=st.floats(0.0, 1.0), wait=st.floats(0.0, 400.0)
)
def test_a_pair_gains_nothing_under_any_null_joint_distribution_whatever_the_past(
    tolerance, margin, past, prior, wait
):
    relative, absolute = tolerance
    judged = panel(relative, absolute, margin, prior, replicates=KINDS)
    for at, cells in enumerate(past):
        judged.add_cells(np.tile(np.array(cells)[:, None], (KINDS, 1, 1)), at * wait)
    now = len(past) * wait
    judged.add_cells(np.zeros((KINDS, 4, 1)), now)  # restarts that are due now are not the pair's doing
    before = evidence(judged)[0]
    judged.add_cells(np.eye(KINDS)[:, :, None], now)
    factors = np.exp(evidence(judged) - before)
    y0, y1 = CELLS.T
    assert largest_expected_factor(factors[:, 0], y1 - relative * y0 - absolute) <= EXACT
    z = margin - (y1 - (y0 if relative else 0.0))
    for row in (1, 2):
        assert largest_expected_factor(factors[:, row], z) <= EXACT


@settings(max_examples=200)
@given(
    tolerance=tolerances,
    margin=margins,
    pairs=st.lists(st.tuples(scores, scores), min_size=2, max_size=5),
    past=st.lists(st.tuples(scores, scores), max_size=8),
)
def test_scores_gain_nothing_under_any_null_joint_distribution(tolerance, margin, pairs, past):
    relative, absolute = tolerance
    judged = panel(relative, absolute, margin, replicates=len(pairs))
    known = np.ones((len(pairs), 1, 1), dtype=bool)
    for y0, y1 in past:
        judged.add(y0 * known, y1 * known, known, 0.0)
    before = evidence(judged)[0]
    y0, y1 = (np.array(column) for column in zip(*pairs, strict=True))
    judged.add(y0[:, None, None], y1[:, None, None], known, 0.0)
    factors = np.exp(evidence(judged) - before)
    assert largest_expected_factor(factors[:, 0], y1 - relative * y0 - absolute) <= EXACT
    z = margin - (y1 - (y0 if relative else 0.0))
    for row in (1, 2):
        assert largest_expected_factor(factors[:, row], z) <= EXACT


@given(tolerance=tolerances, margin=margins, past=pasts, step=st.integers(1, 3), at=st.floats(0.0, 1e6))
def test_restarts_and_steps_make_no_evidence(tolerance, margin, past, step, at):
    judged = panel(*tolerance, margin, steps=4)
    for cells in past:
        judged.add_cells(np.array(cells)[:, None], 0.0)
    before = evidence(judged)[0]
    judged.begin(step, at)
    judged.add_cells(np.zeros((4, 1)), at + 1e5)
    after = evidence(judged)[0]
    assert after[[0, 2]] == pytest.approx(before[[0, 2]], rel=1e-9, abs=1e-9)
    assert after[1] == pytest.approx(0.0, abs=1e-9)


@given(
    blocks=st.lists(
        st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=30),
        min_size=1,
        max_size=5,
    ),
    tolerance=tolerances,
)
def test_scores_of_0_and_1_and_their_counts_give_the_same_bits(blocks, tolerance):
    by_score, by_count = panel(*tolerance), panel(*tolerance)
    for at, block in enumerate(blocks):
        y0, y1, known = (np.array(column)[:, None] for column in zip(*block, strict=True))
        cells = [float((known & (y0 == a) & (y1 == b)).sum()) for a, b in CELLS]
        by_score.add(y0, y1, known, at * 20.0)
        by_count.add_cells(np.array(cells)[:, None], at * 20.0)
    assert (evidence(by_score) == evidence(by_count)).all()


def test_rollouts_side_by_side_have_the_bits_that_each_has_alone():
    rng = np.random.default_rng(4)
    y0, y1 = rng.random((2, 6, 3, 17, 2)).round(1)
    known = rng.random((6, 3, 17, 2)) < 0.8
    together = panel(1.1, 0.001, components=2, replicates=3)
    alone = [panel(1.1, 0.001, components=2) for _ in range(3)]
    for at in range(6):
        together.add(y0[at], y1[at], known[at], at * 25.0)
        for row, single in enumerate(alone):
            single.add(y0[at, row], y1[at, row], known[at, row], at * 25.0)
    for row, single in enumerate(alone):
        assert (together.harm()[row] == single.harm()[0]).all()
        assert (together.safe_log()[row] == single.safe_log()[0]).all()
        assert (together.whole_log()[row] == single.whole_log()[0]).all()


def test_what_is_not_known_counts_for_nothing_even_where_it_is_no_number():
    rng = np.random.default_rng(5)
    y0, y1 = rng.random((2, 12, 1))
    short, long = panel(), panel()
    short.add(y0, y1, np.ones((12, 1), dtype=bool), 1.0)
    gap = np.full((9, 1), np.nan)
    known = np.concatenate([np.ones((12, 1), dtype=bool), np.zeros((9, 1), dtype=bool)])
    long.add(np.concatenate([y0, gap]), np.concatenate([y1, gap]), known, 1.0)
    assert evidence(long) == pytest.approx(evidence(short))


@pytest.mark.parametrize("score", [-0.1, 1.1, math.nan])
def test_a_score_outside_0_to_1_is_refused_and_changes_nothing(score):
    judged = panel()
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        judged.add(np.array([[0.0]]), np.array([[score]]), np.array([[True]]), 50.0)
    assert (evidence(judged) == evidence(panel())).all()


def test_a_block_without_units_changes_nothing():
    judged = panel(components=2)
    judged.add(*np.zeros((2, 0, 2)), np.zeros((0, 2), dtype=bool), 1.0)
    assert judged.harm() == pytest.approx(np.full((1, 2), 0.5))
    assert judged.results().tolist() == [INCONCLUSIVE]


def test_counts_below_0_are_refused():
    with pytest.raises(ValueError, match="at least 0"):
        panel().add_cells(np.array([[3.0], [-1.0], [0.0], [0.0]]), 1.0)


def test_shares_of_more_than_all_of_alpha_are_refused():
    with pytest.raises(ValueError, match=r"add up to 1\.2"):
        PairedPanel(
            *np.ones((2, 2)), np.ones((1, 2)), np.full(2, 0.6), alpha=0.01, beta=0.05, prior=np.ones(2)
        )


def test_a_worse_candidate_fails_an_equal_one_passes_and_silence_is_neither():
    judged = panel(replicates=3)
    cells = np.array([[900, 60, 5, 35], [1500, 1, 1, 60], [0, 0, 0, 0]], dtype=float)[..., None]
    for at in range(2):
        judged.add_cells(cells / 2, at * 10.0)
    assert judged.results().tolist() == [FAIL, PASS, INCONCLUSIVE]


def test_a_step_that_asks_for_nothing_is_never_passed():
    judged = PairedPanel(
        *np.ones((1, 1)),
        np.zeros(1),
        np.array([[np.nan]]),
        np.ones(1),
        alpha=0.01,
        beta=0.05,
        prior=np.ones(1),
        whole=np.array([0.1]),
    )
    judged.begin(0, 0.0)
    judged.add_cells(np.array([[5000.0], [0.0], [0.0], [0.0]]), 1.0)
    assert judged.results().tolist() == [INCONCLUSIVE]
    assert judged.whole_log()[0, 0] > math.log(20)


def test_a_step_that_begins_asks_for_safety_afresh_and_forgets_no_harm():
    judged = panel(steps=3)
    for _ in range(4):
        judged.add_cells(np.array([[1000.0], [2.0], [2.0], [50.0]]), 1.0)
    assert judged.results().tolist() == [PASS]
    harm = judged.harm()
    judged.begin(1, 2.0)
    assert judged.results().tolist() == [INCONCLUSIVE]
    assert judged.harm() == pytest.approx(harm)
    judged.add_cells(np.array([[900.0], [90.0], [0.0], [0.0]]), 3.0, of_step=False)
    assert judged.safe_log() == pytest.approx(0.0)
    assert judged.results().tolist() == [FAIL]


def test_the_last_step_asks_for_the_whole_rollouts_margin_too():
    judged = panel(margin=0.1, whole=np.array([0.001]))
    judged.add_cells(np.array([[200.0], [0.0], [0.0], [0.0]]), 1.0)
    assert judged.safe_log()[0, 0] > math.log(20) > judged.whole_log()[0, 0]
    assert judged.results().tolist() == [INCONCLUSIVE]


def test_rollouts_that_ended_can_be_given_up_without_changing_the_others():
    rng = np.random.default_rng(6)
    blocks = rng.integers(0, 5, (8, 4, 4, 1)).astype(float)
    both, kept = panel(replicates=4), panel(replicates=4)
    which = np.array([True, False, True, False])
    for at, block in enumerate(blocks):
        both.add_cells(block, at * 20.0)
        if at == 4:
            kept.keep(which)
        kept.add_cells(block[which] if at >= 4 else block, at * 20.0)
    assert (both.harm()[which] == kept.harm()).all()
    assert (both.safe_log()[which] == kept.safe_log()).all()


@given(w=st.floats(0.0, 0.5), b=st.floats(0.0, 0.5))
def test_growth_without_a_tolerance_is_that_of_the_discordant_pairs(w, b):
    """McNemar: the tilted coin over a fair one (relative entropy), as far as a stake may go."""
    nats, stake = growth(np.array([1 - w - b, w, b, 0.0]), relative=1.0, bound=0.0, harm=True)
    if w <= b:
        assert (nats, stake) == (0.0, 0.0)
        return
    best = min((w - b) / (w + b), 0.98)
    assert nats == pytest.approx(w * math.log1p(best) + b * math.log1p(-best), rel=1e-4, abs=1e-12)


@pytest.mark.parametrize(
    ("versions", "end", "limit"),
    [
        (("wrn_28_10_cutout16", "alexnet_tf_ben"), FAIL, 160),
        (("resnet_basic_32", "wrn_28_10_cutout16"), PASS, 430),
    ],
)
def test_a_few_hundred_peoples_labels_are_enough_whatever_their_order(versions, end, limit):
    votes = Votes(shared_data("cifar10h"))
    truth = votes.truth(*versions)
    question = Question(prior=float(truth[2] + truth[3]))
    kinds = votes.orders(np.random.default_rng(11), versions, 200, 4_000)
    ours = pairs.needed(kinds, question, end)
    assert np.isfinite(ours).all()
    assert ours.mean() <= limit
    assert ours.mean() <= 1.4 * pairs.needed_by_oracle(kinds, truth, question, end).mean()


def test_versions_that_err_alike_are_told_apart_by_people_no_oftener_than_promised():
    votes, rng = Votes(shared_data("cifar10h")), np.random.default_rng(12)
    versions = ("resnet_basic_32", "wrn_28_10_cutout16")
    truth = votes.truth(*versions)
    question = Question(prior=float(truth[2] + truth[3]))
    null = pairs.swapped(rng, votes.orders(rng, versions, 600, 1_500, again=True))
    at_margin = pairs.worsened(rng, null, float(truth[0]), question.margin)
    assert np.isfinite(pairs.needed(null, question, FAIL)).mean() <= at_most(0.01, 600)
    assert np.isfinite(pairs.needed(at_margin, question, PASS)).mean() <= at_most(0.05, 600)


@pytest.mark.parametrize(
    ("p0", "p1", "mended", "limit"),
    [(0.05, 0.07, 0.05, 1 / 4), (0.1, 0.12, 0.05, 1 / 4), (0.05, 0.08, None, 1.1)],
)
def test_pairs_need_far_fewer_requests_where_versions_agree_and_no_more_where_they_do_not(
    p0, p1, mended, limit
):
    truth = pairs.joint(p0, p1, mended=mended)
    kinds = pairs.drawn(np.random.default_rng(13), truth, 100, 20_000)
    question = Question(prior=p0, per_second=50.0, block=4)
    two_sample = pairs.needed_by_two_samples(kinds, question)
    assert np.median(pairs.needed(kinds, question, FAIL)) <= limit * np.median(two_sample)


@pytest.mark.parametrize(
    ("budget", "rate", "end"), [(0.05, 0.1, FAIL), (0.01, 0.03, FAIL), (0.05, 0.02, PASS)]
)
def test_a_budget_without_a_baseline_is_judged_near_the_bernoulli_bound(budget, rate, end):
    question = Question(relative=0.0, absolute=budget, margin=budget, prior=budget)
    truth = np.array([1 - rate, rate, 0.0, 0.0])
    kinds = pairs.drawn(np.random.default_rng(14), truth, 200, 4_000)
    bernoulli = rate * math.log(rate / budget) + (1 - rate) * math.log((1 - rate) / (1 - budget))
    bound = math.log(pairs.threshold(end)) / bernoulli
    assert pairs.bound_on_units(truth, question, end) == pytest.approx(bound, rel=1e-4)
    assert pairs.needed(kinds, question, end).mean() <= 1.6 * bound


def test_a_candidate_that_always_fails_is_seen_within_a_dozen_pairs():
    kinds = np.full((1, 20), pairs.ONLY_CANDIDATE, dtype=np.int8)
    assert pairs.needed(kinds, Question(), FAIL)[0] <= 12


def test_a_fault_that_begins_late_is_still_seen():
    rng = np.random.default_rng(15)
    good, bad = pairs.joint(0.07, 0.07, mended=0.2), pairs.joint(0.07, 0.2, mended=0.2)
    kinds = np.concatenate([pairs.drawn(rng, good, 100, 1_000), pairs.drawn(rng, bad, 100, 1_000)], axis=1)
    units = pairs.needed(kinds, Question(prior=0.07), FAIL) - 1_000
    assert np.median(units) <= 250
    assert np.isfinite(units).all()


def test_scores_with_little_noise_are_judged_sooner_than_the_same_means_in_black_and_white():
    """A score's spread is what tells: the same mean difference as bad-or-not needs many times the units."""
    rng = np.random.default_rng(16)
    scored, counted = panel(), panel()
    known = np.ones((20, 1), dtype=bool)
    for at in range(30):
        y0 = rng.uniform(0.3, 0.5, (20, 1))
        y1 = np.clip(y0 + rng.normal(0.02, 0.05, (20, 1)), 0, 1)
        scored.add(y0, y1, known, at)
        counted.add(rng.random((20, 1)) < y0, rng.random((20, 1)) < y1, known, at)
    assert scored.results().tolist() == [FAIL]
    assert counted.results().tolist() != [FAIL]
