"""A download against a server that fails in every way that servers do: the bytes are right and whole, or there is one line that says why not."""

import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from itertools import pairwise

import pytest
from file_server import Answer, FileServer

from deployctl.errors import IntegrityError, InvalidError, UnavailableError
from deployctl.sources import MODEL_SOURCES, fetch
from deployctl.sources.cache import ModelCache
from deployctl.sources.fetch import Patience, fetched
from deployctl.sources.web import Access, WebFile
from deployctl.statedir import list_services

MODEL = random.Random(7).randbytes(1_000_000)
DIGEST = f"sha256:{hashlib.sha256(MODEL).hexdigest()}"
OTHER = random.Random(8).randbytes(1_000_000)
HASTE = Patience(first=0.001, longest=0.002, asked=0.05)


class WithoutDigest:
    """As the web source, for servers of whose files nobody has a digest."""

    form = MODEL_SOURCES["https"].form

    def __init__(self, **access):
        self.access = Access(**access)

    def locate(self, uri):
        return WebFile(uri, self.access)


def get(cache, url, digest=DIGEST, progress=lambda *_: None, **access):
    sources = {"https": WithoutDigest(**access), "http": WithoutDigest(**access)} if access else MODEL_SOURCES
    return fetched(url, digest, cache, sources, progress, HASTE)


def is_there(cache, found):
    assert found.path == cache.path(DIGEST)
    assert (found.digest, found.path.read_bytes()) == (DIGEST, MODEL)
    assert found.path.stat().st_mode & 0o777 == 0o400
    return True


def nothing_is_left(cache):
    return [path.name for place in ("sha256", "incoming") for path in (cache.root / place).iterdir()] == []


def test_a_model_comes_over_https_and_into_a_private_place_that_is_no_service(server, cache):
    server.files["/v2.onnx"] = MODEL
    url, seen = server.url("/v2.onnx"), []
    assert is_there(cache, get(cache, url, progress=lambda done, total: seen.append((done, total))))
    assert cache.root.stat().st_mode & 0o777 == 0o700
    assert list_services(cache.state) == []
    assert seen[0] == (0, len(MODEL))
    assert seen[-1] == (len(MODEL), len(MODEL))
    assert all(one[0] <= other[0] for one, other in pairwise(seen))


def test_what_is_here_by_its_digest_is_not_asked_for_again(server, cache):
    server.files["/v2.onnx"] = MODEL
    url = server.url("/v2.onnx")
    get(cache, url)
    server.close()
    assert is_there(cache, get(cache, url))
    assert len(server.seen) == 1


def test_a_model_that_was_damaged_in_the_cache_is_fetched_anew(server, cache):
    server.files["/v2.onnx"] = MODEL
    found = get(cache, server.url("/v2.onnx"))
    found.path.chmod(0o600)
    found.path.write_bytes(MODEL[:-1] + b"x")
    assert is_there(cache, get(cache, server.url("/v2.onnx")))
    assert len(server.seen) == 2


def test_connections_that_break_are_taken_up_where_they_broke(server, cache):
    server.files["/v2.onnx"] = MODEL
    server.answers.extend([Answer(drop_at=300_000)] * 3)
    assert is_there(cache, get(cache, server.url("/v2.onnx")))
    starts = [seen.start for seen in server.seen]
    assert starts == sorted(set(starts))
    assert len(starts) == 4
    assert all("if-range" in seen.headers for seen in server.seen[1:])


def test_a_server_without_ranges_starts_anew(certificate, trusted, cache):
    server = FileServer(certificate, ranges=False, etags=False)
    server.files["/v2.onnx"] = MODEL
    server.answers.append(Answer(drop_at=600_000))
    assert is_there(cache, get(cache, server.url("/v2.onnx")))
    assert [seen.start > 0 for seen in server.seen] == [False, True]
    server.close()


@pytest.mark.parametrize("etags", [True, False])
def test_a_file_that_is_replaced_in_mid_download_is_never_mixed(certificate, trusted, cache, etags):
    server = FileServer(certificate, etags=etags)
    server.files["/v2.onnx"] = OTHER
    server.answers.append(Answer(drop_at=600_000))

    def replaced(done, _total):
        if done >= 500_000:
            server.files["/v2.onnx"] = MODEL

    assert is_there(cache, get(cache, server.url("/v2.onnx"), progress=replaced))
    server.close()


