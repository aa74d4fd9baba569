"""A label file from its first byte to its last, whatever form it has and however long it is; LABEL_SOURCES are the forms."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from deployctl.errors import InvalidError
from deployctl.labels.label_studio import LabelStudio, LabelStudioJson, LabelStudioMin, is_label_studio
from deployctl.labels.rows import BOM, DELIMITERS, ID, Csv, JsonLines, endless
from deployctl.labels.source import MAX_LINE, BadFileError, Bytes, Found, Source, Tally, Wanted

LABEL_SOURCES: dict[str, type[Source]] = {
    source.name: source for source in (JsonLines, Csv, LabelStudio, LabelStudioMin)
}

CHUNK = 64 * 1024
ROOM = 5_000


class Reading:
    """One complete label file: iterate for its labels, each with its place; `tally` says what became of every row.

    Memory stays within a row and a chunk, or within MAX_DOCUMENT for a file that has no rows.
    """

    def __init__(self, stream: BinaryIO, name: str, wanted: Wanted, form: str | None = None) -> None:
        """`name` is how messages call the file. Raises InvalidError for a form that is not known."""
        self.tally = Tally()
        self.format: str | None = form
        self._stream = stream
        self._name = name
        self._wanted = wanted
        self._source = source_called(form)(wanted, self.tally) if form is not None else None

    def __iter__(self) -> Iterator[Found]:
        """Raises BadFileError with file and line, OSError where the disk or the pipe fails."""
        try:
            yield from self._read()
        except BadFileError as error:
            raise BadFileError(f"{self._name}: {error}") from error

    def place(self, number: int) -> str:
        """Where a label stands, in words."""
        return f"{'task' if self.format and self.format.startswith('label-studio') else 'line'} {number}"

    def _read(self) -> Iterator[Found]:
        read = getattr(self._stream, "read1", self._stream.read)  # what a pipe has now, not what it will have
        data, ended = bytearray(), False
        while not ended:
            piece = read(CHUNK)
            data += piece
            ended = not piece
            if self._source is None:
                self._source = self._recognised(data, ended=ended)
            used = 1
            while self._source is not None and data and used:
                found, used = self._source.take(data, ended=ended, room=ROOM)
                del data[:used]
                yield from found

    def _recognised(self, data: Bytes, *, ended: bool) -> Source | None:
        kind = recognised(data, self._wanted, ended=ended)
        if kind is None:
            return None
        self.format = kind.name
        return kind(self._wanted, self.tally)


def as_documents(found: list[Found]) -> list[dict[str, object]]:
    """Labels as JSON objects in the form in which they are posted."""
    names = ("id", "label", "annotator", "at", "shown")
    return [
        {name: said for name in names if (said := getattr(label, name)) is not None} for label, _ in found
    ]


def size_of(found: Found) -> int:
    """Bytes of a label as JSON, and of the comma after it."""
    return len(msgspec.json.encode(found[0])) + 1


def source_called(name: str) -> type[Source]:
    """The source of this name. Raises InvalidError that lists the known ones."""
    try:
        return LABEL_SOURCES[name]
    except KeyError:
        raise InvalidError(f"unknown format {name!r} (known: {', '.join(LABEL_SOURCES)})") from None


def recognised(head: Bytes, wanted: Wanted, *, ended: bool) -> type[Source] | None:
    """The form of a file that begins like this; None where more of it is needed, or where it is empty.

    Raises BadFileError for what is no label file.
    """
    text = head.removeprefix(BOM).lstrip()
    first, newline, _ = text.partition(b"\n")
    if text.startswith(b"["):
        return LabelStudioJson
    if text and not newline and len(text) > MAX_LINE:
        raise endless(1)
    if text.startswith(b"{"):
        return _of_object(first, whole=bool(newline), ended=ended)
    if not text or not (newline or ended):
        return None
    columns = next(csv.reader([first.decode(errors="replace").translate(_AS_COMMAS)]), [])
    known = {wanted.id_key.lower(), *ID, "label", (wanted.from_name or "label").lower()}
    if not known & {column.strip().lower() for column in columns}:
        raise BadFileError(
            f"line 1: neither JSON nor a header with id and label; name the form with --format ({', '.join(LABEL_SOURCES)})"
        )
    return Csv


_AS_COMMAS = str.maketrans(dict.fromkeys(DELIMITERS, ","))


def _of_object(first: Bytes, *, whole: bool, ended: bool) -> type[Source] | None:
    try:
        row = msgspec.json.decode(first)
    except (ValueError, RecursionError):
        if not whole:
            return JsonLines if ended else None
        return JsonLines if first.rstrip().endswith(b"}") else LabelStudioJson
    return LabelStudioJson if is_label_studio(row) else JsonLines
