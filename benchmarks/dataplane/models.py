"""The two models that every stack serves, the requests for them, and what bare onnxruntime answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]


@dataclass(frozen=True)
class Workload:
    """One model with one body. `headers` go with each request; `path` is what follows the stack's address."""

    name: str
    file: Path
    rows: Array
    body: bytes
    headers: dict[str, str]
    expected: Array


def tab(hidden: tuple[int, int] = (64, 32)) -> bytes:
    """30 features, two hidden layers of 64 and 32, two classes: a table's row, 17 kB."""
    sizes = [30, *hidden, 2]
    nodes, weights, name = [], [], "x"
    random = np.random.default_rng(1)
    for layer, (wide, narrow) in enumerate(pairwise(sizes)):
        matrix = random.normal(size=(narrow, wide)).astype(np.float32) / np.sqrt(wide)
        weights += [
            numpy_helper.from_array(matrix.astype(np.float32), f"w{layer}"),
            numpy_helper.from_array(random.normal(size=narrow).astype(np.float32), f"b{layer}"),
        ]
        nodes.append(helper.make_node("Gemm", [name, f"w{layer}", f"b{layer}"], [f"g{layer}"], transB=1))
        name = f"g{layer}"
        if layer < len(sizes) - 2:
            nodes.append(helper.make_node("Relu", [name], [f"r{layer}"]))
            name = f"r{layer}"
    nodes.append(helper.make_node("Softmax", [name], ["probabilities"]))
    return _model(nodes, ["N", 30], ["N", 2], weights)


def conv() -> bytes:
    """A picture of 64 by 64 in three colours, three convolutions, ten classes."""
    random = np.random.default_rng(2)
    channels = [3, 16, 32, 64]
    nodes, weights, name = [], [], "x"
    for layer, (before, after) in enumerate(pairwise(channels)):
        kernel = random.normal(size=(after, before, 3, 3)).astype(np.float32) / np.sqrt(9 * before)
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"k{layer}"))
        nodes += [
            helper.make_node("Conv", [name, f"k{layer}"], [f"c{layer}"], strides=[2, 2], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]),
        ]
        name = f"r{layer}"
    weights.append(numpy_helper.from_array(random.normal(size=(64, 10)).astype(np.float32), "w"))
    nodes += [
        helper.make_node("GlobalAveragePool", [name], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["s"]),
        helper.make_node("Softmax", ["s"], ["probabilities"]),
    ]
    return _model(nodes, ["N", 3, 64, 64], ["N", 10], weights)


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "bench",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, inputs)],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, outputs)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def marked(content: bytes, mark: str) -> bytes:
    """The same model with other bytes, and so another version of it."""
    model = onnx.load_from_string(content)
    model.doc_string = mark
    return bytes(model.SerializeToString())


def workloads(directory: Path) -> dict[str, Workload]:
    """`tab-json`, `conv-json` and `conv-binary`; writes each model as NAME-1.onnx and, with other bytes, NAME-2.onnx;
    tab-slow.onnx takes the same rows ten times as long.
    """
    import onnxruntime  # noqa: PLC0415 - the bodies alone need none

    (directory / "tab-slow.onnx").write_bytes(tab((640, 320)))
    found = {}
    for name, content, shape in (("tab", tab(), (1, 30)), ("conv", conv(), (1, 3, 64, 64))):
        for version in ("1", "2"):
            (directory / f"{name}-{version}.onnx").write_bytes(marked(content, version))
        file = directory / f"{name}-1.onnx"
        rows = np.random.default_rng(3).normal(size=shape).astype(np.float32).round(3)
        (expected,) = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(
            None, {"x": rows}
        )
        head: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": list(shape)}
        text = json.dumps({"inputs": [{**head, "data": [round(float(one), 3) for one in rows.ravel()]}]})
        json_headers = {"Content-Type": "application/json"}
        found[f"{name}-json"] = Workload(f"{name}-json", file, rows, text.encode(), json_headers, expected)
        if name == "conv":
            tensor = {**head, "parameters": {"binary_data_size": rows.nbytes}}
            binary = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
            headers = {
                "Content-Type": "application/octet-stream",
                "Inference-Header-Content-Length": str(len(binary)),
            }
            found[f"{name}-binary"] = Workload(
                f"{name}-binary", file, rows, binary + rows.tobytes(), headers, expected
            )
    return found
