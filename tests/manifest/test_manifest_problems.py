"""Everything that is wrong with a manifest, at its place and in words that help."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from manifest_texts import (
    ENGINES,
    FULL,
    METRICS,
    WRONG_IN_TEN_WAYS,
    changed,
    loaded,
    place_of,
    problems,
    with_steps,
)

from deployctl.errors import InvalidError
from deployctl.manifest.load import load
from deployctl.manifest.problems import ManifestError


def test_ten_mistakes_are_told_at_once_in_the_order_of_the_file():
    assert problems(WRONG_IN_TEN_WAYS) == [
        "1:13: unknown apiVersion 'deployctl/v2' (did you mean 'deployctl/v1'? known: deployctl/v1)",
        "4:9: name: 'Digits' is not a name of a-z, 0-9 and -, at most 63 long",
        "7:13: listen: '127.0.0.1' is not HOST:PORT, such as 127.0.0.1:8080 (port 0: a free one)",
        "8:5: unknown key 'enginee' (did you mean 'engine'? known: batching, engine, limits, listen, maxBatchDelay, model, routers, routingKey, timeout, tls, tokens)",
        '9:23: version: must be text; put it in quotes: "1.10"',
        "10:3: missing key 'uri' in 'candidate'",
        "14:9: unknown key 'setWeigth' (did you mean 'setWeight'? known: mirror, pause, ramp, setWeight)",
        "16:9: weight 7 does not climb; the one before is 10",
        "18:7: duplicate key 'minDwell' (first in line 17)",
        "21:14: null-rate needs the section 'prediction': which output is the answer",
    ]


def test_the_error_is_one_line_per_problem_with_the_name_of_the_file():
    with pytest.raises(InvalidError) as caught:
        loaded(WRONG_IN_TEN_WAYS)
    lines = str(caught.value).splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("rollout.yaml:1:13: unknown apiVersion")
    assert caught.value.exit_code == 2


def test_broken_yaml_is_told_alone():
    assert problems("apiVersion: 1\nkind: [\n") == [
        "3:1: expected the node content, but found '<stream end>' (while parsing a flow node)"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1:1: the file is empty; `deployctl init` writes a manifest to start from"),
        ("- a\n", "1:1: a manifest is a mapping that starts with apiVersion, not a list"),
        ("\n hello\n", "2:2: a manifest is a mapping that starts with apiVersion, not 'hello'"),
    ],
)
def test_what_is_no_mapping_is_no_manifest(text, message):
    assert problems(text) == [message]


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ("engine: builtin", "engine: envoy", "envoy", "engine 'envoy'"),
        ("spec:\n", "spec:\n  limits: {rate: 5}\n", "limits:", "key 'limits'"),
        ("spec:\n", "spec:\n  limits: {body: 1}\n", "limits", "key 'limits'"),
        ("{name: null-rate}", "{name: null-rate, max: 5%}", "max:", "key 'max'"),
        ("    alpha: 0.01\n", "    skip: true\n", "skip", "key 'skip'"),
        ("read: argmax", "read: value", "value", "read: 'value'"),
        ("read: argmax", "labelTolerance: 0.1", "labelTolerance", "key 'labelTolerance'"),
    ],
)
def test_what_this_version_cannot_carry_out_is_refused_and_never_ignored(old, new, place, message):
    text = changed(old, new)
    (problem,) = problems(text)
    assert problem.startswith(f"{place_of(place, text)}: {message} is not supported yet")


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ("margin: 0.5%", "margn: 0.5%", "margn", "unknown key 'margn' (did you mean 'margin'?"),
        ("keepWarm: 1h", "keep_warm: 1h", "keep_warm", "unknown key 'keep_warm' (did you mean 'keepWarm'?"),
        ("kind: Rollout", "kind: [Rollout]", "[Rollout]", "kind: must be one of Rollout, not a list"),
        ("kind: Rollout", "kind: Service", "Service", "unknown kind 'Service' (known: Rollout)"),
        ("engine: builtin", "engine: bultin", "bultin", "unknown engine 'bultin' (did you mean 'builtin'?"),
        (
            "{name: null-rate}",
            "{name: nul-rate}",
            "nul-rate",
            "unknown metric 'nul-rate' (did you mean 'null-rate'?",
        ),
        (
            "onInconclusive: rollback",
            "onInconclusive: no",
            "no\n      bake",
            "unknown onInconclusive 'no' (known: hold",
        ),
        ('version: "2"', "version: 1.10", "1.10", 'version: must be text; put it in quotes: "1.10"'),
        ('version: "2"', "version: true", "true", 'version: must be text; put it in quotes: "true"'),
        ('version: "2"', 'version: ""', '""', "version: '' is not a version"),
        ('version: "2"', 'version: "a/b"', '"a/b"', "version: 'a/b' is not a version"),
        ("name: digits", "name: 7", "7\n", 'name: must be text; put it in quotes: "7"'),
        ("name: digits", "name: -digits", "-digits", "name: '-digits' is not a name"),
        ("name: digits", 'name: "digits\\n"', '"digits', "name: 'digits\\n' is not a name"),
        ("model: digits", "model: a/b", "a/b", "model: 'a/b' is not a model name"),
        ("127.0.0.1:8080", "8080", "8080", "listen: 8080 is not HOST:PORT"),
        ("127.0.0.1:8080", '":8080"', '":8080"', "listen: ':8080' is not HOST:PORT"),
        (
            "127.0.0.1:8080",
            "localhost:65536",
            "localhost:65536",
            "listen: 'localhost:65536' is not HOST:PORT",
        ),
        ("127.0.0.1:8080", '"::1:8080"', '"::1', "listen: '::1' is no host"),
        ("127.0.0.1:8080", '"[::x]:80"', '"[::x', "listen: '[::x]' is no IPv6 address"),
        ("header:X-User-Id", "cookie:user", "cookie:user", "routingKey: 'cookie:user' is not header:NAME"),
        ("header:X-User-Id", "header:a b", "header:a b", "routingKey: 'header:a b' is not header:NAME"),
        ("timeout: 500ms", "timeout: 0s", "0s", "timeout: must be longer than zero"),
        (
            "timeout: 500ms",
            "timeout: 500ms\n    maxBatchDelay: 500ms",
            "listen",
            "service: maxBatchDelay must be shorter than timeout",
        ),
        ("engine: builtin", "routers: 33", "33", "routers: at most 32, not 33"),
        ("engine: builtin", "routers: two", "two", "routers: "),
        ("engine: builtin", "tokens: [a]", "[a]", "tokens: must be text, not a list"),
        ("engine: builtin", 'tokens: ""', '""', "tokens: '' is not a path"),
        ("engine: builtin", "tls: {cert: a}", "tls", "missing key 'key' in 'tls'"),
        ("c" * 64, "c" * 63, '"sha256:c', "digest: 'sha256:cccc"),
        ("models/v2.onnx", '""', '""', "uri: '' is no path"),
        ("models/v2.onnx", '"a\\0b"', '"a\\0b"', "uri: 'a\\x00b' is no path"),
        ("models/v2.onnx", "file://box/v2.onnx", "file://box", "uri: 'file://box/v2.onnx' is no local file"),
        ('["0", "1", "2"]', "[0]", "0]", 'classes: must be text; put it in quotes: "0"'),
        ('["0", "1", "2"]', '["0", "0"]', '["0"', "classes: '0' is listed twice"),
        ('["0", "1", "2"]', "[]", "[]", "classes: the list is empty"),
        ('["0", "1", "2"]', "{a: b}", "{a: b}", "classes: must be a list, not a mapping"),
        (
            "confidenceBelow: 0.2",
            "confidenceBelow: 20%",
            "20%",
            "confidenceBelow: '20%' is not a number between 0 and 1",
        ),
        ("read: argmax", "read: text", "output: prob", "prediction: confidenceBelow needs read: argmax"),
        ("alpha: 0.01", "alpha: 1", "1\n    beta", "alpha: 1 is not a number between 0 and 1"),
        (
            "margin: 0.5%",
            "margin: 0.5",
            "0.5}",
            "margin: 0.5 is no percentage; write the percent sign, as in 0.5%",
        ),
        ("absolute: 5ms", "absolute: 5%", "5%}}", "absolute: '5%' is no duration"),
        ("absolute: 0.1%", "absolute: 5ms", "5ms}, margin", "absolute: '5ms' is no percentage"),
        ("absolute: 5ms", "absolute: 5", "5}}", 'absolute: must be text; put it in quotes: "5"'),
        (
            "{name: null-rate}",
            "null-rate",
            "null-rate",
            "metrics: must be a mapping of keys, not 'null-rate'",
        ),
        ("{name: null-rate}", "{name: latency}", "latency}\n    - {name: latency, tol", ""),
        ("minDwell: 30s", "minDwell:", "minDwell", "'minDwell' has no value; write one or leave it out"),
        ("- {name: null-rate}", "-", "-\n    - {name: lat", ""),
    ],
)
def test_a_mistake_is_told_once_at_its_place(old, new, place, message):
    text = changed(old, new)
    (problem,) = problems(text)
    if message:
        assert problem.startswith(f"{place_of(place, text)}: {message}")


@pytest.mark.parametrize(
    ("key", "section"),
    [("listen", "service"), ("version", "baseline"), ("output", "prediction")],
)
def test_a_missing_key_is_told_at_its_section(key, section):
    text = re.sub(rf"\b{key}: [^,\n]+,? ?", "", FULL, count=1)
    (problem,) = [one for one in problems(text) if "missing" in one]
    assert problem.endswith(f"missing key '{key}' in '{section}'")


def test_a_missing_baseline_is_an_error():
    text = re.sub(r"  baseline:.*\n", "", FULL)
    assert problems(text) == [
        "5:1: missing key 'baseline' in 'spec'; only a shadow goes without one (people decide then)"
    ]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("[]", "needs at least one weight below 100"),
        ("[100]", "needs at least one weight below 100"),
        ("[{setWeight: 5}, 5]", "weight 5 does not climb; the one before is 5"),
        ("[20, {ramp: {from: 10, to: 50, by: 20}}]", "weight 10 does not climb; the one before is 20"),
        ("[{pause: {}}, 5]", "a pause belongs to the step before it; there is none"),
        ("[5, 100, {pause: {}}]", "promotion follows setWeight: 100 at once"),
        ("[5, 100, 100]", "setWeight: 100 means promotion, so it is the last step"),
        ("[5, 100, 50]", "setWeight: 100 means promotion, so it is the last step"),
        ("[0, 5]", "setWeight: a weight is above 0 and at most 100 percent, not 0"),
        ("[5, fast]", "setWeight: 'fast' is no weight"),
        ("[5, {}]", "steps: a step is exactly one of setWeight, mirror, pause and ramp"),
        (
            "[5, {setWeight: 10, pause: {}}]",
            "steps: a step is exactly one of setWeight, mirror, pause and ramp",
        ),
        ("[5, {pause: 10m}]", "pause: must be a mapping of keys, not '10m'"),
        ("[5, {pause: {duration: 10}}]", "duration: 10 is no duration"),
        ("[{ramp: {from: 50, to: 10, by: 20}}]", "ramp: from 50 to 10 does not climb"),
        ("[{ramp: {from: 1, to: 50, by: 0.01}}]", "ramp: more than 200 steps"),
        ("[{ramp: {from: 1, to: 50}}]", "missing key 'by' in 'ramp'"),
        (
            "[{ramp: {from: 0.5, to: 50, by: 0.5}}, {ramp: {from: 50.4, to: 99, by: 0.4}}]",
            "steps; at most 200",
        ),
        ("[5, {mirror: {percentage: 100}}, 10]", "a mirror step goes before the first weight"),
        (
            "[{mirror: {percentage: 101}}, 5]",
            "percentage: a weight is above 0 and at most 100 percent, not 101",
        ),
        ("[{mirror: {percentage: 100}}]", "needs at least one weight below 100"),
        ("5", "steps: must be a list, not 5"),
    ],
)
def test_steps_must_climb_to_a_promotion_that_was_earned(steps, message):
    assert any(message in problem for problem in problems(with_steps(steps)))


@pytest.mark.parametrize(
    "analysis", ["", "  analysis: {}\n", "  analysis: {metrics: []}\n", "  analysis: {alpha: 0.1}\n"]
)
def test_nothing_is_promoted_unseen(analysis):
    text = FULL[: FULL.index("  analysis:")] + analysis
    (problem,) = problems(text)
    assert problem.endswith("no metrics under 'analysis': nothing is promoted unseen")


@pytest.mark.parametrize("metric", ["null-rate", "label-error-rate"])
def test_a_metric_of_answers_needs_to_know_the_answer(metric):
    text = FULL[: FULL.index("  prediction:")] + FULL[FULL.index("  strategy:") :]
    assert f"{metric} needs the section 'prediction'" in "\n".join(problems(text))


def test_one_label_with_two_digests_is_a_conflict():
    text = changed('candidate: {version: "2"', 'candidate: {version: "1"')
    (problem,) = problems(text)
    assert "version '1' is also the baseline's, with other bytes" in problem


def test_one_label_with_two_files_is_a_conflict():
    text = re.sub(r', digest: "[^"]*"', "", changed('candidate: {version: "2"', 'candidate: {version: "1"'))
    assert len(problems(text)) == 1
    assert loaded(text.replace("models/v2.onnx", "./models/v1.onnx")).candidate is not None


def test_what_stands_at_a_refused_alias_is_not_told_twice():
    text = changed("{name: null-rate}", "*same")
    assert problems(text) == [f"{place_of('*same', text)}: aliases are not read; write the value out"]


@pytest.mark.parametrize("key", ["strategy", "analysis", "candidate", "baseline", "prediction", "service"])
def test_a_section_with_nothing_in_it_is_told_once_and_not_taken_for_left_out(key):
    text = re.sub(rf"(?m)^  {key}:.*\n(    .*\n)*", f"  {key}:\n", FULL)
    assert [one for one in problems(text) if "no value" not in one] == []


def replaced(text, at, old_length, new):
    return text[:at] + new + text[at + old_length :]


WORDS = r"""null ~ -1 1e999 .nan 0x10 [] {} [ { } ] : & *a !!int 5% 5ms 100 " ' | > # ? <<: \uD800 true pause ramp"""
MORE = ("", " ", "\n", "\t", "- ", "---\n", "%YAML 1.1\n", "\x00", "\ud7ff", "é", "9" * 5000, "shadow: {}")
FRAGMENTS = st.sampled_from([*WORDS.split(), *MORE])


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(FULL)), st.integers(0, 30), FRAGMENTS | st.text(max_size=5)), max_size=4
    )
)
@example([(0, len(FULL), "")])
def test_a_mutilated_manifest_is_valid_or_a_manifest_error(changes):
    text = FULL
    for at, length, new in changes:
        text = replaced(text, min(at, len(text)), length, new)
    tell(text.encode("utf-8", "replace"))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(FULL) - 1), st.binary(min_size=1, max_size=3))
