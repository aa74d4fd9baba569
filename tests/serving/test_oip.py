"""The codec alone: what it refuses and how it says so, and that what it takes it keeps."""

import contextlib
import gzip
import json
import math
import struct
import zlib

import numpy as np
import pytest
from bench_worker import binary, infer, tensors_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deployctl.wire import coding, oip
from deployctl.wire.frames import NO_BINARY, Answer, Encoding

ONE = (oip.TensorSpec("x", "FP32", (-1, 3)),)


def body(**changes):
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    tensor.update(changes)
    return json.dumps(
        {"inputs": [{key: value for key, value in tensor.items() if value is not None}]}
    ).encode()


def sized(size, **changes):
    return body(data=None, parameters={"binary_data_size": size}, **changes)


def with_binary(content, data):
    return content + data, len(content)


LEND = "the request is no valid JSON: "
SHAPE = "the request does not follow the protocol: "

# What the client sends (body, json_length) → status, what the answer says.
MALFORMED = {
    "empty": (b"", 400, LEND + "Input data was truncated"),
    "not JSON": (b"hello", 400, LEND + "JSON is malformed: invalid character (byte 0)"),
    "half a body": (body()[:40], 400, LEND + "Input data was truncated"),
    "a list": (b"[]", 400, SHAPE + "Expected `object`, got `array`"),
    "no inputs": (b"{}", 400, SHAPE + "Object missing required field `inputs`"),
    "inputs of a wrong kind": (b'{"inputs":{}}', 400, "Expected `array`, got `object` - at `$.inputs`"),
    "no name": (body(name=None), 400, "missing required field `name` - at `$.inputs[0]`"),
    "no datatype": (body(datatype=None), 400, "missing required field `datatype`"),
    "no shape": (body(shape=None), 400, "missing required field `shape`"),
    "no data": (body(data=None), 400, "input 'x': has neither data nor binary_data_size"),
    "an id that is no text": (b'{"id":7,"inputs":[]}', 400, "Expected `str | null`, got `int` - at `$.id`"),
    "a long id": (json.dumps({"id": "i" * 2000, "inputs": []}).encode(), 400, "length <= 1024"),
    "an unknown datatype": (body(datatype="FP31"), 400, "unknown datatype 'FP31'; known: BOOL, UINT8"),
    "BF16": (body(datatype="BF16"), 400, "unknown datatype 'BF16'"),
    "a negative dimension": (body(shape=[-1, 2]), 400, "Expected `int` >= 0 - at `$.inputs[0].shape[0]`"),
    "a huge dimension": (body(shape=[2**31]), 400, "Expected `int` <= 2147483647"),
    "a dimension of many digits": (
        b'{"inputs":[{"name":"x","shape":[' + b"9" * 5000 + b"]}]}",
        400,
        "out of range",
    ),
    "a product that overflows": (body(shape=[2**31 - 1] * 3), 400, "more elements than a body can hold"),
    "no elements of huge dimensions": (body(shape=[0] + [2**31 - 1] * 3, data=[]), 400, "more elements"),
    "too many dimensions": (body(shape=[1] * 33), 400, "length <= 32"),
    "a fractional dimension": (body(shape=[1.5]), 400, "Expected `int`, got `float`"),
    "too few elements": (body(data=[1]), 400, "input 'x': data has 1 elements, shape [1, 2] has 2"),
    "too many elements": (body(data=[1, 2, 3]), 400, "data has 3 elements, shape [1, 2] has 2"),
    "nested otherwise": (body(data=[[1], [2]]), 400, "data is nested as [2, 1], its shape is [1, 2]"),
    "nested deeper": (body(data=[[[1, 2]]]), 400, "Expected `float`, got `array`"),
    "nested less deeply": (body(shape=[1, 1, 2], data=[[1, 2]]), 400, "Expected `array`, got `int`"),
    "ragged": (body(shape=[2, 2], data=[[1, 2, 3], [4]]), 400, "inhomogeneous"),
    "ragged text": (body(datatype="BYTES", shape=[2, 1], data=[["a"], []]), 400, "ragged"),
    "data that is a number": (body(data=5), 400, "Expected `array`, got `int`"),
    "null": (body(data=[1, None]), 400, "Expected `float`, got `null`"),
    "text for numbers": (body(data=["1", "2"]), 400, "Expected `float`, got `str`"),
    "bool for numbers": (body(data=[True, False]), 400, "Expected `float`, got `bool`"),
    "float for int": (body(datatype="INT32", data=[1, 2.5]), 400, "Expected `int`, got `float`"),
    "whole float for int": (body(datatype="INT32", data=[1, 2.0]), 400, "Expected `int`, got `float`"),
    "int for bool": (body(datatype="BOOL", data=[1, 0]), 400, "Expected `bool`, got `int`"),
    "number for text": (body(datatype="BYTES", data=[1, 0]), 400, "Expected `str`, got `int`"),
    "256 for UINT8": (body(datatype="UINT8", data=[1, 256]), 400, "out of bounds for uint8"),
    "-1 for UINT64": (body(datatype="UINT64", data=[1, -1]), 400, "out of bounds for uint64"),
    "2**63 for INT64": (body(datatype="INT64", data=[1, 2**63]), 400, "too large"),
    "2**64 for UINT64": (body(datatype="UINT64", data=[1, 2**64]), 400, "input 'x'"),
    "1e39 for FP32": (body(data=[1, 1e39]), 400, "overflow"),
    "65520 for FP16": (body(datatype="FP16", data=[1, 65520]), 400, "overflow"),
    "1e400": (body().replace(b"[1, 2]}", b"[1, 1e400]}"), 400, "out of range"),
    "a number of 5,000 digits": (
        body().replace(b"[1, 2]}", b"[1, " + b"9" * 5000 + b"]}"),
        400,
        "out of range",
    ),
    "a lone surrogate": (body(datatype="BYTES", data=["\ud800", "b"]), 400, LEND),
    "10,000 brackets as data": (body(data=7).replace(b"7", b"[" * 10000), 400, ""),
    "100,000 brackets, closed": (
        body(data=7).replace(b"7", b"[" * 100_000 + b"]" * 100_000),
        400,
        "too deeply",
    ),
    "100,000 objects": (b'{"a":' * 100_000 + b"}" * 100_000, 400, "too deeply"),
    "brackets and NaN": (
        body(data=7).replace(b"7", b"[" * 100_000 + b"NaN" + b"]" * 100_000),
        400,
        "too deeply",
    ),
    "an input given twice": (
        infer(("x", "FP32", [1], [1]), ("x", "FP32", [1], [1])),
        400,
        "'x' is given twice",
    ),
    "an output twice": (
        b'{"inputs":[],"outputs":[{"name":"y"},{"name":"y"}]}',
        400,
        "'y' is requested twice",
    ),
    "classification": (
        b'{"inputs":[],"outputs":[{"name":"y","parameters":{"classification":3}}]}',
        400,
        "the classification extension is not supported",
    ),
    "shared memory": (
        body(data=None, parameters={"shared_memory_region": "r"}),
        400,
        "shared memory is not supported",
    ),
    "NaN for an int": (body(datatype="INT32", data=[1, math.nan]), 400, "Expected `int`, got `float`"),
    "NaN in a parameter": (
        b'{"parameters":{"a":NaN},"inputs":[]}',
        400,
        "NaN and Infinity may stand only in the data of FP tensors",
    ),
    "NaN as the data": (body(data=math.nan), 400, "Expected `array`, got `float`"),
    "NaN beside 1e400": (
        body(data=[math.nan, 2]).replace(b"2]}", b"1e400]}"),
        400,
        "NaN and Infinity may stand only",
    ),
    "NaN in half a body": (body(data=[math.nan, 2])[:-1], 400, LEND),
    "NaN in what is no UTF-8": (b'{"id":"\xff","inputs":[],"a":NaN}', 400, LEND),
    "UTF-16": (body().decode().encode("utf-16"), 400, LEND),
    "a binary size, but no binary part": (
        sized(8),
        400,
        "has binary_data_size, but the request has no Inference-Header-Content-Length",
    ),
    "header longer than the body": ((b"{}", 3), 400, "Content-Length is 3, but the body has 2 bytes"),
    "binary too short": (
        with_binary(sized(8), b"1234"),
        400,
        "binary_data_size is 8, but only 4 bytes are left",
    ),
    "binary too long": (with_binary(sized(8), bytes(9)), 400, "1 bytes follow the last binary tensor"),
    "binary size and shape differ": (
        with_binary(sized(4), bytes(4)),
        400,
        "binary_data_size is 4, shape [1, 2] of FP32 needs 8",
    ),
    "a negative binary size": (with_binary(sized(-8), bytes(8)), 400, "Expected `int` >= 0"),
    "data and binary size": (
        with_binary(body(parameters={"binary_data_size": 8}), bytes(8)),
        400,
        "has both data and binary_data_size",
    ),
    "a BOOL of 2": (with_binary(sized(2, datatype="BOOL"), b"\1\2"), 400, "neither 0 nor 1"),
    "BYTES with a lying length": (
        with_binary(sized(10, datatype="BYTES"), struct.pack("<IIH", 0, 99, 0)),
        400,
        "BYTES element 1 claims 99 bytes, but 2 are left",
    ),
    "BYTES that end too early": (
        with_binary(sized(9, datatype="BYTES"), struct.pack("<I", 5) + b"12345"),
        400,
        "the data ends before BYTES element 1 of 2",
    ),
    "BYTES too small for the count": (
        with_binary(sized(4, datatype="BYTES", shape=[50_000_000]), bytes(4)),
        400,
        "too small for 50000000 BYTES elements",
    ),
    "BYTES with something behind": (
        with_binary(sized(9, datatype="BYTES"), bytes(9)),
        400,
        "1 bytes follow the last of 2 BYTES elements",
    ),
}


