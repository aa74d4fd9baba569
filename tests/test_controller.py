"""The loop meets the disk and the world: crashes, restarts, batches that come twice, clocks that step, apply that fails."""

import asyncio
import gc
import itertools
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import CANARY, STEP, Behaviour, FakeService
from msgspec.structs import replace as replaced

from deployctl.core.plan import Phase
from deployctl.core.rollout import HALF_AN_ORDER, Cause, Event, IllegalEventError, Kind
from deployctl.core.service import KEPT_ROLLOUTS
from deployctl.core.verdict import Result, Verdict
from deployctl.errors import ConflictError, IntegrityError, InvalidError, UnavailableError
from deployctl.journal import Journal
from deployctl.journal import read as read_journal
from deployctl.records import Began, Clock, Gone, Intake, Records
from deployctl.records import read as read_records
from deployctl.wire.orders import HELD_UP

GOOD = {"1": Behaviour(errors=0.01, wrong=0.05), "2": Behaviour(errors=0.01, wrong=0.03)}
DEAD = {"1": Behaviour(errors=0.01), "2": Behaviour(errors=1.0)}
FULL = {
    "metrics": [
        {"name": "error-rate", "margin": "2%"},
        {"name": "latency", "margin": "5%"},
        {"name": "label-error-rate", "margin": "10%"},
    ],
    "steps": [10, 50],
}


@pytest.fixture
def service(tmp_path: Path):
    with FakeService(tmp_path, dict(GOOD), labelled=0.5, label_delay=(0.5, 1.0)) as service:
        service.up()
        service.watch(1)
        yield service


def story(service: FakeService) -> list[tuple]:
    """Everything of a rollout that must not depend on who was killed when."""
    return [
        (event.kind, event.at, event.by, event.cause, event.reason, event.step, event.verdict)
        for event in service.events
    ]


# ── crashes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_crash_between_writing_and_acting_is_healed_by_the_next_tick(service):
    """The rollback is in the journal, the routers were never told."""
    service.ramp()
    service.watch(1)
    rollout = service.rollout
    rolled_back = Event(0, Kind.ROLLED_BACK, rollout.at + 1, "person:ann", Cause.PERSON, "by hand")
    service.controller.record(rollout.id, rolled_back)
    assert service.weight == 5

    service.restart()

    assert service.weight == 0
    assert service.traffic.in_force.number == service.events[-1].seq
    assert service.rollout.phase is Phase.ROLLED_BACK


def test_a_crash_before_writing_leaves_everything_as_it_was(service):
    service.ramp()
    service.watch(1)
    before = service.rollout
    service.restart()
    assert service.rollout == before
    assert service.weight == 5


def test_traffic_is_never_moved_before_the_journal_has_it(service):
    """Whenever a split is applied, the event of its number is on the disk."""
    written = []
    apply = service.traffic.apply

    def watched(split, upstreams):
        written.append(split.number <= len(read_journal(service.home.journal)))
        apply(split, upstreams)

    service.traffic.apply = watched
    service.ramp()
    service.watch_until_over()
    service.rollback()
    assert written
    assert all(written)


def test_a_restart_keeps_live_previous_and_split(service):
    service.ramp()
    service.watch_until_over()
    service.watch(1)
    before = service.controller.service
    service.restart()
    assert service.controller.service == before
    assert service.weight == 100
    service.rollback()
    service.restart()
    assert service.controller.service.live.version == "1"
    assert service.rollback().startswith("nothing to roll back")


