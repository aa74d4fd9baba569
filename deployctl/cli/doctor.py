"""doctor: what is wrong with this machine or with a service, and what to do about each. Changes nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from deployctl import __version__
from deployctl.cli.options import AsOutput, Name, Output
from deployctl.errors import DeployctlError
from deployctl.views.console import layout_for, show, show_document

if TYPE_CHECKING:
    from deployctl.doctor.check import Check
    from deployctl.statedir import ServiceHome

MOST_AT_ONCE = 16


def doctor(name: Name = None, output: AsOutput = Output.TEXT) -> int:
    """Say what is wrong here, and what to do about it."""
    from deployctl.doctor.check import document, exit_code  # noqa: PLC0415 - --help does without

    checks = list(_checks(_named(name)))
    told = document(__version__, checks)
    if output is Output.JSON:
        show_document(told)
    else:
        from deployctl.views.doctor import doctor_lines  # noqa: PLC0415 - rich costs 0.05 s

        show(doctor_lines(told, layout_for(sys.stdout)))
    return exit_code(checks)


def _named(name: str | None) -> str | None:
    """The service that a name or a manifest means, None for all. Raises InvalidError."""
    if name is None:
        return None
    if name.endswith((".yaml", ".yml")) or Path(name).is_file():
        from deployctl.cli.manifests import read_manifest  # noqa: PLC0415 - pydantic models cost 0.1 s

        name = read_manifest(name).name
    from deployctl.statedir import ServiceHome  # noqa: PLC0415 - as above

    _ = ServiceHome(Path("/"), name)  # raises for what cannot be a name, whatever the state directory is
    return name


def _checks(name: str | None) -> Iterator[Check]:
    """The machine's, then each service's, asked at the same time: one that hangs costs the others nothing."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - as above

    from deployctl.doctor.check import examined  # noqa: PLC0415 - as above
    from deployctl.doctor.clock import Clocks, clock_checks  # noqa: PLC0415 - as above
    from deployctl.doctor.machine import machine_checks  # noqa: PLC0415 - as above
    from deployctl.doctor.service import service_checks  # noqa: PLC0415 - as above
    from deployctl.doctor.state import state_checks  # noqa: PLC0415 - as above
    from deployctl.statedir import state_dir  # noqa: PLC0415 - as above

    began = Clocks.now()
    state: Path | None = None
    try:
        state = state_dir()
    except DeployctlError as error:
        homeless = list(examined("state-directory", _refuse, error))
    with ThreadPoolExecutor(MOST_AT_ONCE) as several:
        machine = several.submit(lambda: list(machine_checks()))
        found = list(several.map(service_checks, _homes(state, name) if state else []))
        yield from machine.result()
    yield from state_checks(state) if state else homeless
    yield from examined("clock", clock_checks, began)
    for checks in found:
        yield from checks


def _homes(state: Path, name: str | None) -> list[ServiceHome]:
    from deployctl.statedir import ServiceHome, list_services  # noqa: PLC0415 - as above

    if name is not None:
        return [ServiceHome(state, name)]
    try:
        return [ServiceHome(state, one) for one in list_services(state)]
    except DeployctlError:  # `state-directory` says why
        return []


def _refuse(error: DeployctlError) -> Iterator[Check]:
    raise error
