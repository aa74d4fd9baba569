"""Ten models that are fine on zeros, in their signature or in their file, and poison on what callers send.

As a canary each is rolled back soon, and only callers of its own share ever notice; as a shadow nobody does.
"""

import platform
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import faulty_models
import pytest
from service_rig import NAME, Box, alive, wait_for
from traffic_maker import BODIES, body_of

from deployctl.core.assignment import goes_to_candidate

RATE = 300
WEIGHT = 20
CANARY = {"steps": [{"setWeight": WEIGHT}, {"setWeight": 50}], "minDwell": "20s"}
SHADOW = {"maxDuration": "60s", "timeout": "200ms"}
SOON_SECONDS, FEW_ANSWERS = 10.0, 50
"""What the harm may last, or how many answers it may cost: one of the two must hold."""

WITH_NEGATIVE = [*BODIES, body_of([-1.0, 0.0, 0.0, 0.0])]

POISONS = {
    "nan": faulty_models.nan_on_rows,
    "infinite": faulty_models.infinite_on_rows,
    "other-shape-on-rows": faulty_models.other_shape_on_rows,
    "other-datatype": faulty_models.other_datatype,
    "hanging": faulty_models.hanging,
    "slow": lambda: faulty_models.slow(30),
    "out-of-memory": faulty_models.out_of_memory_on_rows,
    "crashing": faulty_models.crashing_on_rows,
    "negative": faulty_models.raises_on_negative_rows,
    "too-large": faulty_models.too_large_on_rows,
}
IN_CI = {"canary": {"hanging", "slow", "crashing"}, "shadow": {"out-of-memory"}}
"""The short version: those with a mechanism of their own."""


SERVICE = {"timeout": "2s", "limits": {"workerMemory": "320MiB"}}
"""Two seconds, so that a busy machine alone makes no caller of the baseline fail."""


class LimitedBox(Box):
    """A box whose manifests have that in `spec.service`."""

    def manifest(self, *versions, **changes):
        return super().manifest(*versions, service=SERVICE, **changes)


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    """One service at version 1 for all of them."""
    box = LimitedBox(tmp_path_factory.mktemp("poison"))
    try:
        yield box.up()
    finally:
        box.close()


@pytest.fixture(params=POISONS)
def poison(request, box):
    """The name of a poison whose model file is there."""
    kind = request.function.__name__.split("_")[2]
    if not request.config.getoption("--long") and request.param not in IN_CI[kind]:
        pytest.skip("in the long version: make faults")
    if request.param == "crashing" and platform.machine() != "x86_64":
        pytest.skip("a division overflows without a signal here")
    file = box.model_file(request.param)
    if not file.exists():  # a slow one is calibrated once: other bytes are another version
        file.write_bytes(POISONS[request.param]())
    return request.param


@dataclass
class Harm:
    """What one rollout cost, as its callers counted it: answers of the poison, failures, and how long it had callers."""

    answers: int
    failures: int
    seconds: float

    def __str__(self):
        return f"{self.answers + self.failures} answers in {self.seconds} s"

    @property
    def bounded(self):
        return self.seconds <= SOON_SECONDS or self.answers + self.failures <= FEW_ANSWERS


def test_a_canary_of_poison_is_rolled_back_soon_and_costs_callers_of_its_share_alone(box, poison, tally):
    watched = ("error-rate", "null-rate", *(["latency"] if poison == "slow" else []))
    with box.traffic(RATE, bodies=WITH_NEGATIVE) as traffic:
        ramped = box.ramp(box.manifest(poison, canary=CANARY, metrics=watched))
        if poison != "other-datatype":
            assert ramped.code == 3, ramped
            assert ramped.lines[-1]["phase"] == "rolled_back"
            _nothing_reaches(traffic, poison)
    _version_1_serves(box)
    if poison == "other-datatype":
        ramped.refused(2, "does not match")
        assert (set(traffic.versions), set(traffic.statuses)) == ({"1"}, {200})
        tally.count("poison model as canary", 1, words=f"{poison}: refused before its first request")
        return
    harm = _harm(ramped.lines, traffic, poison)
    tally.count("poison model as canary", 1, not harm.bounded, f"{poison}: {harm}")
    assert harm.bounded, harm
    share = [goes_to_candidate(ramped.lines[0]["rollout"], one.id, WEIGHT) for one in traffic.failures]
    assert all(share), "a caller of the baseline failed"


def test_a_shadow_of_poison_fails_and_no_caller_sees_anything(box, poison, tally):
    manifest = box.manifest(poison, shadow=SHADOW, metrics=("error-rate", "null-rate"))
    with box.traffic(RATE, bodies=WITH_NEGATIVE) as traffic:
        ran = box.run("shadow", manifest, "-o", "json")
    if poison == "other-datatype":
        ran.refused(2, "does not match")
    else:
        assert ran.code == 3, ran
        assert (ran.lines[-1]["phase"], ran.lines[-1]["verdict"]["result"]) == ("retired", "fail")
    assert not traffic.failures
    assert set(traffic.versions) == {"1"}
    tally.count("poison model as shadow", 1)


def test_a_candidate_that_does_not_fit_into_its_memory_is_refused_in_a_line_that_names_the_limit(box):
    box.model_file("large").write_bytes(faulty_models.larger_than(96))
    with box.nothing_changes():
        box.ramp(box.manifest("large")).refused(2, "spec.service.limits.workerMemory", "320MiB")


def test_a_candidate_whose_worker_ends_again_and_again_is_rolled_back_without_any_traffic(box):
    ramping = box.begin("canary", "ramp", box.manifest("2", canary=CANARY))
    with _killing(box, "2"):
        ramping.communicate(timeout=110)
    assert ramping.returncode == 3
    assert box.status()["reason"] == (
        "the candidate cannot be kept loaded: its worker ended 5 times in a row, the last time by SIGKILL (out of memory?)"
    )
    _version_1_serves(box)


