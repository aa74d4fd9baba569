"""Many services at once: asked at the same time, and shown at any width without a cut."""

import asyncio
import socket
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from cli_rig import status_of

from deployctl.cli.listing import Fleet
from deployctl.statedir import ServiceHome
from deployctl.views.console import Layout
from deployctl.views.services import rows_that_fit, service_line, service_lines
from deployctl.wire.admin import AdminReply, serve


def row(name, state="running", **changes):
    told = status_of(name, **changes) if state == "running" else dict.fromkeys(status_of())
    return told | {"service": name, "state": state, "pid": 4711}


ROWS = [
    row("digits"),
    row("invoices", rollout=None, phase=None, live="2026-01-01", url="http://127.0.0.1:8081"),
    row("long-name-of-a-line-in-the-second-hall", phase="retired", finished=True, url="https://[::1]:8443"),
    row("phones", strategy="shadow", mirror=100.0, weight=0.0, live=None, step=1, steps=1),
    row("scales", "not answering"),
    row("old", "stopped"),
]

AT_200 = """\
service                                 state          live        phase        step    weight        strategy  url
digits                                  running        1           progressing  2 of 6  10 %          canary    http://127.0.0.1:8080
invoices                                running        2026-01-01  serving      -       -             -         http://127.0.0.1:8081
long-name-of-a-line-in-the-second-hall  running        1           retired      -       -             -         https://[::1]:8443
phones                                  running        people      progressing  1 of 1  copies 100 %  shadow    http://127.0.0.1:8080
scales                                  not answering  -           -            -       -             -         -
old                                     stopped        -           -            -       -             -         -
"""
AT_100 = """\
service                                 state          live        phase        weight
digits                                  running        1           progressing  10 %
  http://127.0.0.1:8080
invoices                                running        2026-01-01  serving      -
  http://127.0.0.1:8081
long-name-of-a-line-in-the-second-hall  running        1           retired      -
  https://[::1]:8443
phones                                  running        people      progressing  copies 100 %
  http://127.0.0.1:8080
scales                                  not answering  -           -            -
old                                     stopped        -           -            -
"""
AT_40 = """\
digits
  running, version 1, progressing,
  step 2 of 6, 10 %, canary
  http://127.0.0.1:8080
invoices
  running, version 2026-01-01, serving
  http://127.0.0.1:8081
long-name-of-a-line-in-the-second-hall
  running, version 1, retired
  https://[::1]:8443
phones
  running, people decide, progressing,
  step 1 of 1, copies 100 %, shadow
  http://127.0.0.1:8080
scales
  not answering
old
  stopped
"""


def picture(lines):
    return "".join(f"{line.plain}\n" for line in lines)


@pytest.mark.parametrize(("width", "shown"), [(200, AT_200), (100, AT_100), (40, AT_40)])
def test_the_table_fits_its_terminal_and_cuts_nothing(width, shown):
    lines = service_lines(ROWS, Layout(width, edge=True))
    assert picture(lines) == shown
    assert all(line.cell_len <= width for line in lines)


def test_short_names_have_all_that_matters_in_80_columns():
    lines = service_lines([ROWS[0], ROWS[-1]], Layout(80, edge=True))
    assert picture(lines) == (
        "service  state    live  phase        step    weight  url\n"
        "digits   running  1     progressing  2 of 6  10 %    http://127.0.0.1:8080\n"
        "old      stopped  -     -            -       -       -\n"
    )


def test_in_a_log_a_table_has_no_edge():
    assert picture(service_lines(ROWS, Layout(20))) == AT_200


def test_a_line_of_a_log_says_only_what_there_is():
    assert [service_line(one) for one in ROWS] == [
        "digits  running  version 1  progressing  step 2 of 6  10 %  canary  http://127.0.0.1:8080",
        "invoices  running  version 2026-01-01  serving  http://127.0.0.1:8081",
        "long-name-of-a-line-in-the-second-hall  running  version 1  retired  https://[::1]:8443",
        "phones  running  people decide  progressing  step 1 of 1  copies 100 %  shadow  http://127.0.0.1:8080",
        "scales  not answering",
        "old  stopped",
    ]


def test_on_a_low_terminal_those_who_need_a_look_come_first_and_the_others_are_counted():
    shown = picture(rows_that_fit(ROWS, Layout(200, edge=True), 5))
    assert [line.split()[0] for line in shown.splitlines()] == [
        "service",
        "digits",
        "phones",
        "scales",
        "and",
    ]
    assert shown.endswith("and 3 more: deployctl list\n")
    assert picture(rows_that_fit(ROWS, Layout(200, edge=True), 7)) == AT_200
    assert rows_that_fit(ROWS, Layout(10, edge=True), 1)[-1].plain == "and 5 more: deployctl list"


def test_services_that_hang_cost_the_others_nothing(monkeypatch):
    """Nine answer and four do not: one after the other they would take eight seconds."""
    answering, hanging = [f"a{number}" for number in range(9)], [f"h{number}" for number in range(4)]
    with tempfile.TemporaryDirectory(prefix="dctl", dir="/tmp") as state, ExitStack() as stack:
        monkeypatch.setenv("DEPLOYCTL_STATE_DIR", state)
        sockets = {}
        for name in [*answering, *hanging]:
            home = ServiceHome(Path(state), name)
            stack.enter_context(home.lock())
            sockets[name] = stack.enter_context(socket.socket(socket.AF_UNIX))
            sockets[name].bind(str(home.admin_socket))
            sockets[name].listen()
        stack.enter_context(Answering({name: sockets[name] for name in answering}))
        began = time.monotonic()
        with Fleet() as fleet:
            rows = fleet.rows()
        took = time.monotonic() - began
    assert {one["service"]: one["state"] for one in rows} == (
        dict.fromkeys(answering, "running") | dict.fromkeys(hanging, "not answering")
    )
    assert [one["service"] for one in rows] == sorted(sockets)
    assert 2.0 <= took < 7.0


class Answering:
    """The admin sockets of several services, in a thread of their own."""

    def __init__(self, sockets):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(sockets),))

    async def _run(self, sockets):
        async def answer(name):
            return AdminReply(status_of(name))

        self._over = asyncio.Event()
        servers = [serve(sock, lambda _request, name=name: answer(name)) for name, sock in sockets.items()]
        await self._over.wait()
        for server in servers:
            await server.close()

    def __enter__(self):
        self._thread.start()

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._loop.close()
