"""The machine: whether deployctl can run here at all, and what it can promise here."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from deployctl import __version__
from deployctl.doctor.check import Check, examined, problem, warning
from deployctl.rehearsal import CODE
from deployctl.views.figures import size
from deployctl.wire.priority import take_short_turns

OLDEST_PYTHON = (3, 11)
IMPORT_SECONDS = 30.0
CONNECTIONS = 1024
"""Callers that one router takes at a time, where the manifest says nothing else."""

FILES_BESIDE = 1024 + 256
"""For its workers, its orders and callers that are on their way."""

LEAST_MEMORY = 512 << 20
"""Bytes: supervisor, controller, router and a worker with a small model take 170 MiB, a candidate beside them 70 MiB more."""

SHORT_TURNS_SINCE = (6, 12)

_PR_GET_PDEATHSIG = 2
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*>=\s*([0-9.]+)")
_CGROUP = Path("/sys/fs/cgroup")


def machine_checks() -> Iterator[Check]:
    """All that no service has to do with, the clock aside."""
    yield from examined("python", _python)
    yield from examined("packages", _packages)
    yield from examined("code", _code)
    yield from examined("kernel", _kernel)
    yield from examined("open-files", open_files)
    yield from examined("memory", _memory)


def _python() -> Iterator[Check]:
    name, version = platform.python_implementation(), platform.python_version()
    found = f"{name} {version} at {sys.executable}, deployctl {__version__}"
    if sys.version_info < OLDEST_PYTHON:
        yield problem(
            "python",
            found,
            f"install Python {'.'.join(map(str, OLDEST_PYTHON))} or newer, and deployctl with it",
        )
    elif name != "CPython":
        yield warning("python", found, "deployctl is tested with CPython only")
    else:
        yield Check("python", found)


def _packages() -> Iterator[Check]:
    try:
        wanted = requirements(metadata.requires("deployctl") or [])
    except metadata.PackageNotFoundError:
        yield warning(
            "packages",
            "deployctl is not installed as a package, so what it needs is not known here",
            "install it: pip install .",
        )
        return
    found, bad = [], []
    for name, least in wanted.items():
        try:
            has = metadata.version(name)
        except metadata.PackageNotFoundError:
            bad.append(f"{name} is missing, {least} or newer is needed")
            continue
        found.append(f"{name} {has}")
        if _numbers(has) < _numbers(least):
            bad.append(f"{name} is {has}, {least} or newer is needed")
    if bad:
        yield problem(
            "packages", ", ".join(bad), f"install them for {sys.executable}: pip install --upgrade deployctl"
        )
    else:
        yield Check("packages", ", ".join(sorted(found)))


def requirements(written: list[str]) -> dict[str, str]:
    """The oldest version of each package that will do, extras left out."""
    found = (_REQUIREMENT.fullmatch(one.strip()) for one in written if ";" not in one)
    return {match[1]: match[2] for match in found if match is not None}


def _numbers(version: str) -> tuple[int, ...]:
    """`1.26.0rc1` as (1, 26, 0)."""
    return tuple(int(number) for number in re.match(r"[0-9.]*", version)[0].split(".") if number)  # type: ignore[index]  # matches always


def _code() -> Iterator[Check]:
    """Whether each process's code can be loaded; in a process of its own, as a package for another processor ends it."""
    code = f"import {', '.join(CODE)}"
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and modules
            [sys.executable, "-B", "-c", code],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=IMPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield problem(
            "code", f"was not loaded within {IMPORT_SECONDS:g} s", "look at the disk that Python is on"
        )
        return
    if done.returncode == 0:
        yield Check("code", "what every process of a service imports can be imported")
        return
    last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
    if done.returncode < 0:
        last = f"ended by signal {-done.returncode} (4: a package for another processor than this one)"
    yield problem(
        "code", f"cannot be loaded: {last}", "install deployctl anew, in a virtual environment of its own"
    )


def _kernel() -> Iterator[Check]:
    system, release = platform.system(), platform.release()
    name = f"{system} {release} ({platform.machine()})"
    if system != "Linux":
        yield warning(
            "kernel", f"{name} is not Linux", "run services on Linux: elsewhere they were not tested"
        )
        return
    missing = [*_missing()]
    if missing:
        what, advice = zip(*missing, strict=True)
        yield warning("kernel", f"{name}: {'; '.join(what)}", "; ".join(advice))
        return
    version = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    if version >= SHORT_TURNS_SINCE and take_short_turns():
        yield Check("kernel", f"{name}: all that deployctl uses")
    else:
        told = "the router gets no short turns, so a candidate that computes for long may delay callers"
        yield Check("kernel", f"{name}: {told} (Linux 6.12 or newer gives them)")


def _missing() -> Iterator[tuple[str, str]]:
    if not Path("/proc/self/stat").exists():
        yield "/proc is not mounted", "mount it: without it nobody can see what a service's processes do"
    elif not Path("/proc/self/schedstat").exists():
        yield (
            "it does not count how long processes wait for a processor (no /proc/self/schedstat)",
            "on a busy machine a shadow's late copies then count against its version: leave it room, or take a kernel with CONFIG_SCHED_INFO",
        )
    signal_at_death = ctypes.c_int()
    if ctypes.CDLL(None).prctl(_PR_GET_PDEATHSIG, ctypes.byref(signal_at_death), 0, 0, 0):
        yield (
            "children cannot be tied to their parent (prctl)",
            "let the container call prctl(PR_SET_PDEATHSIG)",
        )
    one, other = socket.socketpair()
    with one, other:
        try:
            one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        except OSError:
            yield "who calls on a Unix socket is not told (SO_PEERCRED)", "run services on another kernel"


def open_files(callers: int = CONNECTIONS) -> Iterator[Check]:
    """Whether a router may keep so many callers."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = callers + FILES_BESIDE
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        told = "no limit" if hard == resource.RLIM_INFINITY else f"{hard:,} for each process"
        yield Check("open-files", told)
        return
    yield warning(
        "open-files",
        f"a process may open {hard:,} files, and a router that has all its callers needs {wanted:,}",
        f"raise the hard limit: ulimit -Hn {wanted}, or LimitNOFILE= of the unit that starts the service",
    )


def _memory() -> Iterator[Check]:
    free = free_memory()
    if free is None:
        yield Check("memory", "this system does not say how much is free")
    elif free < LEAST_MEMORY:
        yield warning(
            "memory",
            f"{size(free)} are free; a service with two small versions takes about 240 MiB, and more with larger models",
            "end something else, or bound the workers by spec.service.limits.workerMemory",
        )
    else:
        yield Check("memory", f"{size(free)} are free")


def free_memory() -> int | None:
    """Bytes that can be had, of the machine or of the container that we are in; None where nobody says so."""
    found: list[int] = []
    with suppress(OSError, AttributeError):
        match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        found += [int(match[1]) << 10] if match else []
    with suppress(OSError, ValueError):  # "max": no limit
        limit, used = (int((_CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        found.append(max(0, limit - used))
    return min(found, default=None)


def uid_words(uid: int) -> str:
    return f"uid {uid}{' (you)' if uid == os.geteuid() else ''}"
