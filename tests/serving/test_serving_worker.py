"""Whole worker processes, from outside: what the router and the supervisor see of them."""

import contextlib
import hashlib
import json
import math
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import models
import numpy as np
import onnxruntime
import pytest
from bench_worker import DEADLINE, Bench, binary, infer, row, tensors_of, until
from tritonclient import http as triton
from tritonclient.utils import serialize_byte_tensor

from deployctl.wire.frames import NO_BINARY, Encoding, Kind, Request, encode_request

SAMPLES = {
    "BOOL": np.array([[True, False, True]]),
    "UINT8": np.array([[0, 1, 255]], dtype=np.uint8),
    "UINT16": np.array([[0, 1, 2**16 - 1]], dtype=np.uint16),
    "UINT32": np.array([[0, 1, 2**32 - 1]], dtype=np.uint32),
    "UINT64": np.array([[0, 2**53 + 1, 2**64 - 1]], dtype=np.uint64),
    "INT8": np.array([[-128, 0, 127]], dtype=np.int8),
    "INT16": np.array([[-(2**15), 0, 2**15 - 1]], dtype=np.int16),
    "INT32": np.array([[-(2**31), 0, 2**31 - 1]], dtype=np.int32),
    "INT64": np.array([[-(2**63), 2**53 + 1, 2**63 - 1]], dtype=np.int64),
    "FP16": np.array([[0.1, -0.0, 65504]], dtype=np.float16),
    "FP32": np.array([[0.1, 1e-45, -3.4028235e38]], dtype=np.float32),
    "FP64": np.array([[0.1, 5e-324, -1.7976931348623157e308]], dtype=np.float64),
    "BYTES": np.array([["", "plain", "é\0漢😀"]], dtype=object),
}


SQUARE = {
    "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [700, 700], "parameters": {"binary_data_size": 1960000}}
    ]
}
"""The head of a request for models.slow()."""


def ask_as_triton(bench, datatype, array, *, binary_in, binary_out):
    """The body exactly as tritonclient writes it, the answer as it reads it."""
    tensor = triton.InferInput("x", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary_in)
    wanted = [triton.InferRequestedOutput("y", binary_data=binary_out)]
    body, length = triton.InferenceServerClient.generate_request_body([tensor], outputs=wanted)
    answer = bench.ask(bytes(body), json_length=NO_BINARY if length is None else length)
    assert answer.status == 200, answer.body
    head = None if answer.json_length == NO_BINARY else answer.json_length
    return triton.InferenceServerClient.parse_response_body(answer.body, header_length=head).as_numpy("y")


def bits(array):
    if array.dtype.kind != "O":
        return array.tobytes()
    return [text if isinstance(text, bytes) else text.encode() for text in array.ravel()]


@pytest.mark.parametrize("datatype", list(SAMPLES))
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_every_datatype_is_answered_bit_for_bit_as_onnxruntime_does(shared, datatype, binary_in, binary_out):
    if datatype == "FP16" and not (binary_in and binary_out):
        pytest.skip("tritonclient refuses FP16 in JSON; the next test sends it by hand")
    array = SAMPLES[datatype]
    bench = shared(datatype, lambda: models.echo(datatype))
    session = onnxruntime.InferenceSession(models.echo(datatype), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": array})
    found = ask_as_triton(bench, datatype, array, binary_in=binary_in, binary_out=binary_out)
    assert found.shape == expected.shape
    assert bits(found) == bits(expected)


def test_fp16_in_json_is_carried_as_numbers(shared):
    array = SAMPLES["FP16"]
    answer = shared("FP16", lambda: models.echo("FP16")).ask(infer(("x", "FP16", [1, 3], array.tolist())))
    assert bits(tensors_of(answer)["y"]) == bits(array)


def test_a_classifier_answers_what_onnxruntime_answers(start):
    content = models.classifier()
    bench = start(content)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    inputs = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    connection = bench.connect()
    for values in inputs:
        connection.send(row(*values.tolist()))
    for values, answer in zip(inputs, connection.receive(50), strict=True):
        expected = session.run(None, {"x": values[None]})
        found = tensors_of(answer)
        assert [bits(found["probabilities"]), bits(found["scores"])] == [bits(array) for array in expected]


def test_an_answer_names_model_version_and_id(start):
    bench = start(models.classifier(), version="2026-a")
    own = bench.ask(row(1, 2, 3, 4, id="mine"), request_id="made")
    made = bench.ask(row(1, 2, 3, 4), request_id="made")
    empty = bench.ask(row(1, 2, 3, 4, id=""), request_id="made")
    assert [own.request_id, made.request_id, empty.request_id] == ["mine", "made", "made"]
    document = json.loads(own.body)
    assert (document["model_name"], document["model_version"], document["id"]) == ("test", "2026-a", "mine")
    assert json.loads(made.body)["id"] == "made"


def test_an_id_from_a_header_that_is_no_utf8_fails_no_request(start):
    answer = start(models.classifier()).ask(row(1, 2, 3, 4), request_id="a\udcff")
    assert (answer.status, answer.request_id, json.loads(answer.body)["id"]) == (200, "a\udcff", "a?")


def test_the_metadata_document_is_that_of_the_protocol(start):
    answer = start(models.classifier(), version="7").ask(b"", kind=Kind.METADATA)
    assert json.loads(answer.body) == {
        "name": "test",
        "versions": ["7"],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "scores", "datatype": "FP32", "shape": [-1, 3]},
        ],
    }


