"""The status of a service: where its rollout stands, the evidence per metric, and what is still needed.

Values in, lines out: every fact is on a line of its own or in a column as wide as its longest value, so nothing is cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.text import Text

from deployctl.views import figures
from deployctl.views.console import Layout, fold

WIDE = 170
"""From this width on, one line per metric; below it, a few short lines for each."""

FACTS = 11
"""The column in which facts begin."""

PHASE_STYLES = {
    "pending": "cyan",
    "progressing": "bold cyan",
    "paused": "bold yellow",
    "promoted": "bold green",
    "rolled_back": "bold red",
    "retired": "bold",
}
VERDICT_STYLES = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}

Document = dict[str, Any]


def status_lines(status: Document, layout: Layout) -> list[Text]:
    """The whole status, as lines for a terminal of this width."""
    lines = [_headline(status)]
    if status.get("rollout") and status.get("candidate"):
        lines += _weight_lines(status, layout)
        lines += metric_lines(status.get("metrics") or [], layout)
        lines += [_fact("now", words) for words in _waiting_words(status)]
    if files := status.get("label_files"):
        lines.append(_fact("labels", _files_words(files)))
    if trouble := status.get("trouble"):
        lines.append(_fact("trouble", str(trouble)))
    lines += [_fact("webhook", words) for words in map(_hook_words, status.get("webhooks") or []) if words]
    lines += [_fact("upgrade", words) for words in _upgrade_words(status)]
    lines.append(_fact("url", str(status.get("url") or figures.UNKNOWN)))
    lines.append(_fact("pids", _pids(status.get("pids") or {})))
    return [piece for line in lines for piece in fold(line, FACTS, layout)]


def status_line(status: Document) -> str:
    """The status on one line, for a log."""
    parts = [_name(status), phase_words(status.get("phase"))]
    if status.get("rollout") and status.get("candidate"):
        parts += [
            _step_words(status),
            _share_words(status),
        ]
    else:
        parts.append(
            f"version {label(status.get('live'))} serves"
            if status.get("live") is not None
            else "people decide"
        )
    for metric in status.get("metrics") or []:
        arms = f"{figures.arm(metric.get('baseline'))} | {figures.arm(metric.get('candidate'))}"
        parts.append(f"{metric.get('name')} {verdict_of(metric)}: {arms}")
    return "  ".join(part for part in parts if part)


def metric_lines(metrics: Iterable[Document], layout: Layout) -> list[Text]:
    """Each metric with both arms' counts, effect with interval, evidence against its threshold, what is needed."""
    rows = list(metrics)
    if not rows:
        return []
    if layout.width >= WIDE:
        return _table(rows, layout)
    return [line for row in rows for line in _block(row, layout)]


def label(version: Any) -> str:
    """The human label of a version, written as a string or as a document."""
    if isinstance(version, dict):
        version = version.get("version")
    return figures.UNKNOWN if version is None else str(version)


def verdict_of(metric: Document) -> str:
    """pass, fail or inconclusive."""
    return str(metric.get("verdict") or metric.get("result") or "inconclusive")


def phase_words(phase: Any) -> str:
    """A phase as people say it."""
    return str(phase or "serving").replace("_", " ")


def evidence_of(metric: Document) -> list[tuple[str, float | None, float | None]]:
    """The kinds of evidence that a metric has, each with its value and its threshold."""
    harm = (metric.get("evidence"), metric.get("threshold"))
    if metric.get("safe_threshold") is None:
        return [("evidence", *harm)]
    return [("harm", *harm), ("safe", metric.get("safe_evidence"), metric.get("safe_threshold"))]


def needed_words(metric: Document) -> str:
    """What is still missing for a pass."""
    if verdict_of(metric) != "inconclusive":
        return ""
    needed = metric.get("needed")
    if isinstance(needed, int | float):
        return f"needs about {figures.count(needed)} more candidate answers"
    return str(needed or "")


def _name(status: Document) -> str:
    return str(status.get("service") or figures.UNKNOWN)


