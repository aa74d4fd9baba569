"""The quick reader of long JSON against the careful one: the same tensors to the last bit, or the same refusal."""

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deployctl.wire import large_json, oip
from deployctl.wire.coding import BadRequest

TYPES = [*oip.DTYPES, "FP8"]
SPECIAL = [
    "NaN",
    "-Infinity",
    "1e999",
    "3.5e38",
    "-0",
    "-0.0",
    "1.0",
    "1e2",
    "0.1e-400",
    "true",
    "null",
    '"1"',
    "[1]",
    "{}",
    "01",
    "1.",
]
INTEGERS = [
    "0",
    "1",
    "-1",
    "127",
    "128",
    "255",
    "256",
    "-129",
    "65536",
    "2147483648",
    "-9223372036854775808",
    "9223372036854775808",
]
INTEGERS += ["18446744073709551615", "18446744073709551616", "9007199254740993", "16777217"]


@st.composite
def numbers(draw):
    """What may stand in data, mostly what fits."""
    kind = draw(st.sampled_from(["float", "float", "integer", "any"]))
    if kind == "float":
        return repr(draw(st.floats(allow_nan=False, allow_infinity=False, width=32)))
    return draw(st.sampled_from(INTEGERS if kind == "integer" else SPECIAL + INTEGERS))


def nested(flat, shape):
    if len(shape) < 2 or 0 in shape:
        return "[" + ",".join(flat) + "]"
    step = len(flat) // shape[0] if shape[0] else 0
    return (
        "[" + ",".join(nested(flat[at * step : (at + 1) * step], shape[1:]) for at in range(shape[0])) + "]"
    )


@st.composite
def tensors(draw):
    datatype = draw(st.sampled_from(["FP32", "FP32", "FP64", "FP16", "INT64", *TYPES]))
    shape = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    wanted = int(np.prod(shape))
    alike = draw(numbers()) if draw(st.booleans()) else None
    flat = [
        alike or draw(numbers()) for _ in range(max(0, wanted + draw(st.sampled_from([0, 0, 0, 0, 1, -1]))))
    ]
    data = nested(flat, shape) if draw(st.booleans()) else "[" + ",".join(flat) + "]"
    if draw(st.integers(0, 9)) == 0:
        data = draw(
            st.sampled_from(["[1,[2]]", "[[1,2],[3]]", "[[1],2]", "1", "null", "[[]]", "[[[1]]]", '["["]'])
        )
    parts = [
        f'"name":"{draw(st.sampled_from("xxxy"))}"',
        f'"shape":{shape}',
        f'"datatype":"{datatype}"',
        f'"data":{data}',
    ]
    parts += draw(st.lists(st.sampled_from(MORE), max_size=1))
    return "{" + ",".join(draw(st.permutations(parts))) + "}"


MORE = [
    '"data":[1]',
    '"name":"z"',
    '"parameters":{"a":[1]}',
    '"parameters":{"binary_data_size":4}',
    '"extra":[[1]]',
    '"extra":"[[["',
    '"\\u0073hape":[1]',
]
HEADS = [
    "",
    '"id":"7",',
    '"id":7,',
    '"outputs":[{"name":"y"}],',
    '"outputs":[{"name":"y","parameters":{"binary_data":true}}],',
    '"parameters":{"binary_data_output":true,"deep":[[1],{"a":[]}]},',
    '"inputs":[],',
    '"id":"\\ud800",',
    '"id":"ü[",',
]


@st.composite
def bodies(draw):
    inputs = ",".join(draw(st.lists(tensors(), min_size=1, max_size=2)))
    text = "{" + draw(st.sampled_from(HEADS)) + f'"inputs":[{inputs}]' + "}"
    return (
        draw(st.sampled_from(["", "", "", " ", "\ufeff", "[", "x"]))
        + text
        + draw(st.sampled_from(["", "", "\n", "}"]))
    ).encode()


def outcome(body, worth):
    before, large_json.WORTH = large_json.WORTH, worth
    try:
        read = oip.decode(body)
    except BadRequest as refusal:
        return refusal.status, refusal.message
    finally:
        large_json.WORTH = before
    tensors = {
        name: (array.dtype.str, array.shape, array.tobytes())
        for name, array in read.inputs.items()
        if array.dtype.kind != "O"
    }
    texts = {name: array.tolist() for name, array in read.inputs.items() if array.dtype.kind == "O"}
    return read.id, read.outputs, read.binary_output, tensors, texts


@settings(max_examples=1000, deadline=None)
@given(bodies())
@example(b'{"inputs":[{"name":"x","shape":[2],"datatype":"FP32","data":[1,[2]]}]}')
@example(b'{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[[1,2,3],[4]]}]}')
@example(b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1],"data":[2]}]}')
@example(b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT8","data":[128]}]}')
@example(b'{"inputs":[{"name":"x","shape":[1],"datatype":"BOOL","data":[1]}]}')
@example(b'{"inputs":[{"name":"x","shape":[2,0],"datatype":"FP32","data":[[],[]]}]}')
@example(b'{"inputs":[1,2,3]}')
@example(b'{"inputs":"text ["}')
@example(b'{"inputs":{"a":[]}}')
@example(b'{"inputs":[[]]}')
@example(b'{"inputs":[null]}')
@example(b'{"inputs":{},"id":"["}')
@example(b'{"x":[[]],"x\\u0000":1,"inputs":[{"name":"x","shape":[2],"datatype":"FP32","data":[1,[2]]}]}')
@example(b'{"inputs":' + b"[" * 3000 + b"]" * 3000 + b"}")
def test_both_readers_say_the_same(body):
    assert outcome(body, 0) == outcome(body, 1 << 60)


@pytest.mark.parametrize("flat", [True, False], ids=["flat", "nested"])
@pytest.mark.parametrize("datatype", ["FP64", "FP32", "FP16", "INT32", "UINT8", "UINT64"])
def test_a_picture_is_read_the_quick_way(monkeypatch, datatype, flat):
    """Otherwise the test above would hold, and nothing be gained."""
    array = (np.random.default_rng(3).random((1, 3, 32, 32)) * 200).astype(oip.DTYPES[datatype])
    data = array.ravel().tolist() if flat else array.tolist()
    tensor = {"name": "x", "shape": list(array.shape), "datatype": datatype, "data": data}
    body = json.dumps({"inputs": [tensor]}).encode()
    assert len(body) > large_json.WORTH

    def careful(*_):
        raise AssertionError("the careful reader was asked")

    monkeypatch.setattr(oip, "_decode_raw_body", careful)
    assert np.array_equal(oip.decode(body).inputs["x"], array)


@pytest.mark.parametrize("where", ["", '"parameters":{'], ids=["at the top", "in the parameters"])
def test_very_many_keys_are_left_to_the_careful_reader(where):
    """To find one key the quick one looks at all before it: for a hundred thousand that is half a minute."""
    keys = ",".join(f'"k{number}":0' for number in range(100_000))
    body = "{" + where + keys + ("}" if where else "") + ',"inputs":[]}'
    assert large_json.read(body.encode(), oip.DTYPES) is None


def test_the_memory_of_a_very_long_text_is_given_back():
    before = large_json._parser
    tensor = {"name": "x", "shape": [200_000], "datatype": "FP32", "data": [0.125] * 200_000}
    body = json.dumps({"inputs": [tensor]}).encode()
    assert len(body) > large_json.KEPT
    assert large_json.read(body, oip.DTYPES) is not None
    assert large_json._parser is not before
