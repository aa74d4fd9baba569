"""The report as one page that needs nothing beside it: no script, no font, no network, and every chart has its table.

Whatever callers and people named (ids, classes, labels, versions) goes through `text`: printable, cut to its room, escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from deployctl.core.agreement import Coefficient
from deployctl.core.ceiling import AgainstPeople
from deployctl.core.report import ClassRow, Comparison, Matrix, Report, VersionReport
from deployctl.views import figures
from deployctl.views import report as words
from deployctl.views.charts import Axis, Range, axis_for, curve, ranges
from deployctl.views.report_style import STYLE

LONGEST_NAME, LONGEST_SENTENCE = 60, 1_200
MARK_CELLS = 15
"""Columns of text that a chart has room for beside a row."""

CHART_CLASSES = 16
NAMED_COLUMNS = 6
"""A confusion matrix with more columns numbers them."""

RESULTS = {"pass": "pass", "fail": "fail", "inconclusive": "not enough evidence", None: "no verdict"}
PHASES = {"promoted": "promoted", "rolled_back": "rolled back", "retired": "retired"}


def report_page(report: Report) -> str:
    """The whole document."""
    title = f"{text(report.service)}: report of rollout {text(report.rollout)}"
    body = "".join([_header(report), *_glance(report), *_versions(report), *_reading(report)])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
        f'<link rel="icon" href="data:,"><title>{title}</title><style>{STYLE}</style></head>'
        f"<body><main>{body}</main></body></html>\n"
    )


def text(value: str | None, at_most: int = LONGEST_NAME) -> str:
    """Somebody else's words, fit for a page; no number is parted from its percent sign."""
    shown = words.class_name(value)
    cut = shown if len(shown) <= at_most else shown[: at_most - 1] + "…"
    return escape(cut.replace(" %", "\N{NO-BREAK SPACE}%"))


def _mark(name: str | None) -> str:
    """A name beside a row of a chart."""
    return text(words.clip(words.class_name(name), MARK_CELLS).rstrip())


# ── the sentence ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _header(report: Report) -> str:
    decision = report.decision
    state = PHASES.get(decision.phase, "still running")
    kind = decision.result or "open"
    badge = f"{state} · {RESULTS[decision.result]}" if decision.result else state
    compared = "".join(
        f"<p>{text(one.sentence, LONGEST_SENTENCE)}</p>" for one in report.comparisons if one.differ.n
    )
    return (
        f'<header><p class="kicker">{text(report.service)} <span>rollout {text(report.rollout)}, '
        f'{text(report.strategy)}</span></p><h1 id="verdict">{text(report.sentence, LONGEST_SENTENCE)}</h1>'
        f'{compared}<p class="decision"><span class="badge {kind}">{badge}</span> '
        f"{text(decision.sentence, LONGEST_SENTENCE)}</p></header>"
    )


def _glance(report: Report) -> Iterator[str]:
    labels = report.labels
    yield f'<section class="tiles" aria-label="Key figures">{"".join(_tiles(report))}</section>'
    yield "<section><h2>People and versions</h2>"
    yield f"<p>{text(words.labels_words(labels), 200)}."
    if labels.disputed or labels.waiting:
        yield (
            f" Left out: {words.requests(labels.disputed)} of which as many people say one thing as another, and "
            f"{labels.waiting:,} with too few votes."
        )
    if unused := words.unused_words(labels):
        yield f" Used for nothing: {unused}."
    yield "</p>"
    judged = [one for one in report.versions if one.agreement.share is not None]
    if judged:
        yield _agreement(judged)
    beside = [one for one in judged if one.against]
    if beside:
        yield _in_a_persons_place(beside, report)
    elif judged:
        yield '<p class="unknown">The ceiling is unknown: nobody labelled a request twice. Let two people label some.</p>'
    for comparison in report.comparisons:
        if comparison.differ.n:
            yield _compared(comparison)
    if labels.disputed_ids:
        shown = ", ".join(f"<code>{text(one)}</code>" for one in labels.disputed_ids)
        yield f'<p class="ids"><b>Disputed, among others:</b> {shown}</p>'
    yield "</section>"


