"""What is published: the JSON Schema, the template of `init`, and the two verbs that show them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from manifest_texts import FULL, METRICS, WRONG_IN_TEN_WAYS, loaded
from output_schema import hold

from deployctl.cli.init import run_init
from deployctl.cli.lint import run_lint
from deployctl.core.metrics import METRICS as KNOWN
from deployctl.errors import InvalidError, UnavailableError
from deployctl.manifest.schema import Section, json_schema, published

MANIFESTS = Path(__file__).parents[2] / "manifests"


def printed_document(capsys, verb):
    out = capsys.readouterr().out
    hold([verb, "-o", "json"], out)
    return json.loads(out)


def test_the_published_schema_is_up_to_date():
    written = (MANIFESTS / "rollout.schema.json").read_text("utf-8")
    assert written == published(), "run: python -m deployctl.manifest.schema > manifests/rollout.schema.json"


def test_the_schema_is_written_by_its_own_module():
    ran = subprocess.run(
        [sys.executable, "-m", "deployctl.manifest.schema"], capture_output=True, text=True, check=True
    )
    assert (ran.stdout, ran.stderr) == (published(), "")


def test_every_manifest_of_the_repository_names_the_schema_and_lints_clean(capsys):
    for manifest in MANIFESTS.glob("*.yaml"):
        assert manifest.read_text("utf-8").startswith("# yaml-language-server: $schema=rollout.schema.json\n")
        assert run_lint([str(manifest)], as_json=False) == 0, capsys.readouterr().out


def test_the_schema_knows_the_metrics_of_this_version():
    assert sorted(KNOWN) == sorted(METRICS)
    assert json_schema()["definitions"]["MetricEntry"]["properties"]["name"]["enum"] == sorted(METRICS)


def test_the_schema_keeps_to_what_draft_7_editors_read():
    text = published()
    assert json_schema()["$schema"] == "http://json-schema.org/draft-07/schema#"
    for word in ("$defs", "prefixItems", "unevaluated", '"null"', "discriminator"):
        assert word not in text


def sections(kind=Section):
    for section in kind.__subclasses__():
        yield section
        yield from sections(section)


@pytest.mark.parametrize("section", list(sections()), ids=lambda section: section.__name__)
def test_the_schema_has_exactly_the_keys_that_are_read(section):
    schema = json_schema()
    here = schema if section.__name__ == "Document" else schema["definitions"][section.__name__]
    here = here.get("anyOf", [here])[-1]
    assert set(here["properties"]) == {field.alias for field in section.model_fields.values()}
    assert here["additionalProperties"] is False
    assert not section.later & set(here["properties"])


def test_init_writes_a_manifest_that_lints_clean(tmp_path, capsys):
    target = tmp_path / "new" / "deep"
    assert run_init(str(target), as_json=False) == 0
    assert capsys.readouterr().out.splitlines() == [f"{target}/rollout.yaml", f"{target}/rollout.schema.json"]
    assert run_lint([f"{target}/rollout.yaml"], as_json=False) == 0
    assert capsys.readouterr().out == ""
    assert (target / "rollout.schema.json").read_text() == published()
    assert (
        (target / "rollout.yaml")
        .read_text()
        .startswith("# yaml-language-server: $schema=rollout.schema.json\n")
    )


def test_the_template_speaks_of_every_key(tmp_path):
    run_init(str(tmp_path), as_json=True)
    text = (tmp_path / "rollout.yaml").read_text()
    keys = {field.alias for section in sections() for field in section.model_fields.values()}
    assert [key for key in sorted(keys) if not re.search(rf"\b{key}:", text)] == []


def test_the_template_with_everything_switched_on_is_valid_too(tmp_path):
    run_init(str(tmp_path), as_json=True)
    text = (tmp_path / "rollout.yaml").read_text().replace("sha256:…", "sha256:" + "0" * 64, 1)
    text = text.replace("sha256:…", "sha256:" + "1" * 64)
    switched_on = re.sub(r"(?m)^( {4,8})# ((- )?\w+: |  margin)", r"\1\2", text)
    manifest = loaded(switched_on)
    assert manifest.service.routing_key == "x-user-id"
    assert manifest.prediction.classes == ("cat", "dog")
    assert manifest.strategy.canary_steps[0].awaits_person
    assert manifest.keep_warm == 3600
    assert manifest.service.worker_memory == 2 << 30
    assert len(manifest.metrics) == 4


def test_init_says_what_it_wrote_as_json(tmp_path, capsys):
    assert run_init(str(tmp_path), as_json=True) == 0
    assert printed_document(capsys, "init") == {
        "schema_version": 1,
        "written": [f"{tmp_path}/rollout.yaml", f"{tmp_path}/rollout.schema.json"],
    }


@pytest.mark.parametrize("name", ["rollout.yaml", "rollout.schema.json"])
def test_init_overwrites_nothing(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InvalidError, match=re.escape(f"{tmp_path / name}: ")):
        run_init(str(tmp_path), as_json=False)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


def test_init_into_a_file_is_a_mistake_of_the_user(tmp_path):
    (tmp_path / "file").write_text("")
    for directory in ("file", "file/below"):
        with pytest.raises(InvalidError, match="name another directory"):
            run_init(str(tmp_path / directory), as_json=False)


def test_init_where_nothing_can_be_written_is_no_fault_of_the_manifest():
    with pytest.raises(UnavailableError, match="cannot be written"):
        run_init("/proc/nowhere", as_json=False)


def test_lint_prints_every_problem_on_a_line_of_its_own(tmp_path, capsys):
    wrong, right = tmp_path / "wrong.yaml", tmp_path / "right.yaml"
    wrong.write_text(WRONG_IN_TEN_WAYS)
    right.write_text(FULL)
    assert run_lint([str(wrong), str(right), f"{tmp_path}/nowhere.yaml", str(tmp_path)], as_json=False) == 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert lines[0].startswith(f"{wrong}:1:13: unknown apiVersion 'deployctl/v2'")
    assert lines[-2:] == [
        f"{tmp_path}/nowhere.yaml:1:1: cannot be read: No such file or directory",
        f"{tmp_path}:1:1: cannot be read: Is a directory",
    ]


def test_lint_gives_the_problems_as_json(tmp_path, capsys):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("kind: [\n")
    assert run_lint([str(wrong)], as_json=True) == 2
    document = printed_document(capsys, "lint")
    ((problem),) = document["problems"]
    assert (problem["file"], problem["line"], problem["column"]) == (str(wrong), 2, 1)


def test_lint_of_a_good_manifest_prints_no_data(tmp_path, capsys):
    (tmp_path / "right.yaml").write_text(FULL)
    assert run_lint([f"{tmp_path}/right.yaml"], as_json=False) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "no problems\n")
    assert run_lint([f"{tmp_path}/right.yaml"], as_json=True) == 0
    assert printed_document(capsys, "lint") == {"schema_version": 1, "problems": []}
