"""wrk as the callers: one thread on the first core, closed loop; and what the processes of the other core used meanwhile."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.dataplane.models import Workload

CALLERS, SERVERS = 0, 1
"""The cores that wrk and a stack are pinned to."""

_PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h
_TICKS = os.sysconf("SC_CLK_TCK")
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


@dataclass(frozen=True)
class Window:
    """What wrk saw in one window. Latencies in ms; `cpu` in µs of all processes of the stack for each request, `stages` by program, in it
    and in the kernel for it.
    """

    rps: float
    p50: float
    p99: float
    failed: int
    cpu: float
    stages: dict[str, tuple[float, float]] = field(default_factory=dict)


def script(workload: Workload, directory: Path) -> Path:
    """The request as wrk's Lua."""
    body = directory / f"{workload.name}.body"
    body.write_bytes(workload.body)
    headers = "".join(f'wrk.headers["{name}"] = "{value}"\n' for name, value in workload.headers.items())
    lua = directory / f"{workload.name}.lua"
    lua.write_text(
        f'wrk.method = "POST"\nlocal file = io.open("{body}", "rb")\nwrk.body = file:read("*a")\nfile:close()\n{headers}'
    )
    return lua


def window(url: str, workload: Workload, connections: int, seconds: float) -> Window:
    """One window of load. Raises subprocess.CalledProcessError if wrk fails."""
    with tempfile.TemporaryDirectory() as directory:
        lua = script(workload, Path(directory))
        command = ["taskset", "-c", str(CALLERS), "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s"]
        before = processor_time()
        said = subprocess.run(
            [*command, "--latency", "-s", str(lua), url], capture_output=True, text=True, check=True
        ).stdout
        after = processor_time()
    used = {
        name: (user - before.get(name, (0.0, 0.0))[0], system - before.get(name, (0.0, 0.0))[1])
        for name, (user, system) in after.items()
    }
    return _read(said, used)


def _read(said: str, used: dict[str, tuple[float, float]]) -> Window:
    requests = int(_found(r"(\d+) requests in", said))
    failed = sum(int(number) for number in re.findall(r"(?:connect|read|write|timeout) (\d+)", said))
    failed += int(_found(r"Non-2xx or 3xx responses: (\d+)", said, "0"))
    return Window(
        rps=float(_found(r"Requests/sec:\s+([\d.]+)", said)),
        p50=_milliseconds(_found(r"50%\s+([\d.]+\w+)", said)),
        p99=_milliseconds(_found(r"99%\s+([\d.]+\w+)", said)),
        failed=failed,
        cpu=sum(map(sum, used.values())) / max(requests, 1) * 1e6,
        stages={
            name: (user / max(requests, 1) * 1e6, system / max(requests, 1) * 1e6)
            for name, (user, system) in used.items()
        },
    )


def _found(pattern: str, text: str, default: str | None = None) -> str:
    match = re.search(pattern, text)
    if match is None:
        if default is None:
            raise ValueError(f"wrk said nothing of {pattern}: {text}")
        return default
    return match[1]


def _milliseconds(text: str) -> float:
    match = re.fullmatch(r"([\d.]+)([a-z]+)", text)
    assert match is not None, text
    return float(match[1]) * _UNITS[match[2]]


def adopt_orphans() -> None:
    """From now on whatever we started stays below us, also where its parent ends: nobody else's process is ever taken for one of ours."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def pinned() -> list[int]:
    """The processes below this one that may run on the servers' core alone: those of a stack."""
    children: dict[int, list[int]] = {}
    for process in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        with suppress(OSError):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
            children.setdefault(int(fields[1]), []).append(process)
    below, found = [os.getpid()], []
    while below:
        for process in children.get(below.pop(), []):
            below.append(process)
            with suppress(OSError):
                if os.sched_getaffinity(process) == {SERVERS}:
                    found.append(process)
    return found


def processor_time() -> dict[str, tuple[float, float]]:
    """Seconds that the processes of the stack have used, themselves and in the kernel, by program (ours by module)."""
    used: dict[str, tuple[float, float]] = {}
    for process in pinned():
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
            words = Path(f"/proc/{process}/cmdline").read_text().split("\0")
        except OSError:
            continue
        if fields[0] != "Z":
            name = next((word for word in words if word.startswith("deployctl.")), Path(words[0]).name)
            user, system = used.get(name, (0.0, 0.0))
            used[name] = (user + int(fields[11]) / _TICKS, system + int(fields[12]) / _TICKS)
    return used


def memory() -> float:
    """PSS in MB of the processes of the stack."""
    kibibytes = 0
    for process in pinned():
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        kibibytes += int(_found(r"\nPss:\s+(\d+)", text, "0"))
    return kibibytes / 1024
