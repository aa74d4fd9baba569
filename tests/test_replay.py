"""A replay leads to what the live rollout led to, and shows a policy nothing that its own routing would not have served."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import Behaviour, FakeService
from output_schema import hold

from deployctl.core.plan import Gate, MetricRule, Phase, Plan, Step, Version
from deployctl.core.rollout import UNLOADABLE, UNWATCHED, Cause, Kind
from deployctl.core.verdict import Result
from deployctl.errors import InvalidError
from deployctl.export import export
from deployctl.outcome_log import PIECE_BYTES, OutcomeLog
from deployctl.replay import Replay

GOOD = {"1": Behaviour(errors=0.01, wrong=0.1), "2": Behaviour(errors=0.01, wrong=0.1)}
LABELLED = {
    "metrics": [
        {"name": "error-rate", "margin": "2%"},
        {"name": "null-rate", "margin": "2%"},
        {"name": "latency"},
        {"name": "label-error-rate", "margin": "4%"},
    ]
}


# ── live, exported, replayed ───────────────────────────────────────────────────────────────────────────────────────


def told(events) -> list[tuple]:
    """What must be the same: evidence to the last bit is in the verdicts."""
    return [
        (event.seq, event.kind, event.step, event.at, event.reason, event.verdict) for event in events[1:]
    ]


def replayed(service: FakeService, folder: Path, plan: Plan | None = None, **changes) -> Replay:
    path = folder / "outcomes.jsonl"
    path.write_bytes(b"".join(export(service.home, None)))
    log = OutcomeLog(path)
    run = Replay(plan or service.rollout.plan, log.header, **changes)
    list(run.run(log.pieces()))
    return run


def same(service: FakeService, folder: Path) -> Replay:
    run = replayed(service, folder)
    assert told([event for event, _ in run.events]) == told(service.events)
    judge = service.controller.observation.says
    assert run._weighing.judge.verdict() == judge.verdict()
    assert list(run._weighing.judge.harm) == list(judge.harm)
    assert (run._weighing.judge.totals_n == judge.totals_n).all()
    return run


def same_events(service: FakeService, folder: Path) -> None:
    """Where there is no judge to compare, or one for each of several."""
    assert told([event for event, _ in replayed(service, folder).events]) == told(service.events)


def begin(folder: Path, versions=None, canary=None, **callers) -> FakeService:
    service = FakeService(folder, dict(versions or GOOD), **callers)
    service.up()
    service.watch(1)
    service.ramp(canary=canary)
    return service


NO_TOLERANCE = {
    "name": "error-rate",
    "margin": "2%",
    "tolerance": {"relative": "0%", "absolute": "0%"},
}
"""Judged by the conditional form, whose evidence is boosted."""

SCENES = {
    "good": ({}, {}, {}),
    "dead": ({"2": Behaviour(errors=1.0)}, {}, {}),
    "a little worse": ({"2": Behaviour(errors=0.06)}, {}, {}),
    "worse than exactly as good": (
        {"1": Behaviour(errors=0.02), "2": Behaviour(errors=0.05)},
        {"metrics": [NO_TOLERANCE, {"name": "latency"}], "minDwell": "6s"},
        {},
    ),
    "exactly as good": ({}, {"metrics": [NO_TOLERANCE, {"name": "latency"}]}, {}),
    "slow": ({"2": Behaviour(latency_ms=40.0)}, {"metrics": [{"name": "latency"}]}, {}),
    "null": ({"2": Behaviour(nulls=0.3)}, LABELLED, {}),
    "labels": ({}, LABELLED, {"labelled": 0.5}),
    "labels ten seconds late and wrong": (
        {"2": Behaviour(wrong=0.6)},
        {**LABELLED, "stepTimeout": "40s"},
        {"labelled": 0.5, "label_delay": (0.5, 20.0)},
    ),
    "sticky callers": ({"2": Behaviour(errors=0.05)}, {"stepTimeout": "20s"}, {"keys": 300}),
    "nobody calls": ({}, {"stepTimeout": "3s"}, {"per_second": 0.5}),
    "held": ({}, {"stepTimeout": "1s", "onInconclusive": "hold"}, {"per_second": 20.0}),
    "a limit": (
        {},
        {"metrics": [{"name": "error-rate", "margin": "2%"}, {"name": "latency-p99", "max": "12ms"}]},
        {},
    ),
}


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("kills", [0, 7])
def test_a_live_rollout_its_export_and_its_replay_are_the_same(scene, kills, tmp_path, request):
    if not kills and not request.config.getoption("--long"):
        pytest.skip("the harder story is told in every run, this one with --long")
    versions, canary, callers = SCENES[scene]
    service = FakeService(tmp_path, {**GOOD, **versions}, seed=3, **callers)
    with service:
        service.up()
        service.watch(20 if callers.get("per_second", 400) < 50 else 1)
        service.with_behaviour("1")
        service.ramp(canary={"keepWarm": "2s", **canary})
        for number in range(1200):
            if service.rollout.finished:
                break
            if kills and number % (kills * 10) == kills * 10 - 1:
                service.restart()
            service.step()
        run = same(service, tmp_path)
        assert run.end.left_out == 0


def test_people_are_obeyed_again_at_the_same_instants(tmp_path):
    steps = {"steps": [{"setWeight": 5}, {"pause": {}}, {"setWeight": 30}, {"setWeight": 50}]}
    with begin(tmp_path, canary={**steps, "keepWarm": "3s"}, seed=4) as service:
        service.watch(60, lambda: service.rollout.waits_for == "person")
        service.pause()
        service.watch(1)
        service.promote("looks good")
        service.watch(1)
        service.restart()
        service.watch(1)
        service.resume()
        service.watch_until_over()
        service.watch(1)
        service.rollback("wrong on invoices")
        same(service, tmp_path)


def test_a_full_promotion_and_a_rollback_by_hand_are_replayed(tmp_path):
    with begin(tmp_path, seed=4, canary={"keepWarm": "60s"}) as service:
        service.watch(1)
        service.promote("I know", full=True)
        service.watch(1)
        run = same(service, tmp_path)
        assert run.end.phase is Phase.PROMOTED


CRASH_LOOP = "its worker ended 5 times in a row, the last time by SIGSEGV"


@pytest.mark.parametrize("per_second", [400.0, 0.0])
@pytest.mark.parametrize("what", ["broken", "crashing"])
def test_a_candidate_that_cannot_be_kept_loaded_ends_the_replay_too(what, per_second, tmp_path):
    with begin(tmp_path, canary={"minDwell": "20s"}, per_second=per_second) as service:
        service.watch(3)
        getattr(service.workers, what)["2"] = CRASH_LOOP
        service.watch(1)
        assert service.rollout.phase is Phase.ROLLED_BACK
        end = service.events[-1]
        assert (end.cause, end.reason) == (Cause.EVIDENCE, UNLOADABLE + CRASH_LOOP)
        assert end.verdict.result is Result.FAIL
        if per_second:
            same(service, tmp_path)
        else:  # nothing was learnt, so there is no evidence to compare
            same_events(service, tmp_path)


@pytest.mark.parametrize(("choice", "phase"), [("rollback", Phase.ROLLED_BACK), ("hold", Phase.PAUSED)])
def test_a_candidate_that_nobody_can_watch_any_more_ends_the_replay_too(choice, phase, tmp_path):
    canary = {"minDwell": "60s", "onInconclusive": choice}
    with begin(tmp_path, canary=canary, per_second=400.0) as service:
        service.watch(3)
        service.controller._records._max_bytes = 1
        service.watch(9)
        assert service.rollout.phase is Phase.PROGRESSING
        service.watch(2)
        assert service.rollout.phase is phase
        end = service.events[-1]
        assert (end.cause, end.verdict.result) == (Cause.INCONCLUSIVE, Result.INCONCLUSIVE)
        assert end.reason.startswith(UNWATCHED)
        same(service, tmp_path)


def test_a_disk_that_has_room_again_within_its_time_ends_nothing(tmp_path):
    with begin(tmp_path, canary={"minDwell": "60s"}, per_second=400.0) as service:
        service.watch(3)
        room = service.controller._records._max_bytes
        for _ in range(3):
            service.controller._records._max_bytes = 1
            service.watch(9)
            service.controller._records._max_bytes = room
            service.watch(1)
        assert service.rollout.phase is Phase.PROGRESSING


def test_a_shadow_on_a_full_disk_harms_nobody_and_goes_on(tmp_path):
    service = FakeService(tmp_path, dict(GOOD), per_second=400.0)
    with service:
        service.up()
        service.watch(1)
        service.shadow("2", shadow={"maxDuration": "60s"})
        service.watch(1)
        service.controller._records._max_bytes = 1
        service.watch(15)
        assert service.rollout.phase is Phase.PROGRESSING


def test_a_promoted_version_that_cannot_be_kept_loaded_goes_back_while_the_one_before_is_warm(tmp_path):
    with begin(tmp_path, canary={"keepWarm": "60s"}) as service:
        service.watch_until_over()
        assert service.rollout.phase is Phase.PROMOTED
        service.workers.crashing["2"] = CRASH_LOOP
        service.watch(1)
        assert (service.rollout.phase, service.weight) == (Phase.ROLLED_BACK, 0)
        assert service.controller.service.live.version == "1"
        same(service, tmp_path)


@pytest.mark.parametrize("restarts", [False, True])
def test_one_of_several_shadows_that_cannot_be_kept_loaded_fails_alone(restarts, tmp_path):
    with FakeService(tmp_path, dict(GOOD), labelled=0.5) as service:
        service.up()
        service.watch(1)
        service.shadow("2", "3", shadow={"minLabels": 400})
        service.watch(2)
        service.workers.crashing["3"] = CRASH_LOOP
        service.watch(1)
        if restarts:
            service.restart()
        assert [(one.version, one.result) for one in service.rollout.judged] == [("3", Result.FAIL)]
        assert service.rollout.phase is Phase.PROGRESSING
        service.watch_until_over()
        assert service.kinds[-2:] == ["judged", "retired"]
        said = {one.version: one.result for one in service.events[-1].verdict.candidates}
        assert said == {"2": Result.PASS, "3": Result.FAIL}
        same_events(service, tmp_path)


def test_the_last_of_several_shadows_that_cannot_be_kept_loaded_ends_them_all_with_fail(tmp_path):
    with FakeService(tmp_path, dict(GOOD), labelled=0.5) as service:
        service.up()
        service.watch(1)
        service.shadow("2", "3", shadow={"minLabels": 4000})
        service.watch(2)
        service.workers.crashing |= {"2": CRASH_LOOP, "3": CRASH_LOOP}
        service.watch(1)
        assert service.kinds[-2:] == ["judged", "retired"]
        assert service.events[-1].verdict.result is Result.FAIL
        same_events(service, tmp_path)


HELD_BACK = {"holdback": {"weight": 20, "duration": "6s"}, "keepWarm": "8s"}


@pytest.mark.parametrize("restarts", [False, True])
def test_callers_held_back_after_a_promotion_are_evidence_in_the_replay_too(restarts, tmp_path):
    with begin(tmp_path, seed=4, canary={**LABELLED, **HELD_BACK}, labelled=0.3) as service:
        service.watch_until_over()
        promoted = service.controller.observation.says.totals_n.copy()
        for _ in range(5):
            service.watch(1)
            if restarts:
                service.restart()
        assert (service.controller.observation.says.totals_n > promoted).all()
        same(service, tmp_path)  # while they are held back
        service.watch(2)
        assert service.kinds[-2:] == ["promoted", "released"]
        run = same(service, tmp_path)
        assert run.end.left_out == 0
        assert run.end.phase is Phase.PROMOTED


@pytest.mark.parametrize("restarts", [False, True])
def test_a_fault_that_begins_while_callers_are_held_back_is_found_at_the_same_instant(restarts, tmp_path):
    with begin(tmp_path, seed=4, canary=HELD_BACK) as service:
        service.watch_until_over()
        service.watch(1)
        service.with_behaviour("2", errors=0.2)
        if restarts:
            service.restart()
        service.watch(5)
        assert service.kinds[-2:] == ["promoted", "rolled_back"]
        run = same(service, tmp_path)
        assert run.end.left_out == 0
        assert (run.end.phase, run.end.verdict) == (Phase.ROLLED_BACK, Result.FAIL)


def test_a_person_may_end_the_holding_back_and_the_replay_follows(tmp_path):
    with begin(tmp_path, seed=4, canary={**HELD_BACK, "keepWarm": "5s"}) as service:
        service.watch_until_over()
        service.watch(1)
        service.promote("seen enough", full=True)
        service.watch(1)
        same(service, tmp_path)


def test_a_suspended_machine_watches_nothing_and_replays_the_same(tmp_path):
    with begin(tmp_path, canary={**LABELLED, "minDwell": "4s"}, labelled=0.3) as service:
        service.watch(3)
        service.clock += 600
        service.callers.skip_to(service.clock)
        service.watch(2)
        service.clock += 3
        service.watch(20)
        same(service, tmp_path)


def test_two_routers_of_which_one_dies(tmp_path):
    from fakes import Callers

    with begin(tmp_path, canary={**LABELLED, "minDwell": "3s"}, labelled=0.3) as service:
        other = Callers(service.traffic, service.callers.versions, seed=9, router="router-2", labelled=0.3)
        other._count = 10**6
        other.skip_to(service.clock)
        for number in range(300):
            service.step()
            if number < 100:
                service.controller.on_batch("router-2", other.batch(service.clock))
            elif number == 100:
                service.controller.on_router_gone("router-2")
        same(service, tmp_path)


def test_a_running_rollout_is_exported_up_to_now_and_a_torn_tail_is_left_out(tmp_path):
    with begin(tmp_path, canary={"minDwell": "20s"}) as service:
        service.watch(5)
        same(service, tmp_path)
        whole = b"".join(export(service.home, None))
        with service.records_path.open("ab") as records:
            records.write(b"\x07\x00\x00")
        assert b"".join(export(service.home, None)) == whole


def test_the_export_has_the_format_of_a_log(tmp_path):
    with begin(tmp_path, canary=LABELLED, labelled=1.0, label_delay=(0.1, 0.2)) as service:
        service.watch(3)
        header, *lines = [json.loads(line) for line in b"".join(export(service.home, None)).splitlines()]
        assert header["header"]["rollout"] == header["header"]["salt"] == service.rollout.id
        assert header["header"]["learned"]["thresholds"]
        assert [b["weight"] for b in header["header"]["block_boundaries"]][:1] == [5]
        times = [line["t"] for line in lines]
        assert times == sorted(times)
        assert times[0] >= 0
        assert all(("baseline" in line) != ("candidate" in line) for line in lines)
        assert {"ok", "latency_ms", "prediction"} <= lines[10]["baseline"].keys()
        assert sum("label" in line for line in lines) > 500
        assert all(line["label_t"] > line["t"] for line in lines if "label" in line)


def test_without_a_label_metric_neither_ids_nor_predictions_are_kept(tmp_path):
    with begin(tmp_path) as service:
        service.watch(3)
        size = service.records_path.stat().st_size
        assert size / len(b"".join(export(service.home, None)).splitlines()) < 60
        assert b'"id"' not in b"".join(export(service.home, None))


def test_another_manifest_on_an_export_leaves_out_what_it_would_have_routed_otherwise(tmp_path):
    with begin(tmp_path, seed=5) as service:
        service.watch_until_over()
        plan = service.rollout.plan
        from dataclasses import replace

        slower = replace(plan, steps=(replace(plan.steps[0], dwell=6.0), *plan.steps[1:]))
        run = replayed(service, tmp_path, slower)
        climbs = [event.at for event, _ in run.events if event.kind is Kind.CLIMBED]
        assert climbs[1] >= 6.0
        assert run.end.left_out > 0


# ── a log of one's own ─────────────────────────────────────────────────────────────────────────────────────────────

BASELINE, CANDIDATE = Version("1", "a"), Version("2", "b")
RULES = (MetricRule("error-rate", 0.1, 0.001, 0.02), MetricRule("label-error-rate", 0.1, 0.001, 0.05))


def plan_of(*rules: MetricRule, dwell: float = 1.0, timeout: float = 120.0) -> Plan:
    steps = (Step(10.0, Gate(50.0), dwell=dwell), Step(50.0, Gate(100.0, last=True), dwell=dwell))
    return Plan("canary", BASELINE, CANDIDATE, steps, rules or RULES[:1], step_timeout=timeout)


def log_of(
    folder: Path,
    *,
    seconds: float = 120.0,
    gap: float = 0.01,
    seed: int = 1,
    delay: float = 2.0,
    **rates: float,
) -> Path:
    """A shadow log: both arms of every request. `errors` and `wrong` are the candidate's rates, the baseline has 1 %."""
    draw, lines = random.Random(seed), []
    for number in range(int(seconds / gap)):
        line = {"t": round(number * gap, 6), "id": f"r{number}", "key": f"user-{number}"}
        for arm, share in (("baseline", {}), ("candidate", rates)):
            failed, wrong = (
                draw.random() < share.get("errors", 0.01),
                draw.random() < share.get("wrong", 0.01),
            )
            said = {} if failed else {"prediction": "8" if wrong else "7"}
            line[arm] = {"ok": not failed, "latency_ms": round(2 + 10 * draw.random(), 3), **said}
        if delay is not None and rates.get("labelled"):
            line |= {"label": "7", "label_t": round(line["t"] + delay * (0.5 + draw.random()), 6)}
        lines.append(json.dumps(line))
    path = folder / "log.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def run_of(path: Path, plan: Plan | None = None, **changes) -> Replay:
    log = OutcomeLog(path)
    run = Replay(plan or plan_of(), log.header, **changes)
    list(run.run(log.pieces()))
    return run


