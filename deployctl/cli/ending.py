"""From what a command has seen to the `Ending` that reports are made of; a service that can still be asked is asked why."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deployctl.cli.pipeline import Account
from deployctl.errors import DeployctlError, Exit
from deployctl.views.ending import Check, Ending, Note, Place, metric_check
from deployctl.views.events import words_of
from deployctl.views.status import verdict_of

ASK_SECONDS = 2.0
"""How long the service may take to explain: a runner that cancels a job kills soon."""
LOST_SECONDS = 0.5
"""The same where it was lost already, or did not confirm."""
WITHOUT_VERDICT = ("rollback", "promote")
"""A person's orders: what they say is done or not, but is no verdict of a gate."""

Document = dict[str, Any]

_RESULTS = {
    Exit.DONE: "pass",
    Exit.ROLLED_BACK: "fail",
    Exit.UNCONFIRMED: "fail",
    Exit.INCONCLUSIVE: "inconclusive",
    Exit.WATCH_ENDED: "inconclusive",
}
"""What the end of a command is as a check; what is not here is an error."""
_LEVELS = {"pass": "notice", "fail": "error", "error": "error", "inconclusive": "warning"}
_TITLES = {
    Exit.BUG: "a bug in deployctl",
    Exit.INVALID: "invalid; nothing was changed",
    Exit.ROLLED_BACK: "rolled back",
    Exit.UNCONFIRMED: "a rollback could not be confirmed: call a person",
    Exit.INCONCLUSIVE: "not enough evidence",
    Exit.WATCH_ENDED: "no verdict yet: the watching ended",
    Exit.CONFLICT: "something else is in the way; nothing was changed",
    Exit.UNAVAILABLE: "the service cannot be reached, or port, disk or permission is in the way",
    Exit.INTEGRITY: "journal or model does not match its digest",
}
_TITLES_IN_PHASE = {
    (Exit.DONE, "pending"): "started; it goes on",
    (Exit.DONE, "progressing"): "started; it goes on",
    (Exit.DONE, "promoted"): "promoted",
    (Exit.DONE, "retired"): "passed its shadow",
    (Exit.DONE, "paused"): "waits for a person",
    (Exit.ROLLED_BACK, "retired"): "failed its shadow",
    (Exit.INCONCLUSIVE, "rolled_back"): "rolled back for want of evidence",
    (Exit.INCONCLUSIVE, "paused"): "held for want of evidence",
    (Exit.INCONCLUSIVE, "retired"): "its shadow ended without enough evidence",
}
_REPLAYED = {
    Exit.DONE: "would have been promoted",
    Exit.ROLLED_BACK: "would have been rolled back",
    Exit.INCONCLUSIVE: "would not have had enough evidence",
}


def ending_of(account: Account, code: int, error: BaseException | None) -> Ending:
    """How this command ended; `error` is what it raised."""
    asked = account.explained or _asked(account, code)
    events = tuple(asked.get("events") or account.events)
    last = events[-1] if events else {}
    phase = str(asked.get("phase") or last.get("phase") or "")
    metrics = _metrics(asked, last)
    exit_code = Exit(code)
    title = _title(account, exit_code, phase)
    sentence = _sentence(account, exit_code, asked, last, error)
    end = Check(_end_name(account), _RESULTS.get(exit_code, "error"), sentence)
    checks = [*(metric_check(metric) for metric in metrics), *account.checks]
    return Ending(
        command=account.command,
        exit_code=code,
        title=title,
        sentence=sentence,
        verdict=_verdict(account, exit_code, phase, last),
        service=account.service.name if account.service else str(asked.get("service") or ""),
        rollout=account.rollout,
        phase=phase,
        weight=last.get("weight"),
        baseline=str(asked.get("baseline") or ""),
        candidate=", ".join(map(str, asked.get("candidates") or [])) or str(asked.get("candidate") or ""),
        metrics=metrics,
        events=events,
        checks=tuple(checks if account.checks and error is None else [*checks, end]),
        notes=tuple(_notes(account, exit_code, asked, metrics, end, title, error)),
        details=tuple(account.details),
        hints=tuple(_hints(account, exit_code, phase)),
    )


def _asked(account: Account, code: int) -> Document:
    """What the service says of the rollout; nothing where it cannot be asked."""
    if account.service is None or not account.rollout:
        return {}
    seconds = LOST_SECONDS if code in {Exit.UNAVAILABLE, Exit.UNCONFIRMED} else ASK_SECONDS
    try:
        with account.service.client() as client:
            return client.get(f"/v1/explain?rollout={account.rollout}", timeout=seconds)
    except DeployctlError:
        return {}


def _metrics(asked: Document, last: Document) -> tuple[Document, ...]:
    """The metrics of the gate; those of every candidate where a shadow had several."""
    verdict = last.get("verdict") or {}
    if several := verdict.get("candidates"):
        return tuple(
            {**metric, "version": one.get("version")}
            for one in several
            for metric in one.get("metrics") or []
        )
    return tuple(asked.get("metrics") or verdict.get("metrics") or ())


