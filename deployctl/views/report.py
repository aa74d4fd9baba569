"""What a report says, on a terminal of 80 columns: the sentence first, then what it rests on, version by version.

Ids, classes and labels come from callers: nothing of them reaches the terminal but what can be printed, cut to its column.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.cells import set_cell_size
from rich.text import Text

from deployctl.core.agreement import Coefficient, Coverage
from deployctl.core.ceiling import AgainstPeople
from deployctl.core.proportion import Interval, Share
from deployctl.core.report import ClassRow, Comparison, Example, Labels, Matrix, Report, VersionReport
from deployctl.views import figures
from deployctl.views.console import Layout

SCHEMA_VERSION = 1
PROSE = 88
"""Sentences are wrapped at this width, or at the screen's."""

FEW_CLASSES, FEW_EXAMPLES, FEW_CONFUSIONS = 12, 8, 5
"""Lines of a table on a screen; the rest is in the page and in the JSON document."""

NO_ANSWER = "(no answer)"
STATES = {
    "below": "below the others",
    "above": "above the others",
    "like": "",
    "insufficient": "insufficient",
}


def document(report: Report) -> dict[str, Any]:
    """The whole report for programs: shares and intervals are fractions, latencies milliseconds, delays seconds."""
    whole = asdict(report)
    for said in whole["decision"]["candidates"]:
        said["result"] = said["result"].value
        for metric in said["metrics"]:
            metric["result"] = metric["result"].value
    return {"schema_version": SCHEMA_VERSION, **whole}


def report_lines(report: Report, layout: Layout) -> Iterator[Text]:
    """The report for a person."""
    sentences = [report.sentence, *(one.sentence for one in report.comparisons), report.decision.sentence]
    for at, sentence in enumerate(sentences):
        for line in wrapped(sentence, min(PROSE, layout.width)):
            yield Text(line, style="" if at else "bold")
    yield Text()
    yield Text(f"rollout {report.rollout} of {report.service}, {report.strategy}", style="dim")
    yield from _label_lines(report.labels)
    for version in report.versions:
        yield Text()
        yield from _version_lines(version)
    for comparison in report.comparisons:
        if not comparison.differ.n:
            continue
        yield Text()
        yield from _comparison_lines(comparison)
    yield Text()
    yield Text("Intervals are of 95 % and for one look at the labels; the rollout's own", style="dim")
    yield Text("verdict holds however often it was looked at.", style="dim")


def _label_lines(labels: Labels) -> Iterator[Text]:
    people = labels.people
    yield Text()
    yield Text("people", style="bold")
    yield _fact("labels", labels_words(labels))
    if labels.disputed or labels.waiting:
        yield _fact(
            "left out", f"{requests(labels.disputed)} disputed, {labels.waiting:,} with too few votes"
        )
    if labels.disputed_ids:
        yield _fact("disputed", ", ".join(clip(one, 24).rstrip() for one in labels.disputed_ids[:2]) + " …")
    if unused := unused_words(labels):
        yield _fact("unused", unused)
    if people.doubly:
        yield _fact(
            "each other",
            f"two people {share(people.pairwise)}, one with the rest {share(people.one_with_rest)}, "
            f"alpha {number(people.alpha)}",
        )
    yield _fact("labelled by two", requests(people.doubly) if people.doubly else "none: ceiling unknown")


def _version_lines(version: VersionReport) -> Iterator[Text]:
    yield Text(f"version {printable(version.version)}, {version.role}", style="bold")
    yield _fact("agreement", agreement_words(version.agreement))
    if version.agreement.wilson:
        yield _fact("95 % interval", interval_words(version.agreement))
    yield _fact("answers", answers_words(version))
    yield _fact("labelled", coverage_words(version.coverage))
    if version.kappa:
        yield _fact("kappa", coefficient_words(version.kappa))
    if version.ac1:
        yield _fact("AC1", coefficient_words(version.ac1))
    if version.against:
        yield _fact("as a person", against_words(version.against))
        yield _fact("", against_difference(version.against))
    if fit := version.calibration:
        yield _fact("calibration", f"error (ECE) {fit.ece:.3f}, Brier score {fit.brier:.3f}")
        surest = min(fit.risks, key=lambda point: abs(point.coverage - 0.5))
        yield _fact(
            "",
            f"the surest {share(surest.coverage)}: {share(surest.risk)} wrong; all: {share(fit.risks[-1].risk)}",
        )
    if version.accepted.n:
        yield _fact("when shown", f"people took {share(version.accepted.share)} of {version.accepted.n:,}")
    yield from _class_lines(version)
    yield from _confusion_lines(version.matrix)
    yield from _example_lines(version)