def test_mutilated_bytes_are_valid_or_a_manifest_error(at, new):
    whole = FULL.encode()
    tell(whole[:at] + new + whole[at + 1 :])


PLAIN = st.recursive(
    st.sampled_from(["null", "true", "1", "-5", "0.5", "5%", "10s", '"x"', "canary", "[]", "{}", ".nan"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(
            st.sampled_from(["setWeight", "pause", "name", "x", "from", "steps"]), inner, max_size=3
        ).map(lambda items: "{" + ", ".join(f"{key}: {value}" for key, value in items.items()) + "}")
    ),
    max_leaves=6,
)
VALUES = [
    match.span(1) for match in re.finditer(r"(?m)[\w]+: ?([^\s{},\[\]]+|\{[^{}]*\}|\[[^\[\]]*\])", FULL)
]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(VALUES), PLAIN), min_size=1, max_size=3))
def test_any_value_anywhere_is_valid_or_a_manifest_error(changes):
    text = FULL
    for (start, end), new in sorted(dict(changes).items(), reverse=True):
        text = text[:start] + new + text[end:]
    tell(text.encode())


def tell(text):
    """Read it; whatever is wrong has a place in the text and a message on one line."""
    problems = ()
    try:
        load(text, "f", engines=ENGINES, metrics=METRICS, base=Path("/"))
    except ManifestError as error:
        problems = error.problems or pytest.fail("an error without a problem")
    lines = len(text.decode("utf-8", "replace").splitlines()) + 1
    for problem in problems:
        assert 1 <= problem.line <= lines
        assert problem.column >= 1
        assert len(str(problem).splitlines()) == 1
        str(problem).encode()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{name: latency-p99}", "latency-p99 needs its limit: max: 500ms"),
        ("{name: latency-p99, max: soon}", "max: "),
        (
            "{name: latency-p99, max: 1s, margin: 1%}",
            "margin: latency-p99 with a limit is absolute and compares nothing",
        ),
    ],
)
def test_an_absolute_limit_is_a_duration_and_nothing_else(entry, message):
    assert any(message in problem for problem in problems(FULL.replace("{name: null-rate}", entry)))


