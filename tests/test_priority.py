"""Whether a process gets a processor, seen from outside."""

import contextlib
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deployctl.wire.priority import ENOUGH, Starvation

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists(), reason="the kernel counts waits in /proc/PID/schedstat"
)

SPIN = "while True: pass"
SLEEP = "import time; time.sleep(60)"
THREADS = """
import hashlib, threading
for _ in range(16):
    threading.Thread(target=hashlib.pbkdf2_hmac, args=("sha256", b"", b"", 10**9)).start()
"""
STEP_BACK = "from deployctl.wire.priority import step_back; assert step_back() == 'idle'\n"
WATCHED = 2.0


@pytest.fixture
def start():
    """Starts Python code, at everybody's priority or as one that goes last, and comes back when it runs."""
    with contextlib.ExitStack() as stack:

        def start(code, *, before="", processors=None):
            argv = [sys.executable, "-c", f"{before}print(flush=True)\n{code}"]
            process = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            process.stdout.readline()
            if processors:
                os.sched_setaffinity(process.pid, processors)
            return process

        yield start


def test_who_takes_short_turns_keeps_its_policy_and_its_nice_value(start):
    process = start(
        SLEEP,
        before="import os; os.nice(3)\nfrom deployctl.wire.priority import take_short_turns; take_short_turns()\n",
    )
    said = Path(f"/proc/{process.pid}/sched")
    if not said.exists() or "se.slice" not in said.read_text():
        pytest.skip("this kernel does not say how long a slice is")
    values = dict(re.findall(r"(?m)^(\S+) +: +(\S+)", said.read_text()))
    usual = dict(re.findall(r"(?m)^(\S+) +: +(\S+)", Path("/proc/self/sched").read_text()))
    assert (values["policy"], values["prio"]) == ("0", "123")
    if tuple(map(int, platform.release().split(".")[:2])) >= (6, 12):
        assert int(values["se.slice"]) == 200_000 < int(usual["se.slice"])


def sleeps(process):
    """In the sleep of a minute, and not for a moment: it is there at two looks without a turn in between."""
    task = Path(f"/proc/{process.pid}")
    turns = (task / "schedstat").read_text()
    time.sleep(0.2)
    state = (task / "stat").read_text().rpartition(") ")[2][0]
    return state == "S" and (task / "schedstat").read_text() == turns


def share_waited(process):
    """Of two seconds."""
    time.sleep(0.5)
    starvation = Starvation(process.pid)
    began = time.monotonic()
    while time.monotonic() < began + WATCHED:
        starvation.look(time.monotonic())
        time.sleep(0.05)
    return starvation.waited(began) / WATCHED


def test_who_goes_last_beside_one_that_never_pauses_is_starved(start):
    processor = {min(os.sched_getaffinity(0))}
    last = start(SPIN, before=STEP_BACK, processors=processor)
    start(SPIN, processors=processor)
    assert share_waited(last) > 0.5


def test_one_of_seven_on_a_processor_is_starved(start):
    processor = {min(os.sched_getaffinity(0))}
    one = start(SPIN, processors=processor)
    for _ in range(6):
        start(SPIN, processors=processor)
    assert share_waited(one) > ENOUGH


def test_who_wants_nothing_is_not_starved(start):
    processor = {min(os.sched_getaffinity(0))}
    asleep = start(SLEEP, before=STEP_BACK, processors=processor)
    while not sleeps(asleep):  # until then it wants to
        time.sleep(0.01)
    start(SPIN, processors=processor)
    assert share_waited(asleep) == 0


def test_who_takes_the_processors_up_is_not_starved_by_others(start):
    assert share_waited(start(THREADS)) < ENOUGH


def test_of_a_process_that_has_ended_nothing_is_said(start):
    process = start(SPIN)
    starvation = Starvation(process.pid)
    starvation.look(1.0)
    process.kill()
    process.wait()
    starvation.look(2.0)
    starvation.look(3.0)
    assert starvation.waited(0.0) == 0
