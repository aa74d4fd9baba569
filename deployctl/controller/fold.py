"""The journal's records as what they say: each event, and the service that they add up to.

The one rule: what this release does not know it refuses. A record that is skipped could be the rollback.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from deployctl import __version__
from deployctl.core.plan import Plan, Version
from deployctl.core.rollout import Event, IllegalEventError, Rollout
from deployctl.core.service import Service, serve, with_event
from deployctl.errors import IntegrityError

Record = Mapping[str, Any]

Story = list[tuple[Event, Rollout]]
"""The events of one rollout in their order, each with the state that it led to."""


def told(records: Iterable[Record], path: Path) -> Iterator[tuple[Record, Event | None]]:
    """Each record, with its event where it is one. Raises IntegrityError for a record of a newer release."""
    for record in records:
        if record.get("type") == "served":
            yield record, None
        elif record.get("type") == "event":
            yield record, _event(record, path)
        else:
            raise _unknown(path, record, f"of type {record.get('type')!r}")


def served(service: Service | None, record: Record, path: Path) -> Service:
    """The service after a start: what was live stays live."""
    if service is not None:
        return service
    try:
        return serve(msgspec.convert(record["version"], Version), record["seq"])
    except (msgspec.ValidationError, KeyError) as error:
        raise _unknown(path, record, f"of a start that it cannot read ({error})") from error


def happened(service: Service | None, rollout_id: str, event: Event, path: Path) -> Service:
    """The service after an event. Raises IntegrityError for one that cannot happen then."""
    if service is None:
        raise IntegrityError(f"{path}: record {event.seq}: an event before the service was started")
    try:
        return with_event(service, rollout_id, event)
    except IllegalEventError as error:
        raise IntegrityError(f"{path}: record {event.seq}: {error}") from error


def service_of(records: Iterable[Record], path: Path) -> Service | None:
    """What a whole journal adds up to; None for an empty one. Raises IntegrityError."""
    service: Service | None = None
    for record, event in told(records, path):
        if event is None:
            service = served(service, record, path)
        else:
            service = happened(service, record["rollout"], event, path)
    return service


def stories(records: Iterable[Record], path: Path) -> dict[str, Story]:
    """The whole history, by rollout, the oldest first. Raises IntegrityError."""
    service: Service | None = None
    found: dict[str, Story] = {}
    for record, event in told(records, path):
        if event is None:
            service = served(service, record, path)
        else:
            service = happened(service, record["rollout"], event, path)
            assert service.rollout is not None
            found.setdefault(service.rollout.id, []).append((event, service.rollout))
    return found


PLANNED = frozenset(one.name for one in fields(Plan))
"""What this release knows to be in a plan."""


def _event(record: Record, path: Path) -> Event:
    event = record.get("event")
    plan = event.get("plan") if isinstance(event, Mapping) else None
    if isinstance(plan, Mapping) and (
        unknown := {*plan} - PLANNED
    ):  # a gate that we would pass without a look
        raise _unknown(path, record, f"a plan with {', '.join(sorted(map(repr, unknown)))}")
    try:
        return msgspec.convert({**record["event"], "seq": record["seq"], "wall": record["wall"]}, Event)
    except (msgspec.ValidationError, KeyError, TypeError) as error:
        body = record.get("event")
        kind = body.get("kind") if isinstance(body, Mapping) else None
        raise _unknown(path, record, f"an event {kind!r} ({error})") from error


def _unknown(path: Path, record: Record, what: str) -> IntegrityError:
    return IntegrityError(
        f"{path}: record {record.get('seq')} is {what}, which deployctl {__version__} does not know: a newer release wrote it; "
        "run that one"
    )