def _tiles(report: Report) -> Iterator[str]:
    tried = [one for one in report.versions if one.role == "candidate"] or list(report.versions)
    for one in tried[:4]:
        agreement = one.agreement
        under = (
            f"{words.between(agreement.wilson)}, {agreement.n:,} labelled" if agreement.n else "no labels yet"
        )
        yield _tile(
            f"Version {text(one.version, 24)} agrees with people", words.share(agreement.share), under
        )
    people = report.labels.people
    under = (
        f"on {people.doubly:,} requests labelled twice or more"
        if people.doubly
        else "nobody labelled a request twice"
    )
    yield _tile("Two people agree", words.share(people.pairwise) if people.doubly else "unknown", under)
    first = tried[0]
    if first.kappa:
        low, high = first.kappa.interval
        yield _tile("Beyond chance (κ)", f"{first.kappa.value:.2f}", f"{low:.2f} to {high:.2f}")
    covered = first.coverage
    late = (
        f"half of them within {words.duration(covered.delay_p50)}"
        if covered.delay_p50 is not None
        else "none yet"
    )
    yield _tile("Answers labelled", words.share(covered.share), late)


def _tile(name: str, value: str, under: str) -> str:
    return f'<div class="tile"><p class="of">{name}</p><p class="value">{value}</p><p class="under">{under}</p></div>'


def _agreement(versions: Sequence[VersionReport]) -> str:
    rows, values = [], []
    for one in versions:
        assert one.agreement.share is not None
        share, interval = one.agreement.share, one.agreement.wilson
        name = _mark(f"version {one.version}")
        rows.append(
            Range(name, share, interval, f"{words.share(share)}, {words.between(interval)}", one.role)
        )
        values += [share, *(interval or ())]
    chart = ranges(
        "How often each version agrees with people, with its 95 % interval", rows, axis_for(values)
    )
    head = ("version", "labels", "agrees", "95 %, Wilson", "95 %, exact")
    table = _table("Agreement with people", head, map(_agreement_cells, versions))
    chance = _table(
        "Agreement beyond chance",
        ("beyond chance", "κ", "95 %", "at most", "AC1", "95 %"),
        (
            (_who(one), *_coefficient(one.kappa, largest=True), *_coefficient(one.ac1, largest=False))
            for one in versions
        ),
    )
    return _figure("Agreement with people", chart, table + chance)


def _agreement_cells(one: VersionReport) -> tuple[str, ...]:
    agreement = one.agreement
    return (
        _who(one),
        f"{agreement.n:,}",
        words.share(agreement.share),
        words.between(agreement.wilson),
        words.between(agreement.exact) or "not for shares",
    )


def _coefficient(one: Coefficient | None, *, largest: bool) -> list[str]:
    """κ has what it can be at most, AC1 has not."""
    if one is None:
        return ["unknown"] + [""] * (2 if largest else 1)
    low, high = one.interval
    cells = [f"{one.value:.2f}", f"{low:.2f} to {high:.2f}"]
    return [*cells, f"{one.largest:.2f}" if one.largest is not None else ""] if largest else cells


def _who(one: VersionReport) -> str:
    return f'{text(one.version)} <span class="role">{one.role}</span>'


def _in_a_persons_place(versions: Sequence[VersionReport], report: Report) -> str:
    rows, values, lines = [], [0.0], []
    for one in versions:
        beside = one.against
        assert beside is not None
        difference = beside.difference
        name = _mark(f"version {one.version}")
        rows.append(
            Range(
                name, difference.difference, difference.interval, words.against_difference(beside), one.role
            )
        )
        values += [difference.difference, *difference.interval]
        lines.append(_person_line(one, beside))
    chart = ranges(
        "By how many points a version agrees with people more than a person does, with its 95 % interval; 0 is a person",
        rows,
        axis_for(values, low=-1.0),
        reference=0.0,
        points=True,
    )
    head = ("version", "a person", "the version", "difference, points", "requests")
    people = report.labels.people
    note = (
        f"One person is left out at a time and compared with what most of the others say; the version is compared with the same "
        f"others, on the same requests, disputed ones included. Krippendorff's alpha of the people is {words.number(people.alpha)}."
    )
    return _figure("In a person's place", chart, _table("In a person's place", head, lines), note)