def _headline(status: Document) -> Text:
    phase = status.get("phase") if status.get("rollout") else None
    line = Text(_name(status), style="bold")
    line.append("  ")
    line.append(phase_words(phase), style=PHASE_STYLES.get(str(phase), "bold green"))
    if status.get("rollout"):
        line.append(f"  {_versions_words(status)}", style="default not bold")
        line.append(f"  rollout {status['rollout']}", style="dim not bold")
    line.append(f"  live {_live(status)}", style="default not bold")
    if status.get("previous") is not None:
        line.append(f"  previous {label(status['previous'])}", style="dim not bold")
    return line


def _hook_words(hook: Document) -> str:
    """What one webhook has been asked or told, and what came of it."""
    words, last, tries = f"{hook.get('name')} ({hook.get('type')})", hook.get("last"), hook.get("tries")
    if hook.get("waiting"):
        words += f": asked {tries} times" if tries else ": not asked yet"
        return f"{words}, {last}" if last else words
    if hook.get("behind") and last:
        return f"{words}: {hook['behind']} events wait to be taken, {last}"
    if hook.get("given_up"):
        return f"{words}: {hook['given_up']} events were given up, {last}"
    return ""


def _upgrade_words(status: Document) -> list[str]:
    """What is left of an upgrade, and what is in its way; nothing where there is none."""
    upgrade = status.get("upgrade") or {}
    left = ", ".join(upgrade.get("left") or [])
    words = [f"to release {status.get('release')}; still of the one before: {left}"] if left else []
    return [*words, *([str(upgrade["trouble"])] if upgrade.get("trouble") else [])]


def _versions_words(status: Document) -> str:
    """Which version is tried against which; several candidates of a shadow are all named."""
    tried = ", ".join(label(version) for version in status.get("candidates") or [status.get("candidate")])
    if status.get("strategy") == "shadow":
        against = "people" if status.get("baseline") is None else label(status["baseline"])
        return f"{tried} shadows {against}"
    return f"{label(status.get('baseline'))} → {tried}"


def _live(status: Document) -> str:
    return "people" if status.get("live") is None and status.get("phase") else label(status.get("live"))


def _share_words(status: Document) -> str:
    """What share of the traffic the candidate has."""
    if mirror := status.get("mirror"):
        return f"copies of {mirror:g} % to {label(status.get('candidate'))}"
    return f"{label(status.get('candidate'))} at {figures.weight(status.get('weight'))}"


def _weight_lines(status: Document, layout: Layout) -> list[Text]:
    if status.get("strategy") == "shadow":
        labels = (status.get("labels") or {}).get("joined", 0)
        dropped = sum((status.get("copies_dropped") or {}).values())
        words = f"{status.get('mirror') or 0:g} % of the requests, {dropped} dropped; {labels} labels joined"
        return [_fact("copies", words)]
    weight = float(status.get("weight") or 0.0)
    line = Text("  weight".ljust(FACTS), style="dim")
    line.append(
        figures.bar(weight / 100, 40 if layout.width >= 72 else 12, ascii_only=layout.ascii_only),
        style="cyan",
    )
    line.append(f"  {figures.weight(status.get('weight'))}", style="bold not dim")
    line.append(f" to {label(status.get('candidate'))}", style="default not dim")
    lines = [line]
    if words := _step_words(status):
        lines.append(_fact("step", f"{words.removeprefix('step ')}{_ladder(status)}"))
    return lines


def _waiting_words(status: Document) -> Iterator[str]:
    if reason := status.get("reason"):
        yield str(reason)
    if status.get("waits_for") == "webhook":
        yield f"a person may pass it, too: deployctl promote {_name(status)}, or deployctl rollback {_name(status)}"
    elif status.get("waits_for"):
        yield f"waits for a person: deployctl promote {_name(status)}, or deployctl rollback {_name(status)}"
    elif status.get("phase") == "paused":
        yield f"paused by a person: deployctl resume {_name(status)}"


def _step_words(status: Document) -> str:
    step, steps = status.get("step"), status.get("steps")
    total = len(steps) if isinstance(steps, list) else steps
    return "" if not total or step is None else f"step {step} of {total}"


