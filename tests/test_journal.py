"""The journal keeps what it acknowledged, and says so when it cannot: cuts, flips, full disks and kills."""

from __future__ import annotations

import fcntl
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployctl.errors import Exit, IntegrityError, UnavailableError
from deployctl.journal import MAX_RECORD_BYTES, Journal, read, recover

RECORDS: list[dict[str, Any]] = [
    {"kind": "started", "plan": {"steps": [5, 10, 25], "by": "Zoë"}},
    {"kind": "stepped", "weight": 10.5, "text": 'line\nbreak, "quote" and \ud800'},
    {"kind": "rolled_back", "reason": None, "empty": {}},
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
json_records = st.dictionaries(st.text().filter(lambda key: key != "seq"), json_values, max_size=4)


def numbered(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**record, "seq": seq} for seq, record in enumerate(records, start=1)]


def written(path: Path, records: list[dict[str, Any]]) -> bytes:
    with Journal.open(path) as journal:
        for record in records:
            journal.append(record)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may do everything, so it steps down for the test."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Writes past `size` come back short, and then fail: a full disk, for anyone who runs the tests."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_records_come_back_as_they_were_written_and_numbered(path: Path) -> None:
    with Journal.open(path) as journal:
        assert journal.records == []
        assert [journal.append(record) for record in RECORDS] == [1, 2, 3]
    assert read(path) == numbered(RECORDS)
    with Journal.open(path) as journal:
        assert (journal.records, journal.dropped_bytes) == (numbered(RECORDS), 0)
        assert journal.append({"kind": "resumed"}) == 4
    assert [record["seq"] for record in read(path)] == [1, 2, 3, 4]


