"""What the screens show, rendered as a terminal of 80 and of 200 columns would."""

import io

import pytest
from cli_rig import METRIC, status_of
from rich.console import Console

from deployctl.views import figures
from deployctl.views.console import Layout
from deployctl.views.explain import explain_lines
from deployctl.views.history import history_lines
from deployctl.views.status import status_line, status_lines

LONG = METRIC | {"name": "label-error-rate", "verdict": "pass", "baseline": {"n": 1234567, "bad": 45678}}


def rendered(lines, width):
    console = Console(file=io.StringIO(), record=True, width=width, force_terminal=True, highlight=False)
    for line in lines:
        console.print(line)
    text = console.export_text()
    assert all(len(row) <= width for row in text.splitlines())
    assert "…" not in text
    return text


@pytest.mark.parametrize("width", [80, 200])
def test_the_status_shows_every_fact_at_any_width(width):
    status = status_of(metrics=[METRIC, LONG], reason="error-rate needs more", waits_for="person")
    shown = rendered(status_lines(status, Layout(width)), width)
    for fact in (
        "10 %", "2 of 6", "[10]", "error-rate", "inconclusive", "12 of 19,000 (0.0632 %)", "1 of 1,002 (0.0998 %)",
        "+0.04 points [-0.10, +0.31]", "0.21 / 600", "40 / 120", "about 812 more candidate answers", "label-error-rate",
        "45,678 of 1,234,567", "pass", "http://127.0.0.1:8080", "4713", "deployctl promote digits",
    ):  # fmt: skip
        assert fact in shown, fact


def test_the_status_says_what_a_watched_folder_of_label_files_gave():
    counts = {
        "read": 1211,
        "labels": 1204,
        "skipped": {"half a row": 2, "no id": 5},
        "refused": 1,
        "refused_files": 0,
    }
    shown = rendered(status_lines(status_of(label_files={"path": "/data/labels", **counts}), Layout(80)), 80)
    assert "1,204 from 1,211 rows in /data/labels, rows skipped: 7, labels refused: 1" in " ".join(
        shown.split()
    )
    assert "rows in" not in rendered(status_lines(status_of(label_files=None), Layout(80)), 80)


def test_the_status_says_what_is_wrong_with_the_live_version():
    words = "version 1: its worker ended 5 times in a row; it is started again and again"
    shown = rendered(status_lines(status_of(trouble=words), Layout(120)), 120)
    assert f"trouble {words}" in " ".join(shown.split())
    assert "trouble" not in rendered(status_lines(status_of(), Layout(80)), 80)


def test_the_status_says_what_is_left_of_an_upgrade_and_what_is_in_its_way():
    upgrade = {"generation": 1, "left": ["router", "worker 2"], "trouble": "version 2 cannot be loaded"}
    shown = rendered(status_lines(status_of(release="0.2.0", upgrade=upgrade), Layout(200)), 200)
    assert "to release 0.2.0; still of the one before: router, worker 2" in shown
    assert "version 2 cannot be loaded" in shown
    done = {"generation": 1, "left": [], "trouble": None}
    assert "release" not in rendered(status_lines(status_of(release="0.2.0", upgrade=done), Layout(200)), 200)


HOOK = {"name": "sign-off", "type": "confirm-promotion", "waiting": False, "agreed": False, "tries": 0}
HOOK |= {"last": "", "behind": 0, "given_up": 0}


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        ({"waiting": True}, "sign-off (confirm-promotion): not asked yet"),
        (
            {"waiting": True, "tries": 7, "last": "answered 403: not yet"},
            "asked 7 times, answered 403: not yet",
        ),
        (
            {"behind": 3, "tries": 9, "last": "cannot be reached"},
            "3 events wait to be taken, cannot be reached",
        ),
        ({"given_up": 2, "tries": 9, "last": "answered 410"}, "2 events were given up, answered 410"),
    ],
)
def test_the_status_says_whom_a_rollout_waits_for_and_who_does_not_listen(hook, words):
    lines = status_lines(status_of(webhooks=[HOOK | hook], waits_for="webhook", phase="paused"), Layout(200))
    shown = rendered(lines, 200)
    assert words in shown
    assert "deployctl promote digits" in shown
    assert "sign-off" not in rendered(status_lines(status_of(webhooks=[HOOK]), Layout(200)), 200)


def test_a_very_narrow_screen_breaks_lines_and_loses_nothing():
    shown = rendered(status_lines(status_of(), Layout(20)), 20)
    assert "12 of 19,000" in " ".join(shown.split())


def test_without_block_characters_bars_are_ascii():
    lines = status_lines(status_of(), Layout(80, ascii_only=True))
    assert not {"█", "░"} & set("".join(line.plain for line in lines))


def test_missing_numbers_are_said_and_never_fail():
    bare = {"name": "null-rate", "verdict": "inconclusive", "baseline": None, "candidate": {"n": 0, "bad": 0},
            "effect": None, "interval": None, "evidence": None, "threshold": None, "needed": None}  # fmt: skip
    for width in (80, 200):
        assert "none yet" in rendered(
            status_lines(status_of(metrics=[bare], weight=None), Layout(width)), width
        )
    assert "null-rate" in status_line(status_of(metrics=[bare]))


@pytest.mark.parametrize("width", [80, 200])
def test_explain_and_history_show_the_evidence_at_any_width(width):
    explained = {"rollout": "r-1", "phase": "paused", "sentence": "It holds.", "by": "gate", "metrics": [LONG],
                 "would_change": "more answers"}  # fmt: skip
    shown = rendered(explain_lines(explained, Layout(width)), width)
    assert shown.startswith("It holds.")
    assert "45,678 of 1,234,567" in shown
    event = {
        "seq": 1,
        "kind": "climbed",
        "at": 1.0,
        "phase": "progressing",
        "weight": 5,
        "verdict": {"metrics": [LONG]},
    }
    told = rendered(
        history_lines([{"rollout": "r-1", "phase": "promoted", "finished": False, "events": [event]}]), width
    )
    assert "not finished" in told
    assert "0.21 / 600" in " ".join(told.split())


@pytest.mark.parametrize(
    ("value", "threshold", "share"),
    [
        (None, 100, 0.0),
        (0.2, 100, 0.0),
        (1, 100, 0.0),
        (10, 100, 0.5),
        (100, 100, 1.0),
        (1e9, 100, 1.0),
        (5, None, 0.0),
    ],
)
def test_evidence_fills_its_bar_on_a_log_scale(value, threshold, share):
    assert figures.progress(value, threshold) == pytest.approx(share)


def test_a_bar_is_full_only_when_it_is():
    assert figures.bar(0.999, 10, ascii_only=True) == "#########-"
    assert figures.bar(0.001, 10, ascii_only=True) == "#---------"
    assert figures.bar(1.0, 10, ascii_only=True) == "##########"
    assert figures.bar(0.0, 10, ascii_only=True) == "----------"