def _class_lines(version: VersionReport) -> Iterator[Text]:
    if not version.classes:
        return
    yield Text()
    yield Text(f"  {'class':<16}{'people say':>10}{'agrees':>9}  {'Holm interval':<18}{'labelled':>9}", "dim")
    for row in version.classes[:FEW_CLASSES]:
        yield Text(_class_line(row))
    more = len(version.classes) - FEW_CLASSES + version.more_classes
    if more > 0:
        yield Text(f"  and {more:,} more")


def _class_line(row: ClassRow) -> str:
    name = clip(class_name(row.name), 15)
    line = f"  {name} {row.n:>10,}{share(row.recall):>9}  {between(row.interval):<18}"
    return f"{line}{share(row.coverage.share):>9}  {STATES[row.state]}".rstrip()


def _confusion_lines(matrix: Matrix) -> Iterator[Text]:
    found = sorted(
        (-count, at, to)
        for at, line in enumerate(matrix.counts)
        for to, count in enumerate(line)
        if at != to and count
    )[:FEW_CONFUSIONS]
    names = [*(class_name(name) for name in matrix.names), "(another)"]
    if found:
        yield Text()
        yield Text(f"  {'people say':<20}{'it says':<20}{'times':>8}", "dim")
    for count, at, to in found:
        yield Text(f"  {clip(names[at], 19)} {clip(names[to], 19)} {-count:>7,}")


def _example_lines(version: VersionReport) -> Iterator[Text]:
    if not version.examples:
        return
    yield Text()
    yield Text(f"  {'surest and wrong':<26}{'it says':<16}{'people say':<16}{'sure':>6}  votes for it", "dim")
    for one in version.examples[:FEW_EXAMPLES]:
        yield Text(_example_line(one))
    if (more := version.contradicted - FEW_EXAMPLES) > 0:
        yield Text(f"  and {more:,} more answers that people contradict")


def _example_line(one: Example) -> str:
    says = clip(class_name(one.predicted), 15)
    people = clip(one.label if one.label is not None else "(a tie)", 15)
    return f"  {clip(one.id or '(no id)', 25)} {says} {people} {number(one.confidence):>6}  {one.for_it} of {one.votes}"


def _comparison_lines(one: Comparison) -> Iterator[Text]:
    yield Text(f"version {printable(one.second)} beside {printable(one.first)}", style="bold")
    paired = one.paired
    if paired.difference:
        low, high = paired.difference.interval
        yield _fact(
            "difference",
            f"{figures.points(paired.difference.difference)} points [{figures.points(low)}, {figures.points(high)}] "
            f"on {paired.n:,} (Bonett-Price)",
        )
        yield _fact(
            "one alone right",
            f"{printable(one.first)}: {paired.first_only:,}, {printable(one.second)}: {paired.second_only:,}; "
            f"exact McNemar p = {p_value(paired.p_value)}",
        )
    if one.differ.n:
        yield _fact("other answer", f"{share(one.differ.share)} of {one.differ.n:,} requests")
    if late := one.latency:
        yield _fact(
            "latency",
            f"{late.difference_p50:+.1f} ms median, {late.difference_p95:+.1f} ms p95, slower on {share(late.slower)}",
        )


# ── the words, for this screen and for the page ──────────────────────────────────────────────────────────────────────


def wrapped(sentence: str, width: int) -> list[str]:
    """A sentence in lines, no number apart from its percent sign."""
    kept = printable(sentence).replace(" %", "\N{NO-BREAK SPACE}%")
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in textwrap.wrap(kept, width)]


