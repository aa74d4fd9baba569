"""What a human label may be: texts with bounds, and no later than now."""

from datetime import UTC, datetime, timedelta

import pytest

from deployctl.core.label import MAX_TEXT, Label, flaw, moment

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def test_a_label_of_now_has_no_flaw():
    assert flaw(Label("a", "7"), NOW) is None
    assert flaw(Label("é" * (MAX_TEXT // 2), "7", "eve", "2026-01-31T13:04:00.5+01:00"), NOW) is None


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (Label("", "7"), "id is empty"),
        (Label("a", ""), "label is empty"),
        (Label("é" * MAX_TEXT, "7"), "id is longer than 4096 bytes"),
        (Label("a", "x" * 5000), "label is longer"),
        (Label("a", "7", "x" * 5000), "annotator is longer"),
        (Label("a", "7", at="yesterday"), "at: 'yesterday' is no RFC 3339 time"),
        (Label("a", "7", at="2026-01-31T12:00:00"), "is no RFC 3339 time"),
        (Label("a", "7", at="2026-02-30T12:00:00Z"), "at: "),
        (Label("a", "7", at="2026-01-31T12:05:01Z"), "at: 2026-01-31T12:05:01Z is in the future"),
    ],
)
def test_a_flaw_is_said_in_words(label, words):
    assert words in flaw(label, NOW)


def test_a_moment_knows_its_zone():
    assert moment("2026-01-31t12:00:00z") == NOW
    assert moment("2026-01-31 14:00:00+02:00") == NOW
    assert moment("2026-01-31T12:00:00.123456789Z") - NOW < timedelta(seconds=1)
