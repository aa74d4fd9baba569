"""A strategy compiled to data: a Plan is a list of Steps, a step is a Split and a Gate.

Plans are written into the journal when a rollout starts, so editing a manifest cannot move a running rollout.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

MAX_MARGIN = 0.5
"""A step margin never exceeds 50 points (research note: stats 5.6)."""


class Phase(Enum):
    """Where a rollout is, in the words that `status` prints."""

    PENDING = "pending"
    PROGRESSING = "progressing"
    PAUSED = "paused"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    RETIRED = "retired"


class OnInconclusive(Enum):
    """What a step does when its time is over and the evidence is not enough."""

    ROLLBACK = "rollback"
    HOLD = "hold"


class HookType(Enum):
    """When a webhook is asked or told, in Flagger's words."""

    CONFIRM_ROLLOUT = "confirm-rollout"
    PRE_ROLLOUT = "pre-rollout"
    ROLLOUT = "rollout"
    CONFIRM_TRAFFIC_INCREASE = "confirm-traffic-increase"
    CONFIRM_PROMOTION = "confirm-promotion"
    POST_ROLLOUT = "post-rollout"
    ROLLBACK = "rollback"
    EVENT = "event"


HOOK = "webhook:"
"""How `by` of an event begins that a webhook's answer led to."""


@dataclass(frozen=True, slots=True)
class Version:
    """A human label and the bytes behind it; versions are compared by digest."""

    version: str
    digest: str


HUMAN = Version("human", "")
"""The baseline of a first deployment: people decide, no model's answer is given to anybody, and no worker runs."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A version that gets copies of requests, whose answers are used for no decision. `arm` is its number in outcomes."""

    arm: int
    version: Version


@dataclass(frozen=True, slots=True)
class Split:
    """The whole desired traffic: who is served by whom. `number` identifies it in every outcome.

    `weight` is the percentage of callers that the candidate answers. `mirror` is the percentage of requests that are copied to
    those of `copies` who did not answer them; a copy may take `copy_timeout` seconds (None: as long as a request) and
    `copy_limit` of them are with one version at once. `salt` is the rollout id.
    """

    number: int
    baseline: Version
    candidate: Version | None = None
    weight: float = 0.0
    mirror: float = 0.0
    salt: str = ""
    copies: tuple[Copy, ...] = ()
    copy_timeout: float | None = None
    copy_limit: int = 32


@dataclass(frozen=True, slots=True)
class MetricRule:
    """What the manifest says of one metric. Rates and margins are fractions (0.005 is 0.5 %).

    For latency `tolerance_absolute` is in milliseconds and `margin` in requests over the learnt thresholds.
    `margin` None means the default that is computed from the baseline's own rate and frozen at the start. `limit` is the absolute
    limit of a metric that has one (milliseconds for latency percentiles, a fraction for rates).
    """

    name: str
    tolerance_relative: float
    tolerance_absolute: float
    margin: float | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class LabelRules:
    """When what people say of an answer counts, and what it says where they differ. Fixed by the manifest, like a margin.

    A request counts once `votes` distinct annotators (or labels without one) have labelled it. `adjudicate` is "majority" (the
    label that most gave; a tie says nothing), "any" (an answer is right if anybody gave it), "soft" (an answer is as wrong as the
    share of the votes that contradict it) or "expert:ID" (the label of that annotator, at once, and no other).
    """

    adjudicate: str = "majority"
    votes: int = 1

    @property
    def expert(self) -> str | None:
        """The only annotator whose labels count, if the rule names one."""
        kind, _, name = self.adjudicate.partition(":")
        return name if kind == "expert" else None


@dataclass(frozen=True, slots=True)
class Hook:
    """Somebody outside who is asked or told (docs/decisions/0015); where and how to reach them is no business of a plan's."""

    name: str
    type: HookType

    @property
    def by(self) -> str:
        """Who an event of this hook is by."""
        return f"{HOOK}{self.name}"


@dataclass(frozen=True, slots=True)
class Gate:
    """How much harm must be excluded before the rollout moves on from a step.

    `next_weight` is the share of callers (percent) that the next step would put at risk.
    """

    next_weight: float
    last: bool = False

    def margin(self, metric_margin: float) -> float:
        """The margin that fresh evidence of this step must exclude: the smaller the next step, the wider.

        At the last step twice the metric's margin; the margin itself is then asked of the whole rollout.
        """
        if self.last:
            return min(MAX_MARGIN, 2 * metric_margin)
        return min(MAX_MARGIN, metric_margin / (self.next_weight / 100))


@dataclass(frozen=True, slots=True)
class Step:
    """One split and the gate that leads out of it. Durations are seconds of rollout time."""

    weight: float
    gate: Gate | None
    mirror: float = 0.0
    dwell: float = 0.0
    awaits_person: bool = False

    @property
    def pairs_decide(self) -> bool:
        """Whether the gate looks at pairs (request and copy) and not at two arms: one version answers everybody."""
        return self.mirror > 0 and not self.compares_arms

    @property
    def compares_arms(self) -> bool:
        """Whether both versions answer callers, each a random share of them."""
        return 0 < self.weight < 100


@dataclass(frozen=True, slots=True)
class Holdback:
    """After promotion this share of callers (percent) stays on the baseline for so long (seconds), to keep comparing."""

    weight: float
    duration: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a rollout needs to know about itself; written down once, at its start.

    `passed` and `failed` are the phases that the last gate and a harm verdict lead to: a canary is promoted or
    rolled back, a shadow is retired either way. `unit` is what is randomised: "request" or "key". `others` are further
    candidates of a shadow, each judged by itself; `min_labels` is how many labelled pairs a pass of a shadow needs at least. `hooks` are
    asked or told on the way.
    """

    strategy: str
    baseline: Version
    candidate: Version
    steps: tuple[Step, ...]
    metrics: tuple[MetricRule, ...]
    alpha: float = 0.01
    beta: float = 0.05
    step_timeout: float | None = None
    on_inconclusive: OnInconclusive = OnInconclusive.ROLLBACK
    keep_warm: float | None = None
    holdback: Holdback | None = None
    unit: str = "request"
    classes: tuple[str, ...] = ()
    passed: Phase = Phase.PROMOTED
    failed: Phase = Phase.ROLLED_BACK
    others: tuple[Version, ...] = ()
    min_labels: int = 0
    labels: LabelRules = LabelRules()
    copy_timeout: float | None = None
    copy_limit: int = 32
    hooks: tuple[Hook, ...] = ()

    @property
    def candidates(self) -> tuple[Version, ...]:
        """Every version that is tried; their place, counted from 1, is their arm."""
        return (self.candidate, *self.others)

    @property
    def people_alone(self) -> bool:
        """Whether people decide and no model is live: there is nothing to compare with but their labels."""
        return self.baseline == HUMAN
