"""A model in a bucket, through fsspec. The one rule: credentials, regions and endpoints are those that the bucket's own SDK finds.

fsspec and what it needs for a bucket are extras: nothing of them is imported before a uri asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deployctl.errors import DeployctlError, InvalidError, UnavailableError
from deployctl.manifest.model_uri import Form
from deployctl.sources.source import ChangedError, Part, TransientError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

CHUNK_BYTES = 1 << 20
LONGEST_REASON = 200


class Objects:
    """`SCHEME://BUCKET/KEY`, for every scheme that fsspec knows; `extra` is what has to be installed for it."""

    def __init__(self, scheme: str, extra: str) -> None:
        self.form = Form(
            rf"{scheme}://[A-Za-z0-9][A-Za-z0-9._-]*/[^?#\s]+", f"{scheme}://BUCKET/KEY", needs_digest=False
        )
        self._scheme = scheme
        self._extra = extra

    def locate(self, uri: str) -> Object:
        """Nobody is asked yet. Raises InvalidError where the extra is not installed."""
        try:
            import fsspec  # noqa: PLC0415 - an extra

            filesystem = fsspec.filesystem(self._scheme, skip_instance_cache=True)
        except ImportError as error:
            raise InvalidError(
                f"{uri}: {self._scheme}: needs `pip install 'deployctl[{self._extra}]'`"
            ) from error
        except Exception as error:
            raise UnavailableError(f"{uri}: {self._scheme} cannot be used: {_reason(error)}") from error
        return Object(uri, filesystem)


@dataclass(frozen=True, slots=True)
class Object:
    """One object of a bucket."""

    uri: str
    filesystem: AbstractFileSystem

    @property
    def key(self) -> str:
        return self.uri

    @property
    def shown(self) -> str:
        return self.uri

    def beside(self, path: str) -> Object:
        return Object(f"{self.uri.rpartition('/')[0]}/{path}", self.filesystem)

    @contextmanager
    def read(self, start: int, validator: str | None) -> Iterator[Part]:
        """See RemoteFile. The validator is fsspec's hash of what the bucket says of the object: its ETag or generation, time and size."""
        with _translated(self.uri):
            size, now = self._look()
            begin = start if validator in {None, now} and start <= size else 0
            file = self.filesystem.open(self.uri, "rb")
        try:
            yield Part(begin, size, now, self._chunks(file, begin, now))
        finally:
            file.close()

    def _look(self) -> tuple[int, str]:
        """How large the object is, and what tells it from another one at its place. Raises what fsspec raises."""
        self.filesystem.invalidate_cache()
        told = self.filesystem.info(self.uri)
        size = told.get("size")
        if told.get("type") != "file" or not isinstance(size, int):
            raise FileNotFoundError(self.uri)
        return size, str(self.filesystem.ukey(self.uri))

    def _chunks(self, file: Any, begin: int, now: str) -> Iterator[bytes]:
        with _translated(self.uri):
            file.seek(begin)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
            if self._look()[1] != now:  # its ranges may have been of two objects
                raise ChangedError


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    try:
        yield
    except (DeployctlError, TransientError, GeneratorExit):
        raise
    except FileNotFoundError as error:
        raise InvalidError(f"{uri}: there is no such object; correct the uri") from error
    except PermissionError as error:
        raise UnavailableError(
            f"{uri}: you are not let in: {_reason(error)}; see the credentials of its SDK"
        ) from error
    except OSError as error:
        raise TransientError(_reason(error)) from error
    except Exception as error:
        raise UnavailableError(f"{uri}: {_reason(error)}; see the credentials of its SDK") from error


def _reason(error: Exception) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= LONGEST_REASON else f"{words[:LONGEST_REASON]}…"
