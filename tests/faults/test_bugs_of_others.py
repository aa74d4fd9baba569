"""Bugs that others had, one test each: the story that broke Argo Rollouts, Flagger, KServe or kamal-proxy, told to deployctl.

Where they can, the stories share one service; each of them leaves it at version 1.
"""

import json
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import faulty_models
import pytest
from service_rig import NAME, Box, killing, wait_for
from traffic_maker import Traffic

from deployctl.wire.admin import AdminClient

RATE = 200
PATIENT = {"timeout": "3s"}
"""A busy machine is no failure."""
LONG = {"minDwell": "60s"}
MANY_IN_A_ROW = 60
"""So many answers of one of two versions in a row do not come by chance where each has half of the callers."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    box = Box(tmp_path_factory.mktemp("shared"), PATIENT)
    try:
        yield box.up()
    finally:
        box.close()


@pytest.fixture
def running(shared):
    """The shared service at version 1, with no rollout that runs or could be rolled back."""
    yield shared
    _roll_back(shared)
    wait_for(lambda: shared.status()["weight"] == 0, what="version 1 alone")
    assert shared.status()["live"] == "1"


def test_an_abort_with_nothing_running_leaves_the_live_version_as_it_is(running):
    """argoproj/argo-rollouts#1292: `abort` without a rollout scaled the stable version to 0."""
    worker = running.status()["pids"]["workers"]
    with running.traffic(RATE, keep_answers=True) as traffic, running.nothing_changes():
        for _ in range(2):
            assert running.run("rollback", NAME, "-o", "json").json["changed"] is False
        traffic.wait_for_answers(50)
    assert running.status()["pids"]["workers"] == worker
    assert traffic.statuses == {200: traffic.sent}
    assert set(traffic.versions) == {"1"}


def test_after_the_last_step_no_caller_goes_back_to_the_old_version(running):
    """argoproj/argo-rollouts#1718: between the last step and the promotion 100 % went to the old version for a moment."""
    manifest = running.manifest(canary={"steps": [{"setWeight": 50}], "minDwell": "1s", "bake": "1s"})
    with running.traffic(RATE, keep_answers=True) as traffic:
        began = _moment(traffic)
        assert running.ramp(manifest).code == 0
        read_back = _moment(traffic)
        traffic.wait_for_answers(100)
    first = next(at for at, answer in enumerate(began.since()) if answer.version == "2")
    assert _longest_run(began.since()[first:], of="1") < MANY_IN_A_ROW
    assert {answer.version for answer in read_back.since()} == {"2"}
    assert traffic.statuses == {200: traffic.sent}


def test_a_rollback_to_a_version_that_is_not_loaded_sends_it_nobody_before_it_is(box_with_slow_start):
    """argoproj/argo-rollouts#3941: a fast rollback sent everybody to a version that was still starting. Here the controller dies over it, too."""
    box = box_with_slow_start
    with box.traffic(RATE) as traffic:
        assert box.ramp(box.manifest(canary={"keepWarm": "100ms"})).code == 0
        wait_for(lambda: set(box.status()["pids"]["workers"]) == {"2"}, what="version 1 unloaded")
        back = box.begin("rollback", NAME, "-o", "json")
        box.wait_for_event("rolled_back")
        box.kill(box.status()["pids"]["controller"])
        out, said = back.communicate(timeout=60)
        assert back.returncode == 0, said
        wait_for(lambda: box.status()["weight"] == 0, what="version 1 alone")
        traffic.wait_for_answers(50, of="1")
    assert json.loads(out)["phase"] == "rolled_back"
    assert traffic.statuses == {200: traffic.sent}


@pytest.fixture
def box_with_slow_start(tmp_path):
    """Version 1 takes two seconds to load and warm up, every time."""
    box = Box(tmp_path, PATIENT)
    box.model_file("1").write_bytes(faulty_models.slow_to_warm_up("slow to load", 2_000))
    try:
        yield box.up()
    finally:
        box.close()


def test_a_manifest_that_changes_in_mid_canary_is_refused_and_deployed_when_its_turn_comes(running):
    """argoproj/argo-rollouts#1690: an update in the middle of a canary was neither refused nor deployed."""
    manifest = running.manifest(canary=LONG)
    with running.traffic(RATE, keep_answers=True) as traffic:
        assert _ramp(running, manifest)
        traffic.wait_for_answers(10, of="2")
        assert running.manifest(candidate="3", canary=LONG) == manifest, "the same file, with another version"
        rollout = running.status()["rollout"]
        running.run("canary", "ramp", manifest, "--detach").refused(7, rollout, "version 1 to 2")
        assert running.status()["candidate"] == "2"
        assert _roll_back(running)["changed"]
        assert _ramp(running, manifest)
        traffic.wait_for_answers(10, of="3")
    assert traffic.statuses == {200: traffic.sent}


