"""`deployctl lint FILE…`: every problem of every file at once, one per line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deployctl.cli.manifests import read_manifest
from deployctl.cli.pipeline import NO_REPORTS, Account, Reports, reporting
from deployctl.errors import Exit, InvalidError
from deployctl.views.console import note, say, show_document

if TYPE_CHECKING:
    from deployctl.manifest.problems import Problem
    from deployctl.views.ending import Check


def run_lint(files: list[str], reports: Reports = NO_REPORTS, *, as_json: bool) -> int:
    """Print what is wrong with these manifests, and report it; the exit code is 0 or 2."""
    account = Account("lint")
    return reporting(reports, account, lambda: _lint(files, account, as_json=as_json))


def _lint(files: list[str], account: Account, *, as_json: bool) -> int:
    by_file = {file: _problems(file) for file in files}
    problems = [problem for found in by_file.values() for problem in found]
    if as_json:
        show_document({"schema_version": 1, "problems": [_document(one) for one in problems]})
    else:
        for problem in problems:
            say(str(problem))
        if not problems:
            note("no problems")
    account.problems, account.message = problems, _words(problems)
    account.checks = [_check(file, found) for file, found in by_file.items()]
    return Exit.INVALID if problems else Exit.DONE


def _words(problems: Sequence[Problem]) -> str:
    if not problems:
        return "no problems"
    return "one problem" if len(problems) == 1 else f"{len(problems)} problems"


def _check(file: str, problems: tuple[Problem, ...]) -> Check:
    from deployctl.views.ending import Check  # noqa: PLC0415 - rich

    facts = tuple(f"{one.line}:{one.column}: {one.message}" for one in problems)
    return Check(file, "fail" if problems else "pass", _words(problems), facts)


def _problems(file: str) -> tuple[Problem, ...]:
    from deployctl.manifest.problems import ManifestError, Problem  # noqa: PLC0415 - pydantic models cost 0.1 s

    printable = file.encode("utf-8", "backslashreplace").decode()
    try:
        read_manifest(file)
    except ManifestError as error:
        return tuple(Problem(printable, one.line, one.column, one.message) for one in error.problems)
    except InvalidError as error:  # a file that cannot be read is one problem, at its start
        return (Problem(printable, 1, 1, str(error).removeprefix(f"{file}: ")),)
    return ()


def _document(problem: Problem) -> dict[str, object]:
    return {
        "file": problem.source,
        "line": problem.line,
        "column": problem.column,
        "message": problem.message,
    }
