"""Which histories of a service are legal: what people asked and were told, what was seen, who answered whom, and the journal.

Everything is on one clock, the monotonic one, in seconds. `complaints` gives a sentence for each rule that a history breaks; it shares
no code with the product, and knows of it only what the contract says.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass, field

SLACK = 0.02
"""Seconds between a thing and the note of it: the journal's time is in milliseconds."""

NEWS = 0.1
"""Seconds until a peer on a busy machine knows that a process is gone."""

ENDS = {"promoted", "rolled_back", "retired"}
AFTER = {
    None: {"started"},
    "pending": {"learned", "climbed", "paused", "held"} | ENDS,
    "progressing": {"learned", "climbed", "awaited", "held", "paused", "judged"} | ENDS,
    "paused": {"learned", "climbed", "paused", "resumed", "judged"} | ENDS,
    "promoted": {"released", "rolled_back", "finished"},
    "rolled_back": set(),
    "retired": set(),
}
"""Phase of a rollout → what may happen to it."""


@dataclass(frozen=True)
class Verb:
    """A person's order. `by` names it in the journal; `changed` is None where no answer came (the command was killed, or failed
    in a way that leaves open whether it was carried out)."""

    kind: str
    by: str
    began: float
    ended: float
    changed: bool | None
    confirmed: bool = False
    """Whether it was answered after the router had read it back."""


@dataclass(frozen=True)
class Seen:
    """One `status`."""

    began: float
    ended: float
    rollout: str | None
    phase: str | None
    live: str | None
    weight: float | None


@dataclass(frozen=True)
class Fault:
    """Something that was done to the service. What was in flight in what it killed, between `began` and `ended`, may be lost; what waits
    for its successor until `back` may wait too long.
    """

    kind: str
    began: float
    ended: float
    costs: bool = False
    back: float = 0.0


@dataclass(frozen=True)
class Response:
    """One request as its caller saw it."""

    sent: float
    done: float
    status: int | str
    version: str | None


@dataclass(frozen=True)
class State:
    """The service after an event of its journal: who is live, and who answers callers."""

    seq: int
    at: float
    kind: str
    by: str
    rollout: str | None
    phase: str | None
    live: str
    weight: float
    answering: frozenset


@dataclass
class History:
    """Everything that is known of one run. `journal` are the records as they are, `clock` what takes their wall time to our clock."""

    journal: list
    clock: object
    verbs: list = field(default_factory=list)
    seen: list = field(default_factory=list)
    faults: list = field(default_factory=list)
    responses: list = field(default_factory=list)
    bad: frozenset = frozenset()
    strangers: frozenset = frozenset()
    """Persons whose orders nobody noted: commands that were killed half-way."""


def complaints(history):
    """Every rule that this history breaks, in a sentence each."""
    said = []
    states = fold(history, said.append)
    for rule in (acknowledged, never_back, allowed, only_with_evidence, bad_ones_end, nothing_lost):
        said += rule(history, states)
    return said


@dataclass
class Rollout:
    """One rollout of the journal, as the contract has it."""

    id: str
    plan: dict
    step: int = -1
    paused: bool = False
    waits: bool = False
    released: bool = False
    ended: str | None = None

    @property
    def phase(self):
        if self.ended or self.paused or self.waits:
            return self.ended or "paused"
        return "pending" if self.step < 0 else "progressing"

    @property
    def weight(self):
        if self.ended == "promoted":
            held_back = self.plan["holdback"] and not self.released
            return 100.0 - (self.plan["holdback"]["weight"] if held_back else 0.0)
        return 0.0 if self.ended or self.step < 0 else self.plan["steps"][self.step]["weight"]

    @property
    def live(self):
        return self.plan["candidate" if self.ended == "promoted" else "baseline"]["version"]

    @property
    def answering(self):
        shares = {"baseline": 100.0 - self.weight, "candidate": self.weight}
        return frozenset(self.plan[who]["version"] for who, share in shares.items() if share > 0)

    def happens(self, event):
        match event["kind"]:
            case "climbed":
                self.step, self.waits = event["step"], False
            case "awaited" | "held":
                self.waits = True
            case "paused" | "resumed":
                self.paused = event["kind"] == "paused"
            case "released" | "finished":
                self.released = True
            case kind if kind in ENDS:
                self.ended = kind


