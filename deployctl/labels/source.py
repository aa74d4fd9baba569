"""What every reader of label files shares: what is looked for, what is counted, and the one rule: each row of a file ends as a
label, as a count under the reason why it is none, or as an error that names its line.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from deployctl.core.label import Label, is_too_long
from deployctl.errors import InvalidError

MAX_LINE = 1024 * 1024
"""Bytes of one row. A longer one is no label, and reading on for its end could take a disk."""

MAX_DOCUMENT = 256 * 1024 * 1024
"""Bytes of a file that can only be read as a whole."""

MAX_NOTES = 100

Bytes = bytes | bytearray
Found = tuple[Label, int]
"""A label and where it stands: the number of its line, or of its task."""


class BadFileError(InvalidError):
    """A file that cannot be read any further."""


class UnfinishedError(BadFileError):
    """A file that is no whole document; while it is being written that is no mistake."""


class NoLabelError(Exception):
    """A row that is well written and gives no label; its text is the reason under which it is counted."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where a tool's file says what it is about: the key of the request id, and which of its questions gives the label."""

    id_key: str = "deployctl_id"
    from_name: str | None = None


@dataclass(slots=True)
class Tally:
    """`read` rows, of which `skipped` gave no label, by reason. Where it is not strict a row that cannot be read is one of those."""

    strict: bool = True
    read: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def skip(self, reason: str, times: int = 1) -> None:
        """Count rows that give no label, for this reason."""
        self.skipped[reason] += times

    def bad(self, place: str, why: str) -> None:
        """Count a row that cannot be read. Raises BadFileError when that is an error."""
        if self.strict:
            raise BadFileError(f"{place}: {why}")
        self.skip("unreadable")
        if len(self.notes) < MAX_NOTES:
            self.notes.append(f"{place}: {why}")


class Source(Protocol):
    """One form of label file. A new form is one such class and its line in LABEL_SOURCES.

    `take` is given what of a file was not used yet, and gives the labels in it, at most `room` of them, and how many bytes they
    used; only whole rows are used unless the file has `ended`. A source that `reads_whole` uses nothing before that, and all
    of it then, whatever the room. Raises BadFileError.
    """

    name: ClassVar[str]
    reads_whole: ClassVar[bool]

    @property
    def line(self) -> int: ...

    def __init__(self, wanted: Wanted, tally: Tally) -> None: ...

    def resume(self, head: Bytes, line: int) -> None:
        """Go on at this line of a file that begins like this."""

    def take(self, data: Bytes, *, ended: bool, room: int) -> tuple[list[Found], int]: ...


def label_of(
    request: str | None,
    said: str | None,
    annotator: str | None = None,
    at: str | None = None,
    *,
    shown: bool | None = None,
) -> Label:
    """The label of a row. Raises NoLabelError where id or label are missing, or longer than any is."""
    if not request:
        raise NoLabelError("no_id")
    if not said:
        raise NoLabelError("empty")
    if is_too_long(request) or is_too_long(said) or is_too_long(annotator or ""):
        raise NoLabelError("too_long")
    return Label(request, said, annotator or None, at or None, shown)


def text_of(value: object) -> str | None:
    """An id, a label or an annotator as text: whole numbers are what pandas makes of them. Raises ValueError for anything else."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return str(value)
    raise ValueError(f"must be text, not {type(value).__name__}")


def not_utf8(error: UnicodeDecodeError) -> str:
    """What is wrong with a row that is not UTF-8."""
    return f"byte {error.start + 1} is not UTF-8; save the file as UTF-8"
