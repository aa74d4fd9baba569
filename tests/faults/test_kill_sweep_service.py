"""The kill sweep with everything real: the supervisor, onnxruntime workers, the router, the controller, and callers who notice.

Strace kills one of the processes just before one of its calls while a verb is carried out. Long only: a point takes seconds.
"""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import pytest
from service_rig import NAME, Box, alive, wait_for
from sweep_faults import Strace, strace_works
from sweep_play import fold

from deployctl.errors import DeployctlError
from deployctl.wire.admin import AdminClient

# httpcore leaves a socket with which it could not connect to the collector, and says so only there.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)

POINTS = 200
RATE = 20
HELD = {"steps": [20, 50], "minDwell": "0s", "bake": "0s", "stepTimeout": "300ms", "onInconclusive": "hold"}
VERBS = ("begin", "pause", "resume", "promote", "promote in full", "roll back")
CALLS = {
    "controller": (("write", 10), ("fsync", 3)),
    "router": (("write", 10),),
    "worker of 1": (("write", 4),),
    "worker of 2": (("write", 4),),
    "supervisor": (("sendto", 4),),
}
"""How many calls a process makes, about, while a verb is carried out; a kill before one beyond them is not counted."""


@dataclass(frozen=True)
class Kill:
    """SIGKILL just before the n-th call of this name that a process makes once a verb is asked for."""

    process: str
    call: str
    number: int


def kills(lap):
    """The verbs of one rollout, each with a kill: one process after the other, for one that ends again and again is started late."""
    for at, verb in enumerate(VERBS):
        process = list(CALLS)[(lap + at) % len(CALLS)]
        numbers = [(call, number) for call, times in CALLS[process] for number in range(1, times + 1)]
        yield verb, Kill(process, *numbers[lap // len(CALLS) % len(numbers)])


@pytest.mark.timeout(7200)
def test_with_every_process_real_it_ends_as_its_journal_says_too(tmp_path, tally, long):
    if not long:
        pytest.skip("seconds for each kill: `make faults`, or --long")
    if not strace_works():
        pytest.skip("needs strace, and leave to attach it")
    came, beyond, wrong = Counter(), 0, []
    box = Box(tmp_path).up()
    try:
        for lap in range(2 * POINTS):
            for verb, kill in kills(lap):
                try:
                    if _one(box, verb, kill):
                        came[kill.process] += 1
                    else:
                        beyond += 1
                except AssertionError as error:
                    wrong.append(f"{verb}, {kill}: {error}")
                    box.stop()
                    box.up()
            _roll_back(box)
            if came.total() >= POINTS:
                break
    finally:
        box.close()
    words = ", ".join(f"{times} of the {process}" for process, times in came.items())
    tally.count(
        "kills in the whole service", came.total(), len(wrong), f"{words}; {beyond} more lay beyond the end"
    )
    assert not wrong, "\n".join(wrong)
    assert came.total() >= POINTS


def _one(box, verb, kill):
    """One kill while one verb is carried out; whether it came. Raises AssertionError for what is wrong after it."""
    manifest = box.manifest(canary=HELD)
    text, path = manifest.read_text(), str(manifest)
    if verb not in {"begin", "roll back"}:
        _post(box, "/v1/rollouts", manifest=text, path=path)  # follows the one that runs, if it does
        if verb.startswith("promote"):
            if box.status()["phase"] == "paused":
                _post(box, "/v1/resume")  # the supervisor may have been killed over it
            wait_for(lambda: _holds(box, text, path), what=f"a hold: {box.status()}")
    with box.traffic(RATE) as traffic:
        traffic.wait_for_answers(2)
        pid = _pid(box, kill.process)
        if not pid:
            return False  # no such worker now
        tracing = Strace(pid, kill.call, f"{kill.call}:signal=KILL:when={kill.number}")
        assert tracing.attached
        with suppress(DeployctlError):  # that it died over it is the point
            _carry_out(box, verb, text, path)
        with suppress(AssertionError):
            wait_for(lambda: not alive(pid), within=0.5)
        came = not alive(pid)
        tracing.end()
        if came and kill.process == "supervisor":
            box.up()
        _as_the_journal_says(box)
    return came


def _holds(box, text, path):
    """Whether there is something to promote. A candidate whose worker was killed five times in a row is rolled back: then from the start."""
    status = box.status()
    if status["phase"] in {"rolled_back", "retired"}:
        _post(box, "/v1/rollouts", manifest=text, path=path)
        return False
    return status["waits_for"] or status["phase"] == "promoted"


def _roll_back(box):
    """A person's rollback ends at weight 0, and version 1 answers everybody."""
    answer = _post(box, "/v1/rollback", reason="the end", to=None)
    assert answer["weight"] == 0, answer
    _as_the_journal_says(box)
    with box.traffic(RATE) as traffic:
        traffic.wait_for_answers(4)
    assert set(traffic.versions) == {"1"}, traffic.versions


def _carry_out(box, verb, text, path):
    match verb:
        case "pause" | "resume":
            _post(box, f"/v1/{verb}")
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
