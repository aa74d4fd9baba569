"""Rules between the keys of a manifest, checked on the plain tree.

They run whatever else is wrong, so that every problem is seen at once; a rule says nothing of what it cannot read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from deployctl.manifest.loader import Path, Tree
from deployctl.manifest.model_uri import file_path, scheme_of
from deployctl.manifest.quantities import percentage, positive_seconds, seconds, shown
from deployctl.manifest.schema import MAX_STEPS, Model, Step

T = TypeVar("T")

LABEL_METRICS, PAIR_METRICS = frozenset({"label-error-rate"}), frozenset({"disagreement-rate"})
"""Metrics that wait for labels, and metrics that need two answers to one request."""

PREDICTION_METRICS = ("null-rate", "label-error-rate", "disagreement-rate")
"""Metrics that look at the answer itself, so the manifest must say how it is read."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken rule; `at_key` points at the key instead of its value."""

    path: Path
    message: str
    at_key: bool = False


def broken_rules(tree: Tree, metrics: Collection[str]) -> Iterator[Finding]:
    """Everything that the sections of this manifest contradict each other in; `metrics` are the known names."""
    spec = _mapping(_mapping(tree.value).get("spec"))
    yield from _versions_agree(spec)
    yield from _candidates_are_told_apart(spec)
    yield from _somebody_decides(spec)
    yield from _steps_climb(spec)
    yield from _switches_are_seen(spec)
    yield from _something_is_watched(spec)
    yield from _metrics_are_distinct(spec)
    yield from _limits_are_written(spec)
    yield from _answers_are_read(spec)
    yield from _tolerances_fit(spec, metrics)


def missing_values(tree: Tree) -> Iterator[Finding]:
    """Keys and list items with nothing behind them."""
    for path in tree.values:
        if path and path not in tree.unread and path in tree.texts and _value_at(tree.value, path) is None:
            name = shown(path[-1]) if isinstance(path[-1], str) else "the list item"
            yield Finding(path, f"{name} has no value; write one or leave it out", at_key=True)


def _versions_agree(spec: dict[str, Any]) -> Iterator[Finding]:
    baseline, candidate = (_read(Model.model_validate, spec.get(role)) for role in ("baseline", "candidate"))
    if baseline is None or candidate is None or baseline.version != candidate.version:
        return
    if baseline.digest and candidate.digest:
        same = baseline.digest == candidate.digest
    else:
        same = _normal(baseline.uri) == _normal(candidate.uri)
    if not same:
        message = f"version {candidate.version!r} is also the baseline's, with other bytes; give it a label of its own"
        yield Finding(("spec", "candidate", "version"), message)


def _steps_climb(spec: dict[str, Any]) -> Iterator[Finding]:
    written = _mapping(_mapping(spec.get("strategy")).get("canary")).get("steps")
    if not isinstance(written, list):
        return
    path: Path = ("spec", "strategy", "canary", "steps")
    steps = [_read(Step.model_validate, step) for step in written]
    reached, begun = 0.0, False
    for at, step in enumerate(steps):
        begun = begun or step is None or step.pause is None
        if step is None:
            continue
        if not begun:
            yield Finding((*path, at), "a pause belongs to the step before it; there is none")
        elif step.pause is not None and reached == 100:
            yield Finding((*path, at), "promotion follows setWeight: 100 at once; a pause goes before it")
        if step.mirror is not None and reached > 0:
            yield Finding((*path, at), "a mirror step goes before the first weight")
        reached, problem = _climbed(step.weights(), reached)
        if problem:
            yield Finding((*path, at), problem)
    weights = [weight for step in steps if step is not None for weight in step.weights()]
    if len(weights) > MAX_STEPS:
        yield Finding(path, f"{len(weights)} steps; at most {MAX_STEPS}", at_key=True)
    if None not in steps and min(weights, default=100) == 100:
        yield Finding(path, "needs at least one weight below 100: nothing is promoted unseen", at_key=True)


