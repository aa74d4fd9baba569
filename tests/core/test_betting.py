"""Bets on one arm, on scores: none of them may gain, in expectation, while its null holds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployctl.core.betting import Limits, RouteCheck, log_score_factor
from deployctl.core.evidence import log_conditional_factor, project

RATES = st.floats(0.001, 0.6)


def binomial(n: int, p: float) -> np.ndarray:
    return np.array([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])


@given(bound=RATES, share=st.floats(0.0, 1.0), n=st.integers(1, 30))
def test_a_limit_gains_nothing_from_a_rate_at_or_below_it(bound, share, n):
    expected = 0.0
    for bad, chance in enumerate(binomial(n, bound * share)):
        limits = Limits(np.array([bound]))
        limits.add(np.array([float(n)]), np.array([float(bad)]), 0.0)
        expected += chance * math.exp(limits.log_evidence()[0])
    assert expected <= 1 + 1e-7


def test_a_rate_well_over_its_limit_is_seen():
    limits = Limits(np.array([0.01]))
    limits.add(np.array([200.0]), np.array([12.0]), 1.0)
    assert limits.log_evidence()[0] > math.log(100)


def test_a_capped_limit_forgets_a_breach_that_is_over():
    limits = Limits(np.array([0.01]), cap=math.log(20) + 3)
    limits.add(np.array([5_000.0]), np.array([2_000.0]), 1.0)
    assert limits.log_evidence()[0] >= math.log(20)
    limits.add(np.array([5_000.0]), np.array([10.0]), 2.0)
    assert limits.log_evidence()[0] < math.log(20)


@given(weight=st.floats(0.01, 0.99), n=st.integers(1, 30))
def test_the_route_check_gains_nothing_from_the_weight_itself(weight, n):
    expected = 0.0
    for candidate, chance in enumerate(binomial(n, weight)):
        check = RouteCheck()
        check.add(n - candidate, candidate, weight)
        expected += chance * math.exp(check.log_evidence())
    assert expected == pytest.approx(1.0, abs=1e-9)


def test_an_arm_that_gets_half_of_its_share_is_noticed():
    check = RouteCheck()
    check.add(9_750, 250, 0.05)
    assert check.log_evidence() > math.log(100)


@given(n0=st.integers(1, 12), n1=st.integers(1, 8), p=RATES, odds=st.floats(1.1, 50.0))
def test_the_conditional_form_gains_nothing_at_equal_rates_whatever_the_rate(n0, n1, p, odds):
    expected = 0.0
    for k0, chance0 in enumerate(binomial(n0, p)):
        for k1, chance1 in enumerate(binomial(n1, p)):
            counts = (np.array(float(x)) for x in (n0, k0, n1, k1))
            expected += chance0 * chance1 * math.exp(float(log_conditional_factor(*counts, np.array(odds))))
    assert expected == pytest.approx(1.0, abs=1e-7)


@given(
    n0=st.integers(1, 12),
    n1=st.integers(1, 8),
    bad=st.integers(0, 20),
    odds=st.floats(1.1, 50.0),
)
def test_the_conditional_form_needs_only_a_random_split(n0, n1, bad, odds):
    """However many are bad and however they depend on each other: which arm they fall on is what was randomised."""
    total = min(bad, n0 + n1)
    ways = {
        k1: math.comb(n1, k1) * math.comb(n0, total - k1)
        for k1 in range(max(0, total - n0), min(n1, total) + 1)
    }
    expected = 0.0
    for k1, way in ways.items():
        counts = (np.array(float(x)) for x in (n0, total - k1, n1, k1))
        chance = way / math.comb(n0 + n1, total)
        expected += chance * math.exp(float(log_conditional_factor(*counts, np.array(odds))))
    assert expected == pytest.approx(1.0, abs=1e-7)


@given(
    p0=st.floats(0.01, 0.3),
    gap=st.floats(0.02, 0.5),
    r0=st.floats(0.0, 0.9),
    n0=st.integers(1, 40),
    n1=st.integers(1, 20),
)
def test_scores_are_judged_by_their_means_whatever_their_shape(p0, gap, r0, n0, n1):
    """Two-point scores with the null's means: the factor is linear in each, so its expectation is that of the means."""
    relative, absolute = 1.1, 0.01
    r1 = min(1.0, relative * r0 + absolute)
    p1 = min(0.95, relative * p0 + absolute + gap)
    w = n1 / (n0 + n1)
    q0, q1 = (float(q[0]) for q in project(*(np.array([x]) for x in (p0, p1, w, relative, absolute))))
    one1 = math.exp(log_score_factor(np.zeros(0), np.array([r1]), p0, p1, q0, q1))
    one0 = math.exp(log_score_factor(np.array([r0]), np.zeros(0), p0, p1, q0, q1))
    assert n1 * math.log(one1) + n0 * math.log(one0) <= 1e-7
