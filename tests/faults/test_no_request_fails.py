"""Ramp, promotion and rollback under load: no request fails because of any of them."""

import pytest
from service_rig import NAME
from traffic_maker import Flood

REQUESTS = 200_000


def test_no_request_fails_in_ramp_promotion_and_rollback(box):
    with box.traffic(500) as traffic:
        for _ in range(2):
            assert box.ramp(box.manifest()).code == 0, traffic.failures
            assert box.run("rollback", NAME).code == 0
            assert box.run("canary", "ramp", box.manifest(canary={"minDwell": "60s"}), "--detach").code == 0
            traffic.wait_for_answers(20, of="2")
            assert box.run("rollback", NAME).code == 0
    assert not traffic.failures
    assert traffic.statuses == {200: traffic.sent}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_no_request_of_200_000_fails_in_ramp_promotion_and_rollback(box):
    cycles = 0
    with Flood(box.url, model=NAME) as flood:
        while flood.answered < REQUESTS or not cycles:
            assert box.ramp(box.manifest()).code == 0
            assert box.run("rollback", NAME).code == 0
            assert box.run("canary", "ramp", box.manifest(canary={"minDwell": "60s"}), "--detach").code == 0
            flood.wait_for_answers(50, of="2")
            assert box.run("rollback", NAME).code == 0
            cycles += 1
    done = f"{flood.answered} requests, {cycles} promotions, {2 * cycles} rollbacks, {flood.bad} failed"
    print(done)  # noqa: T201 - a figure for pytest -s
    assert not flood.failures
    assert flood.statuses == {200: flood.sent}
    assert flood.versions["2"] > 1_000
