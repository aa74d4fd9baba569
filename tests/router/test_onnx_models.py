"""What the makers of ONNX test their own runtimes with goes through router and worker bit for bit, as JSON and as binary tensors.

All that onnxruntime itself loads and runs is asked for; what it answers when it is called directly is what callers must get.
"""

import json
import math
import subprocess
import sys
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from rig import Street, Upstream, Version

from deployctl.wire.oip import DTYPES

SHORT, AT_ONCE = 80, 100
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items() if name != "BYTES"}


@dataclass(frozen=True)
class Case:
    """A model of the ONNX backend tests, inputs for it, and what onnxruntime answers to them."""

    name: str
    model: bytes
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def cases(how_many):
    """The first so many of them, spread over all operators."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of their expected values overflow on purpose
        from onnx.backend.test.case.node import collect_testcases

        every = [case for case in collect_testcases(None) if case.model is not None]
    chosen = every[:: max(1, len(every) // how_many)] if how_many else every
    return [found for case in chosen if (found := answered(case)) is not None]


def answered(case):
    """The case with what onnxruntime says to its first inputs; None where that cannot run it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1  # as a worker has it: sums over several threads come in another order
    model = case.model.SerializeToString()
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        wanted = [one.name for one in session.get_inputs()]
        given, _ = case.data_sets[0]
        inputs = dict(zip(wanted, given, strict=True))
        values = session.run(None, inputs)
    except Exception:  # noqa: BLE001 - of no common base; what it cannot run is not asked for
        return None
    names = [one.name for one in session.get_outputs()]
    return Case(case.name, model, inputs, dict(zip(names, values, strict=True)))


class Host:
    """The workers of many models, as a street sees each of them."""

    def __init__(self, directory, cases):
        for number, case in enumerate(cases):
            (directory / f"{number}.onnx").write_bytes(case.model)
        script = Path(__file__).with_name("many_models.py")
        self.process = subprocess.Popen(
            [sys.executable, script, directory], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.refused = json.loads(self.process.stdout.readline())

    def worker(self, directory, number):
        """One of them; they all live and die together."""
        return HostedWorker(self.process, number, str(directory / f"{number}.sock"))

    def close(self):
        self.process.kill()
        self.process.communicate()


class HostedWorker:
    def __init__(self, process, version, path):
        self.process = process
        self.upstream = Upstream(version, f"sha256:{version}", path)
        self.as_version = Version(version, f"sha256:{version}")


def request(case, *, binary):
    """The body that a client writes, and the length of its JSON part where there are binary tensors behind it."""
    inputs, data = [], b""
    for name, array in case.inputs.items():
        strings = array.dtype.kind in "OUS"
        tensor = {"name": name, "shape": list(array.shape)}
        tensor["datatype"] = "BYTES" if strings else NAMES[array.dtype]
        if binary:
            raw = packed(array) if strings else array.tobytes()
            tensor["parameters"] = {"binary_data_size": len(raw)}
            data += raw
        else:
            tensor["data"] = [str(one) for one in array.ravel()] if strings else array.ravel().tolist()
        inputs.append(tensor)
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": binary}}, allow_nan=False)
    return head.encode() + data, len(head.encode()) if binary else None


def packed(array):
    texts = [str(one).encode() for one in array.ravel()]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def tensors(answer):
    """What a client reads: name → (datatype, shape, values); values are bytes where they are binary."""
    length, body = answer.headers.get("inference-header-content-length"), answer.body
    head, data = (body, b"") if length is None else (body[: int(length)], body[int(length) :])
    found = {}
    for tensor in json.loads(head)["outputs"]:
        values = tensor.get("data")
        if values is None:
            size = tensor["parameters"]["binary_data_size"]
            values, data = data[:size], data[size:]
        found[tensor["name"]] = (tensor["datatype"], tensor["shape"], values)
    assert data == b"", "bytes that belong to no tensor"
    return found


def same(expected, got):
    """Whether this is the same tensor, to the last bit; in JSON what is no number is null."""
    datatype, shape, values = got
    if list(expected.shape) != shape:
        return False
    if expected.dtype.kind in "OUS":
        return datatype == "BYTES" and values in (packed(expected), [str(one) for one in expected.ravel()])
    if NAMES[expected.dtype] != datatype:
        return False
    if isinstance(values, bytes):
        return values == expected.tobytes()
    if expected.dtype.kind != "f":
        return values == expected.ravel().tolist()
    flat = expected.ravel()
    numbers = np.array([math.nan if one is None else one for one in values], expected.dtype)
    finite = np.isfinite(flat)
    return bool((np.isnan(numbers) == ~finite).all()) and numbers[finite].tobytes() == flat[finite].tobytes()


def finite(case):
    return all(np.isfinite(one).all() for one in case.inputs.values() if one.dtype.kind == "f")


@pytest.mark.timeout(1800)
def test_what_onnxruntime_answers_is_what_callers_get(tmp_path_factory, request):
    counts, wrong = Counter(), []
    every = cases(None if request.config.getoption("--long") else SHORT)
    for start in range(0, len(every), AT_ONCE):
        some = every[start : start + AT_ONCE]
        with hosted(tmp_path_factory.mktemp("models"), some) as (street, host):
            counts["refused"] += sum(why is not None for why in host.refused.values())
            counts += Counter(why.partition(" node ")[0] for why in host.refused.values() if why)
            for worker in street.workers:
                street.split(0, baseline=worker.as_version, candidate=False)
                case = some[int(worker.as_version.version)]
                for binary in (True, False) if finite(case) else (True,):
                    counts["asked"] += 1
                    wrong += differences(street, worker.as_version.version, case, binary=binary)
    if wrong:
        pytest.fail("\n".join([str(counts), *wrong[:20]]))
    assert counts["asked"] > len(every)
    assert counts["refused"] < len(every) / 10, counts


@contextmanager
def hosted(folder, cases):
    """A street with a worker for each of these that can be loaded."""
    host = Host(folder, cases)
    try:
        loaded = [number for number, why in host.refused.items() if why is None]
        street = Street(folder, versions=loaded, worker=host.worker)
        try:
            yield street, host
        finally:
            street.close()
    finally:
        host.close()


def differences(street, version, case, *, binary):
    """Where the answer to this case is not that of onnxruntime."""
    way = "binary" if binary else "JSON"
    body, json_length = request(case, binary=binary)
    headers = {"inference_header_content_length": str(json_length)} if binary else {}
    answer = street.infer(body, path=f"/v2/models/m/versions/{version}/infer", **headers)
    if answer.status != 200:
        return [f"{case.name} as {way}: {answer.status} {answer.body[:200]}"]
    got = tensors(answer)
    return [
        f"{case.name} as {way}: {name} is {str(got.get(name))[:100]} and not {str(value)[:100]}"
        for name, value in case.outputs.items()
        if name not in got or not same(value, got[name])
    ]