def _person_line(one: VersionReport, beside: AgainstPeople) -> tuple[str, ...]:
    low, high = (figures.points(end) for end in beside.difference.interval)
    return (
        _who(one),
        words.share(beside.person),
        words.share(beside.version),
        f"{figures.points(beside.difference.difference)} [{low}, {high}]",
        f"{beside.n:,}",
    )


def _compared(one: Comparison) -> str:
    first, second = text(one.first), text(one.second)
    lines, chart = [], ""
    if one.paired.difference:
        found = one.paired.difference
        low, high = (figures.points(end) for end in found.interval)
        lines += [
            ("difference, points", f"{figures.points(found.difference)} [{low}, {high}]"),
            ("labelled requests that both answered", f"{one.paired.n:,}"),
            (f"only {first} right", f"{one.paired.first_only:,}"),
            (f"only {second} right", f"{one.paired.second_only:,}"),
            ("exact McNemar p", words.p_value(one.paired.p_value)),
        ]
        chart = ranges(
            f"By how many points version {second} is right more often than version {first}, with its 95 % interval",
            [
                Range(
                    _mark(f"{one.second} against {one.first}"),
                    found.difference,
                    found.interval,
                    "",
                    "candidate",
                )
            ],
            axis_for([0.0, found.difference, *found.interval], low=-1.0),
            reference=0.0,
            points=True,
        )
    lines.append(("another answer", f"{words.share(one.differ.share)} of {one.differ.n:,}"))
    if late := one.latency:
        lines += [
            ("later, median", f"{late.difference_p50:+.1f} ms"),
            ("later, p95", f"{late.difference_p95:+.1f} ms"),
            ("slower", f"on {words.share(late.slower)} of requests"),
        ]
    heading = f"Version {second} against version {first}"
    note = "On the same requests, so what is hard is as hard for both. The interval is Bonett and Price's for pairs."
    return _figure(heading, chart, _table(heading, (), lines), note)


# ── version by version ───────────────────────────────────────────────────────────────────────────────────────────────


def _versions(report: Report) -> Iterator[str]:
    for one in sorted(report.versions, key=lambda version: version.role == "baseline"):
        yield f'<section class="version"><h2>Version {text(one.version)}, {one.role}</h2><p>Answers: {words.answers_words(one)}.'
        yield f" Labelled: {words.coverage_words(one.coverage)}."
        if one.accepted.n:
            yield (
                f" People who saw the answer first took it {words.share(one.accepted.share)} of {one.accepted.n:,} times, "
                f"which is no evidence that it is right."
            )
        yield "</p>"
        if one.classes:
            yield _by_class(one)
            yield _labels_by_class(one)
            yield _confusion(one.matrix)
        if one.calibration and one.agreement.n:
            yield from _calibration(one)
        if one.examples:
            yield _examples(one)
        yield "</section>"


