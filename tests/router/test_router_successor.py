"""A router that ends while a successor serves is noticed by none of its callers; at the end of a service each one gets its answer."""

import signal
import time
from pathlib import Path

from rig import PATIENCE, do, request

INFER = request("POST", "/v2/models/m/infer", b"{}")


def ask(client, body=b"{}"):
    return client.ask("POST", "/v2/models/m/infer", body)


def test_an_idle_connection_lives_on_in_the_successor(street):
    with street.connect() as fresh, street.connect() as used:
        assert ask(used).status == 200
        assert street.succeed().wait(PATIENCE) == 0
        for client in (fresh, used):
            answer = ask(client)
            assert (answer.status, answer.headers.get("connection")) == (200, None)


def test_a_connection_that_was_passed_on_may_be_as_idle_as_before(make_street):
    street = make_street(limits={"patience": 0.5, "idle": 30.0})
    with street.connect() as client:
        assert ask(client).status == 200
        assert street.succeed().wait(PATIENCE) == 0
        with street.connect() as silent:
            assert silent.at_end(), "a new one has half a second for its first request"
        assert ask(client).status == 200


def test_a_router_whose_path_cannot_be_had_serves_all_the_same(make_street, tmp_path):
    (tmp_path / "heir.sock").mkdir()
    street = make_street()
    assert street.infer().status == 200


def test_a_request_in_flight_is_answered_by_the_old_router_and_its_connection_lives_on(street):
    with street.connect() as client:
        client.send(request("POST", "/v2/models/m/infer", do("slow", seconds=0.5)))
        old = street.succeed()
        assert client.read().json == {"slow": True}
        assert ask(client).status == 200
        assert old.wait(PATIENCE) == 0
        assert ask(client).status == 200


def test_a_request_that_is_half_sent_ends_where_it_began(street):
    with street.connect() as client:
        client.send(INFER[:40])
        old = street.succeed()
        with street.connect() as other:
            assert ask(other).status == 200, "the successor serves"
        assert old.poll() is None
        client.send(INFER[40:])
        assert client.read().status == 200
        assert old.wait(PATIENCE) == 0
        assert ask(client).status == 200


def test_requests_that_were_sent_together_are_all_answered_in_their_order(street):
    with street.connect() as client:
        bodies = [do("slow", seconds=0.3), *(b"{}" + b" " * n for n in range(20))]
        client.send(b"".join(request("POST", "/v2/models/m/infer", body) for body in bodies))
        old = street.succeed()
        client.send(INFER)
        answers = [client.read() for _ in (*bodies, INFER)]
        assert [answer.json.get("length") for answer in answers] == [None, *range(2, 22), 2]
        assert old.wait(PATIENCE) == 0


def test_every_outcome_of_both_routers_is_written_down(street):
    ids = [f"r{n}" for n in range(4)]
    with street.connect() as client:
        client.ask("POST", "/v2/models/m/infer", b"{}", x_request_id=ids[0])
        client.send(
            request("POST", "/v2/models/m/infer", do("slow", seconds=0.3), x_request_id=ids[1])
            + request("POST", "/v2/models/m/infer", b"{}", x_request_id=ids[2])
        )
        old = street.succeed()
        client.read()
        client.read()
        assert old.wait(PATIENCE) == 0
        client.ask("POST", "/v2/models/m/infer", b"{}", x_request_id=ids[3])
    for request_id in ids:
        assert street.controller.outcome_of(request_id).status == 200


def test_a_successor_that_dies_leaves_the_rest_to_the_old_router(street):
    with street.connect() as waiting, street.connect() as client:
        waiting.send(request("POST", "/v2/models/m/infer", do("slow", seconds=0.5)))
        client.send(INFER[:40])
        old = street.succeed()
        street.router.kill()
        street.router.wait()
        client.send(INFER[40:])
        assert client.read().status == 200
        assert waiting.read().json == {"slow": True}
        assert waiting.at_end()
        assert old.wait(PATIENCE) == 0


def test_at_the_end_of_a_service_an_idle_caller_may_still_send_a_last_request(street):
    with street.connect() as client, street.connect() as silent:
        assert ask(client).status == 200
        assert ask(silent).status == 200
        street.router.send_signal(signal.SIGTERM)
        wait_until_ending(street)
        answer = ask(client)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert client.at_end()
        assert silent.at_end(), "it is not waited for longer than that"
    assert street.router.wait(PATIENCE) == 0


def wait_until_ending(street):
    """Until the router has closed its listening socket: nothing but the street holds that."""
    deadline = time.monotonic() + PATIENCE
    inode = Path(f"/proc/self/fd/{street.listener.fileno()}").readlink()
    while any(link == inode for link in _descriptors(street.router.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _descriptors(pid):
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            yield entry.readlink()
        except FileNotFoundError:
            continue