def fold(history, complain):
    """The state after each record of the journal; what cannot happen is complained about."""
    states, rollout = [], None
    for record in history.journal:
        seq, at = record["seq"], history.clock(record["wall"])
        if record["type"] != "event":
            live = rollout.live if rollout else record["version"]["version"]
            before = (rollout.id, rollout.phase, live, rollout.weight, rollout.answering) if rollout else None
            states.append(
                State(seq, at, "served", "", *(before or (None, None, live, 0.0, frozenset({live}))))
            )
            continue
        event, phase = record["event"], rollout.phase if rollout else None
        if rollout is None or record["rollout"] != rollout.id:
            if phase not in {None, *ENDS}:
                complain(f"{record['rollout']} began while {rollout.id} was {phase}")
            live = states[-1].live
            rollout, phase = Rollout(record["rollout"], event["plan"]), None
            if rollout.live != live:
                complain(f"{rollout.id} began from version {rollout.live}, but {live} was live")
        if event["kind"] not in AFTER[phase]:
            complain(f"{event['kind']} happened to {rollout.id}, which was {phase}")
        rollout.happens(event)
        states.append(
            State(
                *(seq, at, event["kind"], event["by"], rollout.id, rollout.phase, rollout.live),
                *(rollout.weight, rollout.answering),
            )
        )
    return states


def acknowledged(history, states):
    """An order that was answered is in the journal if and only if it changed something, and in the order of the answers."""
    events = {}
    for state in states:
        events.setdefault(state.by, []).append(state)
    kills = [fault for fault in history.faults if fault.kind == "kill controller"]
    answered = []
    for verb in history.verbs:
        mine = events.get(verb.by, [])
        if verb.changed is None:
            continue
        if verb.changed and not mine:
            yield f"{verb.by}: {verb.kind} was answered as done, and is not in the journal"
        if not verb.changed and mine and not any(_overlap(verb, kill) for kill in kills):
            yield f"{verb.by}: {verb.kind} was answered as nothing to do, and changed something"
        if mine and not all(verb.began - SLACK <= one.at <= verb.ended + SLACK for one in mine):
            yield f"{verb.by}: {verb.kind} is in the journal at a time at which it was not asked for"
        if verb.changed and mine:
            answered.append((verb, mine))
    answered.sort(key=lambda one: one[0].ended)
    ends = [verb.ended for verb, _ in answered]
    latest = _running_max([mine[-1].seq for _, mine in answered])
    for verb, mine in answered:
        before = bisect_left(ends, verb.began)
        if before and latest[before - 1] > mine[0].seq:
            yield f"{verb.by}: {verb.kind} came after an answered order and stands before it in the journal"


def never_back(history, states):
    """Every `status` shows a state that was true while it was asked, and none from before an order that was answered."""
    answered = sorted((verb.ended, verb.by) for verb in history.verbs if verb.changed)
    number = {}
    for at, state in enumerate(states):
        number[state.by] = at
    ends = [ended for ended, _ in answered]
    known = _running_max([number.get(by, 0) for _, by in answered])
    times = [state.at for state in states]
    for seen in history.seen:
        answers = bisect_left(ends, seen.began)
        first = max(known[answers - 1] if answers else 0, bisect_right(times, seen.began - SLACK) - 1)
        last = bisect_right(times, seen.ended + SLACK)
        if not any(
            (state.rollout, state.phase, state.live) == (seen.rollout, seen.phase, seen.live)
            for state in states[max(first, 0) : last]
        ):
            yield f"a status at {seen.began:.3f} showed {seen.phase} of {seen.rollout}, and that was over"


