"""A disk that is full: callers see nothing of it, nothing new begins, and the way back is open all the same.

The state directory is a file system of its own, of a few megabytes, that the test really fills.
"""

import errno
import os
import subprocess
from contextlib import contextmanager, suppress

import pytest
from service_rig import NAME, wait_for

from deployctl.core.rollout import UNWATCHED
from deployctl.errors import UnavailableError
from deployctl.journal import Journal
from deployctl.reserve import PIECE_BYTES, RESERVE_BYTES

CANARY = {"steps": [{"setWeight": 20}, {"setWeight": 50}], "minDwell": "300s"}


@contextmanager
def mounted(folder, megabytes):
    """A small file system there, until the end."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder):
    """Until not a byte fits any more; gives what takes the room."""
    ballast = folder / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with suppress(OSError), ballast.open("ab", buffering=0) as file:
        while True:
            file.write(b"x")
    return ballast


@pytest.fixture
def small(service_box):
    """A service at version 1 on a disk of a few megabytes."""
    with mounted(service_box.state, 24):
        yield service_box.up()
        service_box.stop()


def test_a_rollback_by_hand_is_written_down_and_done_and_nothing_new_begins(small):
    with small.traffic(100) as traffic:
        ramping = small.begin("canary", "ramp", small.manifest(canary=CANARY))
        traffic.wait_for_answers(20, of="2")
        ballast = fill(small.state)
        small.pause_and_resume_until_the_disk_is_full()
        rolled_back = small.run("rollback", NAME)
        assert rolled_back.code == 0, rolled_back
        ramping.communicate(timeout=30)
        assert ramping.returncode == 3
        assert small.events()[-1][0] == "rolled_back"
        fill(small.state)  # what is left of the room that was given back
        small.ramp(small.manifest("3", canary=CANARY)).refused(8)
        traffic.wait_for_answers(100)
        ballast.unlink()
        assert small.run("canary", "ramp", small.manifest("3", canary=CANARY), "--detach").code == 0
        traffic.wait_for_answers(20, of="3")
        assert small.home.journal.with_name("journal.reserve").stat().st_size == RESERVE_BYTES
    assert not traffic.failures


def test_a_promoted_version_goes_back_to_the_one_before_and_forth_by_name(small):
    with small.traffic(300) as traffic:
        small.begin("canary", "ramp", small.manifest(canary={"keepWarm": "5m"}))
        small.wait_for_event("promoted")
        fill(small.state)
        back = small.run("rollback", NAME)
        assert back.code == 0, back
        traffic.wait_for_answers(100, of="1")
        forth = small.run("rollback", NAME, "--to", "2")
        assert forth.code == 0, forth
        traffic.wait_for_answers(100, of="2")
    assert not traffic.failures
    kinds = [kind for kind, _ in small.events() if kind not in {"released", "finished"}]
    assert kinds[-4:] == ["promoted", "rolled_back", "started", "promoted"]


def test_a_candidate_that_nobody_can_watch_any_more_is_rolled_back_as_inconclusive(small):
    with small.traffic(300) as traffic:
        ramping = small.begin("canary", "ramp", small.manifest(canary=CANARY))
        traffic.wait_for_answers(20, of="2")
        fill(small.state)
        wait_for(ramping.poll, what="an end")
        assert ramping.returncode == 5
        traffic.wait_for_answers(100, of="1")
    assert not traffic.failures
    assert small.status()["reason"].startswith(UNWATCHED)


def test_room_is_kept_for_as_many_records_as_there_are_pieces_and_is_taken_again(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted(disk, 4), Journal.open(disk / "journal") as journal:
        journal.append({"first": True})
        ballast = fill(disk)
        record = {"text": "x" * (PIECE_BYTES - 8192)}
        for _ in range(RESERVE_BYTES // PIECE_BYTES):
            with pytest.raises(UnavailableError, match=r"No space left|disk full"):
                journal.append(record)
            journal.append(record, spare=True)
            fill(disk)
        with pytest.raises(UnavailableError, match=r"No space left|disk full"):
            journal.append(record, spare=True)
        ballast.unlink()
        journal.append(record)
        assert (disk / "journal.reserve").stat().st_blocks * 512 == RESERVE_BYTES


def test_a_disk_error_that_is_no_full_disk_takes_nothing_of_the_room(tmp_path, monkeypatch):
    with Journal.open(tmp_path / "journal") as journal:
        monkeypatch.setattr("deployctl.journal.os.write", failing(errno.EIO))
        with pytest.raises(UnavailableError, match="Input/output"):
            journal.append({"a": 1}, spare=True)
    assert (tmp_path / "journal.reserve").stat().st_size == RESERVE_BYTES


def failing(number):
    """A system call that fails like that."""

    def fail(*_):
        raise OSError(number, os.strerror(number))

    return fail
