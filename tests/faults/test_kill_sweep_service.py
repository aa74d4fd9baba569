"""The kill sweep with everything real: the supervisor, onnxruntime workers, the router, the controller, and callers who notice.

Strace kills one of the processes just before one of its calls while a verb is carried out. Long only: a point takes seconds.
"""

import itertools
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import pytest
from service_rig import NAME, Box, alive, wait_for
from sweep_faults import Strace, strace_works
from sweep_play import fold

from deployctl.errors import DeployctlError
from deployctl.wire.admin import AdminClient

SHORT_POINTS, LONG_POINTS = 0, 200
RATE = 20
HELD = {"steps": [20, 50], "minDwell": "0s", "bake": "0s", "stepTimeout": "300ms", "onInconclusive": "hold"}
VERBS = ("begin", "promote", "promote in full", "roll back")
CALLS = {
    "controller": (("write", 8), ("fsync", 3), ("sendmsg", 2), ("rename", 1), ("fchmod", 1)),
    "router": (("write", 12),),
    "worker of 1": (("write", 6), ("sendto", 2)),
    "worker of 2": (("write", 6), ("sendto", 2)),
    "supervisor": (("write", 4), ("sendmsg", 2)),
}
"""How many calls of each kind a process makes, about, while a verb is carried out; a point beyond them is not counted."""


@dataclass(frozen=True)
class Point:
    verb: str
    process: str
    call: str
    number: int

    def __str__(self):
        return f"{self.verb}: SIGKILL before {self.call} {self.number} of the {self.process}"


POINTS = [
    Point(verb, process, call, number)
    for verb, process in itertools.product(VERBS, CALLS)
    for call, times in CALLS[process]
    for number in range(1, times + 1)
]


@pytest.mark.timeout(7200)
def test_with_every_process_real_it_ends_as_its_journal_says_too(tmp_path, tally, long):
    if not long:
        pytest.skip("seconds for each point: `make faults`, or --long")
    if not strace_works():
        pytest.skip("needs strace, and leave to attach it")
    seen, wrong = Counter(), []
    for lap in range(3):
        box = Box(tmp_path / str(lap))
        try:
            box.up()
            for point in POINTS:
                try:
                    seen[point.process if _one(box, point) else "beyond the end"] += 1
                except AssertionError as error:
                    wrong.append(f"{point}: {error}")
                    box.close()
                    box = Box(tmp_path / f"{lap}-{len(wrong)}")
                    box.up()
        finally:
            box.close()
        tried = sum(seen.values()) - seen["beyond the end"]
        if tried >= LONG_POINTS:
            break
    tally.count(
        "kills in the whole service", tried, len(wrong), ", ".join(f"{n} of {p}" for p, n in seen.items())
    )
    assert not wrong, "\n".join(wrong)
    assert tried >= LONG_POINTS


def _one(box, point):
    """One point; whether its fault came. Raises AssertionError for what is wrong after it."""
    manifest = box.manifest(canary=HELD)
    text, path = manifest.read_text(), str(manifest)
    if point.verb != "begin":
        _post(box, "/v1/rollouts", manifest=text, path=path)
        wait_for(lambda: box.status()["waits_for"], what="a hold")
    with box.traffic(RATE) as traffic:
        traffic.wait_for_answers(2)
        pid = _pid(box, point.process)
        if not pid:
            return False  # no such worker yet
        tracing = Strace(pid, point.call, f"{point.call}:signal=KILL:when={point.number}")
        assert tracing.attached
        with suppress(DeployctlError):  # that it died over it is the point
            _carry_out(box, point.verb, text, path)
        with suppress(AssertionError):
            wait_for(lambda: not alive(pid), within=1.0)
        came = not alive(pid)
        tracing.end()
        if came and point.process == "supervisor":
            box.up()
        _as_the_journal_says(box)
        answer = _post(box, "/v1/rollback", reason="the end", to=None)
        assert answer["weight"] == 0, answer
        _as_the_journal_says(box)
    with box.traffic(RATE) as traffic:
        traffic.wait_for_answers(4)
    assert set(traffic.versions) == {"1"}, traffic.versions
    return came


def _carry_out(box, verb, text, path):
    match verb:
        case "begin":
            _post(box, "/v1/rollouts", manifest=text, path=path)
        case "promote":
            _post(box, "/v1/promote", again=False)
        case "promote in full":
            _post(box, "/v1/promote", again=False, full=True, reason="by hand")
        case "roll back":
            _post(box, "/v1/rollback", reason="", to=None)


def _post(box, target, /, *, again=True, **body):
    with AdminClient(box.home.admin_socket, NAME) as client:
        return client.post(target, {"by": "person:sweep", **body}, timeout=40.0, again=again)


def _pid(box, process):
    pids = box.status()["pids"]
    if process.startswith("worker"):
        return pids["workers"].get(process.rpartition(" ")[2])
    return pids["routers"][0] if process == "router" else pids[process]


def _as_the_journal_says(box):
    """The weights that the router reads back are those of the fold of the journal, within a bounded time."""

    def agree():
        try:
            status = box.status()
        except DeployctlError:
            return False
        split = fold(box.records()).split
        return (status["weight"], status["mirror"]) == (split.weight, split.mirror)

    wait_for(agree, within=20.0, what="the journal's weights in the router")
    service = fold(box.records())
    assert box.status()["live"] == service.live.version
