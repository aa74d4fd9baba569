"""Models from elsewhere, as the service sees them: it asks for what it lacks, and what the journal says of a rollout outlives every alias."""

import asyncio
import hashlib

import pytest
from fakes import CANARY, Behaviour, FakeService

from deployctl.core.rollout import Phase
from deployctl.errors import ConflictError, UnavailableError
from deployctl.statedir import model_in_cache

BY = "person:test"


@pytest.fixture
def service(tmp_path):
    with FakeService(tmp_path / "state", {"1": Behaviour(), "2": Behaviour()}) as service:
        service.up()
        yield service


def fetched(service, content):
    """As a command leaves it: in the cache, by its digest."""
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    path = model_in_cache(service.home.state, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return digest


def by_alias(service, digest=None):
    stated = "" if digest is None else f', "digest": "{digest}"'
    text = service._manifest("1", "2", CANARY)
    return text.replace('"uri": "v2.onnx"', f'"uri": "models:/digits@champion"{stated}')


def wanted(service, text):
    return asyncio.run(service.commands.wanted(text, service._path))


def start(service, text, **digests):
    places = {place.replace("_", "/"): digest for place, digest in digests.items()}
    return asyncio.run(service.commands.start_rollout(text, service._path, BY, places))


def test_an_alias_is_asked_for_once_and_pinned_by_its_digest(service):
    text = by_alias(service)
    assert wanted(service, text) == ["candidates/0"]
    digest = fetched(service, b"version two")
    assert start(service, text, candidates_0=digest)["state"] == "started"
    assert service.rollout.plan.candidate.digest == digest
    assert service.controller.store.holds(digest)


@pytest.mark.parametrize("restarted", [False, True])
def test_an_alias_that_has_moved_does_not_confuse_the_rollout_that_runs(service, restarted):
    text = by_alias(service)
    start(service, text, candidates_0=fetched(service, b"version two"))
    begun = service.rollout.id
    if restarted:
        service.restart()
    assert wanted(service, text) == []
    assert start(service, text)["state"] == "following"
    moved = fetched(service, b"version three")
    assert start(service, text, candidates_0=moved) | {"message": ""} == {
        "rollout": begun,
        "state": "following",
        "message": "",
    }
    service.rollback()
    assert service.rollout.phase is Phase.ROLLED_BACK
    assert wanted(service, text) == ["candidates/0"]


def test_another_manifest_is_no_reason_to_follow(service):
    start(service, by_alias(service), candidates_0=fetched(service, b"version two"))
    other = by_alias(service).replace("champion", "challenger")
    assert wanted(service, other) == ["candidates/0"]
    with pytest.raises(ConflictError, match="is running"):
        start(service, other, candidates_0=fetched(service, b"version three"))


def test_a_start_of_the_service_with_another_manifest_does_not_hide_what_runs(service):
    text = by_alias(service)
    start(service, text, candidates_0=fetched(service, b"version two"))
    service.controller.record_served(
        service.controller.spec, service.controller.service.live, None, "another text"
    )
    assert wanted(service, text) == []


def test_a_stated_digest_that_is_stored_is_not_asked_for(service):
    digest = fetched(service, b"version two")
    text = by_alias(service, digest)
    assert wanted(service, text) == ["candidates/0"]
    start(service, text)
    service.rollback()
    model_in_cache(service.home.state, digest).unlink()
    assert wanted(service, text) == []
    assert start(service, text)["state"] == "started"


def test_what_was_not_fetched_is_one_line_and_nothing_begins(service):
    digest = f"sha256:{'0' * 64}"
    before = service.home.journal.read_bytes()
    for text, digests, error in (
        (by_alias(service), {}, ConflictError),
        (by_alias(service, digest), {}, UnavailableError),
        (by_alias(service, digest), {"candidates_0": fetched(service, b"other")}, ConflictError),
    ):
        with pytest.raises(error, match=r"version 2: .*give the command again"):
            start(service, text, **digests)
    assert service.home.journal.read_bytes() == before


def test_a_service_is_started_with_the_baseline_that_was_fetched(tmp_path):
    with FakeService(tmp_path / "state", {"1": Behaviour()}) as service:
        text = service._manifest("1", None, CANARY).replace("v1.onnx", "models:/digits/1")
        digest = fetched(service, b"version one")
        asyncio.run(service.commands.up(text, service._path, digest))
        assert service.controller.service.live.digest == digest
        model_in_cache(service.home.state, digest).unlink()
        service.restart()
        assert service.controller.service.live.digest == digest
