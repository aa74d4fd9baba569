"""Webhooks on a whole service: who must agree holds the rollout, who is told hears everything, and a killed controller forgets neither."""

import json

import pytest
from hook_receiver import serving
from service_rig import NAME, wait_for
from test_service_replay import evidence

GATES = ("confirm-rollout", "pre-rollout", "rollout", "confirm-traffic-increase", "confirm-promotion")


@pytest.fixture
def receiver():
    with serving() as receiver:
        yield receiver


def hooks(receiver, *types, **changes):
    """One webhook of each type, with the type as its name and its path."""
    shared = {"interval": "100ms", "timeout": "1s", "retries": 0} | changes
    return {
        "webhooks": [{"name": kind, "type": kind, "url": receiver.at(f"/{kind}")} | shared for kind in types]
    }


def seen(box, kind):
    return next(hook for hook in box.status()["webhooks"] if hook["name"] == kind)


def test_every_gate_holds_until_it_agrees_and_a_killed_controller_forgets_no_approval(box, receiver):
    for kind in GATES:
        receiver.say(f"/{kind}", 403, b"not yet")
    box.up()
    manifest = box.manifest(analysis=hooks(receiver, *GATES, "event", "post-rollout"))
    with box.traffic():
        watching = box.begin("canary", "ramp", manifest, "-o", "json")
        for kind, step in (("confirm-rollout", 0), ("confirm-traffic-increase", 1), ("confirm-promotion", 2)):
            if kind == "confirm-traffic-increase":
                receiver.say("/pre-rollout", 200)
                wait_for(lambda: seen(box, "rollout")["tries"] > 1, what="the check of the first step")
                receiver.say("/rollout", 200)
            waits = wait_for(
                lambda at=step: (
                    (s := box.status())["step"] == at
                    and s["waits_for"] == "webhook"
                    and s["phase"] == "paused"
                    and s
                ),
                what=kind,
            )
            wait_for(lambda kind=kind: seen(box, kind)["tries"] > 1, what=f"{kind}, asked twice")
            assert seen(box, kind)["last"] == "answered 403: not yet"
            if step == 1:
                gone = waits["pids"]["controller"]
                box.kill(gone)
                box.another_controller(gone)
                assert box.status()["waits_for"] == "webhook"
            receiver.say(f"/{kind}", 200, b"signed off by kim")
        out, err = watching.communicate(timeout=60)
    assert watching.returncode == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    approved = [
        (event["by"], event["cause"], event["reason"]) for event in events if event["kind"] == "approved"
    ]
    assert sorted(approved[:2]) + approved[2:] == [  # the first two are asked at the same time
        ("webhook:confirm-rollout", "webhook", "signed off by kim"),
        ("webhook:pre-rollout", "webhook", "answered 200"),
        ("webhook:rollout", "webhook", "answered 200"),
        ("webhook:confirm-traffic-increase", "webhook", "signed off by kim"),
        ("webhook:rollout", "webhook", "answered 200"),
        ("webhook:confirm-promotion", "webhook", "signed off by kim"),
    ]
    told = wait_for(
        lambda: (
            (t := list(dict.fromkeys(one["id"] for one in receiver.events("/event"))))
            and len(t) == len(events)
            and t
        ),
        what="all that was told",
    )
    assert told == [f"{event['rollout']}/{event['seq']}" for event in events]
    ends = wait_for(lambda: receiver.events("/post-rollout"), what="the end")
    assert [one["type"] for one in ends] == ["dev.deployctl.rollout.promoted.v1"]
    log = box.folder / "outcomes.jsonl"
    log.write_text(box.run("history", NAME, "--outcomes").out)
    again = box.run("replay", manifest, "--outcomes", log, "-o", "json")
    assert again.code == 0, again
    assert evidence(again.lines[:-1]) == evidence(events)


