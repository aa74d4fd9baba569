"""Labels that no router posted: they enter a rollout as a router's do, and hold nothing back."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fakes import Behaviour, FakeService

from deployctl.controller.labels import MAX_POST, LabelIntake
from deployctl.core.label import Label
from deployctl.errors import InvalidError
from deployctl.records import LABELS, Intake
from deployctl.records import read as read_records

LABELLED = {
    "metrics": [{"name": "error-rate", "margin": "2%"}, {"name": "label-error-rate", "margin": "10%"}],
    "steps": [10, 50],
    "minDwell": "20s",
    "stepTimeout": "60s",
}


@pytest.fixture
def service(tmp_path: Path):
    with FakeService(tmp_path, {"1": Behaviour(errors=0.01), "2": Behaviour(errors=0.01)}) as service:
        service.up()
        service.watch(1)
        yield service


def post(service, *labels: Label) -> dict:
    rows = [{"id": one.id, "label": one.label} for one in labels]
    return LabelIntake(service.controller).post({"labels": rows})


def answered(service, count: int) -> list[str]:
    """Ids of requests that the last batches brought."""
    entries = [entry for entry in read_records(service.records_path) if isinstance(entry, Intake)]
    return [one for entry in entries for one in entry.batch.id][-count:]


def test_a_posted_label_is_in_the_records_and_a_resumed_rollout_has_it(service):
    service.ramp(canary=LABELLED)
    service.watch(2)
    ids = answered(service, 20)
    assert post(service, *(Label(one, "7") for one in ids))["joined"] == 20
    answer = post(service, Label(ids[0], "7"), Label("nobody", "7"))
    assert {name: count for name, count in answer.items() if count} == {
        "accepted": 2,
        "unknown": 1,
        "repeated": 1,
    }
    entries = read_records(service.records_path)
    assert [len(e.batch.labels) for e in entries if isinstance(e, Intake) and e.router == LABELS] == [20, 2]
    before = service.controller.observation.labels
    service.restart()
    assert service.controller.observation.labels == before
    assert post(service, Label(ids[1], "7"))["repeated"] == 1


def test_labels_hold_no_outcome_back_and_let_none_go_early(tmp_path):
    """The same traffic gives the same evidence with labels of strangers posted in between."""

    def played(name: str, posting: bool) -> list:
        state = tmp_path / name
        state.mkdir()
        versions = {"1": Behaviour(errors=0.01), "2": Behaviour(errors=0.03)}
        with FakeService(state, versions, labelled=0.3, seed=7) as service:
            service.up()
            service.watch(1)
            service.ramp(canary=LABELLED)
            for number in range(100):
                service.step()
                if posting and number % 3 == 0:
                    post(service, Label(f"stranger-{number}", "7"))
            judge = service.controller.observation.says
            return [list(judge.harm), [service.kinds, service.weight]]

    assert played("posted", True) == played("quiet", False)


def test_before_a_rollout_labels_count_for_the_baseline(service):
    batch = service.callers.batch(service.clock + 0.05)
    service.clock += 0.05
    service.controller.on_batch(service.callers.router, batch)
    answer = post(service, *(Label(one, "7") for one in batch.id[:5]))
    assert answer["joined"] == 5
    assert service.controller.baseline.joined == 5


def test_labels_that_end_the_rollout_are_counted_like_any_others(service):
    """People call every answer of the candidate wrong, in one post."""
    service.ramp(canary=LABELLED)
    service.watch(6)
    entries = [entry for entry in read_records(service.records_path) if isinstance(entry, Intake)]
    said = [
        Label(one, "no digit" if arm else "7")
        for entry in entries
        for one, arm, text in zip(entry.batch.id, entry.batch.arm, entry.batch.prediction, strict=True)
        if text == "7"
    ]
    answer = post(service, *said[:MAX_POST])
    assert service.rollout.ended
    assert answer["joined"] > 0
    assert min(answer[name] for name in ("unknown", "repeated", "ambiguous")) >= 0


def test_labels_that_no_metric_asks_for_are_said_to_be_unused(service):
    service.ramp()
    service.watch(2)
    assert post(service, Label("a", "7"))["unused"] == 1


def test_a_label_of_the_future_is_refused_with_its_index_and_the_others_are_taken(service):
    intake = LabelIntake(service.controller)
    intake.now = lambda: datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
    rows = [
        {"id": "a", "label": "7", "at": at} for at in ("2026-01-31T12:04:00Z", "2026-01-31T12:06:00Z", "now")
    ]
    answer = intake.post({"labels": rows})
    assert (answer["accepted"], answer["refused"]) == (1, 2)
    assert [one["index"] for one in answer["refusals"]] == [1, 2]


@pytest.mark.parametrize(
    "labels", [None, "x", [1], [{"id": "a"}], [{"id": "a", "label": "7"}] * (MAX_POST + 1)]
)
def test_what_is_no_list_of_labels_is_refused_whole(service, labels):
    with pytest.raises(InvalidError, match="labels"):
        LabelIntake(service.controller).post({"labels": labels})


def test_the_folder_of_the_manifest_in_force_is_looked_into(service, tmp_path):
    watched = tmp_path / "watched"
    watched.mkdir()
    service.controller.label_files = {"watch": str(watched), "format": None, "idKey": "k", "fromName": None}
    (watched / "a.jsonl").write_text('{"id": "a", "label": "7"}\n{"id": "b", "label": "7", "at": "then"}\n')
    intake = LabelIntake(service.controller)
    assert asyncio.run(intake.look()) is False
    seen = intake.describe()
    assert (seen["labels"], seen["refused"]) == (2, 1)
    assert service.controller.baseline.labels["unknown"] == 1
    again = LabelIntake(service.controller)
    asyncio.run(again.look())
    assert again.describe()["labels"] == 0