def test_a_live_version_whose_model_is_damaged_on_disk_comes_back_with_its_bytes(box):
    (record,) = [record for record in box.records() if record["type"] == "served"]
    file = box.home.models / f"{record['version']['digest'].replace(':', '-')}.onnx"
    good = file.read_bytes()
    file.chmod(0o600)
    file.write_bytes(good[:-1])
    box.kill(box.status()["pids"]["workers"]["1"])
    wait_for(lambda: "the bytes have digest" in (box.status()["trouble"] or ""), what="a word about it")
    file.write_bytes(good)
    with box.traffic(RATE) as traffic:
        wait_for(lambda: traffic.statuses[200] > RATE, what="answers again")
    assert box.status()["trouble"] is None


def test_a_live_version_whose_worker_ends_again_and_again_is_started_for_ever_and_status_says_so(box):
    with _killing(box, "1"):
        trouble = wait_for(lambda: box.status()["trouble"], what="a word about it")
    assert trouble.startswith("version 1: its worker ended 5 times in a row")
    assert "it is started again and again" in box.run("status", NAME).out
    with box.traffic(RATE) as traffic:
        traffic.wait_for_answers(RATE)
        traffic.wait_for_answers(RATE, of="1")


def test_an_input_on_which_the_live_version_hangs_blocks_nobody_for_long(tmp_path):
    _blocks_nobody_for_long(tmp_path, Box)


def _blocks_nobody_for_long(folder, kind):
    box = kind(folder)
    box.model_file("hangs").write_bytes(faulty_models.hanging_on_negative_rows())
    try:
        box.up(box.manifest(None, ("1", "hangs")))
        worker = box.status()["pids"]["workers"]["1"]
        with box.traffic(20, bodies=[WITH_NEGATIVE[-1]]) as poisoned:
            poisoned.wait_for_answers(3)
        assert set(poisoned.statuses) == {504}
        with box.traffic(RATE) as traffic:
            wait_for(lambda: traffic.statuses[200] > RATE, within=10, what="answers to others")
        assert box.status()["pids"]["workers"]["1"] == worker
    finally:
        box.close()


def _fails_every_request(folder, kind, model):
    box = kind(folder)
    box.model_file("poison").write_bytes(model)
    try:
        box.up(box.manifest(None, ("1", "poison")))
        with box.traffic(5) as traffic:
            traffic.wait_for_answers(3)
        assert set(traffic.statuses) == {500}
    finally:
        box.close()


def _is_rolled_back_without_traffic(folder, kind):
    box = kind(folder)
    try:
        ramping = box.up().begin("canary", "ramp", box.manifest(canary={"stepTimeout": "20s"}))
        with _killing(box, "2"):
            ramping.communicate(timeout=110)
        assert ramping.returncode == 3
    finally:
        box.close()


TWINS = {
    "no watch": (
        "from deployctl.serving.watch import Watch; over = Watch.over; Watch.over = lambda self, _: over(self, float('inf'))",
        _blocks_nobody_for_long,
    ),
    "no memory limit": (
        "from deployctl.serving import memory; memory.limit_memory = lambda _: 'none'",
        lambda folder, kind: _fails_every_request(folder, kind, faulty_models.out_of_memory_on_rows(1)),
    ),
    "any shape": (
        "from deployctl.serving.model import Model; Model._check_answer = lambda *_: None",
        lambda folder, kind: _fails_every_request(folder, kind, faulty_models.other_shape_on_rows()),
    ),
    "no crash loop": (
        "from deployctl.controller import workers; workers.CRASH_LOOP = 10**9",
        _is_rolled_back_without_traffic,
    ),
}
"""What is taken out of every process of a service, and the check that must fail then."""


@pytest.mark.parametrize("taken_out", [False, True])
@pytest.mark.parametrize("twin", TWINS)
def test_each_guard_is_missed_where_it_is_taken_out(tmp_path, twin, taken_out, long, tally):
    if not long:
        pytest.skip("in the long version: make faults")
    sabotage, check = TWINS[twin]
    (tmp_path / "sitecustomize.py").write_text(sabotage if taken_out else "")

    class Twin(LimitedBox):
        @property
        def environment(self):
            return super().environment | {"PYTHONPATH": str(tmp_path)}

    if not taken_out:
        check(tmp_path, Twin)
        return
    with pytest.raises(AssertionError):
        check(tmp_path, Twin)
    tally.count("guard of a worker taken out", 1, words=f"{twin}: caught")


def _harm(lines, traffic, version):
    began = next(line["at"] for line in lines if line["kind"] == "climbed")
    own = traffic.versions[version]
    lost = sum(one.version != version for one in traffic.failures)
    return Harm(own, lost, round(lines[-1]["at"] - began, 2))


@contextmanager
def _killing(box, version):
    """SIGKILL for every worker of this version as soon as there is one."""
    over = threading.Event()

    def kill():
        while not over.is_set():
            pid = box.status()["pids"]["workers"].get(version)
            if pid and alive(pid):
                with suppress(ProcessLookupError):
                    box.kill(pid)
            over.wait(0.05)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(20)


def _nothing_reaches(traffic, version):
    """After the rollback no request goes to the candidate any more, beside those that were under way."""
    before = traffic.versions[version] + traffic.in_flight
    traffic.wait_for_answers(RATE // 2)
    assert traffic.versions[version] <= before


def _version_1_serves(box):
    status = box.status()
    assert (status["live"], status["weight"]) == ("1", 0)
    wait_for(lambda: set(box.status()["pids"]["workers"]) == {"1"}, what="the candidate unloaded")
