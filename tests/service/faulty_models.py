"""ONNX classifiers of one signature (`x` FP32 [n, 4] in, `probabilities` FP32 [n, 3] out), each with a fault of its own.

Row (1, 0, 0, 0) is class 0 and so on. Every fault but those of the warm-up shows on real rows only, never on zeros.
"""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FEATURES, CLASSES = 4, 3
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
WEIGHTS = 6 * np.eye(FEATURES, CLASSES, dtype=np.float32)

Node = tuple[str, list[str], list[str], dict]
FOR_EVER = 2**50
"""Rounds; times the rows of a batch it must stay a whole number of 64 bits."""

ROW = (
    ("ReduceMax", ["sum"], ["largest"], {"keepdims": 0}),
    ("Cast", ["largest"], ["row"], {"to": INT64}),
)
"""The sum of the row (the largest of a batch) as a whole number: 1 for the rows of callers, 0 in the warm-up."""


def sound(mark="1"):
    """Right on every row. Another mark gives other bytes, and so another version."""
    return _model(mark, scores="scores")


def many_classes(mark, classes):
    """As `sound`, with as many classes as this."""
    return _model(mark, scores="scores", weights=6 * np.eye(FEATURES, classes, dtype=np.float32))


def off_by_one():
    """Sure of itself and wrong: every class comes out as the next one."""
    return _model("off by one", scores="scores", weights=np.roll(WEIGHTS, 1, axis=1))


def nan_on_rows():
    """NaN: the square root of something negative."""
    return _model("nan", [("Neg", ["sum"], ["minus"], {}), ("Sqrt", ["minus"], ["fault"], {})])


def infinite_on_rows():
    """Infinity in the answer itself: 1 / 0."""
    fault = [("Sub", ["one", "sum"], ["left"], {}), ("Div", ["sum", "left"], ["fault"], {})]
    return _model("infinite", fault, last=("Add", ["sound_probabilities", "fault"], {}), one=np.float32(1))


def raises_on_rows():
    """Raises: looks up row 1 of a table that has one row."""
    index = [("Cast", ["sum"], ["index"], {"to": INT64}), ("Gather", ["table", "index"], ["fault"], {})]
    return _model("raises", index, table=np.zeros(1, dtype=np.float32))


def raises_on_negative_rows():
    """As `raises_on_rows`, where the sum of a row is -1; right on all others."""
    index = [
        ("Neg", ["sum"], ["below"], {}),
        ("Relu", ["below"], ["rank"], {}),
        ("Cast", ["rank"], ["index"], {"to": INT64}),
        ("Gather", ["table", "index"], ["fault"], {}),
    ]
    return _model("raises on negative", index, table=np.zeros(1, dtype=np.float32))


def other_shape_on_rows():
    """Two classes more than it claims."""
    pads = [*ROW, ("Mul", ["row", "two_more"], ["pads"], {})]
    two_more = np.array([0, 0, 0, 2], dtype=np.int64)
    return _model("padded", pads, last=("Pad", ["sound_probabilities", "pads"], {}), two_more=two_more)


def claims_one_more():
    """Sound, and claims one class more than it has, as exporters do."""
    zero = np.zeros(4, dtype=np.int64)
    pads = [*ROW, ("Mul", ["row", "nothing"], ["pads"], {})]
    return _model(
        "one more", pads, last=("Pad", ["sound_probabilities", "pads"], {}), claims=CLASSES + 1, nothing=zero
    )


def other_datatype():
    """Whole numbers where it claims floats."""
    return _model("whole", last=("Cast", ["sound_probabilities"], {"to": INT64}))


def too_large_on_rows(times=8_000_000):
    """So many times the answer: more than a body may hold."""
    repeats = [
        *ROW,
        ("Mul", ["row", "times"], ["more"], {}),
        ("Add", ["more", "ones"], ["repeats"], {}),
    ]
    constants = {"times": np.array([times, 0], dtype=np.int64), "ones": np.ones(2, dtype=np.int64)}
    return _model("too large", repeats, last=("Tile", ["sound_probabilities", "repeats"], {}), **constants)


def out_of_memory_on_rows(gibibytes=64):
    """Asks for so much memory at once, and would use it."""
    huge = [
        *ROW,
        ("Mul", ["row", "floats"], ["shape"], {}),
        ("ConstantOfShape", ["shape"], ["huge"], {}),
        ("ReduceSum", ["huge"], ["fault"], {"keepdims": 0}),
    ]
    return _model("huge", huge, floats=np.array([gibibytes << 28], dtype=np.int64))


def crashing_on_rows(column=2):
    """Ends its process on rows of one class: the least whole number divided by -1 is a signal (SIGFPE) on x86."""
    division = [
        ("MatMul", ["x", "picker"], ["picked"], {}),
        ("Cast", ["picked"], ["whole"], {"to": INT64}),
        ("Sub", ["one", "whole"], ["divisor"], {}),
        ("Div", ["least", "divisor"], ["quotient"], {}),
        ("Mul", ["quotient", "none"], ["harmless"], {}),
        ("Cast", ["harmless"], ["fault"], {"to": FLOAT}),
    ]
    picker = np.zeros((FEATURES, 1), dtype=np.float32)
    picker[column] = 2
    numbers = {"one": 1, "least": -(2**63), "none": 0}
    whole = {name: np.array(number, dtype=np.int64) for name, number in numbers.items()}
    return _model("crashing", division, picker=picker, **whole)


def nan_on_zeros():
    """NaN in the warm-up already: 0 / 0."""
    return _model("nan on zeros", [("Div", ["sum", "sum"], ["fault"], {})])


