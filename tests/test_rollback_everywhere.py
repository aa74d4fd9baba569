"""Rollback everywhere: in every place of every strategy, after every end, twice, and to a named version.

The table has every place that a service can be in. `Contract` is the page of the contract on a person's verbs, in a few lines: a
machine gives random verbs to the real controller and holds each answer, the journal and the router against it.
"""

import asyncio
import random
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from fakes import BY, CANARY, Behaviour, FakeService

from deployctl.core.plan import HUMAN, Phase
from deployctl.core.rollout import Cause, Event, Kind
from deployctl.errors import ConflictError, InvalidError, UnavailableError, UnconfirmedError
from deployctl.journal import read as read_journal

GOOD = {version: Behaviour(errors=0.005) for version in ("1", "2", "3")}
BY_HAND = {"mirror": 100, "autoPromotion": False, "bake": {"duration": "5s", "compare": "mirror"}}
HELD_BACK = {"duration": "5s", "compare": "holdback", "holdback": 20}
SLOWLY = {"minDwell": "100s"}


QUICK = {"minDwell": "200ms", "bake": "200ms", "metrics": [{"name": "error-rate", "margin": "20%"}]}
"""A gate that a few answers pass."""


QUICK_SWITCH = {"metrics": QUICK["metrics"]}
AT_ONCE = {"autoPromotion": True, "bake": {"duration": "200ms", "compare": "mirror"}}


def steps(*weights):
    return {"steps": list(weights), **SLOWLY}


def promoted(service, **canary):
    service.ramp(canary={**QUICK, "steps": [50], **canary})
    service.watch_until_over()


# ── the places ─────────────────────────────────────────────────────────────────────────────────────────────────────


def before_learning(service):
    service.callers.per_second = 0
    service.watch(1)
    service.ramp()
    service.watch(1)


def paused_before_the_first_step(service):
    before_learning(service)
    service.pause()


def mirror_step(service):
    service.ramp(canary=steps({"mirror": {"percentage": 100}}, 5))
    service.watch(1)


def at_weight(weight):
    def go(service):
        service.ramp(canary={**QUICK, "steps": [5, 30, 50], "bake": "100s"})
        service.watch(30, lambda: service.weight == weight)
        assert service.weight == weight

    go.__name__ = f"at_{weight}_percent"
    return go


def paused(service):
    service.ramp(canary=steps(5, 30))
    service.watch(1)
    service.pause()


def holding(service):
    service.ramp(canary={"onInconclusive": "hold", "stepTimeout": "1s"})
    service.callers.per_second = 0
    service.watch(10, lambda: service.rollout.waits_for == "hold")


def held_and_paused(service):
    holding(service)
    service.pause()


def waiting_for_a_person(service):
    service.ramp(canary={**QUICK, "steps": [5, {"pause": {}}, 30]})
    service.watch(20, lambda: service.rollout.waits_for == "person")


def held_back_after_promotion(service):
    promoted(service, holdback={"weight": 5, "duration": "100s"})


def kept_warm(service):
    promoted(service, keepWarm="1h")


def finished(service):
    promoted(service, keepWarm="100ms")
    service.watch(3)
    assert service.workers.wanted == ["2"]


def promoted_in_full(service):
    service.ramp(canary=steps(5, 30))
    service.watch(1)
    service.promote("the old one is on fire", full=True)


def copies_before_the_switch(service):
    service.switch("2", {**BY_HAND, "stepTimeout": "100s"})
    service.callers.per_second = 20
    service.watch(0.5)


def waiting_for_the_switch(service):
    service.switch("2", {**QUICK_SWITCH, **BY_HAND})
    service.watch(20, lambda: service.rollout.waits_for == "person")


def baking_by_copies(service):
    waiting_for_the_switch(service)
    service.promote()
    service.watch(1)


def baking_by_holdback(service):
    service.switch("2", {**QUICK_SWITCH, **BY_HAND, "bake": HELD_BACK})
    service.watch(20, lambda: service.rollout.waits_for == "person")
    service.promote()
    service.watch(1)


