"""What a service has on the disk: its journal and records by their checksums, its models by their digests, and what lies about.

The one rule: a service that runs is not disturbed. Nothing is locked, and an end that is just being written is no damage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deployctl.controller.fold import happened, served, told
from deployctl.core.plan import HUMAN, Version
from deployctl.core.service import Service
from deployctl.doctor.check import Check, problem, warning
from deployctl.doctor.clock import journal_is_ahead
from deployctl.errors import IntegrityError
from deployctl.journal import inspect
from deployctl.records import MAX_BYTES, check, segments_of
from deployctl.reserve import RESERVE_BYTES
from deployctl.statedir import ServiceHome
from deployctl.store import DIGEST, INCOMING, Store
from deployctl.views.figures import size

_RECOVER = "deployctl up FILE --recover: it keeps the file aside and serves the last version that is proven"
_PUT_BACK = "put the file of that digest back there, from where it was taken or from a backup"
_HALF_WRITTEN = (
    ".journal.recovered",
    ".tls.pem.*",
    ".tokens.*",
    ".input.key.*",
    "label-files.json.new",
    f"models/{INCOMING}*",
)
_KEPT_ASIDE = ("journal.damaged-*", "records/*.damaged-*")


@dataclass(slots=True)
class Told:
    """What a journal says, as far as it could be read. `service` None: nothing."""

    spec: dict[str, Any] = field(default_factory=dict)
    label_files: dict[str, Any] | None = None
    max_bytes: int = MAX_BYTES
    service: Service | None = None
    wall: str = ""

    def take(self, records: list[dict[str, Any]], path: Path) -> None:
        """As a controller does at its start. Raises IntegrityError at the first record that cannot be."""
        for record, event in told(records, path):
            if event is None:
                self.service = served(self.service, record, path)
                self.spec = record["spec"]
            else:
                self.service = happened(self.service, record["rollout"], event, path)
            if "labels" in record:
                self.label_files = record["labels"]
            self.max_bytes = (record.get("log") or {}).get("max_bytes", self.max_bytes)
            self.wall = str(record.get("wall", ""))


def journal_checks(home: ServiceHome, story: Told, *, runs: bool) -> Iterator[Check]:
    """The whole chain of hashes, and whether its records tell a story that can be; `story` then has it."""
    found = inspect(home.journal)
    if found is None:
        if runs:
            yield problem(
                "journal", f"{home.journal} is gone", _PUT_BACK.replace("of that digest ", ""), integrity=True
            )
        else:
            yield Check("journal", "there is none: the service was never started to the end")
        return
    count = len(found.records)
    try:
        story.take(found.records, home.journal)
    except IntegrityError as error:
        words, _, advice = str(error).partition("; ")
        yield problem("journal", words, advice or _RECOVER, integrity=True)
        return
    if found.damage:
        story.service = None  # what came after it is not known
        yield problem(
            "journal",
            f"{home.journal}:{count + 1}: this record is damaged: {found.damage}; {count} before it are proven",
            f"deployctl down {home.name}, then {_RECOVER}" if runs else _RECOVER,
            integrity=True,
        )
    elif found.unfinished_bytes and not runs:
        yield warning(
            "journal",
            f"{count} records are proven, and {found.unfinished_bytes} bytes of an unfinished one follow: a power cut, or a full disk",
            "nothing: the next start cuts them, and says so",
        )
    else:
        yield Check("journal", f"{count} record{'s' if count != 1 else ''}, every hash holds")
    yield from journal_is_ahead(story.wall)


def record_checks(home: ServiceHome, story: Told) -> Iterator[Check]:
    """The records of the rollout that a controller would go on with. Raises IntegrityError for damaged ones."""
    rollout = story.service.rollout if story.service else None
    path = home.records / f"{rollout.id}.records" if rollout else None
    if rollout is None or path is None or rollout.finished or not segments_of(path):
        return
    unfinished = check(path)
    length = size(sum(segment.stat().st_size for segment in segments_of(path)))
    rest = f", {unfinished} bytes of an unfinished entry at the end" if unfinished else ""
    yield Check("records", f"{length} of rollout {rollout.id}, every checksum holds{rest}")


def model_checks(home: ServiceHome, story: Told, *, runs: bool) -> Iterator[Check]:
    """Every model in the store against the digest that it is named after, and whether those that are needed are there."""
    store, service = Store(home.models), story.service
    stored = {
        file: f"sha256:{file.stem.removeprefix('sha256-')}" for file in sorted(home.models.glob("*.onnx"))
    }
    bad = False
    for file, digest in stored.items():
        if not DIGEST.fullmatch(digest):
            yield warning("models", f"{file}: no model of ours: its name is no digest", "move it away")
        elif not store.holds(digest) and file.exists():  # one that nobody needs any more may go while we look
            bad = True
            yield problem(
                "models",
                f"{file}: its bytes are not those of its digest{_named(service, digest)}{', which is loaded and serves on' if runs else ''}",
                _PUT_BACK,
                integrity=True,
            )
    for version in _wanted(service):
        if not (path := store.path(version.digest)).exists():
            bad = True
            yield problem(
                "models", f"{path}: the model of version {version.version} is gone", _PUT_BACK, integrity=True
            )
    if not bad:
        many = f"{len(stored)} model{'s' if len(stored) != 1 else ''}"
        room = size(sum(map(_size, stored)))
        yield Check(
            "models", f"{many} ({room}), each with the bytes of its digest" if stored else "none is stored"
        )


def room_checks(home: ServiceHome, story: Told, free: Callable[[], int], *, runs: bool) -> Iterator[Check]:
    """What the service may still write, against what is free on its disk."""
    used = sum(map(_size, home.records.glob("*.records*")))
    may, left = max(0, story.max_bytes - used), free()
    told = f"{size(used)} of records, of at most {size(story.max_bytes)} (spec.log.maxSize)"
    if left < may:
        yield warning(
            "log-size",
            f"{told}, and only {size(left)} are free on the disk",
            "make room or lower spec.log.maxSize: on a full disk a canary is rolled back as nobody can watch it",
        )
    else:
        yield Check("log-size", told)
    reserve = home.journal.with_name(f"{home.journal.name}.reserve")
    held = _size(reserve)
    if runs and held < RESERVE_BYTES:
        yield warning(
            "reserve",
            f"{size(held)} are kept back for rollbacks on a full disk, and not {size(RESERVE_BYTES)}: the disk is or was full",
            "make room: it is filled again after the next record",
        )


def leftover_checks(home: ServiceHome, *, runs: bool) -> Iterator[Check]:
    """Files that nobody needs any more, or that a person should have a look at."""
    if not runs:
        sockets = [path.name for path in _sockets(home) if path.exists()]
        if sockets:
            yield warning(
                "leftovers",
                f"{', '.join(sockets)} in {home.socket_dir}: the service was killed, and not stopped",
                "nothing: the next `up` replaces them; see its log for why it ended",
            )
        half = [str(path) for pattern in _HALF_WRITTEN for path in home.path.glob(pattern)]
        if half:
            yield warning(
                "leftovers", f"half written and never used: {', '.join(sorted(half))}", "remove them"
            )
    aside = [path.name for pattern in _KEPT_ASIDE for path in home.path.glob(pattern)]
    if aside:
        yield warning(
            "leftovers",
            f"damaged, and kept aside by a recovery: {', '.join(sorted(aside))}",
            "find out what damaged them (`dmesg`, the disk's own log), then move them away",
        )


def _size(path: Path) -> int:
    """In bytes; 0 for what has gone meanwhile."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _sockets(home: ServiceHome) -> Iterator[Path]:
    yield from (home.admin_socket, home.orders_socket)
    yield from home.socket_dir.glob("heir*.sock")


def _wanted(service: Service | None) -> list[Version]:
    """The versions without whose model something that was promised cannot be done: serve, go back, go on."""
    if service is None:
        return []
    found = [service.live, service.previous, *service.versions]
    return [*dict.fromkeys(version for version in found if version is not None and version != HUMAN)]


def _named(service: Service | None, digest: str) -> str:
    known = service.known.values() if service else ()
    names = [version.version for version in known if version.digest == digest]
    return f" (version {names[-1]})" if names else ""
