"""What was taken in is kept, whatever cuts the writing short, and a batch is read as rows."""

import os
from pathlib import Path

import numpy as np
import pytest
from fakes import Outcome, batch_of
from msgspec.structs import replace

from deployctl.errors import IntegrityError, UnavailableError
from deployctl.records import (
    Began,
    Clock,
    Gone,
    Intake,
    Records,
    read,
    rows_of,
)
from deployctl.wire.orders import LabelRow


def answer(identity: str, prediction: str | None = "7", **changes) -> Outcome:
    given = {"key": identity, "arm": 0, "version": "1", "split": 1, "start": 1.0, "latency_ms": 5.0}
    rest = {"status": 200, "null": prediction is None, "truth": "7"}
    return Outcome(id=identity, prediction=prediction, **{**given, **rest, **changes})


ENTRIES = [
    Began(0, 3, 0.0),
    Intake("r", 0.05, batch_of([answer("a"), answer("b", None, arm=1)], 1, 1.5, [LabelRow("a", "7", "ann")])),
    Clock(1.0),
    Gone("r", 1.2),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records" / "r-1.records"


def write(path: Path, entries: list) -> bytes:
    records = Records.open(path)
    for entry in entries:
        records.append(entry)
    records.close()
    return path.read_bytes()


# ── the file ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_written_is_read_again(path):
    write(path, ENTRIES)
    assert read(path) == ENTRIES
    assert Records.open(path).entries == ENTRIES


def test_it_goes_on_where_it_ended(path):
    write(path, ENTRIES[:2])
    write(path, ENTRIES[2:])
    assert read(path) == ENTRIES


def test_wherever_an_append_was_cut_the_entries_before_it_are_there(path):
    whole = write(path, ENTRIES)
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        records = Records.open(path)
        records.close()
        assert records.entries == ENTRIES[: len(records.entries)]
        assert path.stat().st_size == length - records.dropped_bytes
        write(path, [ENTRIES[0]])
        assert read(path) == [*records.entries, ENTRIES[0]]


def test_any_changed_byte_is_damage_and_the_file_is_left_as_it_is(path):
    """Also in a length, which must not pass for an unfinished end and cost all that came after it."""
    whole = write(path, ENTRIES)
    for at in range(len(whole)):
        for flip in (0x01, 0x80):
            damaged = whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :]
            path.write_bytes(damaged)
            with pytest.raises(IntegrityError, match="checksum"):
                Records.open(path)
            assert path.read_bytes() == damaged


def test_zeros_at_the_end_are_damage_and_not_entries(path):
    whole = write(path, ENTRIES)
    path.write_bytes(whole + bytes(64))
    with pytest.raises(IntegrityError):
        Records.open(path)


def test_damage_costs_no_file_descriptor(path):
    whole = write(path, ENTRIES)
    path.write_bytes(b"\xff" + whole[1:])
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(IntegrityError):
            Records.open(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_cannot_be_written_does_not_count_and_spoils_nothing(path):
    records = Records.open(path)
    records.append(ENTRIES[0])
    disk, full = os.dup(records._fd), os.open("/dev/full", os.O_RDWR)
    os.dup2(full, records._fd)
    with pytest.raises(UnavailableError, match="No space left"):
        records.append(ENTRIES[1])
    os.write(disk, b"half of an entry")
    os.dup2(disk, records._fd)
    records.append(ENTRIES[2])
    records.close()
    os.close(disk)
    os.close(full)
    assert read(path) == [ENTRIES[0], ENTRIES[2]]


def test_closing_twice_is_closing_once(path):
    records = Records.open(path)
    records.close()
    records.close()


# ── batches ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_becomes_rows_with_ids_and_predictions():
    rows = rows_of(batch_of([answer("a", arm=1, status=500), answer("b", "3", latency_ms=2.5)], 1, 2.0))
    assert rows.ids == ["a", "b"]
    assert rows.predictions == ["7", "3"]
    assert rows.columns["arm"].tolist() == [1, 0]
    assert rows.columns["status"].tolist() == [500, 200]
    assert rows.columns["latency"].tolist() == [5.0, 2.5]


def test_a_batch_of_labels_alone_has_no_rows():
    assert rows_of(batch_of([], 1, 2.0, [LabelRow("a", "7")])).ids == []


@pytest.mark.parametrize("column", ["key", "arm", "split", "start", "latency", "status", "null", "explicit"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_columns_of_other_lengths_are_no_batch(column, count):
    whole = batch_of([answer("a"), answer("b")], 1, 2.0)
    raw = getattr(whole, column)
    with pytest.raises(ValueError, match="column"):
        rows_of(replace(whole, **{column: (raw * 2)[: len(raw) // 2 * count]}))


def test_predictions_of_another_number_are_no_batch():
    with pytest.raises(ValueError, match="predictions"):
        rows_of(replace(batch_of([answer("a")], 1, 2.0), prediction=[]))


def test_a_record_from_before_there_were_copies_has_none_and_knows_no_confidence():
    rows = rows_of(batch_of([answer("a"), answer("b")], 1, 2.0)).columns
    assert rows["copies"].tolist() == rows["mirrored"].tolist() == rows["serial"].tolist() == [0, 0]
    assert np.isnan(rows["confidence"]).all()


@pytest.mark.parametrize("column", ["serial", "mirrored", "copies", "confidence", "input"])
def test_a_column_about_copies_is_empty_or_whole(column):
    whole = batch_of([answer("a"), answer("b")], 1, 2.0)
    with pytest.raises(ValueError, match="column"):
        rows_of(replace(whole, **{column: bytes(3)}))
