"""One call to a webhook, against a real server on loopback."""

import asyncio
import gzip
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hook_receiver import serving

from deployctl.webhooks import CONTENT_TYPE, MAX_ANSWER, Caller


@pytest.fixture
def receiver():
    with serving() as receiver:
        yield receiver


def hook(url=None, **changes):
    given = {"url": url, "urlFile": None, "tokenFile": None, "timeout": 5.0, "retries": 2}
    return given | changes


def call(*hooks, event=b'{"specversion": "1.0"}'):
    async def calls():
        caller = Caller()
        try:
            return [await caller.call(one, event) for one in hooks]
        finally:
            await caller.close()

    return asyncio.run(calls())


def test_an_event_is_posted_and_two_hundred_is_a_yes(receiver):
    (answer,) = call(hook(receiver.url))
    assert (answer.agreed, answer.refused) == (True, False)
    ((_, headers, body),) = receiver.came
    assert body == b'{"specversion": "1.0"}'
    assert {name.lower(): value for name, value in headers.items()}["content-type"] == CONTENT_TYPE


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("text/plain; charset=utf-8", b"fine by kim \x1b[31m\nmore", "fine by kim [31m"),
        ("application/json", b'{"reason": "signed off"}', "signed off"),
        ("application/json", b'{"message": "signed off"}', "signed off"),
        ("application/json", b'["signed off"]', "answered 200"),
        ("application/json", b"{", "answered 200"),
        ("text/html", b"<!doctype html><p>hello", "answered 200"),
        ("text/plain", b"x" * 100_000, "x" * 200),
        ("text/plain", b"\xff\xfe", "\ufffd\ufffd"),
    ],
)
def test_what_it_says_becomes_one_printable_line(receiver, kind, body, words):
    receiver.answers = [(200, kind, body)]
    (answer,) = call(hook(receiver.url))
    assert (answer.agreed, answer.words) == (True, words)
    assert len(body) <= MAX_ANSWER or len(answer.words) == 200


@pytest.mark.parametrize("status", [301, 302, 304, 400, 401, 403, 404, 409])
def test_what_will_not_change_is_not_tried_again(receiver, status):
    receiver.answers = [(status, "text/plain", b"" if status == 304 else b"no")]
    (answer,) = call(hook(receiver.url))
    assert (answer.agreed, answer.refused, len(receiver.came)) == (False, True, 1)
    assert str(status) in answer.words


@pytest.mark.parametrize("status", [500, 503, 408, 429])
def test_what_may_pass_is_tried_again_at_once(receiver, status):
    receiver.answers = [
        (status, "text/plain", b"later"),
        (status, "text/plain", b"later"),
        (204, "text/plain", b""),
    ]
    (answer,) = call(hook(receiver.url))
    assert (answer.agreed, len(receiver.came)) == (True, 3)


def test_it_is_tried_as_often_as_the_manifest_says(receiver):
    receiver.answers = [(503, "text/plain", b"busy")]
    (answer,) = call(hook(receiver.url, retries=1))
    assert (answer.agreed, answer.refused, answer.words) == (False, False, "answered 503: busy")
    assert len(receiver.came) == 2


def test_one_that_does_not_answer_in_time_has_not_agreed(receiver):
    receiver.answers = [(None, "", b"")]
    (answer,) = call(hook(receiver.url, timeout=0.1, retries=0))
    assert (answer.agreed, answer.refused, answer.words) == (False, False, "no answer within 0.1 s")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/hook?secret=swordfish",
        "http://no.such.host.invalid/swordfish",
        "https://[::1]:1/swordfish",
    ],
)
def test_one_that_cannot_be_reached_has_not_agreed_and_its_url_is_not_said(url):
    (answer,) = call(hook(url, retries=0))
    assert (answer.agreed, answer.refused) == (False, False)
    assert answer.words.startswith("cannot be reached")
    assert "swordfish" not in answer.words


def test_a_server_that_is_none_has_not_agreed():
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def talk():
            for _ in range(2):
                connection, _ = listening.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        (answer,) = call(hook(f"http://127.0.0.1:{listening.getsockname()[1]}/", retries=1))
        thread.join(10)
    assert (answer.agreed, answer.refused) == (False, False)


def test_an_answer_that_never_ends_is_read_no_further_than_it_must_be():
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def talk():
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n"
                )
                try:
                    while True:
                        connection.sendall(b"1000\r\n" + b"y" * 4096 + b"\r\n")
                except OSError:
                    pass

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        (answer,) = call(hook(f"http://127.0.0.1:{listening.getsockname()[1]}/"))
        thread.join(10)
    assert answer.agreed
    assert not thread.is_alive()


