"""ONNX classifiers of one signature (`x` FP32 [n, 4] in, `probabilities` FP32 [n, 3] out), each with a fault of its own.

Row (1, 0, 0, 0) is class 0 and so on. Every fault but those of the warm-up shows on real rows only, never on zeros.
"""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FEATURES, CLASSES = 4, 3
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
WEIGHTS = 6 * np.eye(FEATURES, CLASSES, dtype=np.float32)

Node = tuple[str, list[str], list[str], dict]


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


def raises_on_rows():
    """Raises: looks up row 1 of a table that has one row."""
    index = [("Cast", ["sum"], ["index"], {"to": INT64}), ("Gather", ["table", "index"], ["fault"], {})]
    return _model("raises", index, table=np.zeros(1, dtype=np.float32))


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
    return _looping(mark, int(milliseconds * _loops_per_millisecond()), on_zeros=True)


def hanging():
    """Never answers."""
    return _looping("hanging", 2**62)


def other_input():
    """Its input has another name."""
    return _model("other input", scores="scores", input_name="pixels")


def other_shape():
    """One class more than it should have."""
    return _model("other shape", scores="scores", weights=6 * np.eye(FEATURES, CLASSES + 1, dtype=np.float32))


def _looping(mark, rounds, *, on_zeros=False):
    """`rounds` additions for every row that is not zero, or for those that are."""
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
        ("ReduceMax", ["sum"], ["largest"], {"keepdims": 0}),
        ("Cast", ["largest"], ["row"], {"to": INT64}),
        ("Equal", ["row", "kind"], ["meant"], {}),
        ("Cast", ["meant"], ["times"], {"to": INT64}),
        ("Mul", ["times", "rounds"], ["trips"], {}),
        ("Loop", ["trips", "true", "zero"], ["fault"], {"body": body}),
    ]
    kind = np.array(0 if on_zeros else 1, dtype=np.int64)
    constants = {
        "kind": kind,
        "rounds": np.array(rounds, dtype=np.int64),
        "true": np.array(True),
        "zero": np.float32(0),
    }
    return _model(mark, nodes, **constants)


def _model(mark, fault=(), *, scores="sound_scores", weights=WEIGHTS, input_name="x", **constants):
    """Softmax over a linear layer, plus what the fault's nodes give."""
    nodes: list[Node] = [("MatMul", [input_name, "weights"], [scores], {})]
    if fault:
        nodes += [
            ("ReduceSum", [input_name, "axis"], ["sum"], {"keepdims": 1}),
            *fault,
            ("Add", ["sound_scores", "fault"], ["scores"], {}),
        ]
        constants["axis"] = np.array([1], dtype=np.int64)
    nodes.append(("Softmax", ["scores"], ["probabilities"], {"axis": 1}))
    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in nodes],
        mark,
        [helper.make_tensor_value_info(input_name, FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("probabilities", FLOAT, ["n", weights.shape[1]])],
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
