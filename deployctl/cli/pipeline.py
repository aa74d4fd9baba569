"""What a command tells the pipeline that runs it. The one rule: a report never changes how the command ends.

A verb fills in an `Account` while it runs; when it is over, however it ended, one `Ending` is made of it and written where it is wanted.
"""

from __future__ import annotations

import os
import secrets
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from deployctl.cli.signals import SIGNALS
from deployctl.durable import write_all
from deployctl.errors import DeployctlError, Exit
from deployctl.views.console import command, note

if TYPE_CHECKING:
    from deployctl.cli.services import Service
    from deployctl.views.ending import Check, Ending

SUMMARY_LIMIT = 1024 * 1024
"""Bytes of all summaries of one step; a runner drops the whole file where it is larger."""
JUNIT_FILE, DOTENV_FILE = "deployctl-junit.xml", "deployctl.env"

Document = dict[str, Any]


class CiSystem(StrEnum):
    """Which pipeline runs the command."""

    GITHUB = "github"
    GITLAB = "gitlab"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Reports:
    """Which reports are wanted. Without `ci` the environment says which pipeline it is, where `asked_only` is not set."""

    ci: CiSystem | None = None
    junit: str | None = None
    markdown: str | None = None
    asked_only: bool = False

    @property
    def system(self) -> CiSystem:
        if self.ci is not None or self.asked_only:
            return self.ci or CiSystem.NONE
        if os.environ.get("GITHUB_ACTIONS") == "true":
            return CiSystem.GITHUB
        return CiSystem.GITLAB if os.environ.get("GITLAB_CI") else CiSystem.NONE

    @property
    def wanted(self) -> bool:
        return self.system is not CiSystem.NONE or bool(self.junit or self.markdown)


NO_REPORTS = Reports(CiSystem.NONE)


@dataclass(slots=True)
class Account:
    """What a command has seen so far. `file` is its manifest, `explained` what `explain -o json` would say where nobody has to be asked for it,
    `message` what it did in a line, `again` the command line that follows the rollout, `cancelled` what ended the command.
    """

    command: str
    file: str | None = None
    service: Service | None = None
    rollout: str = ""
    events: list[Document] = field(default_factory=list)
    explained: Document | None = None
    message: str = ""
    again: str = ""
    cancelled: str = ""
    problems: list[Any] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    details: list[str] = field(default_factory=list)


def reporting(reports: Reports, account: Account, run: Callable[[], int]) -> int:
    """Run a command, and report how it ended where that is wanted; the result and the errors are those of `run`."""
    if not reports.wanted:
        return run()

    def cancel(number: int, _frame: object) -> None:
        account.cancelled = signal.Signals(number).name
        raise KeyboardInterrupt

    _on_signals(cancel)
    try:
        code = run()
    except BaseException as error:
        _on_signals(signal.SIG_IGN)
        _report(reports, account, _code_of(error), error)
        raise
    _on_signals(signal.SIG_IGN)  # to the end of the process: the exit code is known
    _report(reports, account, code, None)
    return code


def _on_signals(handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> None:
    """What was ignored (nohup) stays ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _code_of(error: BaseException) -> int:
    """The exit code that the command will end with (`__main__`)."""
    match error:
        case DeployctlError():
            return error.exit_code
        case KeyboardInterrupt():
            return Exit.WATCH_ENDED
        case BrokenPipeError():
            return Exit.DONE
        case OSError():
            return Exit.UNAVAILABLE
    return Exit.BUG


def _report(reports: Reports, account: Account, code: int, error: BaseException | None) -> None:
    try:
        from deployctl.cli.ending import ending_of  # noqa: PLC0415 - rich, and only where a report is wanted

        ending = ending_of(account, code, error)
        for what, write in _destinations(reports, ending):
            try:
                write()
            except OSError as failed:
                _warn(f"{what} could not be written: {failed.strerror or failed}")
    except Exception as bug:  # noqa: BLE001 - a report is no reason to lose the exit code
        _warn(f"no report, by a bug in deployctl: {type(bug).__name__}: {bug}")


def _warn(words: str) -> None:
    with suppress(OSError):
        note(f"deployctl: warning: {words}")


def _destinations(reports: Reports, ending: Ending) -> Iterator[tuple[str, Callable[[], None]]]:
    """What is to be written, as it is called in a warning, and how."""
    from deployctl.views.junit import junit  # noqa: PLC0415 - as above
    from deployctl.views.markdown import markdown  # noqa: PLC0415 - as above
    from deployctl.views.workflow import dotenv, workflow_commands  # noqa: PLC0415 - as above

    match reports.system:
        case CiSystem.GITHUB:
            for line in workflow_commands(ending):
                yield "an annotation", lambda line=line: command(line)  # type: ignore[misc]  # mypy cannot infer the default
            yield "$GITHUB_OUTPUT", lambda: _append_outputs(ending)
            yield "$GITHUB_STEP_SUMMARY", lambda: _append_summary(ending)
        case CiSystem.GITLAB:
            folder = Path(os.environ.get("CI_PROJECT_DIR") or ".")
            yield str(folder / JUNIT_FILE), lambda: _replace(folder / JUNIT_FILE, junit(ending))
            yield str(folder / DOTENV_FILE), lambda: _replace(folder / DOTENV_FILE, dotenv(ending))
    if (path := reports.junit) is not None:
        yield path, lambda path=path: _replace(Path(path), junit(ending))  # type: ignore[misc]  # as above
    if (path := reports.markdown) is not None:
        yield path, lambda path=path: _replace(Path(path), markdown(ending, SUMMARY_LIMIT))  # type: ignore[misc]  # as above


def _append_outputs(ending: Ending) -> None:
    from deployctl.views.markdown import markdown  # noqa: PLC0415 - as above
    from deployctl.views.workflow import LONGEST_REPORT, outputs  # noqa: PLC0415 - as above

    delimiter = f"ghadelimiter_{secrets.token_hex(16)}"
    _append("GITHUB_OUTPUT", lambda _size: outputs(ending, markdown(ending, LONGEST_REPORT), delimiter))


def _append_summary(ending: Ending) -> None:
    from deployctl.views.markdown import markdown  # noqa: PLC0415 - as above

    def text(size: int) -> str:
        if found := markdown(ending, SUMMARY_LIMIT - size):
            return found
        raise OSError(f"it has {size} bytes already, and a runner takes {SUMMARY_LIMIT}")

    _append("GITHUB_STEP_SUMMARY", text)


def _append(variable: str, text: Callable[[int], str]) -> None:
    """Append to the file that a variable names; `text` is told how long it is. All of it or nothing. Raises OSError."""
    path = os.environ.get(variable)
    if not path:
        raise OSError("the variable is not set")
    # Of a pipe that nobody reads it is an error, not a wait; a file that the runner did not make, nobody would read.
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        try:
            write_all(fd, text(size).encode())
        except OSError:
            with suppress(OSError):  # half a value would be an error of the whole step
                os.ftruncate(fd, size)
            raise
    finally:
        os.close(fd)


def _replace(path: Path, text: str) -> None:
    """Put a whole file in the place of what had this name; what is no file (a pipe, a terminal) is written to. Raises OSError."""
    path = Path(os.path.realpath(path))
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        fresh, flags = path, os.O_WRONLY | os.O_NONBLOCK
    else:
        fresh = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    fd = os.open(fresh, flags | os.O_CLOEXEC, 0o666)
    try:
        write_all(fd, text.encode())
        if fresh != path:
            fresh.rename(path)
    except OSError:
        if fresh != path:
            fresh.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