SHADOW = """apiVersion: deployctl/v1
kind: Rollout
metadata: {name: phones}
spec:
  service: {listen: 127.0.0.1:0}
  candidate: {version: "1", uri: v1.onnx}
  prediction: {output: probabilities}
  strategy:
    shadow: {minLabels: 100}
  analysis:
    metrics:
    - {name: label-error-rate, max: 12%}
"""


def test_people_alone_are_a_manifest_without_a_baseline():
    manifest = loaded(SHADOW)
    assert manifest.baseline is None
    assert (manifest.strategy.percentage, manifest.strategy.min_labels) == (100.0, 100)
    assert manifest.metrics[0].limit == 0.12


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (", max: 12%}", "}", "label-error-rate needs a limit (max: …): without a baseline"),
        ("max: 12%", "max: 120%", "max: '120%'"),
        ("max: 12%", "max: 100%", "max: '100%' is no limit; write a percentage between 0% and 100%"),
        ("max: 12%", "max: 0%", "max: '0%' is no limit"),
        ("max: 12%", "max: 5s", "max: '5s'"),
        ("label-error-rate, max: 12%", "disagreement-rate, max: 5%", "there is nobody to disagree with"),
        ("label-error-rate, max: 12%", "latency, max: 5s", "an absolute limit is latency-p99"),
        (
            "minLabels: 100",
            "percentage: 101",
            "percentage: a weight is above 0 and at most 100 percent, not 101",
        ),
        ("minLabels: 100", "minLabels: -1", "minLabels: "),
        ("minLabels: 100", "minLabels: many", "minLabels: "),
        ("minLabels: 100", "concurrency: 0", "concurrency: "),
        ("minLabels: 100", "maxDuration: 0s", "maxDuration: "),
        (
            "    shadow: {minLabels: 100}",
            "    shadow: {}\n    canary: {steps: [5]}",
            "names exactly one strategy",
        ),
        ("  candidate: {", "  candidates: []\n  candidate: {", "either 'candidate' or 'candidates'"),
        (
            '  candidate: {version: "1", uri: v1.onnx}',
            '  candidates: [{version: "1", uri: a.onnx}, {version: "1", uri: b.onnx}]',
            "version '1' is listed twice",
        ),
    ],
)
def test_a_shadow_that_makes_no_sense_is_refused(old, new, message):
    assert old in SHADOW
    found = problems(SHADOW.replace(old, new))
    assert any(message in problem for problem in found), found


