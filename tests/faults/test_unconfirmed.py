"""A rollback is done when every router has read it back, and never said to be before."""

import signal

import pytest
from service_rig import NAME, Box, wait_for


@pytest.fixture
def two_routers(tmp_path):
    box = Box(tmp_path, {"routers": 2})
    yield box.up()
    box.close()


def test_a_rollback_that_one_router_does_not_confirm_is_4_and_holds_when_that_router_wakes_up(two_routers):
    box = two_routers
    assert box.run("canary", "ramp", box.manifest(canary={"minDwell": "60s"}), "--detach").code == 0
    box.wait_for_event("climbed", 0)
    stopped, _ = wait_for(lambda: (s := box.status())["weight"] == 20 and s["pids"]["routers"])
    box.kill(stopped, signal.SIGSTOP)
    box.run("rollback", NAME).refused(4, "call a person")
    assert box.events()[-1][0] == "rolled_back"
    assert box.status()["weight"] is None, "they differ"
    box.kill(stopped, signal.SIGCONT)
    wait_for(lambda: box.status()["weight"] == 0, what="weight 0")


def test_a_new_controller_waits_for_the_word_of_every_router_that_there_is(two_routers):
    box = two_routers
    first, second = box.status()["pids"]["routers"]
    box.kill(second, signal.SIGSTOP)
    controller = box.status()["pids"]["controller"]
    box.kill(controller)
    box.another_controller(controller)
    assert set(box.status()["pids"]["routers"]) == {first, second}
    assert box.status()["weight"] is None, "one of them says nothing"
    box.kill(second, signal.SIGCONT)
    wait_for(lambda: box.status()["weight"] == 0, what="the word of both")
    box.kill(second)
    wait_for(
        lambda: second not in box.status()["pids"]["routers"] and box.status()["weight"] == 0,
        what="another one's",
    )
