"""One controller at a time: by the kernel's lock on the service, by its lock on the journal, by the journal's length, by the fencing number.

Each of them is shown to hold, and then taken out: what it kept from happening happens then.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from service_rig import NAME, alive, wait_for
from two_controllers import FULL, NO_FENCE, NO_LENGTH, NO_LOCK, Service

from deployctl import journal
from deployctl.errors import DeployctlError, Exit, IntegrityError
from deployctl.statedir import running_pid


@pytest.fixture
def make_service(tmp_path):
    """A service that may have several controllers."""
    services = []

    def make(**settings):
        services.append(Service(tmp_path, **settings))
        return services[-1]

    yield make
    for service in services:
        service.close()


def _begun(service, *without):
    """A controller in mid-rollout: version 1 answers, version 2 is loaded."""
    controller = service.controller(1, *without)
    controller.wait_until_it_serves()
    with controller.client() as client:
        order = {"manifest": service.manifest.read_text(), "path": str(service.manifest), "by": "a test"}
        assert client.post("/v1/rollouts", order)["state"] == "started"
    assert service.version() == "1"
    return controller


def _overtaken(make_service, *old_without, router_without=()):
    """An old controller that was stopped and wakes up with an order in its hands, after a new one has promoted."""
    service = make_service(router_without=router_without)
    old = _begun(service, NO_LOCK, *old_without)
    old.stop()
    late = ThreadPoolExecutor(max_workers=1)
    answer = late.submit(_late_rollback, old)
    late.shutdown(wait=False)
    new = service.controller(2, NO_LOCK)
    new.wait_until_it_serves()
    with new.client() as client:
        assert client.post("/v1/promote", FULL)["weight"] == 100
    assert service.version() == "2"
    before = service.box.home.journal.read_bytes()
    old.wake()
    return service, answer, before


def _late_rollback(controller):
    with controller.client() as client:
        try:
            return client.post("/v1/rollback", {"by": "a test", "reason": "late", "to": None}, again=False)
        except DeployctlError as error:
            return error


def test_while_an_old_controller_is_alive_a_new_one_does_not_begin(make_service):
    """Not even one that is stopped: what it had begun to write may still come."""
    service = make_service()
    old = _begun(service)
    old.stop()
    new = service.controller(2)
    wait_for(lambda: _waits_for_the_lock(new.process.pid), what="the new one at the journal's lock")
    assert new.process.poll() is None
    assert new.told == [], "it asks for nothing before it knows what is so"
    old.process.kill()  # a stopped process ends by that, too
    old.process.wait()
    new.wait_until_it_serves()
    with new.client() as client:
        assert client.post("/v1/promote", FULL)["weight"] == 100
    assert service.version() == "2"


def _waits_for_the_lock(pid):
    """Whether it has the journal open, and so has asked for its lock."""
    return any(str(fd.resolve()).endswith(f"/{NAME}/journal") for fd in Path(f"/proc/{pid}/fd").iterdir())


def test_an_old_controller_that_wakes_up_is_refused_by_the_length_of_the_journal(make_service):
    """The second line, where the kernel keeps no locks: it neither writes nor moves the router."""
    service, answer, before = _overtaken(make_service)
    refusal = answer.result(60)
    assert isinstance(refusal, IntegrityError)
    assert re.search(r"it has \d+ bytes where \d+ were written", str(refusal)), refusal
    assert service.box.home.journal.read_bytes() == before
    assert service.version() == "2"


def test_an_old_controller_that_writes_all_the_same_is_refused_by_the_router(make_service):
    """The twin without lock and length spoils the journal, which is noticed; its fencing number keeps it from the callers."""
    service, _answer, _before = _overtaken(make_service, NO_LENGTH)
    wait_for(lambda: service.wire.refusals, what="an order that is refused")
    assert service.wire.refusals[0] == "fence 1 is older than 2"
    with pytest.raises(IntegrityError):
        journal.read(service.box.home.journal)
    assert service.version() == "2"


def test_without_a_fencing_number_the_old_controller_moves_the_router(make_service):
    """This is what it is for."""
    service, _answer, _before = _overtaken(make_service, NO_LENGTH, router_without=(NO_FENCE,))
    wait_for(
        lambda: service.version() == "1", what="version 1 for callers, against the journal of the new one"
    )


# ── supervisors ────────────────────────────────────────────────────────────────────────────────────────────────────

MANY_SUPERVISORS = """
import os, sys
from deployctl import supervisor
from deployctl.statedir import ServiceHome
number, *arguments = sys.argv[1:]
{without}
children = {{}}
start, go = os.pipe()
for _ in range(int(number)):
    if (pid := os.fork()) == 0:
        os.close(go)
        os.setsid()
        os.read(start, 1)
        sys.argv = ["supervisor", *arguments]
        os._exit(supervisor.main())
    children[pid] = None
