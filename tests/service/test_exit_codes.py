"""Each exit code is shown end to end: by the installed command, in a clean environment, with a real service where it needs one.

The one rule: what a command ends with is documented in the README, in `--help` and in docs/output.md, in the same words.
"""

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest
import releases

from deployctl.errors import MEANINGS, Exit

ROOT = Path(__file__).parents[2]
SHOWN_BY = {
    Exit.DONE: "service/test_service_life.py::test_a_good_version_climbs_and_is_promoted_and_can_be_taken_back_once",
    Exit.BUG: "service/test_exit_codes.py::test_a_damaged_installation_is_1_in_one_line",
    Exit.INVALID: "service/test_bad_input.py::test_a_manifest_with_many_mistakes_lists_them_all_and_changes_nothing",
    Exit.ROLLED_BACK: "service/test_service_life.py::test_a_rollback_in_mid_ramp_ends_whoever_follows_with_3",
    Exit.UNCONFIRMED: "faults/test_unconfirmed.py::"
    "test_a_rollback_that_one_router_does_not_confirm_is_4_and_holds_when_that_router_wakes_up",
    Exit.INCONCLUSIVE: "service/test_service_life.py::"
    "test_without_traffic_the_step_runs_out_of_time_and_it_is_rolled_back_with_5",
    Exit.WATCH_ENDED: "service/test_service_life.py::test_the_cli_can_be_interrupted_while_the_rollout_goes_on",
    Exit.CONFLICT: "service/test_service_life.py::"
    "test_the_same_manifest_follows_the_rollout_that_runs_and_another_one_is_a_conflict",
    Exit.UNAVAILABLE: "service/test_bad_input.py::test_a_port_that_is_taken_is_8_and_named",
    Exit.INTEGRITY: "service/test_bad_input.py::test_a_flipped_byte_in_the_journal_is_9_until_it_is_recovered",
}


@pytest.mark.parametrize("code", Exit)
def test_every_exit_code_is_shown_end_to_end(code):
    file, _, name = SHOWN_BY[code].partition("::")
    tree = ast.parse((ROOT / "tests" / file).read_text("utf-8"))
    (shown,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    numbers = {node.value for node in ast.walk(shown) if isinstance(node, ast.Constant)}
    assert int(code) in numbers
    assert not [mark for mark in shown.decorator_list if "skip" in ast.unparse(mark)]


def test_the_box_types_the_installed_command_in_a_clean_environment(box):
    assert set(box.environment) == {"PATH", "DEPLOYCTL_STATE_DIR"}
    (command,) = box._argv([])
    assert Path(command).name == "deployctl"
    assert os.access(command, os.X_OK)


def test_a_damaged_installation_is_1_in_one_line(box, tmp_path):
    python = releases.install(tmp_path / "damaged", "0.1.0")
    (loader,) = (tmp_path / "damaged").glob("lib/*/site-packages/deployctl/manifest/load.py")
    loader.unlink()
    box.python = str(python)
    box.run("lint", box.manifest()).refused(1, "this is a bug in deployctl", "manifest.load", "--debug")
    told = box.run("lint", box.manifest(), "-o", "json")
    assert (told.code, told.json["exit_code"]) == (1, 1)


def table_of(file):
    """Code → words, of the table under a heading that speaks of exit codes."""
    _, _, text = (ROOT / file).read_text("utf-8").partition("\n## Exit codes\n")
    section, _, _ = text.partition("\n## ")
    return {int(code): words for code, words in re.findall(r"(?m)^\| (\d+) \| (.+) \|$", section)}


@pytest.mark.parametrize("file", ["README.md", "docs/output.md"])
def test_the_documented_exit_codes_are_those_of_the_code(file):
    assert table_of(file) == {int(code): words for code, words in MEANINGS.items()}
    assert set(MEANINGS) == set(Exit)


def test_help_shows_the_exit_codes_whole(box):
    done = subprocess.run(
        [*box._argv(["--help"])], env=box.environment | {"COLUMNS": "20"}, capture_output=True, text=True, check=True
    )  # fmt: skip
    _, _, shown = done.stdout.partition("Exit codes:\n")
    assert [line.strip() for line in shown.strip().splitlines()] == [
        f"{code}  {words}" for code, words in MEANINGS.items()
    ]
