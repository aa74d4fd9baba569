"""Blue-green on a whole service: checked on copies, all callers at once, compared after the switch, and back on harm."""

import json

import pytest
from service_rig import NAME, wait_for
from test_service_replay import evidence
from test_service_shadow import answered_by

BY_ITSELF = {"mirror": 100, "autoPromotion": True, "bake": {"duration": "500ms", "compare": "mirror"}}
BY_HAND = BY_ITSELF | {"autoPromotion": False}
UNSEEN = BY_HAND | {"mirror": 0}
HELD_BACK = {"duration": "500ms", "compare": "holdback", "holdback": 20}


def switch(box, manifest, *more):
    return box.run("blue-green", "switch", manifest, "-o", "json", *more)


def test_a_sound_version_is_checked_on_copies_and_then_answers_everybody(box):
    box.up()
    with box.traffic() as callers:
        ran = switch(box, box.manifest(blueGreen=BY_ITSELF))
    assert ran.code == 0, ran
    climbed = [event for event in ran.lines if event["kind"] == "climbed"]
    assert [event["weight"] for event in climbed] == [0.0, 100.0]
    assert climbed[1]["cause"] == "evidence"
    assert ran.lines[-1]["phase"] == "promoted"
    assert box.status()["live"] == "2"
    assert answered_by(callers) == {"1", "2"}


def test_without_auto_promotion_a_person_passes_on_the_switch(box):
    box.up()
    manifest = box.manifest(blueGreen=BY_HAND)
    with box.traffic() as callers:
        paused = switch(box, manifest, "--until", "paused")
        assert paused.code == 0, paused
        status = box.status()
        assert (status["phase"], status["weight"], status["waits_for"]) == ("paused", 0.0, "person")
        assert set(callers.versions) == {"1"}
        assert box.run("promote", NAME).code == 0
        assert box.status()["weight"] == 100.0
        box.wait_for_event("promoted")
    assert answered_by(callers) == {"1", "2"}


@pytest.mark.parametrize("candidate", ["nan", "raises"])
def test_a_version_that_fails_on_copies_never_answers_anybody(box, candidate):
    box.up()
    with box.traffic() as callers:
        ran = switch(box, box.manifest(candidate, blueGreen=BY_ITSELF))
    assert ran.code == 3, ran
    assert answered_by(callers) == {"1"}


@pytest.mark.parametrize("bake", [BY_ITSELF["bake"], HELD_BACK], ids=["mirror", "holdback"])
def test_harm_after_the_switch_switches_back_by_itself(box, bake):
    box.up()
    manifest = box.manifest("nan", blueGreen=UNSEEN | {"bake": bake})
    with box.traffic() as callers:
        watching = box.begin("blue-green", "switch", manifest, "-o", "json")
        box.wait_for_event("awaited")
        assert box.run("promote", NAME).code == 0
        out, err = watching.communicate(timeout=60)
        assert watching.returncode == 3, err
        callers.wait_for_answers(20, of="1")
    last = json.loads(out.splitlines()[-1])
    assert (last["phase"], last["weight"], last["by"]) == ("rolled_back", 0.0, "gate")
    assert box.status()["live"] == "1"
    assert callers.failures == [], "an answer without a prediction is no failed request"


def test_callers_that_are_held_back_are_compared_with_after_the_switch(box):
    box.up()
    manifest = box.manifest(blueGreen=BY_ITSELF | {"bake": HELD_BACK})
    with box.traffic() as callers:
        ran = switch(box, manifest)
    assert ran.code == 0, ran
    assert [event["weight"] for event in ran.lines if event["kind"] == "climbed"] == [0.0, 80.0]
    assert ran.lines[-1]["weight"] == 100.0
    assert answered_by(callers) == {"1", "2"}


def test_after_the_promotion_the_version_before_is_warm_and_one_command_away(box):
    box.up()
    manifest = box.manifest(blueGreen=BY_ITSELF | {"keepWarm": "1h"})
    with box.traffic() as callers:
        ran = box.run("blue-green", "switch", manifest, "--until", "promoted")
        assert ran.code == 0, ran
        back = box.run("rollback", NAME, "--reason", "the light has changed")
        assert back.code == 0, back
        assert box.status()["live"] == "1"
    assert answered_by(callers) == {"1", "2"}


@pytest.mark.parametrize(("candidate", "code", "kills"), [("2", 0, 2), ("nan", 3, 0)])
def test_live_export_and_replay_of_a_switch_agree(box, candidate, code, kills):
    box.up()
    manifest = box.manifest(
        candidate, blueGreen=BY_ITSELF | {"bake": {"duration": "2s", "compare": "mirror"}}
    )
    with box.traffic():
        watching = box.begin("blue-green", "switch", manifest, "-o", "json")
        for _ in range(kills):
            before = box.status()["pids"]["controller"]
            box.kill(before)
            wait_for(lambda old=before: box.status()["pids"]["controller"] != old)
        out, err = watching.communicate(timeout=60)
    assert watching.returncode == code, err
    live = [json.loads(line) for line in out.splitlines()]
    log = box.folder / "outcomes.jsonl"
    log.write_text(box.run("history", NAME, "--outcomes").out)
    again = box.run("replay", manifest, "--outcomes", log, "-o", "json")
    *events, _ = again.lines
    assert evidence(events) == evidence(live)
    assert again.code == code, again


def test_the_wrong_verb_names_the_switch(box):
    box.up()
    box.run("canary", "ramp", box.manifest(blueGreen=BY_HAND)).refused(2, "use: deployctl blue-green switch")
