"""A real service whose models come from a server: the command fetches, the service copies, and then needs nobody any more."""

import hashlib
import os

import pytest
from service_rig import MODELS, NAME, Box

from deployctl.statedir import list_services, model_in_cache

SECRET = "5ec7e7"


def digest_of(label):
    return f"sha256:{hashlib.sha256(MODELS[label]).hexdigest()}"


class RemoteBox(Box):
    """A box whose models are on a server; `query` is what signs their urls."""

    server = None
    query = f"?X-Signature={SECRET}"

    @property
    def environment(self):
        """Whom to trust, and the token of the server."""
        told = {name: os.environ[name] for name in ("SSL_CERT_FILE", "NETRC")}
        return super().environment | told | {"DEPLOYCTL_TOKEN_LOCALHOST": f"token-{SECRET}"}

    def _model(self, version):
        label, model = version if isinstance(version, tuple) else (version, version)
        self.server.files[f"/{model}.onnx"] = MODELS[model]
        uri = self.server.url(f"/{model}.onnx{self.query}")
        return {"version": label, "uri": uri, "digest": digest_of(model)}


@pytest.fixture
def box(tmp_path, server):
    box = RemoteBox(tmp_path)
    box.server = server
    yield box
    box.close()


def everything_written(state):
    """The bytes of every file under the state directory: journal, records, logs, cache."""
    for path in state.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path.read_bytes()


def test_a_service_is_started_and_a_ramp_begun_from_https_and_a_restart_needs_no_network(box):
    manifest = box.manifest(canary={"steps": [{"setWeight": 20}], "minDwell": "60s"})
    planned = box.run("plan", manifest, "-o", "json").json["models"]
    assert [(one["place"], one["version"], one["digest"]) for one in planned] == [
        ("baseline", "1", digest_of("1")),
        ("candidates/0", "2", digest_of("2")),
    ]
    assert planned[1]["resolved"] == planned[1]["uri"] == box.server.url("/2.onnx?redacted")
    assert len(box.server.seen) == 2

    box.up(manifest)
    assert len(box.server.seen) == 2  # by its digest it is here already
    model_in_cache(box.state, digest_of("2")).unlink()
    box.server.files["/2.onnx"] = MODELS["off"]
    with box.nothing_changes():
        box.run("canary", "ramp", manifest, "--detach").refused(9, digest_of("2"), digest_of("off"))
    box.server.files["/2.onnx"] = MODELS["2"]
    began = box.run("canary", "ramp", manifest, "--detach", "-o", "json")
    assert began.json["state"] == "started", began
    assert len(box.server.seen) == 4
    assert {seen.headers["authorization"] for seen in box.server.seen} == {f"Bearer token-{SECRET}"}
    started = next(record for record in box.records() if record["type"] == "event")
    assert started["event"]["plan"]["candidate"] == {"version": "2", "digest": digest_of("2")}

    box.server.close()
    assert box.run("down", NAME).code == 0
    for path in (box.state / ".cache" / "models" / "sha256").iterdir():
        path.unlink()
    box.query = f"?X-Signature=another-{SECRET}"
    signed_anew = box.manifest(canary={"steps": [{"setWeight": 20}], "minDwell": "60s"})
    box.up(signed_anew)
    assert (box.status()["live"], box.status()["rollout"]) == ("1", began.json["rollout"])
    assert box.run("canary", "ramp", signed_anew, "--detach", "-o", "json").json["state"] == "following"
    assert box.run("rollback", NAME).code == 0
    assert list_services(box.state) == [NAME]
    assert not any(SECRET.encode() in written for written in everything_written(box.state))


def test_a_start_with_other_bytes_or_without_the_server_is_one_line_and_leaves_nothing(box):
    manifest = box.manifest(None)
    box.server.files["/1.onnx"] = MODELS["off"]
    box.run("up", manifest, "--detach").refused(9, digest_of("1"), digest_of("off"), "?redacted")
    box.server.close()
    box.run("up", manifest, "--detach").refused(8, "1.onnx?redacted: cannot be fetched", "refused")
    assert list_services(box.state) == []
