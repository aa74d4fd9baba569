"""Outcomes become blocks in the order in which requests began, however they were reported."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployctl.core.metrics import METRICS
from deployctl.core.outcome import OUTCOME, Admission, Blocks, Source, scored
from deployctl.core.plan import MetricRule

# ── admission ──────────────────────────────────────────────────────────────────────────────────────────────────────


def outcomes(*starts: float, **columns) -> np.ndarray:
    rows = np.zeros(len(starts), OUTCOME)
    rows["start"] = starts
    rows["key"] = np.arange(len(starts))
    rows["status"] = 200
    for name, values in columns.items():
        rows[name] = values
    return rows


requests = st.lists(
    st.tuples(st.integers(0, 200), st.integers(0, 100), st.integers(0, 1)), min_size=1, max_size=60
)


@given(requests, st.lists(st.integers(1, 20), min_size=1, max_size=30))
@settings(deadline=None)
def test_whatever_the_batching_everything_comes_once_and_in_the_order_of_its_start(traffic, waits):
    """Two routers; each request has a start and takes its time, and a batch says from where on requests are in flight."""
    admission, given_out, now = Admission(), [], 0.0
    for router in (0, 1):
        given_out += list(admission.add(str(router), outcomes(), 0.0))
    pending = [(float(start), float(start + takes), router) for start, takes, router in traffic]
    while pending:
        now += waits[len(given_out) % len(waits)]
        for router in (0, 1):
            mine = [one for one in pending if one[2] == router]
            done = sorted((one for one in mine if one[1] <= now), key=lambda one: one[1])
            pending = [one for one in pending if one not in done]
            watermark = min((start for start, end, _ in mine if start <= now < end), default=now)
            added = admission.add(str(router), outcomes(*(one[0] for one in done)), watermark)
            assert all(start < watermark or router != 0 for start in added["start"])
            given_out += list(added)
    given_out += [*admission.forget("0"), *admission.forget("1")]

    starts = [one["start"] for one in given_out]
    assert starts == sorted(starts)
    assert sorted(starts) == sorted(float(start) for start, _, _ in traffic)


def test_a_quick_failure_waits_for_the_slow_answer_that_began_before_it():
    admission = Admission()
    assert not len(admission.add("r", outcomes(2.0, status=[500]), watermark=1.0))
    admitted = admission.add("r", outcomes(1.0), watermark=3.0)
    assert list(admitted["start"]) == [1.0, 2.0]


def test_what_began_at_the_watermark_itself_still_waits():
    admission = Admission()
    assert not len(admission.add("r", outcomes(1.0), watermark=1.0))
    assert len(admission.add("r", outcomes(), watermark=1.5)) == 1


def test_a_watermark_never_goes_back():
    admission = Admission()
    admission.add("r", outcomes(), watermark=5.0)
    assert len(admission.add("r", outcomes(4.0), watermark=1.0)) == 1


def test_a_lost_router_holds_nothing_back():
    admission = Admission()
    admission.add("lost", outcomes(), watermark=1.0)
    assert not len(admission.add("r", outcomes(2.0), watermark=9.0))
    assert len(admission.forget("lost")) == 1


# ── blocks ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def stream(
    count: int,
    seed: int,
    *,
    weight: float = 0.3,
    per_second: float = 400.0,
    splits: int = 1,
    keys: int = 10**9,
):
    """Columns, times, known and bad of a random stream; splits change in the middle, with stragglers of the old one."""
    random = np.random.default_rng(seed)
    time = np.arange(count) / per_second
    rows = outcomes(*time)
    rows["arm"] = random.random(count) < weight
    rows["key"] = random.integers(0, keys, count)
    rows["split"] = 1 + np.minimum(
        np.arange(count) * splits // count + (random.random(count) < 0.1), splits - 1
    )
    known = random.random((count, 2)) < 0.9
    return rows, time, known, random.random((count, 2)) < 0.3


def cut(columns, time, known, bad, *, at: list[int], by_key: bool = False) -> list[tuple]:
    """The blocks of a stream that is reported in pieces."""
    blocks = Blocks(Source.OUTCOME, 2, by_key)
    ends = sorted({*(min(end, len(columns)) for end in at), len(columns)})
    found = []
    for start, end in zip([0, *ends], ends, strict=False):
        piece = slice(start, end)
        found += blocks.add(columns[piece], time[piece], known[piece], bad[piece], at=0.0)
    return [(block.split, block.n.tolist(), block.bad.tolist()) for block in found]


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 300), max_size=20),
    st.booleans(),
    st.sampled_from([1, 3]),
)
@settings(deadline=None, max_examples=60)
def test_blocks_are_the_same_however_outcomes_were_batched(seed, ends, by_key, splits):
    whole = stream(300, seed, splits=splits, keys=40 if by_key else 10**9)

    pieces = cut(*whole, at=ends, by_key=by_key)

    for split in range(1, splits + 1):
        at_once = [block for block in cut(*whole, at=[], by_key=by_key) if block[0] == split]
        assert [block for block in pieces if block[0] == split] == at_once


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_a_block_never_straddles_a_split_and_counts_every_unit_once(seed):
    columns, time, known, bad = stream(400, seed, splits=3)
    blocks = cut(columns, time, known, bad, at=[50, 51, 300])
    for split in (1, 2, 3):
        of_split = columns["split"] == split
        counted = sum(np.array(n) for number, n, _ in blocks if number == split)
        for arm in (0, 1):
            there = known[of_split & (columns["arm"] == arm)].sum(axis=0)
            assert (np.asarray(counted)[arm] <= there).all() if np.ndim(counted) else True
    assert all(n[0][0] >= 0 and (np.array(n) >= np.array(wrong)).all() for _, n, wrong in blocks)


def sizes(weight: float, per_second: float) -> list[tuple[float, float]]:
    """(baseline units, candidate units) of each block of 2,000 units, everything known."""
    columns, time, known, bad = stream(2000, 5, weight=weight, per_second=per_second)
    return [(n[0][0], n[1][0]) for _, n, _ in cut(columns, time, known | True, bad, at=[])]


def test_the_first_six_blocks_hold_one_candidate_unit_and_the_next_four():
    candidate = [n1 for _, n1 in sizes(0.1, per_second=1.0)]
    assert candidate[:6] == [1] * 6
    assert set(candidate[6:20]) == {4}


def test_every_block_holds_both_arms():
    assert all(n0 >= 1 and n1 >= 1 for n0, n1 in sizes(0.9, per_second=1.0))


def test_once_64_candidate_units_were_seen_a_block_lasts_a_tenth_of_a_second():
    """At 1,000 a second that is a hundred units of both arms, some ten of them the candidate's."""
    blocks = sizes(0.1, per_second=1000.0)
    early = next(i for i, total in enumerate(np.cumsum([n1 for _, n1 in blocks])) if total >= 64)
    assert {n1 for _, n1 in blocks[6 : early + 1]} == {4}
    assert {n0 + n1 for n0, n1 in blocks[early + 1 :]} <= {101, 102}  # rounding of the start times


