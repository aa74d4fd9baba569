"""`python -m deployctl.controller`: the process around the loop, from the inherited sockets to the last fsync."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvloop

from deployctl import __version__
from deployctl.controller import documents, recovery
from deployctl.controller.commands import Commands
from deployctl.controller.hooks import Hooks
from deployctl.controller.labels import LabelIntake
from deployctl.controller.loop import TICK_SECONDS, Controller
from deployctl.controller.renewal import Renewal
from deployctl.controller.service_log import go_on_without_a_log
from deployctl.controller.workers import SupervisorLink
from deployctl.core.plan import HUMAN
from deployctl.errors import (
    DeployctlError,
    IntegrityError,
    InvalidError,
    UnavailableError,
    error_for,
)
from deployctl.journal import Journal
from deployctl.statedir import ServiceHome
from deployctl.store import Store, is_digest
from deployctl.traffic.builtin import RouterLink
from deployctl.webhooks import Caller
from deployctl.wire import admin
from deployctl.wire.lifeline import die_with_parent

_M_MMAP_THRESHOLD, _LARGE_ARRAY = -3, 256 * 1024
"""Of malloc.h, and bytes."""


class Api:
    """The calls of the admin socket, one method each."""

    def __init__(
        self,
        controller: Controller,
        commands: Commands,
        link: SupervisorLink,
        renewal: Renewal,
        hooks: Hooks,
        address: str,
    ) -> None:
        self._controller = controller
        self._commands = commands
        self._link = link
        self._renewal = renewal
        self._hooks = hooks
        self._address = address
        self.labels = LabelIntake(controller)
        self.serving = asyncio.Event()
        self._routes = {
            ("GET", "/v1/status"): self._status,
            ("GET", "/v1/history"): self._history,
            ("GET", "/v1/explain"): self._explain,
            ("POST", "/v1/up"): self._up,
            ("POST", "/v1/models"): self._models,
            ("POST", "/v1/rollouts"): self._start,
            ("POST", "/v1/call-off"): self._call_off,
            ("POST", "/v1/rollback"): self._rollback,
            ("POST", "/v1/promote"): self._promote,
            ("POST", "/v1/pause"): self._pause,
            ("POST", "/v1/resume"): self._resume,
            ("POST", "/v1/labels"): self._labels,
            ("POST", "/v1/upgrade"): self._upgrade,
        }

    async def handle(self, request: admin.AdminRequest) -> admin.AdminReply | AsyncIterator[bytes]:
        """One call; waits until the service serves (or has failed and takes this process with it)."""
        await self.serving.wait()
        if self._controller.broken is not None:
            raise self._controller.broken
        parts = request.path.split("/")
        if request.method == "GET" and parts[1:3] == ["v1", "rollouts"] and parts[4:] == ["events"]:
            return await self._events(parts[3], request.query.get("after", "0"))
        route = self._routes.get((request.method, request.path))
        if route is None:
            raise InvalidError(f"{request.method} {request.path}: no such call")
        return admin.AdminReply(await route(request))

    def describe(self) -> dict[str, Any]:
        """The status document."""
        workers = {worker.digest: worker.pid for worker in self._link.workers.values()}
        service = self._controller.service
        known = service.known.values() if service else ()
        labels = {version.digest: version.version for version in known}
        pids = {
            "supervisor": self._link.pids["supervisor"],
            "controller": os.getpid(),
            "routers": self._link.pids["routers"],
            "workers": {labels.get(digest, digest): pid for digest, pid in workers.items()},
        }
        status = documents.status(self._controller, self._address, pids)
        release = {"release": __version__, "upgrade": self._renewal.document}
        return {
            **status,
            "label_files": self.labels.describe(),
            "webhooks": self._hooks.describe(),
            **release,
        }

    async def _status(self, _request: admin.AdminRequest) -> dict[str, Any]:
        return self.describe()

    async def _history(self, _request: admin.AdminRequest) -> dict[str, Any]:
        return documents.history(self._controller.name, (await self._controller.history()).values())

    async def _explain(self, request: admin.AdminRequest) -> dict[str, Any]:
        service = self._controller.service
        last = service.rollout if service else None
        wanted = request.query.get("rollout") or (last.id if last else "")
        story = await self._controller.story(wanted)
        if not story:
            raise InvalidError(await self._no_such_rollout(wanted))
        return documents.explain(self._controller, story)

    async def _no_such_rollout(self, wanted: str) -> str:
        known = ", ".join(await self._controller.history()) or "none yet"
        which = f"rollout {wanted}" if wanted else "rollout"
        return f"no {which} of {self._controller.name}; known: {known}"

    async def _up(self, request: admin.AdminRequest) -> dict[str, Any]:
        message = await self._commands.up_again(_text(request, "manifest"), Path(_text(request, "path")))
        return {"changed": False, "message": message}

    async def _models(self, request: admin.AdminRequest) -> dict[str, Any]:
        return {
            "wanted": await self._commands.wanted(_text(request, "manifest"), Path(_text(request, "path")))
        }

    async def _start(self, request: admin.AdminRequest) -> dict[str, Any]:
        text, path, by = (_text(request, name) for name in ("manifest", "path", "by"))
        digests = request.body.get("digests") or {}
        if not isinstance(digests, dict) or not all(map(is_digest, digests.values())):
            raise InvalidError(f"{request.method} {request.path}: 'digests' are sha256:… by their places")
        return await self._commands.start_rollout(
            text, Path(path), by, digests, str(request.body.get("ticket") or "")
        )

    async def _call_off(self, request: admin.AdminRequest) -> dict[str, Any]:
        return self._changed(self._commands.call_off(_text(request, "by"), _text(request, "ticket")))

    async def _rollback(self, request: admin.AdminRequest) -> dict[str, Any]:
        reason, to, only = (request.body.get(key) for key in ("reason", "to", "rollout"))
        by = _text(request, "by")
        return self._changed(await self._commands.rollback(by, str(reason or ""), to, only))

    async def _promote(self, request: admin.AdminRequest) -> dict[str, Any]:
        reason, full = request.body.get("reason") or "", bool(request.body.get("full"))
        return self._changed(await self._commands.promote(_text(request, "by"), str(reason), full=full))

    async def _pause(self, request: admin.AdminRequest) -> dict[str, Any]:
        return self._changed(self._commands.pause(_text(request, "by")))

    async def _resume(self, request: admin.AdminRequest) -> dict[str, Any]:
        return self._changed(self._commands.resume(_text(request, "by")))

    async def _labels(self, request: admin.AdminRequest) -> dict[str, Any]:
        by, answer = _text(request, "by"), self.labels.post(request.body)
        await self._controller.keep_labels()
        _log(f"{answer['accepted']} labels from {by}, {answer['refused']} more refused")
        return answer

    async def _upgrade(self, request: admin.AdminRequest) -> dict[str, Any]:
        """The other release rehearses; then the supervisor becomes it, and this controller ends."""
        python, package, by = (_text(request, name) for name in ("python", "package", "by"))
        found = await self._link.rehearse(python)
        if found["package"] != package:
            raise UnavailableError(
                f"{python} finds {found['package']} and not {package} where the service runs: see to its PYTHONPATH and to the "
                "directory that it was started in; nothing was changed"
            )
        _log(f"{by} upgrades from {__version__} to {found['release']} ({python})")
        self._link.take_over(python)
        return {"changed": True, "from": __version__, "to": found["release"]}

    def _changed(self, changed: Any) -> dict[str, Any]:
        split = self._controller.traffic.confirmed
        document: dict[str, Any] = changed.document(split.weight if split else None)
        return document

    async def _events(self, rollout_id: str, after: str) -> AsyncIterator[bytes]:
        if not await self._controller.story(rollout_id):
            raise InvalidError(await self._no_such_rollout(rollout_id))
        if not (after.isascii() and after.isdigit()):
            raise InvalidError(f"after={after!r} is not the number of an event")
        return self._lines(rollout_id, int(after))

    async def _lines(self, rollout_id: str, after: int) -> AsyncIterator[bytes]:
        async for event, rollout in self._controller.follow(rollout_id, after):
            yield admin.line(documents.event_document(event, rollout))


def _text(request: admin.AdminRequest, name: str) -> str:
    value = request.body.get(name)
    if not isinstance(value, str):
        raise InvalidError(f"{request.method} {request.path}: the body needs a text {name!r}")
    return value


async def run(given: argparse.Namespace) -> None:
    """The life of one controller: read the journal, take over the sockets, tick until the supervisor is gone."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor
    woken: list[Controller] = []
    link = SupervisorLink(lambda: woken[0].wake() if woken else None, ended.set)
    await link.connect(socket.socket(fileno=given.control_fd))
    home = ServiceHome(given.state, given.name)
    try:
        journal = _open_journal(home, recover=given.recover)
        controller = Controller(home, journal, Store(home.models))
        woken.append(controller)
        await _control(controller, link, given, ended)
        journal.close()
    except DeployctlError as error:
        await _give_up(error, link, given, ended)


