"""What callers need to come in, and where labels come from: files of somebody else, named in the manifest and kept right by nobody here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from deployctl.doctor.certificate import validity
from deployctl.doctor.check import Check, problem, warning
from deployctl.doctor.clock import wall_time
from deployctl.errors import InvalidError
from deployctl.statedir import ServiceHome
from deployctl.wire.credentials import Tokens, read_file, read_secret, read_tokens, server_context

SOON = timedelta(days=14)


def certificate_checks(home: ServiceHome, spec: dict[str, Any], pid: int | None) -> Iterator[Check]:
    """The certificate that callers are shown, or would be at the next start: how long it holds, and whether its files are good."""
    if "tls" not in spec:
        return
    cert, key = Path(spec["tls"]["cert"]), Path(spec["tls"]["key"])
    again = _again(home, pid)
    if pid is not None:
        try:
            shown = read_file(home.tls)
            yield _validity(shown, f"{cert}: the certificate in use", again)
        except (InvalidError, ValueError) as error:
            yield problem(
                "tls", f"{home.tls}, which routers show: {error}", f"mend {cert} and {key}, then {again}"
            )
            return
    try:
        named = read_file(cert) + b"\n" + read_secret(key)
        server_context(cert, key)
        validity(named.decode("latin-1"))
    except (InvalidError, ValueError) as error:
        yield _unusable("tls", f"{cert} and {key}: {error}", again, pid)
        return
    if pid is None:
        yield _validity(named, f"{cert}: the certificate", again)
    elif named != shown:
        yield warning("tls", f"{cert} and {key} are others than those in use", f"to use them: {again}")


def _validity(pem: bytes, what: str, again: str) -> Check:
    """Raises ValueError."""
    begins, ends = validity(pem.decode("latin-1"))
    now, until = wall_time(), f"until {ends:%Y-%m-%d %H:%M} UTC"
    if now >= ends:
        return problem("tls", f"{what} held {until}", f"renew it, then {again}")
    if now < begins:
        return problem("tls", f"{what} does not hold before {begins:%Y-%m-%d %H:%M} UTC", "look at the clock")
    if ends - now < SOON:
        return warning(
            "tls", f"{what} holds {until}: {(ends - now).days} days more", f"renew it, then {again}"
        )
    return Check("tls", f"{what} holds {until}")


def token_checks(home: ServiceHome, spec: dict[str, Any], pid: int | None) -> Iterator[Check]:
    """The tokens that let callers in, or would at the next start."""
    if "tokens" not in spec:
        return
    file, again = Path(spec["tokens"]), _again(home, pid)
    if pid is not None:
        try:
            Tokens(shown := read_file(home.tokens), str(home.tokens))
        except InvalidError as error:
            yield problem("tokens", f"{error}: nobody is let in", f"mend {file}, then {again}")
            return
    try:
        read_tokens(file)
    except InvalidError as error:
        yield _unusable("tokens", str(error), again, pid)
        return
    if pid is not None and read_secret(file) != shown:
        yield warning("tokens", f"{file}: others than those in use", f"to use them: {again}")
    else:
        yield Check("tokens", f"{file}: good")


def _unusable(name: str, what: str, again: str, pid: int | None) -> Check:
    """Files that cannot be read in again: a running service has its copy of before, a stopped one does not start."""
    if pid is not None:
        return warning(name, f"{what} (the copy of before is in use)", f"mend that, then {again}")
    return problem(name, f"{what} (`up` refuses it)", f"mend that, then {again}")


def label_checks(watched: dict[str, Any] | None, status: dict[str, Any] | None) -> Iterator[Check]:
    """The folder of label files, and what came of them."""
    if not watched:
        return
    folder = Path(watched["watch"])
    if not folder.is_dir():
        yield problem(
            "label-files",
            f"{folder}: no such directory, so no label arrives",
            "make it, or mount it; it is looked for each second",
        )
        return
    if not os.access(folder, os.R_OK | os.X_OK):
        yield problem("label-files", f"{folder}: cannot be read, so no label arrives", f"chmod u+rx {folder}")
        return
    refused = ((status or {}).get("label_files") or {}).get("refused_files", 0)
    if refused:
        yield warning(
            "label-files", f"{folder}: {refused} files were refused", "see the log: it says which, and why"
        )
    else:
        yield Check("label-files", f"{folder} is read")


def _again(home: ServiceHome, pid: int | None) -> str:
    return f"kill -HUP {pid}" if pid is not None else f"start {home.name}: deployctl up FILE"
