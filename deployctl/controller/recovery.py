"""What `up --recover` does before the loop begins: what is damaged is kept aside, and what is proven goes on with no rollout.

The one rule: at no moment, whatever crashes, is there a journal from which a rollout would go on whose later events were lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from deployctl.controller.fold import service_of
from deployctl.controller.loop import wall_time
from deployctl.core.rollout import Cause, Event, Kind
from deployctl.core.service import Service
from deployctl.errors import IntegrityError
from deployctl.journal import Journal
from deployctl.journal import recover as recover_journal
from deployctl.records import Records, keep_aside
from deployctl.statedir import ServiceHome

BY = "person:recover"


def recover(home: ServiceHome) -> Iterator[str]:
    """Keep a damaged journal and damaged records of its last rollout aside; gives what was done, a line for each.

    Where nothing is damaged, nothing is done. Raises UnavailableError, and IntegrityError for a story that cannot be.
    """
    lost = "the journal was damaged after this; recovered without the rollout"
    recovery = recover_journal(home.journal, lambda records: _ending(service_of(records, home.journal), lost))
    if recovery is not None:
        proven = f"{len(recovery.records)} records are proven"
        yield f"{home.journal}: {recovery.damage}; kept as {recovery.kept}, {proven}"
    with Journal.open(home.journal) as journal:
        service = service_of(journal.records, home.journal)
        rollout = service.rollout if service else None
        if rollout is None or rollout.finished:
            return
        path = home.records / f"{rollout.id}.records"
        try:
            Records.open(path).close()
        except IntegrityError as error:
            if ending := _ending(service, "its records were damaged; recovered without the rollout"):
                journal.append(ending)
            kept = keep_aside(path)
            yield f"{str(error).partition(';')[0]}; kept as {kept}"


def _ending(service: Service | None, why: str) -> Mapping[str, Any] | None:
    """The record that ends the rollout that runs, None where there is none."""
    rollout = service.running if service else None
    if rollout is None:
        return None
    wall = wall_time()
    event = Event(0, Kind.ROLLED_BACK, rollout.at, BY, Cause.PERSON, why, rollout.step, wall=wall)
    return {"type": "event", "wall": wall, "rollout": rollout.id, "event": msgspec.to_builtins(event)}
