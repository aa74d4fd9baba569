"""One call to a webhook: a CloudEvent goes out, and an answer comes back.

The one rule: whatever is no 2xx in time is no agreement. What is secret (the URL, the token) is read at each call, and never said again.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from deployctl.errors import InvalidError

if TYPE_CHECKING:
    import httpx

CONTENT_TYPE = "application/cloudevents+json; charset=UTF-8"
MAX_ANSWER = 4096
"""Bytes of an answer that are looked at."""
MAX_WORDS = 200
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
"""Seconds between the tries of one call."""
MAX_SECRET = 64 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: whether it was a yes, whether asking again is of no use, and words for people."""

    agreed: bool
    refused: bool
    words: str


class _FailedError(Exception):
    """A call that may well be answered the next time."""


class _Address(NamedTuple):
    """Where a call goes, and what goes with it."""

    url: str
    token: str | None

    @property
    def headers(self) -> dict[str, str]:
        # What is packed is unpacked as a whole before it can be seen how large it is: a kilobyte may be a gigabyte.
        headers = {"content-type": CONTENT_TYPE, "accept-encoding": "identity"}
        return headers | ({"authorization": f"Bearer {self.token}"} if self.token else {})

    def without(self, text: str) -> str:
        """A text of somebody else's, without what is secret here."""
        parts = urlsplit(self.url)
        for secret in (self.url, f"{parts.path}?{parts.query}", parts.query, self.token, parts.path):
            if secret and len(secret) > 1:
                text = text.replace(secret, "[redacted]")
        return text


class Caller:
    """Calls webhooks, with one client for all of them. It is made at the first call: its libraries take a quarter of a second."""

    def __init__(self) -> None:
        self._client: httpx.AsyncClient | None = None
        self._making = asyncio.Lock()
        # Of its own: a disk that hangs under such a file must not take the threads of the rest.
        self._files = ThreadPoolExecutor(2, "webhook-files")

    async def call(self, hook: Mapping[str, Any], event: bytes) -> Answer:
        """POST this event to the webhook (`manifest.webhooks` has its keys), and again where that may help. Raises nothing."""
        try:
            async with self._making:
                if self._client is None:
                    self._client = await asyncio.to_thread(_client)
            return await _tried_again(self._client, hook, await self._address(hook), event)
        except (_FailedError, InvalidError) as error:
            return Answer(agreed=False, refused=False, words=str(error))
        except Exception as error:  # noqa: BLE001 - whatever a library makes of an address, a proxy or a certificate is no agreement
            words = f"cannot be called: {type(error).__name__}"  # its own words may hold the address
            return Answer(agreed=False, refused=False, words=words)

    async def _address(self, hook: Mapping[str, Any]) -> _Address:
        seconds = hook["timeout"]
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(self._files, _address, hook)
        except TimeoutError as error:
            raise InvalidError(f"urlFile or tokenFile could not be read within {seconds:g} s") from error

    async def close(self) -> None:
        """End every connection."""
        self._files.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            await self._client.aclose()


def _client() -> httpx.AsyncClient:
    import httpx  # noqa: PLC0415 - 12 MB that a service without webhooks does without

    return httpx.AsyncClient(follow_redirects=False, timeout=None, limits=httpx.Limits(max_connections=32))  # noqa: S113 - each call has a deadline


def _address(hook: Mapping[str, Any]) -> _Address:
    """Raises InvalidError where a file with a part of it cannot be used."""
    token = _first_line("tokenFile", hook["tokenFile"]) if hook["tokenFile"] else None
    url = _first_line("urlFile", hook["urlFile"]) if hook["urlFile"] else hook["url"]
    if not url.startswith(("http://", "https://")):
        raise InvalidError(f"urlFile: what stands in {hook['urlFile']} is no http: or https: URL")
    return _Address(url, token)


def _first_line(key: str, file: str) -> str:
    try:
        handle = os.open(
            file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        )  # of a pipe nobody may ever write anything
        with os.fdopen(handle, "rb") as opened:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise InvalidError(f"{key}: {file}: is no regular file")
            text = opened.read(MAX_SECRET).decode("ascii")
    except OSError as error:
        raise InvalidError(f"{key}: {file}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InvalidError(f"{key}: {file}: not ASCII") from error
    line = text.partition("\n")[0].strip()
    if not line or not line.isprintable():
        raise InvalidError(f"{key}: {file}: there is nothing in its first line that could be sent")
    return line


async def _tried_again(
    client: httpx.AsyncClient, hook: Mapping[str, Any], address: _Address, event: bytes
) -> Answer:
    from tenacity import (  # noqa: PLC0415 - as httpx
        AsyncRetrying,
        retry_if_exception_type,
        stop_after_attempt,
        wait_random_exponential,
    )

    tries = AsyncRetrying(
        stop=stop_after_attempt(1 + hook["retries"]),
        wait=wait_random_exponential(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE),
        retry=retry_if_exception_type(_FailedError),
        reraise=True,
    )
    answer: Answer = await tries(_once, client, hook["timeout"], address, event)
    return answer


async def _once(client: httpx.AsyncClient, seconds: float, address: _Address, event: bytes) -> Answer:
    import httpx  # noqa: PLC0415 - as above

    body = b""
    try:
        async with (
            asyncio.timeout(seconds),
            client.stream("POST", address.url, headers=address.headers, content=event) as response,
        ):
            plain = response.headers.get("content-encoding", "identity") == "identity"
            async for piece in response.aiter_raw(MAX_ANSWER):
                body += piece
                if len(body) >= MAX_ANSWER or not plain:
                    break
    except TimeoutError as error:
        raise _FailedError(f"no answer within {seconds:g} s") from error
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise InvalidError("its URL is none") from error
    except httpx.HTTPError as error:
        raise _FailedError(
            f"cannot be reached: {address.without(str(error)) or type(error).__name__}"
        ) from error
    kind = response.headers.get("content-type", "") if plain else ""
    return _read(response.status_code, address.without(_said(kind, body[:MAX_ANSWER])))


def _read(status: int, said: str) -> Answer:
    words = f"answered {status}{f': {said}' if said else ''}"
    if 200 <= status < 300:
        return Answer(agreed=True, refused=False, words=said or words)
    if status >= 500 or status in {408, 429}:
        raise _FailedError(words)
    if 300 <= status < 400:
        words = f"answered {status}; redirects are not followed"
    return Answer(agreed=False, refused=True, words=words)


def _said(content_type: str, body: bytes) -> str:
    """A line of an answer that is meant for people: of plain text the first, of JSON what stands under `reason` or `message`."""
    kind = content_type.partition(";")[0].strip().lower()
    text = body.decode("utf-8", "replace")
    if kind == "application/json":
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            return ""
        found = (document.get("reason") or document.get("message")) if isinstance(document, dict) else None
        text = found if isinstance(found, str) else ""
    elif kind != "text/plain":
        return ""
    line = text.strip().partition("\n")[0]
    return "".join(character for character in line if character.isprintable())[:MAX_WORDS].strip()
