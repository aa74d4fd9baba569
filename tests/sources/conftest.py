import sys
from pathlib import Path

import pytest
import trustme

sys.path.insert(0, str(Path(__file__).parents[1] / "service"))

from file_server import FileServer

from deployctl.sources.cache import ModelCache


@pytest.fixture(scope="session")
def authority():
    return trustme.CA()


@pytest.fixture(scope="session")
def certificate(authority):
    return authority.issue_cert("localhost", "127.0.0.1")


@pytest.fixture
def trusted(authority, tmp_path, monkeypatch):
    """Clients of this process, and those that it starts, trust the certificate; no password of whoever runs the tests is used."""
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for variable in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def server(certificate, trusted):
    server = FileServer(certificate)
    yield server
    server.close()


@pytest.fixture
def plain(trusted):
    server = FileServer()
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path):
    return ModelCache(tmp_path / "state")
