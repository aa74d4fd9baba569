"""The pipelines of examples/ci, run as their runners run them: each with a version that passes and with one that fails.

`ssh` is a stand-in that runs a command in a clean shell, as no sshd is asked for: what is tested is what the script sends and what comes back.
"""

import os
import re
import shutil
from contextlib import contextmanager, nullcontext
from pathlib import Path

import ci_player
import ci_runner
import pytest
from service_rig import Box

from deployctl.statedir import ServiceHome
from deployctl.wire.admin import AdminClient

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples/ci"
GOOD, BAD = "examples/ci/digits-v2.yaml", "examples/ci/digits-v3.yaml"
STEADY = "examples/ci/steady.yaml"
"""As the good one, but nothing except a person ends it within a test."""


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    """A state directory; this repository's examples are checked out in `workspace`, on a free port."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    box = Box(tmp_path_factory.mktemp("ci"))
    box.workspace = box.folder / "workspace"
    shutil.copytree(ROOT / "examples/digits", box.workspace / "examples/digits")
    shutil.copytree(EXAMPLES, box.workspace / "examples/ci")
    for manifest in (GOOD, BAD):
        text = (ROOT / manifest).read_text().replace("127.0.0.1:8080", "127.0.0.1:0")
        (box.workspace / manifest).write_text(text)
    (box.workspace / STEADY).write_text((box.workspace / GOOD).read_text().replace("200ms", "5m"))
    box.tools = ci_player.tools(box.folder / "bin")
    yield box
    box.close()


def machine(box):
    """The environment that a runner of this machine has."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "USER", "TMPDIR") if name in os.environ}
    return kept | {"PATH": f"{box.tools}:/usr/bin:/bin", "DEPLOYCTL_STATE_DIR": str(box.state)}


@pytest.fixture(scope="module")
def first(box):
    """The first job: it brings the service and the callers that all others use, as a box in production has them."""
    runner = github(box, "canary.yml", inputs={"manifest": BAD})
    job = runner.run(until="End the trial")
    shutil.copy(box.workspace / "outcomes.jsonl", box.folder / "bad.jsonl")
    yield job
    ended = runner.run().steps["End the trial"]
    assert (ended.outcome, "digits: stopped" in ended.log) == ("success", True), ended


@pytest.fixture(scope="module")
def live(box, first):
    return box


def status(box):
    with AdminClient(ServiceHome(box.state, "digits").admin_socket, "digits") as client:
        return client.get("/v1/status")


@contextmanager
def taken_back(box):
    """What was promoted is taken back, so that the next pipeline has something to do."""
    yield
    with AdminClient(ServiceHome(box.state, "digits").admin_socket, "digits") as client:
        client.post("/v1/rollback", {"by": "a test", "reason": "the next one, please", "to": None})


def github(box, name, **more):
    return ci_player.GithubRunner(EXAMPLES / "github" / name, box.workspace, machine(box), **more)


@pytest.fixture(scope="module")
def good_canary(live):
    with taken_back(live):
        job = github(live, "canary.yml", inputs={"try_out": False}).run()
        shutil.copy(live.workspace / "outcomes.jsonl", live.folder / "good.jsonl")
    return job


def test_github_a_good_version_is_promoted_and_the_job_passes(good_canary):
    assert good_canary.result == "success", good_canary.steps["Canary"].log
    assert good_canary.outputs["verdict"] == "pass"
    assert good_canary.steps["Canary"].outputs["phase"] == "promoted"
    assert good_canary.steps["Canary"].summary.startswith("### digits: promoted")
    assert good_canary.uploaded == {"rollout": ["report.md", "report.xml", "outcomes.jsonl"]}
    assert good_canary.steps["Callers"].outcome == good_canary.steps["End the trial"].outcome == "skipped"
    assert [one.name for one in ci_runner.commands_in(good_canary.steps["Canary"].log)] == ["notice"]


