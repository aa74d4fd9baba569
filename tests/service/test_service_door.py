"""Who is let in: TLS and bearer tokens of a whole service, and what is wrong with the files that they come from."""

import os
import resource
import signal
import socket
import ssl
import threading
import time
from contextlib import ExitStack

import httpx
import pytest
import trustme
from service_rig import NAME, Box, command, wait_for
from traffic_maker import BODIES

INFER = f"/v2/models/{NAME}/infer"
TOKEN, OTHER = "a-token-of-the-line-0123456789", "another-token-0123456789abcdef=="


def write(path, data, mode=0o600):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    path.chmod(mode)
    return path


class Secured(Box):
    """A box with a certificate of its own authority, and tokens."""

    def __init__(self, folder):
        super().__init__(folder)
        self.authority = trustme.CA()
        self.service = {"tls": {"cert": "box.crt", "key": "box.key"}, "tokens": "tokens.txt"}
        self.certify()
        self.admit(TOKEN)

    def certify(self, key=trustme.KeyType.ECDSA):
        """A new certificate with a key of this type."""
        issued = self.authority.issue_cert("127.0.0.1", key_type=key)
        write(self.folder / "box.crt", b"".join(pem.bytes() for pem in issued.cert_chain_pems), 0o644)
        write(self.folder / "box.key", issued.private_key_pem.bytes())

    def admit(self, *tokens):
        write(self.folder / "tokens.txt", "# of the line\n\n" + "\n".join(tokens) + "\n")

    def trust(self):
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    def client(self, token=TOKEN, **more):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, verify=self.trust(), timeout=20, **more)

    def serial(self):
        """Of the certificate that a new caller is shown."""
        host, port = self.url.removeprefix("https://").split(":")
        with (
            socket.create_connection((host, int(port)), timeout=20) as plain,
            self.trust().wrap_socket(plain, server_hostname=host) as secure,
        ):
            return secure.getpeercert()["serialNumber"]

    @property
    def log(self):
        return (self.home.log / "service.log").read_text()


@pytest.fixture
def secured(tmp_path):
    box = Secured(tmp_path)
    yield box
    box.close()


