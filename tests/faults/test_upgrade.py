"""Another release takes a running service over in mid-rollout: no request fails, and whatever is killed over it, nothing is lost."""

import json
import sys
from contextlib import contextmanager, nullcontext, suppress

import httpx
import pytest
from accounts import candidate_answers, every_outcome_counts_once
from releases import install
from service_rig import NAME, PATIENCE, alive, children, command, wait_for

from deployctl import __version__
from deployctl.errors import UnavailableError
from deployctl.wire.admin import AdminClient

RATE = 150
NEW = "0.2.0"
WEIGHT = 20
IN_THE_MIDDLE = {"steps": [{"setWeight": WEIGHT}, {"pause": {}}, {"setWeight": 50}], "minDwell": "2s"}
"""However long an upgrade takes, it is in the middle of this one: a person passes the first step on."""


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    """The interpreter of another release than the one that runs."""
    return install(tmp_path_factory.mktemp("newer"), NEW)


@contextmanager
def load(box, rate=RATE):
    """Callers with kept-alive connections, and others that come anew for each request; none of them may fail."""
    with box.traffic(rate) as kept, box.traffic(rate, fresh=True) as fresh:
        yield kept, fresh
    for traffic in (kept, fresh):
        assert not traffic.failures
        assert traffic.statuses == {200: traffic.sent}


def test_an_upgrade_in_mid_canary_fails_no_request_and_the_rollout_goes_on_with_its_evidence(
    box, newer, tally
):
    with load(box) as (kept, fresh):
        ramping = box.begin("canary", "ramp", box.manifest(canary=IN_THE_MIDDLE), "-o", "json")
        kept.wait_for_answers(20, of="2")
        fresh.wait_for_answers(20, of="2")
        before, evidence = box.status(), wait_for(lambda: candidate_answers(box))
        box.python = newer
        told = box.run("status", NAME)
        assert (told.code, told.err.count("\n")) == (0, 1)
        assert f"give it this one: deployctl upgrade {NAME}" in told.err
        upgraded = box.run("upgrade", NAME, "-o", "json")
        assert upgraded.code == 0, upgraded
        assert (upgraded.json["from"], upgraded.json["to"]) == (__version__, NEW)
        after = box.status()
        assert (after["rollout"], after["release"]) == (before["rollout"], NEW)
        assert candidate_answers(box) >= evidence
        everything_is_of(box, before["pids"], after["pids"], newer)
        box.wait_for_event("awaited")
        assert box.run("promote", NAME).code == 0
        out, said = ramping.communicate(timeout=60)
        assert ramping.returncode == 0, said
    kinds = [json.loads(line)["kind"] for line in out.splitlines()]
    assert kinds == ["started", "learned", "climbed", "awaited", "climbed", "promoted", "finished"]
    assert [record["event"]["kind"] for record in box.records()[1:]] == kinds, "each event once"
    every_outcome_counts_once(box, before["rollout"])
    tally.count("upgrade under load", 1, words=f"{kept.sent + fresh.sent} requests, 0 failed")


def everything_is_of(box, before, after, python):
    """The supervisor is the same process with other code; every other process is another one, of that release."""
    assert after["supervisor"] == before["supervisor"]
    assert after["controller"] != before["controller"]
    assert not set(after["routers"]) & set(before["routers"])
    assert after["workers"].keys() == before["workers"].keys()
    assert not set(after["workers"].values()) & set(before["workers"].values())
    running = [after["supervisor"], *children(after["supervisor"])]
    assert len(running) == 1 + 1 + len(after["routers"]) + len(after["workers"])
    assert {command(pid)[0] for pid in running} == {str(python)}
    assert httpx.get(f"{box.url}/v2").json()["version"] == NEW


MOMENTS = {
    "while it is rehearsed": lambda running: running["rehearsal"],
    "when the code was replaced": lambda running: running["taken over"],
    "with a new controller": lambda running: running["taken over"] and running["controller"],
    "with two workers of a version": lambda running: running["serving"] > 2,
    "with two routers": lambda running: running["router"] > 1,
}
"""Each is one of the steps of an upgrade, told by the processes that run then."""
VICTIMS = ("supervisor", "controller", "command", "the service by `down`")
ALL = [(victim, moment) for victim in VICTIMS for moment in MOMENTS]
SHORT = [
    ("command", "when the code was replaced"),
    ("controller", "with two workers of a version"),
    ("supervisor", "with two routers"),
]


def test_whatever_is_killed_during_an_upgrade_nothing_is_lost(box, newer, long, tally):
    manifest = box.manifest(canary={"minDwell": "600s"})
    assert box.run("canary", "ramp", manifest, "--detach").code == 0
    box.wait_for_event("climbed", 0)
    told, old = box.records(), box.python
    tried = (ALL * 3) if long else SHORT
    for number, (victim, moment) in enumerate(tried):
        box.python = old if number % 2 else newer
        goes_on = victim in {"controller", "command"}
        with load(box, 50) if goes_on else nullcontext():
            kill_in_upgrade(box, victim, moment)
            if not goes_on:
                wait_for(lambda: box.supervisor is None, what="the end of the service")
                box.up(manifest)
            settled = wait_for(
                lambda: in_order(box), 3 * PATIENCE, f"order after {victim} was killed {moment}"
            )
        assert settled["phase"] == "progressing"
        assert box.records() == told, "no event is lost and none is new"
    tally.count("kill during an upgrade", len(tried))