def _by_class(one: VersionReport) -> str:
    charted = [row for row in one.classes if row.recall is not None and row.interval][:CHART_CLASSES]
    chart = ""
    if charted:
        rows = [
            Range(
                _mark(row.name),
                row.recall or 0.0,
                row.interval,
                f"{words.share(row.recall)}, {words.between(row.interval)}",
                row.state,
            )
            for row in charted
        ]
        values = [value for row in rows for value in (row.value, *(row.interval or ()))]
        overall = one.agreement.share if one.agreement.share is not None else None
        inside = values + ([overall] if overall is not None else [])
        chart = ranges(
            "Agreement by class, with Holm-corrected 95 % intervals; the line is the agreement on all",
            rows,
            axis_for(inside),
            reference=overall,
        )
    head = ("people say", "labels", "agrees", "interval", "")
    table = _table("Agreement by class", head, map(_class_cells, one.classes))
    note = "Classes by what people say. Intervals and verdicts hold for all classes together (Holm); none is given with fewer than 30 labels."
    if one.more_classes:
        note += f" {one.more_classes:,} rarer classes are not shown."
    return _figure("Agreement by class", chart, table, note)


def _class_cells(row: ClassRow) -> tuple[str, ...]:
    return (
        text(row.name),
        f"{row.n:,}",
        words.share(row.recall),
        words.between(row.interval),
        f'<span class="state {row.state}">{words.STATES[row.state] or "like the others"}</span>',
    )


def _labels_by_class(one: VersionReport) -> str:
    head = ("it says", "answers", "labelled", "share", "label after, p50", "p95", "right (precision)")
    table = _table("Labels by class", head, map(_label_cells, one.classes))
    note = (
        "Classes by what the version says. Where the labelled share differs much between them, the agreement on all is that of the "
        "labelled ones, and not of all answers."
    )
    return _figure("Labels by class", "", table, note)


def _label_cells(row: ClassRow) -> tuple[str, ...]:
    covered = row.coverage
    return (
        text(row.name),
        f"{covered.answered:,}",
        f"{covered.labelled:,}",
        words.share(covered.share) if covered.answered else "",
        words.duration(covered.delay_p50) if covered.labelled else "",
        words.duration(covered.delay_p95) if covered.labelled else "",
        words.share(row.precision) if row.precision is not None else "",
    )