def test_callers_see_the_certificate_and_need_a_token(secured):
    assert secured.up().url.startswith("https://")
    with secured.client() as client:
        answers = [client.post(INFER, content=body) for body in BODIES]
        assert [answer.status_code for answer in answers] == [200] * 3
        assert answers[0].json()["model_version"] == "1"
        assert client.get(f"/v2/models/{NAME}").status_code == 200
        labels = {"labels": [{"id": answers[0].json()["id"], "label": "0"}]}
        assert client.post(f"/v2/models/{NAME}/labels", json=labels).json() == {"accepted": 1}
    with secured.client(token=None) as nobody:
        for method, path in (
            ("POST", INFER),
            ("GET", f"/v2/models/{NAME}"),
            ("POST", f"/v2/models/{NAME}/labels"),
            ("GET", "/v2"),
            ("DELETE", INFER),
            ("GET", "/v2/models/another"),
            ("GET", "/nowhere"),
        ):
            refused = nobody.request(method, path, content=BODIES[0] if method == "POST" else None)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer"), path
            assert "bearer token" in refused.json()["error"]
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert nobody.get(path).status_code == 200, "whoever looks whether it lives has no token"
    for wrong in (TOKEN[:-1], TOKEN + "x", OTHER, TOKEN.upper(), "x"):
        with secured.client(token=wrong) as client:
            assert client.post(INFER, content=BODIES[0]).status_code == 401
    basic = {"Authorization": f"Basic {TOKEN}"}
    assert httpx.post(secured.url + INFER, headers=basic, verify=secured.trust()).status_code == 401


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
def test_what_is_no_tls_is_answered_nothing_and_old_tls_is_refused(secured):
    host, port = secured.up().url.removeprefix("https://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as plain:
        plain.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        said = plain.recv(1000)
        assert b"HTTP" not in said
    old = secured.trust()
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with (
        socket.create_connection((host, int(port)), timeout=20) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        old.wrap_socket(plain, server_hostname=host)
    with socket.create_connection((host, int(port)), timeout=20) as silent:
        began = time.monotonic()
        assert silent.recv(1000) == b"", "who says nothing is let go"
        assert time.monotonic() - began < 12
    with secured.client() as client:
        assert client.post(INFER, content=BODIES[0]).status_code == 200


def test_a_large_body_and_its_refusal_come_through(secured):
    secured.up()
    with secured.client() as client:
        many = [0.0] * 400_000
        body = {"inputs": [{"name": "x", "shape": [100_000, 4], "datatype": "FP32", "data": many}]}
        answer = client.post(INFER, json=body)
        assert (answer.status_code, len(answer.json()["outputs"][0]["data"])) == (200, 300_000)
    host, port = secured.url.removeprefix("https://").split(":")
    with (
        socket.create_connection((host, int(port)), timeout=20) as plain,
        secured.trust().wrap_socket(plain, server_hostname=host) as secure,
    ):
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {1 << 40}\r\n\r\n"
        secure.sendall(head.encode() + b"x" * 1_000_000)
        said = b""
        while piece := secure.recv(10_000):
            said += piece
    assert said.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in said


@pytest.mark.parametrize(
    "key", [trustme.KeyType.ECDSA, trustme.KeyType.RSA], ids=["alike", "of another type"]
)
def test_sighup_brings_a_new_certificate_and_other_tokens_and_nobody_is_hurt(secured, key):
    secured.up()
    before, refused = secured.serial(), []
    over = threading.Event()

    def call():
        with secured.client() as kept:
            while not over.is_set():
                answer = kept.post(INFER, content=BODIES[0])
                if answer.status_code != 200:
                    refused.append(answer.text)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        secured.certify(key)
        secured.admit(TOKEN, OTHER)
        os.kill(secured.supervisor, signal.SIGHUP)
        wait_for(lambda: secured.serial() != before, what="the new certificate")
        with secured.client(token=OTHER) as other:
            wait_for(lambda: other.post(INFER, content=BODIES[0]).status_code == 200, what="the new token")
    finally:
        over.set()
        thread.join()
    assert not refused
    secured.admit(OTHER)
    os.kill(secured.supervisor, signal.SIGHUP)
    with secured.client() as client:
        wait_for(lambda: client.post(INFER, content=BODIES[0]).status_code == 401, what="the end of the old")


@pytest.mark.parametrize(
    "damage",
    [
        lambda box: (box.folder / "box.crt").write_text("no certificate"),
        lambda box: (box.folder / "box.key").unlink(),
        lambda box: box.certify() or write(box.folder / "box.key", trustme.CA().private_key_pem.bytes()),
        lambda box: (box.folder / "tokens.txt").write_text("short\n"),
    ],
    ids=["a damaged certificate", "no key", "the key of another", "no token"],
)
def test_damaged_files_change_nothing_also_when_the_router_is_killed(secured, damage):
    secured.up()
    serial, router = secured.serial(), secured.status()["pids"]["routers"][0]
    damage(secured)
    os.kill(secured.supervisor, signal.SIGHUP)
    wait_for(lambda: "what was there before stays in use" in secured.log, what="a line in the log")
    secured.kill(router)
    wait_for(lambda: router not in secured.status()["pids"]["routers"], what="another router")
    assert secured.serial() == serial
    with secured.client() as client:
        assert client.post(INFER, content=BODIES[0]).status_code == 200


def test_without_anything_to_read_sighup_is_nothing(tmp_path):
    box = Box(tmp_path)
    try:
        before = box.up().status()["pids"]
        os.kill(box.supervisor, signal.SIGHUP)
        for body in BODIES:
            assert httpx.post(box.url + INFER, content=body).status_code == 200
        assert box.status()["pids"] == before
    finally:
        box.close()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda box: (box.folder / "box.crt").unlink(), ["box.crt", "cannot be read"]),
        (lambda box: (box.folder / "box.crt").write_text(""), ["box.crt", "no certificate"]),
        (lambda box: (box.folder / "box.key").chmod(0o644), ["box.key", "others may read it", "chmod 600"]),
        (
            lambda box: write(box.folder / "box.key", trustme.CA().private_key_pem.bytes()),
            ["box.key", "key values mismatch"],
        ),
        (lambda box: (box.folder / "tokens.txt").unlink(), ["tokens.txt", "cannot be read"]),
        (
            lambda box: (box.folder / "box.crt").unlink() or os.mkfifo(box.folder / "box.crt"),
            ["box.crt", "it is no regular file"],
        ),
        (lambda box: (box.folder / "tokens.txt").chmod(0o640), ["tokens.txt", "others may read it"]),
        (lambda box: box.admit(), ["tokens.txt", "no token in it"]),
        (lambda box: box.admit(TOKEN, "seven77"), ["tokens.txt:4", "no token"]),
        (lambda box: box.admit("with a space in it 0123456789"), ["tokens.txt:3", "no token"]),
        (lambda box: write(box.folder / "tokens.txt", b"\xff" * 40), ["tokens.txt:1", "no token"]),
        (lambda box: write(box.folder / "tokens.txt", b"x" * (1 << 21)), ["tokens.txt", "larger than"]),
    ],
)
def test_a_file_that_is_none_is_2_at_up_in_one_line(secured, damage, words):
    damage(secured)
    ran = secured.run("up", secured.manifest(), "--detach").refused(2, *words)
    assert "seven77" not in ran.err
    assert secured.supervisor is None