def _ladder(status: Document) -> str:
    """The weight of each step, the current one in brackets."""
    steps = status.get("steps")
    weights = steps if isinstance(steps, list) else status.get("step_weights")
    if not weights:
        return ""
    shown = [step.get("weight") if isinstance(step, dict) else step for step in weights]
    words = [
        f"[{weight:g}]" if number == status.get("step") else f"{weight:g}"
        for number, weight in enumerate(shown, 1)
    ]
    return f"   {' '.join(words)} % then promotion"


def _table(rows: list[Document], layout: Layout) -> list[Text]:
    """Columns as wide as their longest value, two spaces between them."""
    heads = ["metric", "verdict", "baseline, bad", "candidate, bad", "effect [interval]"]
    kinds = list(dict.fromkeys(kind for row in rows for kind, _, _ in evidence_of(row)))
    table = [[*heads, *kinds, ""]]
    for row in rows:
        arms = [figures.arm(row.get("baseline")), figures.arm(row.get("candidate"))]
        effect = figures.effect(row.get("effect"), row.get("interval"))
        told = {kind: _evidence(value, threshold, layout) for kind, value, threshold in evidence_of(row)}
        table.append(
            [str(row.get("name")), verdict_of(row), *arms, effect]
            + [told.get(kind, "") for kind in kinds]
            + [needed_words(row)]
        )
    widths = [max(len(cells[at]) for cells in table) for at in range(len(table[0]))]
    lines = []
    for number, cells in enumerate(table):
        line = Text("  ")
        for at, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            style = "dim" if number == 0 else VERDICT_STYLES.get(cell, "") if at == 1 else ""
            line.append(cell.ljust(width) + "  ", style=style)
        line.rstrip()
        lines.append(line)
    return lines


def _block(row: Document, layout: Layout) -> Iterator[Text]:
    """One metric in lines that fit into 80 columns."""
    verdict = verdict_of(row)
    head = Text("  ")
    head.append(str(row.get("name")), style="bold")
    head.append("  ")
    head.append(verdict, style=VERDICT_STYLES.get(verdict, ""))
    if needed := needed_words(row):
        head.append(f"  {needed}", style="dim")
    yield head
    baseline, candidate = (f"{arm} {figures.arm(row.get(arm))}" for arm in ("baseline", "candidate"))
    both = Text(f"    bad     {baseline}, {candidate}")
    yield from (
        (both,)
        if both.cell_len <= layout.width
        else (both[: -len(candidate) - 1], Text(f"{'':12}{candidate}"))
    )
    yield Text(f"    effect  {figures.effect(row.get('effect'), row.get('interval'))}")
    for kind, value, threshold in evidence_of(row):
        yield Text(f"    {kind.ljust(6)}  {_evidence(value, threshold, layout)}")


def _evidence(value: float | None, threshold: float | None, layout: Layout) -> str:
    drawn = figures.bar(figures.progress(value, threshold), 10, ascii_only=layout.ascii_only)
    return f"{drawn} {figures.evidence(value, threshold)}"


def _fact(name: str, words: str) -> Text:
    line = Text(f"  {name}".ljust(FACTS), style="dim")
    line.append(words, style="default not dim")
    return line


def _files_words(files: Document) -> str:
    """What the watched folder gave since the controller looks at it."""
    labels, rows = figures.count(files.get("labels", 0)), figures.count(files.get("read", 0))
    lost = {
        "rows skipped": sum((files.get("skipped") or {}).values()),
        "labels refused": files.get("refused", 0),
        "files refused": files.get("refused_files", 0),
    }
    said = [f"{what}: {figures.count(number)}" for what, number in lost.items() if number]
    return ", ".join([f"{labels} from {rows} rows in {files.get('path')}", *said])


def _pids(pids: Document) -> str:
    return " · ".join(f"{name} {_numbers(value)}" for name, value in pids.items() if value) or figures.UNKNOWN


def _numbers(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{pid} ({name})" for name, pid in value.items())
    if isinstance(value, list):
        return " ".join(_numbers(entry) for entry in value)
    return str(value)