@pytest.mark.parametrize(("content", "status", "message"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_body_is_refused_with_a_reason(content, status, message):
    content, length = content if isinstance(content, tuple) else (content, NO_BINARY)
    with pytest.raises(coding.BadRequest) as refused:
        oip.decode(content, length)
    assert refused.value.status == status
    assert message in refused.value.message
    assert len(refused.value.message) < 500


@pytest.mark.parametrize(
    ("content", "signature", "message"),
    [
        (bytes(13), ONE, "shape [1, 3] of FP32 needs 12"),
        (bytes(4), ONE, "binary_data_size is 4"),
        (bytes(4), (), "needs a model with one input; this one has 0"),
        (bytes(4), ONE * 2, "needs a model with one input; this one has 2"),
        (bytes(4), (oip.TensorSpec("x", "FP32", (-1, -1, -1)),), "leaves the shape open"),
        (bytes(4), (oip.TensorSpec("x", "BYTES", (2,)),), "one BYTES element; the model takes BYTES [2]"),
    ],
)
def test_a_raw_body_that_does_not_fit_the_model_is_refused(content, signature, message):
    with pytest.raises(coding.BadRequest, match=r".") as refused:
        oip.decode(content, 0, signature=signature)
    assert message in refused.value.message


def test_flat_and_nested_data_are_the_same_tensor():
    flat = oip.decode(infer(("x", "FP32", [2, 1, 2], [1, 2, 3, 4])))
    nested = oip.decode(infer(("x", "FP32", [2, 1, 2], [[[1, 2]], [[3, 4]]])))
    assert np.array_equal(flat.inputs["x"], nested.inputs["x"])
    assert flat.inputs["x"].shape == (2, 1, 2)


def test_empty_tensors_scalars_and_white_space_are_fine():
    request = oip.decode(
        b'{"inputs":[{"name":"e","shape":[0,3],"datatype":"FP32","data":[ ]},'
        b'{"name":"n","shape":[2,0],"datatype":"INT8","data":[ [],[] ]},'
        b'{"name":"s","shape":[],"datatype":"BYTES","data":["a"]}]}'
    )
    assert [array.shape for array in request.inputs.values()] == [(0, 3), (2, 0), ()]


def test_nan_and_infinity_tokens_are_taken_in_fp_data_as_real_clients_send_them():
    request = oip.decode(infer(("x", "FP32", [4], [math.nan, math.inf, -math.inf, 1]), id="NaN"))
    assert np.array_equal(request.inputs["x"], [np.nan, np.inf, -np.inf, 1], equal_nan=True)
    assert request.id == "NaN"


def test_unknown_keys_and_nulls_change_nothing():
    request = oip.decode(
        b'{"id":null,"parameters":null,"outputs":null,"new":{"a":[1]},"inputs":[{"name":"x","shape":[1],'
        b'"datatype":"FP32","data":[1],"parameters":{"content_type":"np","x":{"y":1}}}]}'
    )
    assert (request.id, request.outputs, request.binary_output) == (None, None, False)


def test_an_output_may_say_otherwise_than_the_request_about_binary_data():
    request = oip.decode(
        b'{"inputs":[],"parameters":{"binary_data_output":true},"outputs":[{"name":"a"},'
        b'{"name":"b","parameters":{"binary_data":false}}]}'
    )
    assert request.outputs == {"a": True, "b": False}


@pytest.mark.parametrize("spaces", range(16))
def test_a_binary_tensor_begins_where_onnxruntime_adds_in_the_same_order_wherever_it_was_in_the_body(spaces):
    values = struct.pack("<ff", 0.1, 2.5)
    tensor = {"name": "a", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    head = json.dumps({"inputs": [tensor]}).encode() + b" " * spaces
    array = oip.decode(head + values, len(head)).inputs["a"]
    assert array.ctypes.data % 16 == 0
    assert array.tobytes() == values


def test_binary_and_json_tensors_may_be_mixed_in_both_directions():
    content, length = binary(
        {
            "inputs": [
                {"name": "a", "shape": [3], "datatype": "BOOL", "parameters": {"binary_data_size": 3}},
                {"name": "b", "shape": [1], "datatype": "FP32", "data": [2]},
                {"name": "c", "shape": [2], "datatype": "FP64", "parameters": {"binary_data_size": 16}},
            ],
            "outputs": [
                {"name": "b", "parameters": {"binary_data": False}},
                {"name": "c", "parameters": {"binary_data": True}},
                {"name": "a", "parameters": {"binary_data": True}},
            ],
        },
        bytes([1, 0, 1]),
        struct.pack("<dd", 0.1, math.inf),
    )
    request = oip.decode(content, length)
    assert request.inputs["c"].flags.aligned
    outputs = {name: request.inputs[name] for name in ("b", "c", "a")}
    found = tensors_of(_answer(*oip.encode("m", "1", "i", outputs, request)))
    assert {name: array.tolist() for name, array in found.items()} == {
        "b": [2.0],
        "c": [0.1, math.inf],
        "a": [True, False, True],
    }


def test_not_a_number_is_null_in_json_for_every_float_type():
    outputs = {
        name: np.array([np.nan, np.inf, 1], dtype=oip.DTYPES[name]) for name in ("FP16", "FP32", "FP64")
    }
    content, _ = oip.encode("m", "1", "i", outputs, oip.InferRequest(None, {}))
    assert [output["data"] for output in json.loads(content)["outputs"]] == [[None, None, 1.0]] * 3


def test_bytes_that_json_cannot_carry_are_refused_with_the_way_out():
    outputs = {"y": np.array([b"\xff"], dtype=object)}
    with pytest.raises(coding.BadRequest, match="request it with the parameter binary_data"):
        oip.encode("m", "1", "i", outputs, oip.InferRequest(None, {}))
    content, length = oip.encode("m", "1", "i", outputs, oip.InferRequest(None, {}, binary_output=True))
    assert content[length:] == b"\1\0\0\0\xff"


def test_an_error_is_one_line_of_json():
    assert oip.error_body("a\nb\ud800") == b'{"error":"a b?"}'


def test_compressed_bodies_of_several_members_are_whole():
    assert coding.decompress(gzip.compress(b"one ") + gzip.compress(b"two"), Encoding.GZIP) == b"one two"


@pytest.mark.parametrize(
    ("content", "encoding", "status", "message"),
    [
        (b"no gzip", Encoding.GZIP, 400, "the body is not valid gzip"),
        (gzip.compress(body(), mtime=0)[:-9], Encoding.GZIP, 400, "the body's gzip stream ends too early"),
        (b"", Encoding.GZIP, 400, "ends too early"),
        (gzip.compress(body(), mtime=0) + b"more", Encoding.GZIP, 400, "the body is not valid gzip"),
        (gzip.compress(body(), mtime=0), Encoding.DEFLATE, 400, "the body is not valid deflate"),
        (zlib.compress(body()) + b"more", Encoding.DEFLATE, 400, "bytes follow the end"),
        (
            zlib.compress(bytes(coding.MAX_BODY + 1)),
            Encoding.DEFLATE,
            413,
            "more than 67108864 bytes after decompression",
        ),
        (
            gzip.compress(bytes(coding.MAX_BODY), mtime=0) + gzip.compress(b"1", mtime=0),
            Encoding.GZIP,
            413,
            "after decompression",
        ),
        (bytes(coding.MAX_BODY + 1), Encoding.IDENTITY, 413, "the limit is 67108864"),
    ],
)
def test_what_does_not_decompress_to_a_body_is_refused(content, encoding, status, message):
    with pytest.raises(coding.BadRequest) as refused:
        oip.decode(content, encoding=encoding)
    assert refused.value.status == status
    assert message in refused.value.message


def test_the_json_length_counts_decompressed_bytes():
    content, length = with_binary(sized(8), struct.pack("<ff", 1, 2))
    request = oip.decode(gzip.compress(content), length, Encoding.GZIP)
    assert request.inputs["x"].tolist() == [[1.0, 2.0]]


def elements(dtype):
    if dtype.kind == "O":
        return st.text(st.characters(codec="utf-8")).map(str.encode)
    if dtype.kind == "f":  # JSON has no payload for NaN; a test of its own looks at the tokens
        return hnp.from_dtype(dtype, allow_nan=False, allow_infinity=False)
    return hnp.from_dtype(dtype)


tensors = st.sampled_from(list(oip.DTYPES)).flatmap(
    lambda name: hnp.arrays(
        oip.DTYPES[name],
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
        elements=elements(oip.DTYPES[name]),
    )
)


@given(
    arrays=st.lists(tensors, max_size=3), as_binary=st.booleans(), nested=st.booleans(), flipped=st.booleans()
)
def test_what_goes_in_comes_out_bit_for_bit(arrays, as_binary, nested, flipped):
    """A request with these tensors, decoded, encoded as an answer, and read again."""
    head, raw = [], []
    for index, array in enumerate(arrays):
        tensor = {"name": str(index), "datatype": oip.DATATYPES[array.dtype], "shape": array.shape}
        if as_binary:
            raw.append(oip._pack_bytes(array) if array.dtype.kind == "O" else array.tobytes())
            tensor["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            values = np.vectorize(bytes.decode, otypes=[object])(array) if array.dtype.kind == "O" else array
            tensor["data"] = values.tolist() if nested and array.ndim else values.ravel().tolist()
        head.append(tensor)
    content, length = binary({"inputs": head}, *raw)
    request = oip.decode(content, length if as_binary else NO_BINARY)
    request.binary_output = as_binary != flipped
    found = tensors_of(_answer(*oip.encode("m", "1", "i", request.inputs, request)))
    for index, array in enumerate(arrays):
        kept = found[str(index)]
        if kept.dtype.kind == "O" and not request.binary_output:
            kept = np.vectorize(str.encode, otypes=[object])(kept) if kept.size else kept
        assert (kept.dtype, kept.shape) == (array.dtype, array.shape)
        assert (
            kept.tolist() == array.tolist() if kept.dtype.kind == "O" else kept.tobytes() == array.tobytes()
        )


@given(
    content=st.binary(max_size=200) | st.text(alphabet='{}[]",:inputsxdae0123NF.-').map(str.encode),
    length=st.integers(0, 210),
)
def test_no_body_does_more_than_be_refused(content, length):
    for json_length in (NO_BINARY, length):
        with contextlib.suppress(coding.BadRequest):
            oip.decode(content, json_length, signature=ONE)


def _answer(content, json_length):
    return Answer(1, 200, content, json_length=json_length)
