"""Who may ask, and who answers: bearer tokens and the certificate of the data plane, from files.

A file of tokens has one in each line; empty lines and those that begin with # are none. It may be read by its owner only, as may the key.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from pathlib import Path

from deployctl.errors import InvalidError

MAX_BYTES = 1024 * 1024
"""Of a file of tokens, of certificates, or of a key."""

_TOKEN = re.compile(rb"[A-Za-z0-9._~+/-]{16,1024}=*")
"""RFC 6750, section 2.1; a shorter one could be guessed."""

_OTHERS = 0o077


class Tokens:
    """Those that are let in. Of each its hash is kept, so that neither time nor memory tells what it is."""

    def __init__(self, text: bytes, named: str) -> None:
        """`text`: the file's; `named`: the file, for messages. Raises InvalidError, which never quotes a token."""
        lines = [line.strip() for line in text.splitlines()]
        found = {number: line for number, line in enumerate(lines, 1) if line and not line.startswith(b"#")}
        for number, token in found.items():
            if _TOKEN.fullmatch(token) is None:
                raise InvalidError(
                    f"{named}:{number}: no token: 16 to 1,024 of A-Z, a-z, 0-9 and -._~+/ (try `openssl rand -hex 32`)"
                )
        if not found:
            raise InvalidError(f"{named}: there is no token in it, so nobody would be let in")
        self._hashes = frozenset(hashlib.sha256(token).digest() for token in found.values())

    def admit(self, authorization: bytes | None) -> bool:
        """Whether a request with this Authorization header is let in."""
        if authorization is None:
            return False
        scheme, _, token = authorization.partition(b" ")
        return scheme.lower() == b"bearer" and hashlib.sha256(token.strip()).digest() in self._hashes


def read_tokens(path: Path) -> Tokens:
    """Raises InvalidError for a file that is none of tokens, or that others may read."""
    return Tokens(read_secret(path), str(path))


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """What a server takes TLS connections with: 1.2 or newer, HTTP/1.1 only. Raises InvalidError, which names no file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a password of its own OpenSSL would ask whoever sits at the terminal.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        words = reason.replace("_", " ").lower()
        raise InvalidError(f"no certificate and its key, in PEM and without a password ({words})") from error
    return context


def read_secret(path: Path) -> bytes:
    """A small file that is its owner's alone. Raises InvalidError."""
    try:
        if path.stat().st_mode & _OTHERS:
            raise InvalidError(f"{path}: others may read it; try `chmod 600 {path}`")
        return read_file(path)
    except OSError as error:
        raise InvalidError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_file(path: Path) -> bytes:
    """A small file. Raises InvalidError."""
    try:
        if path.exists() and not path.is_file():  # a pipe would hold up whoever reads it
            raise InvalidError(f"{path}: cannot be read: it is no regular file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise InvalidError(f"{path}: larger than {MAX_BYTES} bytes")
    return data
