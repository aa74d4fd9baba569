"""The outermost handler: whatever goes wrong becomes one line on stderr and an exit code that means something."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from contextlib import suppress
from itertools import pairwise
from typing import Any

import typer

from deployctl.cli.app import app
from deployctl.cli.completion import ASKED, answer
from deployctl.errors import DeployctlError, Exit, InvalidError, UnavailableError
from deployctl.views.console import abandon, last_words, note, show_document

INTERRUPTED = 130
"""What typer makes of Ctrl-C."""


def main() -> None:
    """The console script."""
    arguments = sys.argv[1:]
    if ASKED in os.environ:
        answer(app, arguments)
        return
    debug = "--debug" in arguments or bool(os.environ.get("DEPLOYCTL_DEBUG"))
    arguments = [argument for argument in arguments if argument != "--debug"]
    _make_streams_safe()
    _on_signals(signal.default_int_handler)  # SIGTERM and SIGHUP end every command as Ctrl-C does
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        abandon(sys.stdout)  # it may be just what keeps us
        _on_signals(signal.SIG_DFL)  # and so may stderr
        last_words("deployctl: interrupted")
        code = Exit.WATCH_ENDED
    except BrokenPipeError:
        code = Exit.DONE  # whoever read has seen enough: deployctl history | head
    except DeployctlError as error:
        code = _tell(error, arguments, trace=debug and error.exit_code is Exit.BUG)
    except OSError as error:  # /dev/full, a disk without space
        code = _tell(
            UnavailableError(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"),
            arguments,
            trace=debug,
        )
    except Exception as error:  # noqa: BLE001 - the outermost loop
        bug = DeployctlError(
            f"this is a bug in deployctl: {type(error).__name__}: {error}; run with --debug for the trace"
        )
        code = _tell(bug, arguments, trace=debug)
    _leave(code)


def _run(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        code = command.main(args=arguments, prog_name="deployctl", standalone_mode=False)
    except typer.TyperException as error:  # usage: an unknown verb, a missing argument
        raise InvalidError(error.format_message()) from error
    except SystemExit as left:  # typer's answer to a closed pipe
        if isinstance(left.__context__, BrokenPipeError):
            raise left.__context__ from None
        raise
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else Exit.DONE


def _tell(error: DeployctlError, arguments: list[str], *, trace: bool) -> int:
    """One line on stderr (one for each problem of a manifest); with -o json also one document on stdout."""
    problems = [str(problem) for problem in getattr(error, "problems", ())]
    message = str(error)
    document = {"schema_version": 1, "error": message, "exit_code": int(error.exit_code)}
    with suppress(OSError):  # where nobody can be told, the exit code still says it
        if trace:
            traceback.print_exc()
        for line in problems or [f"deployctl: {' '.join(message.split())}"]:
            note(line)
        if wants_json(arguments):
            show_document(document | ({"problems": problems} if problems else {}))
    return error.exit_code


def wants_json(arguments: list[str]) -> bool:
    """Also for a command line that could not be parsed."""
    return any(
        argument in {"-ojson", "-o=json", "--output=json"}
        or (argument in {"-o", "--output"} and value == "json")
        for argument, value in pairwise([*arguments, ""])
    )


def _on_signals(handler: Any) -> None:
    """What was ignored (nohup) stays ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _make_streams_safe() -> None:
    """A closed stdout, or one that cannot show a word of ours, is no reason to fail."""
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - open until the end
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - as above
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _leave(code: int) -> None:
    """End with this code even when nobody reads what is left in stdout."""
    try:
        sys.stdout.flush()
    except (OSError, KeyboardInterrupt):
        abandon(sys.stdout)
    _on_signals(signal.SIG_IGN)  # it is decided; the interpreter would let a late one kill us over it
    sys.exit(code)


if __name__ == "__main__":
    main()
