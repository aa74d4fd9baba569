"""replay: the whole rollout against recorded outcomes, on a virtual clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployctl.cli.options import AsOutput, CiOption, JunitFile, ManifestFile, MarkdownFile, Output
from deployctl.cli.pipeline import Account, Document, Reports, reporting
from deployctl.errors import Exit
from deployctl.views.console import note, say, show_document
from deployctl.views.progress import Progress

if TYPE_CHECKING:
    from deployctl.core.plan import Plan
    from deployctl.outcome_log import Header, OutcomeLog, Piece
    from deployctl.replay import End, Replay


def replay(
    file: ManifestFile,
    outcomes: Annotated[
        str,
        typer.Option(
            "--outcomes",
            metavar="FILE.jsonl",
            help="Recorded outcomes: `history NAME --outcomes`, or your own.",
        ),
    ],
    salt: Annotated[
        str | None,
        typer.Option(
            "--salt", metavar="TEXT", help="Another draw of who is routed where.", show_default=False
        ),
    ] = None,
    output: AsOutput = Output.TEXT,
    ci: CiOption = None,
    junit: JunitFile = None,
    markdown: MarkdownFile = None,
) -> int:
    """Show what this manifest would have done with a log."""
    account = Account("replay", file)
    reports = Reports(ci, junit, markdown)
    return reporting(reports, account, lambda: _replay(file, outcomes, salt, output, account))


def _replay(file: str, outcomes: str, salt: str | None, output: Output, account: Account) -> int:
    from deployctl.outcome_log import OutcomeLog  # noqa: PLC0415 - numpy: --help does without
    from deployctl.replay import Replay  # noqa: PLC0415 - as above

    log = OutcomeLog(Path(outcomes), outcomes)
    run = Replay(_plan(file, log.header), log.header, salt)
    with Progress("replaying") as progress:
        for _ in run.run(_watched(log, progress)):
            pass  # a line that is none is an error, and then nothing is said of what came before it
    events = _events(run)
    _account_for(run, events, account)
    _show(run, events, output)
    return _exit_code(run.end)


def _watched(log: OutcomeLog, progress: Progress) -> Iterator[Piece]:
    size = log.size
    for piece in log.pieces():
        yield piece
        progress(log.bytes_read, size)


def _plan(file: str, header: Header | None) -> Plan:
    """The plan of a manifest. Versions are those of the log where the labels agree: their bytes are not needed."""
    from deployctl.cli.manifests import read_manifest  # noqa: PLC0415 - as above
    from deployctl.core.plan import HUMAN, Version  # noqa: PLC0415 - as above
    from deployctl.manifest.manifest import plan  # noqa: PLC0415 - as above

    manifest = read_manifest(file)
    models = [manifest.baseline, *manifest.candidates]
    versions = [HUMAN if model is None else Version(model.version, model.digest or "") for model in models]
    live = header.plan if header else None
    recorded = [live.baseline, *live.candidates] if live is not None else []
    if [version.version for version in recorded] == [version.version for version in versions]:
        versions = recorded
    if len(versions) == 1:
        versions.append(versions[0])  # `plan` says what is missing
    planned = plan(manifest, *versions)
    if planned.hooks and (live is None or live.hooks != planned.hooks):
        note("the log does not say what the webhooks would have answered: their agreement is taken as given")
        return dataclasses.replace(planned, hooks=())
    return planned


def _events(run: Replay) -> list[Document]:
    """The events as documents, with the log's own times."""
    from deployctl.controller.documents import event_document  # noqa: PLC0415 - as above

    return [
        event_document(event, rollout) | {"at": round(run.clock(event.at), 3)}
        for event, rollout in run.events
    ]


def _account_for(run: Replay, events: list[Document], account: Account) -> None:
    """What a service would explain of this rollout."""
    from deployctl.controller.documents import metric  # noqa: PLC0415 - as above

    plan, verdict = run.plan, run.verdict
    account.rollout = run.events[-1][1].id
    account.explained = {
        "phase": run.end.phase.value,
        "sentence": _words(run.end),
        "decided_by": verdict.decided_by if verdict is not None else None,
        "baseline": None if plan.people_alone else plan.baseline.version,
        "candidates": [version.version for version in plan.candidates],
        "metrics": [metric(part) for part in verdict.metrics] if verdict is not None else [],
        "events": events,
    }


def _words(end: End) -> str:
    return (
        f"{end.phase.value.replace('_', ' ')} at {end.at:.1f} s: {end.reason}; the candidate answered {end.candidate_requests} "
        f"requests, {end.candidate_bad} of them bad; {end.left_out} requests were left out"
    )


def _show(run: Replay, events: list[Document], output: Output) -> None:
    from deployctl.controller.documents import SCHEMA_VERSION  # noqa: PLC0415 - as above
    from deployctl.views.events import event_line  # noqa: PLC0415 - as above

    end = run.end
    for event in events:
        if output is Output.JSON:
            show_document(event)
        else:
            say(event_line(event))
    if output is Output.TEXT:
        say(_words(end))
        return
    show_document(
        {
            "schema_version": SCHEMA_VERSION,
            "rollout": run.events[-1][1].id,
            "phase": end.phase.value,
            "at": round(end.at, 3),
            "candidate_requests": end.candidate_requests,
            "candidate_bad": end.candidate_bad,
            "left_out": end.left_out,
            "verdict": end.verdict.value,
            "reason": end.reason,
        }
    )


def _exit_code(end: End) -> Exit:
    from deployctl.core.plan import Phase  # noqa: PLC0415 - as above
    from deployctl.core.rollout import Cause  # noqa: PLC0415 - as above
    from deployctl.core.verdict import Result  # noqa: PLC0415 - as above

    if end.phase is Phase.RETIRED:
        by_result = {Result.PASS: Exit.DONE, Result.FAIL: Exit.ROLLED_BACK}
        return by_result.get(end.verdict, Exit.INCONCLUSIVE)
    if end.phase is Phase.PROMOTED:
        return Exit.DONE
    if end.phase is Phase.ROLLED_BACK and end.cause is not Cause.INCONCLUSIVE:
        return Exit.ROLLED_BACK
    return Exit.INCONCLUSIVE
