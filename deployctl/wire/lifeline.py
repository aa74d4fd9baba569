"""The tie of a child process to the parent that started it: when the parent dies, so does the child.

Only the kernel can promise this, because a parent that was killed tells nobody.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PARENT = "DEPLOYCTL_PARENT"


def child_environment() -> dict[str, str]:
    """The environment for a child that calls `die_with_parent`: it says who its parent is."""
    return {**os.environ, _PARENT: str(os.getpid())}


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL at the death of the parent; elsewhere than on Linux this does nothing.

    The kernel means the *thread* that forked, so a parent starts its children from a thread that stays. A parent that died while
    this process was still starting (a tenth of a second of imports) is told from the one in `child_environment`.
    """
    if sys.platform != "linux":
        return
    parent = int(os.environ.pop(_PARENT, os.getppid()))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # The parent may have died just before the kernel was asked; that death sends no signal any more.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
