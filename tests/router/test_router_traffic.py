"""Who is answered by which version, what happens to it on the way, and what is recorded."""

import asyncio
import itertools
import os
import signal
import time
from pathlib import Path

import pytest
from rig import Load, do, request, rows, versions_of

from deployctl.core.plan import Split, Version
from deployctl.router.http import Request
from deployctl.router.outcomes import MAX_KEPT, Outcome, Outcomes
from deployctl.router.server import Server, Settings
from deployctl.router.suspension import LONGEST_STALL
from deployctl.wire.frames import Answer
from deployctl.wire.orders import HELD_UP, LabelRow, Order, Upstream, decode_up

INFER = "/v2/models/m/infer"
BASELINE, CANDIDATE = 0, 1


# -- assignment


def test_five_percent_of_a_hundred_thousand_keys_is_five_percent(make_street):
    street = make_street(routing_key="X-User-Id")
    street.split(5)
    answered = versions_of(street, [f"user-{n}" for n in range(100_000)])
    share = sum(version == "2" for version in answered.values()) / 1000
    assert 4.7 <= share <= 5.3
    street.controller.wait(lambda: len(street.controller.outcomes) == 100_000)
    recorded = sum(outcome.arm for outcome in street.controller.outcomes) / 1000
    assert recorded == pytest.approx(share)


def test_raising_the_weight_only_adds_callers_and_a_restart_changes_nothing(make_street):
    street = make_street(routing_key="x-user-id")
    keys = [f"user-{n}" for n in range(1000)]
    before = set()
    for weight in (5, 20, 20, 50):
        street.split(weight)
        now = {key for key, version in versions_of(street, keys).items() if version == "2"}
        assert before <= now
        assert len(now) == pytest.approx(weight * 10, abs=60)
        before = now
    street.router.kill()
    street.router.wait()
    street.start()
    street.controller.wait(lambda: len(street.controller.hellos) == 2)
    again = {key for key, version in versions_of(street, keys).items() if version == "2"}
    assert again == before
    street.split(50, salt="rollout-2")
    other = {key for key, version in versions_of(street, keys).items() if version == "2"}
    assert other != before


def test_the_weight_covers_nobody_at_0_and_everybody_at_100(street):
    for weight, version in ((0, "1"), (100, "2"), (0, "1")):
        street.split(weight)
        assert {street.infer().json["model_version"] for _ in range(20)} == {version}
    street.split(0, candidate=False)
    assert street.infer().json["model_version"] == "1"


def test_without_a_routing_key_the_request_id_decides(make_street):
    street = make_street(routing_key="x-user-id")
    street.split(50)
    for headers in ({"x_request_id": "same"}, {"x_user_id": "same", "x_request_id": "other"}):
        assert len({street.infer(**headers).json["model_version"] for _ in range(10)}) == 1
    assert len({street.infer(x_user_id="").json["model_version"] for _ in range(40)}) == 2


def test_a_versioned_path_overrides_the_weight_and_is_no_evidence(street):
    street.split(5)
    for version, arm in (("1", BASELINE), ("2", CANDIDATE)):
        path = f"/v2/models/m/versions/{version}"
        assert street.infer(path=f"{path}/infer", x_request_id=f"v{version}").json["model_version"] == version
        assert street.ask("GET", f"{path}/ready").json == {"name": "m", "ready": True}
        assert street.ask("GET", path).json["version"] == version
        outcome = street.controller.outcome_of(f"v{version}")
        assert (outcome.arm, outcome.explicit) == (arm, 1)


@pytest.mark.parametrize("mirror", [0, 100])
def test_a_candidate_that_serves_nobody_is_not_there(street, mirror):
    street.split(0, mirror=mirror)
    for path in ("", "/ready"):
        assert street.ask("GET", f"/v2/models/m/versions/2{path}").status == 404
    refused = street.infer(path="/v2/models/m/versions/2/infer", x_request_id="r")
    assert (refused.status, refused.headers["x-request-id"]) == (404, "r")


def test_any_other_loaded_version_can_be_addressed(street):
    before, live = street.workers
    street.controller.apply(street.order(0, candidate=False, upstreams=(before.upstream, live.upstream)))
    assert street.infer(path="/v2/models/m/versions/2/infer", x_request_id="v").json["model_version"] == "2"
    assert street.controller.outcome_of("v").explicit == 1


# -- what comes back


def test_the_binary_extension_passes_through(street):
    body = do("answer", binary=8)
    answer = street.infer(body, inference_header_content_length=len(body))
    assert answer.headers["content-type"] == "application/octet-stream"
    assert int(answer.headers["inference-header-content-length"]) == len(answer.body) - 8


