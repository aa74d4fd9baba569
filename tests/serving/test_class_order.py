"""A candidate whose classes stand in another order passes every check of shapes; here it does not."""

import hashlib
from pathlib import Path

import faulty_models
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deployctl.serving import class_order
from deployctl.serving.class_order import class_order_problem, moved_classes, named_classes
from deployctl.serving.model import Model, Stopped
from deployctl.serving.watch import Watch

DIGITS = Path(__file__).parents[2] / "examples/digits/models"
PHONES = Path(__file__).parents[2] / "examples/phone-inspection/models"
NAMES = tuple("0123456789")


def opened(path, watch=None):
    return Model(path, f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}", watch)


def reordered(path, order, folder):
    """The same model with the columns of its probabilities in another order."""
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.array(order, np.int64), "order"))
    for node in model.graph.node:
        node.output[:] = ["before" if name == "probabilities" else name for name in node.output]
    model.graph.node.append(helper.make_node("Gather", ["before", "order"], ["probabilities"], axis=1))
    file = folder / "reordered.onnx"
    onnx.save(model, file)
    return file


def with_names(path, folder, key, text):
    model = onnx.load(path)
    helper.set_model_props(model, {key: text})
    file = folder / f"named-{len(list(folder.iterdir()))}.onnx"
    onnx.save(model, file)
    return file


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_ten_classes_that_all_moved_by_one_are_found(tmp_path, version):
    path = DIGITS / f"{version}.onnx"
    rotated = opened(reordered(path, np.roll(np.arange(10), 1), tmp_path))
    moved = moved_classes(opened(path), rotated, "probabilities")
    assert moved
    assert all(other == (one + 1) % 10 for one, other in moved.items())


def test_of_two_classes_a_swap_is_found_on_pictures_too(tmp_path):
    path = PHONES / "v1.onnx"
    swapped = opened(reordered(path, [1, 0], tmp_path))
    problem = class_order_problem(opened(path), swapped, "probabilities", ("ok", "scratched"))
    assert problem is not None
    assert "ok → scratched, scratched → ok" in problem
    assert "look at prediction.classes" in problem


@pytest.mark.parametrize(("folder", "output"), [(DIGITS, NAMES), (PHONES, ("ok", "scratched"))])
def test_versions_that_were_trained_apart_are_not_taken_for_a_swap(folder, output):
    one, other = (opened(folder / f"{version}.onnx") for version in ("v1", "v2"))
    for pair in ((one, other), (other, one)):
        assert class_order_problem(*pair, "probabilities", output) is None


@pytest.mark.parametrize(
    ("key", "ours", "theirs"),
    [
        ("classes", '["a", "b"]', '["b", "a"]'),
        ("names", "{0: 'a', 1: 'b'}", "{0: 'b', 1: 'a'}"),
        ("labels", "a, b", "b, a"),
    ],
)
def test_names_in_the_metadata_tell_it_at_once(tmp_path, key, ours, theirs):
    one, other = (
        opened(with_names(PHONES / f"{version}.onnx", tmp_path, key, text))
        for version, text in (("v1", ours), ("v2", theirs))
    )
    assert named_classes(one) == ["a", "b"]
    problem = class_order_problem(one, other, "probabilities", ("a", "b"))
    assert problem == "its metadata names the classes b, a, the baseline's a, b"


@pytest.mark.parametrize("text", ["", "[", "{0: ", "one", "[" * 5000])
def test_metadata_that_names_nothing_is_no_witness(tmp_path, text):
    assert named_classes(opened(with_names(PHONES / "v1.onnx", tmp_path, "names", text))) in (None, [])


def test_a_model_that_fails_on_noise_is_no_witness(tmp_path):
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["at"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "at"], ["probabilities"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(np.zeros((1, 2), np.float32), "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file = tmp_path / "fails.onnx"
    onnx.save(model, file)
    assert moved_classes(opened(file), opened(file), "probabilities") is None


def test_where_it_takes_too_long_nothing_is_said_and_one_that_hangs_is_stopped(tmp_path, monkeypatch):
    path = DIGITS / "v1.onnx"
    rotated = opened(reordered(path, np.roll(np.arange(10), 1), tmp_path))
    assert moved_classes(opened(path), rotated, "probabilities") is not None
    monkeypatch.setattr(class_order, "MAX_SECONDS", 0.0)
    assert moved_classes(opened(path), rotated, "probabilities") is None

    monkeypatch.setattr(class_order, "MAX_SECONDS", 1.0)
    sound, hanging = tmp_path / "sound.onnx", tmp_path / "hanging.onnx"
    sound.write_bytes(faulty_models.sound("1"))
    hanging.write_bytes(faulty_models.hanging())
    stopped = []
    monkeypatch.setattr(Model, "_failure", counting(Model._failure, stopped))
    assert moved_classes(opened(sound), opened(hanging, Watch()), "probabilities") is None
    assert [type(failure) for failure in stopped] == [Stopped]


def counting(method, results):
    """The method, and what it gave in `results`."""

    def counted(*args):
        results.append(method(*args))
        return results[-1]

    return counted
