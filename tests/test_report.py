"""What a shadow is worth: the report of a log that was really written, for a person, for programs and as a page in a browser."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from browser import Browser
from output_schema import hold
from report_rig import CLASSES, HUMAN, LabelRow, LabelRules, Line, Result, Row, Version, inspect

from deployctl.cli.report import publish_text, recorded
from deployctl.core.plan import Phase
from deployctl.core.report import Report, report_of
from deployctl.errors import UnavailableError
from deployctl.views.console import Layout
from deployctl.views.report import clip, document, report_lines
from deployctl.views.report_html import report_page

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=http://127.0.0.1:9/x onerror=alert(1)>',
    "x" * 5_000,
    "\N{RIGHT-TO-LEFT OVERRIDE}gnp\x1b[31m & co",
    "漢字のクラス",
)


@pytest.fixture
def line(tmp_path):
    one = Line(tmp_path)
    yield one
    one.close()


def report(line: Line) -> Report:
    return report_of(recorded(line.home, None))


def screen(found: Report, width: int = 80) -> str:
    return "\n".join(one.plain for one in report_lines(found, Layout(width)))


def said(line: Line, *answers: tuple[str, str], labels=()) -> None:
    """Requests r0, r1… with what version 1 and version 2 said, and then labels of them."""
    for serial, (first, second) in enumerate(answers):
        asked = Row(f"r{serial}", serial=serial, start=0.1, copies=(1,), prediction=first)
        line.take(asked, asked.copy(1, second))
    line.take(labels=[LabelRow(*label) for label in labels])


# ── the sentence ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_versions_are_measured_on_what_people_labelled(line):
    said(line, ("a", "a"), ("a", "b"), ("b", "b"), labels=[("r0", "a"), ("r1", "b")])
    found = report(line)
    assert [(one.version, one.agreement.hits, one.agreement.n) for one in found.versions] == [
        ("1", 1, 2),
        ("2", 2, 2),
    ]
    assert found.sentence == (
        "Version 2 agrees with people on 100.0 % of 2 requests (34.2 to 100.0 %); nobody labelled a request twice, "
        "so how far people agree with each other is unknown."
    )
    assert (found.comparisons[0].paired.first_only, found.comparisons[0].paired.second_only) == (0, 1)
    assert found.comparisons[0].differ.hits == 1


def test_without_labels_nothing_is_claimed(line):
    assert report(line).sentence == "Version 2 has answered nothing yet, so nothing can be said of it."
    said(line, ("a", "a"))
    found = report(line)
    assert "people have labelled none of them" in found.sentence
    assert found.versions[1].kappa is None
    assert "unknown" in screen(found)
    assert "unknown" in report_page(found)


def test_people_who_agree_on_few_requests_are_no_measure(line):
    both = [(f"r{at}", "a", who) for at in range(29) for who in ("ann", "bob")]
    said(line, *[("a", "a")] * 29, labels=both)
    assert "only 29 requests were labelled by two people or more, too few" in report(line).sentence


@pytest.mark.parametrize(
    ("right", "verdict"),
    [
        ((0.9, 0.99), "so it is better than a single person."),
        ((0.9, 0.2), r"so it is not as good as a person yet \(\d+\.\d points behind\)\."),
    ],
)
def test_a_version_is_set_beside_a_person(line, right, verdict):
    inspect(line, 1_500, right=right)
    assert re.search(verdict, report(line).sentence)
    assert "two people agree with each other on 8" in report(line).sentence


def test_a_version_that_is_one_of_the_people_is_about_as_good_as_a_person(line):
    """The version answers as an inspector would who is not asked: errs as often, on the same phones."""
    from random import Random

    draw = Random(3)
    answers, labels = [], []
    for at in range(6_000):
        people = ["a" if draw.random() < 0.97 else "b" for _ in range(3)]
        answers.append(("a", people[2]))
        labels += [(f"r{at}", people[who], f"inspector {who}") for who in range(2)]
    rows = []
    for serial, (first, second) in enumerate(answers):
        asked = Row(f"r{serial}", serial=serial, start=0.1, copies=(1,), prediction=first)
        rows += [asked, asked.copy(1, second)]
    line.take(*rows, labels=[LabelRow(*label) for label in labels])
    assert report(line).sentence.endswith("so it is about as good as a person.")


def test_disputed_requests_are_left_out_of_agreement_and_shown(line):
    votes = [("r0", "a", "ann"), ("r0", "b", "bob"), ("r1", "a", "ann"), ("r1", "a", "bob")]
    said(line, ("a", "a"), ("a", "a"), labels=votes)
    found = report(line)
    assert (found.labels.labelled, found.labels.disputed, found.labels.disputed_ids) == (1, 1, ("r0",))
    assert found.labels.people.pairwise == 0.5  # of people's agreement they are a part
    assert found.versions[1].against.n == 2
    assert "1 request disputed" in screen(found)


def test_the_rules_of_the_manifest_say_what_is_true(tmp_path):
    votes = [
        ("r0", "b", "ann"),
        ("r0", "a", "eve"),
        ("r1", "a", "ann"),
        ("r1", "a", "bob"),
        ("r2", "z", "eve"),
    ]
    for name, rules, agreement in (
        ("any", LabelRules("any"), (2.0, 2)),
        ("soft", LabelRules("soft"), (1.5, 2)),
        ("expert", LabelRules("expert:eve"), (1.0, 1)),
        ("majority", LabelRules("majority", 2), (1.0, 1)),
    ):
        line = Line(tmp_path, name, labels=rules, classes=("a", "b"))
        said(line, ("a", "a"), ("a", "a"), ("a", "a"), labels=votes)
        found = report(line)
        assert (found.versions[1].agreement.hits, found.versions[1].agreement.n) == agreement, name
        assert found.labels.foreign == 1
        line.close()


def test_votes_of_people_who_saw_the_answer_are_kept_apart(line):
    asked = Row("r0", serial=0, copies=(1,), prediction="a")
    shown = [LabelRow("r0", "a", "ann", shown=True), LabelRow("r0", "b", "bob", shown=True)]
    line.take(asked, asked.copy(1, "b"), labels=[*shown, LabelRow("ghost", "a")])
    found = report(line)
    assert found.labels.votes == 0
    assert (found.labels.shown, found.labels.unmatched) == (2, 1)
    assert (found.versions[0].accepted.hits, found.versions[0].accepted.n) == (1, 2)
    assert found.versions[1].accepted.n == 0  # nobody was shown what the shadow said


def test_people_alone_are_no_version(tmp_path):
    line = Line(tmp_path, baseline=HUMAN)
    inspect(line, 400, human_baseline=True)
    found = report(line)
    assert [one.version for one in found.versions] == ["2"]
    assert found.comparisons == ()
    assert found.versions[0].agreement.share > 0.8
    line.close()


def test_every_candidate_has_its_sentence_and_its_comparison(tmp_path):
    line = Line(tmp_path, others=(Version("3", "c"),))
    inspect(line, 600, right=(0.9, 0.95, 0.5))
    found = report(line)
    assert found.sentence.count("agrees with people on") == 2
    assert [(one.first, one.second) for one in found.comparisons] == [("1", "2"), ("1", "3")]
    assert "less often than version 1" in found.comparisons[1].sentence
    line.close()


def test_the_rollouts_own_verdict_stands_beside(line):
    assert "still running" in report(line).decision.sentence
    line.retire(Result.PASS, "no harm in 300 labelled pairs")
    found = report(line)
    assert (found.decision.phase, found.decision.result) == ("retired", "pass")
    assert "no harm in 300 labelled pairs" in found.decision.sentence
    assert found.decision.sentence in " ".join(screen(found).split())


def test_a_class_that_is_worse_is_named_and_a_rare_one_is_not_judged(line):
    answers = [("a", "a")] * 300 + [("b", "a")] * 20 + [("b", "b")] * 30 + [("c", "a")] * 5
    truths = ["a"] * 300 + ["b"] * 50 + ["c"] * 5
    said(line, *answers, labels=[(f"r{at}", label) for at, label in enumerate(truths)])
    states = {row.name: row.state for row in report(line).versions[1].classes}
    assert states == {"a": "above", "b": "below", "c": "insufficient"}
    assert "below the others" in screen(report(line))


def test_the_surest_wrong_answers_are_named_by_their_ids(line):
    for serial, sure in enumerate([0.5, 0.99, 0.7]):
        asked = Row(f"r{serial}", serial=serial, copies=(1,), prediction="a")
        line.take(asked, asked.copy(1, "b", confidence=sure), labels=[LabelRow(f"r{serial}", "a", "ann")])
    wrong = report(line).versions[1]
    assert [one.id for one in wrong.examples] == ["r1", "r2", "r0"]
    assert (wrong.examples[0].for_it, wrong.examples[0].votes, wrong.contradicted) == (0, 1, 3)


# ── for programs, and on a screen ──────────────────────────────────────────────────────────────────────────────────


def deployctl(line: Line, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DEPLOYCTL_STATE_DIR": str(line.home.path.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "deployctl", "report", line.home.name, *arguments],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    hold(["report", *arguments], done.stdout)
    return done


def test_the_report_needs_no_running_service(line, tmp_path):
    inspect(line, 300)
    done = deployctl(line, "-o", "json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads(json.dumps(document(report(line))))
    assert found["schema_version"] == 1
    assert found["versions"][1]["agreement"]["n"] > 100
    page = tmp_path / "report.html"
    done = deployctl(line, "--html", str(page))
    assert done.stdout.strip() == found["sentence"]
    assert page.read_text() == report_page(report(line))
    assert found["sentence"] in " ".join(deployctl(line).stdout.replace("\n", " ").split())


def test_a_document_has_plain_numbers_only(line):
    """NaN is no JSON, and a verdict of several candidates is words."""
    inspect(line, 200)
    json.dumps(document(report(line)), allow_nan=False)
    keys = re.findall(r'"([^"]+)":', json.dumps(document(report(line))))
    assert [key for key in keys if not re.fullmatch(r"[a-z0-9_]+", key)] == []


def test_an_unknown_rollout_is_one_line_that_names_the_known(line):
    done = deployctl(line, "--rollout", "nothing")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "m-1-cafe" in done.stderr


def test_a_page_on_a_full_disk_is_exit_8_and_the_device_is_left_as_it_is(line):
    done = deployctl(line, "--html", "/dev/full")
    assert done.returncode == 8
    assert done.stderr == "deployctl: /dev/full: cannot be written: No space left on device\n"
    assert Path("/dev/full").is_char_device()


def test_a_page_goes_into_a_pipe_and_to_where_a_link_leads(tmp_path):
    publish_text(Path("/dev/null"), "page")
    assert Path("/dev/null").is_char_device()
    fifo, link = tmp_path / "fifo", tmp_path / "link.html"
    os.mkfifo(fifo)
    with open(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)) as reader:  # noqa: PTH123 - without waiting for a writer
        publish_text(fifo, "page")
        assert reader.read() == "page"
    link.symlink_to(tmp_path / "page.html")
    publish_text(link, "page")
    assert (link.is_symlink(), (tmp_path / "page.html").read_text()) == (True, "page")


def test_a_page_that_cannot_be_written_is_exit_8_and_leaves_nothing(line, tmp_path):
    done = deployctl(line, "--html", str(tmp_path / "nowhere" / "report.html"))
    assert done.returncode == 8
    assert "nowhere" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_full_disk_leaves_the_older_page(tmp_path):
    import resource
    import signal

    page = tmp_path / "report.html"
    page.write_text("an older page")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    try:
        with pytest.raises(UnavailableError, match=r"report\.html: cannot be written"):
            publish_text(page, "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert page.read_text() == "an older page"
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("path", [".", "..", "/"])
def test_a_directory_is_no_page(path):
    with pytest.raises(UnavailableError, match="is a directory"):
        publish_text(Path(path), "")


def test_nothing_is_wider_than_80_columns_whatever_things_are_called(tmp_path):
    line = Line(tmp_path)
    inspect(line, 500, classes=HOSTILE)
    line.retire(Result.FAIL, "worse by far")
    from rich.cells import cell_len

    lines = screen(report(line)).splitlines()
    assert max(map(cell_len, lines)) <= 80, max(lines, key=cell_len)
    assert all(char.isprintable() for line_ in lines for char in line_)
    line.close()


@pytest.mark.parametrize(
    ("text", "cells", "shown"), [("abc", 5, "abc  "), ("abcdef", 4, "abc…"), ("漢字の", 4, "漢 …")]
)
def test_a_name_is_cut_to_exactly_its_cells(text, cells, shown):
    assert clip(text, cells) == shown


# ── the page ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    one = Browser(tmp_path_factory.mktemp("browser"))
    yield one
    one.close()


TOO_WIDE = """[...document.querySelectorAll('body *')].filter(one => !one.closest('.scroll table, .hidden')
  && one.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5).map(one => one.outerHTML.slice(0, 80))"""


def page_of(line: Line, folder: Path) -> tuple[Report, Path]:
    found = report(line)
    page = folder / "page.html"
    publish_text(page, report_page(found))
    return found, page


@pytest.mark.parametrize("width", [1_000, 400])
@pytest.mark.parametrize(
    "classes", [CLASSES, HOSTILE + tuple(f"class {at}" for at in range(60))], ids=["few", "many"]
)
def test_the_page_is_whole_quiet_and_no_wider_than_its_window(tmp_path, browser, width, classes):
    line = Line(tmp_path, others=(Version("3 <b>", "c"),))
    inspect(line, 1_000, classes=classes, right=(0.9, 0.95, 0.7))
    line.retire(Result.FAIL, "<i>worse</i> by far")
    found, page = page_of(line, tmp_path)
    line.close()
    browser.open(page, width)
    assert (
        browser.ask("document.getElementById('verdict').textContent").replace("\N{NO-BREAK SPACE}", " ")
        == found.sentence
    )
    assert browser.complaints == []
    assert browser.requests == [page.as_uri()]
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask(TOO_WIDE) == []
    assert (
        browser.ask(
            "document.scripts.length + document.images.length + document.querySelectorAll('i, main b img').length"
        )
        == 0
    )


def test_the_page_can_be_read_without_seeing_it(tmp_path, browser):
    line = Line(tmp_path)
    inspect(line, 1_000)
    _, page = page_of(line, tmp_path)
    line.close()
    browser.open(page, 1_000)
    levels = browser.ask("[...document.querySelectorAll('h1, h2, h3')].map(one => +one.tagName[1])")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    charts = browser.ask("[...document.querySelectorAll('svg')].map(one => one.getAttribute('aria-label'))")
    assert len(charts) >= 8
    assert all(charts)
    assert browser.ask("[...document.querySelectorAll('th')].every(one => one.scope)")
    assert browser.ask("[...document.querySelectorAll('table')].every(one => one.caption)")
    beside = "[...document.querySelectorAll('.chart')].every(one => one.parentElement.querySelector('table'))"
    assert browser.ask(beside)
    assert browser.ask("document.documentElement.lang") == "en"


CONTRAST = """(() => { const shade = colour => { const [r, g, b] = colour.match(/[0-9.]+/g).slice(0, 3).map(one => { const s = one / 255;
  return s <= 0.03928 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4 }); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const paper = shade(getComputedStyle(document.documentElement).backgroundColor);
  return Math.min(...[...document.querySelectorAll('p, h1, h2, h3, th, td:not(.matrix td), dd')].map(one => {
    const ink = shade(getComputedStyle(one).color); return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05) })) })()"""


@pytest.mark.parametrize("dark", [False, True])
def test_words_stand_out_from_the_paper_in_light_and_in_dark(tmp_path, browser, dark):
    line = Line(tmp_path)
    inspect(line, 500)
    _, page = page_of(line, tmp_path)
    line.close()
    browser.dark(wanted=dark)
    browser.open(page, 1_000)
    assert browser.ask(CONTRAST) >= 4.5  # WCAG 2.1, AA
    browser.dark(wanted=False)


def test_a_page_stays_small_however_much_was_said(tmp_path):
    line = Line(tmp_path, others=tuple(Version(f"{at}" * 30, f"{at}") for at in range(3, 10)))
    names = tuple(f"{'<&>' * 400}{at}" for at in range(400))
    inspect(line, 1_500, classes=names, right=(0.9,) + (0.6,) * 8)
    page = report_page(report(line))
    line.close()
    assert len(page.encode()) < 1_000_000
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")


def test_every_end_of_a_rollout_has_its_words(line):
    said(line, ("a", "a"), labels=[("r0", "a")])
    given = recorded(line.home, None)
    for phase in Phase:
        page = report_page(report_of(replace(given, rollout=replace(given.rollout, phase=phase))))
        assert "<h1" in page