def raises_on_zeros():
    """Raises in the warm-up already."""
    index = [
        ("Cast", ["sum"], ["whole"], {"to": INT64}),
        ("Sub", ["whole", "nine"], ["index"], {}),
        ("Gather", ["table", "index"], ["fault"], {}),
    ]
    return _model(
        "raises on zeros", index, table=np.zeros(1, dtype=np.float32), nine=np.array(9, dtype=np.int64)
    )


def slow(milliseconds):
    """Burns about this much time in a loop of small additions: `calibrated` to this machine."""
    return _looping(f"slow {milliseconds}", int(milliseconds * _loops_per_millisecond()))


def slow_to_warm_up(mark, milliseconds):
    """Sound and quick on real rows, and slow on zeros: loading it takes this long, whatever the machine's disk does."""
    return _looping(mark, int(milliseconds * _loops_per_millisecond()), on=0)


def hanging():
    """Never answers."""
    return _looping("hanging", FOR_EVER)


def hanging_on_negative_rows():
    """Never answers where the sum of a row is -1; right on all others."""
    return _looping("hanging on negative", FOR_EVER, on=-1)


def one_long_node(boxes=120_000):
    """Takes many seconds in a single node of the graph, which nothing but a signal ends: compares each box with all others."""
    comparing = [
        *ROW,
        ("Mul", ["row", "most"], ["kept"], {}),
        ("NonMaxSuppression", ["boxes", "ranks", "kept"], ["selected"], {}),
        ("Cast", ["selected"], ["numbers"], {"to": FLOAT}),
        ("ReduceSum", ["numbers"], ["fault"], {"keepdims": 0}),
    ]
    left = 2 * np.arange(boxes, dtype=np.float32)
    corners = np.stack(
        [np.zeros(boxes, dtype=np.float32), left, np.ones(boxes, dtype=np.float32), left + 1], 1
    )
    constants = {"boxes": corners[None], "ranks": np.linspace(1, 2, boxes, dtype=np.float32)[None, None]}
    return _model("one long node", comparing, most=np.array(boxes, dtype=np.int64), **constants)


def larger_than(mebibytes):
    """Sound, and takes at least so much memory: a table that is added, times nothing, to every answer."""
    table = np.full(mebibytes << 18, 0.5, dtype=np.float32)
    last = [
        ("ReduceMax", ["table"], ["most"], {"keepdims": 0}),
        ("Mul", ["sum", "nothing"], ["never"], {}),
        ("Mul", ["never", "most"], ["fault"], {}),
    ]
    return _model("large", last, table=table, nothing=np.float32(0))


def other_input():
    """Its input has another name."""
    return _model("other input", scores="scores", input_name="pixels")


def other_shape():
    """One class more than it should have."""
    return _model("other shape", scores="scores", weights=6 * np.eye(FEATURES, CLASSES + 1, dtype=np.float32))


def _looping(mark, rounds, *, on=1):
    """`rounds` additions for every row of this sum."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["goes_on"]),
            helper.make_node("Add", ["before", "before"], ["after"]),
        ],
        "additions",
        [
            helper.make_tensor_value_info("round", INT64, []),
            helper.make_tensor_value_info("go_on", BOOL, []),
            helper.make_tensor_value_info("before", FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("goes_on", BOOL, []),
            helper.make_tensor_value_info("after", FLOAT, []),
        ],
    )
    nodes = [
        ("Cast", ["sum"], ["rows"], {"to": INT64}),
        ("Equal", ["rows", "kind"], ["meant"], {}),
        ("Cast", ["meant"], ["each"], {"to": INT64}),
        ("ReduceSum", ["each"], ["times"], {"keepdims": 0}),
        ("Mul", ["times", "rounds"], ["trips"], {}),
        ("Loop", ["trips", "true", "zero"], ["fault"], {"body": body}),
    ]
    constants = {
        "kind": np.array(on, dtype=np.int64),
        "rounds": np.array(rounds, dtype=np.int64),
        "true": np.array(True),
        "zero": np.float32(0),
    }
    return _model(mark, nodes, **constants)


def _model(
    mark,
    fault=(),
    *,
    scores="sound_scores",
    weights=WEIGHTS,
    input_name="x",
    last=None,
    claims=None,
    **constants,
):
    """Softmax over a linear layer, plus what the fault's nodes give; `last` makes the answer of the `sound_probabilities`."""
    nodes: list[Node] = [("MatMul", [input_name, "weights"], [scores], {})]
    if fault:
        nodes += [("ReduceSum", [input_name, "axis"], ["sum"], {"keepdims": 1}), *fault]
        constants["axis"] = np.array([1], dtype=np.int64)
    if last is not None:
        op, ins, attributes = last
        nodes.append(("Softmax", [scores], ["sound_probabilities"], {"axis": 1}))
        nodes.append((op, ins, ["probabilities"], attributes))
    else:
        if fault:
            nodes.append(("Add", ["sound_scores", "fault"], ["scores"], {}))
        nodes.append(("Softmax", ["scores"], ["probabilities"], {"axis": 1}))
    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in nodes],
        mark,
        [helper.make_tensor_value_info(input_name, FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("probabilities", FLOAT, ["n", claims or weights.shape[1]])],
        [
            numpy_helper.from_array(np.asarray(value), name)
            for name, value in {"weights": weights, **constants}.items()
        ],
    )
    proto = helper.make_model(
        graph, producer_name=mark, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    return proto.SerializeToString()


def _loops_per_millisecond():
    """Measured here and now, the fastest of three."""
    import time

    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        _looping("calibration", 10_000), options, providers=["CPUExecutionProvider"]
    )
    row = np.array([[1, 0, 0, 0]], dtype=np.float32)
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        session.run(None, {"x": row})
        taken.append(time.perf_counter() - began)
    return 10_000 / min(taken) / 1000
