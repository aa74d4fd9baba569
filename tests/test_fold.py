"""A journal is read as a whole or not at all: what a release does not know it refuses, in one line."""

from pathlib import Path

import pytest
from fakes import Behaviour, FakeService

from deployctl import __version__
from deployctl.controller.fold import service_of
from deployctl.errors import IntegrityError
from deployctl.journal import read

PATH = Path("journal")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """The journal of a service in mid-rollout."""
    versions = {label: Behaviour(errors=0.01) for label in ("1", "2")}
    with FakeService(tmp_path_factory.mktemp("service"), versions) as service:
        service.up()
        service.watch(1)
        service.ramp()
        service.watch(1)
        yield read(service.controller.home.journal)


def test_a_whole_journal_adds_up_to_the_service(records):
    service = service_of(records, PATH)
    assert service.live.version == "1"
    assert service.running.plan.candidate.version == "2"
    assert service_of([], PATH) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: {**record, "type": "tenant"}, "of type 'tenant'"),
        (lambda record: {**record, "event": {**record["event"], "kind": "split_in_three"}}, "split_in_three"),
        (lambda record: {**record, "event": {**record["event"], "step": "two"}}, "step"),
        (lambda record: {key: value for key, value in record.items() if key != "type"}, "of type None"),
    ],
)
def test_a_record_of_a_newer_release_is_refused_by_its_number(records, change, words):
    with pytest.raises(IntegrityError) as refused:
        service_of([*records[:-1], change(records[-1])], PATH)
    said = str(refused.value)
    assert f"journal: record {len(records)} " in said
    assert words in said
    assert f"deployctl {__version__} does not know" in said
    assert "--recover" not in said, "it would not help, and it is not damaged"


def test_a_start_that_cannot_be_read_is_refused_as_well(records):
    with pytest.raises(IntegrityError, match="record 1 "):
        service_of([{**records[0], "version": {"name": "1"}}, *records[1:]], PATH)


def test_a_plan_with_a_part_that_is_not_known_is_refused(records):
    at, start = next((at, one) for at, one in enumerate(records) if (one.get("event") or {}).get("plan"))
    planned = {**start, "event": {**start["event"], "plan": {**start["event"]["plan"], "quorum": 2}}}
    with pytest.raises(IntegrityError, match="a plan with 'quorum'"):
        service_of([*records[:at], planned, *records[at + 1 :]], PATH)


def test_what_a_newer_release_only_adds_to_an_event_is_left_out(records):
    last = records[-1]
    assert service_of(
        [*records[:-1], {**last, "event": {**last["event"], "mood": "good"}}], PATH
    ) == service_of(records, PATH)
