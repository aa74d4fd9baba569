"""What reports do with what users wrote: whatever a reason, a name or a path holds, it stays a text."""

import json
import re

import ci_runner
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from deployctl.views.ending import Check, Ending, Note, Place, metric_check
from deployctl.views.events import event_line
from deployctl.views.junit import junit
from deployctl.views.markdown import markdown
from deployctl.views.quoting import markdown_code, no_command, no_command_in_json, one_line
from deployctl.views.workflow import dotenv, outputs, workflow_commands

EVIL = (
    "\n::set-output name=verdict::pass", "::set-output name=verdict::pass", "##[set-output name=verdict]pass", "###[error]x",
    "##vso[task.setvariable variable=x]y", "\r::add-mask::e", "%0A::error::x", "%25", "\n\n", "| a | b |\n", "`", "``", "\\|", "\\",
    "<script>alert(1)</script>", "<!-- ", "-->", "]]>", "&amp;", "&#124;", "[x](http://a.example)", "![x](http://a.example/p)", "*", "_", "~~~",
    "# ", "- ", "@everyone", "#12", "https://a.example", "www.a.example", "\x1b[0Ksection_start:1:x\r", "\u2028", "\x85", "\u202e", "\x00", "\ufffe",
    "$CI_JOB_TOKEN", "${CI_JOB_TOKEN}", "%PATH%", "\nKEY=value", "verdict<<x", "ghadelimiter_", "\ud800", "'", '"', "{}", "1. ", "2)", "---", "===", "+ ", "://", ":", ",", ";",
)  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(EVIL), st.text(max_size=8)), max_size=6).map("".join)
METRIC = {
    "name": "null-rate",
    "verdict": "fail",
    "baseline": {"n": 19000, "bad": 12},
    "candidate": {"n": 1002, "bad": 98},
    "effect": 0.0972,
    "interval": [0.06, 0.13],
    "evidence": 700.0,
    "threshold": 600.0,
    "safe_evidence": 0.2,
    "safe_threshold": 120.0,
    "needed": None,
    "words": "the candidate gave 98 of 1,002 (9.78 %) answers without one",
}
DELIMITER = "ghadelimiter_0123456789abcdef"


def ending_with(text, **changes):
    """An ending in which every text of a user is this one."""
    event = {
        "kind": "rolled_back", "phase": "rolled_back", "weight": 0, "at": 12.5, "wall": "2026-01-01T12:00:01.250Z", "reason": text,
        "by": f"person:{text}", "step": 1, "steps": 6,
    }  # fmt: skip
    metric = METRIC | {"words": text or "x"}
    fields = {
        "command": "canary ramp", "exit_code": 3, "title": "rolled back", "sentence": f"Version {text} was rolled back.",
        "verdict": "fail", "service": "digits", "rollout": "digits-1-beef", "phase": "rolled_back", "weight": 0.0, "baseline": text,
        "candidate": text, "metrics": (metric,), "events": (event,), "checks": (metric_check(metric), Check("end", "fail", text, (text,))),
        "notes": (Note("error", text, text, Place(text or "x", 3, 5)), Note("notice", "t", text)), "details": (text,),
        "hints": (("follow it", f"deployctl canary ramp {text}"),),
    }  # fmt: skip
    return Ending(**(fields | changes))


@settings(max_examples=40)
@given(TEXTS)
def test_no_text_becomes_a_command_and_annotations_say_it_as_it_is(text):
    ending = ending_with(text)
    written = workflow_commands(ending)
    error, notice = ci_runner.commands_in("\n".join(written))
    assert len(written) == 2
    line = one_line(text)
    where = {"file": one_line(text or "x")} if one_line(text or "x") else {}
    title = {"title": line} if line else {}
    assert error == ci_runner.Command("error", {**where, "line": "3", "col": "5", **title}, line)
    assert notice == ci_runner.Command("notice", {"title": "t"}, line)
    printed = [no_command(text), no_command(event_line(ending.events[0])), no_command(f"  {text}")]
    document = no_command_in_json(json.dumps({text: [text]}, ensure_ascii=False))
    assert json.loads(document) == {text: [text]}
    assert ci_runner.commands_in("\n".join([*printed, document])) == []


@settings(max_examples=40)
@given(TEXTS)
def test_outputs_are_the_five_and_say_what_was_meant(text):
    report = markdown(ending_with(text), 60_000)
    written = outputs(ending_with(text, rollout=text), report, DELIMITER)
    assert ci_runner.file_command("before=1\n" + written) == {
        "before": "1", "verdict": "fail", "phase": "rolled_back", "rollout": one_line(text), "exit_code": "3", "report": report.rstrip("\n"),
    }  # fmt: skip


@settings(max_examples=40)
@given(TEXTS)
def test_gitlab_takes_the_variables_and_expands_nothing(text):
    read = ci_runner.dotenv(dotenv(ending_with(text)), {"CI_JOB_TOKEN": "secret", "PATH": "secret"})
    assert set(read) == {
        f"DEPLOYCTL_{name}" for name in ("VERDICT", "PHASE", "ROLLOUT", "EXIT_CODE", "SERVICE", "CANDIDATE")
    }
    assert read["DEPLOYCTL_ROLLOUT"] == "digits-1-beef"
    assert "secret" not in "".join(read.values())


