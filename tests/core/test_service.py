"""Live and previous version are the fold of everything that ever happened to a service."""

from dataclasses import replace

import pytest
from plans import BASELINE, CANDIDATE, canary, event

from deployctl.core.plan import HUMAN, Phase, Split, Version
from deployctl.core.rollout import Cause, Event, IllegalEventError, Kind
from deployctl.core.service import KEPT_LIVE, KEPT_ROLLOUTS, Service, serve, with_event

THIRD = Version("3", "sha256:" + "3" * 64)


class Life:
    """A service and its numbered events."""

    def __init__(self) -> None:
        self.service = serve(BASELINE, 1)
        self.seq = 1

    def rollout(self, baseline: Version, candidate: Version) -> None:
        self.seq += 1
        plan = replace(canary(), baseline=baseline, candidate=candidate)
        begun = Event(self.seq, Kind.STARTED, 0.0, "person:ann", Cause.PERSON, plan=plan)
        self.service = with_event(self.service, f"r-{self.service.begun + 1}", begun)

    def happens(self, kind: Kind, cause: Cause = Cause.PERSON) -> None:
        last = self.service.rollout
        self.seq += 1
        self.service = with_event(self.service, last.id, event(last, kind, cause, seq=self.seq, step=0))

    @property
    def versions(self) -> tuple[str, str | None]:
        previous = self.service.previous
        return self.service.live.version, previous.version if previous else None


@pytest.fixture
def life() -> Life:
    return Life()


def test_a_service_begins_with_its_baseline_and_nothing_before_it(life):
    assert life.versions == ("1", None)
    assert life.service.split == Split(1, BASELINE)
    assert life.service.versions == (BASELINE,)
    assert life.service.rollout is None
    assert life.service.running is None


def test_while_a_rollout_runs_the_baseline_is_live(life):
    life.rollout(BASELINE, CANDIDATE)
    life.happens(Kind.CLIMBED)
    assert life.versions == ("1", None)
    assert life.service.split.weight == 5
    assert life.service.running is life.service.rollout
    assert set(life.service.versions) == {BASELINE, CANDIDATE}


def test_a_promotion_makes_the_candidate_live_and_the_baseline_previous(life):
    life.rollout(BASELINE, CANDIDATE)
    life.happens(Kind.PROMOTED)
    assert life.versions == ("2", "1")
    assert life.service.split.weight == 100
    assert life.service.running is None


def test_a_rollback_in_a_rollout_leaves_everything_as_it_was(life):
    life.rollout(BASELINE, CANDIDATE)
    life.happens(Kind.CLIMBED)
    life.happens(Kind.ROLLED_BACK)
    assert life.versions == ("1", None)
    assert life.service.split.weight == 0
    assert life.service.versions == (BASELINE,)


def test_a_rollback_after_a_promotion_returns_to_the_version_before_and_no_further(life):
    life.rollout(BASELINE, CANDIDATE)
    life.happens(Kind.PROMOTED)
    life.happens(Kind.ROLLED_BACK)
    assert life.versions == ("1", None)
    before = life.service
    with pytest.raises(IllegalEventError):
        life.happens(Kind.ROLLED_BACK)
    assert life.service is before


def test_a_finished_promotion_is_still_rolled_back_by_a_person(life):
    life.rollout(BASELINE, CANDIDATE)
    life.happens(Kind.PROMOTED)
    life.happens(Kind.FINISHED)
    assert life.versions == ("2", "1")
    life.happens(Kind.ROLLED_BACK)
    assert life.versions == ("1", None)


def test_rollout_follows_rollout(life):
    life.rollout(BASELINE, CANDIDATE)
    life.happens(Kind.PROMOTED)
    life.happens(Kind.FINISHED)
    life.rollout(CANDIDATE, THIRD)
    assert life.versions == ("2", "1")
    life.happens(Kind.PROMOTED)
    assert life.versions == ("3", "2")
    life.happens(Kind.ROLLED_BACK)
    assert life.versions == ("2", None)


def test_a_rollout_after_a_rollback_starts_from_what_is_live(life):
    life.rollout(BASELINE, CANDIDATE)
    life.happens(Kind.ROLLED_BACK)
    life.rollout(BASELINE, THIRD)
    life.happens(Kind.PROMOTED)
    assert life.versions == ("3", "1")
    assert [rollout.phase for rollout in life.service.rollouts] == [Phase.ROLLED_BACK, Phase.PROMOTED]


def test_every_version_that_was_ever_here_is_known_by_its_label(life):
    life.rollout(BASELINE, CANDIDATE)
    life.happens(Kind.ROLLED_BACK)
    life.rollout(BASELINE, THIRD)
    assert life.service.known == {"1": BASELINE, "2": CANDIDATE, "3": THIRD}


def test_the_same_events_fold_to_the_same_service():
    def lived() -> Service:
        life = Life()
        life.rollout(BASELINE, CANDIDATE)
        life.happens(Kind.CLIMBED)
        life.happens(Kind.PROMOTED)
        life.happens(Kind.ROLLED_BACK)
        return life.service

    assert lived() == lived()


def test_the_models_that_somebody_may_ask_for_are_kept_and_no_older_ones(life):
    """Eight promotions, a rollback after the last of them, and a candidate that failed in between."""
    versions = [Version(str(number), f"sha256:{number:064}") for number in range(10, 10 + KEPT_LIVE + 2)]
    live = BASELINE
    for version in versions:
        life.rollout(live, version)
        life.happens(Kind.PROMOTED)
        life.happens(Kind.FINISHED)
        live = version
    for tried in range(KEPT_ROLLOUTS):
        assert BASELINE.digest in life.service.kept or tried >= KEPT_ROLLOUTS - len(versions)
        life.rollout(live, THIRD)
        life.happens(Kind.ROLLED_BACK)
    assert life.service.kept == {version.digest for version in (*versions[-KEPT_LIVE:], THIRD)}
    other = Version("other", f"sha256:{99:064}")
    for _ in range(KEPT_ROLLOUTS):
        assert THIRD.digest in life.service.kept, "a person may still want it"
        life.rollout(live, other)
        life.happens(Kind.ROLLED_BACK)
    assert THIRD.digest not in life.service.kept


def test_people_who_decide_have_no_model_to_keep():
    assert serve(HUMAN, 1).kept == frozenset()
