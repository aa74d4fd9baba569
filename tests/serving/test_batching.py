"""Requests that share an inference: only where it changes no bit, and then each is answered as if it had been alone."""

import hashlib
import json
import math
import time

import faulty_models
import models
import numpy as np
import onnxruntime
import pytest
from bench_worker import binary, infer, row, tensors_of
from hypothesis import given, settings
from hypothesis import strategies as st

from deployctl.serving.batching import MOST_ROWS, OFF, Batching, find_batching
from deployctl.serving.model import Model
from deployctl.serving.prediction import Reader
from deployctl.serving.settings import Prediction, Settings
from deployctl.serving.worker import Worker
from deployctl.wire.frames import Kind, Request


def loaded(directory, content):
    file = directory / f"{hashlib.sha256(content).hexdigest()}.onnx"
    file.write_bytes(content)
    return Model(file, "sha256:" + hashlib.sha256(content).hexdigest())


def over_the_batch(op="ReduceMax"):
    """Each row minus the largest values of all of them."""
    return models.model(
        [(op, ["x"], ["all"], {"axes": [0], "keepdims": 1}), ("Sub", ["x", "all"], ["y"], {})],
        [("x", models.FLOAT, ["n", 3])],
        [("y", models.FLOAT, ["n", 3])],
    )


def quantised():
    """Scales by the smallest and the largest value that it is given, as dynamic quantisation does."""
    return models.model(
        [
            ("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"], {}),
            ("DequantizeLinear", ["q", "scale", "zero"], ["y"], {}),
        ],
        [("x", models.FLOAT, ["n", 3])],
        [("y", models.FLOAT, ["n", 3])],
    )


def of_two_axes():
    return models.model(
        [("Add", ["a", "b"], ["y"], {})],
        [("a", models.FLOAT, ["n", 2]), ("b", models.FLOAT, ["m", 2])],
        [("y", models.FLOAT, ["n", 2])],
    )


def summed():
    return models.model(
        [("ReduceSum", ["x"], ["y"], {"keepdims": 0})],
        [("x", models.FLOAT, ["n", 3])],
        [("y", models.FLOAT, [])],
    )


def convolution(size=64):
    """Much to compute for each row: together they take as long as one by one."""
    random = np.random.default_rng(3)
    return models.model(
        [
            ("Conv", ["x", "w"], ["c"], {"pads": [1, 1, 1, 1]}),
            ("Conv", ["c", "v"], ["d"], {"pads": [1, 1, 1, 1]}),
            ("GlobalAveragePool", ["d"], ["y"], {}),
        ],
        [("x", models.FLOAT, ["n", 1, size, size])],
        [("y", models.FLOAT, ["n", 8, 1, 1])],
        [
            ("w", random.normal(size=(16, 1, 3, 3)).astype(np.float32)),
            ("v", random.normal(size=(8, 16, 3, 3)).astype(np.float32)),
        ],
    )


@pytest.mark.parametrize(
    "content",
    [
        models.classifier(),
        models.classifier(30, 2),
        models.square_root(),
        models.lookup(),
        models.two_inputs(),
        models.echo("BYTES"),
        models.echo("FP16"),
        models.echo("INT64", ("n", "m", 3)),
    ],
    ids=["classifier", "wider", "NaN", "lookup", "two inputs", "text", "half", "open within"],
)
def test_rows_that_are_computed_for_themselves_share_an_inference(tmp_path, content):
    assert find_batching(loaded(tmp_path, content)) == Batching(MOST_ROWS)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (models.echo("FP32", (1, 3)), "the first dimension of input 'x' (FP32 [1, 3]) is not left open"),
        (models.echo("FP32", ()), "the first dimension of input 'x' (FP32 []) is not left open"),
        (summed(), "the first dimension of output 'y' (FP32 []) is not left open"),
        (of_two_axes(), "its inputs vary along different axes: 'a' along n, 'b' along m"),
        (over_the_batch(), "2 rows together give another 'y' than one by one"),
        (quantised(), "2 rows together give another 'y' than one by one"),
        (convolution(), "nothing is gained"),
    ],
    ids=[
        "fixed",
        "no dimension",
        "no axis in the output",
        "two axes",
        "over the batch",
        "quantised",
        "convolution",
    ],
)
def test_what_is_not_seen_to_gain_and_change_nothing_is_not_done_and_the_reason_said(tmp_path, content, why):
    found = find_batching(loaded(tmp_path, content))
    assert found.rows == 1
    assert why in found.why


def test_without_time_to_compare_there_is_no_batching(tmp_path):
    found = find_batching(loaded(tmp_path, models.classifier()), seconds=0)
    assert found == Batching(1, "its inferences take too long to compare batches")


