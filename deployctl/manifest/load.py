"""The text of a manifest to a Manifest, or to everything that is wrong with it.

A pure function of its arguments: which engines and metrics exist is told by the caller, no file is opened.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deployctl.core.plan import Holdback, Hook, HookType, LabelRules, MetricRule, OnInconclusive
from deployctl.core.strategies import BlueGreen, Canary, CanaryStep, Shadow
from deployctl.manifest import model_uri, schema
from deployctl.manifest.loader import BrokenYamlError, Mark, Tree, read_yaml
from deployctl.manifest.manifest import (
    LabelFiles,
    LogRules,
    Manifest,
    ModelRef,
    Prediction,
    Service,
    Webhook,
    differing_keys,
    plan,
    service_spec,
)
from deployctl.manifest.problems import ManifestError, Problem, findings
from deployctl.manifest.quantities import shown
from deployctl.manifest.rules import (
    LABEL_METRICS,
    PAIR_METRICS,
    absolute_limit,
    absolute_tolerance,
    broken_rules,
    missing_values,
)

__all__ = [
    "LogRules",
    "Manifest",
    "ManifestError",
    "ModelRef",
    "Prediction",
    "Service",
    "differing_keys",
    "load",
    "plan",
    "service_spec",
]

DEFAULT_MIN_LABELS = 300
"""Labelled answers that a shadow waits for where a metric uses labels and the manifest names no number."""

TOLERANCE_RELATIVE = 0.1
TOLERANCE_ABSOLUTE = 0.001
TOLERANCE_ABSOLUTE_LATENCY_MS = 5.0
"""Two identical local workers differ by less than this; a relative tolerance alone rolls back good versions."""


def load(
    text: bytes,
    source: str,
    *,
    engines: Collection[str],
    metrics: Collection[str],
    base: Path,
    label_sources: Collection[str] | None = None,
    model_sources: Mapping[str, model_uri.Form] | None = None,
) -> Manifest:
    """The manifest that this text is. `source` is how its name is printed, `base` where its paths start. Names of label sources
    that are not told are not checked; without `model_sources` a model is a local file.

    Raises ManifestError with every problem at once; where the YAML itself is broken, only with that one.
    """
    try:
        tree = read_yaml(text)
    except BrokenYamlError as error:
        raise ManifestError([_problem(source, error.mark, error.message)]) from error
    found, document = list(tree.problems), None
    if isinstance(tree.value, dict):
        known = {"engine": engines, "metric": metrics, "label format": label_sources}
        more, document = _checked(tree, {**known, "model source": model_sources or {}})
        found += more
    elif not found:
        found.append((tree.at_value(()), _no_mapping(tree)))
    if found or document is None:
        raise ManifestError(_problem(source, mark, message) for mark, message in found)
    return _manifest(
        document, _without_queries(document, tree, text.decode("utf-8-sig"), source), source, base
    )


def metric_marks(text: bytes) -> dict[str, Mark]:
    """Where each metric of the gate is written, by its name; nothing where the text is no YAML."""
    try:
        tree = read_yaml(text)
    except BrokenYamlError:
        return {}
    return {
        word: tree.at_value(path[:-1])
        for path, word in tree.texts.items()
        if path[:3] == ("spec", "analysis", "metrics") and path[4:] == ("name",)
    }


def _checked(tree: Tree, known: dict[str, Any]) -> tuple[list[tuple[Mark, str]], schema.Document | None]:
    """What the schema and the rules find; both always run."""
    broken = list(missing_values(tree))
    tree.unread.update(finding.path for finding in broken)
    broken += broken_rules(tree, known["metric"] or ())
    found = [
        (tree.at_key(one.path) if one.at_key else tree.at_value(one.path), one.message) for one in broken
    ]
    try:
        return found, schema.Document.model_validate(tree.value, context=known)
    except ValidationError as error:
        return [*found, *findings(error, tree)], None


def _no_mapping(tree: Tree) -> str:
    if tree.value is None:
        return "the file is empty; `deployctl init` writes a manifest to start from"
    return f"a manifest is a mapping that starts with apiVersion, not {shown(tree.value)}"


def _without_queries(document: schema.Document, tree: Tree, text: str, source: str) -> str:
    """The text as it may be kept. Raises ManifestError for a query that is not found in it as it is read."""
    queries = set()
    for path, model in _models(document.spec):
        query = model_uri.query_of(model.uri)
        if query and f"?{query}" not in text:
            message = "uri: write it on one line and without escapes: its query may be secret, and is cut out of what is kept"
            raise ManifestError([_problem(source, tree.at_value(("spec", *path, "uri")), message)])
        queries.add(query)
    for query in sorted(queries - {""}, key=len, reverse=True):  # one may begin like another
        text = text.replace(f"?{query}", f"?{model_uri.REDACTED}")
    return text


def _models(spec: schema.Spec) -> Iterator[tuple[tuple[str | int, ...], schema.Model]]:
    for role in ("baseline", "candidate"):
        if (model := getattr(spec, role)) is not None:
            yield (role,), model
    for at, model in enumerate(spec.candidates or ()):
        yield ("candidates", at), model


def _problem(source: str, mark: Mark, message: str) -> Problem:
    return Problem(source, mark.line, mark.column, message)


def _manifest(document: schema.Document, text: str, source: str, base: Path) -> Manifest:
    spec = document.spec
    written = spec.strategy or schema.Strategy.model_construct()
    canary, shadow = written.canary, written.shadow
    changing = canary or written.blue_green
    analysis = spec.analysis or schema.Analysis()
    metrics = tuple(_rule(entry) for entry in analysis.metrics)
    candidates = spec.candidates or (() if spec.candidate is None else (spec.candidate,))
    holdback = canary.holdback if canary is not None else None
    return Manifest(
        source=source,
        text=text,
        name=document.metadata.name,
        service=_service(spec.service, document.metadata.name, base),
        baseline=None if spec.baseline is None else _model_ref(spec.baseline, base),
        candidates=tuple(_model_ref(candidate, base) for candidate in candidates),
        prediction=None if spec.prediction is None else _prediction(spec.prediction),
        strategy=_strategy(written, metrics),
        step_timeout=shadow.max_duration if shadow else changing.step_timeout if changing else None,
        on_inconclusive=OnInconclusive(changing.on_inconclusive if changing else "rollback"),
        keep_warm=changing.keep_warm if changing else None,
        holdback=None if holdback is None else Holdback(holdback.weight, holdback.duration),
        alpha=analysis.alpha,
        beta=analysis.beta,
        metrics=metrics,
        copy_timeout=shadow.timeout if shadow else None,
        copy_limit=shadow.concurrency if shadow else 32,
        labels=LabelRules() if spec.labels is None else LabelRules(spec.labels.adjudicate, spec.labels.votes),
        label_files=None if spec.labels is None else _label_files(spec.labels, base),
        webhooks=tuple(_webhook(written, base) for written in analysis.webhooks),
        log=LogRules() if spec.log is None else LogRules(spec.log.inputs, spec.log.max_size),
    )


def _strategy(
    written: schema.Strategy, metrics: tuple[MetricRule, ...]
) -> Canary | Shadow | BlueGreen | None:
    """The strategy that is written; what is judged by copies keeps a canary's mirror going."""
    names = {rule.name for rule in metrics}
    if (shadow := written.shadow) is not None:
        asked = DEFAULT_MIN_LABELS if shadow.min_labels is None else shadow.min_labels
        # Where no metric uses labels none are waited for.
        return Shadow(shadow.percentage, asked if names & LABEL_METRICS else 0, shadow.max_duration)
    if (switch := written.blue_green) is not None:
        bake = switch.bake or schema.Bake.model_validate({})
        held_back = bake.holdback if bake.compare == "holdback" else 0.0
        return BlueGreen(switch.mirror, switch.auto_promotion, bake.duration, held_back)
    if (canary := written.canary) is not None:
        mirrors = bool(names & PAIR_METRICS)
        return Canary(_canary_steps(canary), canary.min_dwell, canary.bake, keeps_mirroring=mirrors)
    return None


