"""Shadows of a whole service: copies, pairs, labels, people alone. Callers notice nothing, and the exit code says how it went."""

import json
from urllib.request import Request, urlopen

import pytest
from service_rig import NAME, wait_for
from test_service_replay import evidence

LABELS = {"name": "label-error-rate", "margin": "5%"}
BUDGETS = ({"name": "label-error-rate", "max": "20%"}, {"name": "error-rate", "max": "5%"})
SOON = {"minLabels": 60, "maxDuration": "30s"}


def shadow(box, manifest, *more):
    return box.run("shadow", manifest, "-o", "json", *more)


def answered_by(callers):
    """Who answered, where every request was answered with 200."""
    assert callers.answered
    assert not callers.bad, callers.failures[:3]
    return set(callers.versions)


def infer(url, request_id):
    body = {
        "id": request_id,
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 0, 0, 0]}],
    }
    asked = Request(f"{url}/v2/models/{NAME}/infer", json.dumps(body).encode(), method="POST")
    with urlopen(asked, timeout=5) as answer:
        return json.load(answer)


def test_a_sound_candidate_passes_its_shadow_and_nobody_was_answered_by_it(box):
    box.up()
    manifest = box.manifest(shadow=SOON, metrics=("error-rate", "null-rate", LABELS))
    with box.traffic(label_delay=(0.05, 0.3)) as callers:
        ran = shadow(box, manifest)
    assert ran.code == 0, ran
    assert [event["kind"] for event in ran.lines] == ["started", "learned", "climbed", "retired"]
    last = ran.lines[-1]
    assert (last["phase"], last["weight"], last["verdict"]["result"]) == ("retired", 0.0, "pass")
    assert answered_by(callers) == {"1"}
    status = box.status()
    assert (status["live"], status["phase"], status["weight"], status["mirror"]) == ("1", "retired", 0.0, 0.0)
    assert status["labels"]["joined"] >= 60
    assert {metric["verdict"] for metric in status["metrics"]} == {"pass"}
    assert "passed its shadow" in box.run("explain", NAME).out


@pytest.mark.parametrize(
    ("candidate", "metric"), [("nan", "null-rate"), ("raises", "error-rate"), ("off", "label-error-rate")]
)
def test_a_poisonous_candidate_fails_its_shadow_and_no_caller_notices(box, candidate, metric):
    box.up()
    manifest = box.manifest(candidate, shadow=SOON, metrics=("error-rate", "null-rate", LABELS))
    with box.traffic(label_delay=(0.05, 0.3)) as callers:
        ran = shadow(box, manifest)
    assert ran.code == 3, ran
    assert ran.lines[-1]["verdict"]["decided_by"] == metric
    assert answered_by(callers) == {"1"}


# A model that never ends wants a processor all the time, and where others take it, being late is no evidence against it.
@pytest.mark.alone
def test_a_shadow_that_hangs_fails_by_its_time_outs_and_no_caller_notices(box):
    box.up()
    manifest = box.manifest("hanging", shadow=SOON | {"timeout": "200ms"}, metrics=("error-rate",))
    with box.traffic(rate=100) as callers:
        ran = shadow(box, manifest)
    assert ran.code == 3, ran
    assert ran.lines[-1]["verdict"]["decided_by"] == "error-rate"
    assert answered_by(callers) == {"1"}


def test_a_shadow_without_labels_ends_as_inconclusive_when_its_time_is_over(box):
    box.up()
    manifest = box.manifest(shadow={"maxDuration": "2s"}, metrics=("error-rate", LABELS))
    with box.traffic():
        ran = shadow(box, manifest)
    assert ran.code == 5, ran
    assert ran.lines[-1]["verdict"]["result"] == "inconclusive"
    assert "no labelled candidate answers so far" in ran.lines[-1]["reason"]


def test_answers_that_differ_from_the_baselines_fail_without_any_label(box):
    box.up()
    manifest = box.manifest("off", shadow=SOON, metrics=({"name": "disagreement-rate", "max": "10%"},))
    with box.traffic():
        ran = shadow(box, manifest)
    assert ran.code == 3, ran
    assert ran.lines[-1]["verdict"]["decided_by"] == "disagreement-rate"


def test_each_of_several_candidates_gets_a_verdict_of_its_own(box):
    box.up()
    manifest = box.manifest(["2", "nan"], shadow=SOON, metrics=("error-rate", "null-rate"))
    with box.traffic() as callers:
        ran = shadow(box, manifest)
    assert ran.code == 3, ran
    judged = [event for event in ran.lines if event["kind"] == "judged"]
    assert [event["verdict"]["result"] for event in judged] == ["fail"]
    said = {one["version"]: one["result"] for one in ran.lines[-1]["verdict"]["candidates"]}
    assert said == {"2": "pass", "nan": "fail"}
    assert answered_by(callers) == {"1"}


