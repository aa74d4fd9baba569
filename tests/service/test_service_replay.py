"""What a service really did, its export, and the replay of that: the same events and the same evidence, also after kill -9."""

import json

import pytest
from service_rig import NAME, wait_for


def evidence(events):
    """What must be the same of each event: when and why, and every number of the verdict."""
    return [
        {key: event[key] for key in ("seq", "kind", "step", "at", "reason", "weight", "phase", "verdict")}
        for event in events[1:]
    ]


@pytest.mark.parametrize(("candidate", "kills"), [("2", 2), ("nan", 0)])
def test_live_export_and_replay_agree(box, candidate, kills):
    box.up()
    manifest = box.manifest(
        candidate, canary={"minDwell": "2s", "bake": "1s"}, metrics=("null-rate", "latency")
    )
    with box.traffic():
        watching = box.begin("canary", "ramp", manifest, "-o", "json")
        for _ in range(kills):
            before = box.status()["pids"]["controller"]
            box.kill(before)
            wait_for(lambda old=before: box.status()["pids"]["controller"] != old)
        out, err = watching.communicate(timeout=60)
    assert watching.returncode == (0 if candidate == "2" else 3), err
    live = [json.loads(line) for line in out.splitlines()]

    running = box.run("history", NAME, "--outcomes")
    box.run("down", NAME)
    exported = box.run("history", NAME, "--outcomes")
    assert exported.code == 0, exported
    assert running.out == exported.out, "the service need not run"
    log = box.folder / "outcomes.jsonl"
    log.write_text(exported.out)
    header = json.loads(exported.out.splitlines()[0])["header"]
    assert header["rollout"] == live[0]["rollout"]

    again = box.run("replay", manifest, "--outcomes", log, "-o", "json")

    *events, end = again.lines
    assert evidence(events) == evidence(live)
    assert again.code == watching.returncode, again
    assert end["phase"] == live[-1]["phase"]
    assert end["left_out"] == 0


def test_an_unknown_rollout_names_the_known_ones(box):
    box.up()
    box.run("history", NAME, "--outcomes").refused(2, "no rollout yet")
    assert box.run("canary", "ramp", box.manifest(), "--detach").code == 0
    box.run("history", NAME, "--outcomes", "--rollout", "m-9-beef").refused(2, "m-9-beef", "m-1-")
    box.run("history", NAME, "--rollout", "m-9-beef").refused(2, "--outcomes")


def test_predictions_are_written_to_a_file_while_the_service_runs(box):
    box.up()
    file = box.folder / "predictions.jsonl"
    assert box.run("canary", "ramp", box.manifest(), "--detach").code == 0
    box.run("history", NAME, "--predictions", file.with_suffix(".csv")).refused(2, ".jsonl, .parquet")
    box.run("history", NAME, "--predictions", file, "--outcomes").refused(2, "one of them")
    answer = box.run("history", NAME, "--predictions", file, "-o", "json")
    assert answer.code == 0, answer
    assert json.loads(answer.out)["rows"] == len(file.read_text().splitlines())
