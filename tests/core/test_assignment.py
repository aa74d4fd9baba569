"""Who is answered by the candidate: exact in share, monotone in the weight, another draw for another rollout."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployctl.core.assignment import Assignment, goes_to_candidate, key_hash, position

KEYS = [f"user-{number}" for number in range(100_000)]


@pytest.mark.parametrize("weight", [1, 5, 30, 50, 95])
def test_a_weight_is_that_share_of_distinct_callers(weight):
    chosen = sum(goes_to_candidate("digits-1-cafe00", key, weight) for key in KEYS)
    assert 100 * chosen / len(KEYS) == pytest.approx(weight, abs=0.3)


@given(st.text(), st.text(), st.floats(0, 100), st.floats(0, 100))
def test_raising_the_weight_only_adds_callers(salt, key, one, other):
    low, high = sorted((one, other))
    assert goes_to_candidate(salt, key, low) <= goes_to_candidate(salt, key, high)


@given(st.text(), st.text())
def test_nobody_at_zero_everybody_at_a_hundred(salt, key):
    assert not goes_to_candidate(salt, key, 0)
    assert goes_to_candidate(salt, key, 100)
    assert 0 <= position(salt, key) < 1


@given(st.text(), st.text(), st.floats(0, 100))
def test_a_caller_stays_where_the_weight_puts_it(salt, key, weight):
    assert goes_to_candidate(salt, key, weight) == goes_to_candidate(salt, key, weight)


@given(st.text(), st.text(), st.one_of(st.floats(0, 100), st.just(100.0)))
def test_it_is_the_same_draw_for_a_key_that_is_hashed_already(salt, key, weight):
    assert Assignment(salt, weight).takes(key_hash(key)) == goes_to_candidate(salt, key, weight)


def test_another_rollout_draws_other_callers():
    """The same few users must not be the first to meet every candidate."""
    first, second = (
        {key for key in KEYS[:20_000] if goes_to_candidate(salt, key, 5)}
        for salt in ("digits-1-a", "digits-2-b")
    )
    assert len(first & second) / len(first) == pytest.approx(0.05, abs=0.03)


def test_a_long_salt_and_bytes_that_are_no_text_are_keys_too():
    assert 0 <= position("x" * 500, "caf\udce9") < 1