def switched_and_kept_warm(service):
    service.switch("2", {**QUICK_SWITCH, **BY_HAND, **AT_ONCE, "keepWarm": "1h"})
    service.watch_until_over()


def shadowing(service):
    service.shadow("2", shadow={"minLabels": 10_000})
    service.watch(1)


def shadowing_several(service):
    service.shadow("2", "3", shadow={"minLabels": 10_000})
    service.watch(1)


def went_to_a_version_by_name(service):
    kept_warm(service)
    service.rollback()
    service.rollback(to="2")


RUNNING = [
    *(before_learning, paused_before_the_first_step, mirror_step, at_weight(5), at_weight(30), at_weight(50)),
    *(paused, holding, held_and_paused, waiting_for_a_person),
    *(copies_before_the_switch, waiting_for_the_switch, baking_by_copies, baking_by_holdback),
    *(shadowing, shadowing_several),
]
PROMOTED = [
    *(held_back_after_promotion, kept_warm, finished, promoted_in_full, switched_and_kept_warm),
    went_to_a_version_by_name,
]
DIFFERENT = [
    *(before_learning, at_weight(30), paused, waiting_for_the_switch, baking_by_holdback, shadowing_several),
    *(held_back_after_promotion, finished, went_to_a_version_by_name),
]
"""One place of each kind, for what takes longer."""


def nothing_ever(service):
    pass


def rolled_back(service):
    paused(service)
    service.rollback()


def rolled_back_after_promotion(service):
    kept_warm(service)
    service.rollback()


def rolled_back_on_top_of_a_promotion(service):
    """Version 2 is live; 3 was tried after it. There is a version before, and it is not what this rollback is about."""
    kept_warm(service)
    service.ramp("3")
    service.watch(0.5)
    service.rollback()


def retired(service):
    shadowing(service)
    service.rollback()


NOTHING_TO_ROLL_BACK = [
    *(nothing_ever, rolled_back, rolled_back_after_promotion, rolled_back_on_top_of_a_promotion, retired)
]


@pytest.fixture
def service(tmp_path):
    with FakeService(tmp_path, dict(GOOD), labelled=0.5, label_delay=(0.5, 1.0)) as service:
        service.up()
        service.watch(0.6)  # so that the gate has something to learn from
        yield service


def named(places):
    return pytest.mark.parametrize("place", places, ids=lambda place: place.__name__)


@named(RUNNING)
def test_in_a_rollout_it_ends_at_weight_0_and_twice_is_once(service, place):
    place(service)
    assert service.controller.service.running is not None
    assert_a_version_that_was_never_here_is_refused(service)

    assert answered_by(service, service.rollback("seen enough")) == {"1"}

    last = service.events[-1]
    assert (last.kind, last.cause, last.reason) == (Kind.ROLLED_BACK, Cause.PERSON, "seen enough")
    assert (service.rollout.phase, service.weight) == (Phase.ROLLED_BACK, 0)
    assert_nothing_is_left_to_roll_back(service, live="1")


@named(PROMOTED)
def test_after_a_promotion_the_version_before_is_live_again_and_it_goes_no_further(service, place):
    place(service)
    assert service.controller.service.live.version == "2"
    assert_a_version_that_was_never_here_is_refused(service)
    assert_the_live_version_is_nothing_to_go_to(service)

    assert answered_by(service, service.rollback()) == {"1"}

    assert service.rollout.phase is Phase.ROLLED_BACK
    assert_nothing_is_left_to_roll_back(service, live="1")


@named(NOTHING_TO_ROLL_BACK)
def test_where_nothing_is_to_be_rolled_back_nothing_changes(service, place):
    place(service)
    assert_a_version_that_was_never_here_is_refused(service)
    assert_the_live_version_is_nothing_to_go_to(service)
    assert_nothing_is_left_to_roll_back(service, live=service.controller.service.live.version)


@named(RUNNING)
def test_to_the_version_that_is_live_it_ends_the_rollout_and_says_that_it_did(service, place):
    place(service)
    changed = asyncio.run(service.commands.rollback(BY, "", "1"))
    assert (changed.changed, service.events[-1].kind) == (True, Kind.ROLLED_BACK)
    assert answering(service) == {"1"}


