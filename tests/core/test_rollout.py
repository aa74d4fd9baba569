"""The machine: what may happen to a rollout, what the automatic actor proposes, and what no history can bring about."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import (
    BASELINE,
    CANDIDATE,
    FAIL,
    LEARNED,
    PASS,
    UNSURE,
    begun,
    blue_green,
    canary,
    event,
    shadow,
)

from deployctl.core.plan import OnInconclusive, Phase, Plan
from deployctl.core.rollout import (
    TRANSITIONS,
    Cause,
    Event,
    IllegalEventError,
    Kind,
    Rollout,
    Unloadable,
    Unwatched,
    apply,
    decide,
    pass_step,
    split_for,
    start,
    step_timeout,
    versions_for,
)
from deployctl.core.strategies import CanaryStep
from deployctl.core.verdict import Result, Verdict

ENDED = {Phase.PROMOTED, Phase.ROLLED_BACK, Phase.RETIRED}


class Machine:
    """A rollout with the automatic actor beside it, and the events that happened."""

    def __init__(self, plan: Plan) -> None:
        self.rollout = begun(plan)
        self.now = 0.0
        self.happened: list[Event] = []

    def happen(self, event: Event) -> None:
        event = replace(event, seq=self.rollout.last_seq + 1, at=max(event.at, self.rollout.at))
        self.rollout = apply(self.rollout, event)
        self.happened.append(event)

    def by_hand(self, kind: Kind, **more) -> None:
        self.happen(event(self.rollout, kind, **{"at": self.now, **more}))

    def pass_by_hand(self) -> None:
        self.happen(pass_step(self.rollout, self.now, "person:ann", Cause.PERSON, "by hand"))

    def watch(self, seconds: float, verdict: Verdict = UNSURE, learned=LEARNED) -> None:
        """Seconds in which the judge says this; everything that is proposed happens."""
        until = self.now + seconds
        while self.now < until:
            self.now += 1.0
            while (proposed := decide(self.rollout, verdict, learned, self.now)) is not None:
                self.happen(proposed)

    @property
    def kinds(self) -> list[str]:
        return [event.kind.value for event in self.happened]


def at_step(number: int, plan: Plan | None = None) -> Machine:
    """A rollout that has just entered this step (0 is the first)."""
    machine = Machine(plan or canary())
    machine.watch(1, learned=LEARNED)
    while machine.rollout.step < number:
        machine.pass_by_hand()
    return machine


# ── the table ──────────────────────────────────────────────────────────────────────────────────────────────────────


def in_phase(phase: Phase) -> Rollout:
    rollout = begun(canary())
    if phase is Phase.PENDING:
        return rollout
    rollout = apply(rollout, event(rollout, Kind.CLIMBED, step=0))
    if phase is Phase.PROGRESSING:
        return rollout
    kind = {
        Phase.PAUSED: Kind.PAUSED,
        Phase.PROMOTED: Kind.PROMOTED,
        Phase.ROLLED_BACK: Kind.ROLLED_BACK,
        Phase.RETIRED: Kind.RETIRED,
    }[phase]
    return apply(rollout, event(rollout, kind))


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("phase", Phase)
def test_only_what_the_table_allows_can_happen(phase, kind):
    before = in_phase(phase)
    happens = event(before, kind, step=before.step + 1, learned=LEARNED)
    # this plan holds nobody back, has one candidate only, and asks no webhook
    if kind in TRANSITIONS[phase] and kind not in {Kind.RELEASED, Kind.JUDGED, Kind.APPROVED}:
        after = apply(before, happens)
        worked_out = Phase.PAUSED if after.paused else Phase.PROGRESSING
        assert after.phase is (TRANSITIONS[phase][kind] or worked_out)
    else:
        with pytest.raises(
            IllegalEventError, match=f"{phase.value}|held back|needs a version|nobody waits for"
        ):
            apply(before, happens)


def test_the_table_has_a_line_for_every_phase_and_none_leads_to_a_phase_without_one():
    assert set(TRANSITIONS) == {None, *Phase}
    targets = {phase for line in TRANSITIONS.values() for phase in line.values()}
    assert targets - {None} <= set(Phase)


def test_whatever_is_not_over_can_be_rolled_back():
    for phase in set(Phase) - {Phase.ROLLED_BACK, Phase.RETIRED}:
        assert Kind.ROLLED_BACK in TRANSITIONS[phase]


def test_a_rollout_begins_with_started_and_its_plan():
    for kind in set(Kind) - {Kind.STARTED}:
        with pytest.raises(IllegalEventError):
            start("r-1", Event(1, kind, 0.0, "gate", Cause.EVIDENCE, plan=canary()))
    with pytest.raises(IllegalEventError):
        start("r-1", Event(1, Kind.STARTED, 0.0, "gate", Cause.EVIDENCE))


@pytest.mark.parametrize("late", [{"seq": 1}, {"at": -1.0}])
def test_an_event_from_before_the_last_one_is_refused(late):
    rollout = begun(canary())
    with pytest.raises(IllegalEventError):
        apply(rollout, event(rollout, Kind.ROLLED_BACK, **late))


@pytest.mark.parametrize("step", [-1, 0, 2, 3])
def test_no_step_is_skipped_and_none_is_entered_twice(step):
    rollout = at_step(0).rollout
    with pytest.raises(IllegalEventError):
        apply(rollout, event(rollout, Kind.CLIMBED, step=step))


def test_no_step_follows_the_last_one_not_even_by_hand():
    rollout = at_step(3).rollout
    with pytest.raises(IllegalEventError, match="no step 4"):
        apply(rollout, event(rollout, Kind.CLIMBED, step=4))


@pytest.mark.parametrize("cause", [cause for cause in Cause if cause is not Cause.PERSON])
@pytest.mark.parametrize("verdict", [None, UNSURE, FAIL])
def test_nothing_climbs_or_is_promoted_without_evidence_unless_a_person_says_so(cause, verdict):
    for step in (0, 3):
        rollout = at_step(step).rollout
        for kind in (Kind.CLIMBED, Kind.PROMOTED):
            with pytest.raises(IllegalEventError):
                apply(rollout, event(rollout, kind, cause, step=step + 1, verdict=verdict))


def test_evidence_of_one_step_does_not_promote_past_the_others():
    rollout = at_step(1).rollout
    with pytest.raises(IllegalEventError, match="evidence"):
        apply(rollout, event(rollout, Kind.PROMOTED, Cause.EVIDENCE, verdict=PASS))


# ── no history can ─────────────────────────────────────────────────────────────────────────────────────────────────

verdicts = st.sampled_from([None, PASS, FAIL, UNSURE])
random_events = st.lists(
    st.tuples(
        st.sampled_from(Kind), st.sampled_from(Cause), st.integers(-1, 5), verdicts, st.floats(-1, 100)
    ),
    max_size=30,
)
plans = st.sampled_from(
    [
        canary(),
        canary(CanaryStep(5, awaits_person=True), 50),
        canary(20, on_inconclusive=OnInconclusive.HOLD, keep_warm=30.0),
        shadow(),
        blue_green(by_hand=True),
        blue_green(by_hand=False),
    ]
)


def check(before: Rollout, happens: Event, after: Rollout) -> None:
    """What holds after every event of every history."""
    weights = {0.0, *(step.weight for step in after.plan.steps)}
    assert after.weight in weights or (after.weight == 100.0 and after.phase is Phase.PROMOTED)
    assert split_for(after).weight == after.weight
    assert after.plan == before.plan
    assert BASELINE in versions_for(after) or after.finished
    if after.weight > 0:
        assert CANDIDATE in versions_for(after)
    if after.phase is Phase.PROMOTED and before.phase is not Phase.PROMOTED:
        assert happens.cause is Cause.PERSON or happens.verdict.result is Result.PASS
    if after.weight > before.weight and before.step >= 0:
        assert happens.cause is Cause.PERSON or happens.verdict.result is Result.PASS
    if before.finished:
        assert (happens.kind, happens.cause) == (Kind.ROLLED_BACK, Cause.PERSON)
        assert before.phase is Phase.PROMOTED
    if after.phase in {Phase.ROLLED_BACK, Phase.RETIRED}:
        assert after.weight == 0
        assert after.finished


@given(plans, random_events)
@settings(deadline=None, max_examples=300)
def test_no_sequence_of_events_leads_to_an_illegal_weight_or_an_unproven_promotion(plan, events):
    rollout = begun(plan)
    for kind, cause, step, verdict, later in events:
        happens = Event(
            rollout.last_seq + 1,
            kind,
            rollout.at + later,
            "someone",
            cause,
            step=step if step >= 0 else rollout.step + 1,
            learned=LEARNED,
            verdict=verdict,
        )
        before = repr(rollout)
        try:
            after = apply(rollout, happens)
        except IllegalEventError:
            assert repr(rollout) == before
            continue
        check(rollout, happens, after)
        rollout = after


moments = st.lists(
    st.tuples(
        verdicts.filter(lambda verdict: verdict is not None),
        st.floats(0, 40),
        st.booleans(),
        st.sampled_from([None, None, None, Kind.PAUSED, Kind.RESUMED, Kind.CLIMBED, Kind.ROLLED_BACK]),
    ),
    max_size=40,
)


@given(plans, moments)
@settings(deadline=None, max_examples=300)
def test_the_automatic_actor_never_proposes_what_cannot_happen(plan, history):
    """Verdicts and time as they come, a person in between."""
    rollout, now = begun(plan), 0.0
    for verdict, later, known, by_hand in history:
        now += later
        if by_hand is not None:
            wanted = event(rollout, by_hand, at=now, step=rollout.step + 1)
            if by_hand is Kind.CLIMBED:
                wanted = pass_step(rollout, now, "person:ann", Cause.PERSON, "by hand")
                wanted = replace(wanted, seq=rollout.last_seq + 1)
            try:
                after = apply(rollout, wanted)
            except IllegalEventError:
                pass
            else:
                check(rollout, wanted, after)
                rollout = after
        for _ in range(len(plan.steps) + 4):
            proposed = decide(rollout, verdict, LEARNED if known else None, now)
            if proposed is None:
                break
            proposed = replace(proposed, seq=rollout.last_seq + 1)
            after = apply(rollout, proposed)
            check(rollout, proposed, after)
            assert after != rollout
            rollout = after
        else:
            pytest.fail("it goes on proposing without end")
        if verdict is FAIL:
            assert rollout.ended
        if rollout.ended and rollout.phase is not Phase.PROMOTED:
            assert rollout.weight == 0


@given(plans, moments)
@settings(deadline=None)
def test_the_same_history_decides_the_same(plan, history):
    def played() -> list[Event]:
        machine = Machine(plan)
        for verdict, later, known, _ in history:
            machine.watch(later, verdict, LEARNED if known else None)
        return machine.happened

    assert played() == played()


# ── what the automatic actor proposes ──────────────────────────────────────────────────────────────────────────────


def test_a_good_version_climbs_step_by_step_and_is_promoted():
    machine = Machine(canary())
    machine.watch(60, PASS)
    assert machine.kinds == ["learned", *["climbed"] * 4, "promoted", "finished"]
    assert [e.step for e in machine.happened if e.kind is Kind.CLIMBED] == [0, 1, 2, 3]
    assert machine.rollout.live == CANDIDATE


def test_the_candidate_sees_nobody_before_what_the_gates_need_is_learnt():
    machine = Machine(canary())
    machine.watch(30, PASS, learned=None)
    assert machine.rollout.phase is Phase.PENDING
    assert machine.rollout.weight == 0


def test_a_wait_at_weight_zero_has_an_end():
    machine = Machine(canary())
    machine.watch(61, UNSURE, learned=None)
    assert machine.rollout.phase is Phase.ROLLED_BACK
    assert machine.happened[-1].cause is Cause.INCONCLUSIVE


def test_a_person_passes_the_wait_at_weight_zero_and_the_gates_learn_later():
    machine = Machine(canary(on_inconclusive=OnInconclusive.HOLD))
    machine.watch(61, UNSURE, learned=None)
    machine.pass_by_hand()
    machine.watch(5, UNSURE, learned=LEARNED)
    assert machine.kinds == ["held", "climbed", "learned"]
    assert machine.rollout.phase is Phase.PROGRESSING
    machine.watch(60, PASS)
    assert machine.rollout.phase is Phase.PROMOTED


def test_dwell_is_waited_for_even_when_the_evidence_is_there():
    machine = at_step(0)
    began = machine.rollout.step_began
    machine.watch(9, PASS)
    assert machine.rollout.step == 0
    machine.watch(1, PASS)
    assert machine.rollout.step == 1
    assert machine.rollout.step_began - began == 10


def test_the_last_step_bakes():
    machine = at_step(3)
    machine.watch(19, PASS)
    assert machine.rollout.phase is Phase.PROGRESSING
    machine.watch(1, PASS)
    assert machine.rollout.phase is Phase.PROMOTED


def test_a_longer_pause_of_the_manifest_is_a_longer_dwell():
    machine = at_step(0, canary(CanaryStep(5, pause=25.0), 50))
    machine.watch(24, PASS)
    assert machine.rollout.step == 0
    machine.watch(1, PASS)
    assert machine.rollout.step == 1


@pytest.mark.parametrize("step", [0, 1, 3])
def test_harm_rolls_back_at_once_and_without_dwell(step):
    machine = at_step(step)
    machine.watch(1, FAIL)
    assert machine.rollout.phase is Phase.ROLLED_BACK
    assert machine.rollout.weight == 0
    assert machine.happened[-1].cause is Cause.EVIDENCE


def test_the_time_of_a_step_begins_after_its_dwell():
    machine = at_step(0)
    machine.watch(69, UNSURE)
    assert machine.rollout.phase is Phase.PROGRESSING
    machine.watch(1, UNSURE)
    assert machine.rollout.phase is Phase.ROLLED_BACK
    assert machine.happened[-1].cause is Cause.INCONCLUSIVE


def test_on_inconclusive_hold_keeps_the_weight_and_waits_for_a_person():
    machine = at_step(1, canary(on_inconclusive=OnInconclusive.HOLD))
    machine.watch(500, UNSURE)
    assert machine.kinds[-1] == "held"
    assert machine.rollout.phase is Phase.PAUSED
    assert machine.rollout.weight == 10
    machine.watch(100, PASS)  # nobody asked the gate any more: a person is waited for
    assert machine.rollout.phase is Phase.PAUSED
    machine.pass_by_hand()
    assert (machine.rollout.phase, machine.rollout.step) == (Phase.PROGRESSING, 2)


@pytest.mark.parametrize("kind", [Kind.AWAITED, Kind.HELD, Kind.PAUSED])
def test_a_rollout_that_waits_is_still_rolled_back_on_harm(kind):
    machine = at_step(1)
    machine.by_hand(kind)
    machine.watch(1, FAIL)
    assert machine.rollout.phase is Phase.ROLLED_BACK


@pytest.mark.parametrize("verdict", [PASS, UNSURE, FAIL])
@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.PROGRESSING, Phase.PAUSED])
def test_a_candidate_that_cannot_be_kept_loaded_ends_its_rollout_and_harm_that_was_seen_is_the_reason(
    phase, verdict
):
    proposed = decide(in_phase(phase), verdict, None, 100.0, untenable=Unloadable("2", "it ends at once"))
    assert (proposed.kind, proposed.cause, proposed.verdict.result) == (
        Kind.ROLLED_BACK,
        Cause.EVIDENCE,
        Result.FAIL,
    )
    words = verdict.reason if verdict is FAIL else "the candidate cannot be kept loaded: it ends at once"
    assert proposed.reason == words


BLIND = Unwatched("the disk is full")


@pytest.mark.parametrize("phase", [Phase.PROGRESSING, Phase.PAUSED])
def test_a_candidate_that_nobody_can_watch_is_taken_off_its_callers_as_inconclusive(phase):
    proposed = decide(in_phase(phase), UNSURE, None, 100.0, untenable=BLIND)
    assert (proposed.kind, proposed.cause) == (Kind.ROLLED_BACK, Cause.INCONCLUSIVE)
    assert proposed.reason == "nobody can watch the candidate: the disk is full"
    harmful = decide(in_phase(phase), FAIL, None, 100.0, untenable=BLIND)
    assert (harmful.kind, harmful.cause) == (Kind.ROLLED_BACK, Cause.EVIDENCE)


def test_a_candidate_that_nobody_can_watch_is_held_where_the_manifest_says_so():
    machine = at_step(0, canary(5, on_inconclusive=OnInconclusive.HOLD))
    held = decide(machine.rollout, UNSURE, None, 100.0, untenable=BLIND)
    assert (held.kind, held.cause) == (Kind.HELD, Cause.INCONCLUSIVE)
    machine.happen(held)
    assert decide(machine.rollout, UNSURE, None, 101.0, untenable=BLIND) is None


@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.PROMOTED])
def test_where_the_candidate_answers_nobody_or_everybody_nothing_ends_because_nobody_can_watch(phase):
    before = decide(in_phase(phase), UNSURE, None, 1.0)
    assert decide(in_phase(phase), UNSURE, None, 1.0, untenable=BLIND) == before


def test_a_shadow_whose_candidate_cannot_be_kept_loaded_retires_with_fail():
    machine = Machine(shadow())
    machine.watch(1, UNSURE)
    proposed = decide(machine.rollout, PASS, None, 2.0, untenable=Unloadable("2", "it ends at once"))
    assert (proposed.kind, proposed.verdict.result) == (Kind.RETIRED, Result.FAIL)


def test_a_gate_with_a_person_behind_it_waits_as_long_as_it_takes():
    machine = at_step(0, canary(CanaryStep(5, awaits_person=True), 50))
    machine.watch(10, PASS)
    assert machine.kinds[-1] == "awaited"
    machine.watch(10_000, UNSURE)
    assert machine.rollout.phase is Phase.PAUSED
    machine.pass_by_hand()
    assert (machine.rollout.phase, machine.rollout.step) == (Phase.PROGRESSING, 1)


def test_the_time_of_a_step_stands_still_while_it_is_paused():
    machine = at_step(0)
    machine.watch(40, UNSURE)
    machine.by_hand(Kind.PAUSED)
    machine.watch(1000, UNSURE)
    machine.by_hand(Kind.RESUMED)
    machine.watch(29, UNSURE)
    assert machine.rollout.phase is Phase.PROGRESSING
    machine.watch(1, UNSURE)
    assert machine.rollout.phase is Phase.ROLLED_BACK


def test_a_paused_rollout_does_not_climb_and_goes_on_when_resumed():
    machine = at_step(0)
    machine.by_hand(Kind.PAUSED)
    machine.watch(100, PASS)
    assert (machine.rollout.phase, machine.rollout.step, machine.rollout.weight) == (Phase.PAUSED, 0, 5)
    machine.by_hand(Kind.RESUMED)
    machine.watch(1, PASS)
    assert machine.rollout.step == 1


def test_resume_undoes_a_pause_and_no_other_wait():
    machine = at_step(0)
    machine.by_hand(Kind.HELD)
    with pytest.raises(IllegalEventError, match="nobody has paused"):
        machine.by_hand(Kind.RESUMED)
    machine.by_hand(Kind.PAUSED)
    machine.by_hand(Kind.RESUMED)
    assert (machine.rollout.phase, machine.rollout.waits_for) == (Phase.PAUSED, "hold")


def test_a_pause_outlives_the_step_that_a_person_passes():
    machine = at_step(0)
    machine.by_hand(Kind.HELD)
    machine.by_hand(Kind.PAUSED)
    machine.pass_by_hand()
    machine.watch(100, PASS)
    assert (machine.rollout.phase, machine.rollout.step) == (Phase.PAUSED, 1)
    machine.by_hand(Kind.RESUMED)
    machine.watch(30, UNSURE)
    assert machine.rollout.phase is Phase.PROGRESSING


def test_a_pause_before_the_first_step_keeps_everybody_on_the_baseline():
    machine = Machine(canary())
    machine.by_hand(Kind.PAUSED)
    machine.watch(100, PASS)
    assert machine.rollout.weight == 0
    machine.by_hand(Kind.RESUMED)
    machine.watch(1, PASS)
    assert machine.rollout.weight == 5


def test_a_promoted_rollout_is_finished_when_nothing_is_kept_warm_any_more():
    machine = at_step(3, canary(keep_warm=100.0))
    machine.watch(21, PASS)
    assert versions_for(machine.rollout) == (BASELINE, CANDIDATE)
    machine.watch(98, PASS)
    assert not machine.rollout.finished
    machine.watch(2, PASS)
    assert machine.rollout.finished
    assert versions_for(machine.rollout) == (CANDIDATE,)


def test_without_keep_warm_the_version_before_stays_loaded():
    machine = at_step(3)
    machine.watch(30, PASS)
    assert machine.rollout.finished
    assert versions_for(machine.rollout) == (BASELINE, CANDIDATE)


def test_a_finished_rollout_accepts_a_persons_rollback_and_nothing_else():
    machine = at_step(3)
    machine.watch(30, PASS)
    for kind in set(Kind) - {Kind.ROLLED_BACK}:
        with pytest.raises(IllegalEventError):
            apply(machine.rollout, event(machine.rollout, kind, step=4))
    with pytest.raises(IllegalEventError):
        apply(machine.rollout, event(machine.rollout, Kind.ROLLED_BACK, Cause.EVIDENCE, verdict=FAIL))
    machine.by_hand(Kind.ROLLED_BACK)
    assert (machine.rollout.phase, machine.rollout.weight) == (Phase.ROLLED_BACK, 0)
    with pytest.raises(IllegalEventError):
        machine.by_hand(Kind.ROLLED_BACK)


def test_a_split_is_numbered_by_the_event_that_moved_it():
    machine = at_step(1)
    climbed = machine.happened[-1]
    machine.by_hand(Kind.PAUSED)
    assert split_for(machine.rollout).number == climbed.seq
    machine.by_hand(Kind.ROLLED_BACK)
    assert split_for(machine.rollout).number == machine.happened[-1].seq


def test_the_time_out_is_the_manifests_else_what_the_traffic_asks_for():
    assert step_timeout(begun(canary())) == 60
    silent = at_step(0, canary(step_timeout=None)).rollout
    assert step_timeout(replace(silent, learned=replace(LEARNED, step_timeout=7200.0))) == 7200


# ── other strategies are data ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verdict", [PASS, FAIL, UNSURE])
def test_a_shadow_sends_copies_to_the_candidate_answers_nobody_with_it_and_retires(verdict):
    machine = Machine(shadow())
    machine.watch(1, UNSURE)
    assert (split_for(machine.rollout).weight, split_for(machine.rollout).mirror) == (0, 100)
    machine.watch(100, verdict)
    assert machine.rollout.phase is Phase.RETIRED
    assert (split_for(machine.rollout).weight, split_for(machine.rollout).mirror) == (0, 0)
    assert machine.rollout.live == BASELINE


def test_blue_green_switches_all_at_once_and_bakes_with_the_baseline_warm():
    machine = Machine(blue_green(by_hand=False))
    machine.watch(10, PASS)
    assert (split_for(machine.rollout).weight, split_for(machine.rollout).mirror) == (0, 100)
    machine.watch(2, PASS)
    assert (split_for(machine.rollout).weight, machine.rollout.phase) == (100, Phase.PROGRESSING)
    assert versions_for(machine.rollout) == (BASELINE, CANDIDATE)
    machine.watch(30, PASS)
    assert machine.rollout.phase is Phase.PROMOTED


def test_blue_green_rolls_back_in_its_bake():
    machine = Machine(blue_green(by_hand=False))
    machine.watch(12, PASS)
    machine.watch(1, FAIL)
    assert (machine.rollout.phase, machine.rollout.weight) == (Phase.ROLLED_BACK, 0)


def test_blue_green_by_hand_waits_for_the_person_who_switches():
    machine = Machine(blue_green(by_hand=True))
    machine.watch(1000, PASS)
    assert (machine.rollout.phase, machine.rollout.weight) == (Phase.PAUSED, 0)
    machine.pass_by_hand()
    assert machine.rollout.weight == 100
