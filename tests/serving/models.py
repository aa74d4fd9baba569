"""ONNX models made for these tests, the poisonous ones among them, as bytes."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def model(nodes, inputs, outputs, initializers=()):
    """A model from `(op, inputs, outputs, attributes)` rows and `(name, type, shape)` tensors."""
    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in nodes],
        "test",
        [helper.make_tensor_value_info(*tensor) for tensor in inputs],
        [helper.make_tensor_value_info(*tensor) for tensor in outputs],
        [numpy_helper.from_array(array, name) for name, array in initializers],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    proto.ir_version = 8
    return proto.SerializeToString()


def echo(datatype, shape=("n", 3)):
    """Gives back what it gets."""
    kind = ONNX_TYPES[datatype]
    return model([("Identity", ["x"], ["y"], {})], [("x", kind, shape)], [("y", kind, shape)])


def divided():
    """x / by, in whole numbers: by zero it fails."""
    kind = ONNX_TYPES["INT32"]
    tensors = [("x", kind, ["n"]), ("by", kind, [1])]
    return model([("Div", ["x", "by"], ["y"], {})], tensors, [("y", kind, ["n"])])


def resized():
    """A picture, larger or smaller by factors that the caller gives: by zero it fails."""
    tensors = [("x", FLOAT, [1, 1, 4, 4]), ("scales", FLOAT, [4])]
    node = ("Resize", ["x", "", "scales"], ["y"], {"mode": "nearest"})
    return model([node], tensors, [("y", FLOAT, ["a", "b", "c", "d"])])


def classifier(features=4, classes=3, scale=1.0):
    """A linear layer and a softmax, with weights that are always the same."""
    weights = np.random.default_rng(7).normal(size=(features, classes)).astype(np.float32) * scale
    return model(
        [("MatMul", ["x", "w"], ["scores"], {}), ("Softmax", ["scores"], ["probabilities"], {})],
        [("x", FLOAT, ["n", features])],
        [("probabilities", FLOAT, ["n", classes]), ("scores", FLOAT, ["n", classes])],
        [("w", weights)],
    )


def square_root(name="y"):
    """NaN for every negative number; zeros, and so the warm-up, are fine."""
    return model([("Sqrt", ["x"], [name], {})], [("x", FLOAT, ["n", 3])], [(name, FLOAT, ["n", 3])])


def lookup():
    """Raises for an index that the table of three rows has not, among them every one below -3."""
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    return model(
        [("Gather", ["t", "x"], ["y"], {})], [("x", INT64, ["n"])], [("y", FLOAT, ["n", 2])], [("t", table)]
    )


def division():
    """NaN in the warm-up: 0 / 0."""
    return model([("Div", ["x", "x"], ["y"], {})], [("x", FLOAT, ["n", 3])], [("y", FLOAT, ["n", 3])])


def raises_on_zeros():
    """Loads, and raises in the warm-up: it looks up the row 0 - 9."""
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    return model(
        [("Sub", ["x", "nine"], ["i"], {}), ("Gather", ["t", "i"], ["y"], {})],
        [("x", INT64, ["n"])],
        [("y", FLOAT, ["n", 2])],
        [("t", table), ("nine", np.array(9, dtype=np.int64))],
    )


def two_inputs():
    """Adds them."""
    return model(
        [("Add", ["a", "b"], ["sum"], {}), ("Sub", ["a", "b"], ["difference"], {})],
        [("a", FLOAT, ["n", 2]), ("b", FLOAT, ["n", 2])],
        [("sum", FLOAT, ["n", 2]), ("difference", FLOAT, ["n", 2])],
    )


def slow(size=700, rounds=12):
    """A chain of matrix products that keeps one core busy for some ten milliseconds, and one small output."""
    names = ["x"] + [f"h{index}" for index in range(rounds)]
    products = [("MatMul", [names[index], "w"], [names[index + 1]], {}) for index in range(rounds)]
    return model(
        [*products, ("ReduceMax", [names[-1]], ["y"], {"keepdims": 1})],
        [("x", FLOAT, [size, size])],
        [("y", FLOAT, [1, 1])],
        [("w", np.zeros((size, size), dtype=np.float32))],
    )
