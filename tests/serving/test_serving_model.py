"""Models that must not be served: each ends its worker with one line and an exit code."""

import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import models
import numpy as np
import onnx
import pytest
from bench_worker import Bench
from onnx import TensorProto, helper

from deployctl.errors import InvalidError
from deployctl.serving.external import external_tensor
from deployctl.serving.model import Model

GOOD = models.classifier()


def unknown_operator():
    return models.model(
        [("NoSuchOperator", ["x"], ["y"], {})],
        [("x", models.FLOAT, [1])],
        [("y", models.FLOAT, [1])],
    )


def bfloat16():
    kind = TensorProto.BFLOAT16
    return models.model([("Identity", ["x"], ["y"], {})], [("x", kind, [1])], [("y", kind, [1])])


def sequence():
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", models.FLOAT, [1])],
        [helper.make_tensor_sequence_value_info("y", models.FLOAT, [1])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    proto.ir_version = 8
    return proto.SerializeToString()


def too_large():
    return models.echo("FP32", [2**31 - 1, 2**31 - 1])


REFUSED = {
    "empty": (b"", "cannot load the model"),
    "not ONNX": (b"this is a text file\n" * 100, "not an ONNX model, or truncated"),
    "truncated": (GOOD[: len(GOOD) // 2], "not an ONNX model, or truncated"),
    "one byte short": (GOOD[:-1], "not an ONNX model, or truncated"),
    "unknown operator": (unknown_operator(), "NoSuchOperator"),
    "a type of no use": (bfloat16(), "input 'x' is tensor(bfloat16), which the protocol cannot carry"),
    "a sequence": (sequence(), "output 'y' is seq(tensor(float)), which the protocol cannot carry"),
    "raises in the warm-up": (
        models.raises_on_zeros(),
        "the warm-up inference on zeros failed: the model failed in node",
    ),
    "too large to warm up": (too_large(), "the warm-up inference on zeros failed"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_a_model_of_no_use_ends_its_worker_with_one_line_and_2(start, content, message):
    bench = start(content)
    assert bench.report["exit_code"] == 2
    assert message in bench.report["failed"]
    assert "\n" not in bench.report["failed"]
    assert bench.wait() == 2
    assert bench.process.stderr.read().decode() == bench.report["failed"] + "\n"
    assert not bench.socket.exists()


@pytest.mark.parametrize("kind", ["INT32", "FP32"])
def test_a_model_with_a_size_or_a_divisor_among_its_inputs_is_warmed_with_one_in_its_place(start, kind):
    bench = start(models.resized() if kind == "FP32" else models.divided())
    assert "ready" in bench.report
    assert bench.report["ready"]["nonfinite"] == []


def test_a_missing_file_is_the_users_mistake(start):
    bench = start(None)
    assert (bench.report["exit_code"], bench.wait()) == (2, 2)
    assert "model.onnx: cannot be read: No such file" in bench.report["failed"]


def test_other_bytes_than_the_digest_says_are_never_loaded(start):
    bench = start(GOOD, digest="sha256:" + "0" * 64)
    assert (bench.report["exit_code"], bench.wait()) == (9, 9)
    assert hashlib.sha256(GOOD).hexdigest() in bench.report["failed"]


def test_a_socket_that_cannot_be_made_is_neither_the_models_nor_the_users_fault(tmp_path):
    (tmp_path / "w.sock").mkdir()
    bench = Bench(tmp_path, GOOD)
    try:
        assert (bench.report["exit_code"], bench.wait()) == (8, 8)
        assert "cannot listen" in bench.report["failed"]
    finally:
        bench.close()


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        ({"output": "nope"}, "the model has no output 'nope'; known: 'probabilities', 'scores'"),
        ({"output": "scores", "read": "value"}, "'value' is not supported yet; known: argmax, text"),
        ({"output": "scores", "read": "text"}, "output 'scores' holds numbers"),
        ({"output": "scores", "classes": ["a", "b"]}, "names 2 classes, output 'scores' has 3"),
        ({"output": "scores", "confidence_below": 0.5}, "output 'scores' holds no probabilities"),
        ({"output": 7}, "worker settings: Expected `str`, got `int`"),
    ],
)
def test_a_prediction_section_that_the_model_cannot_satisfy_is_refused(start, prediction, message):
    bench = start(GOOD, prediction=prediction)
    assert (bench.report["exit_code"], bench.wait()) == (2, 2)
    assert message in bench.report["failed"]


def with_external_data(place):
    """A model with one tensor in another file, at one of the places where ONNX allows tensors."""
    tensor = onnx.numpy_helper.from_array(np.ones(3, dtype=np.float32), "secret")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="data.bin")
    proto = onnx.load_from_string(models.echo("FP32"))
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    if place == "initializer":
        proto.graph.initializer.append(tensor)
    elif place == "constant":
        proto.graph.node.insert(0, constant)
    elif place == "subgraph":
        branch = helper.make_graph([constant], "branch", [], [helper.make_tensor_value_info("c", 1, [3])])
        proto.graph.node.append(helper.make_node("If", ["b"], ["z"], then_branch=branch, else_branch=branch))
    elif place == "function":
        proto.functions.append(helper.make_function("d", "f", [], ["c"], [constant], []))
    elif place == "sparse":
        proto.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor, tensor, [3]))
    return proto.SerializeToString()


@pytest.mark.parametrize("place", ["initializer", "constant", "subgraph", "function", "sparse"])
def test_external_data_are_found_wherever_onnx_allows_tensors(place):
    assert external_tensor(memoryview(with_external_data(place))) == "secret"


def test_a_model_with_external_data_ends_its_worker(start):
    bench = start(with_external_data("initializer"))
    assert (bench.report["exit_code"], bench.wait()) == (2, 2)
    assert "tensor 'secret' keeps its data in another file" in bench.report["failed"]


def test_a_complete_model_has_no_external_data():
    assert external_tensor(memoryview(GOOD)) is None


def test_damaged_models_fail_with_our_errors_or_load(tmp_path):
    """Every single damaged byte and every truncation of a small model, in process."""
    file = Path(tmp_path / "m.onnx")
    small = models.echo("FP32")
    for index in range(len(small)):
        damaged = small[:index] + bytes([small[index] ^ 0x55]) + small[index + 1 :]
        for content in (damaged, small[:index]):
            file.write_bytes(content)
            with contextlib.suppress(InvalidError):
                Model(file, "sha256:" + hashlib.sha256(content).hexdigest())


THREADS = """
import os, numpy
before = len(os.listdir("/proc/self/task"))
import deployctl.serving.model
print(len(os.listdir("/proc/self/task")) - before, os.environ["ORT_DISABLE_TELEMETRY"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_the_runtime_reports_to_nobody():
    """Left to itself, onnxruntime may start a thread with its import that sends to its makers what it sees."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    argv = [sys.executable, "-c", THREADS]
    child = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    assert child.stdout.split() == ["0", "1"]