def test_without_a_digest_only_a_file_that_the_server_vouches_for_is_taken_up_again(
    certificate, trusted, cache
):
    for etags, resumes in ((True, True), (False, False)):
        server = FileServer(certificate, etags=etags)
        server.files["/v2.onnx"] = MODEL
        server.answers.append(Answer(drop_at=600_000))
        assert is_there(cache, get(cache, server.url("/v2.onnx"), None, headers={}))
        assert [seen.start > 0 for seen in server.seen] == [False, resumes]
        server.close()


def test_without_a_digest_nothing_from_before_a_boot_is_taken_up(server, cache, tmp_path):
    server.files["/v2.onnx"] = MODEL
    server.answers.extend([Answer(drop_at=600_000), *[Answer(status=503)] * 5])
    url = server.url("/v2.onnx")
    with pytest.raises(UnavailableError):
        get(cache, url, None, headers={})
    (tmp_path / "boot").write_text("another boot\n")
    cache = ModelCache(tmp_path / "state", boot=tmp_path / "boot")
    assert is_there(cache, get(cache, url, None, headers={}))
    assert server.seen[-1].start == 0


def test_other_bytes_than_the_digest_names_are_refused_and_not_kept(server, cache):
    server.files["/v2.onnx"] = OTHER
    with pytest.raises(IntegrityError) as caught:
        get(cache, server.url("/v2.onnx"))
    assert DIGEST in str(caught.value)
    assert hashlib.sha256(OTHER).hexdigest() in str(caught.value)
    assert nothing_is_left(cache)
    assert len(server.seen) == 1


def test_what_passes_is_tried_again_and_what_does_not_is_not(server, cache):
    server.files["/v2.onnx"] = MODEL
    server.answers.extend(Answer(status=status) for status in (503, 429, 500, 502))
    assert is_there(cache, get(cache, server.url("/v2.onnx")))
    for status, error, words in (
        (404, InvalidError, "404"),
        (410, InvalidError, "410"),
        (401, UnavailableError, "not let in"),
        (403, UnavailableError, "not let in"),
    ):
        server.answers.append(Answer(status=status))
        with pytest.raises(error, match=words):
            get(cache, server.url("/v3.onnx"), f"sha256:{'0' * 64}")
    assert len(server.seen) == 9


def test_a_server_that_asks_for_patience_gets_it(server, cache):
    server.files["/v2.onnx"] = MODEL
    server.answers.append(Answer(status=503, headers={"Retry-After": "1"}))
    asked = []
    tries = fetch._Tries(HASTE)
    wait = tries._pause
    tries._pause = lambda state: asked.append(wait(state)) or 0.0
    file = WebFile(server.url("/v2.onnx"), Access())

    def read():
        with file.read(0, None) as part:
            return b"".join(part.chunks)

    assert tries.patiently(read, "it") == MODEL
    assert asked == [0.05]


def test_it_is_given_up_when_nothing_comes_any_more_but_not_while_something_comes(server, cache):
    server.files["/v2.onnx"] = MODEL
    server.answers.extend([Answer(drop_at=65_536)] * 12)
    assert is_there(cache, get(cache, server.url("/v2.onnx")))
    server.answers.extend([Answer(status=503)] * 20)
    before = len(server.seen)
    with pytest.raises(UnavailableError, match="cannot be fetched: the server answers 503"):
        get(cache, server.url("/v3.onnx"), f"sha256:{'0' * 64}")
    assert len(server.seen) - before == HASTE.in_vain


def test_a_server_that_falls_silent_is_left_and_asked_again(server, cache):
    server.files["/v2.onnx"] = MODEL
    server.answers.append(Answer(hold_at=300_000))
    assert is_there(cache, get(cache, server.url("/v2.onnx"), silence=0.2))
    assert [seen.start > 0 for seen in server.seen] == [False, True]


def test_nobody_listens(cache, trusted):
    server = FileServer()
    url = server.url("/v2.onnx")
    server.close()
    with pytest.raises(UnavailableError, match=r"v2.onnx: cannot be fetched: .*refused.*; try again"):
        get(cache, url)


def test_the_query_of_a_signed_url_is_sent_and_never_shown(server, cache):
    secret = "X-Signature=5ec7e7"
    url = server.url(f"/v2.onnx?{secret}")
    with pytest.raises(InvalidError) as caught:
        get(cache, url)
    assert "?redacted" in str(caught.value)
    server.files["/v2.onnx"] = MODEL
    server.answers.append(Answer(status=302, headers={"Location": f"/elsewhere.onnx?{secret}"}))
    server.files["/elsewhere.onnx"] = MODEL
    found = get(cache, url)
    shown = f"{caught.value} {found} {WebFile(url, Access({'Authorization': 'Bearer 5ec7e7'}))}"
    assert "5ec7e7" not in shown
    assert all(secret in seen.path for seen in server.seen)
    assert not any(secret in path.name for path in cache.root.rglob("*"))


