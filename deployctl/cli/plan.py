"""plan: what a manifest would do, what each gate needs, and what it will not notice. Changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from deployctl.cli.manifests import read_manifest
from deployctl.cli.models import fetch_models
from deployctl.cli.pipeline import NO_REPORTS, Account, Reports, reporting
from deployctl.core.plan import HookType
from deployctl.errors import Exit, InvalidError
from deployctl.views.console import say, show_document

if TYPE_CHECKING:
    from pathlib import Path

    from deployctl.core.forecast import MetricForecast, StepForecast, Traffic
    from deployctl.core.plan import Plan, Version
    from deployctl.manifest.manifest import Manifest, ModelRef
    from deployctl.serving.model import Model
    from deployctl.views.ending import Check


def run_plan(
    file: str,
    reports: Reports = NO_REPORTS,
    *,
    as_json: bool,
    rate: float = 50.0,
    label_rate: float | None = None,
    base_rate: float = 0.01,
) -> int:
    """Print the plan of a manifest at this traffic (requests and labels a second, baseline's rate of bad answers), and report it."""
    account = Account("plan", file)
    return reporting(
        reports, account, lambda: _plan(file, account, rate, label_rate, base_rate, as_json=as_json)
    )


def _plan(
    file: str, account: Account, rate: float, label_rate: float | None, base_rate: float, *, as_json: bool
) -> int:
    from deployctl.core.forecast import Traffic, forecast  # noqa: PLC0415 - numpy: --help does without
    from deployctl.core.plan import HUMAN  # noqa: PLC0415 - as above
    from deployctl.manifest.manifest import plan  # noqa: PLC0415 - as above

    if rate <= 0 or not 0 <= base_rate < 1:
        raise InvalidError("--rate must be above 0 requests a second, --base-rate from 0 to below 1")
    manifest, resolved = _fetched(read_manifest(file))
    together = manifest.service.batching
    baseline, ours = (
        (HUMAN, None) if manifest.baseline is None else _checked(manifest.baseline, together=together)
    )
    if manifest.candidate is None or manifest.strategy is None:
        _print_service(manifest, baseline, ours, _models(manifest, resolved), as_json=as_json)
        return Exit.DONE
    checked = [_checked(candidate, together=together) for candidate in manifest.candidates]
    compiled = plan(manifest, baseline, *(version for version, _ in checked))
    traffic = Traffic(rate, rate if label_rate is None else label_rate, base_rate)
    steps = forecast(compiled, traffic)
    difference = next((words for _, theirs in checked if (words := _difference(ours, theirs))), None)
    order = None if difference else _class_order(manifest)
    reports = [(baseline.version, ours), *((version.version, theirs) for version, theirs in checked)]
    models = _models(manifest, resolved)
    found = Findings(difference, order, _batching(reports), models)
    account.details = list(_lines(manifest, compiled, traffic, steps, found))
    account.message = difference or order or account.details[-1]
    account.checks = list(_checks(found))
    if as_json:
        show_document(_document(manifest, compiled, traffic, steps, found))
    else:
        for line in account.details:
            say(line)
    return Exit.INVALID if difference or order else Exit.DONE


@dataclass(frozen=True, slots=True)
class Findings:
    """What the models themselves show: how a candidate differs from the baseline in what callers rely on (its signature, the order of its
    classes), by version how requests may share inferences, and what each uri means.
    """

    signature: str | None
    class_order: str | None
    batching: dict[str, dict[str, Any]]
    models: list[dict[str, str]]


def _fetched(manifest: Manifest) -> tuple[Manifest, dict[str, str]]:
    """The manifest with a file for every model, and by their places what the uris of the remote ones mean."""
    found = fetch_models(manifest, manifest.models)

    def here(place: str, model: ModelRef) -> ModelRef:
        return replace(model, path=found[place].path, digest=found[place].digest) if place in found else model

    baseline = None if manifest.baseline is None else here("baseline", manifest.baseline)
    candidates = tuple(here(f"candidates/{at}", one) for at, one in enumerate(manifest.candidates))
    resolved = {place: one.resolved for place, one in found.items()}
    return replace(manifest, baseline=baseline, candidates=candidates), resolved


def _models(manifest: Manifest, resolved: dict[str, str]) -> list[dict[str, str]]:
    """What each uri means: the file or the place, and the digest of its bytes."""
    from deployctl.manifest.model_uri import redacted  # noqa: PLC0415 - as above

    return [
        {
            "place": place,
            "version": model.version,
            "uri": redacted(model.uri or str(model.path)),
            "resolved": resolved.get(place, str(model.path)),
            "digest": _digest(model),
        }
        for place, model in manifest.models.items()
    ]


def _model_lines(models: list[dict[str, str]]) -> Iterator[str]:
    for model in models:
        means = "" if model["uri"] == model["resolved"] else f" = {model['resolved']}"
        yield f"model of version {model['version']}: {model['uri']}{means} ({model['digest']})"


def _checks(found: Findings) -> Iterator[Check]:
    from deployctl.views.ending import Check  # noqa: PLC0415 - rich

    for name, why in (("signature", found.signature), ("order of the classes", found.class_order)):
        yield Check(name, "fail" if why else "pass", why or "")


def _class_order(manifest: Manifest) -> str | None:
    """Which candidate seems to name its classes in another order than the baseline, and why; None where none does."""
    from deployctl.serving.class_order import class_order_problem  # noqa: PLC0415 - as above

    reading = manifest.prediction
    if manifest.baseline is None or reading is None or reading.read != "argmax":
        return None
    baseline = _loaded(manifest.baseline, _digest(manifest.baseline))
    for candidate in manifest.candidates:
        model = _loaded(candidate, _digest(candidate))
        if problem := class_order_problem(baseline, model, reading.output, reading.classes):
            return f"version {candidate.version}: {problem}"
    return None


def _checked(model: ModelRef, *, together: bool) -> tuple[Version, dict[str, Any]]:
    """The digest of a model's bytes and what it says of itself, as its worker would. Raises what is wrong with it."""
    from deployctl.core.plan import Version  # noqa: PLC0415 - --help does without
    from deployctl.serving.batching import OFF, find_batching  # noqa: PLC0415 - onnxruntime

    found = _digest(model)
    loaded = _loaded(model, model.digest or found)
    batching = find_batching(loaded) if together else OFF
    return Version(model.version, found), {**loaded.report(), "batching": batching._asdict()}


def _loaded(model: ModelRef, digest: str) -> Model:
    """Watched like a worker's: a model that hangs is stopped, and is one line."""
    from deployctl.serving.model import Model  # noqa: PLC0415 - onnxruntime
    from deployctl.serving.watch import Watch  # noqa: PLC0415 - as above

    return Model(_file(model), digest, Watch())


def _file(model: ModelRef) -> Path:
    assert model.path is not None  # a remote one has been fetched
    return model.path


def _digest(model: ModelRef) -> str:
    try:
        return f"sha256:{sha256(_file(model).read_bytes()).hexdigest()}"
    except OSError as error:
        raise InvalidError(
            f"{str(model.path)!r} cannot be read: {error.strerror or error}; a model's uri is relative to the manifest"
        ) from error


def _difference(ours: dict[str, Any] | None, theirs: dict[str, Any]) -> str | None:
    from deployctl.controller.commands import signature_difference  # noqa: PLC0415 - as above

    if theirs["nonfinite"]:
        return f"the warm-up on zeros gave NaN or infinity in {', '.join(theirs['nonfinite'])}"
    return None if ours is None else signature_difference(ours, theirs)


def _print_service(
    manifest: Manifest,
    baseline: Version,
    report: dict[str, Any] | None,
    models: list[dict[str, str]],
    *,
    as_json: bool,
) -> None:
    batching = _batching([(baseline.version, report)])
    if as_json:
        document = {"schema_version": 1, "service": manifest.name, "baseline": asdict(baseline), "steps": []}
        show_document(document | {"models": models, "batching": batching})
    else:
        say(
            f"{manifest.name}: version {baseline.version} ({baseline.digest[:19]}) alone; nothing to roll out"
        )
        for line in (*_model_lines(models), *_batching_lines(batching)):
            say(line)


def _batching(reports: list[tuple[str, dict[str, Any] | None]]) -> dict[str, dict[str, Any]]:
    return {version: report["batching"] for version, report in reports if report is not None}


def _batching_lines(batching: dict[str, dict[str, Any]]) -> Iterator[str]:
    for version, found in batching.items():
        why, rows = found["why"], found["rows"]
        words = f"up to {rows} requests that wait share an inference" if why is None else f"none, for {why}"
        yield f"batching of version {version}: {words}"


def _document(
    manifest: Manifest, plan: Plan, traffic: Traffic, steps: list[StepForecast], found: Findings
) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "service": manifest.name,
        "strategy": plan.strategy,
        "baseline": asdict(plan.baseline),
        "candidate": asdict(plan.candidate),
        "candidates": [asdict(version) for version in plan.candidates],
        "models": found.models,
        "unit": plan.unit,
        "alpha": plan.alpha,
        "beta": plan.beta,
        "step_timeout": plan.step_timeout,
        "on_inconclusive": plan.on_inconclusive.value,
        "keep_warm": plan.keep_warm,
        "assumed": asdict(traffic),
        "signature_difference": found.signature,
        "class_order_difference": found.class_order,
        "batching": found.batching,
        "webhooks": [{"name": hook.name, "type": hook.type.value} for hook in plan.hooks],
        "steps": [asdict(step) for step in steps],
        "typical_seconds": sum(step.typical for step in steps),
        "slow_seconds": sum(step.slow for step in steps),
    }


