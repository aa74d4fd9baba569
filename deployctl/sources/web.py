"""A model behind https or http. The one rule: a token goes to the host that the manifest names, over TLS, and nowhere else."""

from __future__ import annotations

import base64
import netrc
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from deployctl.errors import InvalidError, UnavailableError
from deployctl.manifest.model_uri import Form, redacted
from deployctl.sources.source import ChangedError, Part, TransientError

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 30.0
"""How long a server may send nothing."""

MAX_REDIRECTS = 10
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers after which the same request may succeed."""

TOKEN = "DEPLOYCTL_TOKEN_"  # noqa: S105 - the name of a variable


@dataclass(frozen=True, slots=True)
class Access:
    """How a server is spoken to: headers that only it may see, the file of its authority, and the seconds it may be silent."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    authority: str | None = None
    silence: float = SILENCE_SECONDS


class Web:
    """`https://…` and `http://…`, with a digest beside it."""

    def __init__(self, scheme: str) -> None:
        self.form = Form(rf"(?i:{scheme})://[^/?#\s]+/[^#\s]+", f"{scheme}://HOST/PATH", needs_digest=True)

    def locate(self, uri: str) -> WebFile:
        """No request is made for it."""
        return WebFile(uri, Access(credentials(uri)))


@dataclass(frozen=True, slots=True)
class WebFile:
    """What a GET of a url gives."""

    url: str = field(repr=False)
    access: Access
    name: str = ""
    """What is printed in place of the url."""
    length: int | None = None
    """Where it is known from elsewhere: a stream that a proxy cut short looks whole."""

    @property
    def key(self) -> str:
        return self.url

    @property
    def shown(self) -> str:
        return self.name or redacted(self.url)

    def beside(self, path: str) -> None:  # noqa: ARG002 - see RemoteFile
        return None

    @contextmanager
    def read(self, start: int, validator: str | None) -> Iterator[Part]:
        """See RemoteFile."""
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if validator is not None:
                headers["If-Range"] = validator
        with answered(self.url, self.shown, self.access, headers) as response:
            if response.status_code == 416:  # what is here is longer than what is there
                raise ChangedError
            began, total = _extent(response, start)
            yield Part(began, self.length if total is None else total, _strong(response), _chunks(response))


@contextmanager
def answered(
    url: str, shown: str, access: Access, headers: Mapping[str, str] | None = None
) -> Iterator[httpx.Response]:
    """The answer to a GET, its body still to be read: 200, 206 or 416. Raises as RemoteFile.read does, also from within the block."""
    import httpx  # noqa: PLC0415 - 0.1 s that a path does not need

    try:
        with _client(access) as client:
            request = client.build_request("GET", url, headers={**access.headers, **(headers or {})})
            response = _without_redirects(client, request, shown)
            try:
                _refuse(response, shown)
                yield response
            finally:
                response.close()
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise _translated(error, shown) from error


def credentials(uri: str) -> dict[str, str]:
    """The header for the host of this uri, from DEPLOYCTL_TOKEN_<HOST> or netrc; none over plain http. Raises UnavailableError."""
    parts = urlsplit(uri)
    host = parts.hostname or ""
    if parts.scheme.lower() != "https":
        return {}
    variable = TOKEN + host.replace("-", "__").replace(".", "_").upper()
    if token := os.environ.get(variable, "").strip():
        if not re.fullmatch(r"[\x21-\x7e]+", token):
            raise UnavailableError(f"${variable} holds what is no token; set it to the token alone")
        return {"Authorization": f"Bearer {token}"}
    file = Path(os.environ.get("NETRC") or Path(os.environ.get("HOME", "/"), ".netrc"))
    try:
        found = netrc.netrc(str(file)).authenticators(host)
    except FileNotFoundError:
        return {}
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError) as error:
        raise UnavailableError(
            f"{file}: cannot be read for the password of {host}: {_reason(error)}"
        ) from error
    return basic(found[0], found[2] or "") if found else {}


def basic(user: str, password: str) -> dict[str, str]:
    """The header of a user and a password."""
    both = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {both}"}