@named(DIFFERENT)
def test_to_a_named_version_it_is_a_rollout_of_one_step_that_can_be_taken_back(service, place):
    place(service)
    live = service.controller.service.live.version
    target = {"1": "2", "2": "1"}[live]

    assert answered_by(service, service.rollback("by name", to=target)) == {target}

    assert service.kinds[:2] == ["started", "promoted"]
    assert service.controller.service.live.version == target
    assert answered_by(service, service.rollback()) == {live}
    assert_nothing_is_left_to_roll_back(service, live=live)


@named(DIFFERENT)
def test_a_controller_that_dies_right_after_writing_it_down_is_followed_by_one_that_does_it(service, place):
    place(service)
    rollout = service.rollout
    event = Event(0, Kind.ROLLED_BACK, service.controller.order_time(), BY, Cause.PERSON, "dies")
    service.controller.record(rollout.id, event)
    service.restart()
    service.step()  # a version that was unloaded is loaded first
    assert answered_by(service, "") == {"1"}


@named(DIFFERENT)
def test_while_the_baselines_worker_is_gone_the_weight_stays_and_then_it_moves(service, place):
    place(service)
    weight, served = service.weight, answering(service)
    service.traffic.unreachable = {"1"}
    service.commands.confirm_seconds = 0.05
    if weight > 0:
        with pytest.raises(UnconfirmedError, match=r"version 1 was not ready .* call a person"):
            service.rollback()
        assert (service.weight, answering(service)) == (weight, served)
        assert service.kinds[-1] == "rolled_back", "it is written down all the same"
        service.restart()
        assert (service.weight, answering(service)) == (weight, served), "whoever is killed meanwhile"
        assert set(served) <= set(service.workers.wanted), "nobody is unloaded who still answers"
    else:
        service.rollback()

    service.traffic.unreachable = set()
    service.step()

    assert service.weight == 0
    assert answered_by(service, "") == {"1"}


def test_it_is_not_done_before_the_router_has_read_it_back(service):
    at_weight(30)(service)
    service.traffic.refuses = UnavailableError("the router does not listen")
    service.commands.confirm_seconds = 0.05
    with pytest.raises(UnconfirmedError, match=r"no router confirmed it .* call a person"):
        service.rollback()
    assert (service.weight, service.kinds[-1]) == (30, "rolled_back")
    service.traffic.refuses = None
    service.step()
    assert answered_by(service, "") == {"1"}
    assert_nothing_is_left_to_roll_back(service, live="1")


def test_a_rollback_to_people_needs_no_worker(tmp_path):
    with FakeService(tmp_path, dict(GOOD), labelled=1.0) as service:
        service.up(None)
        service.watch(1)
        service.shadow("1", shadow={"metrics": [{"name": "error-rate", "max": "2%"}]})
        service.watch(1)
        assert "people decide" in service.rollback()
        assert service.rollback().startswith("nothing to roll back: people decide")
        service.shadow("1", shadow={"metrics": [{"name": "error-rate", "max": "2%"}]})
        service.watch(1)
        service.promote("good enough", full=True)
        assert service.controller.service.live.version == "1"
        assert "people decide" in service.rollback()
        assert (service.controller.service.live, answering(service)) == (HUMAN, set())


# ── orders that cross each other ───────────────────────────────────────────────────────────────────────────────────


@dataclass
class Crossing:
    """Two orders of which the first waits for a model to load, and the second comes meanwhile."""

    service: FakeService

    def begin(self, first, second):
        """What became of each: its answer, or what it raised."""

        async def both():
            task = asyncio.ensure_future(first)
            await asyncio.sleep(0.02)
            assert not task.done(), "it does not wait for anything"
            came = await asyncio.gather(second, return_exceptions=True)
            self.service.workers.slow = set()
            return (*await asyncio.gather(task, return_exceptions=True), *came)

        return asyncio.run(both())


@pytest.fixture
def crossing(service):
    return Crossing(service)


def starting(service, candidate, **canary):
    live = service.controller.service.live.version
    text = service._manifest(live, candidate, {**CANARY, **canary})
    return service.commands.start_rollout(text, service._path, BY)