def test_a_restart_sends_nobody_to_a_canary_that_was_aborted(running):
    """argoproj/argo-rollouts#1665: a restart started the aborted canary and sent it traffic."""
    with running.traffic(RATE, keep_answers=True) as traffic:
        assert _ramp(running, running.manifest(canary=LONG))
        traffic.wait_for_answers(10, of="2")
        assert _roll_back(running)["changed"]
    wait_for(lambda: set(running.status()["pids"]["workers"]) == {"1"}, what="the candidate unloaded")
    for whom in (lambda pids: pids["controller"], lambda pids: pids["routers"][0]):
        running.kill(gone := whom(running.status()["pids"]))
        wait_for(
            lambda whom=whom, gone=gone: whom(running.status()["pids"]) not in {gone, 0}, what="another one"
        )
        wait_for(lambda: running.status()["weight"] == 0, what="the split in force")
        with running.traffic(RATE, keep_answers=True) as traffic:
            traffic.wait_for_answers(100)
            assert set(running.status()["pids"]["workers"]) == {"1"}
        assert set(traffic.versions) == {"1"}


def test_an_abort_is_obeyed_although_a_full_promotion_was_asked_for(running):
    """argoproj/argo-rollouts#4461: with `promote --full` asked for and a candidate that is not healthy, `abort` was ignored."""
    _ramped_to_20_percent(running)
    # Once: one that ends again and again is given up, and nobody can promote it.
    with killing(running, "2", at_most=1), _full_promotion(running) as promoting:
        back = running.run("rollback", NAME, "-o", "json")
        assert (back.code, back.json["changed"], back.json["weight"]) == (0, True, 0), back
        promoting.communicate(timeout=60)
    assert (running.status()["live"], running.status()["weight"]) == ("1", 0)
    with running.traffic(RATE) as traffic:
        traffic.wait_for_answers(100)
    assert set(traffic.versions) == {"1"}


def test_a_promotion_sends_nobody_more_to_a_version_that_is_broken_at_that_moment(running):
    """fluxcd/flagger#1932: the promotion copied the healthy canary to a primary that did not come up, and sent everybody there."""
    _ramped_to_20_percent(running)
    # Once: one that ends again and again is given up, and nobody can promote it.
    with killing(running, "2", at_most=1), _full_promotion(running) as promoting:
        statuses = [running.status() for _ in range(10)]
    broken = [status for status in statuses if not status["pids"]["workers"].get("2")]
    assert {status["weight"] for status in broken} <= {20}
    assert all("1" in status["pids"]["workers"] for status in statuses), "the healthy version stays loaded"
    out, said = promoting.communicate(timeout=60)
    assert (promoting.returncode, json.loads(out)["weight"]) == (0, 100), said
    with running.traffic(RATE) as traffic:
        traffic.wait_for_answers(100)
    assert traffic.statuses == {200: traffic.sent}
    assert set(traffic.versions) == {"2"}


def _ramp(box, manifest):
    """What `canary ramp --detach` asks for."""
    body = {"manifest": manifest.read_text(), "path": str(manifest), "strategy": "canary", "by": "person:ann"}
    with AdminClient(box.home.admin_socket, NAME) as client:
        return client.post("/v1/rollouts", body)["state"] == "started"


def _roll_back(box):
    with AdminClient(box.home.admin_socket, NAME) as client:
        return client.post("/v1/rollback", {"by": "person:ann", "reason": "", "to": None})


def _ramped_to_20_percent(box):
    """Nobody calls any more when this is over: the gate has nothing to roll back for."""
    with box.traffic(RATE) as traffic:
        assert _ramp(box, box.manifest(canary=LONG))
        traffic.wait_for_answers(10, of="2")


@contextmanager
def _full_promotion(box):
    """`promote --full`, once it is written down."""
    before = _count(box, "promoted")
    promoting = box.begin("promote", NAME, "--full", "--reason", "now", "-o", "json")
    box.wait_for_event("promoted", times=before + 1)
    yield promoting


