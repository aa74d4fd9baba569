"""Models of an MLflow registry: what an alias means, which file it is, who is let in, and what happens when the alias moves.

The registry is a stand-in over real sockets (mlflow_registry.py).
"""

import base64
import hashlib
import random

import pytest
from file_server import Answer
from mlflow_registry import MLMODEL, MlflowRegistry

from deployctl.errors import IntegrityError, InvalidError, UnavailableError
from deployctl.sources import MODEL_SOURCES
from deployctl.sources.fetch import Patience, fetched

HASTE = Patience(first=0.001, longest=0.002, asked=0.01)
SEVEN, EIGHT = (random.Random(seed).randbytes(300_000) for seed in (7, 8))
VARIABLES = ("REGISTRY_URI", "TRACKING_URI", "TRACKING_TOKEN", "TRACKING_USERNAME", "TRACKING_PASSWORD")


def digest_of(model):
    return f"sha256:{hashlib.sha256(model).hexdigest()}"


def logged(model, **more):
    return {"MLmodel": MLMODEL.encode(), "model.onnx": model, "conda.yaml": b"{}", **more}


@pytest.fixture
def registry(trusted, monkeypatch):
    registry = MlflowRegistry()
    for variable in (*VARIABLES, "TRACKING_SERVER_CERT_PATH"):
        monkeypatch.delenv(f"MLFLOW_{variable}", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.url(""))
    registry.log("digits", 7, logged(SEVEN))
    registry.log("digits", 8, logged(EIGHT))
    registry.aliases["digits", "champion"] = 7
    yield registry
    registry.close()


def get(cache, uri, digest=None):
    return fetched(uri, digest, cache, MODEL_SOURCES, patience=HASTE)


def test_an_alias_is_the_version_that_it_means_by_now(registry, cache):
    found = get(cache, "models:/digits@champion")
    assert (found.digest, found.path.read_bytes()) == (digest_of(SEVEN), SEVEN)
    assert found.resolved == f"models:/digits/7 at {registry.url('')}, 1/run7/artifacts/model/model.onnx"
    registry.aliases["digits", "champion"] = 8
    assert get(cache, "models:/digits@champion").digest == digest_of(EIGHT)
    assert get(cache, "models:/digits/7").digest == digest_of(SEVEN)


def test_an_alias_that_means_other_bytes_than_the_digest_is_refused(registry, cache):
    registry.aliases["digits", "champion"] = 8
    with pytest.raises(IntegrityError, match=r"models:/digits/8 at .*: its bytes are sha256:") as caught:
        get(cache, "models:/digits@champion", digest_of(SEVEN))
    assert digest_of(SEVEN) in str(caught.value)
    assert digest_of(EIGHT) in str(caught.value)


def test_what_is_here_by_its_digest_needs_no_registry(registry, cache):
    get(cache, "models:/digits@champion")
    registry.close()
    assert get(cache, "models:/digits@champion", digest_of(SEVEN)).path.read_bytes() == SEVEN


def test_the_server_reads_the_store_that_only_it_can_reach(registry, cache):
    registry.log("digits", 9, logged(EIGHT), store="/srv/mlruns")
    found = get(cache, "models:/digits/9")
    assert found.digest == digest_of(EIGHT)
    assert "get-artifact" in registry.seen[-1].path


def test_a_folder_without_an_mlmodel_file_has_one_onnx_file_or_is_refused(registry, cache):
    registry.log("digits", 1, {"net.onnx": SEVEN, "readme.md": b""})
    assert get(cache, "models:/digits/1").digest == digest_of(SEVEN)
    registry.log("digits", 2, {"a.onnx": SEVEN, "b.onnx": EIGHT})
    with pytest.raises(InvalidError, match=r"2 ONNX files \(a.onnx, b.onnx\)"):
        get(cache, "models:/digits/2")
    registry.log("digits", 3, {"model.pkl": SEVEN})
    with pytest.raises(InvalidError, match="no ONNX file"):
        get(cache, "models:/digits/3")