def kinds(run: Replay) -> list[str]:
    return [event.kind.value for event, _ in run.events]


def test_a_sound_candidate_is_promoted_after_learning_at_weight_zero(tmp_path):
    run = run_of(log_of(tmp_path), plan_of(MetricRule("latency", 0.1, 5.0), RULES[0]))
    assert kinds(run) == ["started", "learned", "climbed", "climbed", "promoted", "finished"]
    learned = run.events[1][0]
    assert learned.learned.answers == 200
    assert 1.99 < learned.at < 2.02
    assert (run.end.phase, run.end.verdict) == (Phase.PROMOTED, Result.PASS)


def test_a_dead_candidate_is_rolled_back_and_served_few(tmp_path):
    run = run_of(log_of(tmp_path, errors=1.0))
    assert (run.end.phase, run.end.verdict) == (Phase.ROLLED_BACK, Result.FAIL)
    assert run.end.candidate_requests == run.end.candidate_bad < 10
    assert run.end.left_out == 0


def test_who_is_routed_where_depends_on_salt_and_key_alone(tmp_path):
    path = log_of(tmp_path, errors=0.2)
    first, again, other = (run_of(path, salt=salt).end for salt in ("a", "a", "b"))
    assert first == again
    assert first != other


def test_requests_whose_recorded_arm_is_the_other_one_are_left_out_and_counted(tmp_path):
    path = log_of(tmp_path, seconds=20)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for number, line in enumerate(lines):
        del line["candidate" if number % 2 else "baseline"]
    path.write_text("\n".join(map(json.dumps, lines)))
    run = run_of(path, plan_of(dwell=1000.0))
    assert run.end.left_out == pytest.approx(1000, abs=60)
    judge = run._weighing.judge
    assert judge.totals_n.sum() <= len(lines) - run.end.left_out


