"""What doctor shows: every word at any width, the advice under what it is for."""

import io

import pytest
from rich.console import Console

from deployctl.views.console import Layout
from deployctl.views.doctor import doctor_lines

TOLD = {
    "schema_version": 1,
    "release": "0.1.0",
    "checks": [
        {"name": "clock", "service": None, "result": "ok", "found": "2026-01-01 12:00:00 UTC", "advice": None},
        {"name": "journal", "service": "digits", "result": "problem", "found": "/var/lib/deployctl/digits/journal:7: this record is damaged",
         "advice": "deployctl up FILE --recover"},
        {"name": "leftovers", "service": "digits", "result": "warning", "found": "admin.sock in /var/lib/deployctl/digits", "advice": "nothing"},
    ],
    "problems": 1,
    "warnings": 1,
}  # fmt: skip

AT_70 = """\
this machine, deployctl 0.1.0
  ok       clock      2026-01-01 12:00:00 UTC
digits
  problem  journal    /var/lib/deployctl/digits/journal:7: this record
                      is damaged
                      try: deployctl up FILE --recover
  warning  leftovers  admin.sock in /var/lib/deployctl/digits
                      try: nothing
1 problem, 1 warning
"""

AT_30 = """\
this machine, deployctl 0.1.0
  ok       clock
    2026-01-01 12:00:00 UTC
digits
  problem  journal
    /var/lib/deployctl/digits/journal:7:
    this record is damaged
    try: deployctl up FILE
         --recover
  warning  leftovers
    admin.sock in
    /var/lib/deployctl/digits
    try: nothing
1 problem, 1 warning
"""


@pytest.mark.parametrize(("width", "picture"), [(70, AT_70), (30, AT_30)])
def test_lines_are_broken_between_words_and_the_advice_stands_below(width, picture):
    assert "".join(f"{line.plain}\n" for line in doctor_lines(TOLD, Layout(width, edge=True))) == picture


def test_in_a_log_a_finding_is_one_line_and_its_advice_another():
    lines = [line.plain for line in doctor_lines(TOLD, Layout())]
    assert len(lines) == 8
    assert "  problem  journal    /var/lib/deployctl/digits/journal:7: this record is damaged" in lines


def test_what_is_wrong_has_a_colour_and_a_word():
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=200)
    for line in doctor_lines(TOLD, Layout(200)):
        console.print(line)
    shown = console.file.getvalue()
    assert "\x1b[1;31mproblem" in shown
    assert "\x1b[1;33mwarning" in shown


def test_a_sound_machine_is_said_to_be_one():
    sound = TOLD | {"checks": TOLD["checks"][:1], "problems": 0, "warnings": 0}
    assert [*doctor_lines(sound, Layout())][-1].plain == "nothing is wrong"