@pytest.mark.parametrize("versions", [GOOD, DEAD], ids=["good", "dead"])
def test_killed_at_any_event_it_ends_in_the_same_state_with_the_same_evidence(tmp_path, versions):
    """A rollout with answers, latency and late labels, killed once after each of its events, and once after all of them."""

    def played(name: str, killed_after: set[int]) -> tuple[list[tuple], int, str]:
        state = tmp_path / name
        state.mkdir()
        with FakeService(state, dict(versions), labelled=0.5, label_delay=(0.5, 1.0), seed=3) as service:
            service.up()
            service.watch(1)
            service.ramp(canary=FULL)
            killed = set()
            for _ in range(1200):
                due = {n for n in killed_after if n < len(service.events)} - killed
                if due:
                    killed |= due
                    service.restart()
                if service.rollout.finished and killed == killed_after:
                    break
                service.step()
            return story(service), service.weight, service.controller.service.live.version

    calm = played("calm", set())
    events = len(calm[0])
    # What is learnt of the baseline is in memory until it is journaled: a kill before that learns again.
    learned = next(n for n, event in enumerate(calm[0]) if event[0] is Kind.LEARNED)
    for number in range(learned, events):
        assert played(f"killed-{number}", {number}) == calm
    assert played("killed-everywhere", set(range(learned, events))) == calm


def test_killed_again_and_again_in_mid_ramp_the_evidence_is_the_same(tmp_path):
    def played(name: str, every: int) -> tuple[list[float], list[tuple]]:
        state = tmp_path / name
        state.mkdir()
        with FakeService(state, dict(GOOD), labelled=0.5, label_delay=(0.5, 1.0), seed=5) as service:
            service.up()
            service.watch(1)
            service.ramp(canary=FULL)
            harm = []
            for number in range(80):
                service.step()
                harm += list(service.controller.observation.says.harm)
                if every and number % every == every - 1:
                    service.restart()
            return harm, story(service)

    calm = played("calm", 0)
    assert played("now-and-then", 13) == calm
    assert played("all-the-time", 1) == calm


def test_a_crash_before_the_steps_beginning_was_recorded_is_healed(service):
    service.ramp()
    service.watch(1)
    entries = read_records(service.records_path)
    service.close()
    began = next(entry for entry in entries if isinstance(entry, Began))
    service.records_path.unlink()

    service.restart()

    assert read_records(service.records_path)[0] == replaced(began, at=service.rollout.at)


def test_a_router_that_died_with_the_controller_does_not_hold_the_evidence_back(service):
    """Its last watermark is in the records, and nobody is left to say that it is gone."""
    service.ramp(canary={"stepTimeout": "30s", "minDwell": "10s"})
    service.watch(1)
    service.restart()
    service.callers.router, service.callers.number = "router-2", 0
    service.with_behaviour("2", errors=1.0)
    service.watch(8)
    assert any(isinstance(entry, Gone) for entry in read_records(service.records_path))
    assert service.rollout.phase is Phase.ROLLED_BACK
    assert service.events[-1].cause is Cause.EVIDENCE


def test_a_router_that_comes_back_is_not_taken_for_lost(service):
    service.ramp(canary={"minDwell": "10s"})
    service.watch(1)
    service.restart()
    service.watch(8)
    assert not any(isinstance(entry, Gone) for entry in read_records(service.records_path))


# ── batches ────────────────────────────────────────────────────────────────────────────────────────────────────────


def intakes(service: FakeService) -> list[tuple[str, int]]:
    return [(e.router, e.batch.number) for e in read_records(service.records_path) if isinstance(e, Intake)]


@pytest.mark.parametrize("restarts", [False, True], ids=["at once", "across a restart"])
def test_a_batch_that_comes_twice_counts_once(service, restarts):
    service.ramp()
    service.watch(1)
    service.clock += STEP
    batch = service.callers.batch(service.clock)
    service.controller.on_batch("router-1", batch)
    seen = service.controller.observation.says.totals_n.copy()
    harm = list(service.controller.observation.says.harm)
    if restarts:
        service.restart()

    for _ in range(3):
        service.controller.on_batch("router-1", batch)

    assert (service.controller.observation.says.totals_n == seen).all()
    assert list(service.controller.observation.says.harm) == harm
    assert intakes(service).count(("router-1", batch.number)) == 1


