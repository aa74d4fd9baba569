"""What an answer says, read from the output tensors: a prediction, how sure it is, or that it is no answer at all.

A row without a finite maximum is no answer: it holds NaN or +Infinity, or nothing above -Infinity. argmax alone
finds that out (NaN counts as the largest), so the check costs 0.4 µs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from deployctl.errors import InvalidError
from deployctl.serving.settings import Prediction
from deployctl.wire.oip import Array, TensorSpec

_LONGEST_TEXT = 4096


class Reading(NamedTuple):
    """What was read. A batch of several rows has no prediction of its own, but may hold no answer."""

    prediction: str | None
    null: bool
    confidence: float


class Reader:
    """Reads answers by the manifest's `prediction` section; without one it only sees what is no answer."""

    def __init__(
        self, prediction: Prediction | None, outputs: Sequence[TensorSpec], warm_up: Mapping[str, Array]
    ) -> None:
        """Raises InvalidError for a section that this model cannot satisfy."""
        self.output = None if prediction is None else prediction.output
        self._floats = [spec.name for spec in outputs if spec.datatype.startswith("FP")]
        self._classes: tuple[str, ...] | None = None
        self._confidence_below = -math.inf
        self._probabilities = False
        self._read: Callable[[Array], Reading] | None = None
        if prediction is None:
            return
        if prediction.output not in warm_up:
            known = ", ".join(repr(spec.name) for spec in outputs)
            raise InvalidError(
                f"prediction.output: the model has no output {prediction.output!r}; known: {known}"
            )
        array = warm_up[prediction.output]
        if prediction.read == "argmax":
            self._set_argmax(prediction, array)
        elif prediction.read == "text":
            if array.dtype.kind == "f":
                raise InvalidError(
                    f"prediction.read: output {self.output!r} holds numbers, which are no text; use argmax"
                )
            self._read = self._read_text
        else:
            raise InvalidError(
                f"prediction.read: {prediction.read!r} is not supported yet; known: argmax, text"
            )
        if prediction.confidence_below is not None:
            self._set_confidence(prediction.confidence_below, array)

    def read(self, outputs: Mapping[str, Array]) -> Reading:
        """The reading of one answer. Outputs that are not there are not looked at."""
        reading = _NOTHING if self._read is None else self._read(outputs[self.output or ""])
        if not reading.null:
            for name in self._floats:
                array = outputs.get(name)
                if array is not None and name != self.output and _no_answer(array):
                    return Reading(None, null=True, confidence=math.nan)
        return reading

    def _set_argmax(self, prediction: Prediction, array: Array) -> None:
        if array.dtype.kind == "O" or array.ndim == 0 or array.shape[-1] < 2:
            raise InvalidError(
                f"prediction.read: output {self.output!r} has no row of scores (shape {list(array.shape)}); use read: text"
            )
        if prediction.classes is not None and len(prediction.classes) != array.shape[-1]:
            raise InvalidError(
                f"prediction.classes names {len(prediction.classes)} classes, "
                f"output {self.output!r} has {array.shape[-1]}"
            )
        self._classes = None if prediction.classes is None else tuple(map(_bounded, prediction.classes))
        self._probabilities = _are_probabilities(array)
        self._read = self._read_argmax

    def _set_confidence(self, below: float, array: Array) -> None:
        # A warm-up that gave NaN proves nothing here, and is reported as such.
        nonfinite = array.dtype.kind == "f" and not np.isfinite(array).all()
        if not self._probabilities and not nonfinite:
            raise InvalidError(
                f"prediction.nullIf: output {self.output!r} holds no probabilities (in the warm-up its rows "
                "do not add up to 1), so confidenceBelow means nothing"
            )
        self._confidence_below = below

    def _read_argmax(self, array: Array) -> Reading:
        size = array.size
        if not size:
            return _NOTHING
        index = int(array.argmax())
        top = array.item(index)
        if not math.isfinite(top):
            return Reading(None, null=True, confidence=math.nan)
        if size != array.shape[-1]:
            return _NOTHING
        classes = self._classes
        name = str(index) if classes is None or index >= len(classes) else classes[index]
        confidence = float(top) if self._probabilities and 0 <= top <= 1.01 else math.nan
        if confidence < self._confidence_below:
            return Reading(None, null=True, confidence=confidence)
        return Reading(name, null=False, confidence=confidence)

    @staticmethod
    def _read_text(array: Array) -> Reading:
        texts = [_text(element) for element in array.ravel().tolist()]
        if any(not text.strip() for text in texts):
            return Reading(None, null=True, confidence=math.nan)
        return Reading(_bounded(texts[0]) if len(texts) == 1 else None, null=False, confidence=math.nan)


_NOTHING = Reading(None, null=False, confidence=math.nan)


def _no_answer(array: Array) -> bool:
    return array.size > 0 and not math.isfinite(array.item(int(array.argmax())))


def _are_probabilities(array: Array) -> bool:
    """Judged once, on the warm-up: scores that are never negative and add up to 1 in each row."""
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        return False
    return bool((array >= 0).all() and (abs(array.sum(axis=-1, dtype=np.float64) - 1) < 0.01).all())


def _text(element: object) -> str:
    return element.decode("utf-8", "replace") if isinstance(element, bytes) else str(element)


def _bounded(text: str) -> str:
    """A long text is cut and carries its hash, so that different texts stay different."""
    if len(text) <= _LONGEST_TEXT:
        return text
    return f"{text[:_LONGEST_TEXT]}… sha256:{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()}"
