"""A rollback that others race against, and one whose baseline is being killed: it is written down, then done, and read back."""

import json
import random
import signal
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from service_rig import NAME, Box, alive, killing, wait_for

from deployctl.core.plan import Phase
from deployctl.errors import ConflictError
from deployctl.wire.admin import AdminClient

RATE = 300
PATIENT = {"timeout": "3s"}
"""A busy machine is no failure."""
RACE_RATE = 600
"""The gate has something to learn from at once."""
SLOW = {"minDwell": "60s"}
BY_HAND = {"mirror": 0, "autoPromotion": False, "bake": {"duration": "60s", "compare": "mirror"}}
"""Waits for a person at once; whoever promotes it sends all callers to the candidate."""

RIVALS = {
    "promote": {"full": False, "reason": ""},
    "promote --full": {"full": True, "reason": "it is fine"},
    "rollback": {"reason": "me too", "to": None},
    "rollback --to the live one": {"reason": "me too", "to": "1"},
    "pause": {},
}
"""What a second person does at the same moment, each with the body of its call."""


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """One service at version 1; every test leaves it there."""
    box = Box(tmp_path_factory.mktemp("running"), PATIENT)
    try:
        yield box.up()
    finally:
        box.close()


def test_a_rollback_races_every_other_order_and_the_last_word_in_the_journal_is_what_the_router_does(
    running, long, tally
):
    rounds = 200 if long else 25
    manifest = running.manifest(blueGreen=BY_HAND, metrics=("error-rate",))
    first = Counter()
    with running.traffic(RACE_RATE) as traffic, AdminClient(running.home.admin_socket, NAME) as client:
        for number in range(rounds):
            rival = list(RIVALS)[number % len(RIVALS)]
            first[rival, _race(running, client, manifest, rival, random.Random(number))] += 1
    tally.count("rollback raced against another order", rounds, words=_words(first))
    assert not traffic.failures
    assert traffic.statuses == {200: traffic.sent}


def _race(box, client, manifest, rival, chance):
    """One rollout, two orders at once; gives whose event came first, or that only one of them changed anything."""
    order = {
        "manifest": manifest.read_text(),
        "path": str(manifest),
        "strategy": "blueGreen",
        "by": "person:ann",
    }
    rollout = client.post("/v1/rollouts", order)["rollout"]
    wait_for(lambda: client.get("/v1/status")["waits_for"] == "person", what="the wait for a person")
    before = len(box.records())
    calls = {"person:ann": ("rollback", RIVALS["rollback"]), "person:bob": (rival.split()[0], RIVALS[rival])}
    answers = _at_once(box, calls, chance)
    told = [record["event"] for record in box.records()[before:]]
    for by, answer in answers.items():
        mine = [event["kind"] for event in told if event["by"] == by]
        assert bool(mine) == (answer is not None and answer["changed"]), (rival, by, answer, told)
    assert "rolled_back" in [event["kind"] for event in told]
    status = client.get("/v1/status")
    assert (status["rollout"], status["phase"], status["live"]) == (rollout, Phase.ROLLED_BACK.value, "1")
    assert status["weight"] == 0, "both were answered, so it is read back"
    assert not status["trouble"]
    acted = [event["by"] for event in told]
    return f"{acted[0].removeprefix('person:')} first" if len(set(acted)) == 2 else "one alone"


def _at_once(box, calls, chance):
    """The answer of each call, None for one that was refused because the other had come first."""
    answers, barrier = {}, threading.Barrier(len(calls))

    def call(by, verb, body, delay):
        with AdminClient(box.home.admin_socket, NAME) as client:
            client.get("/v1/status")  # the connection is there
            barrier.wait(10)
            threading.Event().wait(delay)
            try:
                answers[by] = client.post(f"/v1/{verb}", {"by": by, **body})
            except ConflictError:
                answers[by] = None

    threads = [
        threading.Thread(target=call, args=(by, verb, body, chance.choice([0, 0, chance.uniform(0, 0.004)])))
        for by, (verb, body) in calls.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers.keys() == calls.keys(), "every call is answered"
    return answers


def _words(first):
    return ", ".join(f"{rival}: {who} {count}" for (rival, who), count in sorted(first.items()))


def test_a_rollback_waits_for_a_baseline_that_is_killed_again_and_again_and_then_moves(running):
    with running.traffic(RATE) as traffic, _ramped(running, traffic):
        with killing(running, "1") as ended:
            back = running.begin("rollback", NAME, "-o", "json")
            running.wait_for_event("rolled_back", times=_rollbacks(running) + 1)
            for _ in range(20):
                status = running.status()
                if not status["pids"]["workers"].get("1"):
                    assert status["weight"] == 20, "nobody is sent to a version that is not there"
                threading.Event().wait(0.05)
            assert ended() >= 1
        out, said = back.communicate(timeout=60)
        assert (back.returncode, json.loads(out)["weight"]) == (0, 0), said
        settled = len(traffic.failures)
        traffic.wait_for_answers(RATE)
    assert {answer.status for answer in traffic.failures[settled:]} <= {502, 504}
    assert running.status()["weight"] == 0


def _rollbacks(box):
    return sum(kind == "rolled_back" for kind, _ in box.events())


@contextmanager
def _ramped(box, traffic):
    """Version 2 answers 20 percent; at the end nothing of it is left."""
    assert box.run("canary", "ramp", box.manifest(canary=SLOW), "--detach").code == 0
    traffic.wait_for_answers(10, of="2")
    yield
    box.run("rollback", NAME)
    wait_for(
        lambda: (pid := box.status()["pids"]["workers"].get("1")) and alive(pid), what="the baseline back"
    )


def test_a_rollback_to_a_baseline_that_is_stopped_ends_with_everybody_on_it(running):
    """A stopped process cannot be told from a slow one; what counts is where it ends."""
    with running.traffic(RATE) as traffic, _ramped(running, traffic):
        worker = running.status()["pids"]["workers"]["1"]
        running.kill(worker, signal.SIGSTOP)
        back = running.run("rollback", NAME, "-o", "json")
        with suppress(ProcessLookupError):
            running.kill(worker, signal.SIGCONT)
        assert (back.code, back.json["weight"]) == (0, 0), back
        settled = time.monotonic()
        traffic.wait_for_answers(RATE)
        traffic.wait_for_answers(50, of="1")
    assert running.status()["weight"] == 0
    assert not [answer for answer in traffic.failures if answer.sent > settled + 2]


def test_a_baseline_whose_socket_is_gone_is_given_nobody_more_and_a_person_is_called(running, long):
    """The router that knew it is killed, and the next one cannot reach it: the weight stays, and holds until it is back."""
    if not long:
        pytest.skip("20 s until a person is called; in `make faults`")
    with running.traffic(RATE) as traffic, _ramped(running, traffic):
        (router,) = running.status()["pids"]["routers"]
        worker = running.status()["pids"]["workers"]["1"]
        for socket in running.home.worker_sockets.iterdir():
            if socket.name in Path(f"/proc/{worker}/cmdline").read_text():
                socket.unlink()
        running.kill(router)
        wait_for(
            lambda: running.status()["pids"]["routers"] not in ([router], [0], []), what="another router"
        )
        wait_for(lambda: running.status()["weight"] == 20, what="the split in force again")
        running.run("rollback", NAME).refused(4, "version 1 was not ready", "call a person")
        assert running.status()["weight"] == 20
        assert "version 1 is not ready" in running.status()["trouble"]
        running.kill(worker)
        wait_for(lambda: running.status()["weight"] == 0, what="everybody on the baseline, once it is back")