def test_several_candidates_go_with_a_shadow_only():
    text = FULL.replace("  candidate:", "  candidates:\n  - ", 1)
    assert any("go with strategy 'shadow' only" in problem for problem in problems(text))


def test_disagreement_needs_two_answers_to_one_request():
    text = FULL.replace("{name: null-rate}", "{name: disagreement-rate, max: 5%}")
    assert any(
        "disagreement-rate needs answers to the same requests" in problem for problem in problems(text)
    )
    with_mirror = text.replace("- setWeight: 5", "- mirror: {percentage: 100}\n      - setWeight: 5")
    steps = loaded(with_mirror).strategy.steps()
    assert [(step.weight, step.mirror) for step in steps[:2]] == [(0.0, 100.0), (5.0, 100.0)]


def test_a_canary_stops_its_copies_after_the_mirror_step_where_nothing_needs_them():
    text = FULL.replace("- setWeight: 5", "- mirror: {percentage: 40}\n      - setWeight: 5")
    steps = loaded(text).strategy.steps()
    assert [(step.weight, step.mirror) for step in steps[:2]] == [(0.0, 40.0), (5.0, 0.0)]
    assert steps[0].gate.next_weight == 5


def test_absolute_limits_alone_compare_nothing():
    text = re.sub(r"(?s)metrics:.*", "metrics:\n    - {name: latency-p99, max: 1s}\n", FULL)
    assert any(
        "only absolute limits: at least one metric must compare" in problem for problem in problems(text)
    )


