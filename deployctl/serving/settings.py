"""What a worker is told at its start; the rule is that nothing of it changes while the worker lives."""

from __future__ import annotations

import msgspec


class Prediction(msgspec.Struct, frozen=True):
    """How an answer is read from the output tensors."""

    output: str
    read: str = "argmax"
    classes: tuple[str, ...] | None = None
    confidence_below: float | None = None


class Settings(msgspec.Struct, frozen=True):
    """One version: the name that clients use, the label, the bytes and the digest that they must have.

    `idle`: its answers are given to nobody, so it works only when nobody else wants the processor. `memory`: how many bytes it may
    take, None for a share of the machine. `max_batch_delay`: seconds, see `Server`.
    """

    model: str
    version: str
    digest: str
    file: str
    prediction: Prediction | None = None
    idle: bool = False
    memory: int | None = None
    batching: bool = True
    max_batch_delay: float = 0.0