@pytest.mark.parametrize(("candidate", "code"), [("1", 0), ("off", 3)])
def test_where_people_alone_decide_callers_get_no_prediction_and_labels_judge_the_model(box, candidate, code):
    manifest = box.manifest(candidate, None, shadow=SOON, metrics=BUDGETS)
    box.up(manifest)
    assert box.status()["live"] is None
    answer = infer(box.url, "by-hand")
    assert (answer["id"], answer["outputs"], answer["parameters"]) == ("by-hand", [], {"decision": "human"})
    with box.traffic(label_delay=(0.05, 0.3)) as callers:
        ran = shadow(box, manifest)
    assert ran.code == code, ran
    assert answered_by(callers) == {"human"}
    document = box.run("history", NAME, "-o", "json").json
    assert document["rollouts"][0]["baseline"] is None


def test_a_model_that_has_shadowed_people_becomes_live_by_a_persons_word_alone(box):
    manifest = box.manifest("1", None, shadow=SOON, metrics=BUDGETS)
    box.up(manifest)
    with box.traffic(label_delay=(0.05, 0.3)):
        assert shadow(box, manifest).code == 0
        box.run("promote", NAME, "--full").refused(2, "--reason")
        assert box.run("promote", NAME).code == 0
        assert box.status()["live"] is None, "promote alone passes what waits, and nothing does"
        done = box.run("promote", NAME, "--full", "--reason", "as good as we are")
    assert done.code == 0, done
    assert box.status()["live"] == "1"
    assert infer(box.url, "a")["outputs"]
    # And then a canary begins where the shadow ended.
    ramp = box.ramp(box.manifest("2", "1", canary={"stepTimeout": "2s"}))
    assert ramp.code in {0, 5}, ramp


def test_a_canary_that_begins_with_copies_goes_on_to_promotion(box):
    box.up()
    manifest = box.manifest(
        canary={"steps": [{"mirror": {"percentage": 100}}, {"setWeight": 20}, {"setWeight": 50}]},
        metrics=("error-rate", "null-rate", LABELS, {"name": "disagreement-rate", "max": "10%"}),
    )
    with box.traffic(label_delay=(0.05, 0.3)) as callers:
        ran = box.ramp(manifest)
    assert ran.code == 0, ran
    assert [event["weight"] for event in ran.lines if event["kind"] == "climbed"] == [0.0, 20.0, 50.0]
    assert answered_by(callers) == {"1", "2"}


def test_a_canary_with_a_bad_candidate_ends_at_its_copies(box):
    box.up()
    manifest = box.manifest("nan", canary={"steps": [{"mirror": {"percentage": 100}}, {"setWeight": 20}]})
    with box.traffic() as callers:
        ran = box.ramp(manifest)
    assert ran.code == 3, ran
    assert answered_by(callers) == {"1"}


@pytest.mark.parametrize(
    ("candidate", "kills"), [("2", 2), ("off", 0), (["2", "nan"], 2)], ids=["pass", "fail", "several"]
)
def test_live_export_and_replay_of_a_shadow_agree(box, candidate, kills):
    box.up()
    manifest = box.manifest(
        candidate,
        shadow={"minLabels": 300, "maxDuration": "30s"},
        metrics=("error-rate", "null-rate", LABELS),
    )
    with box.traffic(label_delay=(0.1, 0.6), label_share=0.6):
        watching = box.begin("shadow", manifest, "-o", "json")
        box.wait_for_event("climbed")
        for _ in range(kills):
            before = box.status()["pids"]["controller"]
            box.kill(before)
            wait_for(lambda old=before: box.status()["pids"]["controller"] != old)
        out, err = watching.communicate(timeout=60)
    live = [json.loads(line) for line in out.splitlines()]
    assert live[-1]["phase"] == "retired", err
    log = box.folder / "outcomes.jsonl"
    log.write_text(box.run("history", NAME, "--outcomes").out)
    again = box.run("replay", manifest, "--outcomes", log, "-o", "json")
    *events, end = again.lines
    assert evidence(events) == evidence(live)
    assert again.code == watching.returncode, again
    assert (end["phase"], end["verdict"]) == ("retired", live[-1]["verdict"]["result"])


def test_the_wrong_verb_names_the_right_one(box):
    box.up()
    box.run("shadow", box.manifest()).refused(2, "its strategy is canary", "deployctl canary ramp")
    box.run("canary", "ramp", box.manifest(shadow={})).refused(
        2, "its strategy is shadow", "deployctl shadow"
    )


def test_a_shadow_is_rolled_back_by_hand_like_any_rollout(box):
    box.up()
    manifest = box.manifest(shadow={"minLabels": 100_000}, metrics=("error-rate", LABELS))
    with box.traffic():
        watching = box.begin("shadow", manifest, "-o", "json")
        box.wait_for_event("climbed")
        assert box.run("rollback", NAME, "--reason", "enough").code == 0
        watching.communicate(timeout=30)
    assert watching.returncode == 3
    assert box.status()["mirror"] == 0.0
