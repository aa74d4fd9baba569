"""`python -m deployctl.serving` as a worker of the street."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import rig
from onnx import TensorProto, helper

from deployctl.wire.priority import step_back


class RealWorker(rig.Worker):
    """`python -m deployctl.serving` with a model that adds its version to what it is given."""

    output = "y"
    idle = False

    def content(self):
        return model(float(self.version)).SerializeToString()

    def start(self):
        if self.process:
            self.process.wait()
        file = Path(self.socket).with_suffix(".onnx")
        file.write_bytes(self.content())
        digest = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
        settings = {"model": "m", "version": self.version, "digest": digest, "file": str(file)}
        settings |= {"prediction": {"output": self.output, "read": "argmax"}, "idle": self.idle}
        end, report = os.pipe()
        arguments = ["--socket", self.socket, "--report-fd", str(report), "--settings", json.dumps(settings)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deployctl.serving", *arguments], pass_fds=[report]
        )
        os.close(report)
        if self.idle:
            step_back(self.process.pid)  # as the supervisor does
        with os.fdopen(end) as reports:
            assert "ready" in json.loads(reports.readline())


def model(version):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    add = helper.make_node("Add", ["x", "v"], ["y"])
    constant = helper.make_tensor("v", TensorProto.FLOAT, [], [version])
    graph = helper.make_graph([add], "add", [x], [y], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
