"""What a valid manifest becomes: values with their defaults, and a plan."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifest_texts import ENGINES, FULL, METRICS, changed, loaded, with_steps

from deployctl.core.plan import LabelRules, MetricRule, OnInconclusive, Phase, Version
from deployctl.errors import InvalidError
from deployctl.manifest.load import ManifestError, differing_keys, load, plan, service_spec
from deployctl.manifest.manifest import LabelFiles, LogRules, ModelRef, Prediction, Service, label_files

ONE, TWO = Version("1", "sha256:" + "b" * 64), Version("2", "sha256:" + "c" * 64)

SMALLEST = """\
apiVersion: deployctl/v1
kind: Rollout
metadata: {name: digits}
spec:
  service: {listen: "127.0.0.1:0"}
  baseline: {version: "1", uri: v1.onnx}
"""


def test_the_example_of_the_documentation_is_read_completely():
    manifest = loaded(FULL)
    assert manifest.name == "digits"
    assert manifest.text == FULL
    assert manifest.service == Service("127.0.0.1", 8080, "digits", "x-user-id", 0.5, "builtin")
    assert manifest.baseline == ModelRef("1", Path("/models-of-test/models/v1.onnx"), ONE.digest)
    assert manifest.candidate == ModelRef("2", Path("/models-of-test/models/v2.onnx"), TWO.digest)
    assert manifest.prediction == Prediction("probabilities", "argmax", ("0", "1", "2"), 0.2)
    assert (manifest.step_timeout, manifest.keep_warm) == (1800, 3600)
    assert manifest.on_inconclusive is OnInconclusive.ROLLBACK
    assert manifest.metrics == (
        MetricRule("error-rate", 0.1, 0.001, 0.005),
        MetricRule("null-rate", 0.1, 0.001, None),
        MetricRule("latency", 0.1, 5.0, None),
        MetricRule("label-error-rate", 0.1, 0.001, None),
    )


def test_the_example_becomes_a_plan_of_four_steps():
    planned = plan(loaded(FULL), ONE, TWO)
    assert [(step.weight, step.dwell, step.awaits_person) for step in planned.steps] == [
        (5, 600, False),
        (10, 30, False),
        (30, 30, False),
        (50, 300, False),
    ]
    gates = [step.gate for step in planned.steps]
    assert [(gate.next_weight, gate.last) for gate in gates] == [
        (10, False),
        (30, False),
        (50, False),
        (100, True),
    ]
    assert [gate.margin(0.005) for gate in gates] == pytest.approx([0.05, 0.005 / 0.3, 0.01, 0.01])
    assert (planned.strategy, planned.unit, planned.classes) == ("canary", "key", ("0", "1", "2"))
    assert (planned.alpha, planned.beta, planned.step_timeout, planned.keep_warm) == (0.01, 0.05, 1800, 3600)
    assert (planned.baseline, planned.candidate) == (ONE, TWO)
    assert (planned.passed, planned.failed) == (Phase.PROMOTED, Phase.ROLLED_BACK)


def test_a_service_of_one_version_needs_no_candidate_strategy_or_analysis():
    manifest = loaded(SMALLEST)
    assert manifest.service == Service("127.0.0.1", 0, "digits", None, 10.0, "builtin")
    assert (manifest.candidate, manifest.strategy, manifest.prediction, manifest.metrics) == (
        None,
        None,
        None,
        (),
    )
    assert (manifest.alpha, manifest.beta, manifest.step_timeout, manifest.keep_warm) == (
        0.01,
        0.05,
        None,
        None,
    )


def test_a_manifest_without_a_candidate_or_strategy_has_no_plan():
    with pytest.raises(InvalidError, match=r"rollout\.yaml: names no candidate"):
        plan(loaded(SMALLEST), ONE, TWO)
    with pytest.raises(InvalidError, match=r"rollout\.yaml: names no strategy"):
        plan(loaded(SMALLEST + '  candidate: {version: "2", uri: v2.onnx}\n'), ONE, TWO)


def test_without_a_routing_key_the_unit_is_the_request():
    manifest = loaded(changed("    routingKey: header:X-User-Id\n", ""))
    assert plan(manifest, ONE, TWO).unit == "request"


def weights(steps):
    return [
        (step.weight, step.pause, step.awaits_person)
        for step in loaded(with_steps(steps)).strategy.canary_steps
    ]


def test_a_bare_number_and_a_percentage_are_weights():
    assert weights("[5, 10%, {setWeight: 20%}]") == [(5, 0, False), (10, 0, False), (20, 0, False)]


def test_a_final_hundred_is_the_promotion_and_no_step():
    assert weights("[5, 100]") == weights("[5]") == [(5, 0, False)]
    assert weights("[{ramp: {from: 50, to: 100, by: 25}}]") == [(50, 0, False), (75, 0, False)]


def test_a_pause_belongs_to_the_step_before_it():
    assert weights("[5, {pause: {}}, {ramp: {from: 10, to: 20, by: 10}}, {pause: {duration: 1m}}, 100]") == [
        (5, 0, True),
        (10, 0, False),
        (20, 60, False),
    ]


def test_pauses_after_one_step_add_up():
    assert weights("[5, {pause: {duration: 1m}}, {pause: {duration: 30s}}, {pause: {}}]") == [(5, 90, True)]


def test_a_ramp_always_reaches_its_end():
    assert [weight for weight, _, _ in weights("[{ramp: {from: 10, to: 45, by: 20}}]")] == [10, 30, 45]
    assert [weight for weight, _, _ in weights("[{ramp: {from: 10, to: 10, by: 5}}]")] == [10]
    assert [weight for weight, _, _ in weights("[{ramp: {from: 0.1, to: 0.5, by: 0.1}}]")] == [
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
    ]


@given(st.integers(1, 99), st.integers(1, 99), st.sampled_from(["0.5", "1", "2.5", "7", "33.3", "100"]))
def test_every_ramp_climbs_from_its_start_to_its_end(start, stop, by):
    start, stop = sorted((start, stop))
    ramp = [weight for weight, _, _ in weights(f"[{{ramp: {{from: {start}, to: {stop}, by: {by}}}}}]")]
    assert (ramp[0], ramp[-1]) == (start, stop)
    assert all(one < other <= one + float(by) + 1e-6 for one, other in pairwise(ramp))


def test_a_part_of_a_tolerance_that_is_not_written_has_its_default():
    text = changed("{name: null-rate}", "{name: null-rate, tolerance: {relative: 0%}}")
    text = text.replace("{relative: 10%, absolute: 5ms}", "{relative: 20%}")
    assert loaded(text).metrics[1:3] == (MetricRule("null-rate", 0, 0.001), MetricRule("latency", 0.2, 5.0))


def test_strategy_defaults_are_those_of_the_documentation():
    text = re.sub(r"      (minDwell|stepTimeout|onInconclusive|bake|keepWarm): .*\n", "", FULL)
    manifest = loaded(text)
    assert (manifest.strategy.min_dwell, manifest.strategy.bake) == (30, 300)
    assert (manifest.step_timeout, manifest.on_inconclusive) == (None, OnInconclusive.ROLLBACK)
    assert (
        loaded(changed("onInconclusive: rollback", "onInconclusive: hold")).on_inconclusive
        is OnInconclusive.HOLD
    )


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("models/v2.onnx", "/base/models/v2.onnx"),
        ("../v2.onnx", "/v2.onnx"),
        ("/abs/v2.onnx", "/abs/v2.onnx"),
        ("file:models/v2.onnx", "/base/models/v2.onnx"),
        ("file:///abs/v%202.onnx", "/abs/v 2.onnx"),
        ("file://localhost/abs/v2.onnx", "/abs/v2.onnx"),
        ("./odd:name.onnx", "/base/odd:name.onnx"),
    ],
)
def test_a_uri_is_a_path_from_the_manifest_or_a_local_file(uri, path):
    assert loaded(changed("models/v2.onnx", f'"{uri}"'), Path("/base")).candidate.path == Path(path)


def test_an_ipv6_address_is_written_in_brackets():
    manifest = loaded(changed("127.0.0.1:8080", '"[::1]:8080"'))
    assert (manifest.service.host, manifest.service.port, manifest.service.listen) == (
        "::1",
        8080,
        "[::1]:8080",
    )


def test_two_manifests_differ_in_the_keys_of_the_service_that_differ():
    one, other = (
        loaded(FULL),
        loaded(changed("timeout: 500ms", "timeout: 0.5s").replace("header:X-User", "header:x-user")),
    )
    assert differing_keys(service_spec(one), service_spec(other)) == []
    moved = replace(other, service=replace(other.service, port=0, routing_key=None))
    assert differing_keys(service_spec(one), service_spec(moved)) == ["listen", "routingKey"]
    assert service_spec(one) == {
        "listen": "127.0.0.1:8080",
        "model": "digits",
        "routingKey": "header:x-user-id",
        "timeout": 0.5,
        "engine": "builtin",
    }


def test_the_memory_of_a_worker_is_written_under_limits_or_follows_from_the_machine():
    one = loaded(FULL)
    other = loaded(changed("engine: builtin", "engine: builtin\n    limits: {workerMemory: 2GiB}"))
    assert (one.service.worker_memory, other.service.worker_memory) == (None, 2 << 30)
    assert differing_keys(service_spec(one), service_spec(other)) == ["limits"]
    with pytest.raises(ManifestError, match="'64MiB' is too little for a worker; it takes 256MiB at least"):
        loaded(changed("engine: builtin", "engine: builtin\n    limits: {workerMemory: 64MiB}"))


def test_engines_and_metrics_are_what_the_caller_knows():
    from deployctl.manifest.load import load

    text = changed("engine: builtin", "engine: envoy").replace("null-rate", "drift")
    manifest = load(
        text.encode(),
        "f",
        engines=["envoy"],
        metrics=["error-rate", "drift", "latency", "label-error-rate"],
        base=Path("/"),
    )
    assert manifest.service.engine == "envoy"
    assert manifest.metrics[1].name == "drift"


def test_what_is_kept_of_requests_is_written_under_log_or_has_its_default():
    def log_of(section):
        return loaded(FULL + section).log

    assert log_of("") == LogRules("hash", 4 << 30)
    assert log_of("  log: {inputs: full, maxSize: 500MiB}\n") == LogRules("full", 500 << 20)
    assert log_of("  log: {inputs: none}\n") == LogRules("none", 4 << 30)


def test_labels_are_believed_by_majority_and_come_from_no_folder_unless_it_is_written():
    assert loaded(FULL).labels == LabelRules("majority", 1)
    assert label_files(loaded(FULL)) is None
    written = "spec:\n  labels: {adjudicate: 'expert:eve', votes: 2, watch: in/box, format: csv, idKey: k, fromName: q}\n"
    manifest = loaded(changed("spec:\n", written))
    assert manifest.labels == LabelRules("expert:eve", 2)
    assert manifest.label_files == LabelFiles(Path("/models-of-test/in/box"), "csv", "k", "q")
    assert label_files(manifest) == {
        "watch": "/models-of-test/in/box", "format": "csv", "idKey": "k", "fromName": "q",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("{adjudicate: most}", "adjudicate: 'most' is not one of majority, any, soft and expert:ID"),
        ("{adjudicate: 'expert:'}", "adjudicate: 'expert:' is not"),
        ("{votes: 0}", "votes: "),
        ("{window: 72h}", "unknown key 'window'"),
        ("{format: xml}", "unknown label format 'xml' (known: csv, jsonl)"),
        ("{watch: ''}", "watch: '' is not a path"),
    ],
)
def test_what_labels_cannot_be_is_said_at_its_place(written, words):
    text = changed("spec:\n", f"spec:\n  labels: {written}\n").encode()
    with pytest.raises(InvalidError) as caught:
        load(text, "f", engines=ENGINES, metrics=METRICS, base=Path("/"), label_sources=("csv", "jsonl"))
    assert words in str(caught.value)


def test_a_reader_whose_controller_was_killed_ends_without_a_trace_in_the_log():
    known = {"source": "rollout.yaml", "engines": [], "metrics": [], "label_sources": [], "model_sources": {}}
    reader = subprocess.Popen(
        [sys.executable, "-m", "deployctl.manifest.apart", json.dumps(known)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    reader.stdout.close()
    reader.stdin.write(b"nonsense")
    reader.stdin.close()
    assert reader.stderr.read() == b""
    reader.stderr.close()
    assert reader.wait() == -signal.SIGPIPE
