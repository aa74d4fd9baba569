"""The remote models of a manifest, fetched for whoever needs them: the one way from a `uri` to bytes that `plan`, `up` and the rollouts take."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from deployctl.views.progress import Progress

if TYPE_CHECKING:
    from deployctl.cli.services import Service
    from deployctl.manifest.manifest import Manifest
    from deployctl.sources.fetch import Fetched


def fetch_models(manifest: Manifest, places: Collection[str]) -> dict[str, Fetched]:
    """The remote models at these places of the manifest, in the cache; a terminal is told how far they are.

    Raises what is in the way, and IntegrityError for other bytes than a digest names.
    """
    wanted = {place: manifest.models[place] for place in places if place in manifest.models}
    remote = {place: (model, model.uri) for place, model in wanted.items() if model.uri is not None}
    if not remote:
        return {}
    from deployctl.sources import MODEL_SOURCES  # noqa: PLC0415 - httpx and tenacity: a local model does without
    from deployctl.sources.cache import ModelCache  # noqa: PLC0415 - as above
    from deployctl.sources.fetch import fetched  # noqa: PLC0415 - as above
    from deployctl.statedir import state_dir  # noqa: PLC0415 - as above

    cache, found = ModelCache(state_dir()), {}
    for place, (model, uri) in remote.items():
        with Progress(f"version {model.version}") as progress:
            found[place] = fetched(uri, model.digest, cache, MODEL_SOURCES, progress)
    return found


def digests_for(service: Service, manifest: Manifest, path: str) -> dict[str, str]:
    """The digests of what a running service has to be told for the rollout of this manifest; it is asked what it wants first."""
    if all(model.uri is None for model in manifest.models.values()):
        return {}
    wanted = service.post("/v1/models", {"manifest": manifest.text, "path": path})["wanted"]
    return {place: found.digest for place, found in fetch_models(manifest, wanted).items()}


def baseline_for(service: Service, manifest: Manifest) -> str | None:
    """The digest of a remote baseline that a service is to be started with; None where its journal says what is live."""
    from deployctl.errors import IntegrityError  # noqa: PLC0415 - as above
    from deployctl.journal import read  # noqa: PLC0415 - as above

    if manifest.baseline is None or manifest.baseline.uri is None:
        return None
    try:
        if read(service.home.journal):
            return None
    except IntegrityError:  # the service says so itself, and what to do
        return None
    return fetch_models(manifest, ["baseline"])["baseline"].digest
