"""Whatever a person or an accident of the controller does to a service under load, no request fails because of it."""

from collections import Counter

import pytest
from releases import install
from service_rig import NAME, Box
from traffic_maker import Flood

REQUESTS = 1_000_000
PATIENT = {"timeout": "2s"}  # nobody is late only because this machine is busy with tests
LONG = {"minDwell": "600s"}
SWITCH = {
    "mirror": 0,
    "autoPromotion": False,
    "bake": {"duration": "500ms", "compare": "holdback", "holdback": 20},
}


class Story:
    """What is done to the service, again and again; each part leaves version 1 at all of the traffic, and is counted."""

    def __init__(self, box, flood):
        self.box, self.flood = box, flood
        self.done = Counter()

    def ramp_and_roll_back(self):
        assert self.box.ramp(self._manifest()).code == 0
        self.done["ramp and promotion"] += 1
        self._roll_back()

    def roll_back_in_mid_ramp(self):
        self._ramp_for_long()
        self._roll_back()

    def switch_and_roll_back(self):
        switched = self.box.run("blue-green", "switch", self._manifest(blueGreen=SWITCH), "--until", "paused")
        assert switched.code == 0, switched
        promoted = sum(kind == "promoted" for kind, _ in self.box.events())
        assert self.box.run("promote", NAME).code == 0
        self.done["blue-green switch"] += 1
        self.box.wait_for_event("promoted", times=promoted + 1)
        self._roll_back()

    def kill_the_controller(self):
        self._ramp_for_long()
        for _ in range(2):
            controller = self.box.status()["pids"]["controller"]
            self.box.kill(controller)
            self.box.another_controller(controller)
            self.done["controller SIGKILL"] += 1
            self.flood.wait_for_answers(50, of="2")
        self._roll_back()

    def upgrade(self):
        """Every worker and the router are replaced, as planned."""
        self._ramp_for_long()
        upgraded = self.box.run("upgrade", NAME)
        assert upgraded.code == 0, upgraded
        self.done["upgrade"] += 1
        self.flood.wait_for_answers(50, of="2")
        self._roll_back()

    def _ramp_for_long(self):
        assert self.box.run("canary", "ramp", self._manifest(canary=LONG), "--detach").code == 0
        self.flood.wait_for_answers(50, of="2")

    def _roll_back(self):
        assert self.box.run("rollback", NAME).code == 0
        self.done["rollback"] += 1

    def _manifest(self, **changes):
        return self.box.manifest(service=PATIENT, **changes)


@pytest.fixture
def box(tmp_path):
    box = Box(tmp_path)
    try:
        yield box.up(box.manifest(service=PATIENT))
    finally:
        box.close()


@pytest.mark.timeout(3600)
def test_no_request_fails_whatever_is_done(box, tmp_path, long, tally):
    releases = [install(tmp_path / "release", "0.2.0"), box.python] if long else []
    with Flood(box.url, model=NAME) as flood, box.traffic(200, fresh=True) as fresh:
        story = Story(box, flood)
        while not story.done or (long and flood.answered + fresh.answered < REQUESTS):
            story.ramp_and_roll_back()
            story.switch_and_roll_back()
            story.kill_the_controller()
            if long:
                box.python = releases[story.done["upgrade"] % 2]
                story.roll_back_in_mid_ramp()
                story.upgrade()
    requests, failed = flood.sent + fresh.sent, flood.bad + fresh.bad
    what = ", ".join(f"{count} {name}" for name, count in story.done.items())
    tally.count("request under load", requests, failed, what)
    assert not flood.failures
    assert not fresh.failures
    assert flood.statuses == {200: flood.sent}
    assert fresh.statuses == {200: fresh.sent}
    assert flood.versions["2"] > 100