def test_a_rollout_does_not_advance_when_callers_stop_in_mid_analysis(running):
    """fluxcd/flagger#1011: traffic stopped in the middle of the analysis, and the canary advanced all the same."""
    manifest = running.manifest(canary={"minDwell": "1s", "stepTimeout": "2s"})
    with running.traffic(RATE, keep_answers=True) as traffic:
        ramping = running.begin("canary", "ramp", manifest, "-o", "json")
        traffic.wait_for_answers(1, of="2")
    out, said = ramping.communicate(timeout=60)
    assert ramping.returncode == 5, said
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["step"] for event in events if event["kind"] == "climbed"] == [1]
    assert events[-1]["kind"] == "rolled_back"


def test_a_second_canary_after_a_rollback_starts_with_no_weight_of_the_first(running):
    """kserve/kserve#2130: canary, rollback, canary: the second one began with the weight and the revision of the first."""
    with running.traffic(RATE, keep_answers=True) as traffic:
        assert _ramp(running, running.manifest(canary=LONG))
        traffic.wait_for_answers(20, of="2")
        assert _roll_back(running)["changed"]
        second = _moment(traffic)
        steps = {"steps": [{"mirror": {"percentage": 100}}, {"setWeight": 5}], **LONG}
        manifest = running.manifest(candidate="3", canary=steps)
        assert _ramp(running, manifest)
        wait_for(lambda: running.status()["mirror"] == 100, what="copies to version 3")
        assert running.status()["weight"] == 0
        traffic.wait_for_answers(100)
    assert {answer.version for answer in second.since()} == {"1"}
    assert traffic.statuses == {200: traffic.sent}


def test_one_service_that_is_damaged_hurts_none_of_the_others(running):
    """basecamp/kamal-proxy#233: one certificate that could not be read, and the routes of every service were dropped."""
    neighbour = running.state / "neighbour"
    manifest = running.manifest(name="neighbour", service_name="neighbour")
    assert running.run("up", manifest, "--detach").code == 0
    assert running.run("down", "neighbour").code == 0
    with running.traffic(RATE, keep_answers=True) as traffic:
        for damage, (code, states) in DAMAGES.items():
            with _damaged(neighbour, damage):
                rows = {row["service"]: row for row in running.run("list", "-o", "json").json["services"]}
                assert (rows[NAME]["state"], rows[NAME]["live"]) == ("running", "1"), damage.__name__
                assert rows.get("neighbour", {}).get("state") in states, damage.__name__
                if code is not None:
                    running.run("up", manifest, "--detach").refused(code, "neighbour")
        with _damaged(neighbour, _lock_is_a_link):
            assert running.run("status").code == 0, "the only one that runs need not be named"
            controller = running.status()["pids"]["controller"]
            running.kill(controller)
            wait_for(lambda: running.status()["pids"]["controller"] != controller)
            assert running.run("up", running.manifest(), "--detach").code == 0
        traffic.wait_for_answers(50)
    shutil.rmtree(neighbour)
    assert traffic.statuses == {200: traffic.sent}


def _lock_is_a_link(home):
    (home / "lock").unlink()
    (home / "lock").symlink_to(home / "journal")


def _journal_damaged(home):
    data = bytearray((home / "journal").read_bytes())
    data[len(data) // 2] ^= 1
    (home / "journal").write_bytes(data)


def _records_are_a_file(home):
    (home / "records").rmdir()
    (home / "records").write_text("no directory")


def _all_of_it_is_a_file(home):
    shutil.rmtree(home)
    home.write_text("this is no service")


DAMAGES = {
    _lock_is_a_link: (8, {"unreadable"}),
    _journal_damaged: (9, {"stopped"}),
    _records_are_a_file: (None, {"stopped"}),
    _all_of_it_is_a_file: (None, {None}),
}
"""What is done to a service that is stopped → the exit code of its `up` (where that is asked), and what `list` says of it."""


@contextmanager
def _damaged(home, damage):
    """The directory of a service, damaged for a while."""
    kept = home.with_name("kept")
    shutil.copytree(home, kept, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
    damage(home)
    try:
        yield
    finally:
        home.unlink() if home.is_file() else shutil.rmtree(home)
        kept.rename(home)


def _count(box, kind):
    return sum(each == kind for each, _ in box.events())


@dataclass(frozen=True)
class Moment:
    """How much of the traffic had been sent and answered at this moment."""

    traffic: Traffic
    at: float

    def since(self):
        """The answers to requests that were sent after it, in the order of sending."""
        return sorted((one for one in self.traffic.answers if one.sent >= self.at), key=lambda one: one.sent)


def _moment(traffic):
    return Moment(traffic, time.monotonic())


def _longest_run(answers, of):
    return max(
        (len(list(run)) for version, run in groupby(answers, lambda one: one.version) if version == of),
        default=0,
    )