async def _control(
    controller: Controller, link: SupervisorLink, given: argparse.Namespace, ended: asyncio.Event
) -> None:
    controller.workers = link
    controller.generation = given.generation
    controller.adopt(link.ready)
    traffic = RouterLink(given.fence, controller.on_batch, controller.wake, controller.on_router_gone)
    controller.traffic = traffic
    traffic.running = lambda: link.pids["routers"]
    traffic.expect(link.pids["routers"])
    await traffic.listen(socket.socket(fileno=given.orders_fd))
    commands = Commands(controller, link)
    link.when_hung_up(commands.read_again)
    renewal = Renewal(controller, link, traffic, commands.router_settings)
    caller = Caller()
    hooks = Hooks(controller, caller)
    api = Api(controller, commands, link, renewal, hooks, given.address)
    admin.serve(socket.socket(fileno=given.admin_fd), api.handle)
    takes_over = given.fence > 1 and controller.service is not None
    text = None if takes_over else _read(given.manifest)
    await commands.up(text, given.manifest, given.baseline_digest)
    ticking = asyncio.get_running_loop().create_task(_tick(controller, renewal))
    await _until_serving(controller, link, traffic, ended)
    api.serving.set()
    beside = [asyncio.create_task(work) for work in (api.labels.watch(), hooks.run())]
    if given.fence == 1:
        _announce(link, api.describe())
    await ended.wait()
    for task in (ticking, *beside):
        task.cancel()
    await caller.close()