@settings(max_examples=40)
@given(TEXTS)
def test_junit_is_valid_and_says_it_as_it_is(text):
    suite = ci_runner.junit(junit(ending_with(text)))
    assert suite.cases["null-rate"][0] == "failure"
    _, message, told = suite.cases["end"]
    assert [message, *map(str.strip, told.split("\n"))] == [one_line(text)] * 3
    for fact in ("12 of 19,000", "98 of 1,002", "+9.72 points [+6.00, +13.0]", "700 / 600"):
        assert fact in suite.cases["null-rate"][2]
    assert suite.properties["verdict"] == "fail"


MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
ALLOWED = {
    "heading", "paragraph", "inline", "table", "thead", "tbody", "tr", "th", "td", "bullet_list", "list_item", "text", "strong", "code_inline",
    "text_special",
    "code_block",
}  # fmt: skip


def rendered(source):
    """The kinds of tokens, what a reader sees as prose, and the texts in bold."""
    tokens = [*MARKDOWN.parse(source)]
    inside = [child for token in tokens for child in token.children or []]
    kinds = [re.sub("_(open|close)$", "", token.type) for token in [*tokens, *inside]]
    bold = "".join(
        {"strong_open": "\0", "strong_close": "\1"}.get(child.type, child.content) for child in inside
    )
    prose = "".join(child.content for child in inside if child.type != "code_inline")
    return kinds, prose, [text.replace("\u200b", "") for text in re.findall("\0([^\1]*)\1", bold)]


@settings(max_examples=40)
@given(TEXTS)
def test_markdown_holds_no_markup_of_users(text):
    source = markdown(ending_with(text), 1_000_000)
    kinds, prose, bold = rendered(source)
    assert set(kinds) <= ALLOWED
    assert [kinds.count(kind) for kind in ("heading", "tr", "th", "td", "list_item")] == [2, 4, 14, 14, 4]
    said = one_line(f"Version {text} was rolled back.").replace("\u200b", "")
    assert bold == [said, "What happened", "In detail", "What now"]
    assert not re.search(r"@\w|#\d", prose), "a mention or a reference to an issue"
    read = re.sub("`[^\n]*`|^    [^\n]*", "", source, flags=re.MULTILINE)
    assert not re.search(r"://|\bwww\.", read, re.IGNORECASE), "GitHub makes a link of it"


@settings(max_examples=40)
@given(TEXTS)
def test_code_says_it_as_it_is_in_a_cell(text):
    tokens = MARKDOWN.parse(f"| a | b |\n| --- | --- |\n| {markdown_code(text)} | end |\n")
    cells = [token for token in tokens if token.type == "inline"]
    seen = ["".join(child.content for child in cell.children).replace("\u200b", "") for cell in cells]
    assert seen == ["a", "b", one_line(text).replace("\u200b", ""), "end"]


@settings(max_examples=50)
@given(TEXTS, st.integers(0, 20_000), st.integers(0, 300))
def test_markdown_is_never_longer_than_asked_for(text, longest, events):
    ending = ending_with(text)
    ending = ending_with(text, events=ending.events * events, details=ending.details * events)
    short = markdown(ending, longest)
    assert len(short.encode()) <= longest
    assert short.startswith("### digits: rolled back") or longest < 100


def test_what_is_shortened_says_so_and_keeps_the_latest():
    events = tuple(ending_with(f"words {number}").events[0] for number in range(5000))
    text = markdown(ending_with("x", events=events), 1_000_000)
    assert "**What happened** (1000 of 5000)" in text
    assert "words 4999" in text
    assert "words 3999 " not in text


def test_of_too_many_problems_ten_are_shown_and_the_last_says_how_many_are_left():
    notes = tuple(
        Note("error", "lint", f"problem {number}", Place("a.yaml", number, 1)) for number in range(1, 31)
    )
    lines = ci_runner.commands_in("\n".join(workflow_commands(ending_with("x", notes=notes))))
    assert len(lines) == 10
    assert lines[8].data == "problem 9"
    assert lines[9].data.startswith("and 21 more;")


@pytest.mark.parametrize(
    ("result", "tag"),
    [("pass", "pass"), ("fail", "failure"), ("inconclusive", "skipped"), ("error", "error")],
)
def test_each_result_has_its_element(result, tag):
    suite = ci_runner.junit(junit(ending_with("x", checks=(Check("one", result, "why"),))))
    assert suite.cases["one"][0] == tag


def test_the_runner_of_these_tests_would_obey_a_command():
    text = "a\r ::set-output name=x::y%0Az\n12:00 ##[warning a=b;c=d]e\n::unknown::x"
    assert ci_runner.commands_in(text) == [
        ci_runner.Command("set-output", {"name": "x"}, "y\nz"),
        ci_runner.Command("warning", {"a": "b", "c": "d"}, "e"),
    ]
    with pytest.raises(ValueError, match="delimiter"):
        ci_runner.file_command("a<<b\nc\n")
    with pytest.raises(ValueError, match="invalid format"):
        ci_runner.dotenv("A=1\n\nB=2\n")
    assert ci_runner.dotenv("A=$B\n", {"B": "secret"}) == {"A": "secret"}