def test_whatever_the_pieces_the_evidence_is_the_same(tmp_path, monkeypatch):
    path = log_of(tmp_path, labelled=1.0, wrong=0.08, errors=0.02)
    plan = plan_of(*RULES, timeout=60.0)
    whole = run_of(path, plan)
    for size in (1_000, 7_777, 100_000):
        monkeypatch.setattr("deployctl.outcome_log.PIECE_BYTES", size)
        pieces = run_of(path, plan)
        assert [event for event, _ in pieces.events] == [event for event, _ in whole.events]
        assert pieces.end == whole.end
        assert list(pieces._weighing.judge.harm) == list(whole._weighing.judge.harm)


def test_sticky_callers_in_pieces_give_the_same_evidence_too(tmp_path, monkeypatch):
    from dataclasses import replace

    path = log_of(tmp_path, errors=0.05)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("\n".join(json.dumps({**line, "key": f"user-{i % 97}"}) for i, line in enumerate(lines)))
    plan = replace(plan_of(), unit="key")
    whole = run_of(path, plan)
    monkeypatch.setattr("deployctl.outcome_log.PIECE_BYTES", 3_000)
    assert [event for event, _ in run_of(path, plan).events] == [event for event, _ in whole.events]


def test_a_label_counts_from_its_time_on_and_in_the_order_of_arrival(tmp_path):
    plan = plan_of(RULES[1], timeout=3000.0)
    soon = run_of(log_of(tmp_path, labelled=1.0, wrong=0.9, delay=1.0), plan)
    late = run_of(log_of(tmp_path, labelled=1.0, wrong=0.9, delay=40.0), plan)
    assert soon.end.phase is late.end.phase is Phase.ROLLED_BACK
    assert soon.end.at < 5
    assert 20 < late.end.at < 45
    assert late.end.candidate_requests > 5 * soon.end.candidate_requests


