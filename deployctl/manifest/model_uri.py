"""What may be written as the `uri` of a model: a path, `file:`, or a uri of one of the sources that the caller knows.

The one rule: nothing secret is in it that anybody prints. A user or password is refused, a query is shown as `?redacted`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from deployctl.manifest.quantities import shown, unknown

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
REDACTED = "redacted"


class Form(NamedTuple):
    """How the uri of a source is written: the whole of it as a pattern, an example, and whether a digest must stand beside it."""

    pattern: str
    example: str
    needs_digest: bool


class UnknownSchemeError(ValueError):
    """Its message says by itself what is meant."""


def scheme_of(uri: str) -> str | None:
    """The scheme of a remote uri in lower case; None for a path and for `file:`."""
    found = SCHEME.match(uri)
    scheme = found[1].lower() if found else "file"
    return None if scheme == "file" else scheme


def file_path(uri: str) -> str:
    """The path that a local `uri` names, still relative where it was written so. Raises ValueError."""
    if not uri or _has_controls(uri):
        raise ValueError(f"{shown(uri)} is no path")
    if SCHEME.match(uri) is None:
        return uri
    parts = urlsplit(uri)
    path = unquote(parts.path)
    if parts.netloc not in {"", "localhost"} or not path.strip("/") or "\0" in path:
        raise ValueError(f"{shown(uri)} is no local file; write file:///absolute/path or a plain path")
    return path


def check(uri: str, known: Mapping[str, Form] | None) -> None:
    """Raises ValueError for what is no uri; of remote ones only what `known` says is checked, and nothing where it is None."""
    scheme = scheme_of(uri)
    if scheme is None:
        file_path(uri)
        return
    if known is None:
        return
    form = known.get(scheme)
    if form is None:
        raise UnknownSchemeError(
            f"{unknown('scheme', scheme, ('file', *known))}; a path with a colon in it begins with ./"
        )
    if _has_user(uri):
        raise ValueError(
            f"a {scheme} uri holds no user and no password; they come from the environment or from netrc"
        )
    if _has_controls(uri) or not re.fullmatch(form.pattern, uri) or not _has_an_address(uri):
        raise ValueError(f"{shown(redacted(uri))} is no {scheme} uri; write {form.example}")


def query_of(uri: str) -> str:
    """What follows the question mark of a remote uri: it may be a signature, so it is kept nowhere."""
    return uri.partition("?")[2] if scheme_of(uri) is not None else ""


def redacted(uri: str) -> str:
    """A remote uri as it may be printed and kept: without its query, and without a user or password."""
    start, mark, _ = uri.partition("?")
    scheme, slashes, rest = start.partition("://")
    if slashes:
        authority, slash, path = rest.partition("/")
        start = f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"
    return f"{start}?{REDACTED}" if mark else start


def _has_user(uri: str) -> bool:
    _, slashes, rest = uri.partition("://")
    return bool(slashes) and "@" in re.split(r"[/?#]", rest, maxsplit=1)[0]


def _has_an_address(uri: str) -> bool:
    """Whether host and port can be told apart: [::1 and :99999 are none."""
    try:
        return urlsplit(uri).port != 0
    except ValueError:
        return False


def _has_controls(uri: str) -> bool:
    return any(ord(character) < 32 or ord(character) == 127 for character in uri)