def test_the_same_number_of_another_router_is_another_batch(service):
    service.ramp()
    service.watch(1)
    service.clock += STEP
    batch = service.callers.batch(service.clock)
    service.controller.on_batch("router-1", batch)
    other = replaced(batch, id=[f"other-{identity}" for identity in batch.id])
    service.controller.on_batch("router-2", other)
    assert ("router-2", batch.number) in intakes(service)


def test_a_batch_is_written_down_before_it_counts(service):
    service.ramp()
    service.watch(1)

    def full(_entry):
        raise UnavailableError("the disk is full")

    service.controller._records.append = full
    before = service.controller.observation.says.totals_n.copy()
    service.watch(1)
    assert (service.controller.observation.says.totals_n == before).all()
    assert service.controller.left_out > 300


def test_a_batch_whose_columns_do_not_fit_is_refused_and_not_kept(service):
    """Kept, it would be met again at every start."""
    service.ramp()
    service.watch(1)
    service.clock += STEP
    batch = service.callers.batch(service.clock)
    with pytest.raises(ValueError, match="column"):
        service.controller.on_batch("router-1", replaced(batch, arm=batch.arm[:-1]))
    assert ("router-1", batch.number) not in intakes(service)
    service.restart()
    service.controller.on_batch("router-1", batch)
    assert ("router-1", batch.number) in intakes(service)


