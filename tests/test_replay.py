"""A replay leads to what the live rollout led to, and shows a policy nothing that its own routing would not have served."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import STEP, Behaviour, FakeService

from deployctl.core.plan import Gate, MetricRule, Phase, Plan, Step, Version
from deployctl.core.rollout import Kind
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
    judge = service.controller.observation.judge
    assert run._weighing.judge.verdict() == judge.verdict()
    assert list(run._weighing.judge.harm) == list(judge.harm)
    assert (run._weighing.judge.totals_n == judge.totals_n).all()
    return run


def begin(folder: Path, versions=None, canary=None, **callers) -> FakeService:
    service = FakeService(folder, dict(versions or GOOD), **callers)
    service.up()
    service.watch(1)
    service.ramp(canary=canary)
    return service


SCENES = {
    "good": ({}, {}, {}),
    "dead": ({"2": Behaviour(errors=1.0)}, {}, {}),
    "a little worse": ({"2": Behaviour(errors=0.06)}, {}, {}),
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
    "a limit": ({}, {"metrics": [{"name": "error-rate", "margin": "2%"}, {"name": "latency-p99", "max": "12ms"}]}, {}),
}


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("kills", [0, 7])
def test_a_live_rollout_its_export_and_its_replay_are_the_same(scene, kills, tmp_path):
    versions, canary, callers = SCENES[scene]
    service = FakeService(tmp_path, {**GOOD, **versions}, seed=3, **callers)
    with service:
        service.up()
        service.watch(20 if callers.get("per_second", 400) < 50 else 1)
        service.with_behaviour("1")
        service.ramp(canary={"keepWarm": "2s", **canary})
        for number in range(1200):
            if kills and number % (kills * 10) == kills * 10 - 1:
                service.restart()
            if service.rollout.finished:
                break
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


def test_a_candidate_that_cannot_be_loaded_any_more_ends_the_replay_too(tmp_path):
    with begin(tmp_path, canary={"minDwell": "20s"}) as service:
        service.watch(3)
        service.workers.broken["2"] = "out of memory"
        service.watch(1)
        assert service.rollout.phase is Phase.ROLLED_BACK
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