async def _give_up(
    error: DeployctlError, link: SupervisorLink, given: argparse.Namespace, ended: asyncio.Event
) -> None:
    """A start that fails ends the service. One that served before goes on serving its last split, and says why it is stuck.

    What is in the way of one that takes over may pass, as a full disk does: it ends, and its supervisor tries again.
    """
    if given.fence > 1 and isinstance(error, UnavailableError):
        _log(f"{error}; traffic stays as it was, and it is tried again")
        sys.exit(error.exit_code)
    if given.fence == 1 or not isinstance(error, IntegrityError):
        link.exit(error.exit_code, str(error))
        await ended.wait()
        return

    async def refuse(_request: admin.AdminRequest) -> admin.AdminReply:
        raise IntegrityError(f"{error}; traffic stays as it was")

    admin.serve(socket.socket(fileno=given.admin_fd), refuse)
    await ended.wait()


def _open_journal(home: ServiceHome, *, recover: bool) -> Journal:
    for line in recovery.recover(home) if recover else ():
        _log(line)
    journal = Journal.open(home.journal)
    if journal.dropped_bytes:
        _log(f"{home.journal}: {journal.dropped_bytes} bytes of an unfinished record were cut")
    return journal


def _log(line: str) -> None:
    print(f"deployctl: {line}", file=sys.stderr, flush=True)  # noqa: T201 - the service's log


def _read(manifest: Path) -> str:
    try:
        return manifest.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"{manifest}: cannot be read: {error}") from error


async def _tick(controller: Controller, renewal: Renewal) -> None:
    while True:
        controller.tick(time.monotonic())
        renewal.step()
        await asyncio.sleep(TICK_SECONDS)


async def _until_serving(
    controller: Controller, link: SupervisorLink, traffic: RouterLink, ended: asyncio.Event
) -> None:
    """Until a router does what was asked. Raises what keeps the live version from being loaded."""
    assert controller.service is not None
    live = controller.service.live
    assert live is not None
    while traffic.agreed is None and not ended.is_set():
        controller.act(time.monotonic())
        worker = None if live == HUMAN else link.workers.get(controller.settings_id(live))
        if worker is not None and (reason := link.failure(worker.id)) and not controller.serves(live):
            raise error_for(int(worker.report.get("exit_code", 2)), f"live version {live.version}: {reason}")
        await asyncio.sleep(0.01)


def _announce(link: SupervisorLink, status: dict[str, Any]) -> None:
    who = "people decide" if status["live"] is None else f"version {status['live']} serves"
    line = f"{status['service']}: {who} at {status['url']}"
    told = {key: status[key] for key in ("schema_version", "service", "url", "live")}
    link.say(line, {**told, "pid": status["pids"]["supervisor"], "state": "started"})


def _give_large_arrays_back() -> None:
    """Has the C library map each large array by itself, so that its memory goes back to the system with it.

    glibc does so until one is freed, and then keeps the next ones in its heap: that was twice as large, and grew in holes between them.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_ARRAY)


def main() -> None:
    """Entry point; the supervisor gives every argument."""
    _give_large_arrays_back()
    die_with_parent()
    go_on_without_a_log()
    parser = argparse.ArgumentParser(prog="deployctl.controller")
    for name in ("admin", "orders", "control"):
        parser.add_argument(f"--{name}-fd", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--fence", type=int, required=True)
    parser.add_argument("--generation", type=int, default=0)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--baseline-digest")
    parser.add_argument("--address", required=True)
    parser.add_argument("--recover", action="store_true")
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