def _label_files(written: schema.Labels, base: Path) -> LabelFiles | None:
    if written.watch is None:
        return None
    return LabelFiles(_path(base, written.watch), written.format, written.id_key, written.from_name)


def _webhook(written: schema.Webhook, base: Path) -> Webhook:
    return Webhook(
        hook=Hook(written.name, HookType(written.type)),
        url=written.url,
        url_file=None if written.url_file is None else _path(base, written.url_file),
        token_file=None if written.token_file is None else _path(base, written.token_file),
        timeout=written.timeout,
        retries=written.retries,
        interval=written.interval,
        metadata=written.metadata or {},
    )


def _service(written: schema.Service, name: str, base: Path) -> Service:
    host, _, port = written.listen.rpartition(":")
    key, tls = written.routing_key, written.tls
    return Service(
        host=host.strip("[]"),
        port=int(port),
        model=written.model or name,
        routing_key=None if key is None else key.removeprefix("header:").lower(),
        timeout=written.timeout,
        engine=written.engine,
        routers=written.routers,
        certificate=None if tls is None else _path(base, tls.cert),
        key=None if tls is None else _path(base, tls.key),
        tokens=None if written.tokens is None else _path(base, written.tokens),
        batching=written.batching,
        max_batch_delay=written.max_batch_delay,
        worker_memory=None if written.limits is None else written.limits.worker_memory,
        connections=None if written.limits is None else written.limits.connections,
    )