def test_no_larger_batch_is_used_than_was_compared(tmp_path, monkeypatch):
    model = loaded(tmp_path, models.classifier())
    seconds = iter([*[0.0] * 12, *[0.0] * (MOST_ROWS - 1), *[0.0] * 11, *[9.0] * 99])
    monkeypatch.setattr("deployctl.serving.batching.time.thread_time", lambda: next(seconds))
    # Sizes 2 to 10 were compared when the time was over.
    found = find_batching(model)
    assert 8 <= found.rows < MOST_ROWS
    assert found.why is None


# ── answers together are answers alone ─────────────────────────────────────────────────────────────────────────────


class Counted(Model):
    """Counts inferences, and the rows of each."""

    def run(self, inputs, outputs=None, deadline=math.inf):
        self.rows = [*getattr(self, "rows", []), len(next(iter(inputs.values())))]
        return super().run(inputs, outputs, deadline)


def worker(directory, content, rows=MOST_ROWS, prediction=None):
    file = directory / "model.onnx"
    file.write_bytes(content)
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    model = Counted(file, digest)
    reader = Reader(prediction, model.outputs, model.warm_up)
    return Worker(Settings("m", "1", digest, str(file), prediction), model, reader, Batching(rows)), model


def asked(body, at=0, **more):
    return Request(at, more.pop("kind", Kind.INFER), more.pop("deadline", math.inf), f"id-{at}", body, **more)


def test_what_waits_is_one_inference_and_answered_in_the_order_of_the_requests(tmp_path):
    ours, model = worker(tmp_path, models.classifier())
    inputs = np.random.default_rng(2).normal(size=(70, 4)).astype(np.float32)
    answers = ours.answer([asked(row(*values.tolist()), at) for at, values in enumerate(inputs)])
    assert model.rows == [32, 32, 6]
    assert [answer.stream for answer in answers] == list(range(70))
    session = onnxruntime.InferenceSession(models.classifier(), providers=["CPUExecutionProvider"])
    for values, answer in zip(inputs, answers, strict=True):
        expected = session.run(None, {"x": values[None]})
        assert [array.tobytes() for array in tensors_of(answer).values()] == [a.tobytes() for a in expected]


def request_bodies():
    """Sound ones of several forms, and some that are refused or that the model fails on."""
    number = st.sampled_from([0.0, -0.0, 1.5, -7.25, 1e-30, 3e38])
    rows = st.lists(st.lists(number, min_size=4, max_size=4), min_size=0, max_size=5)

    def body(values, **more):
        return infer(("x", "FP32", [len(values), 4], [one for row in values for one in row]), **more)

    sound = st.builds(body, rows)
    named = st.builds(
        lambda values, name: body(values, outputs=[{"name": name}]),
        rows,
        st.sampled_from(["scores", "probabilities", "none"]),
    )
    packed = st.builds(
        lambda values: body(values, outputs=[{"name": "scores", "parameters": {"binary_data": True}}]), rows
    )
    own = st.builds(lambda values: body(values, id="own"), rows)
    wrong = st.sampled_from([b"", b"{", b'{"inputs": []}', row(1, 2, 3), row(1, 2, 3, 4, datatype="FP64")])
    return st.one_of(sound, named, packed, own, wrong)


@settings(max_examples=60)
@given(bodies=st.lists(request_bodies(), min_size=1, max_size=40), rows=st.integers(2, MOST_ROWS))
def test_each_is_answered_as_if_it_had_been_alone(tmp_path_factory, bodies, rows):
    reading = Prediction("probabilities", classes=("a", "b", "c"))
    directory = tmp_path_factory.mktemp("worker")
    together, _ = worker(directory, models.classifier(), rows, reading)
    alone, _ = worker(directory, models.classifier(), 1, reading)
    requests = [asked(body, at) for at, body in enumerate(bodies)]
    assert list(map(_comparable, together.answer(requests))) == [
        _comparable(alone.answer([request])[0]) for request in requests
    ]


def _comparable(answer):
    """NaN is not equal to itself."""
    return repr(answer)


def test_one_that_the_model_fails_on_fails_alone(tmp_path):
    ours, model = worker(tmp_path, models.lookup())
    bodies = [infer(("x", "INT64", [1], [index])) for index in (0, 1, 9, 2)]
    answers = ours.answer([asked(body, at) for at, body in enumerate(bodies)])
    assert [answer.status for answer in answers] == [200, 200, 500, 200]
    assert [tensors_of(answers[at])["y"].tolist() for at in (0, 1, 3)] == [[[0, 1]], [[2, 3]], [[4, 5]]]
    assert model.rows == [4, 1, 1, 1, 1]


def test_text_that_no_model_can_read_is_refused_alone(tmp_path):
    ours, _ = worker(tmp_path, models.echo("BYTES", ("n",)))
    text = [b"\x02\0\0\0ok", b"\x02\0\0\0\xff\xfe", b"\x04\0\0\0fine"]
    requests = []
    for at, data in enumerate(text):
        parameters = {"binary_data_size": len(data)}
        head = {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "parameters": parameters}]}
        body, json_length = binary(head, data)
        requests.append(asked(body, at, json_length=json_length))
    assert [answer.status for answer in ours.answer(requests)] == [200, 400, 200]


