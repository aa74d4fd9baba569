"""What a service has counted, and that it counted it once."""

from deployctl import records
from deployctl.records import Intake


def candidate_answers(box):
    """How many answers of the candidate are evidence so far."""
    return next((metric["candidate"]["n"] for metric in box.status()["metrics"]), 0)


def every_outcome_counts_once(box, rollout):
    """No outcome and no batch is in the records twice."""
    entries = [
        entry for entry in records.read(box.home.records / f"{rollout}.records") if isinstance(entry, Intake)
    ]
    keys = [entry.batch.key[at : at + 8] for entry in entries for at in range(0, len(entry.batch.key), 8)]
    assert len(keys) == len(set(keys)) > 0, "every request has a routing key of its own"
    numbers = [(entry.router, entry.batch.number) for entry in entries]
    assert len(numbers) == len(set(numbers))
