"""Intervals of shares are exact, and keep their promise; scipy and the papers' own examples say what they should be."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployctl.core.proportion import (
    binomial_tails,
    clopper_pearson,
    holm,
    mcnemar,
    paired_difference,
    share_of,
    wilson,
)

NEAR = 1e-9
COUNTS = st.integers(1, 3_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(COUNTS, st.sampled_from([0.9, 0.95, 0.999]))
def test_both_intervals_are_those_of_scipy(counts, level):
    stats = pytest.importorskip("scipy.stats", reason="comes with scikit-learn, an extra")
    hits, n = counts
    for ours, kind in ((clopper_pearson, "exact"), (wilson, "wilson")):
        theirs = stats.binomtest(hits, n).proportion_ci(level, kind)
        assert ours(hits, n, level) == pytest.approx((theirs.low, theirs.high), abs=NEAR)


@pytest.mark.parametrize("hits", [0, 1, 5_000, 970_000, 999_999, 1_000_000])
def test_a_million_answers_are_no_harder(hits):
    stats = pytest.importorskip("scipy.stats", reason="comes with scikit-learn, an extra")
    theirs = stats.binomtest(hits, 1_000_000).proportion_ci(0.95, "exact")
    assert clopper_pearson(hits, 1_000_000) == pytest.approx((theirs.low, theirs.high), abs=NEAR)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_exact_test_of_a_fair_coin(first, second):
    stats = pytest.importorskip("scipy.stats", reason="comes with scikit-learn, an extra")
    wanted = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(wanted, abs=NEAR)


def test_a_share_of_nothing_is_unknown_and_one_of_all_reaches_one():
    assert share_of(0, 0).share is None
    assert share_of(5, 5).wilson[1] == share_of(5, 5).exact[1] == 1.0
    assert share_of(0, 5).wilson[0] == share_of(0, 5).exact[0] == 0.0
    assert share_of(2.5, 5).exact is None


def test_a_paired_difference_is_that_of_bonett_and_price():
    """By their formula, with (b + 1)/(n + 2) and (c + 1)/(n + 2), from 2 and 9 discordant of 100."""
    gains = np.repeat([-1.0, 1.0, 0.0], [2, 9, 89])
    low, high = 3 / 102, 10 / 102
    half = 1.959963984540054 * ((low + high - (high - low) ** 2) / 102) ** 0.5
    found = paired_difference(gains)
    assert found.difference == pytest.approx(0.07)
    assert found.interval == pytest.approx((high - low - half, high - low + half))


def test_three_requests_without_a_difference_show_nothing():
    found = paired_difference(np.zeros(3))
    assert found.interval[0] < -0.5
    assert found.interval[1] > 0.5
    assert paired_difference(np.zeros(0)) is None


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_the_paired_interval_holds_the_difference_as_often_as_it_says(share):
    draw = np.random.default_rng(5)
    for n in (30, 300):
        gains = (draw.random((2_000, n)) < share).astype(float) - (draw.random((2_000, n)) < share / 2)
        intervals = [paired_difference(one).interval for one in gains]
        held = np.mean([low <= share / 2 <= high for low, high in intervals])
        assert held > 0.93


def test_slices_that_are_alike_are_rarely_called_different():
    draw = random.Random(7)
    wrong = 0
    for _ in range(400):
        slices = [(sum(draw.random() < 0.9 for _ in range(50)), 50) for _ in range(10)]
        wrong += any(one.differs for one in holm(slices, 0.9))
    assert wrong <= 400 * 0.05 + 10


def test_holm_steps_down_and_stops_at_the_first_that_is_not_different():
    slices = [(50, 100), (90, 100), (80, 100)]
    found = holm(slices, 0.9)
    assert [one.differs for one in found] == [True, False, True]
    assert found[0].interval == pytest.approx(clopper_pearson(50, 100, 1 - 0.05 / 3))
    assert found[2].interval == pytest.approx(clopper_pearson(80, 100, 1 - 0.05 / 2))
    assert found[1].interval == pytest.approx(clopper_pearson(90, 100))
    assert holm([], 0.9) == []


@given(COUNTS, st.floats(0.01, 0.99))
def test_tails_are_those_of_the_binomial(counts, share):
    stats = pytest.importorskip("scipy.stats", reason="comes with scikit-learn, an extra")
    hits, n = counts
    few, many = binomial_tails(hits, n, share)
    assert few == pytest.approx(stats.binom.cdf(hits, n, share), abs=NEAR)
    assert many == pytest.approx(stats.binom.sf(hits - 1, n, share), abs=NEAR)
