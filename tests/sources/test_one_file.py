"""Models whose tensors lie in files beside them, as MLflow logs them: they come as one file that says the very same."""

import hashlib

import numpy as np
import onnx
import onnxruntime
import pytest
from file_server import FileServer
from mlflow_registry import MLMODEL, MlflowRegistry
from onnx import TensorProto, helper, numpy_helper

from deployctl.errors import IntegrityError, InvalidError
from deployctl.serving.external import external_tensor
from deployctl.sources import MODEL_SOURCES
from deployctl.sources.cache import ModelCache
from deployctl.sources.fetch import Patience, fetched

HASTE = Patience(first=0.001, longest=0.002)
RNG = np.random.default_rng(7)
ROWS = RNG.normal(size=(5, 40)).astype(np.float32)


def classifier():
    """Tensors among the initializers, in an attribute, in a graph within a graph, and in a function."""
    weights = [
        numpy_helper.from_array(RNG.normal(size=(40, 40)).astype(np.float32), f"w{n}") for n in range(3)
    ]
    constant = helper.make_node(
        "Constant", [], ["c"], value=numpy_helper.from_array(RNG.normal(size=(40, 8)).astype(np.float32))
    )
    branches = [
        helper.make_graph(
            [helper.make_node("MatMul", ["h", f"b{n}"], [f"o{n}"])],
            f"branch {n}",
            [],
            [helper.make_tensor_value_info(f"o{n}", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(RNG.normal(size=(40, 40)).astype(np.float32), f"b{n}")],
        )
        for n in range(2)
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("MatMul", ["a", "w1"], ["h"]),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["yes"], to=TensorProto.BOOL),
        helper.make_node("If", ["yes"], ["i"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("MatMul", ["i", "w2"], ["j"]),
        constant,
        helper.make_node("MatMul", ["j", "c"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def saved(model, folder, **how):
    """The files of the model with its data beside it."""
    folder.mkdir()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save_model(copy, folder / "model.onnx", save_as_external_data=True, size_threshold=0, **how)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def answer(file):
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"x": ROWS})[0]


@pytest.fixture
def registry(trusted, monkeypatch):
    registry = MlflowRegistry()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.url(""))
    yield registry
    registry.close()


def log(registry, number, files):
    registry.log("net", number, {"MLmodel": MLMODEL.encode(), **files})


def get(cache, number, digest=None):
    return fetched(f"models:/net/{number}", digest, cache, MODEL_SOURCES, patience=HASTE)


@pytest.mark.parametrize(
    "how",
    [
        {"all_tensors_to_one_file": True},
        {"all_tensors_to_one_file": True, "location": "weights.bin", "convert_attribute": True},
        {"all_tensors_to_one_file": False, "convert_attribute": True},
    ],
)
def test_a_model_with_its_data_beside_it_comes_as_one_that_answers_the_same(registry, cache, tmp_path, how):
    model = classifier()
    files = saved(model, tmp_path / "saved", **how)
    assert len(files) > 1
    log(registry, 1, files)
    found = get(cache, 1)
    content = found.path.read_bytes()
    assert found.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert external_tensor(memoryview(content)) is None
    onnx.checker.check_model(onnx.load(found.path), full_check=True)
    assert np.array_equal(answer(str(found.path)), answer(str(tmp_path / "saved" / "model.onnx")))
    for path in cache.path(found.digest).parent.iterdir():
        path.unlink()
    assert get(cache, 1, found.digest).digest == found.digest  # the same files, the same bytes


def test_the_digest_is_that_of_the_one_file(registry, cache, tmp_path):
    files = saved(classifier(), tmp_path / "saved")
    log(registry, 1, files)
    of_its_head = f"sha256:{hashlib.sha256(files['model.onnx']).hexdigest()}"
    with pytest.raises(IntegrityError, match="its bytes are"):
        get(cache, 1, of_its_head)


def test_data_that_are_missing_too_short_or_elsewhere_are_one_line(registry, cache, tmp_path):
    files = saved(classifier(), tmp_path / "saved", location="weights.bin")
    log(registry, 1, {"model.onnx": files["model.onnx"]})
    with pytest.raises(InvalidError, match=r"weights.bin: the server answers 404"):
        get(cache, 1)
    log(registry, 2, files | {"weights.bin": files["weights.bin"][:-1]})
    with pytest.raises(InvalidError, match=r"weights.bin ends before a tensor of it does"):
        get(cache, 2)
    for number, place in enumerate(("../weightsbin", "/eights.bin", "a//ights.bin"), 3):
        head = files["model.onnx"].replace(b"weights.bin", place.encode()[:11].ljust(11, b"x"))
        log(registry, number, files | {"model.onnx": head})
        with pytest.raises(InvalidError, match="in no file of its folder"):
            get(cache, number)


def enclosed(number, content):
    return bytes([number << 3 | 2, len(content)]) + content


def test_a_damaged_tensor_beside_one_whose_data_are_elsewhere_is_one_line(registry, cache):
    elsewhere = enclosed(13, enclosed(1, b"location") + enclosed(2, b"weights.bin"))
    graph = enclosed(5, b"\x0f") + enclosed(5, elsewhere)
    log(registry, 1, {"model.onnx": enclosed(7, graph), "weights.bin": b""})
    with pytest.raises(InvalidError, match=r"not an ONNX model, or truncated: wire type 7"):
        get(cache, 1)


def test_one_that_is_too_large_as_one_file_is_refused(registry, tmp_path):
    files = saved(classifier(), tmp_path / "saved")
    log(registry, 1, files)
    cache = ModelCache(tmp_path / "state", largest=max(map(len, files.values())))
    with pytest.raises(InvalidError, match="is too large"):
        get(cache, 1)


def test_a_model_that_is_none_is_left_to_whoever_loads_it(registry, cache):
    for number, content in enumerate((b"", b"this is no model"), 1):
        log(registry, number, {"model.onnx": content})
        assert get(cache, number).path.read_bytes() == content


def test_behind_a_url_there_is_nothing_beside_a_file(trusted, cache, tmp_path):
    """Its digest covers this file alone, so it comes as it is, and whoever loads it refuses it."""
    head = saved(classifier(), tmp_path / "saved")["model.onnx"]
    server = FileServer()
    server.files["/model.onnx"] = head
    digest = f"sha256:{hashlib.sha256(head).hexdigest()}"
    found = fetched(server.url("/model.onnx"), digest, cache, MODEL_SOURCES, patience=HASTE)
    assert external_tensor(memoryview(found.path.read_bytes())) is not None
    assert len(server.seen) == 1
    server.close()