@settings(max_examples=60, deadline=None)
@given(first=st.lists(json_records, max_size=4), second=st.lists(json_records, max_size=4))
def test_any_json_survives_a_reopening(
    tmp_path_factory: pytest.TempPathFactory, first: list[dict[str, Any]], second: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    written(path, first)
    written(path, second)
    assert read(path) == numbered(first + second)


def test_the_file_is_private_append_only_and_not_inherited(path: Path) -> None:
    with Journal.open(path) as journal:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert fcntl.fcntl(journal._fd, fcntl.F_GETFL) & os.O_APPEND
        assert fcntl.fcntl(journal._fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_each_line_is_a_hash_and_compact_json(path: Path) -> None:
    for line in written(path, RECORDS).splitlines():
        digest, _, body = line.decode().partition(" ")
        assert len(bytes.fromhex(digest)) == 32
        assert body == json.dumps(json.loads(body), separators=(",", ":"))


def test_looking_changes_nothing_and_needs_no_journal(path: Path) -> None:
    assert read(path) == []
    assert not path.exists()
    torn = written(path, RECORDS)[:-3]
    path.write_bytes(torn)
    assert read(path) == numbered(RECORDS[:2])
    assert path.read_bytes() == torn


def test_a_cut_at_any_byte_leaves_an_exact_prefix_and_its_count(path: Path) -> None:
    data = written(path, RECORDS)
    ends = [0, *(index + 1 for index, byte in enumerate(data) if byte == ord("\n"))]
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends) - 1
        with Journal.open(path) as journal:
            assert journal.records == numbered(RECORDS[:whole])
            assert journal.dropped_bytes == cut - ends[whole]
            assert path.stat().st_size == ends[whole]
            assert journal.append({"after": "the cut"}) == whole + 1
        assert read(path) == numbered([*RECORDS[:whole], {"after": "the cut"}])


def test_a_thousand_bit_flips_are_all_noticed(path: Path) -> None:
    records = [{"kind": "step", "number": number, "weight": number / 7} for number in range(12)]
    data = written(path, records)
    chance = random.Random(2)
    noticed = 0
    for bit in chance.sample(range(len(data) * 8), 1000):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            found = read(path)
        except IntegrityError:
            noticed += 1
        else:
            assert found == numbered(records[: len(found)])
            assert len(found) < len(records)
    assert noticed > 990


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_is_an_error_or_leaves_an_exact_prefix(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    whole = written(path, RECORDS)
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    path.write_bytes(whole[:start] + data.draw(st.binary(max_size=200)) + whole[end:])
    try:
        found = read(path)
    except IntegrityError:
        return
    assert found == numbered(RECORDS[: len(found)])


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda lines: [lines[1], lines[0], lines[2]], 1),
        (lambda lines: [lines[0], lines[2]], 2),
        (lambda lines: [lines[0], lines[1], lines[1], lines[2]], 3),
        (lambda lines: [lines[0], b"garbage\n", lines[1], lines[2]], 2),
        (lambda lines: [lines[0], b"\n", lines[1], lines[2]], 2),
        (lambda lines: [lines[0], b"x" * (MAX_RECORD_BYTES + 5) + b"\n", lines[1]], 2),
        (lambda lines: [lines[0], b"x" * (MAX_RECORD_BYTES + 5)], 2),
        (lambda lines: [*lines[:2], lines[2].replace(b"rolled_back", b"promoted   ")], 3),
        (lambda lines: [*lines[:2], lines[2][:64].upper() + lines[2][64:]], 3),
        (lambda lines: [*lines[:2], lines[2][:-1] + b"\0"], 3),
    ],
    ids=[
        "swapped",
        "gap",
        "twice",
        "garbage",
        "blank",
        "endless",
        "endless end",
        "forged",
        "upper case",
        "last newline",
    ],
)
def test_damage_is_said_with_its_line_and_what_to_try(path: Path, damage: Any, line: int) -> None:
    lines = written(path, RECORDS).splitlines(keepends=True)
    damaged = b"".join(damage(lines))
    path.write_bytes(damaged)
    for look in (read, Journal.open):
        with pytest.raises(IntegrityError) as caught:
            look(path)
        assert str(caught.value).startswith(f"{path}:{line}: ")
        assert "up --recover" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code is Exit.INTEGRITY
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("body", [b"[1]", b"nonsense", b'{"seq":2}', b'{"seq":true}', b"{}", b"[" * 100_000])
def test_a_good_hash_over_no_record_is_damage_too(path: Path, body: bytes) -> None:
    import hashlib

    from deployctl.journal import FIRST_HASH

    path.write_bytes(hashlib.sha256(FIRST_HASH + body).hexdigest().encode() + b" " + body + b"\n")
    with pytest.raises(IntegrityError, match=":1: "):
        read(path)


def test_recovery_keeps_the_damaged_file_and_goes_on_after_the_proven_records(path: Path) -> None:
    damaged = written(path, RECORDS).replace(b"weight", b"height")
    path.write_bytes(damaged)
    recovery = recover(path, nothing)
    assert recovery is not None
    assert recovery.records == numbered(RECORDS[:1])
    assert recovery.kept.read_bytes() == damaged
    with Journal.open(path) as journal:
        assert journal.records == numbered(RECORDS[:1])
        assert journal.append({"kind": "recovered"}) == 2
    assert recover(path, nothing) is None
    path.write_bytes(damaged)
    again = recover(path, nothing)
    assert again is not None
    assert again.kept != recovery.kept


def test_recovery_puts_the_ending_behind_the_proven_records_in_the_same_breath(path: Path) -> None:
    path.write_bytes(written(path, RECORDS).replace(b"weight", b"height"))
    seen = []

    def ending(records: list[dict[str, Any]]) -> dict[str, Any]:
        seen.extend(records)
        return {"kind": "ended"}

    assert recover(path, ending) is not None
    assert seen == numbered(RECORDS[:1])
    assert read(path) == numbered([RECORDS[0], {"kind": "ended"}])


