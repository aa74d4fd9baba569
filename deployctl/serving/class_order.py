"""Does a candidate name its classes in the order of the baseline? A swap passes every check of shapes, and is wrong on every answer.

Two witnesses, neither of which is a proof: names that the models carry in their metadata, and what both say to inputs that the
baseline is sure of. Those are found by climbing from noise, so no data is needed. What slips through is for the shadow to find.
"""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployctl.serving.model import Model, ModelFailure
from deployctl.wire.oip import DTYPES, Array, TensorSpec

METADATA_KEYS = ("classes", "class_names", "names", "labels")
"""Under which exporters keep the names of classes (`names` is Ultralytics')."""

CLIMBS, STEPS, REACH, ROUGH = 24, 60, (1.0, 16.0), (0.0, 0.1, 2.0)
"""Inputs that are tried, how often each is changed for the better, how large their values are, and how much noise is in them at
first: to a picture's model noise is all one class, and an even grey another.
"""

FEWEST_CLASSES, AGREES, DIFFERS = 2, 0.9, 0.3
"""At least so many classes must be seen; in another order the two agree on this share, in the same on less than that."""

MAX_SECONDS = 20.0
"""Models that are slower than that leave it to the shadow, and one that hangs does not hang who asks."""

MAX_ELEMENTS = 1 << 20
"""Inputs larger than this are not climbed on."""


def class_order_problem(baseline: Model, candidate: Model, output: str, classes: Sequence[str]) -> str | None:
    """Why the candidate's classes seem to stand in another order than the baseline's, in a line; None where nothing says so."""
    ours, theirs = named_classes(baseline), named_classes(candidate)
    if ours and theirs and ours != theirs and sorted(ours) == sorted(theirs):
        return f"its metadata names the classes {', '.join(theirs)}, the baseline's {', '.join(ours)}"
    moved = moved_classes(baseline, candidate, output)
    if moved is None:
        return None
    names = [classes[at] if at < len(classes) else str(at) for at in range(max(moved.values()) + 1)]
    words = ", ".join(
        f"{names[one]} → {names[other]}" for one, other in sorted(moved.items()) if one != other
    )
    return f"it answers as the baseline does with its classes in another order ({words}); look at prediction.classes"


def named_classes(model: Model) -> list[str] | None:
    """The class names that a model's metadata holds, in order; None without any."""
    for key in METADATA_KEYS:
        if (text := model.metadata.get(key)) and (names := _names_in(text)):
            return names
    return None


def _names_in(text: str) -> list[str]:
    for read in (json.loads, ast.literal_eval):
        try:
            value: Any = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, dict):
            return [
                str(value[key])
                for key in sorted(value, key=lambda one: int(one) if str(one).isdigit() else 0)
            ]
        if isinstance(value, list | tuple):
            return [str(one) for one in value]
    return [part.strip() for part in text.split(",")] if "," in text else []


def moved_classes(baseline: Model, candidate: Model, output: str) -> dict[int, int] | None:
    """Class of the baseline → class that the candidate calls it, where that is consistently another; else None."""
    if len(baseline.inputs) != 1 or not _can_climb(baseline.inputs[0]):
        return None
    try:
        seen = _seen_together(baseline, candidate, output, time.monotonic() + MAX_SECONDS)
    except (ModelFailure, KeyError, ValueError):
        return None  # a model that fails on noise, or takes too long for it, says nothing here
    return _reordering(seen) if seen is not None else None


def _can_climb(spec: TensorSpec) -> bool:
    elements = int(np.prod([1 if size == -1 else size for size in spec.shape])) if spec.shape else 0
    return spec.datatype in {"FP32", "FP64"} and 0 < elements <= MAX_ELEMENTS


def _seen_together(baseline: Model, candidate: Model, output: str, until: float) -> NDArray[np.int64] | None:
    """(classes, classes): how often the candidate called it that where the baseline called it this, on inputs it is sure of.

    Raises ModelFailure where that is not known by then (CLOCK_MONOTONIC).
    """

    def scores_of(model: Model, tried: Array) -> Array:
        if time.monotonic() > until:
            raise ModelFailure("it takes too long to look for inputs")
        return model.run({spec.name: tried}, [output], until)[output]

    spec, random = baseline.inputs[0], np.random.default_rng(0)
    shape = [1 if size == -1 else size for size in spec.shape]
    seen: NDArray[np.int64] | None = None
    for climb in range(CLIMBS):
        size, rough = REACH[climb % len(REACH)], ROUGH[climb // len(REACH) % len(ROUGH)]
        level = random.random() + rough * (random.random(shape) - 0.5)
        first = (np.clip(level, 0, 1) * size).astype(DTYPES[spec.datatype])
        scores = scores_of(baseline, first).ravel()
        if seen is None:
            seen = np.zeros((len(scores), len(scores)), dtype=np.int64)
        wanted = climb % len(scores)
        best, surest = first, float(scores[wanted])
        for _ in range(STEPS):
            change = random.normal(0.0, 0.3 * size * max(rough, 0.01), shape) * (random.random(shape) < 0.3)
            tried = np.clip(best + change, 0, size).astype(first.dtype)
            sure = float(scores_of(baseline, tried).ravel()[wanted])
            if sure > surest:
                best, surest = tried, sure
        says = [int(np.argmax(scores_of(model, best))) for model in (baseline, candidate)]
        seen[says[0], says[1]] += 1
    return seen


def _reordering(seen: NDArray[np.int64]) -> dict[int, int] | None:
    """The other order in which both agree, where they do on most inputs and hardly on any in the same order."""
    total = int(seen.sum())
    classes = np.flatnonzero(seen.sum(axis=1))
    moved = {int(one): int(np.argmax(seen[one])) for one in classes}
    agreed = sum(int(seen[one, other]) for one, other in moved.items())
    one_to_one = len(set(moved.values())) == len(moved)
    if len(classes) < FEWEST_CLASSES or not one_to_one:
        return None
    if agreed < AGREES * total or np.trace(seen) > DIFFERS * total:
        return None
    return moved