def test_github_a_bad_version_is_rolled_back_and_the_job_fails_with_everything_reported(first, box):
    canary = first.steps["Canary"]
    assert (first.result, canary.code) == ("failure", 3), canary.log
    assert first.outputs["verdict"] == "fail"
    assert (canary.outputs["phase"], canary.outputs["exit_code"]) == ("rolled_back", "3")
    assert canary.summary.startswith("### digits: rolled back")
    assert first.uploaded == {"rollout": ["report.md", "report.xml", "outcomes.jsonl"]}
    metric, *_, end = ci_runner.commands_in(canary.log)
    lines = (box.workspace / BAD).read_text().splitlines()
    assert metric.properties["file"] == BAD
    assert metric.properties["title"].partition(":")[0] in lines[int(metric.properties["line"]) - 1]
    assert end.properties["title"] == "deployctl canary ramp: rolled back"
    assert first.steps["Call a person"].outcome == "skipped"
    assert (box.tools / "installed").read_text().splitlines()[0] == "-m pip install --quiet .[demo]"


@pytest.mark.parametrize(
    ("manifest", "log", "verdict", "code"), [(GOOD, "good", "pass", 0), (BAD, "bad", "fail", 3)]
)
def test_github_the_gate_says_of_a_pull_request_what_the_canary_would_have_said(
    box, good_canary, first, manifest, log, verdict, code
):
    (box.workspace / "outcomes").mkdir(exist_ok=True)
    shutil.copy(box.folder / f"{log}.jsonl", box.workspace / "outcomes/last-week.jsonl")
    job = github(box, "replay-gate.yml", changed={"MANIFEST": manifest}).run()
    assert job.steps["Replay"].code == code, job.steps["Replay"].log
    assert job.outputs["verdict"] == verdict
    assert job.uploaded == {"replay": ["replay.md", "replay.xml"]}
    said = "would have been promoted" if code == 0 else "would have been rolled back"
    assert job.steps["Replay"].summary.startswith(f"### replay: {said}")


def run_gitlab(box, manifest, cancel=None):
    file = EXAMPLES / "gitlab/.gitlab-ci.yml"
    return ci_player.gitlab(file, box.workspace, machine(box), cancel, MANIFEST=manifest)


def test_gitlab_a_good_version_passes_and_later_jobs_know_it(live):
    with taken_back(live):
        jobs = run_gitlab(live, GOOD)
    assert [job.status for job in jobs.values()] == ["success", "success"], jobs["canary"].log
    assert {case[0] for case in jobs["canary"].suites[0].cases.values()} == {"pass"}
    assert "version 2 of digits - pass, exit code 0" in jobs["announce"].log
    assert jobs["canary"].after.startswith("### digits: promoted")


def test_gitlab_a_bad_version_fails_with_its_metrics_as_tests(live):
    jobs = run_gitlab(live, BAD)
    assert (jobs["canary"].status, jobs["canary"].code) == ("failed", 3), jobs["canary"].log
    assert jobs["canary"].suites[0].cases["end of the rollout"][0] == "failure"
    assert "version 3 of digits - fail, exit code 3" in jobs["announce"].log


def test_a_cancelled_job_rolls_back_and_reports_and_a_killed_one_does_not(live):
    command = ["canary", "ramp", str(live.workspace / STEADY)]
    killed = live.begin(*command)
    while "climbed" not in killed.stdout.readline():
        pass
    killed.kill()
    killed.wait()
    assert status(live)["weight"] == 50, "the rollout goes on"

    runner = github(live, "canary.yml", inputs={"manifest": STEADY, "try_out": False})
    job = runner.run(cancel=("Canary", "climbed"))
    assert (job.result, job.steps["Canary"].code) == ("cancelled", 3), job.steps["Canary"].log
    assert status(live)["weight"] == 0
    assert (job.outputs["verdict"], job.steps["Canary"].outputs["phase"]) == ("fail", "rolled_back")
    assert "the command that followed it was cancelled (SIGINT)" in job.steps["Canary"].summary
    assert job.uploaded == {"rollout": ["report.md", "report.xml", "outcomes.jsonl"]}

    jobs = run_gitlab(live, STEADY, ("canary", "climbed"))
    assert jobs["canary"].status == "failed"
    assert status(live)["weight"] == 0
    result, why, _ = jobs["canary"].suites[0].cases["end of the rollout"]
    assert (result, "(SIGTERM)" in why) == ("failure", True)
    assert jobs["canary"].variables["DEPLOYCTL_PHASE"] == "rolled_back"