def test_labels_ten_minutes_late_are_judged_under_the_split_they_were_answered_under(tmp_path):
    """The log's end is its last label: nothing is lost, nothing counts twice."""
    run = run_of(
        log_of(tmp_path, seconds=60, labelled=1.0, wrong=0.01, delay=600.0),
        plan_of(RULES[1], dwell=30.0, timeout=3000.0),
    )
    assert run._weighing.judge.totals_n[1, 0] <= run.end.candidate_requests
    assert run._end_of_log > 300


def test_one_request_a_minute_is_no_evidence_in_time(tmp_path):
    run = run_of(log_of(tmp_path, seconds=3600, gap=60.0), plan_of(timeout=600.0))
    assert kinds(run)[-1] == "rolled_back"
    assert run.end.verdict is Result.INCONCLUSIVE


def test_what_is_undecided_at_the_end_of_the_log_is_inconclusive(tmp_path):
    run = run_of(log_of(tmp_path, seconds=2.0))
    assert (run.end.phase, run.end.verdict) == (Phase.PROGRESSING, Result.INCONCLUSIVE)


def test_a_log_may_begin_at_any_time_of_its_clock(tmp_path):
    path = log_of(tmp_path, errors=1.0)
    early = run_of(path).end
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("\n".join(json.dumps({**line, "t": line["t"] + 1_700_000_000}) for line in lines))
    late = run_of(path).end
    assert late.candidate_requests == early.candidate_requests
    assert late.at == pytest.approx(early.at + 1_700_000_000, abs=0.001)


