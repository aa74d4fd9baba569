"""The demo's models, manifests and traffic: what the demo claims of them must be so."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from deployctl.cli import demo
from deployctl.errors import Exit, InvalidError

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "examples" / "digits"
MANIFESTS = [ROOT / "manifests" / f"digits-v{version}.yaml" for version in (2, 3, 4)]
CLASSES = 10


@pytest.fixture(scope="module")
def holdout():
    return runpy.run_path(str(DIGITS / "rows.py"))["holdout_rows"]()


def session_of(path: Path):
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.log_severity_level = 4
    return InferenceSession(path, options, providers=["CPUExecutionProvider"])


def answers(path: Path, pixels):
    (probabilities,) = session_of(path).run(["probabilities"], {"pixels": pixels})
    return probabilities


def share_right(path: Path, rows) -> float:
    return float((answers(path, rows.pixels).argmax(1) == rows.labels).mean())


class TestModels:
    @pytest.mark.parametrize("version", [1, 2, 3, 4])
    def test_all_versions_have_one_signature(self, version):
        session = session_of(DIGITS / "models" / f"v{version}.onnx")
        (taken,), (given,) = session.get_inputs(), session.get_outputs()
        assert (taken.name, taken.type, taken.shape) == ("pixels", "tensor(float)", ["batch", 64])
        assert (given.name, given.type, given.shape) == ("probabilities", "tensor(float)", ["batch", CLASSES])

    @pytest.mark.parametrize("version", [1, 2, 3, 4])
    def test_every_version_survives_a_warm_up_on_zeros(self, version):
        import numpy as np

        for rows in (1, 3):
            warm = answers(DIGITS / "models" / f"v{version}.onnx", np.zeros((rows, 64), np.float32))
            assert warm.shape == (rows, CLASSES)
            assert np.isfinite(warm).all()

    @pytest.mark.parametrize("version", [1, 2, 3, 4])
    def test_a_model_is_small_enough_to_be_committed(self, version):
        assert (DIGITS / "models" / f"v{version}.onnx").stat().st_size < 300_000

    def test_version_1_is_fair_and_seldom_unsure(self, holdout):
        probabilities = answers(DIGITS / "models/v1.onnx", holdout.pixels)
        assert 0.88 <= share_right(DIGITS / "models/v1.onnx", holdout) <= 0.92
        assert (probabilities.max(1) < 0.2).mean() <= 0.002

    def test_version_2_reads_at_least_two_points_more_than_version_1(self, holdout):
        v1, v2 = (share_right(DIGITS / f"models/v{version}.onnx", holdout) for version in (1, 2))
        assert v2 >= v1 + 0.02
        assert v2 >= 0.96

    def test_version_3_raises_or_answers_nan_on_nearly_every_real_row(self, holdout):
        import numpy as np
        from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

        session = session_of(DIGITS / "models/v3.onnx")
        raised = nan = 0
        for pixels in holdout.pixels:
            try:
                (probabilities,) = session.run(None, {"pixels": pixels[None]})
            except InvalidArgument:
                raised += 1
            else:
                nan += bool(np.isnan(probabilities).any())
        assert raised + nan > 0.9 * len(holdout.labels)
        assert min(raised, nan) > 0.2 * len(holdout.labels)

    def test_version_4_is_sure_finite_and_wrong(self, holdout):
        import numpy as np

        probabilities = answers(DIGITS / "models/v4.onnx", holdout.pixels)
        assert np.isfinite(probabilities).all()
        assert probabilities.max(1).mean() > 0.9
        assert share_right(DIGITS / "models/v4.onnx", holdout) < 0.05

    def test_training_again_gives_models_that_answer_alike(self, holdout, tmp_path):
        # Byte for byte only on one kind of processor: another one rounds differently while it learns.
        subprocess.run([sys.executable, DIGITS / "train.py", tmp_path], check=True, capture_output=True)
        for version in (1, 2, 4):
            again = answers(tmp_path / f"v{version}.onnx", holdout.pixels).argmax(1)
            committed = answers(DIGITS / f"models/v{version}.onnx", holdout.pixels).argmax(1)
            assert (again == committed).mean() > 0.99


class TestManifests:
    @pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
    def test_the_digests_are_those_of_the_committed_files(self, path):
        spec = yaml.safe_load(path.read_text())["spec"]
        for role in ("baseline", "candidate"):
            model = path.parent / spec[role]["uri"]
            assert spec[role]["digest"] == f"sha256:{hashlib.sha256(model.read_bytes()).hexdigest()}"

    @pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
    def test_the_loader_accepts_it(self, path):
        from deployctl.core.metrics import METRICS
        from deployctl.manifest.load import load

        text = path.read_bytes()
        manifest = load(text, str(path), engines=("builtin",), metrics=tuple(METRICS), base=path.parent)
        assert manifest.text.startswith("# yaml-language-server: $schema=rollout.schema.json\n")

    def test_the_service_is_the_same_in_all_of_them(self):
        # spec.service is fixed at `up`; one that differs would be a conflict in mid-demo.
        services = [yaml.safe_load(path.read_text())["spec"]["service"] for path in MANIFESTS]
        assert services[0] == services[1] == services[2]


@dataclass
class Stub:
    """A service that writes down what it is sent. `answer` is told the number of a request: a status, or None to hang up."""

    answer: Callable[[int], int | None] = lambda _number: 200
    hangs: bool = False
    port: int = 0
    requests: dict[str, tuple[float, list[float]]] = field(default_factory=dict)
    labels: list[tuple[float, str, str]] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
                headers = dict(line.split(": ", 1) for line in head[1:] if line)
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                if not self._take(head[0], headers, body, writer):
                    break
        writer.close()

    def _take(self, line: str, headers: dict[str, str], body: dict, writer: asyncio.StreamWriter) -> bool:
        now = time.monotonic()
        if line == "post /v2/models/digits/labels http/1.1":
            self.labels += [(now, label["id"], label["label"]) for label in body["labels"]]
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            return True
        assert line == "post /v2/models/digits/infer http/1.1"
        number = len(self.requests)
        assert headers["x-request-id"] not in self.requests
        self.requests[headers["x-request-id"]] = (now, body["inputs"][0]["data"])
        if self.hangs:
            return True
        status = self.answer(number)
        if status is None:
            return False
        outputs = [{"name": "probabilities", "shape": [1, 10], "datatype": "FP32", "data": [0.9] + [0.0] * 9}]
        version = {"model_version": "2" if number % 2 else "1"}
        content = json.dumps(version | ({"outputs": outputs} if status == 200 else {"error": "broken"}))
        writer.write(
            f"HTTP/1.1 {status} X\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content.encode()
        )
        return True


@contextlib.asynccontextmanager
async def listening(stub: Stub) -> AsyncIterator[Stub]:
    server = await asyncio.start_server(stub.serve, "127.0.0.1", 0)
    stub.port = server.sockets[0].getsockname()[1]
    try:
        yield stub
    finally:
        server.close()


async def start_traffic(stub: Stub, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(DIGITS / "traffic.py"),
        *("--url", stub.url, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def summary_of(stub: Stub, *arguments: str) -> dict:
    async with listening(stub):
        traffic = await start_traffic(stub, *arguments)
        out, err = await traffic.communicate()
    assert (traffic.returncode, err) == (0, b"")
    return json.loads(out)


class TestTraffic:
    def test_requests_come_at_the_rate_with_ids_of_their_own_and_real_rows(self, holdout):
        stub = Stub()
        seen = asyncio.run(summary_of(stub, "--rate", "400", "--seconds", "2", "--label-delay", "0.1,0.2"))
        assert seen["sent"] == seen["answered"] == len(stub.requests)
        assert 800 - 5 * 28 < seen["sent"] < 800 + 5 * 28
        real = {tuple(pixels) for pixels in holdout.pixels.tolist()}
        assert {tuple(pixels) for _, pixels in stub.requests.values()} <= real
        assert stub.connections < 400  # kept alive; how many depends on how soon the stub has its turns

    def test_a_share_of_the_requests_gets_its_human_label_after_the_delay(self, holdout):
        stub = Stub()
        arguments = ("--rate", "400", "--label-rate", "100", "--label-delay", "0.3,0.5", "--seconds", "2")
        seen = asyncio.run(summary_of(stub, *arguments))
        assert seen["labels"] == {
            "posted": len(stub.labels),
            "accepted": len(stub.labels),
            "failed": 0,
            "left": 0,
        }
        assert 200 - 5 * 14 < len(stub.labels) < 200 + 5 * 14
        people = dict(
            zip(map(tuple, holdout.pixels.tolist()), map(str, holdout.labels.tolist()), strict=True)
        )
        waited = []
        for at, request_id, label in stub.labels:
            asked_at, pixels = stub.requests[request_id]
            waited.append(at - asked_at)
            assert label == people[tuple(pixels)]
        # Both times are the stub's, which may have read a request late on a busy machine: never before it, and mostly in time.
        assert min(waited) > 0
        assert sorted(waited)[len(waited) // 2] > 0.25

    def test_the_summary_adds_up_over_failures_resets_and_versions(self):
        def sometimes(number: int) -> int | None:
            return None if number % 25 == 7 else 500 if number % 10 == 3 else 200

        arguments = ("--rate", "400", "--seconds", "1.5", "--label-rate", "0")
        seen = asyncio.run(summary_of(Stub(sometimes), *arguments))
        assert seen["sent"] == seen["answered"] + seen["failed"] == sum(seen["by_status"].values())
        assert set(seen["by_status"]) == {"200", "500", "reset"}
        assert set(seen["by_version"]) == {"1", "2", "unknown"}
        assert seen["by_version"]["unknown"]["failed"] == seen["by_status"]["reset"]
        for counts in seen["by_version"].values():
            parts = ("right", "wrong", "null", "failed")
            assert counts["answers"] == sum(counts[part] for part in parts)
        assert seen["wrong"] > seen["by_version"]["1"]["right"] + seen["by_version"]["2"]["right"] > 0

    def test_arrivals_do_not_wait_for_answers_and_are_bounded(self):
        stub = Stub(hangs=True)
        arguments = ("--rate", "200", "--seconds", "1", "--in-flight", "8", "--label-rate", "0")
        seen = asyncio.run(summary_of(stub, *arguments))
        assert seen["sent"] == seen["failed"] == 8
        assert seen["by_status"] == {"timeout": 8}
        assert seen["skipped"] > 100

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_stops_it_and_the_summary_is_printed(self, number):
        async def interrupted() -> tuple[int | None, dict, dict]:
            async with listening(Stub()) as stub:
                traffic = await start_traffic(stub, "--rate", "200", "--verbose", "--every", "0.1")
                assert traffic.stderr is not None
                report: dict = {}
                while not report.get("answered"):
                    report = json.loads(await traffic.stderr.readline())
                traffic.send_signal(number)
                out, _ = await traffic.communicate()
            return traffic.returncode, json.loads(out), report

        code, seen, report = asyncio.run(interrupted())
        assert code == 0
        assert seen["answered"] >= report["answered"] > 0
        assert seen["sent"] == seen["answered"] + seen["failed"]

    def test_a_service_that_is_not_there_is_counted_and_survived(self):
        stub = Stub()

        async def nobody() -> dict:
            async with listening(stub):
                pass
            traffic = await start_traffic(stub, "--rate", "100", "--seconds", "0.5", "--label-rate", "0")
            out, _ = await traffic.communicate()
            return json.loads(out)

        seen = asyncio.run(nobody())
        assert seen["sent"] == seen["failed"] == seen["by_status"]["refused"] > 0


class TestDemoStory:
    """How the demo reads what the service and the callers tell; the demo itself is run by `make demo`."""

    EVENTS = (
        {"kind": "started", "at": 0.0, "phase": "pending", "weight": 0, "wall": "2026-01-01T00:00:00Z"},
        {"kind": "climbed", "at": 0.3, "phase": "progressing", "weight": 5, "wall": "2026-01-01T00:00:00.3Z"},
        {"kind": "climbed", "at": 3.4, "phase": "progressing", "weight": 10, "wall": "2026-01-01T00:00:03Z"},
        {"kind": "promoted", "at": 21.5, "phase": "promoted", "weight": 100, "wall": "2026-01-01T00:00:21Z"},
    )

    def story(self, tmp_path, events=EVENTS, case=demo.CASES[0], **explained):
        midnight = 1767225600
        log = tmp_path / "traffic.log"
        reports = [
            {"wall": midnight + at, "by_version": {case.candidate: {"answers": n, "wrong": n // 10}}}
            for at, n in ((0, 0), (20.9, 500), (25, 9000))
        ]
        log.write_text("\n".join(map(json.dumps, reports)) + '\n{"cut')
        told = demo.Told(
            {"rollout": "r1", "phase": "promoted", "sentence": "all passed", **explained},
            {"rollouts": [{"rollout": "r0", "events": []}, {"rollout": "r1", "events": list(events)}]},
            {"live": {"version": "2"}, "weight": 0},
        )
        callers = demo.Callers(log)
        return demo.read_story(case, 0, told, before=reports[0], after=callers.latest(), callers=callers)

    def test_a_promoted_version_is_counted_until_the_decision_only(self, tmp_path):
        story = self.story(tmp_path)
        assert (story.answers, story.bad, story.seconds) == (500, 50, 21.5)
        assert story.climb == [(0.3, 5.0), (3.4, 10.0), (21.5, 100.0)]
        demo._check(demo.CASES[0], story)

    def test_a_version_that_should_not_have_been_promoted_fails_the_demo(self, tmp_path):
        with pytest.raises(demo.DemoError, match=r"version 3 should be rolled back .* is promoted"):
            demo._check(demo.CASES[1], self.story(tmp_path, case=demo.CASES[1]))

    def test_a_rollout_that_tells_nothing_is_still_told(self, tmp_path):
        story = self.story(tmp_path, events=(), sentence=None, phase=None)
        assert (story.outcome, story.seconds, story.climb) == ("unknown", None, [])
        assert [line for line in demo._what_happened(story) if "unknown" in line]

    @pytest.mark.parametrize("which", ["purple"])
    def test_a_demo_that_does_not_exist_is_refused(self, which):
        with pytest.raises(InvalidError) as refused:
            demo.run_demo(which, as_json=False)
        assert refused.value.exit_code == Exit.INVALID

    def test_without_scikit_learn_it_says_what_to_install(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
        with pytest.raises(InvalidError, match=r"pip install 'deployctl\[demo\]'"):
            demo.run_demo(None, as_json=False)
