"""What the router takes for a request, what it refuses, and what becomes of the connection."""

import select
import socket
import time

import pytest
from rig import do, request

INFER = "/v2/models/m/infer"
GET = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
POST = f"POST {INFER} HTTP/1.1\r\nHost: a\r\n".encode()

# what is sent, the statuses that come back in order, and whether the connection is closed then
TABLE = {
    "a plain request": (GET, [200], False),
    "empty lines before a request": (b"\r\n\r\n" + GET, [200], False),
    "a request in absolute form": (b"GET http://a/v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n", [200], False),
    "a query": (b"GET /v2/health/live?x=1 HTTP/1.1\r\nHost: a\r\n\r\n", [200], False),
    "two requests in one packet": (GET + GET, [200, 200], False),
    "a body by length": (POST + b"Content-Length: 2\r\n\r\n{}", [200], False),
    "a body in chunks": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
        [200],
        False,
    ),
    "chunks with a trailer": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nHost: b\r\n\r\n",
        [200],
        False,
    ),
    "a body that is asked for first": (
        POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n",
        [100],
        False,
    ),
    "HTTP/1.0 without Host": (b"GET /v2/health/live HTTP/1.0\r\n\r\n", [200], True),
    "HTTP/1.0 that keeps alive": (
        b"GET /v2/health/live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + GET,
        [200, 200],
        False,
    ),
    "Connection: close": (
        b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        [200],
        True,
    ),
    "no Host": (b"GET /v2/health/live HTTP/1.1\r\n\r\n", [400], True),
    "two Hosts": (b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", [400], True),
    "two equal Hosts": (b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", [400], True),
    "a length and chunks": (
        POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        [400],
        True,
    ),
    "two lengths": (POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", [400], True),
    "a list of lengths": (POST + b"Content-Length: 2, 2\r\n\r\n{}", [400], True),
    "a length with a sign": (POST + b"Content-Length: +2\r\n\r\n{}", [400], True),
    "a negative length": (POST + b"Content-Length: -2\r\n\r\n{}", [400], True),
    "a length of thirty digits": (POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n{}", [400], True),
    "an unknown coding": (
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        [501],
        True,
    ),
    "chunks in HTTP/1.0": (
        f"POST {INFER} HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n".encode(),
        [400],
        True,
    ),
    "a chunk size that is none": (
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        [400],
        True,
    ),
    "a chunk longer than it says": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n",
        [400],
        True,
    ),
    "a bare LF": (b"GET /v2/health/live HTTP/1.1\nHost: a\n\n", [400], True),
    "a folded header": (b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n", [400], True),
    "a space before the colon": (b"GET /v2/health/live HTTP/1.1\r\nHost : a\r\n\r\n", [400], True),
    "a NUL in a header": (b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", [400], True),
    "a bell in a header": (b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nX: \a\r\n\r\n", [400], True),
    "a relative target": (b"GET v2 HTTP/1.1\r\nHost: a\r\n\r\n", [400], True),
    "an unknown method": (b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", [400], True),
    "HTTP/0.9": (b"GET /v2 HTTP/0.9\r\nHost: a\r\n\r\n", [505], True),
    "HTTP/2.0 in words": (b"GET /v2 HTTP/2.0\r\nHost: a\r\n\r\n", [505], True),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400], True),
    "TLS on a plain port": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", [400], True),
    "an expectation nobody knows": (POST + b"Expect: cake\r\nContent-Length: 2\r\n\r\n{}", [417], True),
    "an upgrade that is not wanted": (
        b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        [200],
        True,
    ),
    "an upgrade with a body": (
        POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}",
        [400],
        True,
    ),
    "CONNECT": (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", [404], True),
    "a good one before a bad one": (GET + b"nonsense\r\n\r\n", [200, 400], True),
    "a slow one before a bad one": (
        POST + b"Content-Length: 2\r\n\r\n{}" + b"nonsense\r\n\r\n",
        [200, 400],
        True,
    ),
    "a URL of 9 KiB": (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", [414], True),
    "a URL without an end": (b"GET /" + b"x" * 100_000, [414], True),
    "a header of 17 KiB": (GET[:-2] + b"X: " + b"x" * 17_000 + b"\r\n\r\n", [431], True),
    "a header without an end": (GET[:-2] + b"X: " + b"x" * 100_000, [431], True),
    "101 headers": (GET[:-2] + b"X: x\r\n" * 100 + b"\r\n", [431], True),
    "100 headers": (GET[:-2] + b"X: x\r\n" * 99 + b"\r\n", [200], False),
    "a trailer without an end": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + b"X: x\r\n" * 200,
        [431],
        True,
    ),
    "a body over the limit": (POST + b"Content-Length: 67108865\r\n\r\n", [413], True),
    "a body over the limit that is asked for": (
        POST + b"Expect: 100-continue\r\nContent-Length: 67108865\r\n\r\n",
        [413],
        True,
    ),
    "no such path": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", [404], False),
    "no such model": (b"GET /v2/models/other HTTP/1.1\r\nHost: a\r\n\r\n", [404], False),
    "no such version": (b"GET /v2/models/m/versions/9 HTTP/1.1\r\nHost: a\r\n\r\n", [404], False),
    "a path with dots": (b"GET /v2/../v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n", [404], False),
    "a wrong method": (b"DELETE /v2 HTTP/1.1\r\nHost: a\r\n\r\n", [405], False),
    "an encoding nobody knows": (POST + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}", [415], False),
    "a JSON length that is none": (
        POST + b"Inference-Header-Content-Length: -1\r\nContent-Length: 2\r\n\r\n{}",
        [400],
        False,
    ),
    "a JSON length over the body's": (
        POST + b"Inference-Header-Content-Length: 3\r\nContent-Length: 2\r\n\r\n{}",
        [400],
        False,
    ),
}


@pytest.mark.parametrize("case", TABLE)
@pytest.mark.parametrize("pieces", ["at once", "byte by byte"])
def test_each_request_has_its_answer_and_its_connection_its_end(shared_street, case, pieces):
    sent, statuses, closed = TABLE[case]
    with shared_street.connect() as client:
        step = len(sent) if pieces == "at once" or len(sent) > 20_000 else 1
        try:
            for start in range(0, len(sent), step):
                client.send(sent[start : start + step])
        except ConnectionError:
            assert closed  # the router had seen enough
        answers = [client.read() for _ in statuses]
        assert [answer.status for answer in answers] == statuses
        for answer in answers:
            if answer.status >= 400:
                assert answer.headers["content-type"] == "application/json"
                assert list(answer.json) == ["error"]
        if closed:
            assert answers[-1].headers["connection"] == "close"
            assert client.at_end()
        elif statuses != [100]:
            assert client.ask("GET", "/v2/health/live").status == 200


def test_a_chunked_body_is_refused_while_it_streams(make_street):
    street = make_street(limits={"body_bytes": 100_000})
    with street.connect() as client:
        client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            client.send(b"%x\r\n" % 50_000 + b"x" * 50_000 + b"\r\n")
        assert client.read().status == 413


def test_all_bodies_together_have_a_limit_and_leave_their_room_again(make_street):
    street = make_street(limits={"bodies_bytes": 100_000})
    with street.connect() as one, street.connect() as two:
        one.send(POST + b"Content-Length: 90000\r\n\r\n" + b"x" * 60_000)
        two.send(POST + b"Content-Length: 90000\r\n\r\n" + b"x" * 60_000)
        assert (
            one if select.select([one.socket, two.socket], [], [], 10)[0] == [one.socket] else two
        ).read().status == 503
    for _ in range(3):
        assert street.infer(b"x" * 90_000).status == 200


def test_a_refused_body_does_not_reset_the_answer_away(shared_street):
    with shared_street.connect() as client:
        client.send(POST + b"Content-Length: 99999999\r\n\r\n")
        client.send(b"x" * 1_000_000)
        assert client.read().status == 413


def test_100_continue_is_said_once_and_the_body_is_taken_then(shared_street):
    with shared_street.connect() as client:
        client.send(POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert client.read().status == 100
        client.send(b"{}")
        assert client.read().json["length"] == 2


def test_100_continue_waits_for_the_answers_before_it(shared_street):
    with shared_street.connect() as client:
        first = POST + b"Content-Length: 2\r\n\r\n{}"
        client.send(first + POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert [client.read().status, client.read().status] == [200, 100]
        client.send(b"{}")
        assert client.read().status == 200


def test_pipelined_requests_are_answered_in_their_order(shared_street):
    with shared_street.connect() as client:
        for n in range(500):
            client.send(request("POST", INFER, b"{}", x_request_id=f"p{n}") + GET)
        for n in range(500):
            assert client.read().headers["x-request-id"] == f"p{n}"
            assert client.read().json == {"live": True}


def test_many_pipelined_requests_in_one_write_are_all_answered(shared_street):
    with shared_street.connect() as client:
        client.send(GET * 2000)
        assert all(client.read().status == 200 for _ in range(2000))


def test_a_body_of_eight_megabytes_arrives_whole(shared_street):
    body = b"x" * (8 << 20)
    assert shared_street.infer(body).json["length"] == len(body)


def test_a_large_answer_reaches_a_client_that_reads_slowly(make_street):
    street = make_street(limits={"patience": 0.5, "rate": 1_000_000})
    with street.connect() as client:
        client.send(request("POST", INFER, do("answer", size=24 << 20)))
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 << 10)
        answer = client.read()
        assert len(answer.body) > 24 << 20
        assert client.ask("GET", "/v2").status == 200


def test_head_is_get_without_the_body(shared_street):
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/m", "/v2/models/m/ready"):
        with shared_street.connect() as client:
            head, get = client.ask("HEAD", path), client.ask("GET", path)
            assert (head.status, head.body) == (200, b"")
            assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.body))


def test_a_client_that_half_closes_is_still_answered(shared_street):
    with shared_street.connect() as client:
        client.send(request("POST", INFER, b"{}") + GET * 1000)
        client.socket.shutdown(socket.SHUT_WR)
        assert all(client.read().status == 200 for _ in range(1001))
        assert client.at_end()


def test_allow_names_the_methods_of_a_path(shared_street):
    assert shared_street.ask("POST", "/v2").headers["allow"] == "GET, HEAD"
    assert shared_street.ask("GET", INFER).headers["allow"] == "POST"


def test_headers_of_the_clients_never_choose_a_version(shared_street):
    shared_street.split(0)
    for name in ("x_deployctl_version", "x_deployctl_arm"):
        assert shared_street.infer(**{name: "2"}).json["model_version"] == "1"


@pytest.mark.parametrize("part", ["a head", "a body", "nothing at all"])
def test_who_is_slow_with(make_street, part):
    street = make_street(limits={"patience": 1.0})
    sent = {"a head": GET[:-4], "a body": POST + b"Content-Length: 9\r\n\r\n{", "nothing at all": b""}[part]
    with street.connect() as client:
        began = time.monotonic()
        client.send(sent)
        if sent:
            assert client.read().status == 408
        assert client.at_end()
        assert time.monotonic() - began <= 1.2


def test_a_trickle_is_not_progress(make_street):
    street = make_street(limits={"patience": 1.0})
    with street.connect() as client:
        client.send(POST + b"Content-Length: 1000\r\n\r\n")
        client.socket.settimeout(0.05)
        began = time.monotonic()
        while time.monotonic() - began < 5:
            try:
                client.send(b"x")
                client.socket.recv(100)
                break
            except TimeoutError:
                continue
        assert time.monotonic() - began < 1.5


def test_a_client_that_does_not_read_is_closed(make_street):
    street = make_street(limits={"patience": 1.0})
    with street.connect() as client:
        client.send(request("POST", INFER, do("answer", size=32 << 20)))
        street.controller.wait(lambda: street.controller.outcomes)
        assert street.infer().status == 200  # others are served meanwhile
        wait_for_the_end(client)


def wait_for_the_end(client):
    """Until the router has dropped the connection, seen from the kernel and without reading."""
    closed_states = {7, 8}  # CLOSE, CLOSE_WAIT
    end = time.monotonic() + 5
    while client.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] not in closed_states:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_idle_connection_is_closed_without_a_word(make_street):
    street = make_street(limits={"idle": 0.5})
    with street.connect() as client:
        assert client.ask("GET", "/v2").status == 200
        assert client.at_end()


def test_too_many_connections_are_told_to_come_back(make_street):
    street = make_street(limits={"connections": 3})
    friends = [street.connect() for _ in range(3)]
    assert all(friend.ask("GET", "/v2").status == 200 for friend in friends)
    with street.connect() as client:
        answer = client.read()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert client.at_end()
    assert all(friend.ask("GET", "/v2").status == 200 for friend in friends)
    friends[0].close()
    deadline = time.monotonic() + 5
    while street.ask("GET", "/v2").status != 200:
        assert time.monotonic() < deadline
    for friend in friends:
        friend.close()


def test_too_many_requests_in_flight_are_refused_and_leave_no_outcome(make_street):
    street = make_street(limits={"in_flight": 2}, timeout=30)
    with street.connect() as one, street.connect() as two:
        for client in (one, two):
            client.send(request("POST", INFER, do("hold")))
        refused = street.infer(x_request_id="refused")
        while refused.status == 200:  # the two were not there yet
            refused = street.infer(x_request_id="refused")
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        street.workers[0].kill()
        assert {one.read().status, two.read().status} == {502}
    street.workers[0].start()
    street.infer(x_request_id="after")
    street.controller.outcome_of("after")
    assert 503 not in {outcome.status for outcome in street.controller.outcomes}
