"""The manifest as pydantic models: which keys each section has, and what may be written for each.

An attribute is the snake_case of its YAML key, its docstring is what editors show. A key in `later` is one that a
later version will carry out; it is refused as such. Rules between sections are in `rules.py`.

    python -m deployctl.manifest.schema > manifests/rollout.schema.json
"""

from __future__ import annotations

import ipaddress
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    Strict,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from deployctl.manifest import model_uri
from deployctl.manifest.quantities import (
    DURATION_PATTERN,
    PERCENTAGE_PATTERN,
    SIZE_PATTERN,
    fraction,
    margin,
    percentage,
    positive_seconds,
    seconds,
    share,
    shown,
    size,
    unknown,
    weight,
    worker_memory,
)

ENGINE = "builtin"
LATER_ENGINES = frozenset({"envoy"})
LATER_METRICS: frozenset[str] = frozenset()
LATER_WORDS = frozenset({"value"})
"""Words of closed sets (here of `prediction.read`) that a later version will know."""
MAX_STEPS = 200
MAX_CANDIDATES = 8
MAX_ROUTERS = 32
MAX_WEBHOOKS = 16
MAX_CONNECTIONS = 100_000

_DURATION = {"type": "string", "pattern": DURATION_PATTERN, "examples": ["500ms", "30s", "10m", "72h"]}
_PERCENTAGE = {"type": "string", "pattern": PERCENTAGE_PATTERN, "examples": ["0.5%", "10%"]}
_WEIGHT = {
    "anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 100}, _PERCENTAGE],
    "examples": [5, "5%"],
}
_SIZE = {"type": "string", "pattern": SIZE_PATTERN, "examples": ["500MiB", "4GiB"]}
_SHARE = {"anyOf": [{"type": "number", "minimum": 0, "maximum": 100}, _PERCENTAGE], "examples": [100, "50%"]}
_FRACTION = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}

Seconds = Annotated[float, PlainValidator(seconds), WithJsonSchema(_DURATION)]
PositiveSeconds = Annotated[float, PlainValidator(positive_seconds), WithJsonSchema(_DURATION)]
Weight = Annotated[float, PlainValidator(weight), WithJsonSchema(_WEIGHT)]
Percentage = Annotated[float, PlainValidator(percentage), WithJsonSchema(_PERCENTAGE)]
Margin = Annotated[float, PlainValidator(margin), WithJsonSchema(_PERCENTAGE)]
Size = Annotated[int, PlainValidator(size), WithJsonSchema(_SIZE)]
WorkerMemory = Annotated[int, PlainValidator(worker_memory), WithJsonSchema(_SIZE)]
Fraction = Annotated[float, PlainValidator(fraction), WithJsonSchema(_FRACTION)]


@dataclass(frozen=True, slots=True)
class _Form:
    """Text of one form: the check with its message, and the pattern and examples for the published schema."""

    pattern: str
    wanted: str
    examples: tuple[str, ...] = ()

    def check(self, value: str) -> str:
        if not re.fullmatch(self.pattern, value):
            raise ValueError(f"{shown(value)} is not {self.wanted}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        examples = {"examples": list(self.examples)} if self.examples else {}
        return {**handler(schema), "pattern": f"^{self.pattern}$", **examples}


def _listen(value: object) -> str:
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not isinstance(value, str) or not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"{shown(value)} is not HOST:PORT, such as 127.0.0.1:8080 (port 0: a free one)")
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError as error:
            raise ValueError(f"{shown(host)} is no IPv6 address") from error
    elif not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252})", host):
        raise ValueError(f"{shown(host)} is no host; an IPv6 address is written [::1]:8080")
    return value


def _uri(value: str, info: ValidationInfo) -> str:
    try:
        model_uri.check(value, (info.context or {}).get("model source"))
    except model_uri.UnknownSchemeError as error:
        raise UnknownNameError(f"uri: {error}") from error
    return value


def _http_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{shown(value)} is no URL: {error}") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise ValueError(f"{shown(value)} is no URL such as https://example.com/hook")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a user or password does not belong into a manifest: use tokenFile or urlFile")
    if any(ord(character) <= 32 or ord(character) >= 127 for character in value):
        raise ValueError(f"{shown(value)} is no URL: percent-encode what is not ASCII")
    return value


class UnknownNameError(ValueError):
    """Its message says by itself what is meant, without the key before it."""