def test_no_token_and_no_key_is_told_to_anybody(secured):
    secured.up()
    with secured.client() as client:
        client.post(INFER, content=BODIES[0])
    secured.ramp(secured.manifest(canary={"stepTimeout": "1s", "keepWarm": "0s"}))
    ours = secured.status()["pids"]
    secrets = [TOKEN, (secured.folder / "box.key").read_text().splitlines()[1]]
    said = [secured.run(*words).out for words in (["status", NAME, "-o", "json"], ["history", NAME])]
    said += ["\0".join(command(pid)) for pid in (ours["supervisor"], ours["controller"], *ours["routers"])]
    kept = {secured.home.tls, secured.home.tokens}
    for path in (path for path in secured.home.path.rglob("*") if path.is_file()):
        if path in kept:
            assert path.stat().st_mode & 0o777 == 0o600
        else:
            said.append(path.read_bytes().decode("latin-1"))
    assert not [secret for secret in secrets for text in said if secret in text]


def test_another_certificate_file_is_another_service(secured):
    secured.up()
    secured.service = secured.service | {"tokens": "elsewhere.txt"}
    secured.run("up", secured.manifest(), "--detach").refused(7, "tokens")


def test_what_is_not_wanted_any_more_is_not_kept_either(secured):
    secured.up()
    assert secured.home.tls.exists()
    assert secured.run("down", NAME).code == 0
    secured.service = {}
    secured.up()
    assert not secured.home.tls.exists()
    assert not secured.home.tokens.exists()
    assert httpx.post(secured.url + INFER, content=BODIES[0]).status_code == 200


def test_a_router_keeps_as_many_callers_as_the_manifest_says_and_turns_the_next_one_away(tmp_path):
    box = Box(tmp_path, {"limits": {"connections": 16}})
    _, may = resource.getrlimit(resource.RLIMIT_NOFILE)
    too_many = box.manifest(name="too-many", service={"limits": {"connections": 100_000}})
    if may < 100_000:
        box.run("up", too_many, "--detach").refused(8, "limits.connections", "ulimit -Hn 101280")
    try:
        box.up()
        host, port = box.url.removeprefix("http://").split(":")
        with ExitStack() as stack:
            callers = [
                stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
                for _ in range(17)
            ]
            for caller in callers:
                caller.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n")
            answers = [caller.recv(4096).split(b"\r\n")[0] for caller in callers]
        assert answers == 16 * [b"HTTP/1.1 200 OK"] + [b"HTTP/1.1 503 Service Unavailable"]
        assert box.run("up", too_many).refused(7, "limits")
    finally:
        box.close()