def _climbed(weights: tuple[float, ...], reached: float) -> tuple[float, str | None]:
    """The weight reached, and why these do not climb from where it was."""
    for weight in weights:
        if weight <= reached:
            return reached, _why_not_climbing(weight, reached)
        reached = weight
    return reached, None


def _why_not_climbing(weight: float, reached: float) -> str:
    if reached == 100:
        return "setWeight: 100 means promotion, so it is the last step"
    return f"weight {weight:g} does not climb; the one before is {reached:g}"


def _candidates_are_told_apart(spec: dict[str, Any]) -> Iterator[Finding]:
    written = spec.get("candidates")
    if written is None:
        return
    path: Path = ("spec", "candidates")
    if "candidate" in spec:
        yield Finding(path, "either 'candidate' or 'candidates'; write one of them", at_key=True)
    if "shadow" not in _mapping(spec.get("strategy")):
        yield Finding(path, "several candidates go with strategy 'shadow' only", at_key=True)
    seen: set[str] = set()
    for at, one in enumerate(written if isinstance(written, list) else []):
        version = _mapping(one).get("version")
        if isinstance(version, str) and version in seen:
            yield Finding((*path, at, "version"), f"version {shown(version)} is listed twice")
        if isinstance(version, str):
            seen.add(version)


def _somebody_decides(spec: dict[str, Any]) -> Iterator[Finding]:
    """Without a baseline people decide: a shadow, whose metrics then have nothing to compare with but a limit."""
    if "baseline" in spec:
        return
    if "shadow" not in _mapping(spec.get("strategy")):
        yield Finding(
            ("spec",),
            "missing key 'baseline' in 'spec'; only a shadow goes without one (people decide then)",
            at_key=True,
        )
        return
    for path, entry, name in _metrics(spec):
        if name == "disagreement-rate":
            yield Finding(
                (*path, "name"), "disagreement-rate: without a baseline there is nobody to disagree with"
            )
        elif "max" not in entry:
            yield Finding(
                (*path, "name"),
                f"{name} needs a limit (max: …): without a baseline there is nothing to compare with",
            )


def _something_is_watched(spec: dict[str, Any]) -> Iterator[Finding]:
    strategy = spec.get("strategy")
    if strategy is None or spec.get("analysis", ...) is None:
        return
    metrics = _mapping(spec.get("analysis")).get("metrics", [])
    if metrics == [] and "skip" not in _mapping(spec.get("analysis")):
        path = ("spec", "analysis") if "analysis" in spec else ("spec", "strategy")
        yield Finding(path, "no metrics under 'analysis': nothing is promoted unseen", at_key=True)


def _metrics_are_distinct(spec: dict[str, Any]) -> Iterator[Finding]:
    seen: set[str] = set()
    for path, _, name in _metrics(spec):
        if name in seen:
            yield Finding((*path, "name"), f"metric {shown(name)} is listed twice")
        seen.add(name)


def _limits_are_written(spec: dict[str, Any]) -> Iterator[Finding]:
    compared = False
    strategy = _mapping(spec.get("strategy"))
    has_copies = "shadow" in strategy or _mirrors(strategy)
    for path, entry, name in _metrics(spec):
        needs_limit = name.startswith("latency-p") or name == "disagreement-rate"
        is_limit = needs_limit or "max" in entry
        compared |= not is_limit
        if needs_limit and "max" not in entry:
            example = "500ms" if name.startswith("latency") else "5%"
            yield Finding((*path, "name"), f"{name} needs its limit: max: {example}")
        for key in ("tolerance", "margin") if is_limit else ():
            if key in entry:
                message = f"{key}: {name} with a limit is absolute and compares nothing"
                yield Finding((*path, key), message, at_key=True)
        if isinstance(entry.get("max"), str):
            try:
                absolute_limit(name, entry["max"])
            except ValueError as error:
                yield Finding((*path, "max"), f"max: {error}")
        if name == "disagreement-rate" and strategy and not has_copies:
            message = "disagreement-rate needs answers to the same requests: a mirror step before the first weight, or a shadow"
            yield Finding((*path, "name"), message)
        elif "max" in entry and not needs_limit and "shadow" not in strategy:
            yield Finding(
                (*path, "max"), f"key 'max' is not supported yet for {name} outside a shadow", at_key=True
            )
    if not compared and "shadow" not in strategy and any(True for _ in _metrics(spec)):
        path = ("spec", "analysis", "metrics")
        yield Finding(path, "only absolute limits: at least one metric must compare", at_key=True)


