"""A model that hangs, eats memory, ends its process or answers what no answer can be: the worker answers the next request, or ends."""

import contextlib
import hashlib
import json
import math
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import faulty_models
import pytest
from bench_worker import row
from service_rig import wait_for

from deployctl.errors import InvalidError
from deployctl.serving.model import Model, ModelFailure
from deployctl.serving.watch import Watch

ROW = row(1, 0, 0, 0)
NEGATIVE = row(-1, 0, 0, 0)


def limited(directory, content, mebibytes):
    """The settings of a worker that may take so much memory."""
    file = directory / "limited.onnx"
    file.write_bytes(content)
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    return {
        "model": "test",
        "version": "1",
        "digest": digest,
        "file": str(file),
        "memory": mebibytes << 20,
    }


def test_an_inference_that_never_ends_is_stopped_after_its_deadline_and_the_next_request_is_answered(start):
    bench = start(faulty_models.hanging_on_negative_rows())
    connection = bench.connect()
    for _ in range(2):
        hanging = connection.send(NEGATIVE, deadline=time.monotonic() + 0.2)
        # Waits behind it, or with it, until nobody does any more: 504 like that one, or nothing.
        late = connection.send(ROW, deadline=time.monotonic() + 0.2)
        next_one = connection.send(ROW, deadline=time.monotonic() + 30)
        answers = {}
        while next_one not in answers:
            answers |= {answer.stream: answer for answer in connection.receive(1)}
        stopped = answers[hanging]
        assert (stopped.status, json.loads(stopped.body)["error"]) == (
            504,
            "the model was stopped: its time was over",
        )
        assert answers[next_one].status == 200
        assert late not in answers or answers[late].status == 504
    assert bench.process.poll() is None


def test_an_inference_that_does_not_stop_ends_its_worker(start):
    bench = start(faulty_models.one_long_node())
    connection = bench.connect()
    connection.send(ROW, deadline=time.monotonic() + 0.5)
    assert connection.receive(1) == []
    assert bench.wait() == -signal.SIGPROF


def test_a_worker_whose_interpreter_is_held_past_a_deadline_is_ended_by_the_kernel():
    script = """
import re, time
from deployctl.serving.watch import Watch
watch = Watch(every=0.01, stuck=0.2)
watch.over(time.monotonic() + 0.5)
time.sleep(0.3)
re.match("(a+)+$", "a" * 60 + "b")
"""
    ended = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    assert ended.returncode == -signal.SIGPROF


def test_a_model_that_hangs_on_zeros_is_refused_when_its_warm_up_is_over(tmp_path):
    file = tmp_path / "m.onnx"
    file.write_bytes(faulty_models.slow_to_warm_up("slow", 60_000))
    digest = "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(InvalidError, match="the warm-up inference on zeros failed: the model was stopped"):
        Model(file, digest, Watch(), warm_up_seconds=0.2)


def test_whoever_is_stopped_the_inference_after_it_is_not(tmp_path):
    """Deadlines all around the end of the inference, and a look a few hundred times a second."""
    import numpy as np

    content = faulty_models.slow(2)
    (tmp_path / "m.onnx").write_bytes(content)
    model = Model(tmp_path / "m.onnx", "sha256:" + hashlib.sha256(content).hexdigest(), Watch(every=0.0003))
    rows = {"x": np.array([[1, 0, 0, 0]], dtype=np.float32)}
    stopped = []
    for number in range(300):
        try:
            model.run(rows, None, time.monotonic() + 0.0005 + number % 30 * 0.0001)
        except ModelFailure as error:
            stopped.append(str(error))
        model.run(rows, None, time.monotonic() + 60)
    assert 0 < len(stopped) < 300
    assert set(stopped) == {"the model was stopped: its time was over"}


@pytest.mark.parametrize("gibibytes", [1, 64])
def test_an_allocation_over_the_limit_fails_its_request_alone(start, tmp_path, gibibytes):
    bench = start(None, settings=limited(tmp_path, faulty_models.out_of_memory_on_rows(gibibytes), 512))
    connection = bench.connect()
    for body in (ROW, row(0, 0, 0, 0)):
        connection.send(body)
    refused, answered = connection.receive(2)
    assert refused.status == 500
    assert "spec.service.limits.workerMemory, which is 512MiB" in json.loads(refused.body)["error"]
    assert answered.status == 200


def test_a_body_for_which_there_is_no_room_costs_its_connection_and_nobody_else(start, tmp_path):
    bench = start(None, settings=limited(tmp_path, faulty_models.sound(), 256))
    large, other = bench.connect(), bench.connect()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        large.send(b"x" * (60 << 20))
        assert [answer.status for answer in large.receive(1)] in ([], [500])
    other.send(ROW)
    assert [answer.status for answer in other.receive(1)] == [200]
    assert bench.process.poll() is None


def test_a_model_that_does_not_fit_into_the_limit_is_refused_in_a_line_that_names_it(start, tmp_path):
    bench = start(None, settings=limited(tmp_path, faulty_models.larger_than(64), 256))
    assert (bench.report["exit_code"], bench.wait()) == (2, 2)
    assert bench.report["failed"].endswith(
        "the model does not fit into spec.service.limits.workerMemory, which is 256MiB as the manifest says"
    )


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a division overflows without a signal here")
def test_a_model_that_ends_its_process_ends_no_more_than_that(start):
    bench = start(faulty_models.crashing_on_rows())
    assert bench.ask(ROW).status == 200
    connection = bench.connect()
    connection.send(row(0, 0, 1, 0))
    assert connection.receive(1) == []
    assert bench.wait() == -signal.SIGFPE


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (faulty_models.other_shape_on_rows(), "has shape [1, 5]; the model claims FP32 [-1, 3]"),
        (faulty_models.too_large_on_rows(), "which is too large"),
    ],
    ids=["another shape", "too large"],
)
def test_an_answer_that_is_none_is_an_error_of_the_model(start, content, words):
    connection = start(content).connect()
    connection.send(ROW, deadline=math.inf)
    connection.send(row(0, 0, 0, 0))
    wrong, right = connection.receive(2)
    assert (wrong.status, right.status) == (500, 200)
    assert words in json.loads(wrong.body)["error"]


def test_a_claim_that_does_not_hold_on_zeros_is_not_held_against_later_answers(start):
    """Exporters write dimensions that they have seen once; such a model goes on answering."""
    bench = start(faulty_models.claims_one_more())
    assert bench.ask(ROW).status == 200


def test_a_worker_lets_others_go_first_while_its_inferences_take_long(start):
    if tuple(map(int, platform.release().split(".")[:2])) < (6, 12):
        pytest.skip("an older kernel has one length of turns for all")
    bench = start(faulty_models.hanging_on_negative_rows())
    said = Path(f"/proc/{bench.process.pid}/sched")
    if not said.exists() or "se.slice" not in said.read_text():
        pytest.skip("this kernel does not say how long a turn is")

    def turn():
        return int(re.search(r"(?m)^se\.slice +: +(\d+)", said.read_text())[1])

    def answered():
        connection.send(ROW)
        assert connection.receive(1)[0].status == 200
        return True

    connection, short = bench.connect(), 200_000
    assert turn() == short
    connection.send(NEGATIVE, deadline=time.monotonic() + 2.0)
    wait_for(lambda: turn() > short, what="longer turns")
    assert connection.receive(1)[0].status == 504
    wait_for(lambda: answered() and turn() == short, what="short turns again")
