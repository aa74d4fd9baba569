"""Router ↔ worker: multiplexed, length-prefixed frames on a Unix stream socket.

The router never decodes tensors: a request's body goes through as it came, and the worker returns the finished
answer together with what the router has to know of it (status, prediction, null or not, the body's id).
All integers are little-endian. `length` counts the bytes after itself.

    request   u32 length  u32 stream  u8 kind   f64 deadline  u32 json_length  u8 encoding  u8 accept  u16 n_id
              id bytes (UTF-8)  body bytes
    answer    u32 length  u32 stream  u16 status  u8 flags  f64 confidence  f64 ended  u32 json_length  u8 encoding
              u16 n_id  u16 n_prediction  id bytes  prediction bytes (UTF-8)  body bytes

`deadline` is CLOCK_MONOTONIC in seconds, which all processes of one machine share; past it the router has answered
504 and a worker need not run the request. `ended` is when the answer was made, by the same clock, NaN where nobody says it.
`json_length` is Inference-Header-Content-Length, NO_BINARY without it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from enum import IntEnum, IntFlag
from struct import Struct

import msgspec

NO_BINARY = 0xFFFFFFFF
"""`json_length` of a body that is JSON only."""

MAX_FRAME = 80 * 1024 * 1024
"""No frame is larger than a body of 64 MiB and an answer's growth over it."""

_LENGTH = Struct("<I")
_REQUEST = Struct("<IIBdIBBH")
_ANSWER = Struct("<IIHBddIBHH")


class Kind(IntEnum):
    """What the router asks of a worker."""

    INFER = 0
    METADATA = 1


class Encoding(IntEnum):
    """Content-Encoding of a body; `accept` in a request is the best one that the client takes."""

    IDENTITY = 0
    GZIP = 1
    DEFLATE = 2


class Flags(IntFlag):
    """What the worker read in the answer: no answer at all, a prediction beside it."""

    NONE = 0
    NULL = 1
    PREDICTED = 2


class Request(msgspec.Struct, frozen=True, gc=False):
    """One request on its way to a worker; `request_id` is used where the body brings no id of its own."""

    stream: int
    kind: Kind
    deadline: float
    request_id: str
    body: bytes = b""
    json_length: int = NO_BINARY
    encoding: Encoding = Encoding.IDENTITY
    accept: Encoding = Encoding.IDENTITY


class Answer(msgspec.Struct, frozen=True, gc=False):
    """One answer on its way back. `prediction` is None where none could be read, `confidence` NaN. `encode_answer` says `ended`."""

    stream: int
    status: int
    body: bytes
    request_id: str = ""
    prediction: str | None = None
    null: bool = False
    confidence: float = math.nan
    json_length: int = NO_BINARY
    encoding: Encoding = Encoding.IDENTITY
    ended: float = math.nan


# Calling an enum costs 0.4 µs and combining flags 0.7 µs, several times per request; tables and plain integers do not. A Struct
# of so many fields takes 2 µs to make by name and 0.2 by position.
_KINDS = {int(kind): kind for kind in Kind}
_ENCODINGS = {int(encoding): encoding for encoding in Encoding}
_NULL, _PREDICTED = int(Flags.NULL), int(Flags.PREDICTED)


class FrameError(Exception):
    """The peer sent what is no frame; the connection is of no use any more."""


def encode_request(request: Request) -> bytes:
    """The frame of a request."""
    return request_frame(
        request.stream,
        request.kind,
        request.deadline,
        request.request_id,
        request.body,
        request.json_length,
        request.encoding,
        request.accept,
    )


def request_frame(
    stream: int,
    kind: Kind,
    deadline: float,
    request_id: str,
    body: bytes,
    json_length: int,
    encoding: Encoding,
    accept: Encoding,
) -> bytes:
    """`encode_request` of what is no `Request` yet."""
    name = request_id.encode("utf-8", "surrogateescape")
    length = _REQUEST.size - _LENGTH.size + len(name) + len(body)
    head = _REQUEST.pack(length, stream, kind, deadline, json_length, encoding, accept, len(name))
    return b"".join((head, name, body))


def encode_answer(answer: Answer, ended: float = math.nan) -> bytes:
    """The frame of an answer that was made at `ended` (CLOCK_MONOTONIC)."""
    request_id = answer.request_id.encode("utf-8", "surrogateescape")
    prediction = b"" if answer.prediction is None else answer.prediction.encode("utf-8", "replace")
    flags = (_NULL if answer.null else 0) | (0 if answer.prediction is None else _PREDICTED)
    length = _ANSWER.size - _LENGTH.size + len(request_id) + len(prediction) + len(answer.body)
    head = _ANSWER.pack(
        length,
        answer.stream,
        answer.status,
        flags,
        answer.confidence,
        ended,
        answer.json_length,
        answer.encoding,
        len(request_id),
        len(prediction),
    )
    return b"".join((head, request_id, prediction, answer.body))


def decode_request(frame: bytes) -> Request:
    """A request from one whole frame, as `FrameReader` gives it. Raises FrameError where it is none."""
    try:
        _, stream, kind, deadline, json_length, encoding, accept, n_id = _REQUEST.unpack_from(frame)
        start = _REQUEST.size
        return Request(
            stream,
            _KINDS[kind],
            deadline,
            frame[start : start + n_id].decode("utf-8", "surrogateescape"),
            frame[start + n_id :],
            json_length,
            _ENCODINGS[encoding],
            _ENCODINGS[accept],
        )
    except (struct.error, KeyError) as error:
        raise FrameError(f"not a request: {error}") from error


def decode_answer(frame: bytes) -> Answer:
    """An answer from one whole frame, as `FrameReader` gives it. Raises FrameError where it is none."""
    try:
        head = _ANSWER.unpack_from(frame)
        _, stream, status, flags, confidence, ended, json_length, encoding, n_id, n_prediction = head
        start = _ANSWER.size
        middle = start + n_id
        end = middle + n_prediction
        return Answer(
            stream,
            status,
            frame[end:],
            frame[start:middle].decode("utf-8", "surrogateescape"),
            frame[middle:end].decode("utf-8", "replace") if flags & _PREDICTED else None,
            bool(flags & _NULL),
            confidence,
            json_length,
            _ENCODINGS[encoding],
            ended,
        )
    except (struct.error, KeyError) as error:
        raise FrameError(f"not an answer: {error}") from error


class FrameReader:
    """Bytes in, whole frames out; what is unfinished stays until the rest of it comes."""

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self._buffer = bytearray()
        self._max_frame = max_frame

    @property
    def unfinished(self) -> bool:
        """Whether the rest of a frame is still to come."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Every frame that `data` completes, in order. Raises FrameError for a length that cannot be."""
        buffer: bytes | bytearray = data
        if self._buffer:
            self._buffer += data
            buffer = self._buffer
        start, end = 0, len(buffer)
        while end - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if length > self._max_frame:
                raise FrameError(f"a frame of {length} bytes; the limit is {self._max_frame}")
            stop = start + _LENGTH.size + length
            if stop > end:
                break
            yield bytes(
                buffer[start:stop]
            )  # no copy of its own where `data` holds whole frames, as it mostly does
            start = stop
        if buffer is self._buffer:
            del self._buffer[:start]
        else:
            self._buffer += data[start:]
