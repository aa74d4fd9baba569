"""Requests whose JSON is long, which is nearly always one long array of numbers: read by simdjson, five times as fast.

It takes what it is sure about and leaves all else (other types of data, whatever is wrong) to the careful reader, which has the
words for it. The one rule: what is taken here is what the careful reader would have made of it, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import simdjson
from numpy.typing import NDArray

WORTH = 4 * 1024
"""Bytes from which on this way is the quicker one."""

LARGEST = 16 * 1024 * 1024
"""Bytes up to which it is gone: the parser keeps several times as much memory as its longest text had."""

Array = NDArray[Any]

KEPT = 1024 * 1024
"""Bytes of a text after which the parser's memory, fifteen times as much, is given back: it counts against the worker's limit."""

MOST_KEYS = 64
"""Of an object: to find one of them takes a look at all before it."""

_BUFFERS = {"f": ("d", np.float64), "i": ("i", np.int64), "u": ("u", np.uint64)}
"""How simdjson gives numbers that end as floats, as signed and as unsigned integers; by numpy's kind."""

_parser = simdjson.Parser()


class _UnsureError(Exception):
    """The careful reader should look at it."""


def read(
    text: bytes, dtypes: Mapping[str, np.dtype[Any]]
) -> tuple[dict[str, Any], list[Array | None]] | None:
    """The document without the `data` of its inputs, and that by input (None where it has none): flat, of its type. None: not sure.

    `text`: UTF-8 that starts with the brace. `dtypes`: by datatype.
    """
    global _parser  # noqa: PLW0603 - one is kept: its memory is made once
    if not text.startswith(b"{"):
        return None
    found = None
    try:
        found = _read(text, dtypes)
    except (
        _UnsureError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
        MemoryError,
    ):
        _parser = simdjson.Parser()  # whatever the failed attempt still refers to would keep the old one busy
    if len(text) > KEPT:
        _parser = simdjson.Parser()
    return found


def _read(
    text: bytes, dtypes: Mapping[str, np.dtype[Any]]
) -> tuple[dict[str, Any], list[Array | None]] | None:
    root = _parser.parse(text)
    if not isinstance(root, simdjson.Object):
        return None
    document, arrays = {}, []
    brackets = _Brackets()
    for name, value in _parts(root):
        if name != "inputs":
            document[name] = brackets.plain(value)
            continue
        if not isinstance(value, simdjson.Array):
            raise _UnsureError
        brackets.count += 1
        document[name] = inputs = []
        for tensor in value:
            if not isinstance(tensor, simdjson.Object):
                raise _UnsureError
            described = {}
            data = None
            for key, part in _parts(tensor):
                if key == "data":
                    if not isinstance(part, simdjson.Array):
                        raise _UnsureError
                    data = part
                else:
                    described[key] = brackets.plain(part)
            inputs.append(described)
            arrays.append(None if data is None else _numbers(data, described, dtypes, brackets))
    # Arrays in places where nobody looked would have been flattened.
    return (document, arrays) if brackets.count == text.count(b"[") else None


def _numbers(
    data: Any, described: dict[str, Any], dtypes: Mapping[str, np.dtype[Any]], brackets: _Brackets
) -> Array:
    dtype = dtypes[described["datatype"]]
    letter, wide = _BUFFERS[dtype.kind]
    shape = described["shape"]
    if len(data) and isinstance(data[0], simdjson.Array):
        brackets.regular(data, shape)
    else:
        brackets.count += 1
    numbers = np.frombuffer(data.as_buffer(of_type=letter), wide)
    if dtype.kind == "f":
        with np.errstate(over="raise"):
            return numbers.astype(dtype)
    limits = np.iinfo(dtype)
    if numbers.size and (numbers.min() < limits.min or numbers.max() > limits.max):
        raise _UnsureError
    return numbers.astype(dtype)


class _Brackets:
    """How many arrays were looked at."""

    def __init__(self) -> None:
        self.count = 0

    def plain(self, value: Any) -> Any:
        """As Python has it. Raises _UnsureError for a key that comes twice."""
        if isinstance(value, simdjson.Array):
            self.count += 1
            return [self.plain(one) for one in value]
        if isinstance(value, simdjson.Object):
            return {name: self.plain(one) for name, one in _parts(value)}
        return value

    def regular(self, data: Any, shape: Sequence[int]) -> None:
        """Raises _UnsureError unless it is nested as the shape says."""
        self.count += 1
        if len(data) != shape[0]:
            raise _UnsureError
        if len(shape) > 1:
            for one in data:
                if not isinstance(one, simdjson.Array):
                    raise _UnsureError
                self.regular(one, shape[1:])


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values of an object, which stay simdjson's own. Raises _UnsureError for a key that comes twice, and for very many."""
    if len(thing) > MOST_KEYS:
        raise _UnsureError
    names = list(thing.keys())
    # The library looks for a key as a C string, so one that goes on after a NUL would find another.
    if len(set(names)) < len(names) or any("\0" in name for name in names):
        raise _UnsureError
    for name in names:
        yield name, thing[name]