def _known(what: str, later: frozenset[str]) -> AfterValidator:
    """A name that the caller of the loader knows: the validation context maps `what` to the names."""

    def check(value: str, info: ValidationInfo) -> str:
        known = (info.context or {}).get(what)
        if known is None or value in known:
            return value
        if value in later:
            raise UnknownNameError(
                f"{what} {value!r} is not supported yet (known: {', '.join(sorted(known))})"
            )
        raise UnknownNameError(unknown(what, value, known))

    return AfterValidator(check)


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        raise ValueError("the list is empty")
    name, times = Counter(values).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{shown(name)} is listed twice")
    return values


Name = Annotated[str, _Form("[a-z0-9][a-z0-9-]{0,62}", "a name of a-z, 0-9 and -, at most 63 long")]
ModelName = Annotated[str, _Form("[A-Za-z0-9][A-Za-z0-9._-]{0,127}", "a model name of A-Z, a-z, 0-9 and ._-")]
Label = Annotated[str, _Form("[A-Za-z0-9][A-Za-z0-9._+-]{0,62}", "a version of A-Z, a-z, 0-9 and ._+-")]
Digest = Annotated[str, _Form("sha256:[0-9a-f]{64}", "a digest: sha256: and 64 characters of 0-9 and a-f")]
RoutingKey = Annotated[
    str,
    _Form(
        "header:[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}",
        "header:NAME of a request header, such as header:x-user-id",
        ("header:x-user-id",),
    ),
]
Output = Annotated[str, _Form(r"[^\x00-\x1f\x7f]{1,256}", "the name of an output tensor", ("probabilities",))]
Listen = Annotated[
    str, PlainValidator(_listen), WithJsonSchema({"type": "string", "examples": ["127.0.0.1:8080"]})
]
File = Annotated[str, _Form(r"[^\x00-\x1f\x7f]{1,1024}", "a path", ("box/file",))]
Directory = Annotated[str, _Form(r"[^\x00-\x1f\x7f]{1,1024}", "a path", ("box/folder",))]
Uri = Annotated[str, AfterValidator(_uri)]


class Section(BaseModel):
    """A mapping of the manifest. Unknown keys are errors; nothing is converted."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, alias_generator=to_camel, use_attribute_docstrings=True
    )
    later: ClassVar[frozenset[str]] = frozenset()


class Metadata(Section):
    """Who this rollout belongs to."""

    name: Name
    """Name of the service, as every other command is told it."""


class Limits(Section):
    """What the service may take of the machine."""

    worker_memory: WorkerMemory | None = None
    """Memory of one version's worker, 256MiB at least; more fails in it alone. Loading takes up to four times the file. Default: a third
    of the machine's, 512MiB at least."""
    connections: Annotated[int, Field(ge=16, le=MAX_CONNECTIONS)] | None = None
    """Callers' connections that one router keeps open at a time, 1024 where nothing is written; one more is answered 503."""


class Tls(Section):
    """The certificate that callers are shown; read again at SIGHUP."""

    cert: File
    """PEM, with all that stand between it and a root; a path relative to the manifest."""
    key: File
    """PEM, without a password, for its owner to read only."""


class Service(Section):
    """What callers see. Fixed while the service runs."""

    listen: Listen
    """HOST:PORT to listen on; port 0 takes a free one, which `status` shows."""
    model: ModelName | None = None
    """Name in the URL, /v2/models/NAME/infer; the service's name where nothing is written."""
    routing_key: RoutingKey | None = None
    """header:NAME of the request header whose value sticks to a version; default: every request for itself."""
    timeout: PositiveSeconds = Field(10.0, json_schema_extra={"default": "10s"})
    """Per request. Past it the answer is 504 and counts as bad."""
    engine: Annotated[str, _known("engine", LATER_ENGINES)] = ENGINE
    """What carries the traffic; so far the router that deployctl starts itself."""
    routers: Annotated[int, Field(ge=1, le=MAX_ROUTERS)] = 1
    """Processes that share the callers, for a machine whose processors one router does not fill."""
    tls: Tls | None = None
    tokens: File | None = None
    """A file of bearer tokens, one in each line: callers need one of them (but for `/v2/health`). Read again at SIGHUP."""
    batching: bool = True
    """Whether requests that wait may share an inference, where it was seen to change no bit of any answer (`plan` says whether it was)."""
    max_batch_delay: Annotated[float, PlainValidator(seconds), WithJsonSchema(_DURATION)] = Field(
        0.0, json_schema_extra={"default": "0s"}
    )
    """How long a request may wait for others to share an inference with; by default none waits."""
    limits: Limits | None = None

    @model_validator(mode="after")
    def _who_waits_is_answered(self) -> Service:
        if self.max_batch_delay >= self.timeout:
            raise ValueError(
                "maxBatchDelay must be shorter than timeout, or every request that meets no other is answered 504"
            )
        return self