def test_a_rollback_while_a_candidate_is_loaded_calls_its_rollout_off(service, crossing):
    service.workers.slow = {"2"}
    started, back = crossing.begin(starting(service, "2"), service.commands.rollback("person:bob", "", None))
    assert isinstance(started, ConflictError)
    assert "version 2 did not begin: person:bob called it off" in str(started)
    assert (back.changed, "does not begin" in back.message) == (False, True)
    assert [record["type"] for record in read_journal(service.home.journal)] == ["served"]
    service.watch(3)
    assert service.workers.wanted == ["1"]
    assert "began" in service.ramp(), "the next one is not called off"


def test_a_rollback_while_the_next_candidate_is_loaded_is_not_undone_by_its_start(service, crossing):
    """The start had found version 2 live; once 3 is loaded, 1 is live again, and stays."""
    kept_warm(service)
    service.workers.slow = {"3"}
    started, back = crossing.begin(starting(service, "3"), service.commands.rollback("person:bob", "", None))
    assert isinstance(started, ConflictError)
    assert "version 1 is live meanwhile, not version 2" in str(started)
    assert back.changed
    assert answered_by(service, "") == {"1"}
    assert service.kinds[-1] == "rolled_back"


def test_a_rollback_while_a_full_promotion_waits_for_its_candidate_wins(service, crossing):
    paused(service)
    unproven(service, "2")
    promotion = service.commands.promote(BY, "now", full=True)
    promoted, back = crossing.begin(promotion, service.commands.rollback("person:bob", "", None))
    assert isinstance(promoted, ConflictError)
    assert "ended meanwhile: nothing was promoted" in str(promoted)
    assert back.changed
    assert answered_by(service, "") == {"1"}


def test_a_second_full_promotion_that_waited_finds_it_promoted(service, crossing):
    paused(service)
    unproven(service, "2")

    async def again():
        service.workers.slow = set()
        return await service.commands.promote("person:bob", "me too", full=True)

    first, second = crossing.begin(service.commands.promote(BY, "now", full=True), again())
    assert sorted([first.changed, second.changed]) == [False, True]
    assert service.kinds.count("promoted") == 1


def test_a_rollback_while_a_named_version_is_loaded_comes_first(service, crossing):
    """Version 2 was live when 3 was asked for by name; it goes from 1 to 3, and back to 1."""
    kept_warm(service)
    service.ramp("3")
    service.watch(0.5)
    service.rollback()
    service.rollback(to="1")
    service.rollback(to="2")
    unproven(service, "3")
    went, back = crossing.begin(
        service.commands.rollback(BY, "", "3"), service.commands.rollback("person:bob", "", None)
    )
    assert (went.changed, back.changed) == (True, True)
    assert answered_by(service, "") == {"3"}
    assert (service.rollout.plan.baseline.version, service.rollout.plan.candidate.version) == ("1", "3")
    service.rollback()
    assert answered_by(service, "") == {"1"}


def test_going_to_a_named_version_calls_a_rollout_off_that_is_about_to_begin(service, crossing):
    rolled_back_after_promotion(service)
    service.workers.slow = {"3"}
    started, went = crossing.begin(starting(service, "3"), service.commands.rollback("person:bob", "", "2"))
    assert isinstance(started, ConflictError)
    assert went.changed
    assert answered_by(service, "") == {"2"}


def test_an_order_that_was_cut_short_by_a_crash_ends_and_can_be_given_again(service):
    """Killed between the two records of `rollback --to`."""
    rolled_back_after_promotion(service)
    append, seen = service.journal.append, []

    def killed(record, **more):
        if record["event"]["kind"] == "promoted":
            seen.append(record)
            raise SystemExit
        return append(record, **more)

    service.journal.append = killed
    with pytest.raises(SystemExit):
        service.rollback(to="2")
    assert seen
    service.restart()
    service.watch(1)
    assert service.controller.broken is None
    assert (service.kinds, service.events[-1].by) == (["started", "rolled_back"], "controller")
    assert answered_by(service, "") == {"1"}
    assert answered_by(service, service.rollback(to="2")) == {"2"}