def test_a_recovery_that_was_interrupted_keeps_the_damaged_file_once(path: Path) -> None:
    path.write_bytes(written(path, RECORDS).replace(b"weight", b"height"))
    kept = path.with_name("journal.damaged-1")
    kept.hardlink_to(path)  # as far as it came before it was killed
    recovery = recover(path, nothing)
    assert recovery is not None
    assert recovery.kept == kept
    assert list(path.parent.glob("journal.damaged-*")) == [kept]


def nothing(_records: list[dict[str, Any]]) -> None:
    """No record has to follow those that are proven."""


def test_what_is_no_json_is_refused_and_leaves_no_trace(path: Path) -> None:
    with Journal.open(path) as journal:
        for record in ({"value": float("nan")}, {"value": "x" * MAX_RECORD_BYTES}):
            with pytest.raises(ValueError, match=r"JSON compliant|bytes"):
                journal.append(record)
        with pytest.raises(TypeError):
            journal.append({"value": object()})
        assert journal.append({"value": 1}) == 1
    assert read(path) == [{"value": 1, "seq": 1}]


def test_a_torn_append_is_taken_back_and_the_next_one_succeeds(path: Path) -> None:
    before = written(path, RECORDS)
    with Journal.open(path) as journal:
        for room in (0, 1, 70):
            with files_limited_to(len(before) + room), pytest.raises(UnavailableError) as caught:
                journal.append({"kind": "too much", "filler": "x" * 100})
            assert path.read_bytes() == before
            assert "\n" not in str(caught.value)
            assert caught.value.exit_code is Exit.UNAVAILABLE
        assert journal.append({"kind": "after"}) == 4
    assert read(path) == numbered([*RECORDS, {"kind": "after"}])


def test_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("mounting a tiny disk needs root; the limit on file sizes above stands in for it")
    try:
        with Journal.open(disk / "journal") as journal:
            for _ in range(50):
                acknowledged = journal.append({"filler": "x" * 500})
            for _ in range(3):
                with pytest.raises(UnavailableError, match=r"No space left|only .* bytes"):
                    journal.append({"filler": "x" * 64_000})
            acknowledged = journal.append({"filler": "small"})
        assert len(read(disk / "journal")) == acknowledged == 51
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_when_a_failed_append_cannot_be_taken_back_there_are_no_more_until_it_can(path: Path) -> None:
    before = written(path, RECORDS)
    with Journal.open(path) as journal:
        writable = os.dup(journal._fd)
        read_only = os.open(path, os.O_RDONLY)
        os.dup2(read_only, journal._fd)
        with pytest.raises(UnavailableError):
            journal.append({"kind": "lost"})
        with pytest.raises(UnavailableError, match="cannot be taken back"):
            journal.append({"kind": "lost"})
        assert path.read_bytes() == before
        os.dup2(writable, journal._fd)
        assert journal.append({"kind": "after"}) == 4
        os.close(writable)
        os.close(read_only)
    assert read(path) == numbered([*RECORDS, {"kind": "after"}])


def test_a_second_writer_is_refused_by_the_kernel_until_the_first_is_gone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployctl.journal.LOCK_SECONDS", 0.1)
    with Journal.open(path) as one:
        for attempt in (Journal.open, lambda path: recover(path, nothing)):
            with pytest.raises(UnavailableError, match="another process has it open"):
                attempt(path)
        one.append({"kind": "mine"})
        assert len(read(path)) == 1, "looking needs no lock"
    with Journal.open(path) as other:
        assert other.append({"kind": "theirs"}) == 2