def _lines(
    manifest: Manifest, plan: Plan, traffic: Traffic, steps: list[StepForecast], found: Findings
) -> Iterator[str]:
    tried = ", ".join(f"version {one.version} ({one.digest[:19]})" for one in plan.candidates)
    live = "people" if plan.people_alone else f"version {plan.baseline.version} ({plan.baseline.digest[:19]})"
    yield f"{manifest.name}: {plan.strategy} of {tried} against {live}"
    yield from _model_lines(found.models)
    yield f"signatures: {found.signature or 'inputs and outputs are the same'}"
    if found.class_order:
        yield f"classes: {found.class_order}"
    yield from _batching_lines(found.batching)
    yield (
        f"assumed: {traffic.requests_per_second:g} requests/s, {traffic.labels_per_second:g} labels/s, a baseline with "
        f"{100 * traffic.base_rate:g} % bad answers (change with --rate, --label-rate, --base-rate)"
    )
    yield (
        f"a harmless candidate is rolled back with probability {plan.alpha:g} at most, one worse than a margin promoted with "
        f"{plan.beta:g} at most"
    )
    for number, step in enumerate(steps, 1):
        person = ", then a person promotes" if step.awaits_person else ""
        copies = f"copies of {step.mirror:g} % of the requests"
        weight = f"weight {step.weight:g} %"
        share = (
            f"{weight}, {copies}"
            if step.weight and step.mirror
            else weight
            if step.weight or not step.mirror
            else copies
        )
        yield (
            f"step {number} of {len(steps)}: {share}, {_time(step.typical)} (slow case {_time(step.slow)}), "
            f"at least {_time(step.dwell)}{person}"
        )
        for metric in step.metrics:
            yield f"    {metric.name:<17} {_metric(metric)}"
        if step.warning:
            yield f"    warning: {step.warning}"
    for hook in plan.hooks:
        yield f"webhook {hook.name} {WORDS_OF_HOOKS[hook.type]}"
    if plan.strategy == "shadow":
        yield _end_of_shadow(plan)
        return
    total, slow = sum(step.typical for step in steps), sum(step.slow for step in steps)
    limit = (
        "30 minutes or what the traffic asks for" if plan.step_timeout is None else _time(plan.step_timeout)
    )
    yield f"promotion after {_time(total)}, slow case {_time(slow)}; a step that shows nothing within {limit}: {plan.on_inconclusive.value}"


