"""The life of a service, command by command, as a user and a pipeline meet it."""

import json
import signal
import threading

import faulty_models
import pytest
from service_rig import NAME, alive, wait_for

STATUS_KEYS = {
    "schema_version",
    "service",
    "live",
    "previous",
    "phase",
    "step",
    "steps",
    "weight",
    "rollout",
    "baseline",
    "candidate",
    "pids",
    "url",
    "metrics",
}
METRIC_KEYS = {
    "name",
    "verdict",
    "baseline",
    "candidate",
    "effect",
    "interval",
    "evidence",
    "threshold",
    "needed",
}
EVENT_KEYS = {"schema_version", "seq", "rollout", "kind", "at", "by", "reason", "phase", "step", "weight"}
PERSON_STEP = {"steps": [{"setWeight": 20}, {"pause": {}}, {"setWeight": 50}]}
LONG = {"minDwell": "60s"}


def test_a_good_version_climbs_and_is_promoted_and_can_be_taken_back_once(box):
    box.up()
    with box.traffic() as traffic:
        ramped = box.ramp(box.manifest())
        assert ramped.code == 0, ramped
        kinds = [event["kind"] for event in ramped.lines]
        assert kinds[0] == "started"
        assert kinds[-3:] == ["climbed", "promoted", "finished"]
        assert all(event.keys() >= EVENT_KEYS for event in ramped.lines)
        assert "\x1b" not in ramped.out + ramped.err

        shown = box.run("status", NAME, "-o", "json")
        assert shown.code == 0
        status = shown.json
        assert (status["live"], status["previous"]) == ("2", "1")
        assert (status["phase"], status["weight"]) == ("promoted", 100)
        assert status.keys() >= STATUS_KEYS
        assert {metric["name"] for metric in status["metrics"]} == {"error-rate", "null-rate"}
        assert all(metric.keys() >= METRIC_KEYS for metric in status["metrics"])
        assert status["pids"].keys() == {"supervisor", "controller", "routers", "workers"}
        workers = status["pids"]["workers"]
        assert set(workers) == {"1", "2"}

        again = box.run("canary", "ramp", box.manifest(), "-o", "json")
        assert (again.code, again.json["state"]) == (0, "already_live")

        back = box.run("rollback", NAME, "--reason", "wrong on invoices", "-o", "json")
        assert (back.code, back.json["changed"], back.json["weight"]) == (0, True, 0)
        status = box.status()
        assert (status["live"], status["previous"], status["weight"]) == ("1", None, 0)
        assert status["pids"]["workers"]["1"] == workers["1"], "it was not loaded again"
        traffic.wait_for_answers(50, of="1")

        nothing = box.run("rollback", NAME, "-o", "json")
        assert (nothing.code, nothing.json["changed"]) == (0, False)
        assert box.status()["live"] == "1"
    assert not traffic.failures

    explained = box.run("explain", NAME, "-o", "json").json
    assert explained["phase"] == "rolled_back"
    assert "wrong on invoices" in explained["sentence"]
    told = box.run("history", NAME, "-o", "json").json["rollouts"]
    assert [event["kind"] for event in told[0]["events"]][-1] == "rolled_back"
    assert box.run("canary", "ramp", box.manifest(), "--detach").code == 0, "a new rollout after a rollback"


def test_up_again_is_nothing_to_do_and_another_spec_service_is_a_conflict_that_names_the_key(box):
    first = box.run("up", box.manifest(), "--detach", "-o", "json")
    assert (first.code, first.json["state"]) == (0, "started")
    with box.nothing_changes():
        again = box.run("up", box.manifest(), "--detach", "-o", "json")
        assert (again.code, again.json["state"]) == (0, "running")
        assert again.json["pid"] == first.json["pid"]
        slower = box.manifest(name="slower", service={"timeout": "900ms"})
        box.run("up", slower, "--detach").refused(7, "timeout")
        box.run("canary", "ramp", slower).refused(7, "timeout")
    listed = box.run("list", "-o", "json").json["services"]
    assert [(row["service"], row["state"], row["live"]) for row in listed] == [(NAME, "running", "1")]