def _confusion(matrix: Matrix) -> str:
    names = [text(name) for name in matrix.names]
    if matrix.others:
        names.append(f"{matrix.others:,} others")
    numbered = len(names) > NAMED_COLUMNS
    heads = "".join(
        f'<th scope="col"><abbr title="{name}">{at}</abbr></th>'
        if numbered
        else f'<th scope="col">{name}</th>'
        for at, name in enumerate(names, 1)
    )
    lines = []
    for at, (name, counts) in enumerate(zip(names, matrix.counts, strict=True)):
        total = sum(counts) or 1
        cells = "".join(_heat(count, count / total, same=at == to) for to, count in enumerate(counts))
        number = f'<span class="number">{at + 1}</span> ' if numbered else ""
        lines.append(f'<tr><th scope="row">{number}{name}</th>{cells}</tr>')
    table = (
        f'<table class="matrix"><caption class="hidden">Confusion: lines are what people say, columns what the version says</caption>'
        f'<thead><tr><th scope="col">people say ↓ · it says →</th>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    )
    return (
        f'<h3>Confusion</h3><div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix">{table}</div>'
        '<p class="note">Lines are what most people say, columns what the version says; the shade is the share of the line.</p>'
    )


def _heat(count: int, share: float, *, same: bool) -> str:
    kind = "same" if same else "other"
    if not count:
        return '<td class="none">0</td>'
    return f'<td class="{kind}" style="--heat:{100 * share:.0f}%">{count:,}</td>'


def _calibration(one: VersionReport) -> Iterator[str]:
    fit = one.calibration
    assert fit is not None
    places = [(part.confidence, part.right) for part in fit.bins]
    axis = axis_for([value for place in places for value in place])
    chart = curve(
        "How often answers of like confidence are right; on the line they are as often right as they are sure",
        places,
        (axis, axis),
        ("confidence", "right"),
        diagonal=True,
    )
    head = ("confidence", "answers", "mean", "right")
    table = _table(
        "Calibration",
        head,
        (
            (
                f"{part.low:.2f} to {part.high:.2f}",
                f"{part.n:,}",
                words.share(part.confidence),
                words.share(part.right),
            )
            for part in fit.bins
        ),
    )
    without = f" {fit.left_out:,} answers had no confidence." if fit.left_out else ""
    note = f"Expected calibration error {fit.ece:.3f}, Brier score of the answer given {fit.brier:.3f}; lower is better.{without}"
    yield _figure("As sure as it is right?", chart, table, note)
    yield _risk(one)


def _risk(one: VersionReport) -> str:
    fit = one.calibration
    assert fit is not None
    risks = [point.risk for point in fit.risks]
    chart = curve(
        "The share of wrong answers among the surest ones, by how many of them are kept",
        [(point.coverage, point.risk) for point in fit.risks],
        (Axis(0.0, 1.0, 0.25), axis_for([0.0, *risks])),
        ("kept, surest first", "wrong"),
    )
    head = ("kept", "sure at least", "answers", "wrong")
    shown = [point for at, point in enumerate(fit.risks) if at % 2 or len(fit.risks) <= 10]
    table = _table(
        "Leaving the unsure to people",
        head,
        (
            (words.share(point.coverage), f"{point.confidence:.3f}", f"{point.n:,}", words.share(point.risk))
            for point in shown
        ),
    )
    note = "What would be wrong if the version answered alone where it is surest, and people did the rest."
    return _figure("Leaving the unsure to people", chart, table, note)


def _examples(one: VersionReport) -> str:
    head = ("request", "it says", "people say", "sure", "votes for it")
    table = _table(
        "Surest and wrong",
        head,
        (
            (
                f"<code>{text(each.id) if each.id else 'no id'}</code>",
                f'<span class="long">{text(each.predicted)}</span>',
                f'<span class="long">{text(each.label) if each.label is not None else "a tie"}</span>',
                words.number(each.confidence),
                f"{each.for_it} of {each.votes}",
            )
            for each in one.examples
        ),
    )
    return (
        f"<h3>Surest and wrong</h3>{table}"
        f'<p class="note">{len(one.examples)} of {one.contradicted:,} answers that people contradict. Look at them: '
        "here a version is blind, or people are wrong.</p>"
    )


# ── how to read it ───────────────────────────────────────────────────────────────────────────────────────────────────

READING = (
    ("Agreement", "the share of labelled answers that say what people say. People err too, so it is read beside the next line."),
    ("A person", "how often one person says what most of the others say of the same request. A version above that is better than one person."),
    ("κ and AC1", "agreement beyond chance: 1 is all of it, 0 is what chance gives. κ falls where one class is frequent, AC1 does not."),
    ("Intervals", "hold the true value in 95 of 100 reports, for one look at these labels. Requests count as independent; where one caller sends many that are alike, they are too narrow."),
    ("The rollout's verdict", "rests on evidence that holds however often it was looked at, with the margins of its manifest; this page decides nothing."),
)  # fmt: skip


def _reading(report: Report) -> Iterator[str]:
    yield '<section class="reading"><h2>How to read this</h2><dl>'
    yield from (f"<dt>{name}</dt><dd>{meaning}</dd>" for name, meaning in READING)
    yield f"</dl></section><footer><p>Made by deployctl from the log of rollout {text(report.rollout)}; nothing is loaded from elsewhere.</p></footer>"


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _figure(heading: str, chart: str, table: str, note: str = "") -> str:
    drawn = f'<div class="chart">{chart}</div>' if chart else ""
    said = f'<p class="note">{note}</p>' if note else ""
    return f'<h3>{heading}</h3><div class="pair{"" if chart else " alone"}">{drawn}<div>{table}</div></div>{said}'


def _table(name: str, head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already; the first of a line is its heading."""
    heads = "".join(f'<th scope="col">{one}</th>' if one else "<td></td>" for one in head)
    above = f"<thead><tr>{heads}</tr></thead>" if head else ""
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in lines
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}, table"><table>'
        f'<caption class="hidden">{name}</caption>{above}<tbody>{body}</tbody></table></div>'
    )