def _switches_are_seen(spec: dict[str, Any]) -> Iterator[Finding]:
    """A switch of all callers by itself needs evidence before it, and only copies can give that."""
    path: Path = ("spec", "strategy", "blueGreen")
    switch = _mapping(_mapping(spec.get("strategy")).get("blueGreen"))
    mirror = switch.get("mirror", 100)
    nothing = mirror == 0 if not isinstance(mirror, str) else mirror.rstrip("%").strip("0.") == ""
    if switch.get("autoPromotion") is True and nothing:
        message = "autoPromotion: true needs mirror above 0: nothing is promoted unseen"
        yield Finding((*path, "autoPromotion"), message)
    bake = _mapping(switch.get("bake"))
    if "holdback" in bake and bake.get("compare", "mirror") != "holdback":
        yield Finding((*path, "bake", "holdback"), "holdback goes with compare: holdback", at_key=True)


def _mirrors(strategy: dict[str, Any]) -> bool:
    switch = _mapping(strategy.get("blueGreen"))
    if switch:
        compares = _mapping(switch.get("bake")).get("compare", "mirror")
        return compares == "mirror" or bool(switch.get("mirror", 100))
    steps = _mapping(strategy.get("canary")).get("steps")
    return any("mirror" in _mapping(step) for step in (steps if isinstance(steps, list) else []))


def absolute_limit(metric: str, written: str) -> float:
    """An absolute limit: milliseconds for latency, else a fraction between 0 and 1. Raises ValueError."""
    if metric.startswith("latency"):
        if metric == "latency":
            raise ValueError(
                "latency is compared over what is learnt; an absolute limit is latency-p99, -p95, -p90 or -p50"
            )
        return positive_seconds(written) * 1000
    limit = percentage(written)
    if not 0 < limit < 1:
        raise ValueError(f"{shown(written)} is no limit; write a percentage between 0% and 100%")
    return limit


def _answers_are_read(spec: dict[str, Any]) -> Iterator[Finding]:
    for path, _, name in _metrics(spec):
        if name in PREDICTION_METRICS and "prediction" not in spec:
            yield Finding(
                (*path, "name"), f"{name} needs the section 'prediction': which output is the answer"
            )


def _tolerances_fit(spec: dict[str, Any], metrics: Collection[str]) -> Iterator[Finding]:
    for path, entry, name in _metrics(spec):
        absolute = _mapping(entry.get("tolerance")).get("absolute")
        if name not in metrics or not isinstance(absolute, str):
            continue
        try:
            absolute_tolerance(name, absolute)
        except ValueError as error:
            yield Finding((*path, "tolerance", "absolute"), f"absolute: {error}")


def absolute_tolerance(metric: str, written: str) -> float:
    """The absolute part of a tolerance: milliseconds for latency, else a fraction. Raises ValueError."""
    return seconds(written) * 1000 if metric == "latency" else percentage(written)


def _metrics(spec: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Any], str]]:
    metrics = _mapping(spec.get("analysis")).get("metrics")
    for at, entry in enumerate(metrics if isinstance(metrics, list) else []):
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            yield ("spec", "analysis", "metrics", at), entry, entry["name"]


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _value_at(value: Any, path: Path) -> object:
    for key in path:
        value = value[key]
    return value


def _normal(uri: str) -> str:
    return os.path.normpath(file_path(uri)) if scheme_of(uri) is None else uri


def _read(read: Callable[[Any], T], value: object) -> T | None:
    try:
        return read(value)
    except ValidationError:
        return None