def test_two_ups_at_once_start_one_service_and_both_end_with_0(box):
    manifest = box.manifest()
    both = [box.begin("up", manifest, "--detach", "-o", "json") for _ in range(2)]
    told = [(process.communicate(timeout=60), process.returncode) for process in both]
    assert [code for _, code in told] == [0, 0], told
    documents = [json.loads(out) for (out, _), _ in told]
    assert {document["pid"] for document in documents} == {box.supervisor}
    assert sorted(document["state"] for document in documents) == ["running", "started"]
    assert [record["type"] for record in box.records()] == ["served"]


def test_two_ups_at_once_in_the_foreground_are_one_service_as_well(box):
    """The quicker one stays; the other finds it running and ends with 0."""
    manifest = box.manifest()
    both = [box.begin("up", manifest, "-o", "json") for _ in range(2)]
    wait_for(lambda: any(process.poll() is not None for process in both), within=60)
    (ended,) = [process for process in both if process.poll() is not None]
    out, said = ended.communicate(timeout=20)
    assert ended.returncode == 0, said
    assert json.loads(out)["state"] == "running"
    (stays,) = [process for process in both if process is not ended]
    assert json.loads(out)["pid"] == stays.pid == box.supervisor


def test_down_stops_it_and_down_again_has_nothing_to_do(box):
    box.up()
    pids = box.status()["pids"]
    assert box.run("down", NAME, "-o", "json").json["changed"] is True
    assert box.supervisor is None
    wait_for(lambda: not any(alive(pid) for pid in [pids["controller"], *pids["routers"]]))
    assert box.run("down", NAME, "-o", "json").json["changed"] is False
    box.run("status", NAME).refused(8, "deployctl up")


def test_the_same_manifest_follows_the_rollout_that_runs_and_another_one_is_a_conflict(box):
    box.up()
    manifest = box.manifest(canary=LONG)
    assert box.run("canary", "ramp", manifest, "--detach", "-o", "json").json["state"] == "started"
    rollout = box.status()["rollout"]
    with box.nothing_changes():
        followed = box.run("canary", "ramp", manifest, "--detach", "-o", "json").json
        assert (followed["state"], followed["rollout"]) == ("following", rollout)
        watched = box.ramp(manifest, "--timeout", "1s")
        assert watched.code == 6
        assert {event["rollout"] for event in watched.lines} == {rollout}
        other = box.manifest(candidate="3", name="other")
        box.run("canary", "ramp", other).refused(7, rollout)


def test_a_baseline_that_is_not_live_is_a_conflict_that_names_both(box):
    box.up()
    with box.nothing_changes():
        box.run("canary", "ramp", box.manifest(baseline="3", candidate="2")).refused(
            7, "version 3", "version 1"
        )


def test_a_known_label_with_other_bytes_is_a_conflict(box):
    box.up()
    assert box.run("canary", "ramp", box.manifest(canary=LONG), "--detach").code == 0
    assert box.run("rollback", NAME).code == 0
    with box.nothing_changes():
        box.run("canary", "ramp", box.manifest(candidate=("2", "3"))).refused(7, "version 2")


def test_the_cli_can_be_interrupted_while_the_rollout_goes_on(box):
    box.up()
    manifest = box.manifest(canary=LONG)
    ramping = box.begin("canary", "ramp", manifest)
    box.wait_for_event("climbed", 0)
    ramping.send_signal(signal.SIGINT)
    _, said = ramping.communicate(timeout=20)
    assert ramping.returncode == 6
    assert "goes on" in said
    assert "deployctl rollback" in said
    assert box.status()["phase"] == "progressing"
    cancelled = box.begin("canary", "ramp", manifest, "--rollback-on-cancel")
    assert cancelled.stdout.readline()
    cancelled.send_signal(signal.SIGTERM)
    cancelled.communicate(timeout=20)
    assert cancelled.returncode == 3
    assert box.status()["phase"] == "rolled_back"


def test_a_rollback_in_mid_ramp_ends_whoever_follows_with_3(box):
    box.up()
    with box.traffic() as traffic:
        ramping = box.begin("canary", "ramp", box.manifest(canary={"minDwell": "20s"}), "-o", "json")
        traffic.wait_for_answers(30, of="2")
        back = box.run("rollback", NAME, "--reason", "seen enough", "-o", "json")
        assert (back.code, back.json["changed"], back.json["weight"]) == (0, True, 0)
        assert back.json["phase"] == "rolled_back"
        served = traffic.versions["2"] + traffic.in_flight
        out, _ = ramping.communicate(timeout=20)
        assert ramping.returncode == 3
        last = json.loads(out.splitlines()[-1])
        assert (last["kind"], last["reason"]) == ("rolled_back", "seen enough")
        assert last["by"].startswith("person")
        traffic.wait_for_answers(200)
    assert traffic.versions["2"] <= served, "a request came to the candidate after the read-back"
    assert not traffic.failures
    nothing = box.run("rollback", NAME, "-o", "json")
    assert (nothing.code, nothing.json["changed"]) == (0, False)