def test_a_step_begins_with_small_blocks_again():
    """So a fault that comes with the weight is judged at once."""
    columns, time, known, bad = stream(1200, 6, weight=0.1)
    columns["split"] = 1 + (np.arange(1200) >= 600)
    second = [n for split, n, _ in cut(columns, time, known | True, bad, at=[]) if split == 2]
    assert [n[1][0] for n in second[:6]] == [1] * 6


def test_a_block_is_closed_by_counts_and_never_by_what_the_units_were():
    columns, time, known, _ = stream(500, 7)
    one = cut(columns, time, known, np.zeros((500, 2), dtype=bool), at=[])
    other = cut(columns, time, known, np.ones((500, 2), dtype=bool), at=[])
    assert [n for _, n, _ in one] == [n for _, n, _ in other]


def test_one_retrying_caller_is_one_bad_unit_in_a_block():
    """Twenty failures of one key, a success among them, beside two good callers."""
    arm = [1] * 20 + [0, 1, 0]
    columns = outcomes(*range(23), arm=arm, key=[7] * 20 + [8, 9, 10], split=[1] * 23)
    bad = np.array([[True]] * 19 + [[False]] * 4)
    (block, *_) = Blocks(Source.OUTCOME, 1, by_key=True).add(
        columns, columns["start"].astype(float), bad | True, bad, at=0.0
    )
    for n, bad in ((block.n, block.bad), block.for_safety):
        assert (n[1, 0], bad[1, 0]) == (1, 1)


def test_by_key_any_failure_of_a_caller_makes_it_bad():
    arms, keys = [1, 1, 0], [7, 7, 8]
    columns = outcomes(0, 1, 2, arm=arms, key=keys, split=[1] * 3)
    for failing in (0, 1):
        bad = np.zeros((3, 1), dtype=bool)
        bad[failing] = True
        (block,) = Blocks(Source.OUTCOME, 1, by_key=True).add(
            columns, columns["start"].astype(float), bad | True, bad, at=0.0
        )
        assert block.n[:, 0].tolist() == [1, 1]
        assert block.bad[:, 0].tolist() == [0, 1]