def test_the_final_id_stands_in_header_and_outcome(street):
    assert street.infer(x_request_id="from-header").headers["x-request-id"] == "from-header"
    answer = street.infer(do("answer", request_id="from-body"), x_request_id="from-header-2")
    assert answer.headers["x-request-id"] == "from-body"
    assert street.controller.outcome_of("from-body").prediction == "7"
    made = [street.infer(x_request_id="").headers["x-request-id"] for _ in range(3)]
    assert len({*made, ""}) == 4


def test_an_id_of_any_characters_breaks_no_header(street):
    odd = 'a"\r\nSet-Cookie: x\nß\u2028'
    answer = street.infer(do("answer", request_id=odd))
    assert answer.headers["x-request-id"].isascii()
    assert "set-cookie" not in answer.headers
    assert street.controller.outcome_of(odd).status == 200


def test_a_null_and_a_failure_are_recorded_as_the_worker_saw_them(street):
    street.infer(do("answer", null=True, prediction=None), x_request_id="null")
    assert street.infer(do("answer", status=500), x_request_id="failed").status == 500
    null, failed = street.controller.outcome_of("null"), street.controller.outcome_of("failed")
    assert (null.null, null.prediction, null.status) == (1, None, 200)
    assert failed.status == 500


# -- what goes wrong


def test_a_worker_that_hangs_is_504_with_the_latency_of_the_timeout(make_street):
    street = make_street(timeout=0.3)
    assert street.infer(do("hang"), x_request_id="hung").status == 504
    outcome = street.controller.outcome_of("hung")
    assert outcome.status == 504
    assert outcome.latency == pytest.approx(300, abs=100)
    assert street.infer().status == 200


def test_a_worker_that_stops_reading_costs_deadlines_and_no_memory(make_street):
    street = make_street(timeout=0.3)
    os.kill(street.workers[0].process.pid, signal.SIGSTOP)
    before = resident(street.router.pid)
    for _ in range(3):
        with street.connect() as client:
            client.send(b"".join(request("POST", INFER, b"x" * (8 << 20)) for _ in range(3)))
            assert [client.read().status for _ in range(3)] == [504] * 3
    assert resident(street.router.pid) - before < 64 << 20
    os.kill(street.workers[0].process.pid, signal.SIGCONT)
    with street.connect() as client:
        while client.ask("POST", INFER, b"{}").status != 200:
            pass