def test_nothing_to_roll_back_where_there_is_no_history(box):
    box.up()
    with box.nothing_changes():
        for verb in ("rollback", "promote", "pause", "resume"):
            said = box.run(verb, NAME, "-o", "json")
            assert (said.code, said.json["changed"]) == (0, False), verb
        box.run("rollback", NAME, "--to", "9").refused(2, "9", "known: 1")


def test_a_pause_for_a_person_waits_after_its_gate_and_promote_passes_it(box):
    box.up()
    with box.traffic() as traffic:
        waiting = box.ramp(box.manifest(canary=PERSON_STEP), "--until", "paused")
        assert waiting.code == 0, waiting
        status = box.status()
        assert (status["phase"], status["weight"]) == ("paused", 20)
        assert box.run("resume", NAME, "-o", "json").json["changed"] is False, (
            "resume undoes a person's pause only"
        )
        passed = box.run("promote", NAME, "-o", "json").json
        assert passed["changed"] is True
        status = box.wait_for_phase("promoted")
        assert status["live"] == "2"
    assert not traffic.failures
    awaited = [
        event["kind"] for event in box.run("history", NAME, "-o", "json").json["rollouts"][0]["events"]
    ]
    assert awaited.index("awaited") < awaited.index("promoted")


def test_a_paused_rollout_does_not_climb_until_it_is_resumed(box):
    box.up()
    ramping = box.begin("canary", "ramp", box.manifest())
    box.wait_for_event("climbed", 0)
    assert box.run("pause", NAME, "-o", "json").json["changed"] is True
    assert box.run("pause", NAME, "-o", "json").json["changed"] is False
    with box.traffic() as traffic:
        wait_for(lambda: box.status()["metrics"][0]["verdict"] == "pass")
        candidate = traffic.versions["2"]
        traffic.wait_for_answers(600)  # its dwell is over ten times
        status = box.status()
        assert (status["phase"], status["weight"]) == ("paused", 20)
        assert traffic.versions["2"] > candidate, "it keeps its weight"
        assert box.run("resume", NAME, "-o", "json").json["changed"] is True
        ramping.communicate(timeout=30)
        assert ramping.returncode == 0
    assert not traffic.failures


def test_a_paused_rollout_still_rolls_back_on_harm(box):
    box.up()
    assert box.run("canary", "ramp", box.manifest(candidate="nan", canary=LONG), "--detach").code == 0
    assert box.run("pause", NAME).code == 0
    with box.traffic():
        assert box.wait_for_phase("rolled_back")["weight"] == 0


def test_promote_full_needs_a_reason_and_is_recorded_as_without_evidence(box):
    box.up()
    assert box.run("canary", "ramp", box.manifest(canary=LONG), "--detach").code == 0
    box.wait_for_event("climbed", 0)
    with box.nothing_changes():
        assert box.run("promote", NAME, "-o", "json").json["changed"] is False, "nothing waits"
        box.run("promote", NAME, "--full").refused(2, "--reason")
    said = box.run("promote", NAME, "--full", "--reason", "the old one is on fire", "-o", "json").json
    assert (said["changed"], said["phase"], said["weight"]) == (True, "promoted", 100)
    assert "without evidence: the old one is on fire" in box.run("explain", NAME).out.replace("\n", " ")


def test_without_traffic_the_step_runs_out_of_time_and_it_is_rolled_back_with_5(box):
    box.up()
    ramped = box.ramp(box.manifest(canary={"stepTimeout": "1s"}))
    assert ramped.code == 5, ramped
    assert ramped.lines[-1]["kind"] == "rolled_back"
    assert "not enough evidence" in ramped.lines[-1]["reason"]
    assert (box.status()["live"], box.status()["weight"]) == ("1", 0)


