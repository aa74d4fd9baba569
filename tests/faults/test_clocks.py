"""A machine that sleeps decides nothing: not that the time of a step is over, and not that a version was late meanwhile."""

import signal
import threading
import time
from array import array

from service_rig import NAME, wait_for

from deployctl import records
from deployctl.controller.loop import LONGEST_WATCH
from deployctl.records import Intake
from deployctl.wire.admin import AdminClient
from deployctl.wire.orders import HELD_UP

TIMEOUT = 2.0
ASLEEP = 3.5
"""Seconds; whatever was under way is past its time-out then."""
WAITING = 50
"""Requests that are sent while the candidate's worker is stopped already and the rest is not: a fifth of them wait for it."""


def test_a_service_that_was_suspended_in_mid_dwell_goes_on_where_it_was(service_box):
    """Every process of it is stopped, as a machine's sleep stops them, and the clock goes on all the same."""
    box, service = service_box, {"timeout": f"{TIMEOUT:g}s"}
    box.up(box.manifest(service=service))
    manifest = box.manifest(canary={"minDwell": "60s"}, metrics=("error-rate",), service=service)
    with box.traffic(200) as traffic, AdminClient(box.home.admin_socket, NAME) as client:
        traffic.wait_for_answers(50)
        client.post("/v1/rollouts", {"manifest": manifest.read_text(), "path": str(manifest), "by": "a test"})
        began = _when_it_climbed(box)
        traffic.wait_for_answers(20, of="2")
        stopped, woke = _suspend(box, traffic)
        status = client.get("/v1/status")
        assert (status["phase"], status["weight"]) == ("progressing", 20)
        traffic.wait_for_answers(20, of="2")
        assert client.post("/v1/rollback", {"by": "a test", "reason": "", "to": None})["weight"] == 0
        awake = stopped - began + time.monotonic() - woke
    events = [record["event"] for record in box.records() if record["type"] == "event"]
    climbed, rolled_back = (
        next(e["at"] for e in events if e["kind"] == kind) for kind in ("climbed", "rolled_back")
    )
    assert rolled_back - climbed <= awake + LONGEST_WATCH
    assert "promoted" not in {event["kind"] for event in events}
    late = _under_way(box, status["rollout"], stopped, woke)
    assert {marked for _, marked in late} == {HELD_UP}
    assert 1 in {arm for arm, _ in late}, "the candidate would have been harmed"


def _when_it_climbed(box):
    """A moment just before it."""
    moments = [time.monotonic()]

    def climbed():
        moments.append(time.monotonic())
        return ("climbed", 0) in box.events()

    wait_for(climbed)
    return moments[-2]


def _suspend(box, traffic):
    """Stop every process, the candidate's worker first, and let them go on after a while; when they were stopped, and woken up."""
    pids = box.status()["pids"]
    first = pids["workers"].pop("2")
    box.kill(first, signal.SIGSTOP)
    enough = traffic.sent + WAITING
    wait_for(lambda: traffic.sent >= enough, what="callers who wait for the candidate")
    every = [*pids["routers"], *pids["workers"].values(), pids["controller"], pids["supervisor"]]
    for pid in every:
        box.kill(pid, signal.SIGSTOP)
    stopped = time.monotonic()
    threading.Event().wait(ASLEEP)
    woke = time.monotonic()
    for pid in (first, *reversed(every)):
        box.kill(pid, signal.SIGCONT)
    return stopped, woke


def _under_way(box, rollout, stopped, woke):
    """(arm, explicit) of every request that began before the sleep and ended after it."""
    batches = [
        one.batch for one in records.read(box.home.records / f"{rollout}.records") if isinstance(one, Intake)
    ]
    rows = [
        row
        for batch in batches
        for row in zip(
            array("b", batch.arm),
            array("b", batch.explicit),
            array("d", batch.start),
            array("f", batch.latency),
            strict=True,
        )
    ]
    return [
        (arm, marked) for arm, marked, start, took in rows if start < stopped and start + took / 1000 > woke
    ]
