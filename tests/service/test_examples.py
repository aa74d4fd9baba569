"""The examples as a user runs them: by one command, and the digits in shadow by the commands of the README, too."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from service_rig import PATIENCE

ROOT = Path(__file__).parents[2]


def test_the_model_passes_over_the_inspectors_shoulders_and_is_caught_when_the_light_dims(box):
    ran = box.run("demo", "shadow", "-o", "json", within=110)
    assert ran.code == 0, ran
    document = ran.json
    assert [(scene["exit_code"], scene["verdict"]) for scene in document["scenes"]] == [
        (0, "pass"),
        (3, "fail"),
    ]
    bright, dim = (scene["report"] for scene in document["scenes"])
    assert bright["versions"][0]["agreement"]["share"] > 0.88 > dim["versions"][0]["agreement"]["share"]
    page = Path(document["page"])
    assert page.read_text("utf-8").startswith("<!doctype html>")
    page.unlink()
    assert document["traffic"]["by_status"].keys() == {"200"}


def test_all_callers_are_switched_and_taken_back_and_a_wrong_version_never_answers_anybody(box):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    ran = box.run("demo", "blue-green", "-o", "json", within=110)
    assert ran.code == 0, ran
    document = ran.json
    assert [(scene["exit_code"], scene["live"]) for scene in document["scenes"]] == [
        (0, "2"),
        (0, "1"),
        (3, "1"),
    ]
    assert document["traffic"]["failed"] == 0


def test_in_one_command_the_digits_pass_and_fail_their_shadows_and_no_caller_sees_it(box):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    ran = box.run("demo", "digits-shadow", "-o", "json", within=110)
    assert ran.code == 0, ran
    assert [(scene["exit_code"], scene["live"]) for scene in ran.json["scenes"]] == [(0, "1"), (3, "1")]
    assert ran.json["traffic"]["by_version"].keys() == {"1"}


@pytest.fixture
def digits(box):
    """The manifests of the digits on a free port, in a folder of their own, with callers and their labels."""
    shutil.copytree(ROOT / "examples/digits", box.folder / "examples/digits")
    (box.folder / "manifests").mkdir()
    for version in ("v2", "v3"):
        name = f"manifests/digits-shadow-{version}.yaml"
        text = (ROOT / name).read_text("utf-8").replace("127.0.0.1:8080", "127.0.0.1:0")
        (box.folder / name).write_text(text, "utf-8")
    assert box.run("up", "manifests/digits-shadow-v2.yaml", "--detach").code == 0
    url = box.run("status", "digits", "-o", "json").json["url"]
    arguments = ["--url", url, "--rate", "200", "--label-rate", "200", "--label-delay", "0.1,0.5"]
    traffic = subprocess.Popen(
        [sys.executable, "examples/digits/traffic.py", *arguments],
        cwd=box.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    yield traffic
    traffic.kill()
    traffic.communicate()
    box.run("down", "digits")


def test_on_the_digits_version_2_passes_its_shadow_and_version_3_fails_it(box, digits):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    passed = box.run("shadow", "manifests/digits-shadow-v2.yaml", "-o", "json")
    assert passed.code == 0, passed
    failed = box.run("shadow", "manifests/digits-shadow-v3.yaml", "-o", "json")
    assert failed.code == 3, failed
    for ran, version, code in ((passed, "v2", 0), (failed, "v3", 3)):
        log = box.folder / f"{version}.jsonl"
        log.write_text(box.run("history", "digits", "--outcomes", "--rollout", ran.lines[0]["rollout"]).out)
        replayed = box.run("replay", f"manifests/digits-shadow-{version}.yaml", "--outcomes", log)
        assert replayed.code == code, replayed
    digits.terminate()
    out, _ = digits.communicate(timeout=PATIENCE)
    assert json.loads(out)["failed"] == 0