def test_a_hold_back_ends_with_the_start_of_the_next_rollout_even_if_that_start_is_cut_short(service):
    held_back_after_promotion(service)
    append = service.journal.append

    def killed(record, **more):
        if record["event"]["kind"] == "started":
            raise SystemExit
        return append(record, **more)

    service.journal.append = killed
    with pytest.raises(SystemExit):
        service.ramp("3")
    service.restart()
    service.watch(1)
    assert (service.kinds[-1], service.weight) == ("finished", 100)


# ── every verb at random ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Contract:
    """A person's verbs, as the contract has them. Verbs give whether they change anything; `happened` is what the gate did by itself."""

    live: str = "1"
    before: str | None = None
    """What a rollback after a promotion goes back to."""
    candidate: str | None = None
    shadowed: str | None = None
    """The candidate of a shadow that has ended, until something else begins."""
    waits: bool = False
    paused: bool = False

    @property
    def runs(self):
        return self.candidate is not None

    def begin(self, candidate):
        self.candidate, self.before, self.shadowed = candidate, None, None
        self.waits = self.paused = False

    def rollback(self):
        if self.runs:
            self.candidate = None
            return True
        if self.before is None:
            return False
        self.live, self.before = self.before, None
        return True

    def rollback_to(self, version):
        changes = self.runs and self.rollback()
        if version == self.live:
            return changes
        self.live, self.before, self.shadowed = version, self.live, None
        return True

    def promote(self, *, ends):
        """A pass leads to the next step, or to the plan's end."""
        if not self.runs or not self.waits:
            return False
        self.waits = False
        return not ends or self.promote_full()

    def promote_full(self):
        """Of the rollout that runs, or of a shadow that has ended."""
        chosen = self.candidate or self.shadowed
        if chosen is None:
            return False
        self.live, self.before, self.candidate, self.shadowed = chosen, self.live, None, None
        return True

    def pause(self):
        changes, self.paused = self.runs and not self.paused, self.runs
        return changes

    def resume(self):
        changes, self.paused = self.runs and self.paused, False
        return changes

    def happened(self, kind):
        """What the gate wrote down: never a climb or a promotion while a person has it paused or is waited for."""
        assert self.runs or kind in {"finished", "released", "rolled_back"}, kind
        match kind:
            case "climbed" | "promoted" | "judged" if not self.paused and not self.waits:
                if kind == "promoted":
                    self.promote_full()
            case "awaited" | "held":
                assert not self.paused
                self.waits = True
            case "rolled_back":
                self.rollback()
            case "retired":
                self.shadowed = self.candidate
                self.rollback()
            case "learned" | "released" | "finished":
                pass
            case _:
                raise AssertionError(f"{kind} while paused={self.paused}, waits={self.waits}")


BEGINNINGS = {
    "canary": lambda service, candidate: service.ramp(candidate, {"steps": [20, 50], **QUICK}),
    "canary by hand": lambda service, candidate: service.ramp(
        candidate, {"steps": [20, {"pause": {}}], **QUICK}
    ),
    "canary that holds": lambda service, candidate: service.ramp(
        candidate, {"steps": [50], "onInconclusive": "hold", "stepTimeout": "1s"}
    ),
    "canary with more to come": lambda service, candidate: service.ramp(
        candidate, {"steps": [50], "holdback": {"weight": 5, "duration": "2s"}, "keepWarm": "3s"}
    ),
    "shadow": lambda service, candidate: service.shadow(
        candidate, shadow={"minLabels": 20, "maxDuration": "20s"}
    ),
    "switch": lambda service, candidate: service.switch(candidate, {**BY_HAND, "autoPromotion": True}),
    "switch by hand": lambda service, candidate: service.switch(candidate, {**BY_HAND, "bake": HELD_BACK}),
}


