"""Webhooks in the machine: who must agree before what, and that nothing moves on without it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import FAIL, LEARNED, PASS, UNSURE, begun, blue_green, canary, shadow

from deployctl.core.plan import Hook, HookType, OnInconclusive, Phase, Version
from deployctl.core.rollout import (
    Cause,
    Event,
    IllegalEventError,
    Kind,
    answered,
    apply,
    decide,
    hooks_to_ask,
    pass_step,
)
from deployctl.core.strategies import CanaryStep
from deployctl.core.verdict import CandidateVerdict, Result

START, CHECK_START, CHECK, MORE, END, BACK = (
    Hook(kind.value, kind)
    for kind in (
        HookType.CONFIRM_ROLLOUT,
        HookType.PRE_ROLLOUT,
        HookType.ROLLOUT,
        HookType.CONFIRM_TRAFFIC_INCREASE,
        HookType.CONFIRM_PROMOTION,
        HookType.ROLLBACK,
    )
)
TOLD = (Hook("told", HookType.EVENT), Hook("told-at-the-end", HookType.POST_ROLLOUT))


class Machine:
    """A rollout with the automatic actor, the judge and somebody who answers for the webhooks."""

    def __init__(self, plan, *hooks):
        self.rollout = begun(replace(plan, hooks=hooks))
        self.now = 0.0
        self.happened = []

    def happen(self, event):
        event = replace(event, seq=self.rollout.last_seq + 1)
        self.rollout = apply(self.rollout, event)
        self.happened.append(event)

    def watch(self, seconds, verdict=PASS):
        until = self.now + seconds
        while self.now < until:
            self.now += 1.0
            self.settle(verdict)
        return self

    def settle(self, verdict=PASS):
        while (proposed := decide(self.rollout, verdict, LEARNED, self.now)) is not None:
            self.happen(proposed)

    def agree(self, hook, verdict=PASS):
        """Whether anybody waited for it."""
        event = answered(self.rollout, hook, self.now, "fine by us")
        if event is not None:
            self.happen(event)
            self.settle(verdict)
        return event is not None

    @property
    def kinds(self):
        return [event.kind.value for event in self.happened]


def test_a_rollout_without_webhooks_asks_nobody():
    machine = Machine(canary())
    assert hooks_to_ask(machine.rollout) == ()
    assert machine.watch(200).rollout.phase is Phase.PROMOTED


def test_no_caller_gets_the_candidate_before_the_start_is_confirmed():
    machine = Machine(canary(), START).watch(100_000)
    assert (machine.rollout.phase, machine.rollout.waits_for, machine.rollout.step) == (
        Phase.PAUSED,
        "webhook",
        -1,
    )
    assert hooks_to_ask(machine.rollout) == (START,)
    assert machine.agree(START)
    assert (machine.rollout.phase, machine.rollout.step) == (Phase.PROGRESSING, 0)
    assert machine.kinds == ["learned", "awaited", "approved", "climbed"]


def test_who_has_agreed_is_named_and_heard_once():
    machine = Machine(canary(), START, Hook("second", HookType.CONFIRM_ROLLOUT)).watch(5)
    assert machine.agree(START)
    assert not machine.agree(START)
    assert (machine.rollout.phase, machine.rollout.approved) == (Phase.PAUSED, ("confirm-rollout",))
    event = machine.happened[-1]
    assert (event.by, event.cause, event.reason) == ("webhook:confirm-rollout", Cause.WEBHOOK, "fine by us")


def test_each_further_weight_is_confirmed_anew():
    machine = Machine(canary(5, 50), MORE)
    machine.watch(15)
    assert (machine.rollout.step, machine.rollout.waits_for) == (0, "webhook")
    assert machine.agree(MORE)
    assert machine.rollout.step == 1
    assert machine.rollout.approved == ()
    assert machine.watch(200).rollout.phase is Phase.PROMOTED, "a promotion is confirmed by another type"


def test_the_promotion_is_confirmed_for_as_long_as_it_takes():
    machine = Machine(canary(5, 50), END).watch(1_000_000 // 1000)
    assert (machine.rollout.step, machine.rollout.waits_for) == (1, "webhook")
    assert machine.agree(END)
    assert machine.rollout.phase is Phase.PROMOTED


def test_time_does_not_run_out_while_a_confirmation_is_waited_for():
    machine = Machine(canary(5, 50), MORE).watch(500)
    machine.agree(MORE, UNSURE)  # the evidence is not enough any more, and the step has its time yet
    assert (machine.rollout.phase, machine.rollout.step) == (Phase.PROGRESSING, 0)
    machine.watch(50, UNSURE)
    assert machine.rollout.phase is Phase.PROGRESSING
    machine.watch(20, UNSURE)
    assert machine.rollout.phase is Phase.ROLLED_BACK


def test_an_approval_is_no_evidence():
    machine = Machine(canary(5, 50), MORE).watch(15)
    machine.agree(MORE, UNSURE)
    assert machine.watch(5, UNSURE).rollout.step == 0
    assert machine.watch(1).rollout.step == 1, "it has agreed to this step already"


def test_harm_rolls_back_while_a_confirmation_is_waited_for():
    machine = Machine(canary(), END, START).watch(3)
    machine.watch(1, FAIL)
    assert machine.rollout.phase is Phase.ROLLED_BACK
    assert not machine.agree(START)
    assert hooks_to_ask(machine.rollout) == ()


@pytest.mark.parametrize(("hook", "step"), [(CHECK_START, -1), (CHECK, 0)])
@pytest.mark.parametrize("policy", OnInconclusive)
def test_a_check_that_never_agrees_ends_as_the_manifest_says(hook, step, policy):
    machine = Machine(canary(on_inconclusive=policy), hook).watch(200)
    assert machine.rollout.step == step
    last = machine.happened[-1]
    assert (last.kind, last.cause) == (
        Kind.HELD if policy is OnInconclusive.HOLD else Kind.ROLLED_BACK,
        Cause.INCONCLUSIVE,
    )
    assert hook.name in last.reason


def test_a_check_is_asked_at_every_step_from_its_beginning():
    machine = Machine(canary(5, 50), CHECK).watch(1, UNSURE)
    for step in (0, 1):
        assert machine.rollout.step == step
        assert hooks_to_ask(machine.rollout) == (CHECK,)
        assert machine.agree(CHECK, UNSURE)
        assert hooks_to_ask(machine.rollout) == ()
        machine.watch(30)
    assert machine.rollout.phase is Phase.PROMOTED


def test_a_check_holds_the_end_of_a_shadow_of_several_candidates():
    several = replace(shadow(), others=(Version("3", "sha256:" + "3" * 64),), hooks=(CHECK,))
    rollout = apply(begun(several), Event(2, Kind.CLIMBED, 1.0, "gate", Cause.TIME, step=0))
    passed = replace(
        UNSURE, candidates=tuple(CandidateVerdict(one, Result.PASS, "good", ()) for one in ("2", "3"))
    )
    assert decide(rollout, passed, None, 30.0) is None
    agreed = apply(rollout, replace(answered(rollout, CHECK, 30.0, "yes"), seq=3))
    assert decide(agreed, passed, None, 30.0).kind is Kind.JUDGED
    one, other = passed.candidates
    harm = replace(passed, candidates=(one, replace(other, result=Result.FAIL)))
    judged = decide(rollout, harm, None, 30.0)
    assert (judged.kind, judged.version) == (Kind.JUDGED, "3"), "a pass that waits hides no harm"


def test_a_check_holds_a_shadow():
    machine = Machine(shadow(), CHECK).watch(30)
    assert machine.rollout.phase is Phase.PROGRESSING
    assert machine.agree(CHECK)
    assert machine.rollout.phase is Phase.RETIRED


def test_a_webhook_rolls_back_at_any_time_and_says_why():
    for seconds in (1, 5, 15, 40):
        machine = Machine(canary(), BACK, END).watch(seconds)
        assert BACK in hooks_to_ask(machine.rollout)
        assert machine.agree(BACK)
        last = machine.happened[-1]
        assert (machine.rollout.phase, last.by, last.cause) == (
            Phase.ROLLED_BACK,
            "webhook:rollback",
            Cause.WEBHOOK,
        )
        assert machine.rollout.weight == 0


def test_a_person_passes_what_a_webhook_is_waited_for():
    machine = Machine(canary(5, 50), MORE).watch(15)
    machine.happen(pass_step(machine.rollout, machine.now, "person:ann", Cause.PERSON, "by hand"))
    assert (machine.rollout.step, machine.rollout.phase) == (1, Phase.PROGRESSING)
    assert not machine.agree(MORE), "what was asked of the step before means nothing now"


def test_a_pause_of_a_person_outlasts_an_approval():
    machine = Machine(canary(5, 50), MORE).watch(15)
    machine.happen(Event(0, Kind.PAUSED, machine.now, "person:ann", Cause.PERSON))
    assert machine.agree(MORE)
    assert (machine.rollout.phase, machine.rollout.step, machine.rollout.waits_for) == (Phase.PAUSED, 0, None)
    machine.watch(300, UNSURE)
    machine.happen(Event(0, Kind.RESUMED, machine.now, "person:ann", Cause.PERSON))
    assert machine.watch(1).rollout.step == 1


def test_a_person_has_the_last_word_where_the_manifest_says_so():
    machine = Machine(canary(CanaryStep(5, awaits_person=True), 50), MORE).watch(15)
    assert machine.rollout.waits_for == "webhook"
    assert machine.agree(MORE)
    assert (machine.rollout.waits_for, machine.rollout.step) == ("person", 0)
    machine.happen(pass_step(machine.rollout, machine.now, "person:ann", Cause.PERSON, "by hand"))
    assert machine.rollout.step == 1


def test_a_switch_by_hand_waits_for_webhooks_first():
    plan = blue_green(by_hand=True)
    unseen = replace(plan, steps=(replace(plan.steps[0], gate=None, mirror=0.0), plan.steps[1]))
    machine = Machine(unseen, MORE).watch(15)
    assert (machine.rollout.waits_for, machine.rollout.weight) == ("webhook", 0)
    assert machine.agree(MORE)
    assert machine.rollout.waits_for == "person"


def test_the_switch_of_a_blue_green_is_an_increase():
    machine = Machine(blue_green(by_hand=False), MORE).watch(15)
    assert (machine.rollout.step, machine.rollout.waits_for, machine.rollout.weight) == (0, "webhook", 0)
    machine.agree(MORE)
    assert machine.rollout.weight == 100


def test_who_is_only_told_holds_nothing_up():
    assert Machine(canary(), *TOLD).watch(300).rollout.phase is Phase.PROMOTED


def test_an_approval_that_nobody_waits_for_is_illegal():
    machine = Machine(canary(), END).watch(5)
    with pytest.raises(IllegalEventError, match="nobody waits for webhook:confirm-promotion"):
        machine.happen(Event(0, Kind.APPROVED, machine.now, END.by, Cause.WEBHOOK))


HOOKS = (START, CHECK_START, CHECK, MORE, END)
NEEDED = {-1: {START, CHECK_START}, 0: {CHECK, MORE}, 1: {CHECK, MORE}, 2: {CHECK, END}}


@given(
    st.sets(st.sampled_from(HOOKS)),
    st.lists(
        st.one_of(
            st.sampled_from(HOOKS), st.sampled_from([PASS, UNSURE]), st.just("pause"), st.just("resume")
        )
    ),
)
def test_no_story_moves_on_without_everybody_who_must_agree(hooks, story):
    """Whatever the order of answers, verdicts and a person's pauses: each step is left with its approvals, never without."""
    machine = Machine(canary(5, 30, 50), *hooks)
    for part in story:
        before = machine.rollout.step
        if isinstance(part, Hook):
            machine.agree(part, UNSURE)
        elif isinstance(part, str):
            kind = {"pause": Kind.PAUSED, "resume": Kind.RESUMED}[part]
            if not machine.rollout.ended and machine.rollout.paused is (part == "resume"):
                machine.happen(Event(0, kind, machine.now, "person:ann", Cause.PERSON))
        else:
            machine.watch(21, part)
        if machine.rollout.step != before or machine.rollout.phase is Phase.PROMOTED:
            climbs = [event for event in machine.happened if event.kind in {Kind.CLIMBED, Kind.PROMOTED}]
            approvals = [event for event in machine.happened if event.kind is Kind.APPROVED]
            for number, climb in enumerate(climbs):
                since = climbs[number - 1].seq if number else 0
                heard = {event.by for event in approvals if since < event.seq < climb.seq}
                assert {hook.by for hook in NEEDED[number - 1] & set(hooks)} <= heard