def test_redirects_are_followed_but_not_from_https_to_http(server, plain, cache):
    server.files["/there.onnx"] = plain.files["/v2.onnx"] = MODEL
    server.answers.append(Answer(status=307, headers={"Location": plain.url("/v2.onnx?s=5ec7e7")}))
    with pytest.raises(UnavailableError, match=r"redirects to .*, which is not https") as caught:
        get(cache, server.url("/v2.onnx"))
    assert "5ec7e7" not in str(caught.value)
    assert plain.seen == []
    plain.answers.append(Answer(status=302, headers={"Location": server.url("/there.onnx")}))
    assert is_there(cache, get(cache, plain.url("/v2.onnx")))
    server.answers.extend([Answer(status=302, headers={"Location": "/there.onnx"})] * 20)
    with pytest.raises(UnavailableError, match="more than 10 redirects"):
        get(cache, server.url("/there.onnx"), f"sha256:{'0' * 64}")


def test_a_token_goes_to_its_host_and_nowhere_else(server, plain, cache, monkeypatch):
    monkeypatch.setenv("DEPLOYCTL_TOKEN_LOCALHOST", "t0ken")
    server.files["/v2.onnx"] = plain.files["/v2.onnx"] = MODEL
    server.answers.append(Answer(status=302, headers={"Location": server.url("/v2.onnx", host="127.0.0.1")}))
    get(cache, server.url("/v2.onnx"))
    assert [seen.headers.get("authorization") for seen in server.seen] == ["Bearer t0ken", None]
    with pytest.raises(InvalidError):
        get(cache, plain.url("/v9.onnx"), f"sha256:{'0' * 64}")
    assert "authorization" not in plain.seen[0].headers


