"""A manifest that is right, and helpers that make it wrong in one place."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from deployctl.manifest.load import load
from deployctl.manifest.problems import ManifestError

METRICS = (
    *("error-rate", "null-rate", "latency", "label-error-rate"),
    *("latency-p50", "latency-p90", "latency-p95", "latency-p99", "disagreement-rate"),
)
ENGINES = ("builtin",)

# The example of the documentation, without the keys that this version cannot carry out.
FULL = (
    dedent("""\
    apiVersion: deployctl/v1
    kind: Rollout
    metadata:
      name: digits
    spec:
      service:
        listen: 127.0.0.1:8080
        model: digits
        routingKey: header:X-User-Id
        timeout: 500ms
        engine: builtin
      baseline:  {version: "1", uri: models/v1.onnx, digest: "sha256:BASE"}
      candidate: {version: "2", uri: models/v2.onnx, digest: "sha256:CAND"}
      prediction:
        output: probabilities
        read: argmax
        classes: ["0", "1", "2"]
        nullIf: {confidenceBelow: 0.2}
      strategy:
        canary:
          steps:
          - setWeight: 5
          - pause: {duration: 10m}
          - ramp: {from: 10, to: 50, by: 20}
          minDwell: 30s
          stepTimeout: 30m
          onInconclusive: rollback
          bake: 5m
          keepWarm: 1h
      analysis:
        alpha: 0.01
        beta: 0.05
        metrics:
        - {name: error-rate, tolerance: {relative: 10%, absolute: 0.1%}, margin: 0.5%}
        - {name: null-rate}
        - {name: latency, tolerance: {relative: 10%, absolute: 5ms}}
        - {name: label-error-rate}
    """)
    .replace("BASE", "b" * 64)
    .replace("CAND", "c" * 64)
)

WRONG_IN_TEN_WAYS = """\
apiVersion: deployctl/v2
kind: Rollout
metadata:
  name: Digits
spec:
  service:
    listen: 127.0.0.1
    enginee: builtin
  baseline: {version: 1.10, uri: models/v1.onnx}
  candidate: {version: "2"}
  strategy:
    canary:
      steps:
      - setWeigth: 5
      - 10
      - 7
      minDwell: 30s
      minDwell: 3s
  analysis:
    metrics:
    - {name: null-rate}
"""


def loaded(text, base=Path("/models-of-test")):
    if isinstance(text, str):
        text = text.encode()
    return load(text, "rollout.yaml", engines=ENGINES, metrics=METRICS, base=base)


def problems(text):
    """`LINE:COL: message` of everything that is wrong with it."""
    with pytest.raises(ManifestError) as caught:
        loaded(text)
    return [f"{one.line}:{one.column}: {one.message}" for one in caught.value.problems]


def changed(old, new):
    """The full manifest with one thing changed."""
    assert FULL.count(old) == 1, f"{old!r} stands {FULL.count(old)} times"
    return FULL.replace(old, new)


def place_of(needle, text):
    """`LINE:COL` of the only place where this stands."""
    before = text[: text.index(needle)]
    return f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


def with_steps(steps):
    """The full manifest with these canary steps, written as flow YAML."""
    return changed(
        "steps:\n      - setWeight: 5\n      - pause: {duration: 10m}\n      - ramp: {from: 10, to: 50, by: 20}\n",
        f"steps: {steps}\n",
    )
