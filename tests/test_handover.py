"""What one release leaves for the next: read with patience, and taken back when nobody comes."""

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from deployctl.errors import UnavailableError
from deployctl.handover import SIGNALS, Adopted, Handover, Held, become, decoded, encoded


def handover(*descriptors: int) -> Handover:
    lock, data, admin, orders = descriptors or (3, 4, 5, 6)
    worker = Held(12, {"id": "a", "version": "1"}, "ready", {"ready": {}}, 2)
    return Handover(
        "0.1.0", 1, 7, lock, data, admin, orders, Held(10), [Held(11, {"timeout": 1})], [worker], []
    )


def test_what_is_left_is_what_is_found() -> None:
    assert decoded(encoded(handover())) == handover()


def test_a_release_that_leaves_more_is_understood() -> None:
    document = asdict(handover()) | {"added_later": 1}
    document["workers"][0]["added_later"] = 2
    assert decoded(json.dumps(document).encode()) == handover()


@pytest.mark.parametrize("router", [Held(11, {"timeout": 1}), None])
def test_a_release_that_knows_of_one_router_only_is_understood(router: Held | None) -> None:
    document = asdict(handover())
    del document["routers"]
    document["router"] = asdict(router) if router else None
    assert decoded(json.dumps(document).encode()).routers == ([router] if router else [])


@pytest.mark.parametrize("letter", [b"", b"{}", b"[]", b'{"format": 1}', json.dumps({"format": 2}).encode()])
def test_what_no_release_that_we_know_has_written_is_refused_in_one_line(letter: bytes) -> None:
    with pytest.raises(UnavailableError) as refused:
        decoded(letter)
    assert "\n" not in str(refused.value)


def test_where_the_other_release_cannot_be_started_everything_is_as_it_was(tmp_path: Path) -> None:
    pipes = [*os.pipe(), *os.pipe()]
    before = [fcntl.fcntl(fd, fcntl.F_GETFD) for fd in pipes]
    with pytest.raises(UnavailableError, match="no-python"):
        become([str(tmp_path / "no-python"), "-m", "deployctl.supervisor"], handover(*pipes), tmp_path)
    assert [fcntl.fcntl(fd, fcntl.F_GETFD) for fd in pipes] == before
    assert not set(SIGNALS) & signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert list(tmp_path.iterdir()) == []
    for fd in pipes:
        os.close(fd)


def test_a_child_of_the_code_before_is_waited_for_and_reaped() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    adopted = Adopted(child.pid)
    assert adopted.returncode is None

    async def end() -> int:
        waiting = asyncio.create_task(adopted.wait())
        adopted.terminate()
        return await waiting

    assert asyncio.run(end()) == -signal.SIGTERM
    with pytest.raises(ChildProcessError):
        os.waitpid(child.pid, os.WNOHANG)
    adopted.kill()  # nobody is there any more, and nobody else is meant
    child.returncode = 0


def test_a_child_that_was_reaped_before_has_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert Adopted(child.pid).returncode == 0
