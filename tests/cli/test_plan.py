"""What plan says of the models themselves."""

import json
from pathlib import Path

from output_schema import hold_document

from deployctl.cli.plan import run_plan

DIGITS = Path(__file__).parents[2] / "manifests/digits-v2.yaml"
TOGETHER = "up to 32 requests that wait share an inference"


def without_batching(directory):
    text = DIGITS.read_text().replace("../examples", str(DIGITS.parents[1] / "examples"))
    file = directory / "rollout.yaml"
    file.write_text(text.replace("    timeout: ", "    batching: false\n    timeout: "))
    return file


def test_it_says_of_each_version_whether_requests_share_inferences(capsys):
    assert run_plan(str(DIGITS), as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "batching" in line] == [
        f"batching of version {version}: {TOGETHER}" for version in "12"
    ]


def test_it_says_why_they_do_not(tmp_path, capsys):
    assert run_plan(str(without_batching(tmp_path)), as_json=True) == 0
    document = json.loads(capsys.readouterr().out)
    hold_document(document, "plan")
    found = document["batching"]
    assert found == {version: {"rows": 1, "why": "spec.service.batching is false"} for version in "12"}
