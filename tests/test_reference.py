"""The pages that are made, and not written: they say what this release does, or a test says how to make them anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("module", "page"),
    [("deployctl.cli.reference", "docs/cli.md"), ("deployctl.cli.manifest_reference", "docs/manifest.md")],
)
def test_a_page_that_is_made_is_up_to_date(module, page):
    made = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, check=True)
    assert made.stderr == ""
    assert made.stdout == (ROOT / page).read_text("utf-8"), f"run: python -m {module} > {page}"


def test_the_page_of_the_commands_has_every_verb_with_its_options_and_an_example():
    page = (ROOT / "docs/cli.md").read_text("utf-8")
    for verb in ("up", "canary ramp", "blue-green switch", "labels add", "replay"):
        inside = page.partition(f"\n## {verb}\n")[2].partition("\n## ")[0]
        assert f"    deployctl {verb} " in inside.partition("Example:")[2], verb
    assert "| `--until <paused\\|promoted>` |" in page
    assert "| `--outcomes FILE.jsonl` | required |" in page


def test_the_page_of_the_manifest_has_every_key_and_what_lint_says_of_a_wrong_one():
    from deployctl.cli.manifest_reference import TOGETHER
    from deployctl.core.metrics import METRICS
    from deployctl.manifest.schema import json_schema

    page = (ROOT / "docs/manifest.md").read_text("utf-8")
    schema = json_schema()
    keys = {
        key
        for here in (schema, *schema["definitions"].values())
        for key in here.get("anyOf", [here])[-1]["properties"]
    }
    assert [key for key in sorted(keys) if f"| `{key}` |" not in page] == []
    assert [metric for metric in METRICS if f"| `{metric}` |" not in page] == []
    rows = [
        line.split(" | ") for line in page.splitlines() if line.startswith("| `") and line.count(" | ") == 1
    ]
    assert len(rows) > 60
    assert [row for row in rows if not row[1].removesuffix("|").strip()] == [], "lint takes it for right"
    assert [written for written in TOGETHER if f"| `{written}` |" not in page] == []