def test_on_inconclusive_hold_waits_for_a_person_with_5_and_promote_goes_on(box):
    box.up()
    held = box.ramp(box.manifest(canary={"stepTimeout": "1s", "onInconclusive": "hold"}))
    assert held.code == 5, held
    assert held.lines[-1]["kind"] == "held"
    status = box.status()
    assert (status["phase"], status["weight"]) == ("paused", 20)
    passed = box.run("promote", NAME, "-o", "json").json
    assert (passed["changed"], passed["weight"]) == (True, 50)
    assert box.run("rollback", NAME, "-o", "json").json["weight"] == 0


def test_rollback_to_a_version_loads_and_checks_it_first_and_is_a_rollout_of_one_step(box):
    box.up()
    with box.traffic() as traffic:
        assert box.ramp(box.manifest()).code == 0
        assert box.ramp(box.manifest(baseline="2", candidate="3")).code == 0
        wait_for(lambda: "1" not in box.status()["pids"]["workers"], what="version 1 unloaded")
        said = box.run("rollback", NAME, "--to", "1", "-o", "json")
        assert (said.code, said.json["changed"]) == (0, True), said
        assert box.status()["live"] == "1"
        traffic.wait_for_answers(50, of="1")
        with box.nothing_changes():
            box.run("rollback", NAME, "--to", "9").refused(2, "known: 1, 2, 3")
            assert box.run("rollback", NAME, "--to", "1", "-o", "json").json["changed"] is False
    assert not traffic.failures
    told = box.run("history", NAME, "-o", "json").json["rollouts"]
    assert (told[-1]["strategy"], told[-1]["candidate"]["version"]) == ("rollback", "1")


def test_keep_warm_keeps_the_version_before_for_its_time_and_a_later_rollback_loads_it(box):
    box.up()
    with box.traffic() as traffic:
        ramped = box.ramp(box.manifest(canary={"keepWarm": "3s"}), "--until", "promoted")
        assert ramped.code == 0
        assert set(box.status()["pids"]["workers"]) == {"1", "2"}
        box.wait_for_event("finished")
        wait_for(lambda: set(box.status()["pids"]["workers"]) == {"2"}, what="version 1 unloaded")
        back = box.run("rollback", NAME, "-o", "json")
        assert (back.code, back.json["weight"]) == (0, 0), back
        assert box.status()["live"] == "1"
        traffic.wait_for_answers(50, of="1")
    assert not traffic.failures


def test_a_version_that_was_unloaded_is_loaded_before_it_sees_a_request_again(box):
    for label in ("1", "2"):
        box.model_file(label).write_bytes(faulty_models.slow_to_warm_up(label, 700))
    box.up()
    with box.traffic() as traffic:
        assert box.run("canary", "ramp", box.manifest(canary=LONG), "--detach").code == 0
        assert box.run("rollback", NAME).code == 0
        wait_for(lambda: set(box.status()["pids"]["workers"]) == {"1"}, what="version 2 unloaded")
        assert box.ramp(box.manifest(canary={"keepWarm": "100ms"})).code == 0
        wait_for(lambda: set(box.status()["pids"]["workers"]) == {"2"}, what="version 1 unloaded")
        back = box.run("rollback", NAME, "-o", "json")
        assert (back.code, back.json["weight"]) == (0, 0), back
        traffic.wait_for_answers(50, of="1")
    assert not traffic.failures


def test_a_service_that_was_stopped_starts_where_the_journal_says(box):
    box.up()
    with box.traffic():
        assert box.ramp(box.manifest()).code == 0
    assert box.run("down", NAME).code == 0
    box.up(box.manifest())
    status = box.status()
    assert (status["live"], status["previous"], status["weight"]) == ("2", "1", 100)
    with box.traffic(rate=100) as traffic:
        traffic.wait_for_answers(50, of="2")
    assert set(traffic.versions) == {"2"}
    assert box.run("rollback", NAME, "-o", "json").json["changed"] is True
    assert box.status()["live"] == "1"


