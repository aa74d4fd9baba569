"""Label files of rows: JSONL (our own form and Prodigy's) and CSV. A row is read when its line has ended, so that a file can be
read while it is being written, in whatever pieces it comes.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Self

import msgspec

from deployctl.core.label import Label
from deployctl.labels.source import (
    MAX_LINE,
    BadFileError,
    Bytes,
    Found,
    NoLabelError,
    Tally,
    Wanted,
    label_of,
    not_utf8,
    text_of,
)

BOM = b"\xef\xbb\xbf"
AT = ("at", "labeled_at", "labelled_at")
ID = ("id", "event_id")
ANNOTATORS = ("annotator", "_annotator_id", "_session_id")
DELIMITERS = ",;\t"
BOOLEANS = {"": None, "true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class JsonLines:
    """One JSON object per line: {"id", "label", "annotator"?, "at"?, "shown"?}, or what Prodigy's `db-out` writes."""

    name: ClassVar[str] = "jsonl"
    reads_whole: ClassVar[bool] = False

    def __init__(self, wanted: Wanted, tally: Tally) -> None:
        self.line = 1
        self._wanted = wanted
        self._tally = tally

    def resume(self, _head: Bytes, line: int) -> None:
        self.line = line

    def take(self, data: Bytes, *, ended: bool, room: int) -> tuple[list[Found], int]:
        found: list[Found] = []
        used = 0
        while len(found) < room and used < len(data):
            end = data.find(b"\n", used)
            if (len(data) if end < 0 else end) - used > MAX_LINE:
                if found:
                    break  # what stands before it counts
                raise endless(self.line)
            if end < 0 and not ended:
                break
            row, used = data[used : len(data) if end < 0 else end], len(data) if end < 0 else end + 1
            if (label := self._read(row, whole=end >= 0)) is not None:
                found.append((label, self.line))
            self.line += 1
        return found, used

    def _read(self, row: Bytes, *, whole: bool) -> Label | None:
        if not row.strip(b" \t\r" + BOM):
            return None
        self._tally.read += 1
        try:
            document = msgspec.json.decode(row.decode("utf-8-sig"))
            if not isinstance(document, dict):
                raise _NoObjectError
            return (_prodigy if "answer" in document else _plain)(document, self._wanted)
        except NoLabelError as none:
            self._tally.skip(str(none))
        except _UNREADABLE as error:
            half = "" if whole else "; the last line is not finished: is the file still being written?"
            self._tally.bad(f"line {self.line}", f"{_why(error)}{half}")
        return None


class _NoObjectError(ValueError):
    def __str__(self) -> str:
        return 'a JSON object such as {"id": "a1", "label": "7"} is expected'


_UNREADABLE = (
    ValueError,
    OverflowError,
    RecursionError,
)  # msgspec.DecodeError and UnicodeDecodeError are ValueErrors


def endless(line: int) -> BadFileError:
    """What a row longer than MAX_LINE is."""
    return BadFileError(
        f"line {line}: more than {MAX_LINE} bytes without an end; that is no label (of a Label Studio export: "
        "add --format label-studio)"
    )