def test_a_writer_that_asks_for_no_lock_is_noticed_before_the_chain_breaks(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.append({"kind": "mine"})
        with path.open("ab") as file:
            file.write(b"theirs")
        for _ in range(2):
            with pytest.raises(IntegrityError, match=r"someone else|closed for writing"):
                journal.append({"kind": "mine"})
    assert path.read_bytes().count(b"mine") == 1


# ── power cuts ─────────────────────────────────────────────────────────────────────────────────────────────────────


LONG_RECORD = {"manifest": "m" * 3000}


def test_an_append_of_which_any_sectors_never_arrived_is_unfinished(path: Path) -> None:
    """A disk writes sectors in any order: the last one, with the newline, may be there without those before it."""
    before, data = written(path, RECORDS), written(path, [LONG_RECORD])
    sectors = range(len(before) // 512, (len(data) - 1) // 512 + 1)
    for chosen in range(1, 2 ** len(sectors)):
        lost = bytearray(data)
        for bit, sector in enumerate(sectors):
            start, end = max(sector * 512, len(before)), min((sector + 1) * 512, len(data))
            if chosen >> bit & 1:
                lost[start:end] = bytes(end - start)
        path.write_bytes(lost)
        with Journal.open(path) as journal:
            assert journal.records == numbered(RECORDS)
            assert journal.dropped_bytes == len(data) - len(before)
        assert path.read_bytes() == before


def test_a_record_that_lacks_a_sector_and_is_not_the_last_is_damage(path: Path) -> None:
    whole = written(path, [LONG_RECORD])
    data = bytearray(written(path, RECORDS))
    data[512:1024] = bytes(512)
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=":1: "):
        Journal.open(path)
    assert len(data) > len(whole)


def test_a_closed_journal_refuses(path: Path) -> None:
    journal = Journal.open(path)
    journal.close()
    journal.close()
    with pytest.raises(UnavailableError, match="closed"):
        journal.append({})


def test_without_permission_it_is_one_line_and_exit_8(path: Path) -> None:
    written(path, RECORDS)
    path.chmod(0o000)
    with as_nobody():
        for look in (read, Journal.open):
            with pytest.raises(UnavailableError, match="Permission denied") as caught:
                look(path)
            assert "\n" not in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "directory", tmp_path / "link", tmp_path / "missing" / "journal"):
        with pytest.raises(UnavailableError, match="cannot be opened"):
            Journal.open(path)
    assert not (tmp_path / "elsewhere").exists()


WRITER = """
import sys
from pathlib import Path
from deployctl.journal import Journal
with Journal.open(Path(sys.argv[1])) as journal:
    while True:
        print(journal.append({"filler": "x" * 3000}), flush=True)
"""


def test_a_killed_writer_leaves_every_record_that_it_acknowledged(path: Path) -> None:
    acknowledged = 0
    for round_ in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            for _ in range(1 + 5 * round_):
                acknowledged = int(writer.stdout.readline())
            writer.kill()
            for line in writer.stdout:
                if line.endswith("\n"):
                    acknowledged = int(line)
        found = len(read(path))
        assert acknowledged <= found <= acknowledged + 1
        with Journal.open(path) as journal:
            assert len(journal.records) == found
            acknowledged = found


THREE_APPENDS = """
import sys
from pathlib import Path
from deployctl.errors import UnavailableError
from deployctl.journal import Journal
with Journal.open(Path(sys.argv[1])) as journal:
    for number in range(3):
        try:
            print(journal.append({"number": number}))
        except UnavailableError as error:
            print("not written" if "could not be written" in str(error) else "not taken back")
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="failing one fsync needs strace")
@pytest.mark.parametrize(
    ("failing", "said", "kept"),
    [("4", ["1", "not written", "2"], [0, 2]), ("4+", ["1", "not written", "not taken back"], [0])],
    ids=["once", "for ever"],
)
def test_an_fsync_that_fails_acknowledges_nothing(
    path: Path, failing: str, said: list[str], kept: list[int]
) -> None:
    # Opening takes two fsyncs, the first append the third.
    command = ["strace", "-f", "-o", "/dev/null", "-e", f"inject=fsync:error=EIO:when={failing}"]
    run = subprocess.run(
        [*command, sys.executable, "-c", THREE_APPENDS, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "ptrace" in run.stderr.lower():
        pytest.skip("strace may not trace here")
    assert run.stdout.splitlines() == said
    assert [record["number"] for record in read(path)] == kept
