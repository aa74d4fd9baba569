"""A remote model into the cache: what is the same for every source. The one rule: a file has its name when its bytes were checked, not before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from deployctl.errors import IntegrityError, UnavailableError
from deployctl.manifest.model_uri import redacted, scheme_of
from deployctl.sources.cache import ModelCache, Partial
from deployctl.sources.one_file import length_of, pieces_of_one_file, read_piece
from deployctl.sources.source import ChangedError, Part, Progress, RemoteFile, Source, TransientError

T = TypeVar("T")

LOOK_AT_ROOM_BYTES = 16 * 1024**2
"""How often the disk is looked at where nobody said how much there is to come."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often in a row something may bring nothing, and the seconds between two attempts: the first, the longest, asked for at most."""

    in_vain: int = 5
    attempts: int = 100
    first: float = 0.2
    longest: float = 5.0
    asked: float = 60.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """A model in the cache: its digest, its file, and what its uri meant, without secrets."""

    digest: str
    path: Path
    resolved: str


def fetched(
    uri: str,
    digest: str | None,
    cache: ModelCache,
    sources: Mapping[str, Source],
    progress: Progress = lambda _done, _total: None,
    patience: Patience = Patience(),
) -> Fetched:
    """The model of this uri. Where its stated digest is here already nobody is asked.

    Raises IntegrityError for other bytes than `digest` names, InvalidError for what is not there or too large, UnavailableError for a
    server, network or disk in the way.
    """
    if digest is not None and cache.holds(digest):
        return Fetched(digest, cache.path(digest), redacted(uri))
    source = sources[scheme_of(uri) or ""]
    tries = _Tries(patience)
    file = tries.patiently(lambda: source.locate(uri), redacted(uri))
    if file.beside("") is None:
        found = _brought(file, digest, cache, progress, patience)
    else:
        found = _as_one_file(file, _brought(file, None, cache, progress, patience), cache, progress, patience)
        _refuse_other_bytes(file, found, digest)
    return Fetched(found, cache.path(found), file.shown)


def _brought(
    file: RemoteFile, digest: str | None, cache: ModelCache, progress: Progress, patience: Patience
) -> str:
    """The digest of a file that is in the cache now. Under its digest a download is taken up again when the url is signed anew."""
    with cache.incoming(digest or file.key) as partial:
        if digest is None or not cache.holds(digest):
            return _download(file, partial, digest, progress, patience)
    return digest


def _as_one_file(
    file: RemoteFile, main: str, cache: ModelCache, progress: Progress, patience: Patience
) -> str:
    """The digest of the whole model: where tensors lie in files beside it, they are fetched and put into it."""
    here: dict[str, Path] = {}

    def beside(location: str) -> Path:
        if location not in here:
            other = file.beside(location)
            assert other is not None
            here[location] = cache.path(_brought(other, None, cache, progress, patience))
        return here[location]

    pieces = pieces_of_one_file(cache.path(main), beside, file.shown)
    if pieces is None:
        return main
    with cache.incoming(f"one file of {main}") as partial:
        partial.refuse_too_large(length_of(pieces), file.shown)
        partial.begin(0, length_of(pieces), None)
        for piece in pieces:
            for chunk in read_piece(piece):
                partial.write(chunk)
        return partial.finish()


def _download(
    file: RemoteFile, partial: Partial, digest: str | None, progress: Progress, patience: Patience
) -> str:
    tries = _Tries(patience, lambda: partial.size)
    tries.patiently(lambda: _go_on(file, partial, digest, progress), file.shown)
    if digest not in {None, partial.digest} and partial.resumed:
        partial.restart()  # what an earlier attempt left may have been of another file
        tries.patiently(lambda: _go_on(file, partial, digest, progress), file.shown)
    if digest not in {None, partial.digest}:
        partial.discard()
    _refuse_other_bytes(file, partial.digest, digest)
    return partial.finish()


def _refuse_other_bytes(file: RemoteFile, found: str, digest: str | None) -> None:
    if digest not in {None, found}:
        raise IntegrityError(
            f"{file.shown}: its bytes are {found} where {digest} was asked for; put that model there or correct the digest"
        )


def _go_on(file: RemoteFile, partial: Partial, digest: str | None, progress: Progress) -> None:
    """One attempt: the rest of the file, or all of it where the rest cannot be had."""
    validator = partial.resume(proven=digest is not None)
    if digest == partial.digest:  # killed before it had its name
        return
    try:
        with file.read(partial.size, validator) as part:
            partial.refuse_too_large(part.total, file.shown)
            partial.begin(part.start, part.total, part.validator)
            _take(file, partial, part, progress)
    except ChangedError:
        partial.restart()
        raise
    if part.total is not None and partial.size != part.total:
        raise TransientError(f"{partial.size} of {part.total} bytes came")


def _take(file: RemoteFile, partial: Partial, part: Part, progress: Progress) -> None:
    looked_at = partial.size
    progress(partial.size, part.total)
    for chunk in part.chunks:
        partial.refuse_too_large(partial.size + len(chunk), file.shown)
        partial.write(chunk)
        progress(partial.size, part.total)
        if partial.size - looked_at >= LOOK_AT_ROOM_BYTES:
            looked_at = partial.size
            partial.make_sure_of_room(0 if part.total is None else part.total - partial.size)


class _Tries:
    """Tries again what may pass, for as long as it comes nearer to its end."""

    def __init__(self, patience: Patience, reached: Callable[[], int] = lambda: 0) -> None:
        self._patience = patience
        self._reached = reached
        self._best = 0
        self._in_vain = 0
        self._wait = wait_random_exponential(multiplier=patience.first, max=patience.longest)

    def patiently(self, call: Callable[[], T], shown: str) -> T:
        """What the call gives. Raises UnavailableError when it is given up."""
        self._best, self._in_vain = self._reached(), 0
        retrying = Retrying(
            retry=retry_if_exception_type(TransientError), stop=self._is_over, wait=self._pause, reraise=True
        )
        try:
            return retrying(call)
        except TransientError as error:
            raise UnavailableError(
                f"{shown}: cannot be fetched: {error}; try again, what came is kept for some days"
            ) from error

    def _is_over(self, state: RetryCallState) -> bool:
        reached = self._reached()
        self._in_vain = 0 if reached > self._best else self._in_vain + 1
        self._best = max(self._best, reached)
        return self._in_vain >= self._patience.in_vain or state.attempt_number >= self._patience.attempts

    def _pause(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.wait if isinstance(error, TransientError) else 0.0
        return max(self._wait(state), min(asked, self._patience.asked))
