"""upgrade: the running service becomes the release that this command belongs to."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deployctl
from deployctl.cli.options import AsOutput, Name, Output, person
from deployctl.cli.services import STATUS, Service, find_service
from deployctl.errors import ConflictError, UnavailableError
from deployctl.views.console import say, show_document

if TYPE_CHECKING:
    from deployctl.wire.admin import AdminClient

ASK_SECONDS = 90.0
"""A rehearsal may take a minute on a busy machine, and it is to say itself that it did not end."""
REPLACED_SECONDS = 180.0
"""Every version is loaded once more, one router drains; past this a person should look."""
POLL_SECONDS = 0.1

Document = dict[str, Any]


def upgrade(name: Name = None, output: AsOutput = Output.TEXT) -> None:
    """Give the running service to this release; no request fails."""
    service = find_service(name)
    with service.client_of_any_release() as client:
        before = client.get(STATUS)
        _ask(client, before)
        after = _until_replaced(service, client, before)
    release = after.get("release")
    if release != deployctl.__version__:
        raise ConflictError(
            f"another upgrade was quicker: {service.name} is of release {release} now, and this is {deployctl.__version__}; "
            "try again if it shall be this one"
        )
    document = {
        "schema_version": 1,
        "service": service.name,
        "changed": True,
        "from": before.get("release"),
        "to": release,
        "pids": after.get("pids"),
    }
    if output is Output.JSON:
        show_document(document)
    else:
        same = document["from"] == document["to"]
        words = f"release {release} again" if same else f"from {document['from']} to {release}"
        say(f"{service.name}: upgraded, {words}; every process was replaced, no caller was")


def _ask(client: AdminClient, before: Document) -> None:
    """Have the service rehearse this release and become it. Raises what is in the way; nothing has changed then."""
    order = {
        "python": sys.executable,
        "package": str(Path(deployctl.__file__).parent),
        "by": person(),
    }
    try:
        client.post("/v1/upgrade", order, timeout=ASK_SECONDS, again=False)
    except UnavailableError:
        # The controller that was asked ends over it, and may not have come to say so.
        if _generation(client.get(STATUS)) == _generation(before):
            raise


def _until_replaced(service: Service, client: AdminClient, before: Document) -> Document:
    deadline = time.monotonic() + REPLACED_SECONDS
    while True:
        try:
            status = client.get(STATUS)
        except UnavailableError:  # the new controller reads what the old one wrote, which may take a while
            if service.pid is None or time.monotonic() > deadline:
                raise
            continue
        state = status.get("upgrade") or {}
        left = state.get("left") or []
        began = _generation(status) > _generation(before)
        if began and not left:
            return status
        if (trouble := state.get("trouble")) is not None:
            if not began:
                raise UnavailableError(f"{trouble}; the release of before goes on")
            if all(name.startswith("worker") for name in left):
                raise UnavailableError(
                    f"the service is of release {status.get('release')} now, but {trouble}"
                )
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"service '{service.name}' serves, but not all of it is of this release after {REPLACED_SECONDS:g} s: "
                f"{', '.join(left) or 'nothing has begun'}; see {service.home.log}, or go back with `deployctl upgrade` "
                "of the release before"
            )
        time.sleep(POLL_SECONDS)


def _generation(status: Document) -> int:
    return int((status.get("upgrade") or {}).get("generation", 0))