class Story:
    """Random verbs and random time on the real controller, its journal and its records, each held against the contract."""

    def __init__(self, service, seed):
        self.service, self.contract, self.random = service, Contract(), random.Random(seed)
        self.seen, self.told = len(read_journal(service.home.journal)), []

    def goes_on(self, chapters):
        """So many random things happen; all that must hold holds after each."""
        for _ in range(chapters):
            self.told.append(self.random.choice(CHAPTERS).__name__)
            getattr(self, self.told[-1])()
            self.gate()
            service = self.service.controller.service
            assert self.service.traffic.in_force == service.split
            assert (service.live.version, service.running is not None) == (
                self.contract.live,
                self.contract.runs,
            )
            assert self.service.controller.broken is None
            if not self.contract.runs:
                assert answering(self.service) <= {self.contract.live, self.contract.before}

    def records(self):
        """What was written down since the last look."""
        records = read_journal(self.service.home.journal)
        news, self.seen = records[self.seen :], len(records)
        return [(record["event"]["kind"], record["event"]["by"].startswith("person")) for record in news]

    def gate(self):
        """Tell the contract what the gate did by itself."""
        for kind, by_hand in self.records():
            assert not by_hand, kind
            self.contract.happened(kind)

    def verb(self, answer, model):
        """It says what the contract says, and a person's event is in the journal if and only if it changed something."""
        changes = None
        for (
            kind,
            by_hand,
        ) in self.records():  # what time alone decides comes before the verb, what follows from it after it
            if not by_hand:
                self.contract.happened(kind)
            elif changes is None:
                changes = model(kind)
        assert answer.changed == (model(None) if changes is None else changes), answer.message
        assert answer.changed == (changes is not None)

    def time_passes(self):
        self.service.watch(self.random.choice([0.1, 0.5, 2.0]))

    def callers_come_or_go(self):
        self.service.callers.per_second = 400 - self.service.callers.per_second

    def the_controller_is_killed(self):
        self.service.restart()
        self.service.step()

    def a_rollout_begins(self):
        candidate = self.random.choice(["1", "2", "3", "bad"])
        if self.contract.runs or candidate == self.contract.live:
            return
        how = self.random.choice(sorted(BEGINNINGS))
        self.told.append(f"{how} of {candidate}")
        BEGINNINGS[how](self.service, candidate)
        started = False
        for kind, by_hand in self.records():
            if by_hand:
                assert kind in {"started", "finished"}
                started = started or kind == "started"
            if kind == "started":
                self.contract.begin(candidate)
            elif not by_hand:
                self.contract.happened(kind)
        assert started

    def rollback(self):
        self.verb(
            asyncio.run(self.service.commands.rollback(BY, "", None)), lambda _: self.contract.rollback()
        )

    def rollback_to(self):
        version = self.random.choice(sorted(self.service.controller.service.known))
        self.told.append(version)
        answer = asyncio.run(self.service.commands.rollback(BY, "", version))
        self.verb(answer, lambda _: self.contract.rollback_to(version))

    def promote(self):
        answer = asyncio.run(self.service.commands.promote(BY, "", full=False))
        self.verb(answer, lambda kind: self.contract.promote(ends=kind == "promoted"))

    def promote_full(self):
        self.verb(
            asyncio.run(self.service.commands.promote(BY, "now", full=True)),
            lambda _: self.contract.promote_full(),
        )

    def pause(self):
        self.verb(self.service.commands.pause(BY), lambda _: self.contract.pause())

    def resume(self):
        self.verb(self.service.commands.resume(BY), lambda _: self.contract.resume())


CHAPTERS = [
    *(Story.time_passes, Story.a_rollout_begins) * 3,
    *(Story.callers_come_or_go, Story.the_controller_is_killed, Story.rollback, Story.rollback_to),
    *(Story.promote, Story.promote_full, Story.pause, Story.resume),
]


def test_whatever_verbs_come_in_whatever_order_the_contract_holds(tmp_path, request):
    long = request.config.getoption("--long")
    versions = {**GOOD, "bad": Behaviour(errors=1.0)}
    for seed in range(300 if long else 8):
        with FakeService(
            tmp_path / str(seed), dict(versions), labelled=0.3, label_delay=(0.2, 0.4)
        ) as service:
            service.up()
            service.watch(1)
            story = Story(service, seed)
            try:
                story.goes_on(25)
            except BaseException as error:
                error.add_note(f"seed {seed}: {', '.join(story.told)}")
                raise


