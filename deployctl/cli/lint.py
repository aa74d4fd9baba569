"""`deployctl lint FILE…`: every problem of every file at once, one per line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deployctl.cli.manifests import read_manifest
from deployctl.errors import Exit, InvalidError
from deployctl.views.console import note, say, show_document

if TYPE_CHECKING:
    from deployctl.manifest.problems import Problem


def run_lint(files: list[str], as_json: bool) -> int:
    """Print what is wrong with these manifests; the exit code is 0 or 2."""
    problems = [problem for file in files for problem in _problems(file)]
    if as_json:
        show_document({"schema_version": 1, "problems": [_document(one) for one in problems]})
    else:
        for problem in problems:
            say(str(problem))
        if not problems:
            note("no problems")
    return Exit.INVALID if problems else Exit.DONE


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