def allowed(history, states):
    """Every answer is of a version that some split allowed between the sending of its request, or the last read-back before it, and the answer."""
    times, confirmed = [state.at for state in states], _confirmations(history, states)
    for response in history.responses:
        if response.version is None:
            continue
        first = bisect_right(confirmed, (response.sent, len(states))) - 1
        first = confirmed[first][1] if first >= 0 else 0
        last = bisect_right(times, response.done + SLACK)
        if not any(response.version in state.answering for state in states[first : max(last, first + 1)]):
            yield (
                f"version {response.version} answered a request sent at {response.sent:.3f}, and the journal gave it nobody "
                f"since event {states[first].seq}"
            )


def _confirmations(history, states):
    """(when, number of the state): from then on the router does what this state says, or a later one. A weight that was read back says so
    where nothing since the last confirmation had the same weight and other versions.
    """
    times, number = [state.at for state in states], {state.by: at for at, state in enumerate(states)}
    found = [
        (verb.ended, number[verb.by], None) for verb in history.verbs if verb.confirmed and verb.by in number
    ]
    for seen in history.seen:
        at = bisect_right(times, seen.began - SLACK) - 1
        if bisect_right(times, seen.ended + SLACK) - 1 == at and seen.weight == states[at].weight:
            found.append((seen.ended, at, seen.weight))
    confirmed, rising = 0, []
    for when, at, weight in sorted(found, key=lambda one: one[0]):
        others = (one for one in states[confirmed:at] if one.weight == weight)
        if at > confirmed and all(one.answering == states[at].answering for one in others):
            confirmed = at
            rising.append((when, at))
    return rising


def only_with_evidence(history, states):
    """Nobody gets more callers, or all of them, without a verdict that says pass or a person who was asked."""
    asked = {verb.by for verb in history.verbs} | history.strangers
    for record, state in zip(history.journal, states, strict=True):
        if state.kind not in {"climbed", "promoted"} or (
            state.kind == "climbed" and record["event"]["step"] == 0
        ):
            continue
        verdict = record["event"].get("verdict") or {}
        if record["event"]["cause"] == "person":
            if state.by not in asked:
                yield f"event {state.seq}: {state.kind} by {state.by}, who was never heard of"
        elif record["event"]["cause"] != "evidence" or verdict.get("result") != "pass":
            yield f"event {state.seq}: {state.kind} without evidence and without a person"


def bad_ones_end(history, states):
    """A bad candidate is never the one that stays: the last word on each of its rollouts is that it is gone."""
    tried, last = {}, {}
    for record, state in zip(history.journal, states, strict=True):
        if state.kind == "started":
            tried[state.rollout] = record["event"]["plan"]["candidate"]["version"]
        last[state.rollout] = state
    for rollout, candidate in tried.items():
        if candidate in history.bad and last[rollout].phase not in {"rolled_back", "retired"}:
            yield f"{rollout}: the bad version {candidate} is {last[rollout].phase} at the end"


def nothing_lost(history, _states):
    """A request fails only where something was killed that it was in or waits for, or where the router has too many on a busy machine."""
    for response in _failed(history):
        if _lost_to(history, response) is None:
            yield f"a request sent at {response.sent:.3f} was lost ({response.status}), and nothing it was in was killed"


def lost(history):
    """How many requests were lost, by what."""
    return Counter(_lost_to(history, response) or "nothing" for response in _failed(history))


def _failed(history):
    return (one for one in history.responses if one.status != 200 and one.version not in history.bad)


def _lost_to(history, response):
    """Why a failed request may have failed, None where nothing explains it."""
    after = (fault for fault in history.faults if response.done >= fault.began)
    meanwhile = [fault for fault in after if response.sent <= max(fault.ended, fault.back) + NEWS]
    if any(fault.costs and response.sent <= fault.ended + NEWS for fault in meanwhile):
        return "in flight in what was killed"
    if any(fault.costs for fault in meanwhile):
        return "waited for what was killed"
    return "turned away in a fault" if meanwhile and response.status == 503 else None


def _overlap(one, other):
    return one.began <= other.ended + SLACK and other.began <= one.ended + SLACK


def _running_max(values):
    highest, result = 0, []
    for value in values:
        highest = max(highest, value)
        result.append(highest)
    return result
