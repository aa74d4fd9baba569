"""What pairs say, and what a shadow makes of it."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import BASELINE, CANDIDATE, begun, event

from deployctl.core.analysis import Judge
from deployctl.core.course import Judges, Weighing
from deployctl.core.outcome import OUTCOME
from deployctl.core.pairs import PairBlocks, Pairs, read_pairs
from deployctl.core.plan import HUMAN, MetricRule, OnInconclusive, Phase, Plan, Version
from deployctl.core.rollout import (
    Cause,
    Event,
    IllegalEventError,
    Kind,
    Learned,
    apply,
    decide,
    split_for,
    versions_for,
)
from deployctl.core.strategies import Canary, CanaryStep, Shadow
from deployctl.core.verdict import Result, Verdict

OTHER = Version("3", "sha256:" + "3" * 64)
LABELS = MetricRule("label-error-rate", 0.0, 0.0, margin=0.02)
ERRORS = MetricRule("error-rate", 0.1, 0.001, margin=0.01)
NOTHING = Learned((), {}, {}, 1800.0, 0)


def learned(*rules, rate=0.02):
    return Learned(
        (),
        {rule.name: (rate,) for rule in rules if rule.limit is None},
        {rule.name: (rule.margin,) for rule in rules if rule.limit is None},
        1800.0,
        200,
    )


def shadow(*rules, min_labels=0, max_duration=600.0, **changes):
    strategy = Shadow(100.0, min_labels, max_duration)
    given_ = {"baseline": BASELINE, "candidate": CANDIDATE, "min_labels": min_labels} | changes
    return Plan(
        "shadow",
        steps=strategy.steps(),
        metrics=rules,
        passed=Phase.RETIRED,
        failed=Phase.RETIRED,
        step_timeout=max_duration,
        **given_,
    )


def pairs(
    count, *, status=(200, 200), latency=(5.0, 5.0), differs=0, wrong=(math.nan, math.nan), arm=1, start=0.0
):
    """So many pairs that are all the same, 10 ms apart."""
    sides = []
    for side in (0, 1):
        rows = np.zeros(count, OUTCOME)
        rows["arm"] = arm if side else 0
        rows["status"], rows["latency"] = status[side], latency[side]
        sides.append(rows)
    return Pairs(
        sides[0],
        sides[1],
        np.full(count, arm, np.int8),
        np.full(count, differs, np.int8),
        np.tile(np.array(wrong, dtype=float), (count, 1)),
        start + 0.01 * np.arange(count),
    )


def together(*parts):
    return Pairs(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("baseline", "candidate", "arm", "differs", "wrong", "t")
        )
    )


def fed(plan, given_learned, *parts, labelled=False):
    """A weighing that has begun the first step and taken in these pairs one after the other."""
    weighing = Weighing(plan, given_learned)
    weighing.begin(0, 1, 0.0)
    for part in parts:
        for block in weighing.pair(part, part.t, part.t, labelled=labelled):
            weighing.add_pairs(block)
    return weighing


def test_a_candidate_that_alone_refuses_what_the_baseline_answers_has_failed():
    weighing = fed(shadow(ERRORS), learned(ERRORS), pairs(42, status=(200, 400)))
    assert weighing.says.result is Result.FAIL
    assert "the candidate alone gave 42 answers with an error" in weighing.says.verdict().reason


def test_what_both_refuse_is_the_callers_doing():
    weighing = fed(shadow(ERRORS), learned(ERRORS), pairs(400, status=(400, 400)))
    assert weighing.says.verdict().metrics[0].candidate.n == 0


def test_a_caller_who_left_saw_no_answer_to_compare_with():
    weighing = fed(shadow(ERRORS), learned(ERRORS), pairs(400, status=(499, 500)))
    assert weighing.says.result is Result.INCONCLUSIVE


def test_errors_that_both_share_are_held_against_neither():
    weighing = fed(shadow(ERRORS), learned(ERRORS), pairs(2000, status=(500, 500)))
    assert weighing.says.result is Result.PASS


def test_a_time_out_of_the_copy_is_an_error_and_not_a_missing_value():
    weighing = fed(shadow(ERRORS), learned(ERRORS), pairs(20, status=(200, 504)))
    assert weighing.says.result is Result.FAIL


def test_latency_of_pairs_has_the_tolerance_on_the_candidates_side():
    rule = MetricRule("latency", 0.1, 5.0, margin=0.05)
    known = Learned(
        (10.0, 20.0, 30.0, 40.0), {"latency": (0.5, 0.1, 0.05, 0.01)}, {"latency": (0.05,) * 4}, 1800.0, 200
    )
    judge = Judge(shadow(rule), known)
    assert judge.pairs is not None
    y0, y1, both = read_pairs(
        judge.pairs.components, pairs(1, latency=(15.0, 15.9)), known.thresholds, labelled=False
    )
    assert both.all()
    assert (y0[0].tolist(), y1[0].tolist()) == ([1, 0, 0, 0], [0, 0, 0, 0])


def test_a_shadow_does_not_pass_before_it_has_its_labels():
    plan = shadow(LABELS, min_labels=300)
    right = pairs(299, wrong=(0.0, 0.0))
    weighing = fed(plan, learned(LABELS), right, labelled=True)
    assert weighing.says.result is Result.INCONCLUSIVE
    assert "of at least 300 labels have come" in weighing.says.verdict().reason
    more = fed(plan, learned(LABELS), pairs(320, wrong=(0.0, 0.0)), labelled=True)
    assert more.says.result is Result.PASS


def test_half_a_label_is_half_as_wrong():
    weighing = fed(shadow(LABELS), learned(LABELS), pairs(62, wrong=(0.0, 0.5)), labelled=True)
    assert weighing.says.result is Result.FAIL
    assert weighing.says.verdict().metrics[0].candidate.bad == 31


def test_without_a_baseline_a_rate_is_held_against_its_limit_alone():
    budget = MetricRule("label-error-rate", 0.0, 0.0, limit=0.1)
    plan = shadow(budget, baseline=HUMAN)
    good = fed(
        plan,
        NOTHING,
        *(pairs(10, wrong=(0.0, 1.0 if n % 40 == 0 else 0.0), start=n) for n in range(80)),
        labelled=True,
    )
    assert good.says.result is Result.PASS
    assert "label-error-rate is below 10 %" in good.says.verdict().reason
    bad = fed(
        plan, NOTHING, *(pairs(1, wrong=(0.0, float(n % 3 == 0)), start=n) for n in range(80)), labelled=True
    )
    assert bad.says.result is Result.FAIL
    assert "where 10 % are allowed" in bad.says.verdict().reason


def test_answers_that_differ_too_often_fail_and_missing_ones_say_nothing():
    rule = MetricRule("disagreement-rate", 0.0, 0.0, limit=0.05)
    assert fed(shadow(rule), NOTHING, pairs(100, differs=1)).says.result is Result.FAIL
    assert fed(shadow(rule), NOTHING, pairs(500, differs=0)).says.result is Result.PASS
    unknown = fed(shadow(rule), NOTHING, pairs(500, differs=-1)).says
    assert unknown.result is Result.INCONCLUSIVE
    assert unknown.verdict().metrics[0].candidate.n == 0


def test_no_evidence_is_never_a_pass():
    for rules in ((ERRORS,), (LABELS,), (MetricRule("disagreement-rate", 0.0, 0.0, limit=0.05),)):
        assert fed(shadow(*rules), learned(*rules)).says.result is Result.INCONCLUSIVE


def test_a_latency_limit_of_people_alone_is_asked_of_the_candidate_only():
    rules = (MetricRule("latency-p99", 0.0, 0.0, limit=100.0), MetricRule("error-rate", 0.0, 0.0, limit=0.01))
    plan = shadow(*rules, baseline=HUMAN)
    slow = fed(plan, NOTHING, pairs(60, latency=(500.0, 500.0)))
    assert slow.says.result is Result.FAIL


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.lists(st.sampled_from([0.0, 0.004, 0.02, 0.3]), min_size=1, max_size=12),
)
def test_blocks_of_pairs_do_not_depend_on_how_they_come_in(sizes, gaps):
    total = sum(sizes)
    steps = np.resize(np.array(gaps), total)
    all_at_once = replace(pairs(total), t=np.cumsum(steps))
    whole = PairBlocks(labelled=False).add(all_at_once, all_at_once.t, all_at_once.t)
    pieces, start = [], 0
    cutter = PairBlocks(labelled=False)
    for size in sizes:
        part = all_at_once.take(np.arange(start, start + size))
        pieces += cutter.add(part, part.t, part.t)
        start += size
    assert [(len(block.pairs), block.at) for block in whole] == [
        (len(block.pairs), block.at) for block in pieces
    ]


# ── the machine ────────────────────────────────────────────────────────────────────────────────────────────────────


def running(plan):
    rollout = apply(begun(plan), event(begun(plan), Kind.LEARNED, learned=NOTHING))
    return apply(rollout, event(rollout, Kind.CLIMBED, step=0))


def happen(rollout, proposed):
    return apply(rollout, replace(proposed, seq=rollout.last_seq + 1, at=max(proposed.at, rollout.at)))


@pytest.mark.parametrize("result", [Result.PASS, Result.FAIL])
def test_a_shadow_is_retired_as_soon_as_the_verdict_is_known(result):
    rollout = running(shadow(ERRORS))
    proposed = decide(rollout, Verdict(result, "so it is"), None, 5.0)
    assert (proposed.kind, proposed.cause) == (Kind.RETIRED, Cause.EVIDENCE)
    ended = happen(rollout, proposed)
    assert (ended.phase, ended.finished, ended.weight) == (Phase.RETIRED, True, 0.0)
    assert ended.live == BASELINE
    assert split_for(ended).copies == ()


def test_a_shadow_without_enough_evidence_is_retired_when_its_time_is_over():
    rollout = running(shadow(ERRORS, max_duration=100.0))
    unsure = Verdict(Result.INCONCLUSIVE, "no label came")
    assert decide(rollout, unsure, None, 50.0) is None
    late = decide(rollout, unsure, None, rollout.step_began + 100.0)
    assert (late.kind, late.cause, late.verdict.result) == (
        Kind.RETIRED,
        Cause.INCONCLUSIVE,
        Result.INCONCLUSIVE,
    )


def test_a_shadow_copies_to_its_candidate_and_serves_nobody():
    split = split_for(running(shadow(ERRORS)))
    assert (split.weight, split.mirror) == (0.0, 100.0)
    assert [(copy.arm, copy.version) for copy in split.copies] == [(1, CANDIDATE)]


def test_people_alone_need_no_worker_but_the_candidates():
    rollout = running(shadow(ERRORS, baseline=HUMAN))
    assert versions_for(rollout) == (CANDIDATE,)
    assert rollout.live == HUMAN


def several(rollout, **results):
    judged = Judges(rollout.plan, learned(ERRORS)).verdict()
    each = tuple(
        replace(one, result=results.get(f"v{one.version}", Result.INCONCLUSIVE)) for one in judged.candidates
    )
    return replace(judged, candidates=each)


def test_each_of_several_candidates_is_judged_by_itself_and_loses_its_copies_then():
    rollout = running(shadow(ERRORS, others=(OTHER,)))
    assert [copy.arm for copy in split_for(rollout).copies] == [1, 2]
    proposed = decide(rollout, several(rollout, v3=Result.FAIL), None, 5.0)
    assert (proposed.kind, proposed.version, proposed.verdict.result) == (Kind.JUDGED, "3", Result.FAIL)
    rollout = happen(rollout, proposed)
    assert (rollout.phase, [copy.arm for copy in split_for(rollout).copies]) == (Phase.PROGRESSING, [1])
    assert decide(rollout, several(rollout, v3=Result.FAIL), None, 6.0) is None
    last = decide(rollout, several(rollout, v2=Result.PASS), None, 7.0)
    assert (last.kind, last.verdict.result) == (Kind.RETIRED, Result.FAIL)
    assert [(one.version, one.result) for one in last.verdict.candidates] == [
        ("3", Result.FAIL),
        ("2", Result.PASS),
    ]


def test_several_candidates_that_all_pass_pass_together():
    rollout = running(shadow(ERRORS, others=(OTHER,)))
    rollout = happen(rollout, decide(rollout, several(rollout, v2=Result.PASS), None, 5.0))
    last = decide(rollout, several(rollout, v3=Result.PASS), None, 6.0)
    assert last.verdict.result is Result.PASS


def test_what_is_known_of_some_candidates_is_said_when_the_time_is_over():
    rollout = running(shadow(ERRORS, others=(OTHER,), max_duration=100.0))
    rollout = happen(rollout, decide(rollout, several(rollout, v2=Result.PASS), None, 5.0))
    late = decide(rollout, several(rollout), None, 200.0)
    assert (late.kind, late.verdict.result) == (Kind.RETIRED, Result.INCONCLUSIVE)
    assert "version 2: pass" in late.reason


def test_nobody_is_judged_twice():
    rollout = running(shadow(ERRORS, others=(OTHER,)))
    rollout = happen(rollout, decide(rollout, several(rollout, v3=Result.FAIL), None, 5.0))
    for version in ("3", "2", "9"):
        again = Event(
            0, Kind.JUDGED, 9.0, "gate", Cause.EVIDENCE, version=version, verdict=Verdict(Result.PASS, "")
        )
        with pytest.raises(IllegalEventError, match="not one of several"):
            happen(rollout, again)


def test_copies_of_each_candidate_are_evidence_of_that_candidate_alone():
    plan = shadow(ERRORS, others=(OTHER,))
    weighing = fed(plan, learned(ERRORS), together(pairs(400), pairs(40, arm=2, status=(200, 500))))
    said = {one.version: one.result for one in weighing.says.quick().candidates}
    assert said == {"2": Result.INCONCLUSIVE, "3": Result.FAIL}


# ── a canary that begins with a mirror step ────────────────────────────────────────────────────────────────────────


def mirrored_canary(*rules):
    strategy = Canary(
        (CanaryStep(0.0, mirror=100.0), CanaryStep(5.0), CanaryStep(50.0)), min_dwell=0.0, bake=0.0
    )
    return Plan(
        "canary", BASELINE, CANDIDATE, strategy.steps(), rules, on_inconclusive=OnInconclusive.ROLLBACK
    )


def test_a_mirror_step_is_passed_by_pairs_with_the_margin_of_the_first_weight():
    weighing = fed(mirrored_canary(ERRORS), learned(ERRORS), pairs(30))
    assert weighing.says.result is Result.PASS  # 1 % of all callers is 20 points at 5 %
    assert weighing.says.verdict().metrics[0].margin == pytest.approx(0.2)


def test_harm_in_the_copies_rolls_a_canary_back_before_anybody_was_served():
    weighing = fed(mirrored_canary(ERRORS), learned(ERRORS), pairs(40, status=(200, 500)))
    assert weighing.says.result is Result.FAIL


def test_what_the_copies_have_shown_is_carried_into_the_comparison_of_the_arms():
    suspicious = fed(
        mirrored_canary(ERRORS), learned(ERRORS), pairs(42), pairs(4, status=(200, 500), start=9.0)
    )
    clean = fed(mirrored_canary(ERRORS), learned(ERRORS), pairs(46))
    for weighing in (suspicious, clean):
        weighing.begin(1, 2, 20.0)
    assert suspicious.judge.harm_total > 2 * clean.judge.harm_total
    assert clean.judge.harm_total >= 0.5  # and what was clean costs a factor of two at most


def test_the_whole_of_a_canary_counts_what_the_copies_excluded():
    def safety_of_the_whole(count):
        weighing = fed(mirrored_canary(ERRORS), learned(ERRORS), pairs(count))
        weighing.begin(1, 2, 20.0)
        weighing.begin(2, 3, 30.0)
        return float(np.max(weighing.judge._panel.carried))

    assert safety_of_the_whole(2000) > safety_of_the_whole(40)
    assert safety_of_the_whole(0) == pytest.approx(0.0)