def test_the_report_describes_the_signature_and_the_digest(start):
    bench = start(models.classifier())
    ready = bench.report["ready"]
    assert ready["digest"] == bench.digest
    assert ready["platform"] == "onnx_onnxv1"
    assert ready["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert ready["nonfinite"] == []


def test_an_idle_worker_leaves_the_processor_to_everybody_else(start, tmp_path):
    (tmp_path / "model.onnx").write_bytes(models.classifier())
    for idle, priority, nice in ((False, "normal", 0), (True, "idle", 19)):
        settings = {"model": "test", "version": "1", "file": str(tmp_path / "model.onnx"), "idle": idle}
        settings["digest"] = "sha256:" + hashlib.sha256(models.classifier()).hexdigest()
        bench = start(None, settings=settings)
        assert bench.report["ready"]["priority"] == priority
        threads = [int(thread.name) for thread in Path(f"/proc/{bench.process.pid}/task").iterdir()]
        assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {nice}
        assert bench.ask(row(1, 2, 3, 4)).status == 200


def test_the_report_names_outputs_that_were_nan_in_the_warm_up(start):
    assert start(models.division()).report["ready"]["nonfinite"] == ["y"]


@pytest.mark.parametrize("encoding", [Encoding.GZIP, Encoding.DEFLATE])
def test_compressed_bodies_are_taken_and_given(start, encoding):
    from deployctl.wire import coding

    bench = start(models.classifier())
    plain = bench.ask(row(1, 2, 3, 4))
    packed = bench.ask(coding.compress(row(1, 2, 3, 4), encoding), encoding=encoding, accept=encoding)
    assert packed.encoding is encoding
    assert coding.decompress(packed.body, encoding) == plain.body


def test_only_the_requested_outputs_are_answered_and_the_prediction_is_still_read(start):
    bench = start(models.classifier(), prediction={"output": "probabilities"})
    answer = bench.ask(row(1, 2, 3, 4, outputs=[{"name": "scores"}]))
    assert list(tensors_of(answer)) == ["scores"]
    assert answer.prediction == str(int(tensors_of(answer)["scores"].argmax()))


def test_the_prediction_is_the_name_of_the_most_probable_class(start):
    names = ["cat", "dog", "cow"]
    bench = start(models.classifier(), prediction={"output": "probabilities", "classes": names})
    answer = bench.ask(row(1, 2, 3, 4))
    probabilities = tensors_of(answer)["probabilities"]
    assert answer.prediction == names[int(probabilities.argmax())]
    assert answer.confidence == pytest.approx(float(probabilities.max()))
    assert not answer.null


def test_an_unsure_answer_is_no_answer(start):
    bench = start(models.classifier(), prediction={"output": "probabilities", "confidence_below": 0.5})
    unsure, sure = bench.ask(row(0, 0, 0, 0)), bench.ask(row(90, -90, 90, -90))
    assert (unsure.null, unsure.prediction) == (True, None)
    assert unsure.confidence == pytest.approx(1 / 3)
    assert not sure.null
    assert sure.confidence > 0.9


@pytest.mark.parametrize("prediction", [None, {"output": "y"}])
def test_nan_becomes_null_in_the_body_and_is_no_answer(start, prediction):
    bench = start(models.square_root(), prediction=prediction)
    answer = bench.ask(row(-1, 4, 9))
    assert json.loads(answer.body)["outputs"][0]["data"] == [None, 2.0, 3.0]
    assert (answer.status, answer.null, answer.prediction) == (200, True, None)


def test_nan_is_kept_as_it_is_in_a_binary_answer(start):
    answer = start(models.square_root()).ask(row(-1, 4, 9, parameters={"binary_data_output": True}))
    assert np.isnan(tensors_of(answer)["y"][0, 0])
    assert answer.null


def test_a_batch_has_no_prediction_of_its_own_but_may_hold_no_answer(start):
    bench = start(models.square_root(), prediction={"output": "y"})
    fine = bench.ask(infer(("x", "FP32", [2, 3], [1, 2, 3, 4, 5, 6])))
    poisoned = bench.ask(infer(("x", "FP32", [2, 3], [1, 2, 3, -4, 5, 6])))
    assert (fine.prediction, fine.null) == (None, False)
    assert (poisoned.prediction, poisoned.null) == (None, True)


def test_text_is_read_and_empty_text_is_no_answer(start):
    bench = start(models.echo("BYTES", ["n"]), prediction={"output": "y", "read": "text"})
    text = bench.ask(infer(("x", "BYTES", [1], ["good day"])))
    empty = bench.ask(infer(("x", "BYTES", [1], [" "])))
    assert (text.prediction, text.null) == ("good day", False)
    assert (empty.prediction, empty.null) == (None, True)


def test_a_model_that_raises_is_a_500_on_one_line_without_the_input(start):
    bench = start(models.lookup())
    failed = bench.ask(infer(("x", "INT64", [1], [-77])))
    message = json.loads(failed.body)["error"]
    assert failed.status == 500
    assert "Gather" in message
    assert "77" not in message
    assert "\n" not in message
    assert bench.ask(infer(("x", "INT64", [1], [2]))).status == 200
    bench.process.terminate()
    assert bench.process.communicate(timeout=DEADLINE) == (b"", b"")


BAD_TENSORS = {
    "missing": (row(1, 2, 3, 4, name="z"), "input 'x' is missing; the model takes FP32 [-1, 4]"),
    "unknown": (
        infer(("x", "FP32", [1, 4], [1, 2, 3, 4]), ("z", "FP32", [1], [1])),
        "unknown input 'z'; the model takes 'x' FP32 [-1, 4]",
    ),
    "datatype": (
        infer(("x", "FP64", [1, 4], [1, 2, 3, 4])),
        "input 'x' is FP64; the model takes FP32 [-1, 4]",
    ),
    "rank": (
        infer(("x", "FP32", [4], [1, 2, 3, 4])),
        "input 'x' has shape [4]; the model takes FP32 [-1, 4]",
    ),
    "dimension": (row(1, 2, 3), "input 'x' has shape [1, 3]; the model takes FP32 [-1, 4]"),
    "output": (
        row(1, 2, 3, 4, outputs=[{"name": "nope"}]),
        "unknown output 'nope'; the model has 'probabilities' FP32 [-1, 3], 'scores' FP32 [-1, 3]",
    ),
}


@pytest.mark.parametrize(("body", "message"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_tensors_that_do_not_fit_the_model_are_a_400_that_says_what_does(shared, body, message):
    answer = shared("classifier", models.classifier).ask(body)
    assert (answer.status, json.loads(answer.body)) == (400, {"error": message, "model_version": "1"})


def test_bytes_that_are_not_utf8_are_refused_for_onnx_strings(start):
    bench = start(models.echo("BYTES", ["n"]))
    body, length = binary(
        {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}]},
        struct.pack("<I", 1) + b"\xff",
    )
    answer = bench.ask(body, json_length=length)
    assert (answer.status, "UTF-8" in json.loads(answer.body)["error"]) == (400, True)


def test_a_raw_binary_body_is_the_only_input_and_answered_in_binary(start):
    bench = start(models.echo("FP32"))
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    answer = bench.ask(values.tobytes(), json_length=0)
    assert answer.json_length != NO_BINARY
    assert bits(tensors_of(answer)["y"]) == bits(values)
    assert json.loads(answer.body[: answer.json_length])["id"] == "r"


def test_a_raw_binary_body_of_a_text_model_is_one_element(start):
    bench = start(models.echo("BYTES", ["n"]))
    answer = bench.ask("grüezi".encode(), json_length=0)
    assert tensors_of(answer)["y"].tolist() == ["grüezi".encode()]
    assert answer.body.endswith(
        bytes(serialize_byte_tensor(np.array(["grüezi".encode()], dtype=object)).item())
    )


def test_many_requests_on_many_connections_are_all_answered_in_order(start):
    bench = start(models.classifier())
    connections = [bench.connect() for _ in range(8)]
    for connection in connections:
        for _ in range(200):
            connection.send(row(1, 2, 3, 4))
    for connection in connections:
        assert [answer.stream for answer in connection.receive(200)] == list(range(1, 201))


def test_a_reader_that_does_not_read_stops_the_worker_from_reading(start):
    bench = start(models.echo("FP64", ["n"]))
    slow, quick = bench.connect(), bench.connect()
    body = infer(("x", "FP64", [2000], [0.1] * 2000))
    frame = encode_request(Request(1, Kind.INFER, math.inf, "", body))
    slow.socket.setblocking(False)
    sent = stuck = 0
    pending = b""
    while stuck < 3 and sent < 64 * 1024 * 1024:
        pending = pending or frame
        try:
            count = slow.socket.send(pending)
        except BlockingIOError:
            # The worker answers others although this one is stuck; each answer gives it a turn to read on.
            quick.send(row(1, 2, 3, 4, name="x"))
            quick.receive(1)
            stuck += 1
            continue
        stuck = 0
        sent += count
        pending = pending[count:]
    assert sent < 64 * 1024 * 1024, "the worker went on reading"
    slow.socket.settimeout(DEADLINE)
    whole = sent // len(frame)
    assert {answer.status for answer in slow.receive(whole)} == {200}


def test_a_request_past_its_deadline_is_not_run(start):
    connection = start(models.classifier()).connect()
    connection.send(row(1, 2, 3, 4), deadline=time.monotonic() - 1)
    alive = connection.send(row(1, 2, 3, 4), deadline=time.monotonic() + 60)
    assert [answer.stream for answer in connection.receive(1)] == [alive]


def test_a_deadline_that_passes_while_the_request_waits_is_kept_too(start):
    connection = start(models.slow()).connect()
    body, length = binary(SQUARE, bytes(1960000))
    soon = time.monotonic() + 0.001
    first = connection.send(body, json_length=length)
    connection.send(body, json_length=length, deadline=soon)
    last = connection.send(b"", kind=Kind.METADATA)
    assert [answer.stream for answer in connection.receive(2)] == [first, last]


def test_sigterm_answers_all_that_was_sent_and_ends_with_0(start):
    bench = start(models.classifier())
    connections = [bench.connect() for _ in range(4)]
    for connection in connections:
        connection.send(row(1, 2, 3, 4))
        connection.receive(1)
    for connection in connections:
        for _ in range(300):
            connection.send(row(1, 2, 3, 4))
    bench.process.send_signal(signal.SIGTERM)
    for connection in connections:
        assert len(connection.receive(300)) == 300
        assert connection.socket.recv(1) == b""
    assert bench.wait() == 0


def test_sigterm_drains_requests_that_are_slower_than_the_signal(start):
    bench = start(models.slow())
    connection = bench.connect()
    body, length = binary(SQUARE, bytes(1960000))
    for _ in range(3):
        connection.send(body, json_length=length)
    bench.process.send_signal(signal.SIGTERM)
    assert [answer.status for answer in connection.receive(3)] == [200, 200, 200]
    assert bench.wait() == 0


def test_sigterm_without_work_ends_at_once_and_sigint_does_nothing(start):
    bench = start(models.classifier())
    idle = bench.connect()
    bench.process.send_signal(signal.SIGINT)
    assert bench.ask(row(1, 2, 3, 4)).status == 200
    bench.process.terminate()
    assert idle.socket.recv(1) == b""
    assert bench.wait() == 0


def test_half_a_connection_closed_still_gets_its_answers(start):
    connection = start(models.classifier()).connect()
    for _ in range(50):
        connection.send(row(1, 2, 3, 4))
    connection.socket.shutdown(socket.SHUT_WR)
    assert len(connection.receive(50)) == 50
    assert connection.socket.recv(1) == b""


@pytest.mark.parametrize(
    "junk",
    [b"\xff\xff\xff\xff junk", struct.pack("<I", 2) + b"ab", struct.pack("<I", 28) + bytes([255] * 28)],
)
def test_what_is_no_frame_ends_its_connection_and_no_other(start, junk):
    bench = start(models.classifier())
    good, bad = bench.connect(), bench.connect()
    bad.socket.sendall(junk)
    with contextlib.suppress(ConnectionResetError):
        assert bad.socket.recv(1) == b""
    good.send(row(1, 2, 3, 4))
    assert good.receive(1)[0].status == 200


def test_the_socket_is_for_its_owner_only_and_replaces_a_stale_one(tmp_path):
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "w.sock"))
    stale.close()
    bench = Bench(tmp_path, models.classifier())
    try:
        assert stat.S_IMODE(bench.socket.stat().st_mode) == 0o600
        assert bench.ask(row(1, 2, 3, 4)).status == 200
    finally:
        bench.close()


def test_a_worker_dies_with_the_process_that_started_it(tmp_path):
    """The parent here is a process of its own, killed with a signal that it cannot answer."""
    (tmp_path / "model.onnx").write_bytes(models.classifier())
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    with parent.stdout as lines:
        worker = int(lines.readline())
    parent.kill()
    parent.wait(timeout=DEADLINE)
    until(lambda: not _runs(worker), "the worker's end")


PARENT = """
import signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from bench_worker import Bench
directory = Path(sys.argv[1])
bench = Bench(directory, (directory / "model.onnx").read_bytes())
print(bench.process.pid, flush=True)
signal.pause()
"""


def _runs(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
        return status.rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
