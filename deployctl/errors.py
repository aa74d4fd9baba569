"""Every error that a user can meet, each with whose fault it is, what to try, and its exit code.

    DeployctlError
    ├── InvalidError       2  the user's: usage, manifest or model; nothing was changed
    ├── UnconfirmedError   4  a rollback could not be confirmed in time: call a person
    ├── ConflictError      7  another rollout, another service, another baseline is in the way
    ├── UnavailableError   8  the service is not running, or port, disk or permission is in the way
    └── IntegrityError     9  the journal or a model does not match its digest, or is not for this release to read

A message is one line: what, where, what to try. Exit codes 0, 3, 5 and 6 are results, not errors (`Exit`).
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of every command, as the README documents them."""

    DONE = 0
    BUG = 1
    INVALID = 2
    ROLLED_BACK = 3
    UNCONFIRMED = 4
    INCONCLUSIVE = 5
    WATCH_ENDED = 6
    CONFLICT = 7
    UNAVAILABLE = 8
    INTEGRITY = 9


MEANINGS = {
    Exit.DONE: "done, or nothing to do",
    Exit.BUG: "a bug",
    Exit.INVALID: "usage, manifest or model invalid; nothing was changed",
    Exit.ROLLED_BACK: "rolled back, by the gate or by a person",
    Exit.UNCONFIRMED: "a rollback could not be confirmed in time: call a person",
    Exit.INCONCLUSIVE: "not enough evidence in time: rolled back, or held and waiting for a person, as the manifest says",
    Exit.WATCH_ENDED: "the watching ended (time-out, SIGINT, SIGTERM); the rollout goes on",
    Exit.CONFLICT: "conflict: another rollout, another service or another baseline is in the way",
    Exit.UNAVAILABLE: "the service is not running or cannot be reached, or port, disk or permission is in the way",
    Exit.INTEGRITY: "the journal or a model does not match its digest, or the journal is of a newer release",
}
"""What `deployctl --help` and the README say of each."""


class DeployctlError(Exception):
    """Something a user can act on; `exit_code` is what the command ends with."""

    exit_code: Exit = Exit.BUG


class InvalidError(DeployctlError):
    """Usage, manifest or model is invalid; nothing was changed."""

    exit_code = Exit.INVALID


class UnconfirmedError(DeployctlError):
    """A rollback could not be confirmed in time; a person is needed."""

    exit_code = Exit.UNCONFIRMED


class ConflictError(DeployctlError):
    """Something else that is running is in the way; the message names both."""

    exit_code = Exit.CONFLICT


class UnavailableError(DeployctlError):
    """The service cannot be reached, or port, disk or permission is in the way."""

    exit_code = Exit.UNAVAILABLE


class IntegrityError(DeployctlError):
    """Bytes on disk do not match the digest that was written down for them."""

    exit_code = Exit.INTEGRITY


def error_for(exit_code: int, message: str) -> DeployctlError:
    """The error that carries this exit code, as it comes back over a process border."""
    for kind in (InvalidError, UnconfirmedError, ConflictError, UnavailableError, IntegrityError):
        if kind.exit_code == exit_code:
            return kind(message)
    return DeployctlError(message)