def test_secrets_come_from_files_that_are_read_at_each_call(receiver, tmp_path):
    url, token = tmp_path / "url", tmp_path / "token"
    url.write_text(f"{receiver.url}\n")
    token.write_text("first\n")

    async def calls():
        caller = Caller()
        given = hook(urlFile=str(url), tokenFile=str(token))
        answers = [await caller.call(given, b"{}")]
        token.write_text("second")
        answers.append(await caller.call(given, b"{}"))
        token.unlink()
        answers.append(await caller.call(given, b"{}"))
        url.write_text("ftp://example.com")
        answers.append(await caller.call(hook(urlFile=str(url)), b"{}"))
        await caller.close()
        return answers

    answers = asyncio.run(calls())
    assert [answer.agreed for answer in answers] == [True, True, False, False]
    sent = [
        {name.lower(): value for name, value in headers.items()}["authorization"]
        for _, headers, _ in receiver.came
    ]
    assert sent == ["Bearer first", "Bearer second"]
    assert answers[2].words == f"tokenFile: {token}: cannot be read: No such file or directory"
    assert "no http: or https: URL" in answers[3].words


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff", b"a\x00b\n"])
def test_a_file_with_nothing_to_send_is_said(receiver, tmp_path, content):
    (tmp_path / "token").write_bytes(content)
    (answer,) = call(hook(receiver.url, tokenFile=str(tmp_path / "token")))
    assert not answer.agreed
    assert answer.words.startswith(f"tokenFile: {tmp_path / 'token'}: ")
    assert receiver.came == []


@pytest.mark.parametrize("times", [1, 2])
def test_what_is_packed_is_not_unpacked(receiver, times):
    body, packed = b"fine by kim\n" + bytes(50_000_000), ", ".join(times * ["gzip"])
    for _ in range(times):
        body = gzip.compress(body)
    receiver.packed, receiver.answers = packed, [(200, "text/plain", body)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (answer,) = call(hook(receiver.url))
    assert (answer.agreed, answer.words) == (True, "answered 200")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
    assert {name.lower(): value for name, value in receiver.came[0][1].items()}[
        "accept-encoding"
    ] == "identity"


def test_a_secret_that_comes_back_is_not_repeated(receiver, tmp_path):
    (tmp_path / "token").write_text("t0p-secret")
    said = f"no route for {receiver.url} (/hook?secret=swordfish) with Bearer t0p-secret"
    receiver.answers = [(404, "text/plain", said.encode())]
    (answer,) = call(hook(receiver.url, tokenFile=str(tmp_path / "token")))
    assert "swordfish" not in answer.words
    assert "t0p-secret" not in answer.words
    assert answer.words.startswith("answered 404: no route for [redacted]")


def test_a_pipe_in_the_place_of_a_file_is_said_and_not_waited_for(receiver, tmp_path):
    os.mkfifo(tmp_path / "address")
    (answer,) = call(hook(urlFile=str(tmp_path / "address")))
    assert (answer.agreed, answer.words) == (False, f"urlFile: {tmp_path / 'address'}: is no regular file")


@pytest.mark.parametrize(
    ("variable", "value", "url"),
    [
        ("SSL_CERT_FILE", "/no/such/file", None),
        ("ALL_PROXY", "socks5://127.0.0.1:1", None),
        ("HTTP_PROXY", "ftp://127.0.0.1:1", None),
        ("UNUSED", "", "http://xn--a/"),
    ],
)
def test_whatever_a_library_makes_of_the_environment_is_no_agreement(
    monkeypatch, receiver, tmp_path, variable, value, url
):
    (tmp_path / "address").write_text(url or receiver.url)
    monkeypatch.setenv(variable, value)
    (answer,) = call(hook(urlFile=str(tmp_path / "address"), retries=0))
    assert not answer.agreed
    assert answer.words
    assert "swordfish" not in answer.words


def test_redirects_are_not_followed(receiver):
    receiver.answers = [(302, "text/plain", b""), (200, "text/plain", b"")]
    (answer,) = call(hook(receiver.url))
    assert (answer.agreed, len(receiver.came)) == (False, 1)
    assert receiver.events()[0] == {"specversion": "1.0"}


def test_the_desk_of_the_examples_says_yes_when_a_person_does():
    script = Path(__file__).parents[1] / "examples" / "webhooks" / "desk.py"
    with subprocess.Popen(
        [sys.executable, "-u", str(script), "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as desk:
        try:
            url = desk.stdout.readline().split()[-1]
            event = json.dumps(
                {"id": "a/1/ask", "subject": "a", "text": "a: confirm", "time": "now"}
            ).encode()
            ask = hook(f"{url}/ask", retries=0)
            early, first, yes, second, again, told, bad = call(
                hook(f"{url}/yes/a/1/ask", retries=0),
                *(ask, hook(f"{url}/yes/a/1/ask"), ask, ask, hook(f"{url}/tell"), hook(f"{url}/no")),
                event=event,
            )
            said = [one.agreed for one in (early, first, yes, second, again, told, bad)]
            assert said == [False, False, True, True, True, True, False]
            (other,) = call(ask, event=event.replace(b"a/1", b"a/2"))
            assert not other.agreed, "a yes to one step is none to the next"
            assert first.words == "answered 403: nobody has said yes yet"
            assert [desk.stdout.readline().strip() for _ in range(3)] == [
                "a: confirm",
                f"yes: curl --data WHO {url}/yes/a/1/ask",
                "now  a: confirm",
            ]
        finally:
            desk.terminate()
