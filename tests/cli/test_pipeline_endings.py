"""What is said of each way in which a command may end: only what was seen, and the verdict of nobody else but the gate or a person."""

import signal
from pathlib import Path

import ci_runner
import pytest
from cli_rig import METRIC

from deployctl.cli.ending import ending_of
from deployctl.cli.pipeline import Account, CiSystem, Reports, reporting
from deployctl.cli.plan import run_plan
from deployctl.cli.signals import SIGNALS
from deployctl.errors import Exit, UnconfirmedError
from deployctl.views.ending import Check, Ending
from deployctl.views.junit import junit
from deployctl.views.markdown import markdown

DIGITS = Path(__file__).parents[2] / "manifests/digits-v2.yaml"


@pytest.fixture(autouse=True)
def signals():
    """A command that has reported hears no signal any more; this process does."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def explained(phase, sentence="So it was.", **more):
    event = {"kind": "x", "phase": phase, "weight": 5, "at": 3.0, "reason": "because"} | more.pop("event", {})
    return {
        "phase": phase,
        "sentence": sentence,
        "metrics": [METRIC],
        "events": [event],
        "candidates": ["2"],
    } | more


def ended(command, code, phase, error=None, **more):
    return ending_of(Account(command, rollout="r-0007", explained=explained(phase, **more)), code, error)


@pytest.mark.parametrize(
    ("command", "code", "phase", "verdict", "title", "end"),
    [
        ("canary ramp", 0, "promoted", "pass", "promoted", "pass"),
        ("canary ramp", 0, "progressing", "none", "started; it goes on", "pass"),
        ("canary ramp", 0, "paused", "none", "waits for a person", "pass"),
        ("canary ramp", 3, "rolled_back", "fail", "rolled back", "failure"),
        ("canary ramp", 5, "rolled_back", "inconclusive", "rolled back for want of evidence", "skipped"),
        ("canary ramp", 5, "paused", "inconclusive", "held for want of evidence", "skipped"),
        ("canary ramp", 6, "progressing", "none", "no verdict yet: the watching ended", "skipped"),
        ("shadow", 0, "retired", "pass", "passed its shadow", "pass"),
        ("shadow", 3, "retired", "fail", "failed its shadow", "failure"),
        ("shadow", 5, "retired", "inconclusive", "its shadow ended without enough evidence", "skipped"),
        ("blue-green switch", 0, "promoted", "pass", "promoted", "pass"),
        ("replay", 0, "promoted", "pass", "would have been promoted", "pass"),
        ("replay", 3, "rolled_back", "fail", "would have been rolled back", "failure"),
        ("replay", 5, "progressing", "inconclusive", "would not have had enough evidence", "skipped"),
    ],
)  # fmt: skip
def test_each_end_has_its_words(command, code, phase, verdict, title, end):
    ending = ended(command, code, phase)
    assert (ending.verdict, ending.title) == (verdict, title)
    suite = ci_runner.junit(junit(ending))
    assert suite.cases["end of the rollout"][0] == end
    assert suite.cases["error-rate"][0] == "skipped"
    assert suite.properties["verdict"] == verdict
    assert "So it was." in markdown(ending, 10_000)


def test_an_end_that_was_not_seen_is_no_verdict_even_where_the_rollout_has_ended_meanwhile():
    ending = ended("canary ramp", 6, "rolled_back")
    assert ending.verdict == "none"
    assert ending.sentence == "The command ended before the end of the rollout was seen. So it was."


def test_a_command_that_is_cancelled_before_the_rollout_began_says_so():
    account = Account("canary ramp", cancelled="SIGTERM", message="No rollout was begun.")
    ending = ending_of(account, 6, None)
    assert (ending.verdict, ending.sentence) == (
        "none", "The command ended (SIGTERM) before the end of the rollout was seen. No rollout was begun.",
    )  # fmt: skip


def test_a_rollback_that_was_not_confirmed_is_an_alarm():
    ending = ended("rollback", 4, "progressing", UnconfirmedError("call somebody"))
    assert (ending.verdict, ending.sentence) == ("none", "call somebody")
    assert [note.level for note in ending.notes] == ["error"]
    assert ci_runner.junit(junit(ending)).cases["deployctl rollback"][:2] == ("failure", "call somebody")


@pytest.mark.parametrize(
    ("phase", "code", "verdict"),
    [("progressing", None, "none"), ("promoted", None, "pass"), ("rolled_back", 3, "fail"), ("rolled_back", 5, "inconclusive")],
)  # fmt: skip
def test_a_status_says_what_the_rollout_has_come_to(phase, code, verdict):
    assert ended("status", 0, phase, event={} if code is None else {"exit_code": code}).verdict == verdict


def test_where_evidence_is_missing_the_metrics_are_warnings_and_where_a_limit_decided_it_is_the_error():
    short = ended("canary ramp", 5, "rolled_back")
    assert [(note.level, note.title) for note in short.notes] == [
        ("warning", "error-rate: inconclusive"),
        ("warning", "deployctl canary ramp: rolled back for want of evidence"),
    ]
    passed = ended("canary ramp", 0, "promoted")
    assert [note.level for note in passed.notes] == ["notice"]


def test_a_shadow_of_several_has_a_test_for_each_of_them():
    one = {"version": "2", "metrics": [METRIC]}
    event = {
        "verdict": {"candidates": [one, one | {"version": "3", "metrics": [METRIC | {"verdict": "fail"}]}]}
    }
    suite = ci_runner.junit(junit(ended("shadow", 3, "retired", event=event)))
    assert {name: case[0] for name, case in suite.cases.items()} == {
        "error-rate (version 2)": "skipped", "error-rate (version 3)": "failure", "end of the rollout": "failure",
    }  # fmt: skip


def test_a_bug_in_a_report_costs_no_exit_code(capsys):
    account = Account("replay", rollout="r", explained={"events": 5})
    assert reporting(Reports(CiSystem.GITHUB), account, lambda: Exit.ROLLED_BACK) == 3
    assert "warning: no report, by a bug in deployctl" in capsys.readouterr().err


def test_a_bug_in_a_command_is_reported_as_one(tmp_path):
    def bug():
        raise ZeroDivisionError("by zero")

    with pytest.raises(ZeroDivisionError):
        reporting(Reports(junit=str(tmp_path / "j.xml")), Account("replay"), bug)
    assert ci_runner.junit((tmp_path / "j.xml").read_text()).cases["deployctl replay"] == (
        "error", "by zero", "by zero",
    )  # fmt: skip


def test_a_plan_says_whether_the_models_fit_and_keeps_its_text(tmp_path, capsys):
    reports = Reports(CiSystem.NONE, str(tmp_path / "j.xml"), str(tmp_path / "m.md"))
    assert run_plan(str(DIGITS), reports, as_json=False) == 0
    suite = ci_runner.junit((tmp_path / "j.xml").read_text())
    assert {name: case[0] for name, case in suite.cases.items()} == {
        "signature": "pass", "order of the classes": "pass",
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "\n".join(f"    {line}" for line in printed.splitlines()) in (tmp_path / "m.md").read_text()


def test_a_check_that_failed_is_what_a_plan_that_does_not_fit_says():
    account = Account(
        "plan", checks=[Check("signature", "fail", "input x is missing"), Check("order", "pass")]
    )
    account.message = "input x is missing"
    ending = ending_of(account, 2, None)
    assert isinstance(ending, Ending)
    assert (ending.verdict, ending.title, ending.sentence) == ("fail", "one problem", "input x is missing")
    assert ci_runner.junit(junit(ending)).cases["signature"][0] == "failure"
