"""A real worker process on a real socket, spoken to in frames, and requests as clients write them."""

import hashlib
import json
import math
import os
import select
import socket
import subprocess
import sys
import time

import numpy as np

from deployctl.wire.frames import (
    NO_BINARY,
    Encoding,
    FrameReader,
    Kind,
    Request,
    decode_answer,
    encode_request,
)

DEADLINE = 20.0


class Bench:
    """One worker. `report` is what it said at its start; `connect()` gives a connection."""

    def __init__(self, directory, content, *, digest=None, version="1", prediction=None, settings=None):
        self.file = directory / "model.onnx"
        self.socket = directory / "w.sock"
        if content is not None:
            self.file.write_bytes(content)
        self.digest = digest or "sha256:" + hashlib.sha256(content or b"").hexdigest()
        chosen = settings or {
            "model": "test",
            "version": version,
            "digest": self.digest,
            "file": str(self.file),
            "prediction": prediction,
        }
        reading, writing = os.pipe()
        command = [sys.executable, "-m", "deployctl.serving", "--socket", self.socket]
        command += ["--report-fd", str(writing), "--settings", json.dumps(chosen)]
        self.process = subprocess.Popen(
            command, pass_fds=[writing], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            assert select.select([pipe], [], [], DEADLINE)[0], "no report in time"
            self.report = json.loads(pipe.readline())
        self._connections = []

    def connect(self):
        connection = Connection(self.socket)
        self._connections.append(connection)
        return connection

    def ask(self, body, **request):
        """One request on a connection of its own."""
        connection = self.connect()
        connection.send(body, **request)
        (answer,) = connection.receive(1)
        connection.close()
        return answer

    def wait(self):
        return self.process.wait(timeout=DEADLINE)

    def close(self):
        for connection in self._connections:
            connection.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=DEADLINE)


class Connection:
    """What the router is to the worker."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(DEADLINE)
        self.socket.connect(str(path))
        self._frames = FrameReader()
        self._stream = 0

    def send(self, body, *, kind=Kind.INFER, deadline=math.inf, request_id="r", **rest):
        self._stream += 1
        request = Request(self._stream, kind, deadline, request_id, body, **rest)
        self.socket.sendall(encode_request(request))
        return self._stream

    def receive(self, count):
        answers = []
        while len(answers) < count:
            data = self.socket.recv(1 << 18)
            if not data:
                break
            answers += [decode_answer(frame) for frame in self._frames.feed(data)]
        return answers

    def close(self):
        self.socket.close()


def infer(*inputs, **rest):
    """A JSON body; each input is `(name, datatype, shape, data)`."""
    tensors = [
        {"name": name, "datatype": datatype, "shape": shape, "data": data}
        for name, datatype, shape, data in inputs
    ]
    return json.dumps({"inputs": tensors, **rest}).encode()


def row(*values, name="x", datatype="FP32", **rest):
    return infer((name, datatype, [1, len(values)], [list(values)]), **rest)


def binary(head, *tensors):
    """A body with binary tensors, and its json_length."""
    text = json.dumps(head).encode()
    return text + b"".join(tensors), len(text)


def tensors_of(answer):
    """The output tensors of an answer, with the dtypes of numpy."""
    from deployctl.wire import coding, oip

    content = answer.body
    if answer.encoding is not Encoding.IDENTITY:
        content = coding.decompress(content, answer.encoding)
    length = len(content) if answer.json_length == NO_BINARY else answer.json_length
    raw = content[length:]
    found = {}
    for output in json.loads(content[:length])["outputs"]:
        dtype = oip.DTYPES[output["datatype"]]
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            array = np.array(output["data"], dtype=dtype)
        elif dtype.kind == "O":
            array = oip._unpack_bytes(output["name"], memoryview(raw[:size]), math.prod(output["shape"]))
        else:
            array = np.frombuffer(raw[:size], dtype)
        found[output["name"]] = array.reshape(output["shape"])
        raw = raw[size or 0 :]
    assert not raw
    return found


def until(claim, what):
    """Polls until `claim()` is true; fails after a while."""
    end = time.monotonic() + DEADLINE
    while not claim():
        assert time.monotonic() < end, f"never happened: {what}"
        select.select([], [], [], 0.005)