def test_netrc_is_read_for_https(server, cache, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine localhost login me password pass\n")
    (tmp_path / "netrc").chmod(0o600)
    server.files["/v2.onnx"] = MODEL
    get(cache, server.url("/v2.onnx"))
    assert server.seen[0].headers["authorization"] == "Basic bWU6cGFzcw=="


def test_an_authority_that_nobody_knows_is_one_line(certificate, server, cache, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(
        UnavailableError, match=r"no TLS connection: .*; where its authority is your own, name its file"
    ):
        get(cache, server.url("/v2.onnx"))
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/authority.pem")
    with pytest.raises(UnavailableError, match="certificates cannot be used: No such file"):
        get(cache, server.url("/v2.onnx"))


def test_a_server_that_speaks_no_tls_is_one_line(plain, cache):
    with pytest.raises(UnavailableError, match="no TLS connection"):
        get(cache, plain.url("/v2.onnx").replace("http:", "https:"))


def test_a_proxy_of_the_environment_is_used(plain, cache, monkeypatch):
    plain.files["/v2.onnx"] = MODEL
    monkeypatch.setenv("HTTP_PROXY", plain.url(""))
    assert is_there(cache, get(cache, "http://models.example.com/v2.onnx"))
    assert plain.seen[0].path == "http://models.example.com/v2.onnx"
    for unusable in ("gopher://me:5ec7e7@localhost", "socks5://me:5ec7e7@localhost"):
        monkeypatch.setenv("HTTP_PROXY", unusable)
        with pytest.raises(UnavailableError, match="proxy or certificates") as caught:
            get(cache, "http://models.example.com/v3.onnx", f"sha256:{'0' * 64}")
        assert "5ec7e7" not in str(caught.value)


def test_what_is_sent_compressed_although_it_was_not_asked_for_is_refused(server, cache):
    server.files["/v2.onnx"] = MODEL
    server.answers.append(Answer(headers={"Content-Encoding": "gzip"}))
    with pytest.raises(UnavailableError, match="compressed"):
        get(cache, server.url("/v2.onnx"))


@pytest.mark.parametrize("lengths", [True, False])
def test_a_model_that_is_too_large_is_refused(certificate, trusted, tmp_path, lengths):
    cache = ModelCache(tmp_path / "state", largest=len(MODEL) - 1)
    server = FileServer(certificate, lengths=lengths)
    server.files["/v2.onnx"] = MODEL
    with pytest.raises(InvalidError, match="too large"):
        get(cache, server.url("/v2.onnx"))
    assert nothing_is_left(cache)
    cache = ModelCache(tmp_path / "state", largest=len(MODEL))
    assert is_there(cache, get(cache, server.url("/v2.onnx")))
    server.close()


def test_a_disk_that_has_no_room_is_said_before_it_is_full(server, tmp_path):
    cache = ModelCache(tmp_path / "state", kept_free=2**62)
    server.files["/v2.onnx"] = MODEL
    with pytest.raises(
        UnavailableError, match="1 MiB are to come and 0 MiB may be used of this disk; make room"
    ):
        get(cache, server.url("/v2.onnx"))
    assert nothing_is_left(cache)


def test_a_disk_that_becomes_full_gets_its_room_back(server, cache):
    """A limit of the kernel stands in for the full disk: write(2) fails in the middle, as it does there."""
    server.files["/v2.onnx"] = MODEL
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        with pytest.raises(
            UnavailableError, match="the model cache cannot be written: File too large; check the disk"
        ):
            get(cache, server.url("/v2.onnx"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert nothing_is_left(cache)


FETCH = """
import sys
from pathlib import Path
from deployctl.sources import MODEL_SOURCES
from deployctl.sources.cache import ModelCache
from deployctl.sources.fetch import fetched
print(fetched(sys.argv[2], sys.argv[3], ModelCache(Path(sys.argv[1])), MODEL_SOURCES).path, flush=True)
"""


def fetching(cache, url):
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, str(cache.state), url, DIGEST], stdout=subprocess.PIPE, text=True
    )


def test_a_download_that_was_killed_is_taken_up_by_the_next_command_under_a_url_that_is_signed_anew(
    server, cache
):
    server.files["/v2.onnx"] = MODEL
    server.answers.append(Answer(hold_at=700_000))
    with fetching(cache, server.url("/v2.onnx?s=1")) as first:
        server.held.wait(30)
        deadline = threading.Event()
        while sum(path.stat().st_size for path in (cache.root / "incoming").iterdir()) < 500_000:
            assert not deadline.wait(0.01)
        first.send_signal(signal.SIGKILL)
    assert is_there(cache, get(cache, server.url("/v2.onnx?s=2")))
    assert server.seen[-1].start >= 500_000
    assert [path.name for path in (cache.root / "incoming").iterdir()] == []


def test_one_that_was_killed_before_it_had_its_name_is_not_fetched_again(server, cache):
    with cache.incoming(DIGEST) as partial:
        partial.begin(0, len(MODEL), None)
        partial.write(MODEL)
    assert is_there(cache, get(cache, server.url("/v2.onnx")))
    assert server.seen == []


def test_two_commands_that_want_the_same_fetch_it_once(server, cache):
    server.files["/v2.onnx"] = MODEL
    server.answers.append(Answer(hold_at=700_000))
    with fetching(cache, server.url("/v2.onnx")) as first:
        assert server.held.wait(30)
        found = []
        second = threading.Thread(target=lambda: found.append(get(cache, server.url("/v2.onnx"))))
        second.start()
        second.join(0.3)
        assert second.is_alive()
        server.let_go.set()  # the held connection ends; the first command asks for the rest
        second.join(30)
        assert first.stdout.read().strip() == str(cache.path(DIGEST))
    assert is_there(cache, found[0])
    assert [seen.start > 0 for seen in server.seen] == [False, True]


def test_the_cache_keeps_what_was_used_last_and_what_may_be_in_use(tmp_path, server):
    cache = ModelCache(tmp_path / "state", max_bytes=2_500_000)
    models = [random.Random(seed).randbytes(1_000_000) for seed in range(4)]
    found = []
    for number, model in enumerate(models):
        server.files[f"/{number}"] = model
        digest = f"sha256:{hashlib.sha256(model).hexdigest()}"
        found.append(get(cache, server.url(f"/{number}"), digest).path)
    assert all(path.exists() for path in found)  # each was used within the hour
    for age, path in zip((9000, 8000, 7000, 6000), found, strict=True):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    abandoned = cache.root / "incoming" / "abandoned"
    abandoned.write_bytes(b"x")
    os.utime(abandoned, (0, 0))
    assert cache.holds(f"sha256:{hashlib.sha256(models[0]).hexdigest()}")  # used again
    server.files["/4"] = MODEL
    get(cache, server.url("/4"))
    assert [path.exists() for path in found] == [True, False, False, False]
    assert not abandoned.exists()


def test_a_cache_that_others_may_write_is_not_used(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    with pytest.raises(UnavailableError, match="others can write here"):
        ModelCache(tmp_path / "state")