def test_inputs_of_different_lengths_are_nobodys_batch(tmp_path):
    """onnxruntime stretches one row to three: together with others it would stretch nothing."""
    ours, model = worker(tmp_path, models.two_inputs())

    def body(one, other):
        return infer(
            ("a", "FP32", [one, 2], list(range(2 * one))), ("b", "FP32", [other, 2], list(range(2 * other)))
        )

    answers = ours.answer([asked(body(*lengths), at) for at, lengths in enumerate([(1, 1), (1, 3), (1, 1)])])
    assert [tensors_of(answer)["sum"].tolist() for answer in answers] == [
        [[0, 2]],
        [[0, 2], [2, 4], [4, 6]],
        [[0, 2]],
    ]
    assert model.rows == [1, 1, 1]


def test_a_time_that_is_over_when_a_batch_has_failed_is_not_tried_again(tmp_path):
    ours, model = worker(tmp_path, models.lookup())
    bodies = [infer(("x", "INT64", [1], [index])) for index in (0, 9)]
    now = time.monotonic()
    answers = ours.answer([asked(bodies[0], 0, deadline=now - 1), asked(bodies[1], 1, deadline=now + 99)])
    assert [answer.status for answer in answers] == [504, 500]
    assert model.rows == [2, 1]


# ── whole workers ──────────────────────────────────────────────────────────────────────────────────────────────────


def worker_settings(tmp_path, content, **more):
    (tmp_path / "model.onnx").write_bytes(content)
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    return {"model": "test", "version": "1", "digest": digest, "file": str(tmp_path / "model.onnx"), **more}


def test_a_worker_says_at_its_start_whether_requests_will_share_inferences(start):
    assert start(models.classifier()).report["ready"]["batching"] == {"rows": 32, "why": None}
    why = start(models.echo("FP32", (1, 3))).report["ready"]["batching"]["why"]
    assert "not left open" in why


def test_batching_can_be_switched_off(start, tmp_path):
    bench = start(
        models.classifier(), settings=worker_settings(tmp_path, models.classifier(), batching=False)
    )
    assert bench.report["ready"]["batching"] == OFF._asdict()
    assert bench.ask(row(1, 2, 3, 4)).status == 200


def test_many_connections_are_answered_together_each_with_its_own(start):
    bench = start(models.classifier())
    session = onnxruntime.InferenceSession(models.classifier(), providers=["CPUExecutionProvider"])
    inputs = np.random.default_rng(4).normal(size=(300, 4)).astype(np.float32)
    connections = [bench.connect() for _ in range(3)]
    for at, values in enumerate(inputs):
        connections[at % 3].send(row(*values.tolist()), request_id=str(at))
    for place, connection in enumerate(connections):
        for number, answer in enumerate(connection.receive(100)):
            at = 3 * number + place
            assert answer.request_id == str(at)
            (expected, _) = session.run(None, {"x": inputs[at][None]})
            assert tensors_of(answer)["probabilities"].tobytes() == expected.tobytes()


def test_one_that_never_ends_takes_nobody_with_it_whose_time_is_not_over(start):
    bench = start(faulty_models.hanging_on_negative_rows())
    connection = bench.connect()
    now = time.monotonic()
    sums = [1.0, 1.0, -1.0, 1.0]
    for at, first in enumerate(sums):
        deadline = now + (0.3 if first < 0 else 15)
        connection.send(row(first, 0, 0, 0), request_id=str(at), deadline=deadline)
    statuses = {answer.request_id: answer.status for answer in connection.receive(4)}
    assert statuses == {"0": 200, "1": 200, "2": 504, "3": 200}


def test_a_request_waits_for_others_no_longer_than_it_may(start, tmp_path):
    content = models.classifier()
    bench = start(content, settings=worker_settings(tmp_path, content, max_batch_delay=0.3))
    began = time.monotonic()
    assert bench.ask(row(1, 2, 3, 4)).status == 200
    assert time.monotonic() - began >= 0.3


def test_nobody_waits_once_an_inference_is_full(start, tmp_path):
    content = models.classifier()
    bench = start(content, settings=worker_settings(tmp_path, content, max_batch_delay=3600.0))
    connections = [bench.connect() for _ in range(2)]
    for at in range(MOST_ROWS):
        connections[at % 2].send(row(1, 2, 3, 4))
    for connection in connections:
        assert [answer.status for answer in connection.receive(MOST_ROWS // 2)] == [200] * (MOST_ROWS // 2)


def test_what_waits_for_others_is_answered_when_the_worker_is_to_end(start, tmp_path):
    content = models.classifier()
    bench = start(content, settings=worker_settings(tmp_path, content, max_batch_delay=3600.0))
    connection = bench.connect()
    connection.send(row(1, 2, 3, 4))
    time.sleep(0.2)
    bench.process.terminate()
    (answer,) = connection.receive(1)
    assert json.loads(answer.body)["model_version"] == "1"
    assert bench.wait() == 0
