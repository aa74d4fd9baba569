"""What one look found, and how looks are made: whatever is in the way of one of them is a finding, too, and hides none of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from deployctl.errors import DeployctlError, Exit, IntegrityError

SCHEMA_VERSION = 1
PATIENCE_SECONDS = 2.0
"""How long anything that is asked may take for its answer."""


class Result(StrEnum):
    """How bad it is. A warning is no reason to fail: what it speaks of works, or may be meant so."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Check:
    """One line: what was looked at, what was found, and for what is not ok what to try. `service` None: the machine's.

    `integrity`: bytes are not those of the digest that was written down for them (exit code 9).
    """

    name: str
    found: str
    result: Result = Result.OK
    advice: str | None = None
    service: str | None = None
    integrity: bool = False

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "service": self.service,
            "result": self.result.value,
            "found": self.found,
            "advice": self.advice,
        }


def warning(name: str, found: str, advice: str) -> Check:
    return Check(name, found, Result.WARNING, advice)


def problem(name: str, found: str, advice: str, *, integrity: bool = False) -> Check:
    return Check(name, found, Result.PROBLEM, advice, integrity=integrity)


def examined(name: str, look: Callable[..., Iterable[Check]], *given: Any) -> Iterator[Check]:
    """What a look gives; an error of it is a problem of that name."""
    try:
        yield from look(*given)
    except DeployctlError as error:
        found, _, advice = str(error).partition("; ")
        yield problem(
            name, found, advice or "see the log of the service", integrity=isinstance(error, IntegrityError)
        )
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        yield problem(
            name, f"{where}{error.strerror or error}", "look at the disk, and who owns what is there"
        )


def of_service(service: str, checks: Iterable[Check]) -> list[Check]:
    return [replace(check, service=service) for check in checks]


def exit_code(checks: Iterable[Check]) -> Exit:
    """9 where bytes are not those of their digest, 8 for any other problem, else 0."""
    problems = [check for check in checks if check.result is Result.PROBLEM]
    if any(check.integrity for check in problems):
        return Exit.INTEGRITY
    return Exit.UNAVAILABLE if problems else Exit.DONE


def document(release: str, checks: list[Check]) -> dict[str, Any]:
    """The document of `doctor -o json`."""
    results = [check.result for check in checks]
    return {
        "schema_version": SCHEMA_VERSION,
        "release": release,
        "checks": [check.document() for check in checks],
        "problems": results.count(Result.PROBLEM),
        "warnings": results.count(Result.WARNING),
    }