class Model(Section):
    """One version of the model."""

    version: Label
    """The human label of this version; always text, so in quotes."""
    uri: Uri
    """Where the ONNX file is: a path relative to the manifest, file:, https: or http:, models: of an MLflow registry, s3: or gs:."""
    digest: Digest | None = None
    """sha256:… that the file must have; computed at the start where nothing is written. An https or http uri needs one."""

    @model_validator(mode="after")
    def _has_its_digest(self, info: ValidationInfo) -> Model:
        scheme = model_uri.scheme_of(self.uri)
        form = ((info.context or {}).get("model source") or {}).get(scheme)
        if form is not None and form.needs_digest and self.digest is None:
            raise ValueError(
                f"needs a digest beside its {scheme} uri: sha256:…, which `sha256sum` prints of the file"
            )
        return self


class NullIf(Section):
    """What counts as "no answer" beside NaN and empty text, which always do."""

    confidence_below: Fraction | None = None
    """Answers less sure than this count as no answer."""


class Prediction(Section):
    """How an answer is read from the output tensors."""

    later = frozenset({"labelTolerance"})

    output: Output
    """Name of the output tensor that holds the answer."""
    read: Literal["argmax", "text"] = "argmax"
    """argmax: the class with the highest value; text: the text itself."""
    classes: Annotated[tuple[str, ...], Strict(strict=False), AfterValidator(_distinct)] | None = None
    """Names of the classes in the order of the tensor, as labels use them; always text."""
    null_if: NullIf | None = None

    @model_validator(mode="after")
    def _text_has_no_confidence(self) -> Prediction:
        if self.read == "text" and self.null_if is not None and self.null_if.confidence_below is not None:
            raise ValueError("confidenceBelow needs read: argmax; a text has no confidence")
        return self


class Pause(Section):
    """A longer dwell at the step before it; without a duration a person passes it on, after its gate."""

    duration: Seconds | None = None
    """How long the step before this is held at least."""


class Ramp(Section):
    """Several weights in one line: from, from + by, … up to `to`."""

    start: Weight = Field(alias="from")
    """First weight in percent."""
    stop: Weight = Field(alias="to")
    """Last weight in percent; 100 means promotion."""
    by: Weight
    """Points from one weight to the next."""

    @model_validator(mode="after")
    def _climbs(self) -> Ramp:
        if self.start > self.stop:
            raise ValueError(f"from {self.start:g} to {self.stop:g} does not climb")
        if (self.stop - self.start) / self.by > MAX_STEPS:
            raise ValueError(f"more than {MAX_STEPS} steps")
        return self

    def weights(self) -> tuple[float, ...]:
        """The weights it stands for; `to` is always the last."""
        count = int((self.stop - self.start) / self.by + 1e-9)
        climbing = [round(self.start + self.by * at, 9) for at in range(count + 1)]
        return (*(share for share in climbing if share < self.stop), self.stop)


class Mirror(Section):
    """Copies of requests for the candidate, whose answers are used for nothing."""

    percentage: Weight = Field(100.0, json_schema_extra={"default": 100})
    """Percent of requests that are copied."""


def _step_schema(schema: dict[str, Any]) -> None:
    section = {key: schema.pop(key) for key in ("type", "properties", "additionalProperties")}
    schema["anyOf"] = [_WEIGHT, {**section, "minProperties": 1, "maxProperties": 1}]


