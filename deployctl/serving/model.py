"""One model: loaded from the very bytes whose digest was checked, warmed up with a real inference, then run.

Everything that onnxruntime raises is translated here: at the load to a DeployctlError that stops the worker, in a
request to ModelFailure, the version's fault. Tensors that do not fit the signature never get that far (BadRequest).
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

# Before it is imported, or it tells its makers that it runs here: a service talks to nobody but its callers.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

from deployctl.errors import IntegrityError, InvalidError
from deployctl.serving.external import external_tensor
from deployctl.serving.memory import is_out_of_memory
from deployctl.serving.watch import Watch
from deployctl.wire.coding import BadRequest
from deployctl.wire.oip import DATATYPES, DTYPES, PLATFORM, Array, TensorSpec

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_FATAL = 4
_STOPPED = "terminate flag"
WARM_UP_SECONDS = 30.0
"""How long the warm-up inference may take where somebody watches it."""

_FAILED_NODE = re.compile(r"while running (\w+) node(?:\. Name:'([^']*)')?")


class ModelFailure(Exception):  # noqa: N818  # an event in the model's life, answered with 500
    """The model raised on tensors that fit its signature; the message holds nothing of the input."""


class Stopped(ModelFailure):
    """Its time was over."""


class Model:
    """A loaded and warmed model. `inputs` and `outputs` are its signature, `warm_up` what it said to zeros, `axes` the names that it has
    for the first dimension of its inputs (None for one without a name).

    With a `watch` no inference goes on past its deadline. `memory` says which limit it is that an allocation may have met.
    """

    def __init__(
        self,
        file: Path,
        digest: str,
        watch: Watch | None = None,
        *,
        memory: str = "the machine's memory",
        warm_up_seconds: float = WARM_UP_SECONDS,
    ) -> None:
        """Raises IntegrityError if the bytes are not those of `digest`, InvalidError if they are no usable model."""
        self._watch = watch
        self._memory = memory
        try:
            content = _read(file, digest)
            _refuse_external(content, file)
            self._session, self.inputs, self.outputs, self.axes = _load(content, file)
            self._expected = {spec.name: (spec, DTYPES[spec.datatype], spec.shape) for spec in self.inputs}
            self._names = [spec.name for spec in self.outputs]
            self._fitted: dict[str, tuple[int, ...]] = {}
            self.warm_up = self._warm_up(file, warm_up_seconds)
        except (InvalidError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise InvalidError(f"{file}: the model does not fit into {memory}") from error
        self._shapes = {name: array.shape for name, array in self.warm_up.items()}
        # An output that is not what it claims on zeros already claims nothing.
        self._claims = {
            spec.name: spec for spec in self.outputs if _is_as_claimed(self._shapes[spec.name], spec)
        }

    @property
    def metadata(self) -> dict[str, str]:
        """What the model's author wrote into it, by key."""
        return {
            str(key): str(value) for key, value in self._session.get_modelmeta().custom_metadata_map.items()
        }

    def report(self) -> dict[str, Any]:
        """What the supervisor is told of a model that is ready; the digest is the caller's to add."""
        nonfinite = [
            name
            for name, array in self.warm_up.items()
            if array.dtype.kind == "f" and not np.isfinite(array).all()
        ]
        return {
            "platform": PLATFORM,
            "inputs": [_described(spec) for spec in self.inputs],
            "outputs": [_described(spec) for spec in self.outputs],
            "nonfinite": nonfinite,
        }

    def check(self, inputs: Mapping[str, Array]) -> None:
        """Raises BadRequest unless the tensors are those of the signature."""
        expected = self._expected
        for name, (spec, dtype, shape) in expected.items():
            array = inputs.get(name)
            if array is None:
                raise BadRequest(400, f"input {name!r} is missing; the model takes {spec}")
            if array.dtype != dtype:
                raise BadRequest(400, f"input {name!r} is {DATATYPES[array.dtype]}; the model takes {spec}")
            if shape and array.shape != self._fitted.get(name) and not self._fits(name, array, shape):
                raise BadRequest(400, f"input {name!r} has shape {list(array.shape)}; the model takes {spec}")
        if len(inputs) != len(expected):
            unknown = next(name for name in inputs if name not in expected)
            raise BadRequest(400, f"unknown input {unknown[:80]!r}; the model takes {_listed(self.inputs)}")

    def _fits(self, name: str, array: Array, shape: Sequence[int]) -> bool:
        if not _fits(array.shape, shape):
            return False
        self._fitted[name] = (
            array.shape
        )  # most come in the same shape again, and a comparison is a tenth of the work
        return True

    def check_outputs(self, names: Sequence[str]) -> None:
        """Raises BadRequest if the model has no such output."""
        for name in names:
            if name not in self._names:
                raise BadRequest(400, f"unknown output {name[:80]!r}; the model has {_listed(self.outputs)}")

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None, deadline: float = math.inf
    ) -> dict[str, Array]:
        """The requested outputs (None: all), in that order. Raises ModelFailure if the model does, is stopped at its deadline
        (CLOCK_MONOTONIC), or answers in another shape than it claims.
        """
        answer = self._run(inputs, self._names if outputs is None else outputs, deadline)
        shapes = self._shapes
        for name, array in answer.items():
            if array.shape != shapes[name]:  # than the last time: 0.1 µs where it is not
                self._check_answer(name, array)
        return answer

    def _run(self, inputs: Mapping[str, Array], names: Sequence[str], deadline: float) -> dict[str, Array]:
        feed = {
            name: _strings(name, array) if array.dtype.kind == "O" else array
            for name, array in inputs.items()
        }
        watch = self._watch
        try:
            values = self._session.run(names, feed, None if watch is None else watch.over(deadline))
        except Exception as error:
            # onnxruntime raises what has no common base; this is its border.
            raise self._failure(error) from error
        finally:
            if watch is not None:
                watch.until = math.inf
        return dict(zip(names, map(np.asarray, values), strict=True))

    def _check_answer(self, name: str, array: Array) -> None:
        spec = self._claims.get(name)
        if spec is not None and not _is_as_claimed(array.shape, spec):
            raise ModelFailure(f"output {name!r} has shape {list(array.shape)}; the model claims {spec}")
        self._shapes[name] = array.shape

    def _failure(self, error: Exception) -> ModelFailure:
        """Where the model failed, without the rest of onnxruntime's message: it may quote values of the input."""
        if _STOPPED in str(error):
            return Stopped("the model was stopped: its time was over")
        if is_out_of_memory(error):
            return ModelFailure(f"the model failed: MemoryError; it may take {self._memory}")
        node = _FAILED_NODE.search(str(error))
        where = f" in node {node[2] or node[1]!r} ({node[1]})" if node else ""
        return ModelFailure(f"the model failed{where}: {type(error).__name__}")

    def _warm_up(self, file: Path, seconds: float) -> dict[str, Array]:
        until = time.monotonic() + seconds
        try:
            answer = self._answer_to_something(until)
        except (
            ModelFailure,
            BadRequest,
            MemoryError,
            ValueError,
        ) as error:  # also dimensions that nobody can hold
            message = f"{file}: the warm-up inference on zeros failed: {error}"
            raise InvalidError(message) from error
        for spec in self.outputs:
            if answer[spec.name].dtype != DTYPES[spec.datatype]:
                raise InvalidError(
                    f"{file}: output {spec.name!r} is not the {spec.datatype} that it claims to be"
                )
        return answer

    def _answer_to_something(self, until: float) -> dict[str, Array]:
        """What it says to zeros. Of several inputs some may be sizes, steps or divisors, for which zero is no value: then to ones."""
        zeros = {spec.name: _zeros(spec) for spec in self.inputs}
        try:
            return self._run(zeros, self._names, until)
        except (ModelFailure, BadRequest) as error:
            if len(zeros) == 1:
                raise
            failed = error
        ones = {name: np.ones_like(array) for name, array in zeros.items() if array.dtype.kind in "iuf"}
        whole = {name: array for name, array in ones.items() if array.dtype.kind != "f"}
        for known in (whole, ones):
            with suppress(ModelFailure, BadRequest):
                return self._run(zeros | known, self._names, until)
        raise failed