LINE = '{"t": 1.0, "id": "a", "baseline": {"ok": true, "latency_ms": 3.1, "prediction": "7"}}'


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (f"{LINE}\n{LINE}\nnonsense\n", ":3: "),
        (f"{LINE}\n\n{LINE.replace('1.0', '0.5')}\n", ":3: time goes back from 1 to 0.5"),
        (f"{LINE}\n" + '{"t": 2, "id": "b"}\n', ":2: neither a baseline nor a candidate"),
        (f"{LINE}\n" + LINE.replace('"id": "a", ', ""), ":2: it has neither a key nor an id"),
        (LINE.replace("3.1", "-1"), ":1: latency_ms"),
        (LINE.replace("3.1", '"3.1"'), ":1: "),
        (LINE.replace('"t": 1.0', '"t": 1e999'), ":1: "),
        (f"{LINE}\n[1]\n", ":2: "),
        (f"{LINE}\n\xff\n", ":2: "),
        ('{"header": 3}\n', ":1: "),
        ("", ":1: "),
        ("x" * (PIECE_BYTES + 2), ":1: the line is longer"),
        (f"{LINE}\n" + "x" * (2 * PIECE_BYTES + 2), ":2: the line is longer"),
    ],
)
def test_what_is_no_outcome_is_said_with_its_line(text, where, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InvalidError, match=f"log.jsonl{where}"):
        run_of(path)