def _first(document: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((document[name] for name in names if document.get(name) is not None), None)


def _text(document: Mapping[str, Any], *names: str) -> str | None:
    try:
        return text_of(_first(document, names))
    except ValueError as error:
        raise ValueError(f"{names[-1]!r} {error}") from error


def _plain(document: dict[str, Any], wanted: Wanted) -> Label:
    request = _text(document, wanted.id_key, *ID)
    said = _text(document, wanted.from_name or "label")
    shown = document.get("shown")
    if shown is not None and not isinstance(shown, bool):
        raise ValueError("'shown' must be true or false")
    return label_of(request, said, _text(document, *ANNOTATORS), _text(document, *AT), shown=shown)


def _prodigy(document: dict[str, Any], wanted: Wanted) -> Label:
    """A row of Prodigy. Its hashes are of inputs, not of requests: the id must have been put into `meta`."""
    if document["answer"] != "accept":
        raise NoLabelError(
            {"reject": "rejected", "ignore": "ignored"}.get(document["answer"], "not_a_choice")
        )
    meta, choices = document.get("meta"), document.get("accept")
    if not isinstance(meta, dict):
        raise NoLabelError("no_id")
    if isinstance(choices, list):
        if len(choices) > 1:
            raise NoLabelError("several_choices")
        document = document | {"label": choices[0] if choices else None}
    elif document.get("label") is None:
        raise NoLabelError("not_a_choice")
    request, said = _text(meta, wanted.id_key, *ID), _text(document, "label")
    seconds = document.get("_timestamp")
    at = datetime.fromtimestamp(seconds, UTC).isoformat() if isinstance(seconds, int | float) else None
    return label_of(request, said, _text(document, "_annotator_id", "_session_id"), at)


class Csv:
    """A table with a header: id or event_id, label, annotator, at or labeled_at, shown; other columns are left alone."""

    name: ClassVar[str] = "csv"
    reads_whole: ClassVar[bool] = False

    def __init__(self, wanted: Wanted, tally: Tally) -> None:
        csv.field_size_limit(MAX_LINE)
        self.line = 1
        self._wanted = wanted
        self._tally = tally
        self._columns: dict[str, int] = {}
        self._width = 0
        self._delimiter = ","

    def resume(self, head: Bytes, line: int) -> None:
        Csv.take(self, head[: head.find(b"\n") + 1], ended=True, room=1)
        self.line = line

    def take(self, data: Bytes, *, ended: bool, room: int) -> tuple[list[Found], int]:
        found: list[Found] = []
        used = len(BOM) if self.line == 1 and data.startswith(BOM) else 0
        while len(found) < room and used < len(data):
            lines = _Lines(data, used, ended=ended)
            if not self._columns:
                self._delimiter = _delimiter(data, used)
            try:
                whole = self._step(lines, found)
            except _EndlessError:
                if not found:  # what stands before it counts
                    raise endless(self.line) from None
                whole = False
            if not whole:
                break
            used = lines.at
            self.line += lines.count
        return found, used

    def _step(self, lines: _Lines, found: list[Found]) -> bool:
        """Read one row and add its label; False where no whole one is there."""
        try:
            row = self._row(lines)
            if row is None:
                return False
            if row and not self._columns:
                self._take_header(row)
            elif row:
                self._tally.read += 1
                found.append((self._label(row), self.line))
        except NoLabelError as none:
            self._tally.skip(str(none))
        except (csv.Error, ValueError) as error:
            if lines.waits:
                return False
            self._tally.read += 0 if isinstance(error, _CellError) else 1
            half = (
                "; the last row is not finished: is the file still being written?" if lines.open_end else ""
            )
            self._tally.bad(f"line {self.line}", f"{_why(error)}{half}")
        return True

    def _row(self, lines: _Lines) -> list[str] | None:
        """The next row, [] for an empty line, None where no whole one is there."""
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True, skipinitialspace=True)
        return next(reader, None)

    def _take_header(self, row: list[str]) -> None:
        names = [name.strip().lower() for name in row]
        wanted = self._wanted
        ids = (wanted.id_key.lower(), *ID)
        if "annotation_id" in names and ids[0] not in names:
            raise BadFileError(
                f"line {self.line}: this is a Label Studio table without the column {wanted.id_key!r}; its `id` is the task's and "
                "not the request's: export as JSON, or name the column with --id-key"
            )
        labels = (wanted.from_name.lower(),) if wanted.from_name else ("label",)
        roles = {"id": ids, "label": labels, "annotator": ("annotator",), "at": AT, "shown": ("shown",)}
        columns = {
            role: names.index(name)
            for role, known in roles.items()
            for name in reversed(known)
            if name in names
        }
        for role in ("id", "label"):
            if role not in columns:
                raise BadFileError(
                    f"line {self.line}: no column {' or '.join(map(repr, roles[role]))} in the header (columns: "
                    f"{', '.join(names)[:200]}); name it with {'--id-key' if role == 'id' else '--from-name'}"
                )
        self._columns, self._width = columns, len(row)

    def _label(self, row: list[str]) -> Label:
        if len(row) != self._width:
            raise _CellError(f"{len(row)} fields, and {self._width} columns in the header")
        cell = {role: row[column] for role, column in self._columns.items()}
        shown = cell.get("shown", "").strip().lower()
        if shown not in BOOLEANS:
            raise _CellError(f"shown is true, false or empty, not {shown[:60]!r}")
        return label_of(
            cell["id"], cell["label"], cell.get("annotator"), cell.get("at"), shown=BOOLEANS[shown]
        )


class _CellError(ValueError):
    """A row that the csv module could read, and we cannot."""


class _EndlessError(Exception):
    """A row is longer than MAX_LINE."""


class _Lines:
    """The lines of some bytes, for the csv module; `at` and `count` say how far it has read, `waits` that it wanted more."""

    def __init__(self, data: Bytes, at: int, *, ended: bool) -> None:
        self.at = at
        self.count = 0
        self.waits = False
        self.open_end = False
        self._data = data
        self._start = at
        self._ended = ended

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        data, start = self._data, self.at
        end = data.find(b"\n", start) + 1
        if (end or len(data)) - self._start > MAX_LINE:
            raise _EndlessError
        if not end:
            self.waits = not self._ended
            self.open_end = True
            if self.waits or start == len(data):
                raise StopIteration
            end = len(data)
        self.at = end
        self.count += 1
        return data[start:end].decode()


def _delimiter(data: Bytes, start: int) -> str:
    """The delimiter of a header: German spreadsheets write semicolons."""
    end = data.find(b"\n", start)
    header = data[start : end if end >= 0 else len(data)].decode(errors="replace")
    return max(DELIMITERS, key=header.count)


def _why(error: Exception) -> str:
    return not_utf8(error) if isinstance(error, UnicodeDecodeError) else str(error)
