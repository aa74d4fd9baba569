"""Both ends of the admin socket, over a real one: errors keep their code, garbage costs one connection."""

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import uvloop

from deployctl.errors import ConflictError, DeployctlError, InvalidError, UnavailableError
from deployctl.wire import admin

CURL = shutil.which("curl") or ""


async def answer(request):
    match request.path:
        case "/echo":
            return admin.AdminReply({"method": request.method, "query": request.query, "body": request.body})
        case "/conflict":
            raise ConflictError("rollout r-1 is running")
        case "/bug":
            raise KeyError("oops")
        case "/nan":
            return admin.AdminReply({"value": float("nan")})
        case "/three":
            return three()
        case "/breaks":
            return breaks()
    raise InvalidError(f"no such call: {request.path}")


async def three():
    for number in range(3):
        yield admin.line({"seq": number})
        await asyncio.sleep(0.01)


async def breaks():
    yield admin.line({"seq": 0})
    raise RuntimeError("the stream's source is gone")


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def path(request) -> Iterator[str]:
    """A server in a thread, on either event loop."""
    with tempfile.TemporaryDirectory(prefix="dctl") as directory:
        yield from served(f"{directory}/admin.sock", request.param())


def served(where: str, loop: asyncio.AbstractEventLoop) -> Iterator[str]:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(where)
    sock.listen(64)
    stop = asyncio.Event()

    async def run() -> None:
        server = admin.serve(sock, answer)
        await stop.wait()
        await server.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    yield where
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()
    sock.close()


def test_a_call_carries_query_and_body(path):
    with admin.AdminClient(path, "digits") as client:
        assert client.get("/echo?a=1%202") == {"method": "GET", "query": {"a": "1 2"}, "body": {}}
        assert client.post("/echo", {"x": [1]})["body"] == {"x": [1]}


def test_an_error_crosses_with_its_kind_and_its_words(path):
    with admin.AdminClient(path, "digits") as client:
        with pytest.raises(ConflictError, match="rollout r-1 is running"):
            client.get("/conflict")
        with pytest.raises(InvalidError, match="no such call"):
            list(client.stream("/nowhere"))


def test_a_bug_in_the_service_costs_one_call(path, caplog):
    with admin.AdminClient(path, "digits") as client:
        with pytest.raises(DeployctlError, match="KeyError"):
            client.get("/bug")
        assert client.get("/nan") == {"value": None}


def test_a_stream_ends_where_the_service_ends_it(path):
    with admin.AdminClient(path, "digits") as client:
        assert [document["seq"] for document in client.stream("/three")] == [0, 1, 2]


def test_a_stream_that_breaks_off_is_told_from_one_that_ends(path, caplog):
    with admin.AdminClient(path, "digits") as client:
        stream = client.stream("/breaks")
        assert next(stream) == {"seq": 0}
        with pytest.raises(UnavailableError):
            next(stream)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\0\1\2\r\n\r\n", b"400"),
        (b"GET /echo HTTP/1.1\r\n\r\n", b"400"),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n{]}", b"400"),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n[1]", b"400"),
        (b"G" * 20000, b"431"),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 2000000\r\n\r\n" + b" " * 1100000, b"413"),
        (b"GET /echo HTTP/1.0\r\n\r\n", b"200"),
    ],
)
def test_garbage_gets_an_answer_and_the_next_call_is_served(path, sent, status):
    with socket.socket(socket.AF_UNIX) as rude:
        rude.connect(path)
        rude.settimeout(10)
        with suppress(OSError):  # refused before all of it was sent
            rude.sendall(sent)
        assert rude.recv(65536).split()[1] == status
    with admin.AdminClient(path, "digits") as client:
        assert client.get("/echo")["method"] == "GET"


@pytest.mark.skipif(not CURL, reason="curl is not installed")
def test_curl_works(path):
    done = subprocess.run(
        [CURL, "-sN", "--unix-socket", path, "http://x/three"], check=True, capture_output=True
    )
    assert done.stdout.splitlines() == [b'{"seq":0}', b'{"seq":1}', b'{"seq":2}']


@pytest.mark.skipif(os.geteuid() != 0 or not CURL, reason="only root can call as somebody else")
def test_another_users_call_is_refused(path):
    for place in (Path(path), Path(path).parent):
        place.chmod(0o777)
    done = subprocess.run(
        [CURL, "-s", "--unix-socket", path, "http://x/echo"], check=False, capture_output=True, user=65534
    )
    assert b"only the user who runs the service" in done.stdout


# httpcore leaves the socket of a failed connect to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_socket_and_no_listener_say_how_to_start_the_service(tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    for where in ("missing", "dead"):
        with admin.AdminClient(tmp_path / where, "digits") as client:
            with pytest.raises(
                UnavailableError, match="'digits' is not running; start it with: deployctl up FILE"
            ):
                client.get("/echo")
            with pytest.raises(UnavailableError, match="is not running"):
                list(client.stream("/three"))


def test_a_service_that_never_answers_is_given_up_in_time(tmp_path):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
        silent.listen(8)
        with (
            admin.AdminClient(tmp_path / "silent", "digits") as client,
            pytest.raises(UnavailableError, match="does not answer"),
        ):
            client.get("/echo", timeout=0.3)