def jenkins_step(manifest):
    """What Jenkins runs, as the Jenkinsfile says it."""
    text = (EXAMPLES / "jenkins/Jenkinsfile").read_text()
    (script,) = re.findall(r"script: '([^']+)'", text)
    assert re.findall(r"(?:junit|archiveArtifacts) '([^']+)'", text) == ["report.xml", "report.md"]
    return script.replace(GOOD, manifest)


@pytest.mark.parametrize(("manifest", "code"), [(BAD, 3), (GOOD, 0)])
def test_jenkins_or_a_plain_shell_ends_with_the_exit_code_and_leaves_the_reports(live, manifest, code):
    step = live.folder / "script.sh"
    step.write_text(f"#!/bin/sh -xe\n{jenkins_step(manifest)}\n")
    with taken_back(live) if code == 0 else nullcontext():
        assert ci_player.run(["sh", "-xe", str(step)], live.workspace, machine(live))[0] == code
    suite = ci_runner.junit((live.workspace / "report.xml").read_text())
    assert suite.properties["exit_code"] == str(code)
    assert (live.workspace / "report.md").read_text().startswith("### digits: ")


@pytest.fixture
def ssh(live, tmp_path):
    """Another machine called `box`: its own home, a clean environment, and nothing of the caller's but the command."""
    home = tmp_path / "home"
    home.mkdir()
    told = machine(live) | {"HOME": str(home), "PATH": f"{live.tools}:/usr/bin:/bin"}
    clean = " ".join(f"{name}='{value}'" for name, value in told.items())
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    script = bin_folder / "ssh"
    script.write_text(
        f'#!/bin/sh\n[ "$1" = box ] || exit 255\nshift\ncd {home} && exec env -i {clean} sh -c "$*"\n'
    )
    script.chmod(0o755)
    here = tmp_path / "here"
    shutil.copytree(live.workspace / "examples", here / "examples")
    return here, {"PATH": f"{bin_folder}:/usr/bin:/bin"}


@pytest.mark.parametrize(("manifest", "code"), [(BAD, 3), (GOOD, 0)])
def test_over_ssh_the_exit_code_and_the_report_come_back(live, ssh, manifest, code):
    here, environment = ssh
    command = ["sh", "examples/ci/remote.sh", "box", manifest]
    with taken_back(live) if code == 0 else nullcontext():
        ended, log = ci_player.run(command, here, environment)
    assert ended == code, log
    assert ci_runner.junit((here / "report.xml").read_text()).properties["exit_code"] == str(code)
    assert ci_player.run(["sh", "examples/ci/remote.sh", "elsewhere", manifest], here, environment)[0] == 255


def test_over_ssh_a_script_that_is_cancelled_gives_the_order_itself(live, ssh):
    here, environment = ssh
    shutil.copy(live.workspace / STEADY, here / STEADY)
    cancel = ci_player.Cancel("climbed", ci_player.GITLAB_CANCEL, group=False)
    command = ["sh", "examples/ci/remote.sh", "box", STEADY]
    assert ci_player.run(command, here, environment, cancel)[0] == 3
    assert status(live)["weight"] == 0


def test_what_the_player_takes_for_true_is_what_github_takes_for_true():
    contexts = {"steps": {"a": {"outputs": {"code": "4"}}}, "inputs": {"on": True}}
    functions = {"always": True, "failure": False, "success": True}
    for text, value in (
        ("always() && steps.a.outputs.code != ''", True),
        ("failure() && steps.a.outputs.code == '4'", False),
        ("!failure() && (inputs.on || inputs.off)", True),
        ("steps.b.outputs.code == ''", True),
        ("success() && inputs.off", ""),
    ):
        assert ci_player.Expression(text, contexts, functions).value() == value


def test_every_line_of_the_recipes_is_one_of_the_examples():
    lines = {
        line.strip()
        for file in EXAMPLES.rglob("*")
        if file.is_file()
        for line in file.read_text().splitlines()
    }
    recipes = re.findall(r"^```\w+\n(.*?)^```", (ROOT / "docs/ci.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(recipes) == 6
    assert {line.strip() for recipe in recipes for line in recipe.splitlines()} - lines == set()
