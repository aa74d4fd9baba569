"""A command's end as JUnit XML: one suite, one case for each metric of the gate and one for the end of the rollout.

What failed is a `failure`, what had not enough evidence is `skipped`, what could not be looked at is an `error`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from deployctl.views.ending import LONGEST_WORDS, Check, Ending
from deployctl.views.events import event_line
from deployctl.views.quoting import indented, one_line, shortened

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_LINES = 2000
"""Events in the suite's output; the latest are kept."""
_ELEMENTS = {"fail": "failure", "error": "error", "inconclusive": "skipped"}


def junit(ending: Ending) -> str:
    """The whole document. Its order of elements and attributes is that of the schemas of Ant and Jenkins alike."""
    root = Element("testsuites")
    suite = SubElement(root, "testsuite", _attributes(ending))
    properties = SubElement(suite, "properties")
    for name, value in _properties(ending):
        if value:
            SubElement(properties, "property", {"name": name, "value": _words(value)})
    classname = ".".join(["deployctl", *([ending.service] if ending.service else [])])
    for check in ending.checks:
        _add_case(suite, check, classname, _seconds(ending) if check is ending.checks[-1] else 0.0)
    SubElement(suite, "system-out").text = _lines(_output(ending))
    SubElement(suite, "system-err")
    indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{tostring(root, encoding="unicode")}\n'


def _attributes(ending: Ending) -> dict[str, str]:
    results = [check.result for check in ending.checks]
    attributes = {
        "name": _words(f"deployctl {ending.command} {ending.service}"),
        "tests": str(len(results)),
        "failures": str(results.count("fail")),
        "errors": str(results.count("error")),
        "skipped": str(results.count("inconclusive")),
        "time": f"{_seconds(ending):.3f}",
        "hostname": "localhost",
        "id": "0",
        "package": "deployctl",
    }
    wall = str(ending.events[0].get("wall") or "") if ending.events else ""
    return attributes | ({"timestamp": one_line(wall)[:19]} if len(wall) >= 19 else {})


def _properties(ending: Ending) -> Iterable[tuple[str, str]]:
    yield "verdict", ending.verdict
    yield "exit_code", str(ending.exit_code)
    yield "phase", ending.phase
    yield "rollout", ending.rollout
    yield "baseline", ending.baseline
    yield "candidate", ending.candidate


def _add_case(suite: Element, check: Check, classname: str, seconds: float) -> None:
    attributes = {"name": _words(check.name), "classname": _words(classname), "time": f"{seconds:.3f}"}
    case = SubElement(suite, "testcase", attributes)
    if (element := _ELEMENTS.get(check.result)) is not None:
        told = SubElement(case, element, {"message": _words(check.why), "type": check.result})
        told.text = _lines([check.why, *check.facts])


def _output(ending: Ending) -> Iterable[str]:
    yield ending.sentence
    if ending.where:
        yield ending.where
    for check in ending.checks:
        yield f"{check.name}: {check.result}"
        yield from (f"  {fact}" for fact in check.facts)
    yield from (event_line(event) for event in ending.events[-MOST_LINES:])
    yield from ending.details[:MOST_LINES]


def _seconds(ending: Ending) -> float:
    """How long the rollout took; the clock of a replayed log may begin anywhere."""
    at = [event["at"] for event in ending.events if isinstance(event.get("at"), int | float)]
    return float(max(at) - min(at)) if at else 0.0


def _words(text: str) -> str:
    return shortened(one_line(text), LONGEST_WORDS)


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(shortened(indented(line), LONGEST_WORDS) for line in lines)