def _read(file: Path, digest: str) -> bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InvalidError(f"{file}: cannot be read: {error.strerror}") from error
    found = "sha256:" + hashlib.sha256(content).hexdigest()
    if found != digest:
        raise IntegrityError(f"{file}: the bytes have digest {found}, expected {digest}")
    return content


def _refuse_external(content: bytes, file: Path) -> None:
    try:
        name = external_tensor(memoryview(content))
    except ValueError as error:
        raise InvalidError(f"{file}: not an ONNX model, or truncated: {error}") from error
    if name is not None:
        raise InvalidError(
            f"{file}: tensor {name!r} keeps its data in another file, which the digest does not cover; "
            "save the model as one file"
        )


def _load(
    content: bytes, file: Path
) -> tuple[Any, list[TensorSpec], list[TensorSpec], dict[str, str | None]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        nodes = [("input", node) for node in session.get_inputs()]
        nodes += [("output", node) for node in session.get_outputs()]
        described = [(role, node.name, node.type, node.shape) for role, node in nodes]
    except Exception as error:
        # onnxruntime raises what has no common base; this is its border.
        raise InvalidError(f"{file}: onnxruntime cannot load the model: {_one_line(error)}") from error
    specs: dict[str, list[TensorSpec]] = {"input": [], "output": []}
    axes: dict[str, str | None] = {}
    for role, name, kind, shape in described:
        datatype = _DATATYPES.get(kind)
        if datatype is None:
            hint = "; export with zipmap=False" if "map(" in kind else ""
            raise InvalidError(f"{file}: {role} {name!r} is {kind}, which the protocol cannot carry{hint}")
        sizes = tuple(size if isinstance(size, int) else -1 for size in shape)
        specs[role].append(TensorSpec(name, datatype, sizes))
        if role == "input":
            axes[name] = shape[0] if shape and isinstance(shape[0], str) else None
    return session, specs["input"], specs["output"], axes


def _zeros(spec: TensorSpec) -> Array:
    shape = [1 if size == -1 else size for size in spec.shape]
    if spec.datatype == "BYTES":
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, dtype=DTYPES[spec.datatype])


def _fits(shape: Sequence[int], declared: Sequence[int]) -> bool:
    if len(shape) != len(declared):
        return False
    return all(want in (size, -1) for size, want in zip(shape, declared, strict=True))


def _is_as_claimed(shape: Sequence[int], spec: TensorSpec) -> bool:
    """The first dimension is left out: a batch, which many models claim to be 1 and take as any."""
    return not spec.shape or _fits([1, *shape[1:]] if len(shape) else shape, [-1, *spec.shape[1:]])


def _strings(name: str, array: Array) -> Array:
    """BYTES as the strings that ONNX knows, which are UTF-8."""
    strings = np.empty(array.shape, dtype=object)
    try:
        strings.reshape(-1)[:] = [element.decode() for element in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise BadRequest(400, f"input {name!r} holds bytes that are not UTF-8; ONNX strings are") from error
    return strings


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name!r} {spec}" for spec in specs)


def _one_line(error: Exception) -> str:
    line = " ".join(str(error).split())
    return line if len(line) <= 400 else line[:397] + "..."
