"""How a manifest writes amounts: durations, percentages, weights, fractions, sizes; and how a wrong one is shown.

Each reader takes a value as YAML gave it and raises ValueError with what was wrong and what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from difflib import get_close_matches

NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,15})?"
DURATION_PATTERN = rf"^{NUMBER}(ms|s|m|h)$"
PERCENTAGE_PATTERN = rf"^{NUMBER}%$"
SIZE_PATTERN = rf"^{NUMBER}(KiB|MiB|GiB|TiB)$"
LEAST_WORKER_MEMORY = 256 * 2**20
MAX_SECONDS = 366 * 24 * 3600.0

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def seconds(value: object) -> float:
    """A duration: `500ms`, `30s`, `10m`, `72h`; one number and one unit."""
    matched = re.fullmatch(rf"({NUMBER})(ms|s|m|h)", value) if isinstance(value, str) else None
    if matched is None:
        raise ValueError(f"{shown(value)} is no duration; write a number and a unit: 500ms, 30s, 10m or 72h")
    number, unit = matched.groups()
    # "5ms" is read as 5e-3, which is the nearest float; 5 * 0.001 would not always be.
    length = float(f"{number}e-3") if unit == "ms" else float(number) * _SECONDS[unit]
    if length > MAX_SECONDS:
        raise ValueError(f"{shown(value)} is longer than a year")
    return length


def positive_seconds(value: object) -> float:
    """A duration above zero."""
    length = seconds(value)
    if length == 0:
        raise ValueError("must be longer than zero")
    return length


def weight(value: object) -> float:
    """A share of callers in percent: `5`, `12.5` or `5%`; above 0, at most 100."""
    percent = _percent(value, "weight")
    if not 0 < percent <= 100:
        raise ValueError(f"a weight is above 0 and at most 100 percent, not {shown(value)}")
    return percent


def share(value: object) -> float:
    """A share of requests in percent that may be none at all: from 0 to 100."""
    percent = _percent(value, "share")
    if not 0 <= percent <= 100:
        raise ValueError(f"a share is from 0 to 100 percent, not {shown(value)}")
    return percent


def _percent(value: object, what: str) -> float:
    if isinstance(value, str) and re.fullmatch(PERCENTAGE_PATTERN, value):
        return float(value[:-1])
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) < 1e6 else float("inf")
    raise ValueError(f"{shown(value)} is no {what}; write a percentage such as 5 or 5%")


def percentage(value: object) -> float:
    """A rate with its percent sign, as a fraction: `0.5%` is 0.005."""
    if not isinstance(value, str) or not re.fullmatch(PERCENTAGE_PATTERN, value):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        hint = f"{value:g}%" if is_number and len(f"{value:g}") < 8 else "0.5%"
        raise ValueError(f"{shown(value)} is no percentage; write the percent sign, as in {hint}")
    return float(f"{value[:-1]}e-2")


def margin(value: object) -> float:
    """A promotion margin: a percentage above 0 and at most 50."""
    share = percentage(value)
    if not 0 < share <= 0.5:
        raise ValueError(f"a margin is above 0% and at most 50%, not {shown(value)}")
    return share


def fraction(value: object) -> float:
    """A plain number between 0 and 1, both excluded."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError(f"{shown(value)} is not a number between 0 and 1, such as 0.05")
    return float(value)


def size(value: object) -> int:
    """An amount of bytes above zero: `64KiB`, `500MiB`, `4GiB`; one number and one unit."""
    matched = re.fullmatch(rf"({NUMBER})(KiB|MiB|GiB|TiB)", value) if isinstance(value, str) else None
    if matched is None:
        raise ValueError(f"{shown(value)} is no size; write a number and a unit: 64KiB, 500MiB or 4GiB")
    number, unit = matched.groups()
    count = int(float(number) * _BYTES[unit])
    if not 0 < count < _BYTES["TiB"] * 1024:
        raise ValueError(f"{shown(value)} is no size; it is above zero and below 1024TiB")
    return count


def worker_memory(value: object) -> int:
    """An amount of bytes that a worker can live with: Python and onnxruntime alone take half of the least."""
    count = size(value)
    if count < LEAST_WORKER_MEMORY:
        raise ValueError(f"{shown(value)} is too little for a worker; it takes 256MiB at least")
    return count


def shown(value: object) -> str:
    """A value in a message: on one line, quoted where it is text, and never long."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…{text[-1]}"


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """`unknown key 'weigth' (did you mean 'weight'? known: …)`."""
    lowered = {candidate.lower(): candidate for candidate in known}
    near = get_close_matches(name[:60].lower(), lowered, n=1)
    meant = f"did you mean {lowered[near[0]]!r}? " if near else ""
    return f"unknown {what} {shown(name)} ({meant}known: {', '.join(sorted(known))})"