WORDS_OF_HOOKS = {
    HookType.CONFIRM_ROLLOUT: "must agree before the first step, for as long as it takes",
    HookType.PRE_ROLLOUT: "must agree before the first step, within its time",
    HookType.ROLLOUT: "must agree at every step, within its time",
    HookType.CONFIRM_TRAFFIC_INCREASE: "must agree before each further weight, for as long as it takes",
    HookType.CONFIRM_PROMOTION: "must agree before the promotion, for as long as it takes",
    HookType.ROLLBACK: "may roll back at any time",
    HookType.POST_ROLLOUT: "is told of the end",
    HookType.EVENT: "is told of every event",
}


def _metric(metric: MetricForecast) -> str:
    """What one metric asks of one step, and what it will not notice."""
    if metric.budget:
        return (
            f"excludes a rate of {100 * metric.margin:.3g} % with {metric.units:,.0f} {metric.unit} in {_time(metric.typical)} "
            f"where the candidate's is half of it; will not notice one below {100 * (metric.margin + metric.unnoticed):.2g} %"
        )
    return (
        f"excludes +{100 * metric.margin:.3g} points with {metric.units:,.0f} candidate {metric.unit} in "
        f"{_time(metric.typical)}; will not notice an increase below {100 * metric.unnoticed:.2g} points"
    )


def _end_of_shadow(plan: Plan) -> str:
    labels = f" and at least {plan.min_labels} labels" if plan.min_labels else ""
    assert plan.step_timeout is not None
    return (
        f"it ends on fail at once (exit 3), on pass with every metric shown{labels} (exit 0), "
        f"else as inconclusive after {_time(plan.step_timeout)} (exit 5)"
    )


def _time(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "never"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
