"""One call to a webhook: a CloudEvent goes out, and an answer comes back.

The one rule: whatever is no 2xx in time is no agreement. What is secret (the URL, the token) is read at each call, and never said again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


class Caller:
    """Calls webhooks, with one client for all of them. It is made at the first call: its libraries take a quarter of a second."""

    def __init__(self) -> None:
        self._client: httpx.AsyncClient | None = None
        self._making = asyncio.Lock()

    async def call(self, hook: Mapping[str, Any], event: bytes) -> Answer:
        """POST this event to the webhook (`manifest.webhooks` has its keys), and again where that may help. Raises nothing of the network's."""
        async with self._making:
            if self._client is None:
                self._client = await asyncio.to_thread(_client)
            client = self._client
        try:
            url, headers = await asyncio.to_thread(_address, hook)
            return await _tried_again(client, hook, url, headers, event)
        except (_FailedError, InvalidError) as error:
            return Answer(agreed=False, refused=False, words=str(error))

    async def close(self) -> None:
        """End every connection."""
        if self._client is not None:
            await self._client.aclose()


def _client() -> httpx.AsyncClient:
    import httpx  # noqa: PLC0415 - 12 MB that a service without webhooks does without

    return httpx.AsyncClient(follow_redirects=False, timeout=None, limits=httpx.Limits(max_connections=32))  # noqa: S113 - each call has a deadline


def _address(hook: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """URL and headers. Raises InvalidError where a file with one of them cannot be used."""
    headers = {"content-type": CONTENT_TYPE}
    if hook["tokenFile"]:
        headers["authorization"] = f"Bearer {_first_line('tokenFile', hook['tokenFile'])}"
    url = _first_line("urlFile", hook["urlFile"]) if hook["urlFile"] else hook["url"]
    if not url.startswith(("http://", "https://")):
        raise InvalidError(f"urlFile: what stands in {hook['urlFile']} is no http: or https: URL")
    return url, headers


def _first_line(key: str, file: str) -> str:
    try:
        with Path(file).open("rb") as opened:
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
    client: httpx.AsyncClient, hook: Mapping[str, Any], url: str, headers: dict[str, str], event: bytes
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
    answer: Answer = await tries(_once, client, hook["timeout"], url, headers, event)
    return answer


async def _once(
    client: httpx.AsyncClient, seconds: float, url: str, headers: dict[str, str], event: bytes
) -> Answer:
    import httpx  # noqa: PLC0415 - as above

    body = b""
    try:
        async with (
            asyncio.timeout(seconds),
            client.stream("POST", url, headers=headers, content=event) as response,
        ):
            async for piece in response.aiter_bytes(MAX_ANSWER):
                body += piece
                if len(body) >= MAX_ANSWER:
                    break
    except TimeoutError as error:
        raise _FailedError(f"no answer within {seconds:g} s") from error
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise InvalidError("its URL is none") from error
    except httpx.HTTPError as error:
        words = str(error)
        raise _FailedError(
            f"cannot be reached: {'' if url in words else words or type(error).__name__}"
        ) from error
    return _read(response.status_code, response.headers.get("content-type", ""), body[:MAX_ANSWER])


def _read(status: int, content_type: str, body: bytes) -> Answer:
    said = _said(content_type, body)
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