class Step(Section):
    """One of setWeight, mirror, pause and ramp; a bare number is setWeight."""

    model_config = ConfigDict(json_schema_extra=_step_schema)
    later = frozenset({"setMirrorRoute", "analysis", "experiment"})

    set_weight: Weight | None = None
    """Share of callers in percent that the candidate answers; a final 100 means promotion."""
    mirror: Mirror | None = None
    """The candidate answers copies of requests, and nobody gets its answers; before the first weight."""
    pause: Pause | None = None
    """Belongs to the step before it."""
    ramp: Ramp | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare_number(cls, value: Any) -> Any:
        return value if isinstance(value, dict | list) else {"setWeight": value}

    @model_validator(mode="after")
    def _is_one_thing(self) -> Step:
        if len(self.model_fields_set) != 1:
            raise ValueError("a step is exactly one of setWeight, mirror, pause and ramp")
        return self

    def weights(self) -> tuple[float, ...]:
        """The weights of this step; none for a pause."""
        if self.ramp is not None:
            return self.ramp.weights()
        return () if self.set_weight is None else (self.set_weight,)


class Holdback(Section):
    """After the promotion this share of callers stays on the baseline, to keep comparing."""

    weight: Weight
    """Percent of callers, below 100."""
    duration: PositiveSeconds
    """How long; harm in this time rolls back."""

    @field_validator("weight")
    @classmethod
    def _leaves_someone(cls, value: float) -> float:
        if value >= 100:
            raise ValueError("holdback: a weight below 100; somebody must be promoted to")
        return value


class Canary(Section):
    """A growing share of callers is answered by the candidate, as far as the evidence allows."""

    steps: Annotated[tuple[Step, ...], Strict(strict=False)]
    """Weights, climbing; promotion follows the last one."""
    min_dwell: Seconds = Field(30.0, json_schema_extra={"default": "30s"})
    """Least time per step, beside the evidence."""
    step_timeout: PositiveSeconds | None = None
    """How long a step may wait for evidence, after dwell and pause; default: at least 30m, longer for little traffic."""
    on_inconclusive: Literal["rollback", "hold"] = "rollback"
    """What happens when a step's time is over without enough evidence."""
    bake: Seconds = Field(300.0, json_schema_extra={"default": "5m"})
    """Least time at the last step, before promotion."""
    holdback: Holdback | None = None
    """Keep comparing after the promotion; default: nobody is held back."""
    keep_warm: Seconds | None = None
    """How long the version before stays loaded after a promotion; default: until the next rollout starts."""


class Shadow(Section):
    """The candidate answers copies of the traffic; nothing is decided by it, and it is compared with people and the baseline."""

    percentage: Weight = Field(100.0, json_schema_extra={"default": 100})
    """Percent of requests that are copied."""
    min_labels: Annotated[int, Field(ge=0)] | None = None
    """Labelled answers that a pass needs at least; default: 300 where a metric uses labels, else 0."""
    max_duration: PositiveSeconds = Field(72 * 3600.0, json_schema_extra={"default": "72h"})
    """It ends as inconclusive after this time."""
    timeout: PositiveSeconds | None = None
    """How long a copy may take; past it that is an error of the candidate. Default: as long as a request."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 32
    """Copies that are with one version at once; what does not fit into the queue behind them is dropped and counted."""


class Bake(Section):
    """How the new version is compared after the switch."""

    duration: PositiveSeconds = Field(300.0, json_schema_extra={"default": "5m"})
    """Least time after the switch, before promotion."""
    compare: Literal["mirror", "holdback"] = "mirror"
    """mirror: with copies that the version before answers; holdback: with callers that stay on it."""
    holdback: Weight = Field(5.0, json_schema_extra={"default": 5})
    """Percent of callers that stay on the version before, with compare: holdback; below 100."""

    @field_validator("holdback")
    @classmethod
    def _switches_someone(cls, value: float) -> float:
        if value >= 100:
            raise ValueError("holdback: a weight below 100; somebody must be switched")
        return value


class BlueGreen(Section):
    """All callers at once: the candidate is checked on copies, then it answers everybody, and the version before stays beside it."""

    mirror: Annotated[float, PlainValidator(share), WithJsonSchema(_SHARE)] = Field(
        100.0, json_schema_extra={"default": 100}
    )
    """Percent of requests that are copied to the candidate before the switch; 0: none, and a person decides."""
    auto_promotion: bool
    """Whether the switch follows the evidence by itself, or waits for `deployctl promote`. It has no default."""
    bake: Bake | None = None
    """Default: 5m, compared with copies that the version before answers."""
    step_timeout: PositiveSeconds | None = None
    """How long each of the two steps may wait for evidence; default: at least 30m, longer for little traffic."""
    on_inconclusive: Literal["rollback", "hold"] = "rollback"
    """What happens when that time is over without enough evidence."""
    keep_warm: Seconds | None = None
    """How long the version before stays loaded after the promotion; default: until the next rollout starts."""


class Strategy(Section):
    """How the candidate replaces the baseline."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    canary: Canary | None = None
    shadow: Shadow | None = None
    blue_green: BlueGreen | None = None

    @model_validator(mode="after")
    def _is_named(self) -> Strategy:
        if len(self.model_fields_set) != 1:
            raise ValueError("names exactly one strategy (known: blueGreen, canary, shadow)")
        return self


