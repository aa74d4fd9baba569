"""Whatever is killed or stopped, callers lose no more than what was in flight in it, and the rollout ends as it would."""

import json
import signal
import statistics
import time

import pytest
from accounts import candidate_answers, every_outcome_counts_once
from service_rig import NAME, alive, wait_for

from deployctl.wire.admin import AdminClient

RATE = 300
ONE_STEP = {"steps": [{"setWeight": 20}], "minDwell": "3s"}
STEADY = 50
"""Requests a second of which not too many wait for a router that a busy machine is slow to start."""
SLACK = 0.1
"""Seconds until a peer that others keep from the processor knows that a process is gone: until then it writes to it."""


def test_a_killed_controller_costs_no_request_and_the_rollout_goes_on_with_its_evidence(box):
    with box.traffic(RATE / 2) as traffic, box.traffic(RATE / 2, fresh=True) as fresh:
        ramping = box.begin("canary", "ramp", box.manifest(canary=ONE_STEP), "-o", "json")
        traffic.wait_for_answers(40, of="2")
        before = candidate_answers(box)
        rollout = box.status()["rollout"]
        for _ in range(2):
            controller = box.status()["pids"]["controller"]
            box.kill(controller)
            box.another_controller(controller)
        status = box.status()
        assert (status["rollout"], status["phase"], status["weight"]) == (rollout, "progressing", 20)
        assert candidate_answers(box) >= before > 0
        out, said = ramping.communicate(timeout=60)
        assert ramping.returncode == 0, said
        kinds = [json.loads(line)["kind"] for line in out.splitlines()]
        assert kinds == ["started", *(["learned"] if "learned" in kinds else []), *kinds[-3:]], (
            "each event once"
        )
        assert kinds[-3:] == ["climbed", "promoted", "finished"]
    for callers in (traffic, fresh):
        assert not callers.failures
        assert callers.statuses[200] == callers.sent
    every_outcome_counts_once(box, rollout)


def test_a_controller_that_is_killed_again_and_again_still_rolls_a_bad_version_back(box):
    ramping = box.begin("canary", "ramp", box.manifest(candidate="nan", canary={"minDwell": "30s"}))
    box.wait_for_event("climbed", 0)
    with box.traffic(20) as traffic:
        for _ in range(3):
            traffic.wait_for_answers(2)
            if box.status()["phase"] == "rolled_back":
                break
            box.kill(box.status()["pids"]["controller"])
        ramping.communicate(timeout=60)
        assert ramping.returncode == 3
        status = box.status()
        assert (status["phase"], status["weight"], status["live"]) == ("rolled_back", 0, "1")
        before = traffic.versions["nan"] + traffic.in_flight
        traffic.wait_for_answers(20)
        assert traffic.versions["nan"] <= before
    assert not traffic.failures


@pytest.mark.parametrize("fresh", [False, True], ids=["kept-alive callers", "fresh callers"])
def test_a_killed_router_costs_at_most_what_was_in_flight_and_comes_back_with_its_split(
    box, fresh, long, tally
):
    assert box.run("canary", "ramp", box.manifest(canary={"minDwell": "600s"}), "--detach").code == 0
    kills, tried = [], 20 if long else 2
    with box.traffic(STEADY, fresh=fresh, keep_answers=True) as traffic:
        traffic.wait_for_answers(5, of="2")
        for _ in range(tried):
            (router,) = box.status()["pids"]["routers"]
            kills.append(_kill_and_wait(box, router))
            wait_for(lambda gone=router: box.status()["pids"]["routers"] not in ([gone], [0], []))
            wait_for(lambda: box.status()["weight"] == 20, what="the split in force again")
            # In the long run the router has settled by then, so that the next one is not kept back.
            traffic.wait_for_answers(4 * STEADY if long else STEADY)
            traffic.wait_for_answers(5, of="2")
    refused = [answer for answer in traffic.failures if b"Refused" in answer.body]
    lost = [answer for answer in traffic.failures if not _was_in_flight(answer, kills)]
    tally.count(
        f"router SIGKILL, {'fresh' if fresh else 'kept-alive'} callers",
        tried,
        len(refused) + len(lost),
        f"{len(traffic.failures)} of {traffic.sent} requests lost, all in flight in it; {_gaps(traffic, kills)}",
    )
    assert not refused
    assert not lost
    assert box.status()["phase"] == "progressing"


def _gaps(traffic, kills):
    """How long it took from a kill to the next answer of a request that was sent after it."""
    gaps = [
        min(each.done for each in traffic.answers if each.status == 200 and each.sent >= gone) - began
        for began, gone in kills
    ]
    return f"gap {1000 * statistics.median(gaps):.0f} ms, at most {1000 * max(gaps):.0f} ms"