def _verdict(account: Account, code: Exit, phase: str, last: Document) -> str:
    """pass, fail or inconclusive, and none where the gate has not spoken."""
    if account.checks and account.command in {"lint", "plan"}:
        return "pass" if code is Exit.DONE else "fail"
    if account.command in WITHOUT_VERDICT or account.command == "plan":
        return "none"
    if account.command == "status":
        ended = last.get("exit_code")
        return "pass" if phase == "promoted" else _RESULTS.get(ended, "none") if ended is not None else "none"
    ended_by_it = code in {Exit.ROLLED_BACK, Exit.INCONCLUSIVE} or (
        code is Exit.DONE and phase in {"promoted", "retired"}
    )
    return _RESULTS[code] if ended_by_it else "none"


def _end_name(account: Account) -> str:
    lasts = account.rollout and account.command not in WITHOUT_VERDICT
    return "end of the rollout" if lasts else f"deployctl {account.command}"


def _title(account: Account, code: Exit, phase: str) -> str:
    match account.command:
        case "lint" | "plan" if account.checks:
            bad = len(account.problems) or sum(check.result != "pass" for check in account.checks)
            return {0: "no problems", 1: "one problem"}.get(bad, f"{bad} problems")
        case "replay" if code in _REPLAYED:
            return _REPLAYED[code]
        case "status" if code is Exit.DONE:
            return phase.replace("_", " ") or "serves"
        case "rollback" | "promote" if code is Exit.DONE:
            return "done"
    return _TITLES_IN_PHASE.get((code, phase)) or _TITLES.get(code, "done")


def _sentence(
    account: Account, code: Exit, asked: Document, last: Document, error: BaseException | None
) -> str:
    explained = str(asked.get("sentence") or "")
    if code is Exit.WATCH_ENDED:
        by = f" ({account.cancelled})" if account.cancelled else ""
        now = explained or (f"Last seen: {words_of(last)}." if last else account.message)
        return f"The command ended{by} before the end of the rollout was seen. {now}".strip()
    if code is Exit.UNAVAILABLE and account.rollout:
        seen = f"; last seen: {words_of(last)}" if last else ""
        return f"The service was lost, so it is not known from here how the rollout goes on{seen}. {error}"
    if error is not None:
        return str(error)
    return (explained if account.command not in WITHOUT_VERDICT else "") or account.message


def _notes(
    account: Account,
    code: Exit,
    asked: Document,
    metrics: tuple[Document, ...],
    end: Check,
    title: str,
    error: BaseException | None,
) -> Iterator[Note]:
    """What to tell beside the code: problems at their places, the metrics that decided at theirs, then the end."""
    problems = [*account.problems, *getattr(error, "problems", ())]
    for problem in problems:
        place = Place(_in_workspace(problem.source), problem.line, problem.column)
        yield Note("error", f"deployctl {account.command}", problem.message, place)
    told = {Exit.ROLLED_BACK: "fail", Exit.INCONCLUSIVE: "inconclusive"}.get(code)
    guilty = [
        metric
        for metric in metrics
        if verdict_of(metric) == told or (told == "fail" and metric.get("name") == asked.get("decided_by"))
    ]
    places = _metric_places(account.file) if guilty else {}
    for metric in guilty:
        check = metric_check(metric)
        yield Note(
            _LEVELS[check.result],
            f"{check.name}: {check.result}",
            check.why,
            places.get(str(metric.get("name"))),
        )
    if not problems:
        file = Place(_in_workspace(account.file)) if account.file and told else None
        yield Note(_LEVELS[end.result], f"deployctl {account.command}: {title}", end.why or title, file)


def _metric_places(file: str | None) -> dict[str, Place]:
    """Where each metric is written in this manifest; empty where it can no longer be read."""
    from deployctl.manifest.load import metric_marks  # noqa: PLC0415 - pydantic

    if file is None:
        return {}
    try:
        marks = metric_marks(Path(file).read_bytes())
    except OSError:
        return {}
    return {name: Place(_in_workspace(file), mark.line, mark.column) for name, mark in marks.items()}


def _in_workspace(file: str) -> str:
    """The path as GitHub knows it: from the top of the repository."""
    top = os.environ.get("GITHUB_WORKSPACE")
    path = Path(os.path.abspath(file))  # noqa: PTH100 - resolve() would follow links out of the repository
    return str(path.relative_to(top)) if top and path.is_relative_to(top) else file


def _hints(account: Account, code: Exit, phase: str) -> Iterator[tuple[str, str]]:
    if account.service is None:
        return
    name, rollout = account.service.name, account.rollout
    if not rollout:
        yield "where it stands", f"deployctl status {name}"
        return
    if account.again and (code is Exit.WATCH_ENDED or phase in {"pending", "progressing"}):
        yield "follow it", account.again
    if phase == "paused":
        yield "let it go on", f"deployctl promote {name}"
    if phase in {"pending", "progressing", "paused", "promoted", ""}:
        yield "undo it", f"deployctl rollback {name}"
    yield "why", f"deployctl explain {name} --rollout {rollout}"
