"""Copies of requests: what the caller does not notice, what becomes of each copy, and what is recorded of it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from real_worker import RealWorker
from rig import Load, Street, Worker, do, request, rows

from deployctl.core.plan import Copy
from deployctl.router.mirror import MAX_BYTES, MAX_WAITING
from deployctl.router.suspension import LONGEST_STALL
from deployctl.wire.orders import Upstream
from deployctl.wire.priority import step_back

INFER = "/v2/models/m/infer"
BASELINE, CANDIDATE = 0, 1
SHADOW = 1 << CANDIDATE


def ask_all(street, bodies, **headers):
    """Pipelined, with the ids r0, r1 and so on."""
    with street.connect() as client:
        client.send(
            b"".join(
                request("POST", INFER, body, x_request_id=f"r{n}", **headers) for n, body in enumerate(bodies)
            )
        )
        return [client.read() for _ in bodies]


def mirrored(street):
    return [outcome for outcome in street.controller.outcomes if outcome.mirrored]


def settled(street):
    """Waits until every request so far and every copy of it is reported."""
    last = f"last-{time.monotonic_ns()}"
    street.infer(x_request_id=last)
    start = street.controller.outcome_of(last).start
    street.controller.wait(lambda: street.controller.batches[-1].mirror_watermark > start)


def is_last(outcome):
    """Whether `settled` asked for it, and not the test."""
    return outcome.id.startswith("last-")


# -- what the caller sees


def test_answers_are_the_same_bytes_with_and_without_copies(street):
    wishes = [
        b"{}",
        b"no json",
        do("answer", size=100_000),
        do("answer", null=True, prediction=None),
        do("answer", request_id="of-the-body"),
        *(do("answer", status=status) for status in (400, 404, 422, 500, 503)),
    ]

    def answers():
        found = []
        for n, body in enumerate([*wishes, *wishes]):
            length = {"inference_header_content_length": len(body)} if n < len(wishes) else {}
            status, headers, content = street.infer(body, x_request_id=f"r{n}", **length)
            found.append((status, {k: v for k, v in headers.items() if k != "date"}, content))
        return found

    without = answers()
    street.mirror()
    assert answers() == without
    settled(street)
    assert len(mirrored(street)) == 2 * len(wishes) + 1


def test_real_models_answer_the_same_bytes_with_a_shadow_beside_them(make_street):
    street = make_street(worker=RealWorker)
    inputs = [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 5.0, 2.0]}]
    body = json.dumps({"id": "of-the-body", "inputs": inputs}).encode()
    without = street.infer(body)
    street.mirror()
    with_copies = street.infer(body)
    assert (with_copies.status, with_copies.body) == (without.status, without.body) == (200, without.body)
    copy = street.controller.copies_of("of-the-body")[CANDIDATE]
    assert (copy.status, copy.prediction, copy.null) == (200, "1", 0)


@pytest.mark.parametrize(("end", "status"), [("hang", 504), ("crash", 502), ("garbage", 502)])
def test_what_happens_to_a_copy_fails_no_request_and_is_recorded(street, end, status):
    street.mirror(copy_timeout=0.2)
    assert street.infer(do(end, by="2"), x_request_id="r").status == 200
    assert street.controller.copies_of("r")[CANDIDATE].status == status


def test_a_shadow_that_is_killed_again_and_again_fails_no_request(street):
    street.mirror(copy_timeout=0.3)
    with Load(street, clients=4) as load:
        for _ in range(5):
            seen = sum(load.statuses.values())
            while sum(load.statuses.values()) < seen + 200 and not load.errors:
                time.sleep(0.001)
            assert street.infer(do("hang", by="2")).status == 200
            os.kill(street.workers[1].process.pid, signal.SIGKILL)
            street.workers[1].start()
    assert not load.errors
    assert set(load.statuses) == {200}
    settled(street)
    assert Counter(copy.status for copy in mirrored(street))[502] > 0
    check_books(street.controller.batches)


def test_a_shadow_ten_times_slower_delays_nobody(street):
    street.mirror(copy_limit=100)
    began = time.monotonic()
    answers = ask_all(street, [do("slow", by="2", seconds=0.5)] * 50)
    assert time.monotonic() - began < 0.5
    assert {answer.status for answer in answers} == {200}
    settled(street)
    slow = [copy for copy in mirrored(street) if not is_last(copy)]
    assert {copy.status for copy in slow} == {200}
    assert min(copy.latency for copy in slow) >= 490
    assert max(outcome.latency for outcome in street.controller.outcomes if not outcome.mirrored) < 500


def test_a_shadow_that_stops_reading_costs_a_bounded_number_of_copies(street):
    street.mirror(copy_timeout=20, copy_limit=4)
    os.kill(street.workers[1].process.pid, signal.SIGSTOP)
    before = resident(street.router.pid)
    large = do("answer") + b" " * (1 << 20)
    assert {answer.status for answer in ask_all(street, [large] * 100)} == {200}
    assert resident(street.router.pid) - before < 64 << 20
    os.kill(street.workers[1].process.pid, signal.SIGCONT)
    settled(street)
    taken = [copy for copy in mirrored(street) if not is_last(copy)]
    assert (len(taken), {copy.status for copy in taken}) == (MAX_BYTES // len(large), {200})
    check_books(street.controller.batches)


def resident(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- who gets a copy


def test_a_copy_has_the_row_of_its_request_and_an_answer_of_its_own(street):
    split = street.mirror()
    street.infer(do("answer", by="2", prediction="8", confidence=0.25), x_request_id="r")
    copy = street.controller.copies_of("r")[CANDIDATE]
    asked = street.controller.outcome_of("r")
    assert (asked.arm, asked.mirrored, asked.copies) == (BASELINE, 0, SHADOW)
    assert (copy.mirrored, copy.copies, copy.status, copy.split) == (1, 0, 200, split.number)
    for column in ("id", "key", "serial", "start", "split", "explicit"):
        assert getattr(copy, column) == getattr(asked, column)
    assert (asked.prediction, copy.prediction) == ("7", "8")
    assert (asked.confidence, copy.confidence) == (0.5, 0.25)


def test_the_worker_says_how_long_a_copy_took_and_not_the_router_that_looks_now_and_then(street):
    street.mirror()
    ask_all(street, [do("answer", by="2", late=-1e-3)] * 3)
    ask_all(street, [do("answer", by="2", late=0.25)] * 3)
    settled(street)
    early, late = (
        [copy.latency for copy in mirrored(street) if not is_last(copy)][part]
        for part in (slice(3), slice(3, 6))
    )
    assert max(early) < 20
    assert min(late) > 250


def test_an_answer_that_comes_in_many_pieces_is_read_without_a_rest(street):
    street.mirror(copy_timeout=2.0)
    assert street.infer(do("answer", by="2", size=40_000_000), x_request_id="r").status == 200
    assert street.controller.copies_of("r")[CANDIDATE].status == 200


def test_a_copy_that_was_answered_after_its_deadline_is_504(street):
    street.mirror(copy_timeout=0.5)
    assert street.infer(do("answer", by="2", late=0.6), x_request_id="r").status == 200
    assert street.controller.copies_of("r")[CANDIDATE].status == 504


def test_a_null_of_a_copy_is_recorded_as_its_worker_saw_it(street):
    street.mirror()
    street.infer(do("answer", by="2", null=True, prediction=None), x_request_id="r")
    copy = street.controller.copies_of("r")[CANDIDATE]
    assert (copy.null, copy.prediction, street.controller.outcome_of("r").null) == (1, None, 0)


@pytest.mark.parametrize("status", [400, 422, 500])
def test_a_failure_of_the_request_itself_is_one_half_of_a_pair(street, status):
    street.mirror()
    assert street.infer(do("answer", by="1", status=status), x_request_id="r").status == status
    assert street.controller.copies_of("r")[CANDIDATE].status == 200
    assert (street.controller.outcome_of("r").status, street.controller.outcome_of("r").copies) == (
        status,
        SHADOW,
    )


def test_a_percentage_of_distinct_ids_is_copied_and_raising_it_only_adds(street):
    copied = set()
    for percentage in (10, 10, 40):
        street.mirror(percentage, copy_limit=4000)
        before = len(street.controller.outcomes)
        ask_all(street, [b"{}"] * 3000)
        settled(street)
        seen = [o for o in street.controller.outcomes[before:] if not o.mirrored and not is_last(o)]
        now = {outcome.id for outcome in seen if outcome.copies}
        assert len(seen) == 3000
        assert len(now) == pytest.approx(percentage * 30, abs=120)
        assert copied <= now
        copied = now


def test_who_is_copied_has_nothing_to_do_with_who_answers(street):
    street.mirror(
        50,
        weight=50,
        arms=(0, 1),
        copy_limit=4000,
        salt="a rollout whose name is longer than the sixty-four bytes of a key",
    )
    ask_all(street, [b"{}"] * 2000)
    settled(street)
    asked = [o for o in street.controller.outcomes if not o.mirrored]
    for arm in (BASELINE, CANDIDATE):
        copied = [o.copies != 0 for o in asked if o.arm == arm]
        assert sum(copied) / len(copied) == pytest.approx(0.5, abs=0.08)


def test_the_baseline_gets_copies_of_what_the_candidate_answered(street):
    street.mirror(weight=50, arms=(0, 1))
    ask_all(street, [b"{}"] * 40)
    settled(street)
    asked = {o.serial: o for o in street.controller.outcomes if not o.mirrored}
    assert {(o.arm, o.copies) for o in asked.values()} == {
        (BASELINE, 1 << CANDIDATE),
        (CANDIDATE, 1 << BASELINE),
    }
    assert {(asked[copy.serial].arm, copy.arm) for copy in mirrored(street)} == {(0, 1), (1, 0)}


def test_every_candidate_has_an_arm_and_a_fate_of_its_own(make_street):
    street = make_street(versions=("1", "2", "3", "4"))
    street.mirror(arms=(1, 2, 3), copy_timeout=0.2)
    assert street.infer(do("hang", by="3"), x_request_id="r").status == 200
    copies = street.controller.copies_of("r", 3)
    assert {arm: copy.status for arm, copy in copies.items()} == {1: 200, 2: 504, 3: 200}
    assert street.controller.outcome_of("r").copies == 0b1110
    for version in ("2", "3", "4"):
        for path in ("", "/ready"):
            assert street.ask("GET", f"/v2/models/m/versions/{version}{path}").status == 404
        assert street.infer(path=f"/v2/models/m/versions/{version}/infer").status == 404


def test_a_request_for_a_named_version_is_not_copied(street):
    street.mirror()
    assert street.infer(path="/v2/models/m/versions/1/infer", x_request_id="r").status == 200
    settled(street)
    assert (street.controller.outcome_of("r").explicit, street.controller.outcome_of("r").copies) == (1, 0)
    assert all(is_last(copy) for copy in mirrored(street))


# -- what does not fit


def test_what_the_queue_cannot_hold_is_dropped_and_counted_and_the_rest_is_504(street):
    street.mirror(copy_timeout=1.0, copy_limit=4)
    assert {answer.status for answer in ask_all(street, [do("hang", by="2")] * 400)} == {200}
    settled(street)
    taken = [o for o in street.controller.outcomes if o.copies and not is_last(o)]
    copies = [copy for copy in mirrored(street) if not is_last(copy)]
    assert len(taken) == len(copies) == 4 + MAX_WAITING
    assert {copy.status for copy in copies} == {504}
    assert min(copy.latency for copy in copies) >= 990
    assert street.controller.batches[-1].mirror_dropped == {CANDIDATE: 401 - 4 - MAX_WAITING}
    check_books(street.controller.batches)


def test_a_body_larger_than_the_queue_is_copied_when_there_is_no_other(street):
    street.mirror(copy_timeout=1.0)
    large = do("hang", by="2") + b" " * MAX_BYTES
    ask_all(street, [large, b"{}", large])
    settled(street)
    assert [street.controller.outcome_of(f"r{n}").copies for n in range(3)] == [SHADOW, 0, 0]
    assert street.controller.batches[-1].mirror_dropped[CANDIDATE] >= 2


def test_in_a_crowd_copies_are_the_first_to_go(make_street):
    street = make_street(timeout=0.5, limits={"in_flight": 4})
    street.mirror()
    clients = [street.connect() for _ in range(4)]
    for n, client in enumerate(clients):
        client.send(request("POST", INFER, do("hang", by="1"), x_request_id=f"r{n}"))
    assert [client.read().status for client in clients] == [504] * 4
    for client in clients:
        client.close()
    settled(street)
    taken = [street.controller.outcome_of(f"r{n}").copies for n in range(4)]
    assert sorted(taken) == [0, 0, SHADOW, SHADOW]
    assert street.controller.batches[-1].mirror_dropped == {CANDIDATE: 2}


# -- a machine with other things to do


@pytest.fixture
def share_one_processor():
    """Puts a process on one processor with others that never pause."""
    others = []

    def share(process):
        processor = {min(os.sched_getaffinity(0))}
        os.sched_setaffinity(process, processor)
        for _ in range(6):
            others.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            os.sched_setaffinity(others[-1].pid, processor)

    yield share
    for other in others:
        other.kill()
        other.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="priorities and waits are asked of Linux")
def test_a_copy_that_waits_for_the_processor_is_dropped_and_says_nothing_about_its_version(
    street, share_one_processor
):
    street.mirror(copy_timeout=0.5, copy_limit=100)
    assert step_back(street.workers[1].process.pid) == "idle"
    share_one_processor(street.workers[1].process.pid)
    assert {answer.status for answer in ask_all(street, [do("spin", by="2", seconds=0.05)] * 40)} == {200}
    settled(street)
    seen = Counter(copy.status for copy in mirrored(street))
    assert seen[504] == 0
    assert seen[499] > 30
    assert street.controller.batches[-1].mirror_dropped == {CANDIDATE: seen[499]}
    check_books(street.controller.batches)


@pytest.mark.skipif(sys.platform != "linux", reason="priorities and waits are asked of Linux")
def test_so_is_one_that_waits_with_the_worker_that_its_version_has_just_left(
    street, share_one_processor, tmp_path
):
    street.mirror(copy_timeout=1.0, copy_limit=100)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    starved, another = street.workers[1], Worker(elsewhere, "2")
    assert step_back(starved.process.pid) == "idle"
    share_one_processor(starved.process.pid)
    ask_all(street, [do("spin", by="2", seconds=0.2)] * 40)
    street.workers[1] = another
    street.mirror(copy_timeout=1.0, copy_limit=100)
    settled(street)
    starved.kill()
    seen = Counter(copy.status for copy in mirrored(street))
    assert (seen[504], seen[499] > 30) == (0, True)


@pytest.mark.skipif(sys.platform != "linux", reason="priorities and waits are asked of Linux")
def test_a_request_whose_worker_waited_for_the_processor_is_compared_with_nothing(
    make_street, share_one_processor
):
    """Its copy would come when the machine has recovered."""
    street = make_street(timeout=1.0)
    street.mirror()
    share_one_processor(street.workers[0].process.pid)
    assert street.infer(do("spin", by="1", seconds=0.5), x_request_id="r").status == 504
    row = street.controller.outcome_of("r")
    assert (row.status, row.copies) == (504, 0)
    assert street.controller.batches[-1].mirror_dropped == {CANDIDATE: 1}


# -- orders


def test_copies_in_flight_end_under_the_split_that_they_began_in(street):
    before = street.mirror()
    street.infer(do("slow", by="2", seconds=0.3), x_request_id="r")
    street.split(50)
    copy = street.controller.copies_of("r")[CANDIDATE]
    assert (copy.split, copy.status) == (before.number, 200)
    street.infer(x_request_id="later")
    assert street.controller.outcome_of("later").copies == 0


def test_a_version_that_is_no_longer_loaded_loses_its_copies_and_says_so(street):
    street.mirror(copy_limit=1)
    ask_all(street, [do("hang", by="2")] * 3)
    street.controller.apply(street.order(0, candidate=False, upstreams=(street.workers[0].upstream,)))
    street.controller.wait(lambda: len(mirrored(street)) == 2)
    assert {(copy.id, copy.status) for copy in mirrored(street)} == {("r1", 499), ("r2", 499)}
    street.workers[1].kill()
    assert street.controller.copies_of("r0")[CANDIDATE].status == 502
    settled(street)
    assert street.controller.batches[-1].mirror_dropped == {CANDIDATE: 2}
    check_books(street.controller.batches)


def test_copies_for_a_version_that_is_not_loaded_are_dropped(street):
    copies = (Copy(CANDIDATE, street.workers[1].as_version),)
    street.controller.apply(
        street.order(0, mirror=100.0, copies=copies, upstreams=(street.workers[0].upstream,))
    )
    assert street.infer(x_request_id="r").status == 200
    assert street.controller.outcome_of("r").copies == 0
    assert street.controller.batches[-1].mirror_dropped == {CANDIDATE: 1}


def test_another_worker_of_the_version_takes_over_what_the_first_has_not_seen(street, tmp_path):
    worker = street.workers[1]
    street.mirror()
    worker.kill()
    street.infer(x_request_id="r")
    worker.socket = str(tmp_path / "elsewhere.sock")
    worker.upstream = Upstream(worker.version, worker.upstream.digest, worker.socket)
    worker.start()
    street.mirror()
    assert street.controller.copies_of("r")[CANDIDATE].status == 200


def test_a_router_that_ends_gives_its_copies_up_at_once(street):
    street.mirror()
    street.infer(do("hang", by="2"), x_request_id="r")
    began = time.monotonic()
    assert street.stop() == 0
    assert time.monotonic() - began < 3
    assert street.controller.copies_of("r")[CANDIDATE].status == 499


# -- the books


def check_books(batches):
    """Every copy that was taken is reported once, after its request, and no watermark passed it before."""
    owed, announced = {}, 0.0
    for batch in batches:
        assert batch.mirror_watermark <= batch.watermark
        assert batch.mirror_watermark >= announced
        for row in rows(batch):
            if row.mirrored:
                assert row.start >= announced
                owed[row.serial].remove(row.arm)
            elif row.copies:
                assert row.serial not in owed
                owed[row.serial] = {arm for arm in range(16) if row.copies >> arm & 1} - {row.arm}
                assert owed[row.serial], "a copy for the version that answered"
        announced = batch.mirror_watermark
    assert not any(owed.values())


WISHES = st.sampled_from(
    [
        b"{}",
        do("answer", status=400),
        do("answer", size=300_000),
        *(do("hang", by=version) for version in "12"),
        *(do("slow", by=version, seconds=0.02) for version in "12"),
        do("garbage", by="2"),
        do("garbage", by="1"),
    ]
)
PERIODS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 50.0, 100.0]),
        st.sampled_from([0.0, 60.0, 100.0]),
        st.sampled_from([1, 4, 32]),
        st.sampled_from([0.05, 0.1, None]),
        st.lists(WISHES, min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def quick_street(tmp_path_factory):
    street = Street(tmp_path_factory.mktemp("quick"), timeout=0.15)
    yield street
    street.close()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(periods=PERIODS)
def test_whatever_happens_every_copy_is_reported_once_and_after_its_request(quick_street, periods):
    street = quick_street
    for weight, percentage, limit, timeout, wishes in periods:
        street.mirror(percentage, weight=weight, arms=(0, 1), copy_limit=limit, copy_timeout=timeout)
        clients = [street.connect() for _ in wishes]
        for client, wish in zip(clients, wishes, strict=True):
            client.send(request("POST", INFER, wish))
        for n, client in enumerate(clients):
            if n % 4 == 3:
                client.leave(reset=True)
            else:
                client.read()
                client.close()
    street.mirror(0.0)
    seen = len(street.controller.batches)
    street.infer()
    street.controller.wait(
        lambda: any(
            not owed(street.controller.batches) and batch.mirror_watermark >= batch.watermark
            for batch in street.controller.batches[seen:]
        )
    )
    check_books(street.controller.batches)


def owed(batches):
    every = [row for batch in batches for row in rows(batch)]
    return sum(row.copies.bit_count() for row in every) - sum(row.mirrored for row in every)


def test_the_watermark_of_pairs_waits_for_a_copy_and_then_moves_by_itself(street):
    street.mirror(copy_timeout=0.5)
    street.infer(do("hang", by="2"), x_request_id="slow")
    start = street.controller.outcome_of("slow").start
    street.infer(x_request_id="quick")
    quick = street.controller.outcome_of("quick")
    before = [
        batch
        for batch in list(street.controller.batches)
        if not any(o.mirrored and o.id == "slow" for o in rows(batch))
    ]
    assert all(
        batch.mirror_watermark <= start for batch in before if any(o.start >= start for o in rows(batch))
    )
    street.controller.wait(lambda: street.controller.batches[-1].mirror_watermark > quick.start)
    assert street.controller.copies_of("slow")[CANDIDATE].status == 504
    check_books(street.controller.batches)


def test_without_a_rollout_no_column_of_pairs_is_sent(street):
    street.infer(x_request_id="r")
    street.controller.outcome_of("r")
    for batch in street.controller.batches:
        assert (batch.serial, batch.mirrored, batch.copies, batch.input, batch.inputs) == (
            b"",
            b"",
            b"",
            b"",
            {},
        )
        assert len(batch.confidence) == 4 * len(batch.id)


# -- inputs


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "input.key"
    path.write_bytes(bytes(range(32)))
    return str(path)


def test_equal_bodies_have_equal_hashes_and_nobody_else_can_make_them(make_street, key):
    street = make_street(input_key=key)
    street.infer(b'{"a": 1}', x_request_id="before")
    street.mirror()
    bodies = [b'{"a": 1}', b'{"a": 2}', b'{"a": 1}', b"x" * (2 << 20), b"x" * (2 << 20) + b"y"]
    ask_all(street, bodies)
    settled(street)
    inputs = [street.controller.outcome_of(f"r{n}").input for n in range(5)]
    assert inputs[0] == inputs[2]
    assert len({*inputs, 0}) == 5
    assert street.controller.copies_of("r1")[CANDIDATE].input == inputs[1]
    assert street.controller.outcome_of("before").input == 0
    expected = blake2b(bodies[1], key=bytes(range(32)), digest_size=8).digest()
    assert inputs[1] == int.from_bytes(expected, "little")
    assert {batch.inputs == {} for batch in street.controller.batches} == {True}


@pytest.mark.parametrize("weight", [0, 50])
def test_hashes_are_recorded_only_while_versions_are_compared(make_street, key, weight):
    street = make_street(input_key=key)
    street.split(weight)
    street.infer(x_request_id="r")
    assert (street.controller.outcome_of("r").input != 0) is (weight > 0)


@pytest.mark.parametrize(
    ("inputs", "file"), [("none", "input.key"), ("hash", "missing.key"), ("hash", "/dev/null")]
)
def test_no_input_is_recorded_where_none_is_wanted_or_the_key_is_gone(make_street, key, inputs, file):
    street = make_street(inputs=inputs, input_key=str(Path(key).parent / file))
    street.mirror()
    assert street.infer(x_request_id="r").status == 200
    assert street.controller.outcome_of("r").input == 0


def test_bodies_are_kept_by_serial_where_the_manifest_wants_them(make_street, key):
    street = make_street(inputs="full", input_key=key)
    street.mirror()
    bodies = [b'{"a": 1}', b"x" * (1 << 20), b"x" * ((1 << 20) + 1)]
    ask_all(street, bodies)
    settled(street)
    kept = {serial: body for batch in street.controller.batches for serial, body in batch.inputs.items()}
    found = [kept.get(street.controller.outcome_of(f"r{n}").serial) for n in range(3)]
    assert found == [bodies[0], bodies[1], None]
    assert street.controller.batches[-1].inputs_dropped == 1


# -- people alone


@pytest.fixture
def people(make_street):
    """People decide, version 2 gets copies."""
    street = make_street(worker=RealWorker)
    street.decided_by_people()
    return street


def body_of(request_id=None, **more):
    inputs = [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 5.0, 2.0]}]
    return json.dumps({"inputs": inputs, **({"id": request_id} if request_id else {}), **more}).encode()


def test_people_are_answered_for_with_the_id_and_the_shadow_decides_nothing(people):
    answer = people.infer(body_of("of-the-body"), x_request_id="of-the-header")
    assert answer.json == {
        "model_name": "m",
        "model_version": "human",
        "id": "of-the-body",
        "outputs": [],
        "parameters": {"decision": "human"},
    }
    assert answer.headers["x-request-id"] == "of-the-body"
    copy = people.controller.copies_of("of-the-body")[CANDIDATE]
    asked = people.controller.outcome_of("of-the-body")
    assert (asked.arm, asked.status, asked.prediction, asked.null, asked.copies) == (0, 200, None, 0, SHADOW)
    assert (copy.status, copy.prediction, copy.serial) == (200, "1", asked.serial)
    check_books(people.controller.batches)


def test_people_have_ids_from_the_header_or_made_where_the_body_has_none(people):
    assert people.infer(body_of(), x_request_id="of-the-header").json["id"] == "of-the-header"
    made = people.infer(body_of())
    assert made.json["id"] == made.headers["x-request-id"] != ""
    assert people.infer(b'{"id": "n", "inputs": [NaN]}').json["id"] == "n"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"nonsense", b'{"id": 5}', b'{"id": "a"', b"[" * 100_000, b"\xff"]
)
def test_what_is_no_request_is_400_for_people_too(people, body):
    answer = people.infer(body, x_request_id="bad")
    assert answer.status == 400
    assert answer.json["model_version"] == "human"
    assert people.controller.outcome_of("bad").status == 400


def test_tritonclient_with_its_defaults_is_answered_for_people(people):
    import tritonclient.http as triton

    asked = triton.InferInput("x", [1, 3], "FP32")
    with triton.InferenceServerClient(people.url.removeprefix("http://")) as client:
        assert client.is_server_ready()
        assert client.is_model_ready("m")
        assert client.get_model_metadata("m")["inputs"][0]["name"] == "x"
        for binary in (True, False):
            for compression in (None, "gzip", "deflate"):
                asked.set_data_from_numpy(np.ones((1, 3), "f4"), binary_data=binary)
                answer = client.infer(
                    "m",
                    [asked],
                    request_id=f"{binary}-{compression}",
                    request_compression_algorithm=compression,
                    response_compression_algorithm=compression,
                ).get_response()
                assert (answer["model_version"], answer["id"]) == ("human", f"{binary}-{compression}")
                assert answer["outputs"] == []
                copy = people.controller.copies_of(f"{binary}-{compression}")[CANDIDATE]
                assert (copy.status, copy.prediction) == (200, "0")
        with pytest.raises(triton.InferenceServerException, match="no version '2'"):
            client.infer("m", [asked], model_version="2")


def test_people_decide_on_without_any_worker(make_street):
    street = make_street()
    street.decided_by_people()
    for worker in street.workers:
        worker.kill()
    street.controller.wait(lambda: street.controller.read_backs[-1].connected == ())
    assert street.ask("GET", "/v2/health/ready").json == {"live": True, "ready": True}
    for place in ("", "/versions/human"):
        assert street.ask("GET", f"/v2/models/m{place}/ready").json == {"name": "m", "ready": True}
        assert street.ask("GET", f"/v2/models/m{place}").json["versions"] == ["human"]
        assert street.infer(b"{}", path=f"/v2/models/m{place}/infer").json["model_version"] == "human"


def test_a_copy_that_was_under_way_while_the_router_did_not_run_is_no_evidence(make_street):
    """Its request was answered before: the candidate alone would be late."""
    street = make_street(timeout=1.0)
    street.mirror()
    street.infer(do("hang", by="2"), x_request_id="copied")
    assert street.controller.outcome_of("copied").explicit == 0
    street.suspend(LONGEST_STALL + 0.2)
    copy = street.controller.copies_of("copied")[CANDIDATE]
    assert copy.status == 499
    street.infer(do("hang", by="2"), x_request_id="after")
    assert street.controller.copies_of("after")[CANDIDATE].status == 504