# ── damage ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_damaged_records_are_an_integrity_error_and_nothing_is_changed(service):
    service.ramp()
    service.watch(1)
    data = bytearray(service.records_path.read_bytes())
    data[len(data) // 2] ^= 0x10
    service.records_path.write_bytes(data)
    with pytest.raises(IntegrityError, match="checksum"):
        service.restart()
    assert service.records_path.read_bytes() == data
    assert service.weight == 5


def test_a_journal_that_tells_an_impossible_story_is_an_integrity_error(service):
    """Its chain holds and its events do not: something wrote it that is not us."""
    service.ramp()
    last = service.journal.records or read_journal(service.home.journal)
    started = next(r for r in [*last, *read_journal(service.home.journal)] if r.get("type") == "event")
    service.close()
    with Journal.open(service.home.journal) as journal:
        journal.append({**started, "event": {**started["event"], "kind": "finished"}})
    with pytest.raises(IntegrityError, match="record"):
        service.restart()


def test_a_rollout_begins_in_the_instant_in_which_the_last_one_is_finished_by_itself(service):
    """The order comes first, and finds out that there is nothing to finish any more."""
    service.ramp(canary={"minDwell": "60s"})
    service.watch(1)
    service.promote("it has to", full=True)
    assert service.kinds[-1] == "promoted"
    service.ramp("3")
    first, second = service.controller.service.rollouts
    assert first.finished
    assert second.plan.candidate.version == "3"


# ── the world fails ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("trouble", [UnavailableError("no router"), OSError(32, "Broken pipe")])
def test_an_apply_that_fails_is_an_observation_and_not_the_end_of_the_loop(service, trouble, capfd):
    service.ramp()
    service.watch(1)
    service.traffic.refuses = trouble
    service.with_behaviour("2", errors=1.0)
    service.watch(1)
    assert service.rollout.phase is Phase.ROLLED_BACK
    assert service.weight == 5
    assert service.controller.trouble == str(trouble)

    service.traffic.refuses = None
    service.step()

    assert service.weight == 0
    assert service.controller.trouble is None
    assert capfd.readouterr().err.count(str(trouble)) == 1


def test_a_journal_that_cannot_be_written_moves_nothing_and_is_tried_again(service, capfd):
    service.ramp(canary={"minDwell": "1s"})
    append = service.journal.append

    def full(_record, **_how):
        raise UnavailableError("the disk is full")

    service.journal.append = full
    service.watch(3)
    assert (service.rollout.step, service.weight) == (0, 5)
    assert service.controller.trouble == "the disk is full"
    service.journal.append = append
    service.step()
    assert (service.rollout.step, service.weight) == (1, 10)
    capfd.readouterr()


def test_a_rollout_whose_records_cannot_be_opened_is_refused_and_does_not_begin(service):
    before = service.home.journal.read_bytes()
    records = service.home.records.rename(service.home.path / "elsewhere")
    service.home.records.write_text("no directory")
    with pytest.raises(UnavailableError, match="records"):
        service.ramp()
    assert service.home.journal.read_bytes() == before
    service.home.records.unlink()
    records.rename(service.home.records)
    service.ramp()
    service.watch(1)
    assert (service.rollout.phase, service.weight) == (Phase.PROGRESSING, 5)


def test_a_rollout_that_cannot_be_written_down_leaves_no_records_behind(service):
    append = service.journal.append

    def full(_record, **_how):
        raise UnavailableError("the disk is full")

    service.journal.append = full
    with pytest.raises(UnavailableError, match="disk is full"):
        service.ramp()
    assert not [*service.home.records.iterdir()]
    service.journal.append = append
    service.ramp()
    assert [*service.home.records.iterdir()] == [service.records_path]


@pytest.mark.parametrize("killed", [False, True], ids=["the disk was full", "it was killed"])
def test_half_an_order_changes_nothing_and_can_be_given_again(service, killed):
    """A rollback to a version is two records: it begins, and all callers are on it. Only the first was written down."""
    service.ramp()
    service.promote("enough", full=True)
    service.step()
    append, appended = service.journal.append, []

    def full_at_the_second(record, **how):
        if appended:
            raise UnavailableError("the disk is full")
        appended.append(record)
        return append(record, **how)

    service.journal.append = full_at_the_second
    with pytest.raises(UnavailableError, match="disk is full"):
        service.rollback(to="1")
    service.journal.append = append
    if killed:
        service.restart()
    service.step()

    assert (service.rollout.phase, service.rollout.live.version) == (Phase.ROLLED_BACK, "2")
    assert service.events[-1].reason == HALF_AN_ORDER
    service.rollback(to="1")
    assert (service.rollout.phase, service.rollout.live.version) == (Phase.PROMOTED, "1")


def test_half_a_promotion_of_a_shadowed_version_can_be_given_again(service):
    service.shadow("2", shadow={"maxDuration": "1s"})
    service.watch_until_over()
    append, appended = service.journal.append, []

    def full_at_the_second(record, **how):
        if appended:
            raise UnavailableError("the disk is full")
        appended.append(record)
        return append(record, **how)

    service.journal.append = full_at_the_second
    with pytest.raises(UnavailableError, match="disk is full"):
        service.promote("it was good", full=True)
    service.journal.append = append
    service.step()
    service.promote("it was good", full=True)
    assert (service.rollout.phase, service.rollout.live.version) == (Phase.PROMOTED, "2")


def test_a_step_whose_beginning_could_not_be_written_down_begins_as_soon_as_it_can(service):
    service.ramp()
    service.step()
    append = Records.append
    refused = []

    class Full(Records):
        def append(self, entry):
            if isinstance(entry, Began) and len(refused) < 3:
                refused.append(entry)
                raise UnavailableError("the disk is full")
            append(self, entry)

    service.controller._records.__class__ = Full
    service.watch(4)
    steps = [entry.step for entry in read_records(service.records_path) if isinstance(entry, Began)]
    assert len(refused) == 3
    assert steps == [*range(service.rollout.step + 1)]


def test_a_log_on_a_full_disk_stops_nobody():
    said = """
import sys
from deployctl.controller.service_log import go_on_without_a_log
go_on_without_a_log()
for _ in range(3):
    sys.stderr.write("the disk is full\\n")
    print("it is still full", file=sys.stderr, flush=True)
"""
    with Path("/dev/full").open("w") as full:
        assert subprocess.run([sys.executable, "-c", said], stderr=full, check=False).returncode == 0
    ran = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert ran.stderr == "the disk is full\nit is still full\n" * 3


def test_no_weight_goes_to_a_version_that_is_not_ready(service):
    """The journal is ahead of the world: what is live stays until the other one is loaded."""
    service.ramp(canary={"keepWarm": "1s"})
    service.watch_until_over()
    service.watch(10)
    assert service.workers.wanted == ["2"]
    service.restart()
    service.workers.proven.clear()
    service.workers.slow = {"1"}
    service.restart()
    rollout = service.rollout
    back = Event(0, Kind.ROLLED_BACK, rollout.at + 1, "person:ann", Cause.PERSON, "by hand")
    service.controller.record(rollout.id, back)
    service.watch(2)
    assert service.weight == 100
    service.workers.slow = set()
    service.watch(1)
    assert service.weight == 0


def test_workers_of_a_release_before_serve_until_those_of_this_one_are_ready(service):
    """Nobody's weight moves and no worker is stopped too early, even where the controller is killed in the middle of it."""

    def sockets():
        return {upstream.version: upstream.socket for upstream in service.traffic.upstreams}

    service.ramp()
    service.watch(1)
    before, ids = sockets(), set(service.workers.running)
    service.workers.slow = {"1", "2"}
    for _ in range(2):
        service.restart(generation=1)
        service.watch(3)
        assert sockets() == before
        assert len(service.workers.running) == 4
        assert ids < service.workers.running.keys()
    service.workers.slow = {"2"}
    service.watch(0.2)
    assert sockets()["1"] != before["1"]
    assert sockets()["2"] == before["2"]
    service.workers.slow = set()
    service.watch(3)
    assert not set(sockets().values()) & set(before.values())
    assert not service.workers.running.keys() & ids
    assert len(service.workers.running) == 2
    weights = [split.weight for split in service.traffic.applied]
    assert weights == sorted(weights), "it only climbs"


def test_asking_for_the_same_again_changes_nothing(service):
    service.ramp()
    service.watch(1)
    applied = len(service.traffic.applied)
    for _ in range(10):
        service.controller.act(service.clock)
    assert len(service.traffic.applied) == applied


def test_an_illegal_event_is_refused_and_not_written(service):
    service.ramp()
    before = read_journal(service.home.journal)
    with pytest.raises(IllegalEventError):
        service.controller.record(
            service.rollout.id, Event(0, Kind.FINISHED, 99.0, "person:ann", Cause.PERSON)
        )
    assert read_journal(service.home.journal) == before


# ── clocks ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_wall_clock_that_steps_changes_nothing(tmp_path):
    def played(name: str, wall) -> list[tuple]:
        state = tmp_path / name
        state.mkdir()
        with FakeService(state, dict(GOOD), seed=3) as service:
            service.wall = wall
            service.up()
            service.watch(1)
            service.ramp()
            service.watch_until_over()
            return story(service)

    years = itertools.cycle(
        ["2026-01-01T12:00:00.000Z", "1970-01-01T00:00:00.000Z", "2099-12-31T23:59:59.000Z"]
    )
    assert played("still", lambda: "2026-01-01T12:00:00.000Z") == played("stepping", lambda: next(years))


def test_a_process_that_was_suspended_for_ten_minutes_has_watched_one_second(service):
    """The evidence is there, dwell and bake are 60 s, and ten minutes of sleep are not part of them."""
    service.ramp(canary={"minDwell": "60s", "bake": "60s", "stepTimeout": "120s"})
    service.watch(3)
    assert service.controller.full_verdict().result is Result.PASS
    before = service.controller.clock.now

    service.clock += 600
    service.callers.skip_to(service.clock)
    service.controller.tick(service.clock)

    assert service.controller.clock.now == pytest.approx(before + 1)
    assert service.rollout.step == 0
    assert service.rollout.phase is Phase.PROGRESSING


def test_a_process_that_was_suspended_does_not_run_out_of_time_either(service):
    service.ramp(canary={"stepTimeout": "30s", "steps": [1, 50]})
    service.callers.per_second = 0
    service.watch(3)
    service.clock += 600
    service.watch(3)
    assert service.rollout.phase is Phase.PROGRESSING


def test_what_was_under_way_while_a_router_did_not_run_is_harm_of_nobody(service):
    """All of the candidate's, and none of the baseline's: it is the slower one."""
    service.ramp(canary={"minDwell": "60s"})
    service.watch(1)
    service.clock += STEP
    batch = service.callers.batch(service.clock)
    before = service.controller.observation.says.totals_n.copy()
    count = len(batch.id)
    late = {"arm": bytes([1] * count), "status": np.full(count, 504, "<u2").tobytes()}
    held_up = replaced(batch, **late, explicit=bytes([HELD_UP] * count))
    service.controller.on_batch("router-1", held_up)
    for number in range(1, 40):
        again = replaced(held_up, number=batch.number + number)
        service.controller.on_batch("router-1", again)
    service.callers.number += 39
    service.watch(1)
    assert service.rollout.phase is Phase.PROGRESSING
    assert service.controller.observation.left_out.held_up == 40 * count
    assert service.controller.observation.left_out.explicit == 0
    assert (service.controller.observation.says.totals_n >= before).all()


def test_downtime_is_not_rollout_time(service):
    service.ramp(canary={"minDwell": "60s"})
    service.watch(5)
    before = service.controller.clock.now
    service.clock += 3600
    service.callers.skip_to(service.clock)
    service.restart()
    assert service.controller.clock.now <= before
    assert service.controller.clock.now >= before - 1


def test_rollout_time_survives_a_restart_without_any_traffic(service):
    """It is written down every second, in every rollout and not only in the first."""
    for _ in range(2):
        service.callers.per_second = 0
        service.ramp(canary={"stepTimeout": "600s"})
        service.watch(5)
        service.restart()
        assert service.controller.clock.now >= 4
        assert sum(isinstance(entry, Clock) for entry in read_records(service.records_path)) >= 4
        service.rollback()
        service.watch(20)


def test_a_restart_in_a_hold_goes_on_waiting(service):
    service.callers.per_second = 0
    service.ramp(canary={"onInconclusive": "hold", "stepTimeout": "2s"})
    service.watch(10)
    service.restart()
    service.watch(100)
    assert (service.rollout.phase, service.rollout.waits_for) == (Phase.PAUSED, "hold")
    assert service.kinds.count("held") == 1


# ── orders ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_manifest_again_follows_the_rollout_that_runs(service):
    service.ramp()
    assert "runs already" in service.ramp()
    assert len(service.controller.service.rollouts) == 1


def test_a_second_rollout_while_one_runs_is_a_conflict(service):
    service.ramp()
    before = read_journal(service.home.journal)
    with pytest.raises(ConflictError, match="is running"):
        service.ramp("3")
    assert read_journal(service.home.journal) == before


def test_a_candidate_that_is_live_already_starts_nothing(service):
    service.ramp()
    service.watch_until_over()
    service.watch(1)
    text = service._manifest("1", "2", {**CANARY})
    answer = _start(service, text)
    assert answer["state"] == "already_live"


def test_a_baseline_that_is_not_live_is_a_conflict(service):
    with pytest.raises(ConflictError, match="version 1"):
        _start(service, service._manifest("9", "2", CANARY))


def test_models_that_nobody_can_ask_for_are_removed_and_going_back_to_one_is_refused(service):
    for number in range(2, KEPT_ROLLOUTS + 4):
        service.ramp(str(number))
        service.promote("by hand", full=True)
    store = service.controller.store
    stored = {entry.name for entry in store.root.iterdir()}
    assert stored == {store.path(digest).name for digest in service.controller.service.kept}
    assert len(stored) == KEPT_ROLLOUTS + 1, (
        "the versions of so many rollouts, each beginning with the one before"
    )
    before = len(service.events)
    with pytest.raises(
        InvalidError, match=r"the model of version 1 is not kept any more .* canary ramp FILE"
    ):
        service.rollback(to="1")
    assert len(service.events) == before
    assert "version 5 answers all callers" in service.rollback(to="5")
    assert service.controller.service.live.version == "5"


def test_a_candidate_that_is_refused_leaves_no_model_behind(service):
    before = {entry.name for entry in service.controller.store.root.iterdir()}
    service.workers.broken["2"] = "no model"
    with pytest.raises(InvalidError, match="candidate 2: no model"):
        service.ramp("2")
    assert {entry.name for entry in service.controller.store.root.iterdir()} == before


def test_the_next_rollout_ends_the_warmth_of_the_one_before(service):
    service.ramp(canary={"keepWarm": "1h"})
    service.watch_until_over()
    service.with_behaviour("3", errors=0.01)
    service.ramp("3")
    first, second = service.controller.service.rollouts
    assert first.finished
    assert (second.plan.baseline.version, second.plan.candidate.version) == ("2", "3")


def test_no_learnt_answer_of_one_live_version_teaches_about_the_next(service):
    service.ramp()
    service.watch_until_over()
    service.watch(1)
    known = np.concatenate(list(service.controller.baseline._answers))
    assert len(known) > 300
    assert set(known["arm"]) == {1}
    assert set(known["split"]) == {service.rollout.split_number}


def test_a_harmful_verdict_is_acted_upon_in_the_tick_that_sees_it(tmp_path):
    with FakeService(tmp_path, dict(DEAD), per_second=1000.0) as service:
        service.up()
        service.watch(1)
        service.ramp()
        service.watch_until_over()
        assert service.weight == 0
        on_its_way = 1000 * 0.05 * STEP * 2  # a batch of the fake comes every 50 ms, a router's every 10
        assert service.callers.served["2"][0] <= 6 + on_its_way


def test_a_verdict_in_the_journal_is_the_one_that_decided(service):
    service.ramp()
    service.watch_until_over()
    promoted = next(event for event in service.events if event.kind is Kind.PROMOTED)
    assert isinstance(promoted.verdict, Verdict)
    assert promoted.verdict.result is Result.PASS
    service.restart()
    again = next(event for event in service.events if event.kind is Kind.PROMOTED)
    assert again == replace(promoted)


def _start(service: FakeService, text: str) -> dict:
    return asyncio.run(service.commands.start_rollout(text, service._path, "person:ann"))


def test_a_rollout_that_is_long_over_costs_no_memory_and_is_in_the_history_all_the_same(service):
    """A box in a factory runs for years; what a controller knows of them must not grow with each."""
    versions = itertools.cycle(("2", "1"))

    def rollouts(count):
        for version in itertools.islice(versions, count):
            service.ramp(version)
            service.watch(1)
            service.promote("by hand", full=True)

    def held():
        service.traffic.applied.clear()  # what the stand-in itself remembers
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        rollouts(KEPT_ROLLOUTS + 2)
        first = asyncio.run(service.controller.history())
        first.popitem()  # it is finished only when the next one begins
        before = held()
        rollouts(2 * KEPT_ROLLOUTS)
        grown = held() - before
    finally:
        tracemalloc.stop()
    assert grown < 2048 * 2 * KEPT_ROLLOUTS, "less than half of what the least rollout with its events takes"
    assert len(service.controller.stories) == KEPT_ROLLOUTS
    whole = asyncio.run(service.controller.history())
    assert len(whole) == 3 * KEPT_ROLLOUTS + 2
    assert {one: whole[one] for one in first} == first
    oldest = next(iter(whole))
    assert asyncio.run(service.controller.story(oldest)) == whole[oldest]
