"""A child never outlives its parent unnoticed, also not one that was still starting when the parent died."""

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a parent's death")

CHILD = """
import sys
from deployctl.wire.lifeline import die_with_parent
die_with_parent()
print("alive", flush=True)
sys.stdin.read()
"""
PARENT = f"""
import subprocess, sys
from deployctl.wire.lifeline import child_environment
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdin=subprocess.PIPE, env=child_environment())
child.wait()
"""


def test_a_child_dies_with_its_parent():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"alive\n"
        parent.kill()
        assert parent.stdout.read() == b"", "the pipe ends when the child, which holds it too, has ended"


def test_a_child_whose_parent_died_while_it_was_starting_ends_at_once():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    environment = {**os.environ, "DEPLOYCTL_PARENT": str(gone.pid)}
    child = subprocess.run(
        [sys.executable, "-c", CHILD], env=environment, stdin=subprocess.DEVNULL, check=False
    )
    assert child.returncode == -signal.SIGKILL


def test_the_name_of_the_parent_is_not_handed_on():
    told = "from deployctl.wire.lifeline import die_with_parent; die_with_parent(); import os; print('DEPLOYCTL_PARENT' in os.environ)"
    environment = {**os.environ, "DEPLOYCTL_PARENT": str(os.getpid())}
    child = subprocess.run(
        [sys.executable, "-c", told], env=environment, capture_output=True, text=True, check=True
    )
    assert child.stdout == "False\n"
