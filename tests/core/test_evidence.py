"""The guarantee: under every null pair of rates the expected factor of a block is at most 1, so E rarely grows by chance."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from plans import LEARNED, canary

from deployctl.core.evidence import (
    HARM_GAPS,
    Evidence,
    confidence_sequence,
    growth,
    log_boost,
    log_factor,
    project,
)
from deployctl.core.outcome import Source
from deployctl.core.panel import Panel
from deployctl.core.plan import MetricRule
from deployctl.core.strategies import CanaryStep

EXACT = 1 + 1e-7
GRID = np.concatenate([[0.0, 1e-6, 1e-4, 1e-3], np.linspace(0.005, 0.995, 60), [0.999, 1.0]])

rates = st.floats(1e-4, 0.9) | st.sampled_from([1e-4, 0.005, 0.02, 0.05, 0.5, 0.9])
tolerances = st.tuples(st.floats(1.0, 2.0), st.floats(0.0, 0.2)) | st.sampled_from(
    [(1.0, 0.0), (1.1, 0.001), (1.0, 0.005)]
)
margins = st.floats(1e-4, 0.5)
gaps = st.sampled_from([*HARM_GAPS]) | st.floats(1e-5, 0.95)


def array(value: float) -> np.ndarray:
    return np.array([value])


def null_edge(relative: float, absolute: float, *, harm: bool) -> tuple[np.ndarray, np.ndarray]:
    """Null pairs (baseline rate, candidate rate): the edge, everything beyond it, and corners."""
    r0, r1 = (grid.ravel() for grid in np.meshgrid(GRID, GRID))
    edge = relative * GRID + absolute
    on_edge = edge <= 1
    r0, r1 = np.concatenate([r0, GRID[on_edge]]), np.concatenate([r1, edge[on_edge]])
    inside = r1 <= relative * r0 + absolute if harm else r1 >= relative * r0 + absolute
    return r0[inside], r1[inside]


def largest_expectation(n0: int, n1: int, p0: float, p1: float, relative: float, absolute: float) -> float:
    """The exact sum over everything that a block of n0 and n1 units can show, at the worst null pair of a grid."""
    harm = p1 > relative * p0 + absolute
    r0, r1 = null_edge(relative, absolute, harm=harm)
    total = np.zeros(len(r0))
    for k0, k1 in itertools.product(range(n0 + 1), range(n1 + 1)):
        counts = tuple(array(float(x)) for x in (n0, k0, n1, k1))
        factor = math.exp(log_factor(counts, array(p0), array(p1), array(relative), array(absolute)).item())
        ways = math.comb(n0, k0) * math.comb(n1, k1)
        total += ways * r0**k0 * (1 - r0) ** (n0 - k0) * r1**k1 * (1 - r1) ** (n1 - k1) * factor
    return float(total.max())


def per_unit_bound(n0: int, n1: int, p0: float, p1: float, relative: float, absolute: float) -> float:
    """What the expected factor of a large block cannot exceed, by the inequality of arithmetic and geometric means.

    A block of one kind of unit only gives that unit's ratio: (n, bad) = (1, 0) and (1, 1) of each arm at the block's share.
    """
    r0, r1 = null_edge(relative, absolute, harm=p1 > relative * p0 + absolute)
    w = n1 / (n0 + n1)
    logs = {}
    for k0, k1 in ((0, 0), (n0, 0), (0, n1)):
        counts = tuple(array(float(x)) for x in (n0, k0, n1, k1))
        logs[k0, k1] = log_factor(counts, array(p0), array(p1), array(relative), array(absolute)).item()
    # log factor = n1 a1 + n0 a0 with a = good; each bad unit adds b: three blocks give both differences.
    bad0, bad1 = (logs[n0, 0] - logs[0, 0]) / n0, (logs[0, n1] - logs[0, 0]) / n1
    q0, q1 = (q.item() for q in project(array(p0), array(p1), array(w), array(relative), array(absolute)))
    good0, good1 = math.log((1 - p0) / (1 - q0)), math.log((1 - p1) / (1 - q1))
    excess = (n0 * good0 + n1 * good1 - logs[0, 0]) / (n0 + n1)
    one0 = (1 - r0) * math.exp(good0) + r0 * math.exp(good0 + bad0)
    one1 = (1 - r1) * math.exp(good1) + r1 * math.exp(good1 + bad1)
    return float((w * one1 + (1 - w) * one0).max() * math.exp(-excess))


@given(rates, gaps, tolerances, st.integers(1, 6), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_no_null_makes_evidence_of_harm_grow_in_a_small_block(p0, gap, tolerance, n0, n1):
    relative, absolute = tolerance
    p1 = min(relative * p0 + absolute + gap, 0.995)
    assume(p1 > relative * p0 + absolute + 1e-6)
    assert largest_expectation(n0, n1, p0, p1, relative, absolute) <= EXACT


@given(rates, st.floats(0.0, 1.0), margins, st.integers(1, 6), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_no_null_makes_evidence_of_safety_grow_in_a_small_block(p0, part, margin, n0, n1):
    p1 = max(1e-4, part * min(p0 + margin - 1e-5, 0.995))
    assume(p1 < p0 + margin - 1e-6)
    assert largest_expectation(n0, n1, p0, p1, 1.0, margin) <= EXACT


@given(rates, gaps, tolerances, st.integers(1, 2000), st.integers(1, 2000))
@settings(max_examples=100, deadline=None)
def test_no_null_makes_evidence_of_harm_grow_in_a_large_block(p0, gap, tolerance, n0, n1):
    relative, absolute = tolerance
    p1 = min(relative * p0 + absolute + gap, 0.995)
    assume(p1 > relative * p0 + absolute + 1e-6)
    assert per_unit_bound(n0, n1, p0, p1, relative, absolute) <= EXACT


@given(rates, st.floats(0.0, 1.0), margins, st.integers(1, 2000), st.integers(1, 2000))
@settings(max_examples=100, deadline=None)
def test_no_null_makes_evidence_of_safety_grow_in_a_large_block(p0, part, margin, n0, n1):
    p1 = max(1e-4, part * min(p0 + margin - 1e-5, 0.995))
    assume(p1 < p0 + margin - 1e-6)
    assert per_unit_bound(n0, n1, p0, p1, 1.0, margin) <= EXACT


def test_at_the_edge_of_the_null_evidence_neither_grows_nor_shrinks():
    """The bound is reached: nothing is given away."""
    worst = per_unit_bound(3, 2, 0.1, 0.3, 1.0, 0.0)
    assert worst == pytest.approx(1.0, abs=1e-6)


# ── A/A: how often evidence passes 1/alpha by chance ───────────────────────────────────────────────────────────────

ALPHA, REPLICATES, BLOCKS = 0.05, 2000, 120
THREE_SIGMA = 3 * math.sqrt(ALPHA * (1 - ALPHA) / REPLICATES)


def steady(_block: int) -> tuple[float, float]:
    return 0.02, 0.05


def incidents(block: int) -> tuple[float, float]:
    """Both versions fail 20 points more for a while, again and again."""
    return 0.22 if block % 30 >= 20 else 0.02, 0.05


def ramp_and_drift(block: int) -> tuple[float, float]:
    """The weight climbs while everything gets worse: pooled counts would see harm (Simpson's paradox)."""
    return 0.01 + 0.10 * block / BLOCKS, (0.05, 0.1, 0.3, 0.5)[4 * block // BLOCKS]


def better_in_incidents(block: int) -> tuple[float, float]:
    return incidents(block)[0], (0.05, 0.1, 0.3, 0.5)[4 * block // BLOCKS]


def replicates_that_reach(
    threshold: float, scenario, real_share: float, tolerance: tuple[float, float]
) -> float:
    """The share of harmless rollouts, exactly as bad as is tolerated, whose evidence of harm ever reached this."""
    relative, absolute = tolerance
    random = np.random.default_rng([7, round(100 * real_share), round(1000 * absolute)])
    evidence = Evidence(
        np.array([True]), array(relative), array(absolute), array(0.02), replicates=REPLICATES, steps=4
    )
    reached = np.zeros(REPLICATES, dtype=bool)
    weight_before = None
    for block in range(BLOCKS):
        p0, weight = scenario(block)
        if weight_before not in {None, weight}:
            evidence.renew_at_step(np.array([True]))
        weight_before = weight
        n1 = 1 if block < 6 else 4 + block // 10
        share = min(weight * real_share, 0.95)
        n0 = np.maximum(random.poisson(n1 * (1 - share) / share, (REPLICATES, 1)), 1)
        k0 = random.binomial(n0, p0)
        k1 = random.binomial(n1, relative * p0 + absolute, (REPLICATES, 1))
        counts = tuple(np.asarray(x, dtype=float) for x in (n0, k0, np.full((REPLICATES, 1), n1), k1))
        evidence.add(counts, at=2.0 * block)
        reached |= evidence.log_evidence()[:, 0] >= math.log(threshold)
    return float(reached.mean())


@pytest.mark.parametrize("scenario", [steady, incidents, ramp_and_drift, better_in_incidents])
@pytest.mark.parametrize("real_share", [0.6, 1.0, 1.4])
def test_a_harmless_candidate_is_called_harmful_in_at_most_alpha_of_rollouts(scenario, real_share):
    assert replicates_that_reach(1 / ALPHA, scenario, real_share, (1.0, 0.0)) <= ALPHA + THREE_SIGMA


def test_a_candidate_exactly_as_bad_as_tolerated_is_called_harmful_in_at_most_alpha_of_rollouts():
    assert replicates_that_reach(1 / ALPHA, incidents, 1.0, (1.1, 0.001)) <= ALPHA + THREE_SIGMA


def test_a_candidate_exactly_at_the_margin_passes_in_at_most_beta_of_rollouts():
    random = np.random.default_rng(8)
    evidence = Evidence(
        np.array([False]), array(1.0), array(0.05), array(0.02), replicates=REPLICATES, steps=4
    )
    passed = np.zeros(REPLICATES, dtype=bool)
    for block in range(BLOCKS):
        p0, weight = incidents(block)[0], 0.3
        n1 = np.full((REPLICATES, 1), 8.0)
        n0 = np.maximum(random.poisson(n1 * (1 - weight) / weight), 1)
        k0, k1 = random.binomial(n0, p0), random.binomial(8, p0 + 0.05, (REPLICATES, 1))
        evidence.add((n0.astype(float), k0.astype(float), n1, k1.astype(float)), at=2.0 * block)
        passed |= evidence.log_evidence()[:, 0] >= math.log(1 / ALPHA)
    assert passed.mean() <= ALPHA + THREE_SIGMA


# ── boosted evidence: what exceeds 1/alpha is not needed ───────────────────────────────────────────────────────────


def of_a_random_split(n0: int, n1: int, bad: int) -> np.ndarray:
    """The chance that so many of the bad units fall on the candidate."""
    ways = [math.comb(bad, j) * math.comb(n0 + n1 - bad, n1 - j) for j in range(min(n1, bad) + 1)]
    return np.array(ways) / math.comb(n0 + n1, n1)


@given(
    st.integers(1, 20),
    st.integers(1, 8),
    st.integers(0, 20),
    st.lists(st.tuples(st.floats(1.0, 200.0), st.floats(0.0, 5.0)), min_size=1, max_size=5),
    st.floats(1.01, 1e4),
)
@settings(max_examples=200, deadline=None)
def test_a_boosted_block_is_worth_what_it_was_and_boosted_as_far_as_that_allows(n0, n1, bad, mixture, over):
    chance = of_a_random_split(n0, n1, min(bad, n0 + n1))
    j = np.arange(len(chance))
    tilted = np.array([mass * odds**j / (chance * odds**j).sum() for odds, mass in mixture]).sum(axis=0)
    then = 0.2 + tilted  # a part is not spent yet
    now = float((chance * then).sum())
    cap = now * over

    boost = math.exp(float(log_boost(chance, chance * then / cap)))

    kept = float((chance * np.minimum(boost * then, cap)).sum())
    assert boost >= 1
    assert kept == pytest.approx(now, rel=1e-9)
    if (then <= cap).all():
        assert boost == pytest.approx(1.0, abs=1e-9) or (boost * then > cap).any()
    # A better candidate has fewer of the bad units, and can gain nothing.
    fewer = chance * 0.5**j
    assert float((fewer / fewer.sum() * np.minimum(boost * then, cap)).sum()) <= now * (1 + 1e-9)


def test_evidence_that_has_reached_its_cap_is_boosted_no_more():
    chance = of_a_random_split(10, 2, 3)
    assert log_boost(chance, chance * 1.01) == 0.0


def split_at_random(random, replicates: int, cap: float, *, odds: float = 1.0) -> np.ndarray:
    """Evidence of harm, boosted and not, (rollouts, 2): how high each ever rose while bad units fell at random."""
    evidence = [
        Evidence(
            np.array([True]),
            array(1.0),
            array(0.0),
            array(0.05),
            replicates=replicates,
            robust=np.array([True]),
            caps=caps,
        )
        for caps in (array(cap), None)
    ]
    highest = np.zeros((replicates, 2))
    for block in range(150):
        n1 = 1 if block < 6 else 4
        n0 = np.maximum(random.negative_binomial(n1, 0.2, (replicates, 1)), 1)
        p0 = 0.25 if block % 30 > 20 else 0.05
        k0 = random.binomial(n0, p0)
        k1 = random.binomial(n1, min(odds * p0, 0.9), (replicates, 1))
        counts = tuple(np.broadcast_to(x, (replicates, 1)).astype(float) for x in (n0, k0, n1, k1))
        for at, one in enumerate(evidence):
            one.add(counts, at=2.0 * block)
            highest[:, at] = np.maximum(highest[:, at], np.exp(one.log_evidence()[:, 0]))
    return highest


def test_boosted_evidence_of_a_harmless_candidate_reaches_its_cap_in_at_most_alpha_of_rollouts():
    highest = split_at_random(np.random.default_rng(12), 2000, 1 / ALPHA)
    assert (highest[:, 0] >= 1 / ALPHA).mean() <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / 2000)


def test_boosted_evidence_is_never_less_and_finds_harm_sooner():
    highest = split_at_random(np.random.default_rng(13), 400, 1 / ALPHA, odds=1.3)
    assert (highest[:, 0] >= highest[:, 1] * (1 - 1e-9)).all()
    found = (highest >= 1 / ALPHA).mean(axis=0)
    assert found[0] > found[1]


def test_boosted_evidence_is_the_same_to_the_last_bit_when_its_blocks_were_foreseen():
    random = np.random.default_rng(14)
    rows = {
        "harm": np.array([True, True, False]),
        "relative": np.array([1.0, 1.1, 1.0]),
        "absolute": np.array([0.0, 0.001, 0.05]),
        "prior": np.full(3, 0.05),
    }
    one, other = (
        Evidence(**rows, robust=np.array([True, False, False]), caps=np.array([20.0, np.inf, np.inf]))
        for _ in range(2)
    )
    n0, n1 = random.integers(1, 60, (64, 1)), random.integers(1, 9, (64, 1))
    blocks = np.stack([n0, random.binomial(n0, 0.1), n1, random.binomial(n1, 0.2)]).astype(float)
    blocks = np.broadcast_to(blocks, (4, 64, 3))
    other.foresee(blocks)
    for at in range(64):
        for each in (one, other):
            each.add(tuple(blocks[:, at : at + 1]), at=1.0 * at)
        np.testing.assert_array_equal(one.log_evidence(), other.log_evidence())


def harm_of(plan, blocks: int) -> float:
    """Evidence of harm after so many blocks of one candidate unit, each of them bad."""
    panel = Panel(plan, LEARNED)
    panel.begin(0, 0.0)
    for at in range(blocks):
        panel.add(Source.OUTCOME, np.array([[19.0], [1.0]]), np.array([[1.0], [1.0]]), at * 0.1)
    return float(panel.harm().sum())


def test_where_pairs_share_in_the_decision_no_row_is_boosted():
    """Half of the mass is on pairs then: a row that has reached its limit does not end the rollout by itself."""
    exact = {"metrics": (MetricRule("error-rate", 0.0, 0.0, margin=0.005),)}
    of_arms = harm_of(canary(5, 10, 50, **exact), 4)
    with_pairs = harm_of(canary(CanaryStep(0.0, mirror=100.0), 5, 50, **exact), 4)
    assert 1 < with_pairs < of_arms


# ── power, and how rows live together ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("share_of_budget", [1.0, 0.4])
def test_a_dead_candidate_is_seen_within_four_canary_units(share_of_budget):
    """At 5 %, alone and as one of the default metrics; median over the traffic's own randomness."""
    random = np.random.default_rng(9)
    evidence = Evidence(np.array([True]), array(1.1), array(0.001), array(0.005), replicates=500)
    needed = np.full(500, 99)
    for unit in range(1, 9):
        n0 = np.maximum(random.poisson(19, (500, 1)), 1)
        k0 = random.binomial(n0, 0.005)
        one = np.ones((500, 1))
        evidence.add((n0.astype(float), k0.astype(float), one, one), at=0.0)
        seen = evidence.log_evidence()[:, 0] >= math.log(100 / share_of_budget)
        needed = np.where(seen, np.minimum(needed, unit), needed)
    assert np.median(needed) <= 4
    assert np.quantile(needed, 0.95) <= 7


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_rows_stacked_in_one_array_are_the_rows_one_by_one(seed):
    random = np.random.default_rng(seed)
    count = 6
    harm = np.array([True, False] * 3)
    relative = np.where(harm, 1.1, 1.0)
    absolute = np.where(harm, 0.001, 0.05)
    prior = random.uniform(0.001, 0.2, count)
    stacked = Evidence(harm, relative, absolute, prior, steps=4)
    alone = [
        Evidence(harm[i : i + 1], relative[i : i + 1], absolute[i : i + 1], prior[i : i + 1], steps=4)
        for i in range(count)
    ]
    for block in range(30):
        n0, n1 = (random.integers(0, 20, (1, count)).astype(float) for _ in range(2))
        counts = (n0, random.binomial(n0.astype(int), 0.1).astype(float), n1, np.minimum(n1, 1.0))
        stacked.add(counts, at=3.0 * block)
        for i, row in enumerate(alone):
            row.add(tuple(x[:, i : i + 1] for x in counts), at=3.0 * block)
    one_by_one = np.concatenate([row.log_evidence() for row in alone], axis=1)
    np.testing.assert_allclose(stacked.log_evidence(), one_by_one, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("missing", [0, 2])
def test_a_row_whose_block_lacks_an_arm_does_not_move(missing):
    evidence = Evidence(
        np.array([True, False]), np.array([1.0, 1.0]), np.array([0.0, 0.1]), np.array([0.02, 0.02])
    )
    before = evidence.log_evidence().copy()
    counts = [np.full((1, 2), 10.0) for _ in range(4)]
    counts[missing], counts[missing + 1] = np.zeros((1, 2)), np.zeros((1, 2))
    evidence.add(tuple(counts), at=0.0)
    np.testing.assert_array_equal(evidence.log_evidence(), before)
    assert not evidence.counts.any()


def test_evidence_begins_at_one_and_a_fresh_start_returns_it_there():
    evidence = Evidence(
        np.array([True, False]), np.array([1.0, 1.0]), np.array([0.0, 0.1]), np.array([0.02, 0.02])
    )
    np.testing.assert_allclose(evidence.log_evidence(), 0.0, atol=1e-12)
    ten, none = np.full((1, 2), 10.0), np.zeros((1, 2))
    evidence.add((ten, none, ten, ten), at=0.0)
    harm = evidence.log_evidence()[0, 0]

    evidence.start(np.array([False, True]), at=1.0)

    assert harm > math.log(1000)
    np.testing.assert_allclose(evidence.log_evidence()[0], [harm, 0.0], atol=1e-12)


def test_time_alone_and_a_new_step_never_create_evidence():
    """Spending the change-point budget moves mass, it makes none."""
    evidence = Evidence(np.array([True]), array(1.0), array(0.0), array(0.02), steps=9)
    none = np.zeros((1, 1))
    for hour in range(5):
        evidence.add((none, none, none, none), at=3600.0 * hour)
        evidence.renew_at_step(np.array([True]))
        assert evidence.log_evidence()[0, 0] == pytest.approx(0.0, abs=1e-9)


def test_a_fault_that_begins_late_is_still_seen():
    """Two thousand good units before it must not hide it: a part of the budget is kept for later starts."""
    evidence = Evidence(np.array([True]), array(1.1), array(0.001), array(0.01), steps=4)
    for block in range(100):
        evidence.add(
            (array(380.0)[None], array(4.0)[None], array(20.0)[None], array(0.0)[None]), at=2.0 * block
        )
    units = 0
    while evidence.log_evidence()[0, 0] < math.log(100):
        evidence.add(
            (array(76.0)[None], array(1.0)[None], array(4.0)[None], array(4.0)[None]), at=200.0 + units / 20
        )
        units += 4
        assert units <= 16


def test_an_incident_that_both_share_takes_nothing_from_the_evidence_of_safety():
    """A stake that is right for 2 % is far too large at 22 %: it follows what was just seen."""
    random = np.random.default_rng(15)
    kept = []
    for seconds in (0, 30):
        evidence = Evidence(np.array([False]), array(1.0), array(0.005), array(0.02), replicates=200)
        before = None
        for second in range(300 + seconds):
            if second == 300:
                before = evidence.log_evidence()[:, 0]
            rate = 0.02 if second < 300 else 0.22
            n = np.full((200, 1), 25.0)
            bad = (random.binomial(25, rate, (200, 1)).astype(float) for _ in range(2))
            evidence.add((n, next(bad), n, next(bad)), at=float(second))
        kept.append(np.median(evidence.log_evidence()[:, 0] - (0.0 if before is None else before)))
    assert kept[0] > 1
    assert kept[1] > -0.5


def test_growth_is_what_the_known_truth_earns_per_candidate_unit():
    """log(1/alpha) / growth is the bound that nothing beats: 15 candidate units for 2 % -> 22 % at 5 % and alpha 1 %."""
    assert math.log(100) / growth(0.02, 0.22, 0.05, 1.0, 0.0) == pytest.approx(15.1, abs=0.2)
    assert growth(0.02, 0.02, 0.5, 1.0, 0.005) > 0
    assert growth(0.02, 0.02, 0.5, 1.0, 0.0) == pytest.approx(0.0, abs=1e-9)


# ── intervals ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rate", [0.001, 0.02, 0.3, 0.97])
def test_a_confidence_sequence_covers_the_rate_at_all_times_at_once(rate):
    random = np.random.default_rng(11)
    alpha, streams = 0.05, 400
    missed = 0
    for _ in range(streams):
        bad = np.cumsum(random.random(2000) < rate)
        looks = np.unique(np.geomspace(1, 2000, 25).astype(int))
        missed += any(
            not low <= rate <= high
            for low, high in (confidence_sequence(int(n), int(bad[n - 1]), alpha) for n in looks)
        )
    assert missed / streams <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / streams)


@given(st.integers(0, 5000), st.floats(0, 1), st.floats(1e-4, 0.2))
@settings(deadline=None)
def test_an_interval_holds_its_own_estimate_and_lies_within_zero_and_one(n, part, alpha):
    bad = round(part * n)
    low, high = confidence_sequence(n, bad, alpha)
    assert 0 <= low <= high <= 1
    assert n == 0 or low - 1e-9 <= bad / n <= high + 1e-9


def test_nothing_known_is_every_rate():
    assert confidence_sequence(0, 0, 0.01) == (0.0, 1.0)
