"""A model whose tensors lie in files beside it, as the one file that a digest can cover: MLflow logs ONNX models so unless it is told otherwise.

The one rule: nothing of the model changes but where its tensors' bytes are, and the same files always give the same bytes.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deployctl.errors import InvalidError
from deployctl.serving.external import (
    FIELDS,
    TENSOR_DATA_LOCATION,
    TENSOR_EXTERNAL_DATA,
    Field,
    external_tensor,
    fields,
)
from deployctl.sources.source import INSIDE

TENSOR_RAW_DATA = 9
DEEPEST = 64
"""Graphs within graphs: far more than any model has."""

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Slice:
    """Bytes of a file."""

    file: Path
    start: int
    length: int


Piece = bytes | memoryview | Slice


def pieces_of_one_file(model: Path, beside: Callable[[str], Path], shown: str) -> list[Piece] | None:
    """The pieces of the complete model, in their order; None where it is complete as it is, or no model at all.

    `beside` gives the file that a tensor names. Raises InvalidError for a tensor whose bytes are not there.
    """
    if model.stat().st_size == 0:
        return None
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        with memoryview(mapped) as view:
            try:
                if external_tensor(view) is None:
                    return None
            except ValueError:  # its worker says so
                return None
        content = memoryview(mapped[:])
    try:
        return _message(content, "Model", 0, len(content), _Files(beside, shown), 0)
    except ValueError as error:
        raise InvalidError(f"{shown}: not an ONNX model, or truncated: {error}") from error


def read_piece(piece: Piece) -> Iterator[bytes | memoryview]:
    """Its bytes, not too many at once. Raises OSError."""
    if not isinstance(piece, Slice):
        yield piece
        return
    with piece.file.open("rb") as file:
        file.seek(piece.start)
        left = piece.length
        while left:
            chunk = file.read(min(left, CHUNK_BYTES))
            if not chunk:
                raise OSError(f"{piece.file} has become shorter")
            left -= len(chunk)
            yield chunk


def length_of(pieces: list[Piece]) -> int:
    """Of all of them, in bytes."""
    return sum(piece.length if isinstance(piece, Slice) else len(piece) for piece in pieces)


@dataclass(frozen=True, slots=True)
class _Files:
    """Where the tensors of one model are."""

    beside: Callable[[str], Path]
    shown: str

    def slice(self, tensor: dict[str, str]) -> Slice:
        location = tensor.get("location", "")
        if not INSIDE.fullmatch(location):
            raise InvalidError(
                f"{self.shown}: a tensor's data is in no file of its folder; save the model as one file"
            )
        file = self.beside(location)
        start, size = _number(tensor.get("offset", "0")), file.stat().st_size
        length = _number(tensor["length"]) if "length" in tensor else size - start
        if start < 0 or length < 0 or start + length > size:
            raise InvalidError(
                f"{self.shown}: {location} ends before a tensor of it does; save the model again"
            )
        return Slice(file, start, length)


def _message(
    model: memoryview, kind: str, start: int, end: int, files: _Files, depth: int
) -> list[Piece] | None:
    """A message with every tensor's bytes in it; None where nothing of it changes: it keeps its bytes then."""
    if depth > DEEPEST:
        raise InvalidError(f"{files.shown}: its graphs are nested too deeply")
    if kind == "Tensor":
        return _tensor(model, start, end, files)
    inner, pieces, kept, at = FIELDS[kind], list[Piece](), start, start
    for field in fields(model, start, end):
        if field.number in inner and field.end > field.start:
            changed = _message(model, inner[field.number], field.start, field.end, files, depth + 1)
            if changed is not None:
                pieces += [model[kept:at], *_enclosed(field.number, changed)]
                kept = field.end
        at = field.end
    return [*pieces, model[kept:end]] if kept > start else None


def _tensor(model: memoryview, start: int, end: int, files: _Files) -> list[Piece] | None:
    """A tensor with its bytes as the last field, for the order of fields means nothing; None where it has them."""
    found: dict[str, str] = {}
    pieces, at, external = list[Piece](), start, False
    for field in fields(model, start, end):
        if field.number == TENSOR_EXTERNAL_DATA:
            found |= [_entry(model, field)]
            external = True
        elif field.number == TENSOR_DATA_LOCATION:
            external |= bool(field.value)
        else:
            pieces.append(model[at : field.end])
        at = field.end
    return [*pieces, *_enclosed(TENSOR_RAW_DATA, [files.slice(found)])] if external else None


def _entry(model: memoryview, entry: Field) -> tuple[str, str]:
    """A key and its value: what onnx calls a StringStringEntryProto."""
    texts = {1: "", 2: ""}
    for field in fields(model, entry.start, entry.end):
        texts[field.number] = bytes(model[field.start : field.end]).decode("utf-8", "replace")
    return texts[1], texts[2]


def _enclosed(number: int, pieces: list[Piece]) -> list[Piece]:
    """A field with this number, of wire type 2: its length goes before it."""
    return [_varint(number << 3 | 2) + _varint(length_of(pieces)), *pieces]


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _number(written: str) -> int:
    return int(written) if written.isascii() and written.isdigit() and len(written) < 19 else -1
