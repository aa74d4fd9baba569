"""The life of a service: live and previous version are the fold of its whole journal, a rollout the fold of its part.

A service may run for years: of rollouts that are long over only the versions are known, and what happened stands in the journal.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from deployctl.core.plan import HUMAN, Phase, Plan, Split, Version
from deployctl.core.rollout import Event, Rollout, apply, split_for, start, versions_for

KEPT_LIVE, KEPT_ROLLOUTS = 5, 10
"""Models are kept of so many versions that were live, and of all that were part of so many rollouts, the last ones: what
`rollback --to` can go to, and a bound for the disk.
"""


@dataclass(frozen=True, slots=True)
class Service:
    """What the journal adds up to. `base` is the version that the service was first started with; `rollouts` are the last
    KEPT_ROLLOUTS of all that have `begun`, `were_live` the last KEPT_LIVE versions that those before them made live, oldest first.
    """

    base: Version
    base_seq: int = 1
    live: Version | None = None
    previous: Version | None = None
    rollouts: tuple[Rollout, ...] = ()
    begun: int = 0
    were_live: tuple[Version, ...] = ()
    known: dict[str, Version] = field(default_factory=dict)

    @property
    def rollout(self) -> Rollout | None:
        """The last rollout, running or not."""
        return self.rollouts[-1] if self.rollouts else None

    @property
    def running(self) -> Rollout | None:
        """The rollout that the gate still has to do with, or None."""
        last = self.rollout
        return last if last is not None and not last.ended else None

    @property
    def split(self) -> Split:
        """The whole desired traffic."""
        last = self.rollout
        return split_for(last) if last is not None else Split(self.base_seq, self.base)

    @property
    def kept(self) -> frozenset[str]:
        """Digests of the models that somebody may still ask for: of the last rollouts, and of the last versions that were live."""
        tried = [version for one in self.rollouts for version in (one.plan.baseline, *one.plan.candidates)]
        good = _last_live((*self.were_live, *_promoted(self.rollouts)))
        wanted = (self.live, self.previous, *tried, *good)
        return frozenset(version.digest for version in wanted if version not in {None, HUMAN})

    @property
    def versions(self) -> tuple[Version, ...]:
        """The versions that must be loaded."""
        last = self.rollout
        if last is not None:
            return versions_for(last)
        return () if self.base == HUMAN else (self.base,)


def serve(version: Version, seq: int) -> Service:
    """A service that starts with this version and nothing else."""
    known = {} if version == HUMAN else {version.version: version}
    return Service(version, seq, live=version, were_live=(*known.values(),), known=known)


def with_event(service: Service, rollout_id: str, event: Event) -> Service:
    """The service after an event of one of its rollouts. Raises IllegalEventError and leaves everything as it was."""
    last = service.rollout
    if last is None or last.id != rollout_id:
        begun = start(rollout_id, event)
        known = service.known | _labels(begun.plan)
        rollouts = (*service.rollouts, begun)
        over, rollouts = rollouts[:-KEPT_ROLLOUTS], rollouts[-KEPT_ROLLOUTS:]
        were_live = _last_live((*service.were_live, *_promoted(over)))
        return replace(service, rollouts=rollouts, begun=service.begun + 1, were_live=were_live, known=known)
    moved = apply(last, event)
    changed = replace(service, rollouts=(*service.rollouts[:-1], moved))
    if moved.phase is last.phase:
        return changed
    if moved.phase is Phase.PROMOTED:
        return replace(changed, live=moved.plan.candidate, previous=moved.plan.baseline)
    if last.phase is Phase.PROMOTED:
        return replace(changed, live=moved.plan.baseline, previous=None)
    return changed


def _promoted(rollouts: tuple[Rollout, ...]) -> tuple[Version, ...]:
    return tuple(one.plan.candidate for one in rollouts if one.phase is Phase.PROMOTED)


def _last_live(versions: tuple[Version, ...]) -> tuple[Version, ...]:
    """The last of them, oldest first, each where it came last."""
    newest_first = dict.fromkeys(version for version in reversed(versions) if version != HUMAN)
    return tuple(reversed([*newest_first][:KEPT_LIVE]))


def _labels(plan: Plan) -> dict[str, Version]:
    tried = (plan.baseline, *plan.candidates)
    return {version.version: version for version in tried if version != HUMAN}
