"""Every verb, wired. Only typer is imported here: what a verb needs it imports when it runs, so `--help` is quick."""

from __future__ import annotations

from typing import Annotated

import typer

from deployctl.cli import (
    completion,
    decisions,
    doctor,
    history,
    labels,
    listing,
    ramp,
    replay,
    report,
    shadow,
    status,
    switch,
    up,
    upgrade,
)
from deployctl.cli.options import AsOutput, CiOption, JunitFile, ManifestFile, MarkdownFile, Output
from deployctl.cli.pipeline import Reports
from deployctl.errors import MEANINGS, Exit


def _example(*lines: str) -> str:
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def _exit_codes() -> str:
    return "\n\n\b\nExit codes:\n" + "\n".join(f"  {code}  {words}" for code, words in MEANINGS.items())


# Plain help: a third of the start-up time, and the same text in a terminal, a pipe and a log.
app = typer.Typer(
    name="deployctl",
    help="Put a new model version into production without hurting anyone.",
    epilog=_example(
        "deployctl demo", "deployctl up rollout.yaml --detach", "deployctl canary ramp rollout.yaml"
    )
    + _exit_codes(),
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,  # `completion` prints scripts of our own, which know services and versions
    invoke_without_command=True,
)
canary = typer.Typer(
    help="Raise the candidate's share step by step.", rich_markup_mode=None, invoke_without_command=True
)

human_labels = typer.Typer(
    help="Give a service what people say.", rich_markup_mode=None, invoke_without_command=True
)


blue_green = typer.Typer(
    help="Switch all callers at once, and back on harm.", rich_markup_mode=None, invoke_without_command=True
)


@app.callback()
def _root(
    context: typer.Context,
    debug: Annotated[  # noqa: ARG001 - read from argv by __main__, wherever it stands; here for --help
        bool, typer.Option("--debug", help="Show the trace of an unexpected error.")
    ] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        from deployctl import __version__  # noqa: PLC0415 - only this needs it

        typer.echo(f"deployctl {__version__}")
        raise typer.Exit
    _help_without_command(context)


@human_labels.callback()
@canary.callback()
@blue_green.callback()
def _group(context: typer.Context) -> None:
    _help_without_command(context)


def _help_without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(Exit.INVALID)


def demo(
    which: Annotated[
        str, typer.Argument(metavar="[canary|shadow|digits-shadow|blue-green]", help="Which demo.")
    ] = "canary",
    output: AsOutput = Output.TEXT,
) -> int:
    """Show the main job end to end on real data, in a minute."""
    from deployctl.cli.demo import run_demo  # noqa: PLC0415 - numpy and httpx

    return run_demo(which, as_json=output is Output.JSON)


def init(
    directory: Annotated[str, typer.Argument(metavar="[DIR]", help="Where to write it.")] = ".",
    output: AsOutput = Output.TEXT,
) -> int:
    """Write a commented manifest to start from."""
    from deployctl.cli.init import run_init  # noqa: PLC0415 - as above

    return run_init(directory, as_json=output is Output.JSON)


def lint(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Manifests.", show_default=False)],
    output: AsOutput = Output.TEXT,
    ci: CiOption = None,
    junit: JunitFile = None,
    markdown: MarkdownFile = None,
) -> int:
    """Show every problem of a manifest at once."""
    from deployctl.cli.lint import run_lint  # noqa: PLC0415 - pydantic models cost 0.1 s

    return run_lint(files, Reports(ci, junit, markdown), as_json=output is Output.JSON)


def plan(
    file: ManifestFile,
    rate: Annotated[float, typer.Option("--rate", help="Requests a second to plan with.")] = 50.0,
    label_rate: Annotated[
        float | None, typer.Option("--label-rate", help="Labels a second.", show_default="one per request")
    ] = None,
    base_rate: Annotated[
        float, typer.Option("--base-rate", help="The baseline's share of bad answers, as a fraction.")
    ] = 0.01,
    output: AsOutput = Output.TEXT,
    ci: CiOption = None,
    junit: JunitFile = None,
    markdown: MarkdownFile = None,
) -> int:
    """Show the steps, what each gate needs, what it will miss."""
    from deployctl.cli.plan import run_plan  # noqa: PLC0415 - as above

    reports, as_json = Reports(ci, junit, markdown), output is Output.JSON
    return run_plan(file, reports, as_json=as_json, rate=rate, label_rate=label_rate, base_rate=base_rate)


for verb, name, example in (
    (demo, "demo", "deployctl demo canary"),
    (init, "init", "deployctl init ."),
    (lint, "lint", "deployctl lint rollout.yaml"),
    (plan, "plan", "deployctl plan rollout.yaml -o json"),
    (up.up, "up", "deployctl up rollout.yaml --detach"),
    (up.down, "down", "deployctl down digits"),
    (upgrade.upgrade, "upgrade", "deployctl upgrade digits"),
    (shadow.shadow, "shadow", "deployctl shadow rollout.yaml --timeout 30m"),
    (decisions.rollback, "rollback", "deployctl rollback digits --reason 'wrong on invoices'"),
    (decisions.promote, "promote", "deployctl promote digits"),
    (decisions.pause, "pause", "deployctl pause digits"),
    (decisions.resume, "resume", "deployctl resume digits"),
    (status.status, "status", "deployctl status digits -w"),
    (listing.list_services, "list", "deployctl list -w"),
    (history.history, "history", "deployctl history digits"),
    (history.explain, "explain", "deployctl explain digits"),
    (report.report, "report", "deployctl report digits --html report.html"),
    (doctor.doctor, "doctor", "deployctl doctor"),
    (replay.replay, "replay", "deployctl replay rollout.yaml --outcomes outcomes.jsonl"),
    (completion.completion, "completion", "source <(deployctl completion bash)"),
):
    app.command(name, epilog=_example(example))(verb)
canary.command("ramp", epilog=_example("deployctl canary ramp rollout.yaml --timeout 30m --until promoted"))(
    ramp.ramp
)
app.add_typer(canary, name="canary")
blue_green.command("switch", epilog=_example("deployctl blue-green switch rollout.yaml --until paused"))(
    switch.switch
)
app.add_typer(blue_green, name="blue-green")
human_labels.command("add", epilog=_example("deployctl labels add digits labels.jsonl"))(labels.add)
app.add_typer(human_labels, name="labels")
