"""The other side of the reports, as it is in the sources of those who read them: GitHub's runner, GitLab, the JUnit schemas.

Written down anew from ActionCommand.cs, FileCommandManager.cs (actions/runner), ParseDotenvArtifactService (GitLab), and the schemas of
Ant and Jenkins; nothing of deployctl is used here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from xml.etree import ElementTree as ET

REGISTERED = {
    "set-env", "set-output", "save-state", "add-mask", "add-path", "add-matcher", "remove-matcher", "debug", "warning",
    "error", "notice", "group", "endgroup", "echo", "stop-commands",
}  # fmt: skip
NET_LINES = re.compile("\r\n|\r|\n")


@dataclass(frozen=True)
class Command:
    """A command that the runner obeys."""

    name: str
    properties: dict[str, str] = field(default_factory=dict)
    data: str = ""


def commands_in(text: str) -> list[Command]:
    """Every workflow command in what a step printed, on either stream."""
    found = [_second_form(line) or _first_form(line) for line in NET_LINES.split(text)]
    return [command for command in found if command is not None]


def _second_form(line: str) -> Command | None:
    line = line.lstrip()
    if not line.startswith("::") or (end := line.find("::", 2)) < 0:
        return None
    return _command(line[2:end], ",", {"\r": "%0D", "\n": "%0A", ":": "%3A", ",": "%2C"}, line[end + 2 :])


def _first_form(line: str) -> Command | None:
    if (begin := line.find("##[")) < 0 or (end := line.find("]", begin)) < 0:
        return None
    escapes = {";": "%3B", "\r": "%0D", "\n": "%0A", "]": "%5D"}
    return _command(line[begin + 3 : end], ";", escapes, line[end + 1 :])


def _command(written: str, separator: str, escapes: dict[str, str], data: str) -> Command | None:
    name, _, properties = written.partition(" ")
    if name.lower() not in REGISTERED:
        return None
    pairs = [pair.split("=", 1) for pair in properties.strip().split(separator) if pair]
    return Command(
        name.lower(),
        {pair[0]: _unescaped(pair[1], escapes) for pair in pairs if len(pair) == 2 and pair[1]},
        _unescaped(data, {"\r": "%0D", "\n": "%0A"}),
    )


def _unescaped(text: str, escapes: dict[str, str]) -> str:
    for character, written in escapes.items():
        text = text.replace(written, character)
    return text.replace("%25", "%")


def file_command(text: str) -> dict[str, str]:
    """What `$GITHUB_OUTPUT` or `$GITHUB_ENV` sets. Raises ValueError where the runner would fail the step."""
    values, lines = {}, iter(text.split("\n")[: -1 if text.endswith("\n") else None])
    for line in lines:
        if not line:
            continue
        equals, heredoc = line.find("="), line.find("<<")
        if equals >= 0 and (heredoc < 0 or equals < heredoc):
            name, _, values_of = line.partition("=")
            values[name] = values_of
            continue
        name, _, delimiter = line.partition("<<")
        if heredoc < 0 or not name or not delimiter:
            raise ValueError(f"invalid format {line!r}")
        value = []
        for one in lines:
            if one == delimiter:
                break
            value.append(one)
        else:
            raise ValueError(f"matching delimiter not found {delimiter!r}")
        values[name] = "\n".join(value)
    return values


def dotenv(text: str, known: dict[str, str] | None = None) -> dict[str, str]:
    """The variables of a dotenv report, expanded as GitLab does. Raises ValueError where it would refuse the file."""
    if len(text.encode()) >= 5 * 1024:
        raise ValueError("too big")
    values = {}
    for line in text.splitlines(keepends=True):
        found = re.findall(r"^(.*?)=(.*)$", line, re.MULTILINE)
        if not found:
            raise ValueError(f"invalid format {line!r}")
        key, value = (part.strip() for part in found[-1])
        if not re.fullmatch(r"[A-Za-z0-9_]{1,255}", key):
            raise ValueError(f"invalid key {key!r}")
        values[key] = re.sub(
            r"\$\{?(\w+)\}?|%(\w+)%", lambda hit: (known or {}).get(hit[1] or hit[2], ""), value
        )
    if len(values) > 20:
        raise ValueError("too many variables")
    return values


@dataclass(frozen=True)
class Suite:
    """A JUnit file that any reader takes."""

    attributes: dict[str, str]
    properties: dict[str, str]
    cases: dict[str, tuple[str, str, str]]
    """Name of a case → (pass, failure, error or skipped; its message; its text)."""
    output: str


COUNTS = {"failures": "failure", "errors": "error", "skipped": "skipped"}


def junit(text: str) -> Suite:
    """Read a JUnit file, and hold it against what the schemas of Ant (windyroad) and Jenkins have in common."""
    assert not re.search("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text)
    root = ET.fromstring(text)
    assert root.tag == "testsuites"
    (suite,) = root
    assert suite.tag == "testsuite"
    assert {"name", "tests", "failures", "errors", "time", "hostname", "id", "package"} <= set(suite.keys())
    assert suite.get("name", "").strip()
    assert re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)?", suite.get("timestamp", ""))
    order = [child.tag for child in suite]
    assert order == ["properties", *["testcase"] * (len(order) - 3), "system-out", "system-err"]
    cases: dict[str, tuple[str, str, str]] = {}
    for case in suite.iterfind("testcase"):
        assert set(case.keys()) == {"name", "classname", "time"}
        assert float(case.get("time", "")) >= 0
        assert case.get("name"), "a case without a name is dropped"
        assert case.get("name") not in cases, "cases of one name are one to GitLab"
        assert len(case) <= 1
        for told in case:
            assert told.tag in {"failure", "error", "skipped"}
            assert {"message", "type"} == set(told.keys())
        result = case[0].tag if len(case) else "pass"
        message = case[0].get("message", "") if len(case) else ""
        cases[case.get("name", "")] = (result, message, (case[0].text or "") if len(case) else "")
    results = [result for result, _, _ in cases.values()]
    assert int(suite.get("tests", "")) == len(results)
    for attribute, tag in COUNTS.items():
        assert int(suite.get(attribute, "")) == results.count(tag)
    properties = {one.get("name", ""): one.get("value", "") for one in suite.iterfind("properties/property")}
    return Suite(dict(suite.items()), properties, cases, suite.findtext("system-out") or "")
