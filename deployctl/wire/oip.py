"""Open Inference Protocol V2: bodies of requests and answers ↔ numpy tensors, JSON and binary tensor data.

What cannot be carried exactly is refused with a reason, never bent: an integer out of range, a float for an integer,
a ragged nesting and a length that lies are all `BadRequest`. BYTES elements are `bytes` here, in arrays of objects.
Protocol: Open Inference Protocol, REST, and its binary tensor data extension as Triton defines it.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Annotated, Any, NoReturn

import msgspec
import numpy as np
from numpy.typing import NDArray

from deployctl.wire import large_json
from deployctl.wire.coding import MAX_BODY, BadRequest, decompress
from deployctl.wire.frames import NO_BINARY, Encoding

Array = NDArray[Any]

PLATFORM = "onnx_onnxv1"

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
"""Every datatype of the protocol and how numpy holds it."""

DATATYPES: dict[np.dtype[Any], str] = {dtype: datatype for datatype, dtype in DTYPES.items()}

_PYTHON_TYPES: dict[str, type[bool | int | float | str]] = {
    "b": bool,
    "u": int,
    "i": int,
    "f": float,
    "O": str,
}
_MAX_RANK = 32
_FEW = 256
"""Numbers in JSON up to which the quick way of one row is quicker."""

_ALIGNED = 16
"""Bytes. Where a tensor begins elsewhere, sums of onnxruntime's are taken in another order and end in other last bits; numpy's own
memory always begins so."""
_LENGTH = Struct("<I")
_NESTED = re.compile(rb"\[\s*\[")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as a model declares it; -1 is a dimension that varies, no dimension at all a shape that does."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.datatype} {list(self.shape)}"


@dataclass(slots=True)
class InferRequest:
    """A decoded request. `outputs` maps each requested output to "as binary?"; None asks for all of them."""

    id: str | None
    inputs: dict[str, Array]
    outputs: dict[str, bool] | None = None
    binary_output: bool = False


_Dimension = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class _InputParameters(msgspec.Struct, gc=False):
    binary_data_size: Annotated[int, msgspec.Meta(ge=0)] | None = None
    shared_memory_region: str | None = None


class _Declared(msgspec.Struct):
    name: str
    shape: Annotated[list[_Dimension], msgspec.Meta(max_length=_MAX_RANK)]
    datatype: str
    parameters: _InputParameters | None = None


class _RawInput(_Declared):
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _ParsedInput(_Declared):
    data: Any = msgspec.UNSET


class _OutputParameters(msgspec.Struct, gc=False):
    binary_data: bool | None = None
    classification: int | None = None
    shared_memory_region: str | None = None


class _RequestedOutput(msgspec.Struct):
    name: str
    parameters: _OutputParameters | None = None


class _RequestParameters(msgspec.Struct, gc=False):
    binary_data_output: bool = False


class _Head(msgspec.Struct):
    id: Annotated[str, msgspec.Meta(max_length=1024)] | None = None
    parameters: _RequestParameters | None = None
    outputs: list[_RequestedOutput] | None = None


class _RawBody(_Head, kw_only=True):
    inputs: list[_RawInput]


class _ParsedBody(_Head, kw_only=True):
    inputs: list[_ParsedInput]


class _AnsweredOutput(msgspec.Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, int] | None = None
    data: list[Any] | msgspec.UnsetType = msgspec.UNSET


class _Answered(msgspec.Struct):
    model_name: str
    model_version: str
    id: str
    outputs: list[_AnsweredOutput]


_decode_raw_body = msgspec.json.Decoder(_RawBody).decode
_encode_json = msgspec.json.Encoder().encode


def decode(
    body: bytes,
    json_length: int = NO_BINARY,
    encoding: Encoding = Encoding.IDENTITY,
    signature: Sequence[TensorSpec] = (),
) -> InferRequest:
    """The request in `body`. Raises BadRequest, with 413 for a body that is too large and 400 for all else.

    `json_length` is the Inference-Header-Content-Length of the *decompressed* body; 0 means one raw tensor, whose
    name, datatype and shape are those of the only input in `signature`.
    """
    if encoding is not Encoding.IDENTITY:
        body = decompress(body, encoding)
    elif len(body) > MAX_BODY:
        raise BadRequest(413, f"the body has {len(body)} bytes; the limit is {MAX_BODY}")
    if json_length == NO_BINARY:
        return _decode_json(body, None)
    if json_length == 0:
        return _decode_raw(body, signature)
    if json_length > len(body):
        raise BadRequest(
            400, f"Inference-Header-Content-Length is {json_length}, but the body has {len(body)} bytes"
        )
    return _decode_json(body[:json_length], memoryview(body)[json_length:])


def encode(
    model: str, version: str, request_id: str, outputs: Mapping[str, Array], request: InferRequest
) -> tuple[bytes, int]:
    """The body of an answer and its `json_length`; an output is binary where `request` asked for that.

    JSON has no NaN and no infinity, both become null. Raises BadRequest for BYTES in JSON that are not UTF-8.
    """
    described: list[_AnsweredOutput] = []
    raw: list[bytes] = []
    chosen, binary_output = request.outputs, request.binary_output
    for name, array in outputs.items():
        datatype = DATATYPES[array.dtype]
        if chosen[name] if chosen is not None else binary_output:
            data = _pack_bytes(array) if datatype == "BYTES" else array.tobytes()
            raw.append(data)
            described.append(_AnsweredOutput(name, datatype, array.shape, {"binary_data_size": len(data)}))
        else:
            values = _text(name, array) if datatype == "BYTES" else array.ravel().tolist()
            described.append(_AnsweredOutput(name, datatype, array.shape, None, values))
    if not request_id.isascii():  # a header may bring bytes that are not UTF-8, as lone surrogates
        request_id = request_id.encode("utf-8", "replace").decode()
    head = _encode_json(_Answered(model, version, request_id, described))
    if not raw:
        return head, NO_BINARY
    return b"".join((head, *raw)), len(head)


def metadata(
    model: str, versions: Sequence[str], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> bytes:
    """The model metadata document: name, versions, platform, and every tensor with -1 where a dimension varies."""
    return _encode_json(
        {
            "name": model,
            "versions": list(versions),
            "platform": PLATFORM,
            "inputs": [_described(spec) for spec in inputs],
            "outputs": [_described(spec) for spec in outputs],
        }
    )


def error_body(message: str, version: str | None = None) -> bytes:
    """`{"error": message}` on one line, with `model_version` where it was a version that failed."""
    line = " ".join(message.split())
    document = {"error": line.encode("utf-8", "replace").decode()}
    return _encode_json(document if version is None else {**document, "model_version": version})


def _decode_json(text: bytes, binary: memoryview | None) -> InferRequest:
    if large_json.WORTH <= len(text) <= large_json.LARGEST and (read := _decode_large(text, binary)):
        return read
    try:
        body: _RawBody | _ParsedBody = _decode_raw_body(text)
    except msgspec.ValidationError as error:
        raise BadRequest(400, f"the request does not follow the protocol: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if b"NaN" not in text and b"Infinity" not in text:
            raise BadRequest(400, f"the request is no valid JSON: {error}") from error
        return _decode_lenient(text, binary)
    except RecursionError as error:
        raise BadRequest(400, "the request is nested too deeply") from error
    return _request(body, _tensors(body.inputs, binary))


def _decode_large(text: bytes, binary: memoryview | None) -> InferRequest | None:
    """As `_decode_json`, for what simdjson can tell for sure; None for all else."""
    found = large_json.read(text, DTYPES)
    if found is None:
        return None
    document, arrays = found
    try:
        body = msgspec.convert(document, _ParsedBody)
    except msgspec.ValidationError:
        return None
    for tensor, array in zip(body.inputs, arrays, strict=True):
        if array is not None:
            tensor.data = array
    return _request(body, _tensors(body.inputs, binary))


def _decode_lenient(text: bytes, binary: memoryview | None) -> InferRequest:
    """As `_decode_json` for bodies with NaN and Infinity tokens, which real clients send. They must all be FP data."""
    tokens: list[str] = []

    def constant(token: str) -> float:
        tokens.append(token)
        return float(token)

    try:
        body = msgspec.convert(json.loads(text.decode(), parse_constant=constant), _ParsedBody)
    except msgspec.ValidationError as error:
        raise BadRequest(400, f"the request does not follow the protocol: {error}") from error
    except RecursionError as error:
        raise BadRequest(400, "the request is nested too deeply") from error
    except ValueError as error:  # also what is no UTF-8, and numbers of too many digits
        raise BadRequest(400, f"the request is no valid JSON: {error}") from error
    inputs = _tensors(body.inputs, binary)
    floats = [inputs[tensor.name] for tensor in body.inputs if tensor.data is not msgspec.UNSET]
    found = sum(int(np.count_nonzero(~np.isfinite(array))) for array in floats if array.dtype.kind == "f")
    if found != len(tokens):  # also a number such as 1e999, which only looks finite
        raise BadRequest(400, "NaN and Infinity may stand only in the data of FP tensors")
    return _request(body, inputs)


def _request(body: _Head, inputs: dict[str, Array]) -> InferRequest:
    binary_output = body.parameters is not None and body.parameters.binary_data_output
    outputs: dict[str, bool] | None = None
    if body.outputs:
        outputs = {}
        for asked in body.outputs:
            if asked.name in outputs:
                raise BadRequest(400, f"output {_quoted(asked.name)} is requested twice")
            outputs[asked.name] = _wants_binary(asked, binary_output)
    return InferRequest(body.id or None, inputs, outputs, binary_output)


def _wants_binary(asked: _RequestedOutput, default: bool) -> bool:
    parameters = asked.parameters
    if parameters is None:
        return default
    if parameters.classification is not None:
        raise BadRequest(400, f"output {_quoted(asked.name)}: the classification extension is not supported")
    if parameters.shared_memory_region is not None:
        raise BadRequest(400, f"output {_quoted(asked.name)}: shared memory is not supported")
    return default if parameters.binary_data is None else parameters.binary_data


def _tensors(inputs: Sequence[_RawInput | _ParsedInput], binary: memoryview | None) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    at = 0
    for tensor in inputs:
        name, data, parameters = tensor.name, tensor.data, tensor.parameters
        if name in tensors:
            raise BadRequest(400, f"input {_quoted(name)} is given twice")
        dtype = DTYPES.get(tensor.datatype)
        if dtype is None:
            _refuse(name, f"unknown datatype {_quoted(tensor.datatype)}; known: {', '.join(DTYPES)}")
        count = math.prod(tensor.shape)
        # Without elements the other dimensions could still be more than numpy can multiply.
        if count > MAX_BODY or (not count and math.prod(size or 1 for size in tensor.shape) > MAX_BODY):
            _refuse(name, f"shape {tensor.shape} has more elements than a body can hold")
        size = None if parameters is None else parameters.binary_data_size
        if size is None:
            tensors[name] = _from_json(tensor, dtype, count)
            continue
        if data is not msgspec.UNSET:
            _refuse(name, "has both data and binary_data_size")
        if binary is None:
            _refuse(name, "has binary_data_size, but the request has no Inference-Header-Content-Length")
        if at + size > len(binary):
            _refuse(
                name, f"binary_data_size is {size}, but only {len(binary) - at} bytes are left in the body"
            )
        tensors[name] = _from_binary(name, binary[at : at + size], dtype, tensor.shape, count)
        at += size
    if binary is not None and at != len(binary):
        raise BadRequest(400, f"{len(binary) - at} bytes follow the last binary tensor")
    return tensors


def _from_json(tensor: _RawInput | _ParsedInput, dtype: np.dtype[Any], count: int) -> Array:
    """A tensor from its `data`, flat or nested as deep as its shape."""
    name, shape, data = tensor.name, tensor.shape, tensor.data
    if data is msgspec.UNSET:
        if tensor.parameters is not None and tensor.parameters.shared_memory_region is not None:
            _refuse(name, "shared memory is not supported")
        _refuse(name, "has neither data nor binary_data_size")
    if isinstance(data, np.ndarray):
        if data.size != count:
            _refuse(name, f"data has {data.size} elements, shape {shape} has {count}")
        return data.reshape(shape)
    try:
        if isinstance(data, msgspec.Raw):
            depth = len(shape) if _NESTED.match(data) else 1
            values = _decoder(dtype.kind, depth).decode(data)
        else:
            depth = len(shape) if isinstance(data, list) and data and isinstance(data[0], list) else 1
            values = msgspec.convert(data, _nested(dtype.kind, depth))
        array = _array(values, dtype)
    except (msgspec.DecodeError, OverflowError, FloatingPointError, ValueError) as error:
        _refuse(name, f"data does not fit {tensor.datatype} {shape}: {error}", error)
    if depth == 1:
        if array.size != count:
            _refuse(name, f"data has {array.size} elements, shape {shape} has {count}")
        return array.reshape(shape)
    # Nesting shows nothing below the first dimension that is 0.
    if array.shape != tuple(shape if count else shape[: array.ndim]) or array.size != count:
        _refuse(name, f"data is nested as {list(array.shape)}, its shape is {shape}")
    return array.reshape(shape)


def _array(values: list[Any], dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "O":
        array = np.array(values, dtype=object)
        flat = array.reshape(-1)
        if flat.size and isinstance(flat[0], list):
            raise ValueError("the nesting is ragged")
        flat[:] = [text.encode() for text in flat.tolist()]
        return array
    if dtype.kind != "f" or dtype.itemsize == 8:
        return np.array(values, dtype=dtype)
    # Infinity is only what the client wrote as such: a number too large for the type is refused. This way costs a row 0.6 µs instead
    # of 1.7 and rounds the same; the other one is quicker where there are many.
    if dtype == np.float32 and 0 < len(values) <= _FEW and not isinstance(values[0], list):
        try:
            return np.frombuffer(_pack_floats(len(values))(*values), dtype)
        except OverflowError as error:
            raise OverflowError("overflow: a number is too large for it") from error
    with np.errstate(over="raise"):
        return np.array(values, dtype=dtype)


@functools.lru_cache(maxsize=64)
def _pack_floats(count: int) -> Callable[..., bytes]:
    return Struct(f"={count}f").pack


@functools.cache
def _nested(kind: str, depth: int) -> Any:
    shape: Any = _PYTHON_TYPES[kind]
    for _ in range(depth):
        shape = list[shape]
    return shape


@functools.cache
def _decoder(kind: str, depth: int) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(_nested(kind, depth))


def _from_binary(
    name: str, data: memoryview, dtype: np.dtype[Any], shape: Sequence[int], count: int
) -> Array:
    """A tensor from its bytes: little-endian and row-major. The array borrows them where their address allows."""
    if dtype.kind == "O":
        return _unpack_bytes(name, data, count).reshape(shape)
    if len(data) != count * dtype.itemsize:
        _refuse(
            name,
            f"binary_data_size is {len(data)}, shape {list(shape)} of {DATATYPES[dtype]} needs {count * dtype.itemsize}",
        )
    if dtype.kind == "b" and count and np.frombuffer(data, np.uint8).max() > 1:
        _refuse(name, "a byte of a BOOL tensor is neither 0 nor 1")
    array = np.frombuffer(data, dtype).reshape(shape)
    return array if array.__array_interface__["data"][0] % _ALIGNED == 0 else array.copy()


def _decode_raw(body: bytes, signature: Sequence[TensorSpec]) -> InferRequest:
    """Inference-Header-Content-Length: 0, the body is the one tensor, the answer is binary throughout."""
    if len(signature) != 1:
        raise BadRequest(
            400, f"a raw binary body needs a model with one input; this one has {len(signature)}"
        )
    (spec,) = signature
    dtype = DTYPES[spec.datatype]
    if dtype.kind == "O":  # by the extension: one element, without its length before it
        array = np.empty(1, dtype=object)
        array[0] = body
        shape = [abs(dimension) for dimension in spec.shape] or [1]
        if math.prod(shape) != 1:
            raise BadRequest(400, f"a raw binary body is one BYTES element; the model takes {spec}")
        return InferRequest(None, {spec.name: array.reshape(shape)}, None, binary_output=True)
    shape = _shape_of_raw(spec, len(body) // dtype.itemsize)
    inputs = {spec.name: _from_binary(spec.name, memoryview(body), dtype, shape, math.prod(shape))}
    return InferRequest(None, inputs, None, binary_output=True)


def _shape_of_raw(spec: TensorSpec, count: int) -> list[int]:
    """The shape that `count` elements have: one varying dimension is worked out, a leading one beside it is 1."""
    shape = list(spec.shape)
    if shape.count(-1) == 2 and shape[0] == -1:
        shape[0] = 1
    if shape.count(-1) > 1 or not shape:
        raise BadRequest(400, f"a raw binary body leaves the shape open; the model takes {spec}")
    if -1 in shape:
        row = math.prod(dimension for dimension in shape if dimension != -1)
        shape[shape.index(-1)] = count // row if row else 0
    return shape


def _unpack_bytes(name: str, data: memoryview, count: int) -> Array:
    """BYTES elements: a u32 length before each."""
    end, at = len(data), 0
    if count * _LENGTH.size > end:
        _refuse(name, f"binary_data_size is {end}, too small for {count} BYTES elements")
    array = np.empty(count, dtype=object)
    for index in range(count):
        start = at + _LENGTH.size
        if start > end:
            _refuse(name, f"the data ends before BYTES element {index} of {count}")
        at = start + _LENGTH.unpack_from(data, at)[0]
        if at > end:
            _refuse(name, f"BYTES element {index} claims {at - start} bytes, but {end - start} are left")
        array[index] = bytes(data[start:at])
    if at != end:
        _refuse(name, f"{end - at} bytes follow the last of {count} BYTES elements")
    return array


def _pack_bytes(array: Array) -> bytes:
    parts: list[bytes] = []
    for element in array.ravel().tolist():
        data = element if isinstance(element, bytes) else str(element).encode()
        parts += (_LENGTH.pack(len(data)), data)
    return b"".join(parts)


def _text(name: str, array: Array) -> list[str]:
    try:
        return [
            element.decode() if isinstance(element, bytes) else str(element)
            for element in array.ravel().tolist()
        ]
    except UnicodeDecodeError as error:
        raise BadRequest(
            400,
            f"output {_quoted(name)} holds bytes that are not UTF-8, which JSON cannot carry: "
            "request it with the parameter binary_data",
        ) from error


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _refuse(name: str, reason: str, cause: Exception | None = None) -> NoReturn:
    raise BadRequest(400, f"input {_quoted(name)}: {reason}") from cause


def _quoted(text: str) -> str:
    """A name as the client wrote it, cut: an error must stay one readable line."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
