"""Which service a NAME means, and the way to it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deployctl
from deployctl.errors import InvalidError, UnavailableError
from deployctl.views.console import note

if TYPE_CHECKING:
    from deployctl.statedir import ServiceHome
    from deployctl.wire.admin import AdminClient

STATUS = "/v1/status"


@dataclass(frozen=True, slots=True)
class Service:
    """A service by name, running or not; `warned` holds the releases that a person was told of."""

    name: str
    home: ServiceHome
    warned: set[str | None] = field(default_factory=set, compare=False)

    @property
    def pid(self) -> int | None:
        """The supervisor's, None when the service does not run."""
        from deployctl.statedir import running_pid  # noqa: PLC0415 - --help does without

        return running_pid(self.home)

    def client(self) -> AdminClient:
        """Warns once where the service is of another release."""
        from deployctl.wire.admin import AdminClient  # noqa: PLC0415 - httpx costs 0.1 s

        return AdminClient(self.home.admin_socket, self.name, self._compare)

    def client_of_any_release(self) -> AdminClient:
        """For whoever makes the two one."""
        from deployctl.wire.admin import AdminClient  # noqa: PLC0415 - as above

        return AdminClient(self.home.admin_socket, self.name)

    def _compare(self, release: str | None) -> None:
        ours = deployctl.__version__
        if release == ours or release in self.warned:
            return
        self.warned.add(release)
        theirs = "an older release" if release is None else f"release {release}"
        if release is None or _numbers(release) < _numbers(ours):
            fix = f"give it this one: deployctl upgrade {self.name}"
        else:
            fix = "install that one here as well: pip install --upgrade deployctl"
        note(f"deployctl: warning: service '{self.name}' is of {theirs} and this command of {ours}; {fix}")

    def get(self, path: str) -> dict[str, Any]:
        with self.client() as client:
            return client.get(path)

    def post(self, path: str, body: dict[str, Any], *, again: bool = True) -> dict[str, Any]:
        with self.client() as client:
            return client.post(path, body, again=again)


def service_called(name: str) -> Service:
    """The service of that name; raises InvalidError for what cannot be a name."""
    from deployctl.statedir import ServiceHome, state_dir  # noqa: PLC0415 - as above

    return Service(name, ServiceHome(state_dir(), name))


def find_service(name: str | None) -> Service:
    """The service that a person means: by name, by manifest, or the only one that runs.

    Raises InvalidError when several run and none was named, UnavailableError when none runs.
    """
    if name is None:
        return service_called(_only_one())
    if name.endswith((".yaml", ".yml")) or Path(name).is_file():
        from deployctl.cli.manifests import read_manifest  # noqa: PLC0415 - as above

        return service_called(read_manifest(name).name)
    return service_called(name)


def all_services() -> list[Service]:
    """Every service that has state here, running or not."""
    from deployctl.statedir import list_services, state_dir  # noqa: PLC0415 - as above

    return [service_called(name) for name in list_services(state_dir())]


def several_run() -> bool:
    """Whether no name means more than one service."""
    from deployctl.statedir import running_services, state_dir  # noqa: PLC0415 - as above

    return len(running_services(state_dir())) > 1


def _numbers(release: str) -> list[int]:
    return [int(part) for part in re.findall(r"[0-9]+", release)]


def _only_one() -> str:
    from deployctl.statedir import running_services, state_dir  # noqa: PLC0415 - as above

    match running_services(state_dir()):
        case [name]:
            return name
        case []:
            raise UnavailableError("no service is running; start one with: deployctl up FILE")
        case names:
            raise InvalidError(f"several services run, name one: {', '.join(names)}")