@pytest.mark.parametrize(
    ("mlmodel", "words"),
    [
        (
            "flavors: {sklearn: {pickled_model: model.pkl}, python_function: {}}",
            "sklearn, python_function, and none is onnx",
        ),
        ("flavors: {onnx: {data: ../../secrets}}", "names no file of its folder"),
        ("flavors: {onnx: {data: /etc/passwd}}", "names no file of its folder"),
        ("flavors: {onnx: {}}", "cannot be read"),
        ("a: [", "cannot be read"),
        ("!!python/object/apply:os.system [true]", "cannot be read"),
    ],
)
def test_an_mlmodel_file_that_leads_nowhere_is_one_line(registry, cache, mlmodel, words):
    registry.log("digits", 4, logged(SEVEN, MLmodel=mlmodel.encode()))
    with pytest.raises(InvalidError, match=words) as caught:
        get(cache, "models:/digits/4")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "authorization"),
    [
        ({"TOKEN": "t0ken"}, "Bearer t0ken"),
        ({"USERNAME": "me", "PASSWORD": "pass"}, f"Basic {base64.b64encode(b'me:pass').decode()}"),
    ],
)
def test_mlflows_own_variables_let_in(registry, cache, monkeypatch, variables, authorization):
    registry.let_in = authorization
    with pytest.raises(UnavailableError, match="not let in"):
        get(cache, "models:/digits@champion")
    for name, value in variables.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    assert get(cache, "models:/digits@champion").digest == digest_of(SEVEN)


def test_a_user_in_the_address_of_the_registry_lets_in_and_is_never_shown(registry, cache, monkeypatch):
    registry.let_in = f"Basic {base64.b64encode(b'me:5ec7e7').decode()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.url("").replace("//", "//me:5ec7e7@"))
    assert "5ec7e7" not in repr(get(cache, "models:/digits@champion"))
    with pytest.raises(InvalidError) as caught:
        get(cache, "models:/digits@nobody")
    assert "5ec7e7" not in str(caught.value)


def test_what_the_registry_does_not_know_is_one_line(registry, cache):
    for uri in ("models:/digits@nobody", "models:/digits/99"):
        with pytest.raises(InvalidError, match=f"{uri} at .*: the server answers 40[04]; correct the uri"):
            get(cache, uri)


@pytest.mark.parametrize("address", ["", "sqlite:///mlflow.db", "databricks", "http://", "http://[::1"])
def test_without_the_address_of_a_registry_it_says_which_variable_to_set(
    registry, cache, monkeypatch, address
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(UnavailableError, match="set MLFLOW_TRACKING_URI to its address"):
        get(cache, "models:/digits@champion")


def test_files_on_another_host_do_not_get_the_registrys_token(registry, cache):
    registry.versions["digits", "7"] = "mlflow-artifacts://elsewhere:5000/1/run7/artifacts/model"
    with pytest.raises(UnavailableError, match="on elsewhere:5000, which is not the registry"):
        get(cache, "models:/digits/7")


def test_a_registry_that_is_busy_is_asked_again(registry, cache):
    registry.answers.extend([Answer(status=503), Answer(status=429)])
    assert get(cache, "models:/digits@champion").digest == digest_of(SEVEN)


@pytest.mark.parametrize(
    "answer", [Answer(drop_at=200_000), Answer(cut_at=200_000)], ids=["broken off", "cut"]
)
def test_a_stream_that_ends_too_early_is_asked_for_again_from_its_beginning(registry, cache, answer):
    registry.of_path["/api/2.0/mlflow-artifacts/artifacts/1/run7/artifacts/model/model.onnx"] = answer
    found = get(cache, "models:/digits@champion")
    assert found.path.read_bytes() == SEVEN
    assert sum("model.onnx" in seen.path for seen in registry.seen) == 2
    assert not any("range" in seen.headers for seen in registry.seen)


def test_a_registry_that_knows_ranges_goes_on_where_it_broke_off(trusted, cache, monkeypatch):
    registry = MlflowRegistry(streams=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.url(""))
    registry.log("digits", 7, logged(SEVEN))
    registry.of_path["/api/2.0/mlflow-artifacts/artifacts/1/run7/artifacts/model/model.onnx"] = Answer(
        drop_at=200_000
    )
    assert get(cache, "models:/digits/7").digest == digest_of(SEVEN)
    assert registry.seen[-1].start > 0
    registry.close()


def test_a_model_in_a_folder_of_its_folder_is_found(registry, cache):
    registry.log(
        "digits",
        5,
        {"MLmodel": MLMODEL.replace("data: model", "data: onnx/model").encode(), "onnx/model.onnx": EIGHT},
    )
    assert get(cache, "models:/digits/5").digest == digest_of(EIGHT)


def test_an_answer_that_is_none_is_one_line(registry, cache):
    registry.files["/api/2.0/mlflow/registered-models/alias"] = b"<html>"
    registry.reply = lambda _seen: None
    with pytest.raises(UnavailableError, match="does not answer in JSON"):
        get(cache, "models:/digits@champion")
    registry.files["/api/2.0/mlflow/registered-models/alias"] = b'{"model_version": {"version": "../3"}}'
    with pytest.raises(UnavailableError, match="says of no version"):
        get(cache, "models:/digits@champion")
