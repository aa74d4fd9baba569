"""The judge: margins of the steps, shares of the budget, and that what is missing is never a pass."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import ERRORS, canary

from deployctl.core.analysis import Judge
from deployctl.core.learning import default_margin, learn, needs_known_answers, needs_of
from deployctl.core.metrics import LATENCY_QUANTILES, METRICS
from deployctl.core.outcome import OUTCOME, Block, Source
from deployctl.core.plan import MetricRule, Plan
from deployctl.core.rollout import DEFAULT_STEP_TIMEOUT, Learned
from deployctl.core.verdict import Arm, Result

RULES = {
    "error-rate": ERRORS,
    "null-rate": MetricRule("null-rate", 0.1, 0.001, margin=0.005),
    "latency": MetricRule("latency", 0.1, 5.0, margin=0.02),
    "label-error-rate": MetricRule("label-error-rate", 0.1, 0.001, margin=0.02),
}


def plan_of(*names: str, weights: tuple[float, ...] = (5, 10, 30, 50)) -> Plan:
    return canary(*weights, metrics=tuple(RULES[name] for name in names))


def learned_of(plan: Plan, answers: int = 1000) -> Learned:
    rows = np.zeros(answers, OUTCOME)
    rows["status"], rows["latency"] = 200, np.linspace(1, 100, answers)
    return learn(plan, rows, Arm(1000, 50), 100.0, 50.0)


def judge_of(*names: str, weights: tuple[float, ...] = (5, 10, 30, 50)) -> Judge:
    plan = plan_of(*names, weights=weights)
    return Judge(plan, learned_of(plan))


def block(
    judge: Judge,
    source: Source,
    n0: float,
    bad0: float,
    n1: float,
    bad1: float,
    split: int = 1,
    at: float = 0.0,
):
    """The same counts for every component of this source."""
    count = sum(c.metric.source is source for c in judge.components)
    n = np.array([[n0] * count, [n1] * count], dtype=float)
    return Block(source, split, n, np.array([[bad0] * count, [bad1] * count], dtype=float), at)


def good_blocks(judge: Judge, source: Source, blocks: int = 200, split: int = 1) -> None:
    for _ in range(blocks):
        judge.add(block(judge, source, 50, 0, 50, 0, split))


# ── margins ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("weights", "margins"),
    [
        ((5, 10, 30, 50), [5.0, 0.5 / 0.3, 1.0, 1.0]),
        ((5, 10, 25, 50), [5.0, 2.0, 1.0, 1.0]),
        ((1, 50), [1.0, 1.0]),
        ((0.5, 0.6, 50), [50.0, 1.0, 1.0]),
    ],
)
def test_the_margin_of_a_step_is_the_metrics_divided_by_the_next_weight(weights, margins):
    """So the harm that is let through stays below the margin of all traffic; at the last step it is twice the margin."""
    steps = canary(*weights).steps
    assert [100 * step.gate.margin(0.005) for step in steps] == pytest.approx(margins)


def test_a_margin_never_exceeds_fifty_points():
    assert canary(1, 2).steps[0].gate.margin(0.4) == 0.5
    assert canary(50).steps[0].gate.margin(0.4) == 0.5


@given(st.floats(0.001, 0.5), st.lists(st.floats(0.5, 99), min_size=2, max_size=6, unique=True))
def test_what_a_step_lets_through_is_at_most_the_margin_of_all_traffic(margin, weights):
    steps = canary(*sorted(weights)).steps
    for step in steps[:-1]:
        assert step.gate.margin(margin) * step.gate.next_weight / 100 <= margin * (1 + 1e-9)


def test_the_last_step_asks_the_margin_itself_of_the_whole_rollout():
    """Fresh evidence of twice the margin alone does not promote."""
    judge = judge_of("error-rate", weights=(50,))
    judge.begin(0, 1, 0.0)
    results, wide = [], False
    for _ in range(400):
        judge.add(block(judge, Source.OUTCOME, 10, 0, 10, 0))
        results.append(judge.result)
        fresh = judge._panel._evidence.log_evidence()[0, judge._panel._fresh].min()
        wide |= fresh >= math.log(20) and judge.result is Result.INCONCLUSIVE
    assert wide
    assert results[-1] is Result.PASS


def test_default_margins_follow_the_baselines_own_rate():
    assert default_margin(METRICS["error-rate"], 0.0) == pytest.approx(0.005)
    assert default_margin(METRICS["error-rate"], 0.2) == pytest.approx(0.03)
    latency = [default_margin(METRICS["latency"], 1 - q) for q in LATENCY_QUANTILES]
    assert latency == pytest.approx([0.05, 0.025, 0.0125, 0.005])


# ── shares, and who must show what ─────────────────────────────────────────────────────────────────────────────────


@given(st.sets(st.sampled_from(sorted(RULES)), min_size=1))
def test_the_shares_of_the_budget_add_up_to_one_over_the_metrics_that_are_there(names):
    judge = judge_of(*sorted(names))
    assert sum(c.share for c in judge.components) == pytest.approx(1.0)
    by_name = {name: sum(c.share for c in judge.components if c.rule.name == name) for name in names}
    if {"error-rate", "null-rate"} <= names:
        assert by_name["error-rate"] == pytest.approx(2 * by_name["null-rate"])


def test_before_anything_was_seen_the_weighted_evidence_is_one():
    judge = judge_of(*RULES)
    judge.begin(0, 1, 0.0)
    assert judge.harm.sum() == pytest.approx(1.0)
    assert judge.result is Result.INCONCLUSIVE


def test_metrics_fail_together_that_would_not_fail_alone():
    """The sum is held against 1/alpha, so two halves of a proof are one."""

    def units_until_it_fails(*failing: str) -> int:
        judge = judge_of("error-rate", "null-rate")
        judge.begin(0, 1, 0.0)
        for unit in range(1, 200):
            bad = np.array([[0.0, 0.0], [float("error-rate" in failing), float("null-rate" in failing)]])
            n = np.array([[19.0, 19.0], [1.0, 1.0]])
            judge.add(Block(Source.OUTCOME, 1, n, bad * (unit % 5 == 0), 0.0))
            if judge.result is Result.FAIL:
                return unit
        raise AssertionError(failing)

    assert units_until_it_fails("error-rate", "null-rate") <= units_until_it_fails("error-rate")
    assert units_until_it_fails("error-rate") <= units_until_it_fails("null-rate")


def test_one_metric_that_fails_ends_it_and_is_named():
    judge = judge_of(*RULES)
    judge.begin(0, 1, 0.0)
    n, bad = np.full((2, 6), [[19.0], [1.0]]), np.zeros((2, 6))
    bad[1, 1] = 1.0
    for _ in range(8):
        judge.add(Block(Source.OUTCOME, 1, n, bad, 0.0))
    verdict = judge.verdict()
    assert (verdict.result, verdict.decided_by) == (Result.FAIL, "null-rate")
    assert {part.name: part.result for part in verdict.metrics}["null-rate"] is Result.FAIL


def test_every_metric_must_show():
    """Answers are fine; nobody has labelled one, so the step is not passed."""
    judge = judge_of("error-rate", "label-error-rate")
    judge.begin(0, 1, 0.0)
    good_blocks(judge, Source.OUTCOME)
    assert judge.result is Result.INCONCLUSIVE
    assert "no labelled candidate answers so far" in judge.verdict().reason
    good_blocks(judge, Source.LABEL)
    assert judge.result is Result.PASS


@pytest.mark.parametrize("names", [("error-rate",), tuple(RULES)])
def test_no_data_is_never_a_pass(names):
    judge = judge_of(*names)
    assert judge.result is Result.INCONCLUSIVE
    for step in range(4):
        judge.begin(step, step + 1, 1000.0 * step)
        assert judge.result is Result.INCONCLUSIVE
        judge.add(block(judge, Source.OUTCOME, 0, 0, 0, 0, step + 1, at=1000.0 * step))
        judge.add(block(judge, Source.OUTCOME, 10_000, 0, 0, 0, step + 1, at=1000.0 * step))
        assert judge.verdict().result is Result.INCONCLUSIVE


def test_no_metrics_is_never_a_pass():
    plan = canary(metrics=())
    judge = Judge(plan, learn(plan, np.zeros(0, OUTCOME), Arm(), 0.0, 0.0))
    judge.begin(0, 1, 0.0)
    assert judge.result is Result.INCONCLUSIVE


def test_an_answer_of_an_earlier_step_is_not_fresh_evidence():
    judge = judge_of("error-rate")
    judge.begin(0, 1, 0.0)
    good_blocks(judge, Source.OUTCOME)
    assert judge.result is Result.PASS
    judge.begin(1, 2, 10.0)
    assert judge.result is Result.INCONCLUSIVE
    good_blocks(judge, Source.OUTCOME, split=1)
    assert judge.result is Result.INCONCLUSIVE
    good_blocks(judge, Source.OUTCOME, split=2)
    assert judge.result is Result.PASS


def test_evidence_of_harm_outlives_a_step():
    judge = judge_of("error-rate")
    judge.begin(0, 1, 0.0)
    judge.add(block(judge, Source.OUTCOME, 57, 0, 3, 3))
    before = judge.harm.sum()
    judge.begin(1, 2, 10.0)
    assert judge.harm.sum() == pytest.approx(before, rel=0.15)


def test_a_shared_incident_is_no_harm():
    judge = judge_of("error-rate")
    judge.begin(0, 1, 0.0)
    for _ in range(200):
        judge.add(block(judge, Source.OUTCOME, 38, 19, 2, 1))
    assert judge.result is not Result.FAIL
    assert judge.harm.sum() < 5


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_the_same_blocks_give_the_same_evidence(seed):
    random = np.random.default_rng(seed)
    counts = [(random.integers(1, 60), random.integers(0, 2), random.integers(1, 8)) for _ in range(30)]

    def evidence() -> list[float]:
        judge = judge_of(*RULES)
        judge.begin(0, 1, 0.0)
        for at, (n0, bad, n1) in enumerate(counts):
            judge.add(block(judge, Source.OUTCOME, n0, bad, n1, bad, at=float(at)))
        return [part.harm for part in judge.verdict().metrics] + [
            part.safe for part in judge.verdict().metrics
        ]

    assert evidence() == evidence()


def test_what_is_still_needed_is_said():
    judge = judge_of("error-rate")
    judge.begin(0, 1, 0.0)
    for _ in range(5):
        judge.add(block(judge, Source.OUTCOME, 19, 0, 1, 0))
    (part,) = judge.verdict().metrics
    assert part.needed > 0
    for _ in range(math.ceil(1.6 * part.needed)):
        judge.add(block(judge, Source.OUTCOME, 19, 0, 1, 0))
    assert judge.result is Result.PASS
    assert judge.verdict().metrics[0].needed == 0


# ── learning ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_latency_thresholds_are_the_baselines_quantiles():
    learned = learned_of(plan_of("latency"))
    assert learned.thresholds == pytest.approx((50.5, 90.1, 95.05, 99.01), abs=0.02)
    assert learned.rates["latency"] == pytest.approx((0.5, 0.1, 0.05, 0.01))
    assert learned.answers == 1000


def test_a_written_margin_stands_and_a_missing_one_is_learnt():
    rules = (MetricRule("error-rate", 0.1, 0.001), RULES["null-rate"])
    plan = canary(metrics=rules)
    rows = np.zeros(4000, OUTCOME)
    rows["status"] = 200
    rows["status"][:400] = 500
    learned = learn(plan, rows, Arm(), 0.0, 0.0)
    assert learned.margins["error-rate"][0] == pytest.approx(0.005 + 0.1 / 8, rel=0.02)
    assert learned.margins["null-rate"] == (0.005,)


def test_nothing_known_gives_a_rate_that_is_neither_zero_nor_large():
    plan = canary()
    learned = learn(plan, np.zeros(0, OUTCOME), Arm(), 0.0, 0.0)
    assert 0 < learned.rates["error-rate"][0] <= 0.02


def test_known_answers_are_needed_for_latency_and_for_default_margins_alone():
    assert not needs_known_answers(plan_of("error-rate", "null-rate", "label-error-rate"))
    assert needs_known_answers(plan_of("error-rate", "latency"))
    assert needs_known_answers(canary(metrics=(MetricRule("error-rate", 0.1, 0.001),)))


def test_the_step_time_out_is_half_an_hour_or_six_times_what_the_slowest_step_needs():
    plan = plan_of("error-rate")
    rows = np.zeros(1000, OUTCOME)
    rows["status"] = 200
    busy = learn(plan, rows, Arm(), 1000.0, 0.0)
    quiet = learn(plan, rows, Arm(), 0.1, 0.0)
    assert busy.step_timeout == DEFAULT_STEP_TIMEOUT
    slowest = max(
        6 * need.units / (0.1 * step.weight / 100)
        for step in plan.steps
        for need in needs_of(plan, quiet, step)
    )
    assert quiet.step_timeout == pytest.approx(slowest)
    assert quiet.step_timeout > DEFAULT_STEP_TIMEOUT


def test_tolerance_zero_is_judged_by_where_the_bad_answers_fell():
    """The robust form: it sees a difference, and an incident of both arms is none."""
    plan = canary(5, 10, metrics=(MetricRule("error-rate", 0.0, 0.0, 0.005),))
    calm, worse = Judge(plan, learned_of(plan)), Judge(plan, learned_of(plan))
    for judge, bad in ((calm, 50), (worse, 1)):
        judge.begin(0, 1, 0.0)
        for _ in range(10):
            judge.add(block(judge, Source.OUTCOME, 100, bad, 10, 5))
    assert calm.result is not Result.FAIL
    assert worse.result is Result.FAIL


def test_the_history_tells_how_safety_grows():
    judge = judge_of("error-rate")
    judge.begin(0, 1, 0.0)
    for second in range(5):
        judge.add(block(judge, Source.OUTCOME, 400, 0, 40, 0, at=float(second)))
    safe = [safe for _, _, safe in judge.history]
    assert safe == sorted(safe)
    assert safe[-1] > 20