SWITCH = (
    FULL[: FULL.index("    canary:")]
    + "    blueGreen: {autoPromotion: true}\n"
    + FULL[FULL.index("  analysis:") :]
)


def test_a_switch_is_checked_on_copies_and_baked_for_five_minutes_unless_it_says_otherwise():
    before, after = loaded(SWITCH).strategy.steps()
    assert (before.weight, before.mirror, before.awaits_person) == (0.0, 100.0, False)
    assert (after.weight, after.mirror, after.dwell) == (100.0, 100.0, 300.0)
    held_back = SWITCH.replace("true}", "false, bake: {compare: holdback}}")
    before, after = loaded(held_back).strategy.steps()
    assert before.awaits_person
    assert (after.weight, after.mirror) == (95.0, 0.0)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{mirror: 100}", "missing key 'autoPromotion'"),
        ("{autoPromotion: true, mirror: 0}", "autoPromotion: true needs mirror above 0"),
        ("{autoPromotion: true, mirror: 0%}", "autoPromotion: true needs mirror above 0"),
        ("{autoPromotion: true, mirror: 101}", "mirror: a share is from 0 to 100 percent, not 101"),
        ("{autoPromotion: yes please}", "autoPromotion: "),
        ("{autoPromotion: true, bake: {compare: guess}}", "unknown compare 'guess'"),
        ("{autoPromotion: true, bake: {holdback: 5}}", "holdback goes with compare: holdback"),
        ("{autoPromotion: true, bake: {compare: holdback, holdback: 100}}", "a weight below 100"),
        ("{autoPromotion: true, bake: {duration: 0s}}", "duration: "),
    ],
)
def test_a_switch_that_makes_no_sense_is_refused(written, message):
    found = problems(SWITCH.replace("{autoPromotion: true}", written))
    assert any(message in problem for problem in found), found