class Tolerance(Section):
    """How much worse the candidate may be without being called harmful: relative plus absolute."""

    relative: Percentage | None = None
    """Percent of the baseline's own rate (of its time, for latency); default 10%."""
    absolute: str | None = Field(default=None, json_schema_extra={"examples": ["0.1%", "5ms"]})
    """Points on top, default 0.1%; for latency a duration, default 5ms."""


class MetricEntry(Section):
    """One number that is compared between candidate and baseline."""

    name: Annotated[str, _known("metric", LATER_METRICS)]
    """Which metric, and with it the share of what:"""
    tolerance: Tolerance | None = None
    margin: Margin | None = None
    """Increase that must be excluded before promotion; default: 0.5 points + an eighth of the baseline's rate."""
    max: str | None = Field(default=None, json_schema_extra={"examples": ["500ms", "5%"]})
    """Absolute limit: a duration for latency-p50, -p90, -p95, -p99 (over it alone is harm, over it with the baseline a freeze); a
    percentage for a rate that copies are judged by (disagreement-rate, and every rate of a shadow)."""


class Webhook(Section):
    """Somebody who must agree to a move of the rollout, or who is told of it: a POST of a CloudEvent, where 2xx means yes (or taken)."""

    name: Name
    """What it is called in `status`, in the journal and in `explain`."""
    type: Literal[
        "confirm-rollout",
        "pre-rollout",
        "rollout",
        "confirm-traffic-increase",
        "confirm-promotion",
        "post-rollout",
        "rollback",
        "event",
    ]
    """When it is asked or told. confirm-* hold for as long as it takes; pre-rollout and rollout within the step's time; rollback is asked all
    the time, and its 2xx rolls back; post-rollout is told of the end, event of every event."""
    url: Annotated[str, AfterValidator(_http_url)] | None = None
    """http: or https:, without a user or password."""
    url_file: File | None = None
    """In place of `url`: a file whose first line is the URL, for one that is a secret; read at each call."""
    token_file: File | None = None
    """A file whose first line is sent as bearer token; read at each call."""
    timeout: PositiveSeconds = Field(10.0, json_schema_extra={"default": "10s"})
    """How long one call may take."""
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """How often a call that could not be made, or was answered 5xx, is made again at once."""
    interval: PositiveSeconds = Field(10.0, json_schema_extra={"default": "10s"})
    """How long after an answer that is no agreement it is asked again."""
    metadata: dict[str, str] | None = None
    """Texts that are sent along."""

    @model_validator(mode="after")
    def _is_somewhere(self) -> Webhook:
        if (self.url is None) == (self.url_file is None):
            raise ValueError("exactly one of url and urlFile")
        return self


def _told_apart(hooks: tuple[Webhook, ...]) -> tuple[Webhook, ...]:
    if hooks:
        _distinct(tuple(hook.name for hook in hooks))
    return hooks


class Analysis(Section):
    """What must be shown before the candidate gets more traffic."""

    later = frozenset({"skip"})

    alpha: Fraction = 0.01
    """Chance that a harmless candidate is ever rolled back, however often one looks."""
    beta: Fraction = 0.05
    """Chance that a candidate worse than the margin is promoted."""
    metrics: Annotated[tuple[MetricEntry, ...], Strict(strict=False)] = ()
    """Harm in any of them rolls back; every one of them must show safety before a promotion. Beside a strategy there must be at least
    one that compares."""
    webhooks: Annotated[
        tuple[Webhook, ...], Strict(strict=False), Field(max_length=MAX_WEBHOOKS), AfterValidator(_told_apart)
    ] = ()
    """Who else must agree, and who is told."""


class Log(Section):
    """What is kept of the requests that versions were compared on."""

    inputs: Literal["none", "hash", "full"] = "hash"
    """Of their bodies: nothing, a keyed hash that tells equal ones, or the bodies themselves (up to 1 MiB each)."""
    max_size: Size = Field(4 * 2**30, json_schema_extra={"default": "4GiB"})
    """How much may be kept on disk; the oldest goes first."""


