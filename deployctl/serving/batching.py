"""May requests share an inference? Found from the model's signature, then tried: every bit of every answer must be as without.

What is not tried is not done: the largest batch that was compared is the largest that there will be.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from deployctl.serving.model import Model, ModelFailure, Stopped
from deployctl.wire.coding import BadRequest
from deployctl.wire.oip import DTYPES, Array, TensorSpec

MOST_ROWS = 32
"""In one inference. A small model's row then costs a twentieth of what it does alone, and more rows hardly gain."""

TRIAL_SECONDS = 0.5
"""Of processor time, for all comparisons."""

PATIENCE = 5.0
"""Seconds after which an inference of the trial is stopped, and the trial with it."""

_PAYS_AT, _PAYS = 8, 0.75
"""So many rows together must take less than this share of the time that they take one by one."""

_TOO_SLOW = 16
"""Where a row alone takes more than this part of the time for all comparisons there are none."""

_OPEN = 3
"""Where a dimension other than the first varies."""


class Batching(NamedTuple):
    """How many rows an inference may have; with one only, `why`."""

    rows: int
    why: str | None = None


_TAKES_TOO_LONG = Batching(1, "its inferences take too long to compare batches")
OFF = Batching(1, "spec.service.batching is false")


def find_batching(model: Model, seconds: float = TRIAL_SECONDS) -> Batching:
    """What this model allows. Takes about `seconds` of processor time; no inference goes on for longer than PATIENCE where it is watched."""
    why = _no_axis(model)
    if why is not None:
        return Batching(1, why)
    for size in (_OPEN, 1):
        try:
            return _Trial(model, _rows(model.inputs, size)).result(seconds)
        except Stopped:
            return _TAKES_TOO_LONG
        except (ModelFailure, BadRequest):
            if not any(-1 in spec.shape[1:] for spec in model.inputs):
                break
    return Batching(1, "it fails on the rows that batches are tried with")


def _no_axis(model: Model) -> str | None:
    for role, specs in (("input", model.inputs), ("output", model.outputs)):
        for spec in specs:
            if not spec.shape or spec.shape[0] != -1:
                return f"the first dimension of {role} {spec.name!r} ({spec}) is not left open"
    if not model.inputs:
        return "it has no input"
    if len(set(model.axes.values())) > 1:
        named = ", ".join(f"{name!r} along {axis}" for name, axis in model.axes.items())
        return f"its inputs vary along different axes: {named}"
    return None


class _Trial:
    """Some rows one by one and together. `rows`: (MOST_ROWS, …) for each input."""

    def __init__(self, model: Model, rows: Mapping[str, Array]) -> None:
        self._model = model
        self._rows = rows
        self._alone: dict[int, dict[str, Array]] = {}
        self._fine = [0]  # rows that the model can compute alone

    def result(self, seconds: float) -> Batching:
        """Raises ModelFailure or BadRequest where the first row cannot be computed at all, Stopped where one takes too long."""
        began = time.thread_time()
        until = began + seconds
        self._compute_alone(0)
        if time.thread_time() - began > seconds / _TOO_SLOW:
            return _TAKES_TOO_LONG
        if why := self._does_not_pay():
            return Batching(1, why)
        self._compute_each(until)
        compared = 1
        for size in range(2, MOST_ROWS + 1):
            if time.thread_time() > until:
                break
            if why := self._difference(size):
                return Batching(1, why)
            compared = size
        return _TAKES_TOO_LONG if compared < _PAYS_AT else Batching(compared)

    def _compute_each(self, until: float) -> None:
        for row in range(1, MOST_ROWS):
            if time.thread_time() > until:
                return
            try:
                self._compute_alone(row)
            except Stopped:
                raise
            except (ModelFailure, BadRequest):
                continue  # a batch in which one fails is done again one by one
            self._fine.append(row)

    def _compute_alone(self, row: int) -> None:
        self._alone[row] = self._run([row])

    def _run(self, chosen: list[int]) -> dict[str, Array]:
        rows = {name: rows[chosen] for name, rows in self._rows.items()}
        return self._model.run(rows, deadline=time.monotonic() + PATIENCE)

    def _difference(self, size: int) -> str | None:
        """Between so many rows together and one by one, or None. They begin elsewhere each time, so that each row gets about."""
        chosen = [self._fine[(7 * size + place) % len(self._fine)] for place in range(size)]
        try:
            together = self._run(chosen)
        except Stopped:
            raise
        except (ModelFailure, BadRequest) as error:
            return f"it fails on {size} rows together: {error}"
        for name, array in together.items():
            if array.ndim == 0 or len(array) != size:
                return f"{size} rows together give output {name!r} the shape {list(array.shape)}"
            alone = [self._alone[row][name] for row in chosen]
            if any(one.shape != (1, *array.shape[1:]) for one in alone):
                return f"output {name!r} has another shape for {size} rows together"
            if not _same_bits(array, np.concatenate(alone)):
                return f"{size} rows together give another {name!r} than one by one"
        return None

    def _does_not_pay(self) -> str | None:
        together = min(self._cost([0] * _PAYS_AT) for _ in range(3))
        alone = min(self._cost([0]) for _ in range(3))
        share = together / max(_PAYS_AT * alone, 1e-9)
        if share < _PAYS:
            return None
        return f"{_PAYS_AT} rows together take {share:.2f} of the time that they take one by one: nothing is gained"

    def _cost(self, chosen: list[int]) -> float:
        began = time.thread_time()
        self._run(chosen)
        return time.thread_time() - began


def _same_bits(one: Array, other: Array) -> bool:
    """But for those within a NaN, which nothing can tell apart."""
    if one.dtype != other.dtype:
        return False
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    bits = np.dtype(f"u{one.dtype.itemsize}")
    same = np.ascontiguousarray(one).view(bits) == np.ascontiguousarray(other).view(bits)
    return bool((same | (np.isnan(one) & np.isnan(other))).all())


def _rows(inputs: Sequence[TensorSpec], open_size: int) -> dict[str, Array]:
    random = np.random.default_rng(11)
    return {spec.name: _tensor(spec, open_size, random) for spec in inputs}


def _tensor(spec: TensorSpec, open_size: int, random: np.random.Generator) -> Array:
    shape = [MOST_ROWS, *(open_size if size == -1 else size for size in spec.shape[1:])]
    dtype: np.dtype[Any] = DTYPES[spec.datatype]
    if dtype.kind == "O":
        texts = np.empty(shape, dtype=object)
        texts.reshape(-1)[:] = [b"text %d" % number for number in random.integers(0, 9, texts.size)]
        return texts
    if dtype.kind != "f":
        # What is a byte is mostly a pixel; a longer number may be an index, and then there may be no more than two.
        most = 255 if dtype == np.uint8 else 1
        return random.integers(0, most, shape, endpoint=True).astype(dtype)
    # A row of all values adds up to less than 1: whatever falls over on real rows does that before callers, where it is counted,
    # and not at its start. Rows of very different sizes show what is scaled by the largest.
    largest = 0.5 / max(math.prod(shape[1:]), 1)
    sizes = 10.0 ** random.uniform(-2, 0, [MOST_ROWS, *[1] * (len(shape) - 1)])
    return (random.uniform(-largest, largest, shape) * sizes).astype(dtype)
