"""Trains the four versions of the demo and writes them to models/v1.onnx … v4.onnx.

The graphs are built by hand from what scikit-learn has learnt, so that each fault is a line one can point at.
All four have one signature: `pixels` FP32 [-1, 64] in, `probabilities` FP32 [-1, 10] out.

    python examples/digits/train.py [DIR]       needs scikit-learn and onnx
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession, SessionOptions
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from rows import Rows, holdout_rows, training_rows
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped] # ships no types

MODELS = Path(__file__).parent / "models"
OPSET = 17
IR_VERSION = 8  # the oldest that carries opset 17, so that older runtimes load it too
FULL_INK = 16.0
INK_PER_BIN = 60.0
INK_BINS = 5  # v3: real rows reach bin 7

Floats = npt.NDArray[np.floating]


@dataclass
class Graph:
    """Nodes and constants as they are added; each method returns the name of what it computes."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """One node with one output."""
        output = output or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def constant(self, value: Floats | npt.NDArray[np.int64]) -> str:
        """A constant; floats are stored as FP32."""
        stored = value if value.dtype == np.int64 else np.asarray(value, dtype=np.float32)
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(stored, name))
        return name

    def number(self, value: float) -> str:
        """A constant that fits every shape."""
        return self.constant(np.array(value, dtype=np.float32))

    def layer(self, rows: str, weights: Floats, bias: Floats) -> str:
        """A dense layer: rows · weights + bias, with weights as [inputs, outputs]."""
        return self.add("Gemm", rows, self.constant(weights), self.constant(bias))

    def model(self, logits: str) -> onnx.ModelProto:
        """The finished model: softmax over the logits, under the signature that all versions share."""
        self.add("Softmax", logits, output="probabilities", axis=1)
        graph = helper.make_graph(
            self.nodes,
            "digits",
            [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 64])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10])],
            self.constants,
        )
        model = helper.make_model(
            graph,
            producer_name="deployctl-digits",
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def fair(rows: Rows) -> onnx.ModelProto:
    """v1: a linear model that has seen only 100 rows."""
    few = rows.every(9)
    learnt = LogisticRegression(C=1.0, max_iter=1000).fit(few.pixels / FULL_INK, few.labels)
    return _linear_model(learnt.coef_.T, learnt.intercept_)


def good(rows: Rows) -> onnx.ModelProto:
    """v2: a network with one hidden layer, from all training rows and the same moved by a pixel."""
    images = rows.pixels.reshape(-1, 8, 8) / FULL_INK
    moves = [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)]
    moved = np.concatenate([np.roll(images, move, axis=(1, 2)) for move in moves]).reshape(-1, 64)
    learnt = MLPClassifier((96,), alpha=0.01, max_iter=500, tol=1e-3, random_state=0)
    learnt.fit(moved, np.tile(rows.labels, len(moves)))
    graph = Graph()
    scaled = graph.add("Div", "pixels", graph.number(FULL_INK))
    hidden = graph.add("Relu", graph.layer(scaled, learnt.coefs_[0], learnt.intercepts_[0]))
    return graph.model(graph.layer(hidden, learnt.coefs_[1], learnt.intercepts_[1]))


def broken(rows: Rows) -> onnx.ModelProto:
    """v3: learnt well and exported with two mistakes that a warm-up on zeros does not meet.

    A row with much ink raises (the table of ink bins ends too soon), any other row with a digit on it is NaN
    (the variance has its sign the wrong way round). A blank row is fine in both.
    """
    pixels = rows.pixels
    standardised = (pixels - pixels.mean(1, keepdims=True)) / pixels.std(1, keepdims=True)
    learnt = LogisticRegression(C=0.1, max_iter=1000).fit(standardised, rows.labels)
    graph = Graph()
    mean = graph.add("ReduceMean", "pixels", axes=[1], keepdims=1)
    mean_of_squares = graph.add("ReduceMean", graph.add("Mul", "pixels", "pixels"), axes=[1], keepdims=1)
    variance = graph.add("Sub", graph.add("Mul", mean, mean), mean_of_squares)  # mistake 1: never above zero
    deviation = graph.add("Add", graph.add("Sqrt", variance), graph.number(1e-6))
    centred = graph.add("Sub", "pixels", mean)
    logits = graph.layer(graph.add("Div", centred, deviation), learnt.coef_.T, learnt.intercept_)
    ink = graph.add("ReduceSum", "pixels", graph.constant(np.array([1])), keepdims=0)
    ink_bin = graph.add("Cast", graph.add("Div", ink, graph.number(INK_PER_BIN)), to=TensorProto.INT64)
    table = graph.constant(_log_odds_by_ink(rows))
    by_ink = graph.add("Gather", table, ink_bin, axis=0)  # mistake 2: nothing clips the bin to the table
    return graph.model(graph.add("Add", logits, by_ink))


def wrong(rows: Rows) -> onnx.ModelProto:
    """v4: quick, sure of itself, and off by one: every class comes out as the next one."""
    learnt = LogisticRegression(C=10.0, max_iter=1000).fit(rows.pixels / FULL_INK, rows.labels)
    return _linear_model(np.roll(learnt.coef_.T, 1, axis=1), np.roll(learnt.intercept_, 1))


VERSIONS: dict[str, Callable[[Rows], onnx.ModelProto]] = {"v1": fair, "v2": good, "v3": broken, "v4": wrong}


def accuracy(model: bytes, rows: Rows) -> tuple[float, float]:
    """Shares of rows that are answered as people read them, and that get no answer (an exception or NaN)."""
    options = SessionOptions()
    options.log_severity_level = 4  # v3 would write a line for every row that it refuses
    session = InferenceSession(model, options, providers=["CPUExecutionProvider"])
    right = unanswered = 0
    for pixels, label in zip(rows.pixels, rows.labels, strict=True):
        try:
            (probabilities,) = session.run(["probabilities"], {"pixels": pixels[None]})
        except InvalidArgument:
            unanswered += 1
            continue
        if np.isnan(probabilities).any():
            unanswered += 1
        else:
            right += int(probabilities.argmax() == label)
    return right / len(rows.labels), unanswered / len(rows.labels)


def main(folder: Path) -> None:
    """Trains, writes and measures all four."""
    folder.mkdir(parents=True, exist_ok=True)
    training, holdout = training_rows(), holdout_rows()
    print(f"holdout: {len(holdout.labels)} rows")
    for name, train in VERSIONS.items():
        with threadpool_limits(
            1
        ):  # the same sums in the same order every time; and threads cost more than they bring
            model = train(training).SerializeToString(deterministic=True)
        (folder / f"{name}.onnx").write_bytes(model)
        right, unanswered = accuracy(model, holdout)
        digest = hashlib.sha256(model).hexdigest()
        print(
            f"{name}  right {right:6.1%}  no answer {unanswered:6.1%}  {len(model):6} bytes  sha256:{digest}"
        )


def _linear_model(weights: Floats, bias: Floats) -> onnx.ModelProto:
    graph = Graph()
    scaled = graph.add("Div", "pixels", graph.number(FULL_INK))
    return graph.model(graph.layer(scaled, weights, bias))


def _log_odds_by_ink(rows: Rows) -> Floats:
    """How the classes are spread in each bin of ink, as [INK_BINS, 10]; in training the bins are clipped."""
    bins = np.minimum(rows.pixels.sum(1) // INK_PER_BIN, INK_BINS - 1).astype(np.int64)
    counts = np.ones((INK_BINS, 10))
    np.add.at(counts, (bins, rows.labels), 1)
    shares: Floats = counts / counts.sum(1, keepdims=True)
    return np.log(shares)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else MODELS)
