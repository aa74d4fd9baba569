"""A human label as it was given, whatever brought it: a post, a file, a watched folder. What it says is never changed here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

MAX_TEXT = 4096
"""Bytes of UTF-8 that an id, a label or an annotator may have."""

MAX_AHEAD = timedelta(minutes=5)
"""How far another machine's clock may be ahead of ours: a label from later than that is a mistake."""

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


@dataclass(frozen=True, slots=True)
class Label:
    """What a person says that the answer to request `id` should have been.

    `at` is when they said so (RFC 3339), `shown` whether they had seen a model's answer before, None where nobody knows.
    """

    id: str
    label: str
    annotator: str | None = None
    at: str | None = None
    shown: bool | None = None


def is_too_long(text: str) -> bool:
    """Whether a text has more than MAX_TEXT bytes."""
    return len(text) > MAX_TEXT or len(text.encode(errors="replace")) > MAX_TEXT


def moment(at: str) -> datetime:
    """The moment that an RFC 3339 text says. Raises ValueError for any other text."""
    if not _RFC_3339.fullmatch(at):
        raise ValueError(f"{at[:60]!r} is no RFC 3339 time such as 2026-01-31T12:00:00Z")
    return datetime.fromisoformat(at.upper())


def flaw(label: Label, now: datetime) -> str | None:
    """Why this label cannot be taken in at this moment (with a time zone), None for one that can."""
    for name in ("id", "label"):
        if not getattr(label, name):
            return f"{name} is empty"
    for name in ("id", "label", "annotator"):
        if is_too_long(getattr(label, name) or ""):
            return f"{name} is longer than {MAX_TEXT} bytes"
    if label.at is None:
        return None
    try:
        ahead = moment(label.at) - now
    except ValueError as error:
        return f"at: {error}"
    return f"at: {label.at} is in the future" if ahead > MAX_AHEAD else None
