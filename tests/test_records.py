"""What was taken in is kept, whatever cuts the writing short, and a batch is read as rows."""

import os
import random
import shutil
import subprocess
import sys
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
    entries_of,
    read,
    rows_of,
    size_of,
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
    assert list(Records.open(path).read()) == ENTRIES


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
        found = read(path)
        assert found == ENTRIES[: len(found)]
        assert path.stat().st_size == length - records.dropped_bytes
        write(path, [ENTRIES[0]])
        assert read(path) == [*found, ENTRIES[0]]


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


def test_zeros_at_the_end_are_what_a_power_cut_left_and_no_entries(path):
    whole = write(path, ENTRIES)
    path.write_bytes(whole + bytes(1000))
    records = Records.open(path)
    records.close()
    assert records.dropped_bytes == 1000
    assert read(path) == ENTRIES
    assert path.read_bytes() == whole


def test_whatever_sectors_of_the_last_second_never_arrived_the_entries_before_are_there(path):
    within_a_second = [entry for entry in ENTRIES if not isinstance(entry, Clock)] * 12
    before = write(path, ENTRIES)
    whole = write(path, within_a_second)
    chance = random.Random(3)
    sectors = range(len(before) // 512, (len(whole) - 1) // 512 + 1)
    for _ in range(300):
        lost = bytearray(whole)
        for sector in chance.sample(sectors, chance.randrange(1, len(sectors))):
            start, end = max(sector * 512, len(before)), min((sector + 1) * 512, len(whole))
            lost[start:end] = bytes(end - start)
        path.write_bytes(lost)
        records = Records.open(path)
        records.close()
        kept = whole[: len(whole) - records.dropped_bytes]
        assert len(before) <= len(kept) < len(whole)
        assert path.read_bytes() == kept
        assert read(path) == [*ENTRIES, *within_a_second][: len(read(path))]


def test_a_sector_that_was_on_the_platter_and_is_lost_is_damage(path):
    """A mark behind it says so: damage must not pass for the work of a power cut, and cost all that came after it."""
    records = Records.open(path)
    for entry in ENTRIES * 12:
        records.append(entry)
    records.sync()()
    records.append(Clock(99.0))
    records.append(ENTRIES[0])
    records.close()
    whole = path.read_bytes()
    assert len(read(path)) == len(ENTRIES * 12) + 2, "a mark is no entry"
    damaged = whole[:512] + bytes(512) + whole[1024:]
    path.write_bytes(damaged)
    with pytest.raises(IntegrityError, match="checksum"):
        Records.open(path)
    assert path.read_bytes() == damaged


def test_damage_costs_no_file_descriptor(path):
    whole = write(path, ENTRIES)
    path.write_bytes(b"\xff" + whole[1:])
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(IntegrityError):
            Records.open(path)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


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


def test_what_was_written_before_the_limit_stays_and_time_goes_on(path):
    records = Records.open(path, max_bytes=len(write(path, ENTRIES[:2])) + 100)
    with pytest.raises(UnavailableError, match=r"spec\.log\.maxSize"):
        records.append(ENTRIES[1])
    assert records.full
    records.append(ENTRIES[2])
    assert read(path) == ENTRIES[:3]


def test_rollouts_that_are_over_make_room_the_oldest_first_and_as_a_whole(path):
    big = [ENTRIES[1]] * 20
    for age, name in enumerate(["newer", "older"]):
        records = Records.open(path.with_name(f"{name}.records"), segment_bytes=1000)
        for entry in big:
            records.append(entry)
        records.close()
        for file in path.parent.glob(f"{name}.*"):
            os.utime(file, (1000 - age, 1000 - age))
    each = size_of(path.with_name("newer.records"))
    records = Records.open(path, max_bytes=2 * each + 500)
    records.append(ENTRIES[1])
    assert size_of(path.with_name("older.records")) == each
    for entry in big[:5]:
        records.append(entry)
    assert not list(path.parent.glob("older.records*"))
    assert read(path.with_name("newer.records")) == big
    assert not records.full


def test_records_go_on_in_another_segment_and_are_read_as_one(path):
    records = Records.open(path, segment_bytes=400)
    for entry in ENTRIES * 5:
        records.append(entry)
    records.close()
    assert len(list(path.parent.iterdir())) > 3
    assert read(path) == ENTRIES * 5
    again = Records.open(path, segment_bytes=400)
    assert list(again.read()) == ENTRIES * 5
    assert again.began == [ENTRIES[0]] * 5
    half = size_of(path) // 2
    before = list(entries_of(path, half))
    again.append(ENTRIES[3])
    assert list(entries_of(path, half)) == before == (ENTRIES * 5)[: len(before)]
    assert 5 < len(before) < 15


def test_only_the_last_segment_may_end_in_the_middle_of_an_entry(path):
    records = Records.open(path, segment_bytes=400)
    for entry in ENTRIES * 5:
        records.append(entry)
    records.close()
    os.truncate(path, path.stat().st_size - 1)
    for reading in (read, Records.open):
        with pytest.raises(IntegrityError, match="not the last segment"):
            reading(path)


WRITE_FOREVER = """
import sys
from pathlib import Path
from deployctl.records import Clock, Records
records = Records.open(Path(sys.argv[1]), segment_bytes=600)
for number in range(10**9):
    records.append(Clock(float(number)))
    print(number, flush=True)
"""


def test_what_was_written_before_a_kill_is_there_however_many_segments_there_are(path):
    for seen in (50, 333):
        writer = subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, path], stdout=subprocess.PIPE)
        for _ in range(seen):
            last = int(writer.stdout.readline())
        writer.kill()
        told = [last, *map(int, writer.stdout.read().split())]
        writer.wait()
        writer.stdout.close()
        found = [int(entry.at) for entry in read(path)]
        assert found == list(range(len(found)))
        assert len(found) in {told[-1] + 1, told[-1] + 2}
        assert len(list(path.parent.iterdir())) > 2
        records = Records.open(path)
        assert list(records.read()) == [Clock(float(at)) for at in found]
        records.close()
        for file in path.parent.iterdir():
            file.unlink()


WRITE_UNTIL_FULL = """
import resource, sys
from pathlib import Path
from deployctl.errors import UnavailableError
from deployctl.records import Clock, Records
records = Records.open(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
written = 0
try:
    while True:
        records.append(Clock(float(written)))
        written += 1
except UnavailableError as error:
    print(written, error, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
records.append(Clock(-1.0))
"""


def test_a_disk_that_takes_half_an_entry_spoils_nothing(path):
    run = subprocess.run(
        [sys.executable, "-c", WRITE_UNTIL_FULL, path], capture_output=True, text=True, check=True
    )
    written, words = run.stdout.split(maxsplit=1)
    assert "cannot be written" in words
    assert [entry.at for entry in read(path)] == [*range(int(written)), -1.0]


def test_records_that_somebody_removed_do_not_count_silently(path):
    records = Records.open(path)
    records.append(ENTRIES[0])
    shutil.rmtree(path.parent)
    with pytest.raises(UnavailableError, match="removed"):
        records.append(ENTRIES[1])
    records.close()


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
