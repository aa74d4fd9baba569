"""The strict YAML reader: what words mean, what is refused, and where."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployctl.manifest.loader import MAX_BYTES, MAX_VALUES, BrokenYamlError, Mark, plain_value, read_yaml


def broken(text):
    with pytest.raises(BrokenYamlError) as caught:
        read_yaml(text if isinstance(text, bytes) else text.encode())
    return caught.value


def soft(text):
    return [(mark.line, mark.column, message) for mark, message in read_yaml(text.encode()).problems]


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("NO", "NO"),
        ("y", "y"),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("tRUE", "tRUE"),
        ("null", None),
        ("~", None),
        ("", None),
        ("Null", None),
        ("none", "none"),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-7", -7),
        ("+7", 7),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("1.10", 1.1),
        ("1.", 1.0),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("-.inf", -math.inf),
        ("12:30:45", "12:30:45"),
        ("2026-01-01", "2026-01-01"),
        ("5%", "5%"),
        ("30s", "30s"),
        ("=", "="),
        ("1e", "1e"),
        (".", "."),
        ("0o8", "0o8"),
    ],
)
def test_words_mean_what_yaml_1_2_says(written, means):
    value = read_yaml(f"key: {written}\n".encode()).value["key"]
    assert value == means
    assert type(value) is type(means)


def test_not_a_number_is_read_as_one():
    assert math.isnan(plain_value(".nan"))


def test_quoted_words_are_text():
    assert read_yaml(b"""[ "5", 'true', "null", "~", "" ]""").value == ["5", "true", "null", "~", ""]


def test_keys_are_text_whatever_they_look_like():
    assert read_yaml(b"on: 1\n1: 2\ntrue: 3\n").value == {"on": 1, "1": 2, "true": 3}


def test_positions_of_keys_and_values_are_known():
    tree = read_yaml(b"a:\n  b: [1, {c: d}]\n")
    assert tree.keys[("a", "b")] == Mark(2, 3)
    assert tree.values[("a", "b", 1, "c")] == Mark(2, 14)
    assert tree.at_value(("a", "b", 1, "c", "nowhere", 7)) == Mark(2, 14)
    assert tree.at_key(("a", "b", 0)) == Mark(2, 7)


def test_what_stands_in_the_file_is_kept_beside_its_meaning():
    tree = read_yaml(b"version: 1.10\n")
    assert tree.texts[("version",)] == "1.10"


def test_a_duplicate_key_names_the_line_of_the_first():
    assert soft("a: 1\nb: 2\na: {x: 1}\n") == [(3, 1, "duplicate key 'a' (first in line 1)")]


def test_the_first_of_two_equal_keys_stays():
    assert read_yaml(b"a: 1\na: {a: 2}\nb: 3\n").value == {"a": 1, "b": 3}


def test_the_same_key_in_two_mappings_is_no_duplicate():
    assert soft("- {a: 1}\n- {a: 1}\n") == []


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: &x 1\n", (1, 4), "anchors"),
        ("a: &x {b: 1}\n", (1, 4), "anchors"),
        ("&x a: 1\n", (1, 1), "anchors"),
        ("a: [b,\n *b]\n", (2, 2), "aliases"),
        ("*a : 1\n", (1, 1), "aliases"),
        ("a: !!int 5\n", (1, 4), "tags"),
        ("a: ! 5\n", (1, 4), "tags"),
        ("a: !!python/object/apply:os.system [ls]\n", (1, 4), "tags"),
        ("%TAG ! tag:x,2000:\n---\na: 1\n", (1, 1), "%TAG"),
        ("%YAML 1.1\n---\na: 1\n", (1, 1), "YAML 1.2"),
        ("a: {<<: {b: 1}}\n", (1, 5), "merge keys"),
        ("a: 1\n---\nb: 2\n", (2, 1), "second document"),
        ("? [a, b]\n: 1\n", (1, 3), "a key must be a word"),
        ("? {a: b}\n: {c: d}\n", (1, 3), "a key must be a word"),
        ('a: "\\uD800"\n', (1, 4), "surrogate"),
    ],
)
def test_what_makes_a_file_mean_two_things_is_a_problem(text, place, words):
    ((line, column, message),) = soft(text)
    assert (line, column) == place
    assert words in message


def test_a_quoted_merge_key_is_an_ordinary_key():
    assert read_yaml(b'{"<<": 1}').value == {"<<": 1}


def test_what_follows_a_refused_key_is_still_read():
    tree = read_yaml(b"? [a, [b]]\n: {x: 1}\nc: 2\n<<: [1, 2]\nd: *c\ne: 3\n")
    assert tree.value == {"c": 2, "d": None, "e": 3}
    assert tree.unread == {("d",)}
    assert [mark.line for mark, _ in tree.problems] == [1, 4, 5]


@pytest.mark.parametrize(
    ("text", "place"),
    [("\ta: 1\n", (1, 1)), ("a:\n\tb: 1\n", (2, 1)), ("a:\t1\n", (1, 3)), ("a: 1\t\n", (1, 5))],
)
def test_a_tab_is_an_error_at_its_place(text, place):
    error = broken(text)
    assert (error.mark.line, error.mark.column) == place
    assert "tab" in error.message


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (b"a: 1\nb: \xff\n", (2, 4), "UTF-8"),
        ("a: b\n".encode("utf-16"), (1, 1), "UTF-8"),
        ("é: ".encode() + b"\xc3", (1, 4), "UTF-8"),
        (b"a: 1\nb: \x00\n", (2, 4), "U+0000"),
        (b"a: [1, 2\nb: 3\n", (2, 2), "expected ',' or ']'"),
        (b"a: b: c\n", (1, 5), "mapping values are not allowed here"),
        (b'a: "\\UFFFFFFFF"\n', (1, 7), "names no character"),
        (b'a: "open', (1, 9), "end of stream"),
        (b"@: 1\n", (1, 1), "cannot start"),
    ],
)
def test_broken_yaml_ends_the_reading_at_its_place(text, place, words):
    error = broken(text)
    assert (error.mark.line, error.mark.column) == place
    assert words in error.message


def test_a_byte_order_mark_moves_no_column():
    tree = read_yaml(b"\xef\xbb\xbfa: 1\n")
    assert tree.value == {"a": 1}
    assert tree.keys[("a",)] == Mark(1, 1)


def test_windows_line_ends_are_read():
    tree = read_yaml(b"a: 1\r\nb:\r\n  c: 2\r\n")
    assert tree.value == {"a": 1, "b": {"c": 2}}
    assert tree.keys[("b", "c")] == Mark(3, 3)


def test_256_kib_are_read_and_one_byte_more_is_not():
    assert read_yaml(b"a: 1\n#" + b"x" * (MAX_BYTES - 6)).value == {"a": 1}
    assert "256 KiB" in broken(b"a: 1\n#" + b"x" * (MAX_BYTES - 5)).message


def test_twenty_levels_are_read_and_one_more_is_not():
    assert read_yaml(b"[" * 20 + b"]" * 20).problems == []
    error = broken("[" * 21 + "]" * 21)
    assert (error.mark, error.message) == (Mark(1, 21), "this is nested deeper than 20 levels")


@pytest.mark.parametrize("opening", ["[", "{", "- ", "? ", "{a: "])
def test_a_quarter_of_a_megabyte_of_depth_is_an_error_and_no_crash(opening):
    assert "deeper" in broken(opening * (MAX_BYTES // len(opening))).message


def test_the_number_of_values_is_bounded():
    assert "values" in broken("[" + "a," * MAX_VALUES + "]").message


def test_a_number_of_a_thousand_digits_is_left_as_text():
    assert read_yaml(b"a: " + b"9" * 5000).value == {"a": "9" * 5000}


def test_an_empty_file_has_no_value():
    assert read_yaml(b"# nothing\n").value is None


@given(
    st.binary(max_size=200)
    | st.text(alphabet="ab:-?[]{},&*!|>'\"%@`#~<0.x \n\t", max_size=80).map(str.encode)
)
def test_any_bytes_are_a_tree_or_one_broken_place(text):
    try:
        start = read_yaml(text).values[()]
    except BrokenYamlError as error:
        start = error.mark
    assert start >= Mark(1, 1)