def test_a_killed_worker_costs_only_what_was_in_flight_in_it_and_comes_back(box):
    with box.traffic(RATE / 2) as traffic, box.traffic(RATE / 2, fresh=True) as fresh:
        traffic.wait_for_answers(100)
        worker = box.status()["pids"]["workers"]["1"]
        kill = _kill_and_wait(box, worker)
        back = wait_for(
            lambda: (pid := box.status()["pids"]["workers"].get("1")) not in {worker, 0, None} and pid
        )
        assert alive(back)
        for callers in (traffic, fresh):
            wait_for(lambda callers=callers: _nobody_fails(callers), what="answers from the new worker")
    # 502: it was in flight in the worker. 504: it waited for the new one for longer than its time-out.
    failures = [*traffic.failures, *fresh.failures]
    assert {answer.status for answer in failures} <= {502, 504}
    assert not [answer for answer in failures if answer.status == 502 and not _was_in_flight(answer, [kill])]


def test_a_killed_supervisor_takes_every_process_with_it_and_up_goes_on(box):
    manifest = box.manifest(canary=ONE_STEP | {"minDwell": "1s"})
    assert box.run("canary", "ramp", manifest, "--detach").code == 0
    assert box.run("pause", NAME).code == 0
    with box.traffic(RATE) as traffic:
        traffic.wait_for_answers(30, of="2")
    status = box.status()
    before, pids = candidate_answers(box), status["pids"]
    box.kill(pids["supervisor"])
    children = [pids["controller"], *pids["routers"], *pids["workers"].values()]
    wait_for(lambda: not any(alive(pid) for pid in children), within=1.0, what="the end of every child")
    box.run("status", NAME).refused(8, "deployctl up")
    box.up(manifest)
    status = box.status()
    assert (status["phase"], status["live"]) == ("paused", "1")
    assert candidate_answers(box) >= before > 0
    with box.traffic(RATE) as traffic:
        assert box.run("resume", NAME).code == 0
        assert box.ramp(manifest).code == 0
    assert not traffic.failures


def test_a_rollback_waits_for_a_controller_that_is_stopped_and_traffic_flows_meanwhile(box):
    assert box.run("canary", "ramp", box.manifest(canary={"minDwell": "60s"}), "--detach").code == 0
    with box.traffic(RATE) as traffic:
        traffic.wait_for_answers(20, of="2")
        controller = box.status()["pids"]["controller"]
        box.kill(controller, signal.SIGSTOP)
        rolling = box.begin("rollback", NAME, "-o", "json")
        traffic.wait_for_answers(RATE)
        traffic.wait_for_answers(20, of="2")
        assert rolling.poll() is None
        box.kill(controller, signal.SIGCONT)
        out, said = rolling.communicate(timeout=30)
        assert (rolling.returncode, json.loads(out)["weight"]) == (0, 0), said
    assert not traffic.failures
    assert box.status()["phase"] == "rolled_back"


def _kill_and_wait(box, pid):
    """SIGKILL; gives when it was sent and when the process was gone. What is in flight between the two is lost with it."""
    began = time.monotonic()
    box.kill(pid)
    wait_for(lambda: not alive(pid))
    return began, time.monotonic()


def _nobody_fails(traffic):
    failed = len(traffic.failures)
    traffic.wait_for_answers(RATE)
    return len(traffic.failures) == failed


def _was_in_flight(answer, kills):
    return any(answer.sent <= gone + SLACK and answer.done >= began for began, gone in kills)


def test_rolling_back_takes_less_than_a_second_from_the_order_to_the_read_back(box, long):
    taken = {"the command, with the start of its Python": [], "the order": []}
    with box.traffic(RATE) as traffic, AdminClient(box.home.admin_socket, NAME) as client:
        for what, seconds in [*taken.items()] * (10 if long else 2):
            assert box.run("canary", "ramp", box.manifest(canary={"minDwell": "60s"}), "--detach").code == 0
            traffic.wait_for_answers(10, of="2")
            began = time.monotonic()
            if what == "the order":
                weight = client.post("/v1/rollback", {"by": "a test", "reason": "", "to": None})["weight"]
            else:
                weight = box.run("rollback", NAME, "-o", "json").json["weight"]
            seconds.append(time.monotonic() - began)
            assert weight == 0
    assert not traffic.failures
    print({what: [f"{each * 1000:.0f} ms" for each in seconds] for what, seconds in taken.items()})  # noqa: T201 - figures for pytest -s
    assert max(taken["the order"]) < 1, taken