os.close(go)  # at once
print(*children, flush=True)
while children:
    pid, status = os.wait()
    del children[pid]
    print(pid, os.waitstatus_to_exitcode(status), flush=True)
"""
NO_SERVICE_LOCK = "ServiceHome._flock = lambda self, fd: None"


class ManySupervisors:
    """Supervisors of one service that were all started in the same moment."""

    def __init__(self, box, number, without=""):
        self._errors = open(box.folder / "supervisors.err", "w+")  # noqa: PTH123, SIM115 - closed in `close`
        arguments = ["--manifest", box.manifest(), "--state", box.home.path, "--listen", "127.0.0.1:0"]
        argv = [sys.executable, "-c", MANY_SUPERVISORS.format(without=without), number, *arguments]
        self._process = subprocess.Popen(
            [*map(str, argv)], env=box.environment, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.pids = [int(pid) for pid in self._process.stdout.readline().split()]
        self.codes = {}

    def wait_for(self, number):
        """The exit codes of the first so many that end."""
        while len(self.codes) < number:
            pid, code = map(int, self._process.stdout.readline().split())
            self.codes[pid] = code
        return self.codes

    def said(self):
        self._errors.seek(0)
        return self._errors.read()

    def close(self):
        for pid in set(self.pids) - self.codes.keys():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.communicate()
        self._errors.close()


@pytest.fixture
def many(service_box):
    """Starts many supervisors in the box."""
    started = []

    def start(*more, **settings):
        started.append(ManySupervisors(service_box, *more, **settings))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_of_ten_supervisors_at_once_one_starts_the_service(service_box, many, tally):
    """Also after a reboot, when the file of the lock has the number of a process that lives, and is another."""
    service_box.home.create()
    service_box.home.lock_file.write_text(f"{os.getpid()}\n")
    ten = many(10)
    assert set(ten.wait_for(9).values()) == {Exit.CONFLICT}
    assert ten.said().count("runs already") == 9
    (winner,) = set(ten.pids) - ten.codes.keys()
    assert running_pid(service_box.home) == winner
    status = service_box.status()
    assert (status["live"], status["pids"]["supervisor"]) == ("1", winner)
    tally.count("supervisors at once, one service", 10)

    # A supervisor that is killed while its controller is stopped leaves nobody behind, and the next one starts at once.
    stopped = status["pids"]["controller"]
    service_box.kill(stopped, signal.SIGSTOP)
    service_box.kill(winner)
    more = many(3)
    more.wait_for(2)
    wait_for(service_box.home.admin_socket.exists)
    assert service_box.status()["pids"]["controller"] != stopped
    assert not alive(stopped)
    kinds = [record["type"] for record in journal.read(service_box.home.journal)]
    assert kinds == ["served"]


def test_without_the_lock_more_than_one_supervisor_starts(service_box, many):
    """This is what it is for: they would answer on ports and sockets of their own."""
    service_box.home.create()
    both, begun = many(2, without=NO_SERVICE_LOCK), set()

    def both_began():
        """One may end over the files of the other, which it then shares, but not because the service runs already."""
        begun.update(pid for pid in both.pids if _children(pid) or not alive(pid))
        return len(begun) == len(both.pids)

    wait_for(both_began, what="two supervisors that both begin")
    assert "runs already" not in both.said()


def _children(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return []