def test_a_rollout_goes_on_after_down_and_up_with_the_evidence_it_had(box):
    box.up()
    manifest = box.manifest(canary={"minDwell": "1s"})
    assert box.run("canary", "ramp", manifest, "--detach").code == 0
    assert box.run("pause", NAME).code == 0
    with box.traffic() as traffic:
        traffic.wait_for_answers(60, of="2")
    before = _settled_counts(box)
    rollout = box.status()["rollout"]
    assert box.run("down", NAME).code == 0
    box.up(manifest)
    status = box.status()
    assert (status["rollout"], status["phase"], status["live"]) == (rollout, "paused", "1")
    wait_for(lambda: box.status()["weight"] == 20, what="the split of the journal in force")
    assert _counts(box.status()) == before
    with box.traffic() as traffic:
        following = box.begin("canary", "ramp", manifest, "-o", "json")
        seen = [following.stdout.readline()]
        assert box.run("resume", NAME, "-o", "json").json["changed"] is True
        seen += following.stdout.readlines()  # `communicate` would lose what is read ahead already
        assert following.wait(60) == 0, following.stderr.read()
        assert {json.loads(line)["rollout"] for line in seen} == {rollout}
    assert not traffic.failures


def test_the_manifest_and_the_model_of_a_running_rollout_may_be_overwritten(box):
    box.up()
    manifest = box.manifest(canary={"minDwell": "2s"})
    with box.traffic() as traffic:
        ramping = box.begin("canary", "ramp", manifest, "-o", "json")
        box.wait_for_event("climbed", 0)
        manifest.write_text("nonsense")
        for label in ("1", "2"):
            box.model_file(label).write_bytes(b"overwritten")
        for pid in box.status()["pids"]["workers"].values():
            box.kill(pid)  # what comes back is loaded from the store
        out, said = ramping.communicate(timeout=60)
        assert ramping.returncode in {0, 3}, (out, said)  # the kills may count against the candidate
        traffic.wait_for_answers(100)
    assert box.run("down", NAME).code == 0
    assert box.run("up", manifest, "--detach").code == 2


def test_the_status_of_a_ramp_shows_the_weight_that_the_router_reads_back_and_the_evidence(box):
    box.up()
    assert box.run("canary", "ramp", box.manifest(canary=LONG), "--detach").code == 0
    with box.traffic() as traffic:
        traffic.wait_for_answers(40, of="2")
        status = wait_for(
            lambda: (s := box.status())["metrics"] and s["metrics"][0]["candidate"]["n"] > 20 and s
        )
    assert (status["phase"], status["step"], status["steps"], status["weight"]) == ("progressing", 1, 2, 20)
    assert (status["baseline"], status["candidate"], status["live"]) == ("1", "2", "1")
    for metric in status["metrics"]:
        assert metric["baseline"]["n"] > 20
        assert metric["threshold"] > 1
    text = box.run("status", NAME)
    assert text.code == 0
    assert "\x1b" not in text.out


@pytest.mark.parametrize("label_delay", [(0.05, 0.2)])
def test_a_version_that_is_quick_and_wrong_is_rolled_back_when_the_labels_come(box, label_delay):
    box.up()
    with box.traffic(label_delay=label_delay) as traffic:
        ramped = box.ramp(box.manifest(candidate="off", metrics=("error-rate", "label-error-rate")))
        assert ramped.code == 3, ramped
    assert ramped.lines[-1]["verdict"]["decided_by"] == "label-error-rate"
    assert not traffic.failures
    assert box.status()["labels"]["joined"] > 0


def test_an_admin_socket_is_for_its_owner_alone(box):
    box.up()
    assert box.home.admin_socket.stat().st_mode & 0o777 == 0o600
    assert box.home.path.stat().st_mode & 0o777 == 0o700


def test_up_in_the_foreground_says_where_it_serves_and_ends_with_0_at_sigterm(box):
    process = box.begin("up", box.manifest(), "-o", "json")
    lines = []
    reading = threading.Thread(target=lambda: lines.append(process.stdout.readline()), daemon=True)
    reading.start()
    reading.join(30)
    told = json.loads(lines[0])
    assert (told["service"], told["live"], told["pid"]) == (NAME, "1", process.pid)
    assert told["url"] == box.url
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (0, "")


def _counts(status):
    return {metric["name"]: (metric["baseline"], metric["candidate"]) for metric in status["metrics"]}


def _settled_counts(box):
    """The counts once no outcome is under way any more: twice the same with a flush of the router between them."""
    seen = []

    def stands_still():
        seen.append(_counts(box.status()))
        return len(seen) > 1 and seen[-1] == seen[-2]

    wait_for(stands_still)
    return seen[-1]