def _client(access: Access) -> httpx.Client:
    """Proxies and authorities come from the environment (HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE, SSL_CERT_DIR)."""
    import httpx  # noqa: PLC0415 - as above

    try:
        trusted = ssl.create_default_context(cafile=access.authority) if access.authority else True
        return httpx.Client(verify=trusted, timeout=httpx.Timeout(access.silence, connect=CONNECT_SECONDS))
    # ValueError: a proxy that is none; ImportError: one over SOCKS, for which httpx needs a package more
    except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
        raise UnavailableError(
            f"proxy or certificates cannot be used: {_reason(error)}; see HTTPS_PROXY and SSL_CERT_FILE"
        ) from error


def _without_redirects(client: httpx.Client, request: httpx.Request, shown: str) -> httpx.Response:
    """The answer at the end of all redirects; httpx leaves the token out where they lead to another host."""
    secure = request.url.scheme == "https"
    for _ in range(MAX_REDIRECTS + 1):
        response = client.send(request, stream=True)
        following = response.next_request
        if following is None:
            return response
        response.close()
        to = redacted(str(following.url))
        if following.url.scheme not in {"https", "http"} or (secure and following.url.scheme != "https"):
            raise UnavailableError(
                f"{shown}: redirects to {to}, which is not https; name a server that keeps to it"
            )
        request = following
    raise UnavailableError(f"{shown}: more than {MAX_REDIRECTS} redirects; name the last one of them")


def _refuse(response: httpx.Response, shown: str) -> None:
    """Raises for an answer that brings no file."""
    status = response.status_code
    if status in {200, 206, 416}:
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnavailableError(f"{shown}: the server sends it compressed although it was asked not to")
        return
    if status in PASSING:
        raise TransientError(f"the server answers {status}", _retry_after(response))
    if status in {401, 403, 407}:
        host = response.request.url.host
        raise UnavailableError(
            f"{shown}: {host} answers {status}, you are not let in; see {TOKEN}<HOST>, netrc, or whether a signed url has expired"
        )
    raise InvalidError(f"{shown}: the server answers {status}; correct the uri")


def _retry_after(response: httpx.Response) -> float:
    written = response.headers.get("Retry-After", "")
    if written.isascii() and written.isdigit():
        return float(written)
    try:
        now = parsedate_to_datetime(response.headers.get("Date", ""))
        return max(0.0, (parsedate_to_datetime(written) - now).total_seconds())
    except (ValueError, TypeError):  # TypeError: one of them without a time zone
        return 0.0


def _extent(response: httpx.Response, start: int) -> tuple[int, int | None]:
    """Where the body begins in the file, and how long the file is."""
    if response.status_code == 206:
        found = re.fullmatch(
            r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", response.headers.get("Content-Range", "")
        )
        if found is None or int(found[1]) != start:
            raise TransientError("the server sent another part than was asked for")
        return start, None if found[2] == "*" else int(found[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if re.fullmatch("[0-9]{1,18}", length) else None


def _strong(response: httpx.Response) -> str | None:
    tag = response.headers.get("ETag", "")
    return tag if re.fullmatch(r'"[\x21\x23-\x7e]*"', tag) else None


def _chunks(response: httpx.Response) -> Iterator[bytes]:
    yield from response.iter_raw()  # a size would keep back, and lose, what came before a connection broke


def _translated(error: Exception, shown: str) -> Exception:
    """What went wrong on the way, as something to wait for or something to mend."""
    import httpx  # noqa: PLC0415 - as above

    if isinstance(error, httpx.ConnectError) and (broken := _tls_error(error)):
        return UnavailableError(
            f"{shown}: no TLS connection: {broken}; where its authority is your own, name its file in SSL_CERT_FILE"
        )
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        return InvalidError(f"{shown}: cannot be asked for: {_reason(error)}; correct the uri")
    if isinstance(error, httpx.ConnectTimeout):
        return TransientError(f"no connection within {CONNECT_SECONDS:g} s")
    if isinstance(error, httpx.TimeoutException):
        return TransientError("the server sends nothing any more")
    return TransientError(_reason(error))


def _tls_error(error: BaseException | None) -> str | None:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        if isinstance(error, ssl.SSLError):
            return error.reason or str(error)
        error = error.__cause__ or error.__context__
    return None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
