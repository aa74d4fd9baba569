"""What ten thousand idle connections cost a router's memory and its other callers, beside nginx where that is installed.

    python benchmarks/connections.py [--connections 10000]

Prints a table and writes benchmarks/results/connections.json; ends with 1 when a number misses its target. See README.md here.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tests" / "service")]

from service_rig import Box, wait_for  # noqa: E402 - found by the line above

MOST_BYTES = 100_000_000
CALLS = 500
REQUEST = b"GET /v2/health/ready HTTP/1.1\r\nhost: benchmark\r\n\r\n"
NGINX = """
worker_processes 1; worker_rlimit_nofile {files}; daemon off; pid {folder}/pid; error_log {folder}/error;
events {{ worker_connections {slots}; }}
http {{
  access_log off; keepalive_timeout 600s; keepalive_requests 1000000;
  {paths}
  server {{ listen 127.0.0.1:{port}; location / {{ return 200 '{{"ready":true}}'; }} }}
}}
"""


@dataclass
class Measured:
    """One server: bytes of its memory (PSS) with nobody and with everybody connected, and milliseconds of one more caller."""

    name: str
    connections: int
    before: int
    after: int
    p50: tuple[float, float]
    p99: tuple[float, float]

    @property
    def more(self) -> int:
        return self.after - self.before


@contextmanager
def deployctl(connections: int) -> Iterator[tuple[str, int, list[int]]]:
    with tempfile.TemporaryDirectory(prefix="dctl-connections") as folder:
        box = Box(Path(folder), {"limits": {"connections": connections + 16}})
        try:
            box.up()
            host, port = box.url.removeprefix("http://").split(":")
            yield host, int(port), box.status()["pids"]["routers"]
        finally:
            box.close()


@contextmanager
def nginx(connections: int) -> Iterator[tuple[str, int, list[int]]]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="dctl-nginx") as folder:
        temporary = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = " ".join(f"{name}_temp_path {folder}/{name};" for name in temporary)
        config = Path(folder) / "nginx.conf"
        config.write_text(
            NGINX.format(
                folder=folder, port=port, files=connections + 256, slots=2 * connections, paths=paths
            )
        )
        process = subprocess.Popen(["nginx", "-c", str(config)], stderr=subprocess.DEVNULL)
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            workers = wait_for(
                lambda: [int(pid) for pid in children.read_text().split()], what="nginx's worker"
            )
            wait_for(lambda: _answers(port), what="nginx")
            yield "127.0.0.1", port, workers
        finally:
            process.terminate()
            process.wait(10)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def measure(name: str, host: str, port: int, pids: list[int], connections: int) -> Measured:
    """Each connection has had an answer before it falls idle: what is kept for it then is there."""
    one_more = http.client.HTTPConnection(host, port)
    alone = latencies(one_more)
    before = sum(map(pss, pids))
    with ExitStack() as stack:
        for _ in range(connections):
            caller = stack.enter_context(socket.create_connection((host, port)))
            caller.sendall(REQUEST)
            assert caller.recv(4096).startswith(b"HTTP/1.1 200"), "a caller was turned away"
        beside = latencies(one_more)
        after = sum(map(pss, pids))
    one_more.close()
    return Measured(name, connections, before, after, *zip(alone, beside, strict=True))


def latencies(caller: http.client.HTTPConnection) -> tuple[float, float]:
    """p50 and p99 of one caller, in milliseconds."""
    taken = []
    for _ in range(CALLS):
        began = time.perf_counter()
        caller.request("GET", "/v2/health/ready")
        caller.getresponse().read()
        taken.append(1000 * (time.perf_counter() - began))
        time.sleep(0.002)  # over several of the router's looks at its clock
    return statistics.median(taken), statistics.quantiles(taken, n=100)[98]


def pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/{pid}/smaps_rollup says no Pss")


def row(one: Measured) -> str:
    each = one.more / one.connections / 1024
    (p50, p50_beside), (p99, p99_beside) = one.p50, one.p99
    return (
        f"{one.name:<12}{one.before / 1e6:7.1f} MB {one.after / 1e6:8.1f} MB {each:7.2f} KiB each"
        f"   p50 {p50:.2f} -> {p50_beside:.2f} ms   p99 {p99:.2f} -> {p99_beside:.2f} ms"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="What idle connections cost.")
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "connections.json")
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    servers = {"deployctl": deployctl} | ({"nginx": nginx} if shutil.which("nginx") else {})
    found = []
    for name, server in servers.items():
        with server(given.connections) as (host, port, pids):
            found.append(measure(name, host, port, pids, given.connections))
        print(row(found[-1]))
    holds = found[0].more <= MOST_BYTES
    print(
        f"deployctl: +{found[0].more / 1e6:.0f} MB for {given.connections} connections, at most {MOST_BYTES / 1e6:.0f}: {'ok' if holds else 'MISSED'}"
    )
    machine = {"cores": os.cpu_count(), "kernel": platform.release(), "load": os.getloadavg()[0]}
    document = {
        "machine": machine,
        "servers": [asdict(one) | {"more": one.more} for one in found],
        "holds": holds,
    }
    given.results.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
