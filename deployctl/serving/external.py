"""Finds tensors whose data lie outside the model file, without the onnx package: a walk over the protobuf.

A digest covers one file. Data beside it would be served unchecked, so such a model is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

# Message → field number → the message in that field: every path in onnx.proto that leads to a tensor.
FIELDS: Final[dict[str, dict[int, str]]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}
TENSOR_NAME, TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION = 8, 13, 14


class Field(NamedTuple):
    number: int
    value: int
    """Of a varint; 0 for the other wire types."""
    start: int
    end: int


def external_tensor(model: memoryview) -> str | None:
    """The name of a tensor whose data lie in another file; None if the model is complete.

    Raises ValueError where the bytes are no protobuf message.
    """
    pending = [("Model", 0, len(model))]
    while pending:
        kind, start, end = pending.pop()
        if kind == "Tensor":
            name = _if_external(model, start, end)
            if name is not None:
                return name
            continue
        inner = FIELDS[kind]
        pending.extend(
            (inner[field.number], field.start, field.end)
            for field in fields(model, start, end)
            if field.number in inner and field.end > field.start
        )
    return None


def _if_external(model: memoryview, start: int, end: int) -> str | None:
    name, external = "", False
    for field in fields(model, start, end):
        if field.number == TENSOR_NAME:
            name = bytes(model[field.start : field.end]).decode("utf-8", "replace")
        elif field.number == TENSOR_EXTERNAL_DATA or (field.number == TENSOR_DATA_LOCATION and field.value):
            external = True
    return name if external else None


def fields(model: memoryview, at: int, end: int) -> Iterator[Field]:
    """The fields of the message in model[at:end]; they follow each other without a gap. Raises ValueError where it is none."""
    while at < end:
        tag, at = _varint(model, at, end)
        value, start = 0, at
        match tag & 7:
            case 0:
                value, at = _varint(model, at, end)
                start = at
            case 1:
                start = at = at + 8
            case 2:
                length, start = _varint(model, at, end)
                at = start + length
            case 5:
                start = at = at + 4
            case other:
                raise ValueError(f"wire type {other} at byte {at}")
        if at > end:
            raise ValueError(f"a field of {at - start} bytes ends past its message")
        yield Field(tag >> 3, value, start, at)


def _varint(model: memoryview, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("the file ends in the middle of a field")
        byte = model[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number of more than ten bytes at byte {at}")