class Labels(Section):
    """Human labels: where their files appear, and what counts when several people label one answer."""

    watch: Directory | None = None
    """Folder in which label files appear or grow; relative to the manifest. Default: none is watched."""
    format: Annotated[str, _known("label format", frozenset())] | None = None
    """Form of those files: jsonl, csv, label-studio, label-studio-min; told by their content where nothing is written."""
    id_key: Annotated[str, _Form(r"[^\x00-\x1f\x7f]{1,256}", "the name of a key")] = "deployctl_id"
    """Key under which a labelling tool's file has the request id."""
    from_name: Annotated[str, _Form(r"[^\x00-\x1f\x7f]{1,256}", "the name of a question")] | None = None
    """Which question of a labelling tool gives the label, where it asks several."""
    adjudicate: Annotated[
        str,
        _Form(
            r"(majority|any|soft|expert:[^\x00-\x1f\x7f]{1,256})",
            "one of majority, any, soft and expert:ID",
            ("majority", "any", "soft", "expert:anna"),
        ),
    ] = "majority"
    """What is true when people differ: what most say, any of it, each in its share, or what the annotator ID says."""
    votes: Annotated[int, Field(ge=1, le=100)] = 1
    """How many people must have labelled an answer before it counts."""


class Spec(Section):
    """The service, its versions, and how one replaces the other."""

    service: Service
    baseline: Model | None = None
    candidate: Model | None = None
    candidates: (
        Annotated[tuple[Model, ...], Strict(strict=False), Field(min_length=1, max_length=MAX_CANDIDATES)]
        | None
    ) = None
    """Several at once, in place of `candidate`; with a shadow only, each judged by itself."""
    prediction: Prediction | None = None
    strategy: Strategy | None = None
    analysis: Analysis | None = None
    log: Log | None = None
    labels: Labels | None = None


class Document(Section):
    """A rollout of deployctl."""

    api_version: Literal["deployctl/v1"]
    """The form of this file."""
    kind: Literal["Rollout"]
    """The only kind there is."""
    metadata: Metadata
    spec: Spec


LATER_ANYWHERE = frozenset({"limits"})
"""Keys that later versions add to whichever section they belong to."""


def section_at(path: tuple[str | int, ...]) -> type[Section]:
    """The model of the section that stands at this path."""
    section: type[Section] = Document
    for key in path:
        for field in section.model_fields.values():
            if field.alias == key:
                section = next(_sections_in(field.annotation))
    return section


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections_in(argument)


def json_schema() -> dict[str, Any]:
    """The published JSON Schema: draft 7, which is what editors read."""
    from deployctl.core.metrics import METRICS  # noqa: PLC0415 - numpy, and only here

    schema = Document.model_json_schema(
        ref_template="#/definitions/{model}", schema_generator=_Draft7, mode="validation"
    )
    definitions = schema.pop("$defs")
    name = definitions["MetricEntry"]["properties"]["name"]
    name["enum"] = sorted(METRICS)
    name["description"] += f" {'; '.join(f'{bad} ({names})' for bad, names in _counted().items())}."
    definitions["Service"]["properties"]["engine"]["enum"] = [ENGINE]
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema, "definitions": definitions}


def _counted() -> dict[str, str]:
    """What is counted as bad, each with the metrics that count it."""
    from deployctl.core.metrics import METRICS  # noqa: PLC0415 - as above

    names: dict[str, str] = {}
    for metric in METRICS.values():
        names[metric.bad] = f"{names[metric.bad]}, {metric.name}" if metric.bad in names else metric.name
    return names


WRITTEN_AS = {str: "string", bool: "boolean", int: "integer", float: "number"}
"""Types of defaults that the file has as they are here."""


class _Draft7(GenerateJsonSchema):
    """Without titles, and without null: a key that is left out is not written as null."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - pydantic's signature
        return False

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        written = super().default_schema(schema)
        kind = WRITTEN_AS.get(type(written.get("default")))
        if kind is None or kind not in {"string", written.get("type")}:  # units: see json_schema_extra
            written.pop("default", None)
        return written


def published() -> str:
    """The text of the schema file that stands beside every manifest."""
    return json.dumps(json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(published())