def labels_words(labels: Labels) -> str:
    """How many, by whom, by which rule."""
    people = "person" if labels.annotators == 1 else "people"
    by = f" by {labels.annotators:,} {people}" if labels.annotators else ""
    rule = f"{labels.adjudicate} of {labels.votes_needed}" if labels.votes_needed > 1 else labels.adjudicate
    votes = "1 vote" if labels.votes == 1 else f"{labels.votes:,} votes"
    return f"{votes}{by} on {requests(labels.labelled)}, adjudicated by {printable(rule)}"


def requests(n: int) -> str:
    """So many requests."""
    return "1 request" if n == 1 else f"{n:,} requests"


def unused_words(labels: Labels) -> str:
    """Votes that were used for nothing, and why."""
    reasons = (
        (labels.foreign, "of no class of the manifest"),
        (labels.unmatched, "of no known request, or of two"),
        (labels.shown, "of people who saw the answer"),
    )
    return ", ".join(f"{n:,} {why}" for n, why in reasons if n)


def agreement_words(agreement: Share) -> str:
    """`94.1 % (1,133 of 1,204)`."""
    if agreement.share is None:
        return "unknown: nobody has labelled an answer"
    return f"{share(agreement.share)} ({agreement.hits:,.10g} of {agreement.n:,})"


def interval_words(agreement: Share) -> str:
    """Both intervals."""
    exact = f", {between(agreement.exact)} (Clopper-Pearson)" if agreement.exact else ""
    return f"{between(agreement.wilson)} (Wilson){exact}"


def answers_words(version: VersionReport) -> str:
    """How many, and what was wrong with them without asking anybody."""
    return f"{version.answers:,}, of which {version.failed:,} failed and {version.nulls:,} were empty"


def coverage_words(coverage: Coverage) -> str:
    """How many were labelled, and how late."""
    words = f"{share(coverage.share)} of {coverage.answered:,}"
    if coverage.delay_p50 is None:
        return words
    return f"{words}, after {duration(coverage.delay_p50)} (p50), {duration(coverage.delay_p95)} (p95)"


def coefficient_words(one: Coefficient) -> str:
    """`0.88 (0.85 to 0.91)`."""
    low, high = one.interval
    largest = f", at most {one.largest:.2f} with these classes" if one.largest is not None else ""
    return f"{one.value:.2f} ({low:.2f} to {high:.2f}){largest}"


def against_words(one: AgainstPeople) -> str:
    """A person and the version with the same others."""
    return f"a person {share(one.person)}, the version {share(one.version)} with the same others"


def against_difference(one: AgainstPeople) -> str:
    """By how much the version is above or below a person."""
    low, high = (figures.points(end) for end in one.difference.interval)
    return f"{figures.points(one.difference.difference)} points [{low}, {high}] on {one.n:,} requests"


def class_name(name: str | None) -> str:
    """A class, or what stands for none."""
    return NO_ANSWER if name is None else printable(name)


def share(value: float | None) -> str:
    """A share with one decimal: `94.1 %`."""
    return figures.UNKNOWN if value is None else f"{100 * value:.1f} %"


def between(interval: Interval | None) -> str:
    """`92.6 to 95.3 %`."""
    return "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def number(value: float | None) -> str:
    """A coefficient or a confidence."""
    return figures.UNKNOWN if value is None else f"{value:.3g}"


def p_value(value: float) -> str:
    """A p-value as far as anybody should read it."""
    return f"{value:.2g}" if value >= 1e-6 else "0.000001 or less"


def duration(seconds: float | None) -> str:
    """Seconds in the unit that fits."""
    if seconds is None:
        return figures.UNKNOWN
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def printable(text: str) -> str:
    """Without anything that could move a cursor or turn text around."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def clip(text: str, cells: int) -> str:
    """Exactly so many cells of text; what is cut ends in `…`."""
    text = printable(text[: 4 * cells])
    fitting = set_cell_size(text, cells)
    return fitting if fitting.rstrip() == text.rstrip() else set_cell_size(text, cells - 1) + "…"


def _fact(name: str, words: str) -> Text:
    return Text.assemble((f"  {name:<16}", "dim"), words)
