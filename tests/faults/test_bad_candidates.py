"""A candidate that crashes, hangs, answers nonsense or is slow hurts only its own share until it is rolled back."""

import faulty_models
from service_rig import NAME, killing, wait_for

RATE = 300
STEPS = {"steps": [{"setWeight": 20}, {"setWeight": 50}], "minDwell": "20s"}


def test_a_candidate_that_answers_nan_is_rolled_back(box):
    with box.traffic(RATE) as traffic:
        ramped = box.ramp(box.manifest(candidate="nan", canary=STEPS))
        assert ramped.code == 3, ramped
        assert ramped.lines[-1]["verdict"]["decided_by"] == "null-rate"
        _nothing_reaches(traffic, "nan")
    assert not traffic.failures
    _version_1_serves(box)


def test_a_candidate_that_hangs_is_rolled_back_and_its_process_ended(box):
    with box.traffic(RATE) as traffic:
        ramped = box.ramp(box.manifest(candidate="hanging", canary=STEPS))
        assert ramped.code == 3, ramped
        assert ramped.lines[-1]["verdict"]["decided_by"] == "error-rate"
        traffic.wait_for_answers(RATE)
        settled = len(traffic.failures)
        traffic.wait_for_answers(RATE)
        assert len(traffic.failures) == settled
    assert set(traffic.statuses) == {200, 504}
    _version_1_serves(box)


def test_a_candidate_that_crashes_again_and_again_is_rolled_back(box):
    with box.traffic(RATE) as traffic:
        ramping = box.begin("canary", "ramp", box.manifest(canary=STEPS))
        box.wait_for_event("climbed", 0)
        with killing(box, "2"):
            ramping.communicate(timeout=60)
        assert ramping.returncode == 3
        traffic.wait_for_answers(RATE)
        _nothing_reaches(traffic, "2")
    assert set(traffic.statuses) <= {200, 502, 504}
    _version_1_serves(box)


def test_a_candidate_that_is_slow_by_30_ms_is_rolled_back_and_nobody_fails(box):
    box.model_file("slow").write_bytes(faulty_models.slow(30))
    with box.traffic(RATE) as traffic:
        traffic.wait_for_answers(RATE)  # the gate learns the baseline's thresholds first
        ramped = box.ramp(box.manifest(candidate="slow", metrics=("error-rate", "latency"), canary=STEPS))
        assert ramped.code == 3, ramped
        _nothing_reaches(traffic, "slow")
    assert ramped.lines[-1]["verdict"]["decided_by"] in {
        "latency",
        "error-rate",
    }  # a busy machine makes it late too
    assert set(traffic.statuses) <= {200, 504}
    _version_1_serves(box)


def _nothing_reaches(traffic, version):
    """After the rollback no request goes to the candidate any more, beside those that were under way."""
    before = traffic.versions[version] + traffic.in_flight
    traffic.wait_for_answers(RATE)
    assert traffic.versions[version] <= before


def _version_1_serves(box):
    status = box.status()
    assert (status["live"], status["phase"], status["weight"]) == ("1", "rolled_back", 0)
    wait_for(lambda: set(box.status()["pids"]["workers"]) == {"1"}, what="the candidate unloaded")
    assert box.run("rollback", NAME, "-o", "json").json["changed"] is False