def test_a_caller_that_always_fails_is_one_bad_unit_in_the_whole_rollout():
    """And one that never does is one unit of safety in a step, however long it goes on."""
    calls = 40
    keys, arms = [7, 8, 9, 10] * calls, [1, 1, 0, 0] * calls
    columns = outcomes(*range(4 * calls), arm=arms, key=keys, split=[1] * (2 * calls) + [2] * (2 * calls))
    bad = np.array([key in {7, 9} for key in keys])[:, None]
    blocks = list(
        Blocks(Source.OUTCOME, 1, by_key=True).add(
            columns, columns["start"].astype(float), bad | True, bad, at=0.0
        )
    )
    assert sum(block.bad for block in blocks)[:, 0].tolist() == [1, 1]
    assert sum(block.for_safety[1] for block in blocks)[:, 0].tolist() == [2, 2]  # each step asks afresh
    assert sum(block.for_safety[0] for block in blocks)[:, 0].tolist() == [4, 4]
    assert sum(block.n for block in blocks)[:, 0].min() > 10  # a caller who has not failed stays at risk


def test_a_caller_that_failed_with_one_version_is_no_harm_of_the_other():
    """It is moved over by a larger weight, and fails as it did before."""
    keys, arms = [7, 8, 9] * 20 + [7, 8, 9] * 20, [0, 0, 1] * 20 + [1, 0, 1] * 20
    columns = outcomes(*range(120), arm=arms, key=keys, split=[1] * 60 + [2] * 60)
    bad = np.array([key == 7 for key in keys])[:, None]
    blocks = Blocks(Source.OUTCOME, 1, by_key=True).add(
        columns, columns["start"].astype(float), bad | True, bad, at=0.0
    )
    assert sum(block.bad for block in blocks)[:, 0].tolist() == [1, 0]


def test_a_fault_that_comes_late_is_seen_in_callers_that_were_counted_long_ago():
    calls = 30
    keys, arms = [7, 8, 9, 10] * calls, [1, 1, 0, 0] * calls
    columns = outcomes(*range(4 * calls), arm=arms, key=keys, split=[1] * (4 * calls))
    late = np.arange(4 * calls) >= 3 * calls
    bad = (late & (np.array(arms) == 1))[:, None]
    blocks = Blocks(Source.OUTCOME, 1, by_key=True).add(
        columns, columns["start"].astype(float), bad | True, bad, at=0.0
    )
    assert sum(block.bad for block in blocks)[:, 0].tolist() == [0, 2]


# ── what an outcome counts for ─────────────────────────────────────────────────────────────────────────────────────

LATENCY = MetricRule("latency", 0.1, 5.0)
ERRORS = MetricRule("error-rate", 0.1, 0.001)


def test_a_client_that_left_is_slow_for_the_thresholds_it_had_passed_and_unknown_for_the_rest():
    """30 ms against 10, 20 and 50: that it would have passed 50 nobody knows. The same rule in both arms."""
    rows = outcomes(0, 1, arm=[0, 1], status=[499, 499], latency=[30.0, 38.0])
    known, bad = METRICS["latency"].read(rows, LATENCY, (10.0, 20.0, 50.0))
    assert known.tolist() == [[True, True, False]] * 2
    assert (bad & known).tolist() == [[True, True, False]] * 2


def test_a_client_that_left_says_nothing_of_errors_and_nulls():
    rows = outcomes(0, status=[499])
    for name in ("error-rate", "null-rate"):
        known, _ = METRICS[name].read(rows, ERRORS, ())
        assert not known.any()


@pytest.mark.parametrize("status", [400, 404, 413, 429])
def test_the_callers_own_mistakes_belong_to_no_arm(status):
    assert not len(scored(outcomes(0, status=[status])))


@pytest.mark.parametrize("status", [200, 499, 500, 504])
def test_answers_errors_and_clients_that_left_are_scored(status):
    assert len(scored(outcomes(0, status=[status]))) == 1


def test_a_time_out_is_a_bad_answer():
    _, bad = METRICS["error-rate"].read(outcomes(0, 1, status=[504, 200]), ERRORS, ())
    assert bad.tolist() == [[True], [False]]


def test_an_answer_without_a_prediction_is_null_over_all_requests():
    """Not over the answered ones: that would compare two groups that nobody randomised."""
    known, bad = METRICS["null-rate"].read(
        outcomes(0, 1, 2, status=[200, 500, 200], null=[1, 0, 0]), ERRORS, ()
    )
    assert known.all()
    assert bad.tolist() == [[True], [False], [False]]


def test_the_latency_tolerance_acts_on_the_candidate_only():
    """10 % + 5 ms: 16 ms of the candidate are 10 ms of the baseline."""
    rows = outcomes(0, 1, 2, arm=[0, 1, 1], latency=[10.5, 15.9, 16.2])
    _, bad = METRICS["latency"].read(rows, LATENCY, (10.0,))
    assert bad[:, 0].tolist() == [True, False, True]
