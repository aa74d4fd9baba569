"""A valid manifest as values: what the rest of the program sees, and the plan that it stands for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deployctl.core.plan import HUMAN, Holdback, Hook, LabelRules, MetricRule, OnInconclusive, Plan, Version
from deployctl.core.strategies import STRATEGIES, BlueGreen, Canary, Shadow
from deployctl.errors import InvalidError


@dataclass(frozen=True, slots=True)
class Service:
    """`spec.service`: what callers see; fixed while the service runs. `routing_key` is a lower-case header name, `worker_memory` bytes,
    files are absolute paths.
    """

    host: str
    port: int
    model: str
    routing_key: str | None
    timeout: float
    engine: str
    worker_memory: int | None = None
    connections: int | None = None
    routers: int = 1
    certificate: Path | None = None
    key: Path | None = None
    tokens: Path | None = None
    batching: bool = True
    max_batch_delay: float = 0.0

    @property
    def listen(self) -> str:
        """HOST:PORT as it is written; an IPv6 address stands in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """One version: its label, the file's absolute path, and the digest that the manifest demands, if any. A remote model has a `uri`,
    whose query may be secret, and no path.
    """

    version: str
    path: Path | None
    digest: str | None
    uri: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Prediction:
    """How an answer is read from the output tensors. Without classes the label of argmax is the index."""

    output: str
    read: str
    classes: tuple[str, ...]
    confidence_below: float | None


@dataclass(frozen=True, slots=True)
class LogRules:
    """`spec.log`: what is kept of requests' bodies (none, hash or full), and how many bytes of all records."""

    inputs: str = "hash"
    max_bytes: int = 4 * 2**30


@dataclass(frozen=True, slots=True)
class LabelFiles:
    """The folder of `spec.labels` where label files appear. `watch` is absolute; `format` None: told by the content."""

    watch: Path
    format: str | None = None
    id_key: str = "deployctl_id"
    from_name: str | None = None


@dataclass(frozen=True, slots=True)
class Webhook:
    """Somebody who is asked or told, and how. Files are absolute paths, durations seconds; exactly one of `url` and `url_file` is there."""

    hook: Hook
    url: str | None
    url_file: Path | None
    token_file: Path | None
    timeout: float
    retries: int
    interval: float
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class Manifest:
    """One manifest in force, with the defaults filled in. Durations are seconds.

    `text` is what was read: the journal keeps it, so that editing the file cannot move a running rollout.
    """

    source: str
    text: str
    name: str
    service: Service
    baseline: ModelRef | None
    candidates: tuple[ModelRef, ...]
    prediction: Prediction | None
    strategy: Canary | Shadow | BlueGreen | None
    step_timeout: float | None
    on_inconclusive: OnInconclusive
    keep_warm: float | None
    holdback: Holdback | None
    alpha: float
    beta: float
    metrics: tuple[MetricRule, ...]
    labels: LabelRules = field(default_factory=LabelRules)
    label_files: LabelFiles | None = None
    copy_timeout: float | None = None
    copy_limit: int = 32
    log: LogRules = field(default_factory=LogRules)
    webhooks: tuple[Webhook, ...] = ()

    @property
    def models(self) -> dict[str, ModelRef]:
        """Every version by its place in the manifest."""
        baseline = {} if self.baseline is None else {"baseline": self.baseline}
        return baseline | {f"candidates/{at}": one for at, one in enumerate(self.candidates)}

    @property
    def candidate(self) -> ModelRef | None:
        """The first of the versions that are tried, or None."""
        return self.candidates[0] if self.candidates else None


def plan(manifest: Manifest, baseline: Version | None, candidate: Version, *others: Version) -> Plan:
    """The plan of a rollout between these versions; without a baseline people decide. `others` are a shadow's further candidates.

    Raises InvalidError where the manifest is one of a service with a single version.
    """
    if not manifest.candidates:
        raise InvalidError(
            f"{manifest.source}: names no candidate under 'spec', so there is nothing to roll out"
        )
    if manifest.strategy is None:
        raise InvalidError(
            f"{manifest.source}: names no strategy under 'spec', so there is nothing to follow"
        )
    return Plan(
        strategy=next(name for name, kind in STRATEGIES.items() if kind is type(manifest.strategy)),
        baseline=baseline or HUMAN,
        candidate=candidate,
        steps=manifest.strategy.steps(),
        metrics=manifest.metrics,
        alpha=manifest.alpha,
        beta=manifest.beta,
        step_timeout=manifest.step_timeout,
        on_inconclusive=manifest.on_inconclusive,
        keep_warm=manifest.keep_warm,
        holdback=manifest.holdback,
        unit="request" if manifest.service.routing_key is None else "key",
        classes=manifest.prediction.classes if manifest.prediction else (),
        passed=manifest.strategy.passed,
        failed=manifest.strategy.failed,
        others=others,
        min_labels=manifest.strategy.min_labels if isinstance(manifest.strategy, Shadow) else 0,
        labels=manifest.labels,
        copy_timeout=manifest.copy_timeout,
        copy_limit=manifest.copy_limit,
        hooks=tuple(webhook.hook for webhook in manifest.webhooks),
    )


def service_spec(manifest: Manifest) -> dict[str, Any]:
    """`spec.service` with its defaults, by YAML key: what a running service is compared with. What came later and is not written is not in it."""
    service = manifest.service
    given = {"workerMemory": service.worker_memory, "connections": service.connections}
    limits = {name: limit for name, limit in given.items() if limit is not None}
    later: dict[str, Any] = {} if service.batching else {"batching": False}
    if service.max_batch_delay:
        later["maxBatchDelay"] = service.max_batch_delay
    if service.routers > 1:
        later["routers"] = service.routers
    if service.certificate is not None:
        later["tls"] = {"cert": str(service.certificate), "key": str(service.key)}
    if service.tokens is not None:
        later["tokens"] = str(service.tokens)
    return {
        "listen": service.listen,
        "model": service.model,
        "routingKey": None if service.routing_key is None else f"header:{service.routing_key}",
        "timeout": service.timeout,
        "engine": service.engine,
        **({"limits": limits} if limits else {}),
        **later,
    }


def label_files(manifest: Manifest) -> dict[str, Any] | None:
    """The folder of label files by YAML key, as the journal keeps it; None where none is watched."""
    files = manifest.label_files
    if files is None:
        return None
    return {
        "watch": str(files.watch),
        "format": files.format,
        "idKey": files.id_key,
        "fromName": files.from_name,
    }


def webhooks(manifest: Manifest) -> list[dict[str, Any]]:
    """The webhooks by YAML key, as the journal keeps them: with the names of files that hold secrets, never with what is in them."""
    return [
        {
            "name": one.hook.name,
            "type": one.hook.type.value,
            "url": one.url,
            "urlFile": None if one.url_file is None else str(one.url_file),
            "tokenFile": None if one.token_file is None else str(one.token_file),
            "timeout": one.timeout,
            "retries": one.retries,
            "interval": one.interval,
            "metadata": one.metadata,
        }
        for one in manifest.webhooks
    ]


def differing_keys(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The keys of `spec.service` in which two manifests differ."""
    return [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
