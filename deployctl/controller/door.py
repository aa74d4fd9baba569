"""What callers need to come in, as the manifest names it: checked, and kept as our own copy.

A router that is started again reads the copy, so a certificate that was damaged or a file that is gone costs nobody a connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployctl.errors import InvalidError
from deployctl.statedir import ServiceHome
from deployctl.wire.credentials import Tokens, read_file, read_secret, server_context


def keep(home: ServiceHome, spec: Mapping[str, Any]) -> None:
    """Read what `spec.service` names and keep it; what it does not name is kept no longer. Raises InvalidError, and the
    copies of before stay, and UnavailableError where one cannot be written or removed.
    """
    tls, tokens = spec.get("tls"), spec.get("tokens")
    listed = None
    if tokens is not None:
        listed = read_secret(Path(tokens))
        Tokens(listed, tokens)
    if tls is not None:
        certificate, key = Path(tls["cert"]), Path(tls["key"])
        both = read_file(certificate) + b"\n" + read_secret(key)

        def check(file: Path) -> None:
            try:
                server_context(file, file)
            except InvalidError as error:
                raise InvalidError(f"{certificate} and {key}: {error}") from error

        home.keep_private(home.tls, both, check)
    if listed is not None:
        home.keep_private(home.tokens, listed)
    for name, path in ((tls, home.tls), (tokens, home.tokens)):
        if name is None:
            home.forget_private(path)