def test_a_question_says_what_is_asked_and_what_is_known(box, receiver):
    receiver.say("/confirm-promotion", 503)
    box.up()
    manifest = box.manifest(analysis=hooks(receiver, "confirm-promotion", metadata={"channel": "releases"}))
    with box.traffic():
        ran = box.run("canary", "ramp", manifest, "--until", "paused", "-o", "json")
        assert ran.code == 0, ran
        asked = wait_for(lambda: receiver.events("/confirm-promotion"), what="the question")[0]
        refused = box.run("status", NAME)
        assert "webhook  confirm-promotion (confirm-promotion): asked" in refused.out
        assert box.run("promote", NAME, "--reason", "the ticket system is down").code == 0
    assert (asked["specversion"], asked["type"]) == ("1.0", "dev.deployctl.webhook.confirm-promotion.v1")
    data = asked["data"]
    assert (data["service"], data["candidate"], data["phase"], data["weight"]) == (NAME, "2", "paused", 50.0)
    assert data["metadata"] == {"channel": "releases"}
    assert {metric["name"] for metric in data["verdict"]["metrics"]} == {"error-rate", "null-rate"}
    assert "version 2" in asked["text"]
    assert box.wait_for_phase("promoted")["live"] == "2"


def test_a_webhook_rolls_back_and_the_pipeline_is_told_by_its_exit_code(box, receiver):
    receiver.say("/rollback", 404)
    receiver.say("/rollout", 404)  # so the rollout is still there
    box.up()
    manifest = box.manifest(analysis=hooks(receiver, "rollback", "rollout", "post-rollout"))
    with box.traffic() as callers:
        watching = box.begin("canary", "ramp", manifest, "-o", "json")
        wait_for(lambda: len(receiver.events("/rollback")) > 2, what="being asked again and again")
        assert box.status()["phase"] == "progressing"
        receiver.say("/rollback", 200, b"the line stands still")
        out, err = watching.communicate(timeout=60)
    assert watching.returncode == 3, err
    last = json.loads(out.splitlines()[-1])
    assert (last["kind"], last["by"], last["reason"]) == (
        "rolled_back",
        "webhook:rollback",
        "the line stands still",
    )
    assert box.status()["weight"] == 0.0
    assert callers.failures == []
    (end,) = wait_for(lambda: receiver.events("/post-rollout"), what="the end")
    assert end["data"]["event"]["reason"] == "the line stands still"
    assert "the line stands still" in box.run("explain", NAME).out


def test_a_check_that_hangs_never_passes_and_ends_as_the_manifest_says(box, receiver):
    receiver.say("/rollout", None)
    box.up()
    manifest = box.manifest(
        analysis=hooks(receiver, "rollout", timeout="200ms"), canary={"stepTimeout": "1500ms"}
    )
    with box.traffic():
        ran = box.ramp(manifest)
    assert ran.code == 5, ran
    assert ran.lines[-1]["kind"] == "rolled_back"
    assert "rollout (rollout)" in ran.lines[-1]["reason"]


def test_what_is_told_waits_for_a_receiver_that_is_down_and_comes_in_order(box, receiver, tmp_path):
    receiver.say("/event", 503)
    address = tmp_path / "address"
    address.write_text(receiver.at("/event"))
    box.up()
    given = {"name": "news", "type": "event", "urlFile": str(address), "retries": 0}
    with box.traffic():
        assert box.ramp(box.manifest(analysis={"webhooks": [given]})).code == 0
    assert (
        wait_for(lambda: (hook := seen(box, "news"))["behind"] > 2 and hook, what="a queue")["last"]
        == "answered 503"
    )
    status = box.run("status", NAME)
    assert "news (event):" in status.out
    gone = box.status()["pids"]["controller"]
    box.kill(gone)
    box.another_controller(gone)
    receiver.came.clear()
    receiver.say("/event", 200)
    wait_for(lambda: seen(box, "news")["behind"] == 0, what="an empty queue")
    seqs = [one["data"]["event"]["seq"] for one in receiver.events("/event")]
    assert seqs == sorted(set(seqs))
    kinds = [one["data"]["event"]["kind"] for one in receiver.events("/event")]
    assert kinds[0] == "started"
    assert "promoted" in kinds
    written = b"".join(
        path.read_bytes() for path in box.home.path.rglob("*") if path.is_file() and path.suffix != ".onnx"
    )
    assert receiver.at("/event").encode() not in written, "an address that is a secret stays in its file"
