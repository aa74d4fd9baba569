"""How amounts are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployctl.manifest.quantities import (
    fraction,
    margin,
    percentage,
    positive_seconds,
    seconds,
    shown,
    size,
    unknown,
    weight,
)


@pytest.mark.parametrize(
    ("written", "length"),
    [("500ms", 0.5), ("5ms", 0.005), ("30s", 30), ("10m", 600), ("72h", 259200), ("1.5s", 1.5), ("0s", 0)],
)
def test_a_duration_is_a_number_and_a_unit(written, length):
    assert seconds(written) == length


@pytest.mark.parametrize(
    "written",
    [30, 30.0, "30", "1m30s", "30 s", "-5s", "s", "1d", "", None, True, [], "٣s", "1e3s", "30S", "9999999h"],
)
def test_anything_else_is_no_duration(written):
    with pytest.raises(ValueError, match=r"is no duration|longer than a year"):
        seconds(written)


def test_a_timeout_of_zero_is_refused():
    with pytest.raises(ValueError, match="longer than zero"):
        positive_seconds("0s")


@pytest.mark.parametrize(("written", "share"), [(5, 5), ("5%", 5), (12.5, 12.5), ("0.1%", 0.1), (100, 100)])
def test_a_weight_is_a_percentage_with_or_without_its_sign(written, share):
    assert weight(written) == share


@pytest.mark.parametrize(
    "written",
    [0, -1, 100.1, "0%", "101%", True, "5", "five", None, float("nan"), float("inf"), 10**400, {}, "%"],
)
def test_anything_else_is_no_weight(written):
    with pytest.raises(ValueError, match="weight"):
        weight(written)


def test_a_percentage_is_the_nearest_fraction():
    assert [percentage(written) for written in ("0.1%", "0.3%", "10%", "0%")] == [0.001, 0.003, 0.1, 0.0]


def test_a_bare_number_is_no_percentage_and_the_hint_says_how():
    with pytest.raises(ValueError, match=r"0\.5 is no percentage; write the percent sign, as in 0\.5%"):
        percentage(0.5)


@pytest.mark.parametrize("written", ["0%", "51%", "100%"])
def test_a_margin_stays_between_nothing_and_fifty_points(written):
    with pytest.raises(ValueError, match="margin"):
        margin(written)


@pytest.mark.parametrize("written", [0, 1, -0.1, "0.5", True, None, float("nan"), 10**400])
def test_a_fraction_lies_between_zero_and_one(written):
    with pytest.raises(ValueError, match="between 0 and 1"):
        fraction(written)


def test_an_unknown_name_is_compared_without_regard_to_case():
    assert unknown("key", "MINDWEL", ["minDwell", "bake"]) == (
        "unknown key 'MINDWEL' (did you mean 'minDwell'? known: bake, minDwell)"
    )
    assert unknown("key", "zzz", ["bake"]) == "unknown key 'zzz' (known: bake)"


@given(st.recursive(st.none() | st.booleans() | st.text() | st.floats(), st.lists))
def test_a_shown_value_is_short_and_on_one_line(value):
    text = shown(value)
    assert len(text) <= 60
    assert text.isprintable()
    text.encode()


@pytest.mark.parametrize(
    ("written", "count"), [("64KiB", 65536), ("500MiB", 500 << 20), ("4GiB", 4 << 30), ("1.5GiB", 3 << 29)]
)
def test_a_size_is_a_number_and_a_binary_unit(written, count):
    assert size(written) == count


@pytest.mark.parametrize(
    "written", ["4GB", "4", 4, "", "GiB", "-1MiB", "0MiB", "1e3MiB", "4 GiB", "9999TiB", None, True]
)
def test_what_is_no_size_is_refused_with_an_example(written):
    with pytest.raises(ValueError, match="no size; "):
        size(written)