# ── the command ────────────────────────────────────────────────────────────────────────────────────────────────────


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    manifest = {
        "apiVersion": "deployctl/v1",
        "kind": "Rollout",
        "metadata": {"name": "digits"},
        "spec": {
            "service": {"listen": "127.0.0.1:0", "model": "digits"},
            "baseline": {"version": "1", "uri": "v1.onnx"},
            "candidate": {"version": "2", "uri": "v2.onnx"},
            "prediction": {"output": "probabilities", "read": "argmax"},
            "strategy": {"canary": {"steps": [10, 50], "minDwell": "1s", "bake": "1s", "stepTimeout": "30s"}},
            "analysis": {"metrics": [{"name": "error-rate", "margin": "2%"}]},
        },
    }
    for version in ("1", "2"):
        (folder / f"v{version}.onnx").write_bytes(b"model")
    (folder / "rollout.yaml").write_text(json.dumps(manifest))
    ran = subprocess.run(
        [sys.executable, "-m", "deployctl", "replay", "rollout.yaml", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    hold(["replay", *arguments], ran.stdout)
    return ran


@pytest.mark.parametrize(
    ("rates", "seconds", "code", "phase"),
    [({}, 60, 0, "promoted"), ({"errors": 1.0}, 60, 3, "rolled_back"), ({}, 2, 5, "progressing")],
)
def test_the_exit_code_says_how_it_would_have_ended(rates, seconds, code, phase, tmp_path):
    log_of(tmp_path, seconds=seconds, **rates)
    ran = command(tmp_path, "--outcomes", "log.jsonl", "-o", "json")
    assert ran.returncode == code, ran
    *events, end = [json.loads(line) for line in ran.stdout.splitlines()]
    assert end["phase"] == phase
    assert end.keys() >= {
        "schema_version",
        "at",
        "candidate_requests",
        "candidate_bad",
        "left_out",
        "verdict",
    }
    assert [event["kind"] for event in events][:3] == ["started", "learned", "climbed"]
    assert {"seq", "rollout", "reason", "weight", "step"} <= events[0].keys()
    text = command(tmp_path, "--outcomes", "log.jsonl")
    assert text.returncode == code
    assert text.stdout.splitlines()[-1].startswith(phase.replace("_", " "))
    assert len(text.stdout.splitlines()) == len(events) + 1


def test_a_bad_line_is_one_line_on_stderr_and_nothing_else(tmp_path):
    path = log_of(tmp_path, seconds=5)
    path.write_text(path.read_text() + "{\n")
    ran = command(tmp_path, "--outcomes", "log.jsonl")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert len(ran.stderr.splitlines()) == 1
    assert "log.jsonl:501: " in ran.stderr
    missing = command(tmp_path, "--outcomes", "nowhere.jsonl")
    assert (missing.returncode, len(missing.stderr.splitlines())) == (2, 1)