def test_of_two_upgrades_at_once_one_is_done_and_the_other_is_done_or_refused(box, newer, long):
    if not long:
        pytest.skip("in the long version: make faults")
    old = box.python
    for number in range(10):
        box.python = old if number % 2 else newer
        with load(box, 50):
            both = [box.begin("upgrade", NAME) for _ in range(2)]
            said = [one.communicate(timeout=60)[1] for one in both]
            codes = sorted(one.returncode for one in both)
            assert codes[0] == 0, said
            assert codes[1] in {0, 7}, said
            wait_for(lambda: not box.status()["upgrade"]["left"], what="the end of both")
        everybody = [box.supervisor, *children(box.supervisor)]
        assert len(everybody) == 4
        assert {command(pid)[0] for pid in everybody} == {str(box.python)}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_rollout_that_begins_in_an_upgrade_goes_its_way(box, newer, moment, long):
    if not long:
        pytest.skip("in the long version: make faults")
    supervisor, old = box.supervisor, box.python
    box.python = newer
    with load(box, 50) as (kept, _):
        upgrading = box.begin("upgrade", NAME)
        wait_for(lambda: MOMENTS[moment](seen(supervisor)) or upgrading.poll() is not None)
        box.python = old
        ramped = box.ramp(box.manifest())
        assert ramped.code == 0, ramped
        upgrading.communicate(timeout=60)
        assert upgrading.returncode == 0
        kept.wait_for_answers(20, of="2")
    assert box.status()["live"] == "2"
    assert box.status()["release"] == NEW


def kill_in_upgrade(box, victim, moment):
    """SIGKILL at a moment of an upgrade; where that is over before it was seen, after it."""
    supervisor = box.supervisor
    upgrading = box.begin("upgrade", NAME)
    wait_for(lambda: MOMENTS[moment](seen(supervisor)) or upgrading.poll() is not None)
    controllers = [pid for pid in children(supervisor) if module(pid) == "controller"]
    killed = {"supervisor": [supervisor], "controller": controllers, "command": [upgrading.pid]}
    if victim in killed:
        for pid in killed[victim]:
            with suppress(ProcessLookupError):
                box.kill(pid)
    else:
        everybody = children(supervisor)
        assert box.run("down", NAME).code == 0
        wait_for(lambda: not any(alive(pid) for pid in everybody), what="the end of every process")
    upgrading.communicate(timeout=60)


def in_order(box):
    """The status once nothing of an upgrade is left to do and the split of the journal is in force; None before."""
    try:
        status = box.status()
    except UnavailableError:  # the new controller reads what the old one wrote, on a busy machine
        return None
    workers = [pid for pid in status["pids"]["workers"].values() if alive(pid)]
    # A service that starts in mid-rollout serves before its candidate is loaded: at weight 0, and then as the journal says.
    settled = not status["upgrade"]["left"] and status["weight"] == WEIGHT and status["candidate"]
    whole = len(workers) == 2 and len(children(status["pids"]["supervisor"])) == 4
    return status if settled and whole else None


def seen(supervisor):
    """What runs below a supervisor, by the module's name."""
    modules = [module(pid) for pid in children(supervisor)]
    counts = {name: modules.count(name) for name in ("rehearsal", "controller", "router", "serving")}
    return counts | {"taken over": "--take-over" in command(supervisor)}


def module(pid):
    """`router` for `python -m deployctl.router …`."""
    return next(
        (word.removeprefix("deployctl.") for word in command(pid) if word.startswith("deployctl.")), ""
    )


UNFIT = [
    ("with a hole in it", {"serving__prediction": ("import ", "import not_there, ")}, 8, "not_there"),
    (
        "that knows less than the journal says",
        {"core__rollout": ('LEARNED = "learned"', 'LEARNED = "taught"')},
        9,
        "a newer release wrote it",
    ),
]


def test_a_release_that_cannot_take_over_changes_nothing(box, tmp_path):
    with load(box, 50) as (kept, _):
        kept.wait_for_answers(20)
        assert box.run("canary", "ramp", box.manifest(canary={"minDwell": "60s"}), "--detach").code == 0
        box.wait_for_event("climbed", 0)
        wait_for(lambda: box.status()["weight"] == 20)
        pids = box.status()["pids"]
        for name, changes, code, words in UNFIT:
            box.python = install(tmp_path / name, NEW, **changes)
            with box.nothing_changes():
                box.run("upgrade", NAME).refused(code, words, "nothing was changed")
        order = {"python": sys.executable, "package": str(tmp_path), "by": "a test"}
        for changes, words in ({}, f"and not {tmp_path}"), ({"python": "/no/python"}, "/no/python"):
            with AdminClient(box.home.admin_socket) as client, pytest.raises(UnavailableError, match=words):
                client.post("/v1/upgrade", order | changes)
        assert box.status()["pids"] == pids


def test_a_release_that_cannot_load_a_model_leaves_it_to_its_worker_of_before(box, tmp_path):
    before = box.status()["pids"]
    with load(box, 50) as (kept, _):
        box.python = install(
            tmp_path / "release",
            NEW,
            serving__model=("content = _read(file, digest)", "raise InvalidError('it is too old')"),
        )
        box.run("upgrade", NAME).refused(8, "version 1", "it is too old", "its worker of before goes on")
        kept.wait_for_answers(100)
        pids = box.status()["pids"]
    assert pids["controller"] != before["controller"]
    assert alive(before["workers"]["1"])
