"""The file that `history --outcomes` writes and `replay` reads: JSON lines of recorded outcomes, in time order.

The one rule: a line stands alone, so a log of any length is read in pieces, and what is wrong with it is said as FILE:LINE.
Every column is decoded for a whole piece at once (typed structs, then numpy): about 2 µs a line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from deployctl.core.assignment import key_hash, key_hashes, positions_of
from deployctl.core.plan import Plan
from deployctl.core.rollout import Learned
from deployctl.errors import InvalidError

PIECE_BYTES = 2 * 1024 * 1024
"""What is read at once; also the longest line, so that a file without an end costs no memory."""

Numbers = range | list[int]
"""The number of each line in its file."""

_NAN = float("nan")


class Answer(msgspec.Struct, omit_defaults=True, gc=False):
    """What one arm answered. `ok` is false for 5xx and time-outs; `status` is given where it is neither 200 nor 500, `null` where
    it does not follow from a prediction that is null, `wrong` (0 to 1) where it does not follow from prediction and label.
    """

    ok: bool
    latency_ms: float
    prediction: str | msgspec.UnsetType | None = msgspec.UNSET
    status: int | None = None
    null: bool | None = None
    wrong: float | None = None

    @property
    def status_and_null(self) -> tuple[int, bool]:
        """What follows from the rest where it is not given."""
        status = self.status if self.status is not None else 200 if self.ok else 500
        return status, (self.ok and self.prediction is None) if self.null is None else self.null


class Line(msgspec.Struct, omit_defaults=True, gc=False):
    """One request: it began at `t`; its outcome was admitted at `seen_t`, its label (the `label_n`-th) came in at `label_t`.

    `split` is the split it was served under. A `key` of # and 16 hex digits is a hashed one, as exports have it.

    A request that was copied has both arms; `pair_t` is when they were admitted as a pair, and `served` is "candidate" where the
    baseline's answer is the copy. With several candidates `candidates` has all of them by version, and `candidate` is the first.
    """

    t: float
    id: str | None = None
    key: str | None = None
    baseline: Answer | None = None
    candidate: Answer | None = None
    label: str | None = None
    label_t: float = _NAN
    label_n: int = 0
    seen_t: float = _NAN
    split: int = -1
    candidates: dict[str, Answer] | None = None
    pair_t: float = _NAN
    served: str | None = None


class Happened(msgspec.Struct):
    """An event of the live rollout: what a replay of the same manifest leads to again."""

    seq: int
    kind: str
    step: int | None
    at: float


class Boundary(msgspec.Struct):
    """No block straddles it: from here on another split was in force."""

    split: int
    step: int
    weight: float
    at: float


class Order(msgspec.Struct):
    """What the evidence did not lead to: an order of a person, a webhook's answer, or a candidate that could not be kept loaded (`kind` unloadable; `version`
    says which of several) or watched (unwatched).
    """

    at: float
    kind: str
    by: str
    reason: str
    step: int | None = None
    version: str | None = None


class Header(msgspec.Struct):
    """What a replay must know to give the same events and evidence as the live rollout. Times are rollout seconds."""

    schema_version: int = 1
    service: str = ""
    rollout: str = ""
    salt: str = ""
    plan: Plan | None = None
    learned: Learned | None = None
    learned_at: float | None = None
    block_boundaries: list[Boundary] = []
    decisions: list[Order] = []
    events: list[Happened] = []
    instants: list[float] = []
    until: float = 0.0


class _FirstLine(msgspec.Struct):
    header: Header


_encoder = msgspec.json.Encoder()
_first = msgspec.json.Decoder(_FirstLine)
_line = msgspec.json.Decoder(Line)
_lines = msgspec.json.Decoder(list[Line])


def encode_header(header: Header) -> bytes:
    """The first line of an export."""
    return _encoder.encode(_FirstLine(header)) + b"\n"


def encode_lines(lines: list[Line]) -> bytes:
    """Outcomes as they stand in the file."""
    return _encoder.encode_lines(lines)


def hashed_key(text: str) -> bytes:
    """The eight bytes that stand for a routing key."""
    if len(text) == 17 and text[0] == "#":
        try:
            return bytes.fromhex(text[1:])
        except ValueError:
            pass
    return key_hash(text)


@dataclass(slots=True)
class Piece:
    """Some lines of a log as columns; those that are (2, lines) have the baseline first."""

    lines: list[Line]
    t: NDArray[np.float64]
    seen: NDArray[np.float64]
    split: NDArray[np.int64]
    there: NDArray[np.bool_]
    latency: NDArray[np.float32]
    status: NDArray[np.uint16]
    null: NDArray[np.bool_]
    hashes: list[bytes]
    labelled: NDArray[np.intp]
    _places: NDArray[np.float64] | None = None

    @property
    def keys(self) -> NDArray[np.uint64]:
        """The routing keys, hashed."""
        return np.frombuffer(b"".join(self.hashes), "<u8")

    def positions(self, salt: str) -> NDArray[np.float64]:
        """Where each caller stands in [0, 1), always with the same salt."""
        if self._places is None:
            drawn = np.frombuffer(positions_of(salt, self.hashes), ">u8").astype(np.uint64)
            self._places = (drawn >> np.uint64(11)) / 2.0**53
        return self._places


class OutcomeLog:
    """A log that is read from its beginning, once; `bytes_read` says how far. `header` is None where the first line is an outcome already."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        """Raises InvalidError when the file cannot be read, has a bad header or nothing in it."""
        self.name = name or str(path)
        self._path = path
        self.bytes_read = 0
        self.header: Header | None = None
        with self._opened() as file:
            first = file.readline(PIECE_BYTES + 1)
        if len(first) > PIECE_BYTES:
            raise self._too_long(1)
        if not first.strip():
            raise InvalidError(f"{self.name}:1: an outcome or a header is expected here")
        if b'"header"' in first[:64]:
            try:
                self.header = _first.decode(first).header
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise InvalidError(f"{self.name}:1: {error}") from error

    @property
    def size(self) -> int:
        """Bytes of the file. Raises InvalidError."""
        with self._opened() as file:
            return os.fstat(file.fileno()).st_size

    def pieces(self) -> Iterator[Piece]:
        """The outcomes in order. Raises InvalidError with the line that is none, or whose time goes back."""
        last = -np.inf
        for number, count, raw in self._raw():
            lines, numbers = self._decoded(raw, number, count)
            if not lines:
                continue
            piece = self._columns(lines, numbers, raw)
            back = np.flatnonzero(np.diff(piece.t, prepend=last) < 0)
            if len(back):
                at = int(back[0])
                before = float(piece.t[at - 1]) if at else last
                raise self._bad(numbers, at, f"time goes back from {before:g} to {piece.t[at]:g}")
            last = float(piece.t[-1])
            yield piece

    def _opened(self) -> Any:
        try:
            return self._path.open("rb")
        except OSError as error:
            raise InvalidError(f"{self.name}: cannot be read: {error.strerror or error}") from error

    def _raw(self) -> Iterator[tuple[int, int, bytes]]:
        """Whole lines, as many as fit, with the number of the first and how many they are."""
        number, rest = 1, b""
        with self._opened() as file:
            if self.header is not None:
                file.readline(PIECE_BYTES)
                number = 2
            while block := file.read(PIECE_BYTES):
                self.bytes_read = file.tell()
                end = block.rfind(b"\n")
                if end < 0:
                    rest += block
                    if len(rest) > PIECE_BYTES:
                        raise self._too_long(number)
                    continue
                raw = rest + block[: end + 1]
                rest = block[end + 1 :]
                count = raw.count(b"\n")
                yield number, count, raw
                number += count
        if rest.strip():
            yield number, 1, rest

    def _decoded(self, raw: bytes, number: int, count: int) -> tuple[list[Line], Numbers]:
        try:
            lines = _line.decode_lines(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise self._first_bad(raw, number) from error
        if len(lines) == count:
            return lines, range(number, number + count)
        return lines, [number + i for i, one in enumerate(raw.split(b"\n")) if one.strip()]

    def _first_bad(self, raw: bytes, number: int) -> InvalidError:
        for at, one in enumerate(raw.split(b"\n"), number):
            try:
                if one.strip():
                    _line.decode(one)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                return InvalidError(f"{self.name}:{at}: {error}")
        return InvalidError(f"{self.name}:{number}: these lines are not JSON")

    def _columns(self, lines: list[Line], numbers: Numbers, raw: bytes) -> Piece:
        count = len(lines)
        t = np.array([line.t for line in lines])
        there = np.zeros((2, count), bool)
        latency = np.zeros((2, count), np.float32)
        status = np.zeros((2, count), np.uint16)
        null = np.zeros((2, count), bool)
        for side, answers in enumerate(([x.baseline for x in lines], [x.candidate for x in lines])):
            given = [answer for answer in answers if answer is not None]
            if len(given) == count:
                at: NDArray[np.intp] | slice = slice(None)
            else:
                at = np.flatnonzero([answer is not None for answer in answers])
            there[side, at] = True
            latency[side, at] = [answer.latency_ms for answer in given]
            ok = np.array([answer.ok for answer in given], dtype=bool)
            status[side, at] = np.where(ok, 200, 500)
            null[side, at] = ok & np.array([answer.prediction is None for answer in given], dtype=bool)
            rare = [answer.status for answer in given], [answer.null for answer in given]
            if any(column.count(None) < len(given) for column in rare):
                self._read_rare(answers, numbers, status[side], null[side])
        for wrong, words in (
            (~there.any(axis=0), "neither a baseline nor a candidate has answered"),
            (~np.isfinite(t), "t is no time"),
            (~(np.isfinite(latency) & (latency >= 0)).all(axis=0), "latency_ms is no time"),
        ):
            if wrong.any():
                raise self._bad(numbers, int(np.argmax(wrong)), words)
        seen = np.array([line.seen_t for line in lines])
        split = np.array([line.split for line in lines])
        labels = [line.label for line in lines]
        labelled = [] if labels.count(None) == count else [i for i in range(count) if labels[i] is not None]
        return Piece(
            lines=lines,
            t=t,
            seen=seen,
            split=split,
            there=there,
            latency=latency,
            status=status,
            null=null,
            hashes=self._hashes(lines, numbers, raw),
            labelled=np.array(labelled, dtype=np.intp),
        )

    def _read_rare(
        self,
        answers: list[Answer | None],
        numbers: Numbers,
        status: NDArray[np.uint16],
        null: NDArray[np.bool_],
    ) -> None:
        """What few lines say: another status, and nulls that do not follow from the prediction."""
        for at, answer in enumerate(answers):
            if answer is None:
                continue
            if answer.status is not None:
                if not 100 <= answer.status <= 599:
                    raise self._bad(numbers, at, f"status {answer.status} is none of HTTP's")
                status[at] = answer.status
            if answer.null is not None:
                null[at] = answer.null

    def _hashes(self, lines: list[Line], numbers: Numbers, raw: bytes) -> list[bytes]:
        texts = [line.key or line.id or "" for line in lines]
        if "" in texts:
            raise self._bad(numbers, texts.index(""), "it has neither a key nor an id to route it by")
        # One byte is found at memory's speed; asking every text whether it is hashed already costs half of hashing it.
        return [hashed_key(text) for text in texts] if b"#" in raw else key_hashes(texts)

    def _bad(self, numbers: Numbers, at: int, words: str) -> InvalidError:
        return InvalidError(f"{self.name}:{numbers[at]}: {words}")

    def _too_long(self, number: int) -> InvalidError:
        return InvalidError(f"{self.name}:{number}: the line is longer than {PIECE_BYTES} bytes")
