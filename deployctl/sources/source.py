"""What every place that models come from shares. The one rule: what is printed of a remote file is its `shown`, never its uri."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from deployctl.manifest.model_uri import Form

Progress = Callable[[int, int | None], None]
"""Bytes that are here, and how many there will be, if that is known."""


INSIDE = re.compile(r"(?!.*(^|/)\.{0,2}(/|$))[^\\\x00-\x1f]+")
"""A path that leads out of no folder."""


@dataclass(frozen=True, slots=True)
class Part:
    """The rest of a remote file, from byte `start` on. `validator` proves, where there is one, that a later part is of the same file."""

    start: int
    total: int | None
    validator: str | None
    chunks: Iterator[bytes]


class RemoteFile(Protocol):
    """One file somewhere else. `key` is the same for the same file, `shown` holds no secret."""

    @property
    def key(self) -> str: ...

    @property
    def shown(self) -> str: ...

    def read(self, start: int, validator: str | None) -> AbstractContextManager[Part]:
        """The file from this byte on, or from its beginning where that cannot be had; with a validator only if it still is that file.

        Raises TransientError for what may pass, InvalidError for what is not there, UnavailableError for what is in the way;
        so do the chunks.
        """

    def beside(self, path: str) -> RemoteFile | None:
        """The file at this path of the same folder; None where a digest has to stand beside each file, and one stands beside this one only."""


class Source(Protocol):
    """One kind of place. A new one is one such class and its line in MODEL_SOURCES. Its module imports nothing heavy before `locate`."""

    @property
    def form(self) -> Form: ...

    def locate(self, uri: str) -> RemoteFile:
        """The file that this uri means by now. Raises as `RemoteFile.read` does."""


class TransientError(Exception):
    """What may pass by itself. `wait` is how many seconds the other side asks for."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class ChangedError(TransientError):
    """What is here is of another file than the one that is there now."""

    def __init__(self) -> None:
        super().__init__("the file has changed")
