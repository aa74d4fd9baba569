"""The kill sweep: a fault before every call of the controller that changes something, and then nothing promised is lost.

The controller, the router, the journal, the records and the store are the real ones; the supervisor and the workers are stand-ins.
Look into one point by hand with `python tests/faults/sweep.py`. What is checked after each is in `sweep_checker.py`.
"""

from collections import Counter

import pytest
from sweep import Point, Sweep, doubled, spread
from sweep_faults import KILL, SHORT

SHORT_POINTS, LONG_POINTS = 500, 10_000
SHORT_PAIRS, LONG_PAIRS = 25, 1_000


@pytest.fixture(scope="module")
def sweep():
    with Sweep() as playing:
        yield playing


@pytest.fixture(scope="module")
def points(sweep):
    return sweep.rehearse()


@pytest.mark.timeout(7200)
def test_whatever_call_a_fault_comes_before_the_service_ends_as_its_journal_says(sweep, points, tally, long):
    if long:  # each goes on in both ways
        chosen = points + [Point(p.chapter, p.faults, p.takes_over, 1 - p.parity) for p in points]
        tried = _play(sweep, chosen, tally, "{mode} ({by})")
    else:
        tried = _play(sweep, spread(points, 2 * SHORT_POINTS), tally, "{mode} ({by})", enough=SHORT_POINTS)
    assert tried >= (LONG_POINTS if long else SHORT_POINTS)


@pytest.mark.timeout(7200)
def test_a_fault_in_the_recovery_from_a_kill_changes_nothing_of_that(sweep, points, tally, long):
    wanted = LONG_PAIRS if long else SHORT_PAIRS
    tried = _play(
        sweep, doubled(points, int(1.4 * wanted)), tally, "a kill, then another fault in its recovery"
    )
    assert tried >= wanted


TWINS = {
    "tells the router first": ("canary climbs", KILL, ("write", "fsync")),
    "promises before it writes": ("canary is promoted", KILL, ("answer a client",)),
    "keeps what it refused": ("canary is promoted", SHORT, ("write",)),
    "forgets what it has seen": ("canary climbs", KILL, ("tell the router",)),
}
"""Which twin is looked for in which chapter, and with which faults."""


@pytest.mark.parametrize("twin", TWINS)
def test_the_sweep_finds_a_controller_that(twin, sweep, points, tally):
    chapter, mode, calls = TWINS[twin]
    suspects = [
        point
        for point in points
        for fault in point.faults
        if point.chapter == chapter and (fault.by, fault.mode) == ("failpoint", mode) and fault.call in calls
    ]
    found = [result for _, result in sweep.run(suspects, twin, until=_is_wrong) if _is_wrong(result)]
    words = f"found: {found[0]['words'].partition(';')[0][:80]}" if found else "NOT FOUND"
    tally.count(f"a controller that {twin}", 1, words=words)
    assert found


def _play(sweep, points, tally, name, enough=None):
    """Play them, or as many as are enough, and say what came of them; gives how many faults came."""
    rows, wrong, hangs = {}, [], Counter()

    def is_enough(_result):
        return enough is not None and sum(seen["tried"] for seen in rows.values()) >= enough

    for point, result in sweep.run(points, until=is_enough):
        row = name.format(mode=point.faults[0].mode, by=point.faults[0].by)
        seen = rows.setdefault(row, Counter())
        all_came = result["end"] != "not reached" and (
            _is_wrong(result) or "not reached" not in result["seen"]
        )
        seen["tried" if all_came else "beyond the end"] += 1
        if _is_wrong(result):
            seen["wrong"] += 1
            hangs[row] += result["end"] == "hung"
            wrong.append(f"{point}: {result['end']}: {result['words']}")
    for row, seen in sorted(rows.items()):
        words = f"{hangs[row]} hangs, {seen['beyond the end']} more lay beyond the end of their story"
        tally.count(row, seen["tried"], seen["wrong"], words)
    assert not wrong, f"{len(wrong)} of {len(points)} points:\n" + "\n".join(wrong[:20])
    return sum(seen["tried"] for seen in rows.values())


def _is_wrong(result):
    return result["end"] in {"violated", "hung"}