# ── what is seen ───────────────────────────────────────────────────────────────────────────────────────────────────


def answering(service):
    """The versions that the split in force sends callers to."""
    split = service.traffic.in_force
    shares = {split.baseline.version: 100 - split.weight}
    if split.candidate is not None and split.candidate != split.baseline:
        shares[split.candidate.version] = split.weight
    return {version for version, share in shares.items() if share > 0} - {HUMAN.version}


def answered_by(service, _said):
    """Who answered the next requests, as each caller saw it."""
    assert service.traffic.confirmed == service.controller.service.split
    service.callers.per_second = 400
    service.callers.skip_to(service.clock)
    service.watch(0.1)  # what was in flight is answered
    before = {version: count for version, (count, _) in service.callers.served.items()}
    service.watch(0.3)
    return {
        version for version, (count, _) in service.callers.served.items() if count > before.get(version, 0)
    }


def unproven(service, version):
    """The worker of this version has to load once more before it counts as ready."""
    service.workers.slow = {version}
    known = service.controller.service.known[version].digest
    service.workers.proven = {
        one: report for one, report in service.workers.proven.items() if report["digest"] != known
    }


def assert_a_version_that_was_never_here_is_refused(service):
    with nothing_written(service), pytest.raises(InvalidError, match="version 9 was never here; known: 1"):
        service.rollback(to="9")


def assert_the_live_version_is_nothing_to_go_to(service):
    live = service.controller.service.live.version
    with nothing_written(service):
        assert service.rollback(to=live) == f"version {live} is live already"


def assert_nothing_is_left_to_roll_back(service, live):
    with nothing_written(service):
        assert service.rollback().startswith("nothing to roll back")
        service.restart()
        assert service.rollback().startswith("nothing to roll back")
    assert service.controller.service.live.version == live


@contextmanager
def nothing_written(service):
    before = service.home.journal.read_bytes(), service.traffic.in_force
    yield
    assert (service.home.journal.read_bytes(), service.traffic.in_force) == before


def test_a_cancelled_command_ends_its_own_rollout_and_nobody_elses(tmp_path):
    def undo(only):
        return asyncio.run(service.commands.rollback(BY, "cancelled", None, only))

    with FakeService(tmp_path, {label: Behaviour(errors=0.01) for label in ("1", "2", "3")}) as service:
        service.up()
        service.watch(1)
        service.ramp()
        service.watch(1)
        mine = service.controller.last.id
        service.rollback("by hand")
        service.ramp("3")
        service.watch(1)
        theirs = service.controller.last
        assert theirs.id != mine
        assert not undo(mine).changed
        assert service.controller.last.phase is theirs.phase
        assert undo(theirs.id).changed
        assert service.controller.last.phase is Phase.ROLLED_BACK


def test_a_promotion_that_is_finished_is_no_cancelled_commands_to_undo(tmp_path):
    with FakeService(tmp_path, {label: Behaviour(errors=0.01) for label in ("1", "2")}) as service:
        service.up()
        service.watch(1)
        service.ramp(canary={"keepWarm": "1s"})
        service.watch(1)
        service.promote("it must be", full=True)
        service.watch(3)
        assert service.controller.last.finished
        undone = asyncio.run(service.commands.rollback(BY, "cancelled", None, service.controller.last.id))
        assert not undone.changed
        assert service.controller.service.live.version == "2"


def test_an_order_that_waits_for_its_turn_can_be_called_off(tmp_path):
    with FakeService(tmp_path, {label: Behaviour(errors=0.01) for label in ("1", "2")}) as service:
        service.up()
        service.watch(1)
        assert service.commands.call_off(BY, "a-ticket").changed
        text = service._manifest("1", "2", CANARY)
        with pytest.raises(ConflictError, match="called off"):
            asyncio.run(service.commands.start_rollout(text, service._path, BY, ticket="a-ticket"))
        assert service.controller.service.rollout is None
        asyncio.run(service.commands.start_rollout(text, service._path, BY, ticket="another"))
        assert service.controller.service.running is not None