def _model_ref(written: schema.Model, base: Path) -> ModelRef:
    if model_uri.scheme_of(written.uri) is not None:
        return ModelRef(written.version, None, written.digest, written.uri)
    return ModelRef(written.version, _path(base, model_uri.file_path(written.uri)), written.digest)


def _path(base: Path, written: str) -> Path:
    return Path(os.path.abspath(base / written))  # noqa: PTH100 - resolve() would read the disk


def _prediction(written: schema.Prediction) -> Prediction:
    below = None if written.null_if is None else written.null_if.confidence_below
    return Prediction(written.output, written.read, written.classes or (), below)


def _canary_steps(canary: schema.Canary) -> tuple[CanaryStep, ...]:
    """The weights below 100 %, each with the pauses that follow it: their durations add up."""
    steps: list[CanaryStep] = []
    for written in canary.steps:
        if written.mirror is not None:
            steps.append(CanaryStep(0.0, mirror=written.mirror.percentage))
        steps += [CanaryStep(weight) for weight in written.weights() if weight < 100]
        if written.pause is not None:
            last, pause = steps[-1], written.pause.duration
            steps[-1] = CanaryStep(
                last.weight, last.pause + (pause or 0.0), last.awaits_person or pause is None, last.mirror
            )
    return tuple(steps)


def _rule(written: schema.MetricEntry) -> MetricRule:
    """A part of the tolerance that is not written has its default; `0%` turns it off."""
    tolerance = written.tolerance or schema.Tolerance()
    absolute = TOLERANCE_ABSOLUTE_LATENCY_MS if written.name == "latency" else TOLERANCE_ABSOLUTE
    return MetricRule(
        name=written.name,
        tolerance_relative=TOLERANCE_RELATIVE if tolerance.relative is None else tolerance.relative,
        tolerance_absolute=(
            absolute if tolerance.absolute is None else absolute_tolerance(written.name, tolerance.absolute)
        ),
        margin=written.margin,
        limit=None if written.max is None else absolute_limit(written.name, written.max),
    )
