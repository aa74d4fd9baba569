"""The rest of an upgrade, seen from a controller of the new release: when its workers serve, its router; then the old one may go.

Asked for as whole states, again and again: a controller that is killed over it goes on from what it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from deployctl.controller.loop import Controller
from deployctl.controller.workers import SupervisorLink
from deployctl.core.plan import HUMAN


class Routers(Protocol):
    """Whoever knows the routers: the pids of those that do now what was ordered last, with every version that callers need."""

    @property
    def obedient(self) -> list[int]: ...


class Renewal:
    """Does its next step whenever the loop has ticked; nothing where no process of before is left."""

    def __init__(
        self,
        controller: Controller,
        link: SupervisorLink,
        routers: Routers,
        router_settings: Callable[[], dict[str, Any]],
    ) -> None:
        self._controller = controller
        self._link = link
        self._routers = routers
        self._settings = router_settings
        self._asked = False

    def step(self) -> None:
        if not self._link.takeover.left:
            return
        if not self._asked and not self._awaited():
            self._asked = True
            self._link.renew_routers(self._settings())
        if self._asked:
            self._link.in_force(self._routers.obedient)

    @property
    def document(self) -> dict[str, Any]:
        """How far it is, for people and for `deployctl upgrade`."""
        takeover = self._link.takeover
        return {
            "generation": self._controller.generation,
            "left": list(takeover.left),
            "trouble": takeover.trouble or self._unloadable(),
        }

    def _awaited(self) -> list[str]:
        """Versions whose worker of this release may still become ready."""
        return [
            version.version
            for version, identity in self._wanted().items()
            if identity not in self._link.proven and self._link.failure(identity) is None
        ]

    def _unloadable(self) -> str | None:
        """What this release cannot load while a worker of the one before still serves it."""
        if not self._link.takeover.left:
            return None
        failures = (
            f"version {version.version} cannot be loaded by this release ({reason}); its worker of before goes on"
            for version, identity in self._wanted().items()
            if (reason := self._link.failure(identity)) is not None
        )
        return next(failures, None)

    def _wanted(self) -> Mapping[Any, str]:
        service = self._controller.service
        versions: Iterable[Any] = service.versions if service is not None else ()
        return {version: self._controller.settings_id(version) for version in versions if version != HUMAN}