def resident(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_status_that_is_none_is_502(street):
    for status in (0, 100, 204, 304, 999):
        assert street.infer(do("answer", status=status)).status == 502
    assert street.infer().status == 200


@pytest.mark.parametrize("end", ["crash", "garbage"])
def test_a_worker_lost_with_a_request_is_502_and_comes_back(street, end):
    assert street.infer(do(end), x_request_id="lost").status == 502
    assert street.controller.outcome_of("lost").status == 502
    if end == "crash":
        street.workers[0].start()
    assert street.infer().status == 200


def test_a_killed_worker_costs_its_own_version_only(street):
    street.split(50)
    street.workers[1].kill()
    with street.connect() as client:
        assert client.ask("POST", "/v2/models/m/versions/1/infer", b"{}").status == 200
        assert client.ask("GET", "/v2/health/ready").status == 200
        assert client.ask("GET", "/v2/models/m/versions/2/ready").status == 503


def test_readiness_follows_the_live_version(street):
    street.workers[0].kill()
    street.controller.wait(
        lambda: street.workers[0].upstream.digest not in street.controller.read_backs[-1].connected
    )
    ready = street.ask("GET", "/v2/health/ready")
    assert (ready.status, ready.json) == (503, {"live": True, "ready": False})
    assert street.ask("GET", "/v2/health/live").status == 200
    assert street.ask("GET", "/v2/models/m/ready").status == 503
    street.workers[0].start()
    street.controller.wait(
        lambda: street.workers[0].upstream.digest in street.controller.read_backs[-1].connected
    )
    assert street.ask("GET", "/v2/health/ready").status == 200


@pytest.mark.parametrize("weight", [0, 100])
def test_a_request_waits_for_its_worker_in_both_arms(street, weight):
    street.split(weight)
    worker = street.workers[weight // 100]
    worker.kill()
    street.controller.wait(lambda: worker.upstream.digest not in street.controller.read_backs[-1].connected)
    with street.connect() as client:
        client.send(request("POST", INFER, b"{}"))
        worker.start()
        assert client.read().json["model_version"] == worker.version


def test_a_request_waits_no_longer_than_its_deadline(make_street):
    street = make_street(timeout=0.3)
    street.workers[0].kill()
    street.controller.wait(lambda: len(street.controller.read_backs[-1].connected) == 1)
    assert street.infer(x_request_id="held").status == 504
    assert street.controller.outcome_of("held").status == 504


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_left_is_499_with_the_time_it_stayed(street, reset):
    with street.connect() as client:
        client.send(request("POST", INFER, do("hang"), x_request_id="left"))
        street.infer()  # later than the one that hangs, so that one is with the worker now
        client.leave(reset=reset)
    outcome = street.controller.outcome_of("left")
    assert outcome.status == 499
    assert outcome.latency < 5000


# -- orders


def test_an_older_fence_is_refused(street):
    split = street.split(5, fence=7)
    street.controller.send(street.order(100, fence=6))
    refused = street.controller.wait(lambda: [r for r in street.controller.read_backs if r.refused])[0]
    assert (refused.fence, refused.split) == (7, split)
    assert "6" in refused.refused
    street.split(0, fence=7)


def test_nobody_is_served_and_nobody_refused_before_the_first_order(make_street):
    street = make_street(order=False)
    street.controller.wait(lambda: street.controller.hellos)
    with street.connect() as client:
        client.send(request("POST", INFER, b"{}"))
        street.split(0)
        assert client.read().status == 200


def test_a_version_that_leaves_the_order_finishes_what_it_has(street):
    street.split(100)
    with street.connect() as client:
        client.send(request("POST", INFER, do("hold"), x_request_id="old"))
        street.infer()
        order = street.order(0, candidate=False, upstreams=(street.workers[0].upstream,))
        street.controller.apply(order)
        assert street.infer().json["model_version"] == "1"
        street.workers[1].kill()
        assert client.read().status == 502  # its own worker's end, not the order's
    assert street.controller.outcome_of("old").arm == CANDIDATE


def test_a_rollback_holds_although_its_order_has_no_worker_of_the_candidate(street):
    street.split(50)
    street.workers[1].kill()
    street.controller.apply(street.order(0, upstreams=(street.workers[0].upstream,)))
    assert {street.infer().status for _ in range(20)} == {200}


def test_a_split_whose_workers_are_still_to_come_holds_its_requests(make_street):
    street = make_street(order=False)
    order = street.order(5, upstreams=())
    street.controller.apply(order)
    with street.connect() as client:
        assert client.ask("GET", "/v2/health/ready").status == 503
        client.send(request("POST", INFER, b"{}"))
        street.split(5)
        assert client.read().status == 200


def test_a_worker_on_another_socket_takes_over(street, tmp_path):
    worker = street.workers[0]
    worker.kill()
    street.controller.wait(lambda: worker.upstream.digest not in street.controller.read_backs[-1].connected)
    worker.socket = str(tmp_path / "elsewhere.sock")
    worker.upstream = Upstream(worker.version, worker.upstream.digest, worker.socket)
    with street.connect() as client:
        client.send(request("POST", INFER, b"{}"))
        worker.start()
        street.split(0)
        assert client.read().status == 200


def test_no_request_fails_while_the_weight_changes_under_load(street):
    weights = itertools.chain(range(0, 101, 5), range(100, -1, -5), [0, 100] * 10)
    with Load(street) as load:
        for weight in weights:
            street.split(weight)
            seen = sum(load.statuses.values())
            while sum(load.statuses.values()) < seen + 50 and not load.errors:
                time.sleep(0.001)
    assert not load.errors
    assert set(load.statuses) == {200}
    assert set(load.versions) == {"1", "2"}


# -- outcomes


def test_outcomes_arrive_soon(street):
    delays = []
    for n in range(50):
        street.infer(x_request_id=f"n{n}")
        now = time.monotonic()
        street.controller.outcome_of(f"n{n}")
        delays.append((time.monotonic() - now) * 1000)
    print(f"outcome at the controller: median {sorted(delays)[25]:.1f} ms, worst {max(delays):.1f} ms")  # noqa: T201 - for whoever runs this with -s
    assert sorted(delays)[25] < 20


def test_without_a_controller_traffic_flows_and_outcomes_come_later_exactly_once(street):
    controller = street.controller
    controller.acknowledging = False
    ids = [f"before-{n}" for n in range(50)] + [f"after-{n}" for n in range(50)]
    for request_id in ids[:50]:
        assert street.infer(x_request_id=request_id).status == 200
    controller.wait(lambda: len(controller.outcomes) == 50)
    seen = len(controller.batches)
    controller.go_away()
    for request_id in ids[50:]:
        assert street.infer(x_request_id=request_id).status == 200
    assert street.infer(b'{"labels": [{"id": "a", "label": "b"}]}', path="/v2/models/m/labels").status == 200
    controller.acknowledging = True
    controller.come_back()
    controller.wait(lambda: len({o.id for o in controller.outcomes}) == 100)
    again = controller.batches[seen:]
    assert [batch.number for batch in again[:seen]] == [batch.number for batch in controller.batches[:seen]]
    assert again[0] == controller.batches[0]
    controller.wait(lambda: sum(len(batch.labels) for batch in controller.batches[seen:]) == 1)
    once = {batch.number: batch for batch in controller.batches}
    assert sorted(once) == list(range(1, len(once) + 1))
    assert sorted(o.id for batch in once.values() for o in rows(batch)) == sorted(ids)


def test_no_outcome_comes_below_a_watermark_that_was_announced(make_street):
    street = make_street(timeout=0.2)
    street.split(50)
    wishes = [b"{}"] * 20 + [do("hang"), do("hold"), do("release"), do("answer", size=1 << 20), do("crash")]
    with Load(street, clients=2), Load(street, clients=2, body=do("hang")), street.connect() as client:
        for n in range(300):
            client.ask("POST", INFER, wishes[n % len(wishes)])
            if n % 10 == 0:
                with street.connect() as leaver:
                    leaver.send(request("POST", INFER, do("hang")))
            for worker in street.workers:
                if worker.process.poll() is not None:
                    worker.start()
    street.infer(x_request_id="last")
    last = street.controller.outcome_of("last")
    street.controller.wait(lambda: street.controller.batches[-1].watermark > last.start)
    check_watermarks(street.controller.batches)
    assert {200, 499, 502, 504} <= {outcome.status for outcome in street.controller.outcomes}


def check_watermarks(batches):
    announced = 0.0
    for batch in batches:
        assert all(outcome.start >= announced for outcome in rows(batch) if not outcome.explicit)
        assert batch.watermark >= announced
        announced = batch.watermark


def test_a_batch_that_leaves_between_answer_and_record_does_not_announce_too_much():
    class Client:
        """Whose next request, served as soon as this one is answered, fills a batch."""

        def answer(self, *_):
            server.outcomes.add_labels([LabelRow("a", "7")])
            server.outcomes.flush()

    async def serve():
        baseline = Version("1", "sha256:1")
        server.apply(Order(1, Split(1, baseline), (Upstream("1", "sha256:1", "/nowhere"),)))
        server.outcomes.connected(sent.append)
        exchange = server.serve(Request(b"POST", INFER.encode(), {}, keep_alive=True, old=False), Client())
        exchange.answered(Answer(stream=exchange.stream, status=200, body=b""))
        server.outcomes.flush()
        server.upstreams.close()

    sent = []
    server = Server(Settings(model="m", timeout=1.0), lambda: None)
    asyncio.run(serve())
    batches = [decode_up(message[4:]) for message in sent]
    assert [len(batch.id) for batch in batches] == [0, 1]
    check_watermarks(batches)


def test_the_watermark_follows_the_last_request_in_flight(make_street):
    street = make_street(timeout=0.5)
    with street.connect() as client:
        client.send(request("POST", INFER, do("hang"), x_request_id="slow"))
        while not street.controller.outcomes:
            street.infer(x_request_id="quick")
        assert street.controller.batches[0].watermark <= street.controller.outcomes[0].start
        client.read()
    slow = street.controller.outcome_of("slow")
    latest = max(outcome.start for outcome in street.controller.outcomes)
    street.controller.wait(lambda: street.controller.batches[-1].watermark > max(latest, slow.start))


def test_labels_are_taken_or_refused_with_a_reason(street):
    path = "/v2/models/m/labels"
    good = b'{"labels": [{"id": "a", "label": "7", "annotator": "eve", "at": "2026-01-01T00:00:00Z", "shown": true}]}'
    answer = street.infer(good, path=path)
    assert (answer.status, answer.json) == (200, {"accepted": 1})
    labels = street.controller.wait(
        lambda: [row for batch in street.controller.batches for row in batch.labels]
    )
    assert labels == [LabelRow("a", "7", "eve", "2026-01-01T00:00:00Z", shown=True)]
    for bad in (
        b"",
        b"[]",
        b'{"labels": [{"id": 1, "label": "7"}]}',
        b'{"labels": [{"id": "", "label": "7"}]}',
        b'{"labels": [{"id": "a", "label": ""}]}',
        b'{"labels": [{"id": "a", "label": "7", "at": "tomorrow"}]}',
        b'{"labels": [{"id": "a", "label": "7"}, {"id": "b", "label": "7", "at": "2999-01-01T00:00:00Z"}]}',
        b'{"labels": [{"id": "a", "label": "%b"}]}' % (b"7" * 5000),
        b'{"labels": [{"id": "a"}]}',
        b'{"labels": "\xff"}',
    ):
        answer = street.infer(bad, path=path)
        assert answer.status == 400
        assert "labels" in answer.json["error"]
    assert street.infer(b" " * (9 << 20), path=path).status == 413


def test_what_the_buffer_cannot_hold_is_dropped_and_counted():
    async def fill():
        outcomes = Outcomes(lambda: (1.0, 1.0))
        for _ in range(MAX_KEPT + 10):
            outcomes.record(
                Outcome("id", bytes(8), 0, 1, 0.5, 1.0, 200, null=False, explicit=False, prediction=None)
            )
        assert outcomes.dropped == 10
        assert not outcomes.add_labels([LabelRow("a", "b")])
        outcomes.flush()
        sent = []
        outcomes.connected(sent.append)
        batches = [decode_up(message[4:]) for message in sent]
        assert sum(len(batch.id) for batch in batches) == MAX_KEPT
        assert batches[-1].dropped == 10
        outcomes.acknowledged(batches[-1].number)
        assert outcomes.all_written_down
        assert outcomes.add_labels([LabelRow("a", "b")])
        outcomes.flush()

    asyncio.run(fill())


def test_a_lone_surrogate_costs_no_batch():
    async def send():
        sent = []
        outcomes = Outcomes(lambda: (1.0, 1.0))
        outcomes.connected(sent.append)
        for odd in ("\ud800", "fine"):
            outcomes.record(
                Outcome(odd, bytes(8), 0, 1, 0.5, 1.0, 200, null=False, explicit=False, prediction=odd)
            )
        outcomes.flush()
        assert decode_up(sent[0][4:]).id == ["?", "fine"]

    asyncio.run(send())


# -- the end


def test_sigterm_finishes_what_is_in_flight_and_says_the_last_word(street):
    with street.connect() as busy, street.connect() as idle:
        assert idle.ask("GET", "/v2").status == 200
        busy.send(request("POST", INFER, do("hold"), x_request_id="last"))
        street.infer()
        street.router.send_signal(signal.SIGTERM)
        assert idle.at_end()
        os.kill(street.workers[0].process.pid, signal.SIGKILL)
        answer = busy.read()
        assert (answer.status, answer.headers["connection"]) == (502, "close")
    assert street.router.wait(20) == 0
    assert street.controller.outcome_of("last").status == 502


def test_sigint_is_somebody_elses_business(street):
    street.router.send_signal(signal.SIGINT)
    assert street.infer().status == 200
    assert street.stop() == 0


def test_a_router_without_an_order_ends_at_once(make_street):
    street = make_street(order=False)
    street.controller.wait(lambda: street.controller.hellos)
    assert street.stop() == 0


def test_a_killed_router_is_replaced_on_the_same_socket(street):
    street.router.kill()
    street.router.wait()
    with street.connect() as client:  # waits in the backlog of the socket that the supervisor holds
        client.send(request("POST", INFER, b"{}"))
        street.start()
        assert client.read().status == 200
    names = {hello.router for hello in street.controller.hellos}
    assert len(names) == len(street.controller.hellos) == 2


# -- suspension


def test_what_was_under_way_while_the_router_did_not_run_is_marked(street):
    """Late by no version's fault: what waited for its answer, and what was answered meanwhile. What comes after counts again."""
    street.split(50)
    with street.connect() as client, street.connect() as other:
        client.send(request("POST", INFER, do("hold"), x_request_id="held"))
        other.send(request("POST", INFER, do("slow", seconds=0.3), x_request_id="slow"))
        street.infer()  # later than those that wait, so that they are with their workers now
        street.suspend(LONGEST_STALL + 0.2)
        assert other.read().status == 200
        for _ in range(20):
            street.infer(do("release"))  # both workers
        client.read()
    held, slow = street.controller.outcome_of("held"), street.controller.outcome_of("slow")
    assert (held.explicit, slow.explicit) == (HELD_UP, HELD_UP)
    street.infer(x_request_id="after")
    assert street.controller.outcome_of("after").explicit == 0
