"""A service under everything at once for a long time; and the checker of its history, which is lied to once for each of its rules."""

import os
import subprocess
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from histories import Fault, History, Response, Seen, Verb, complaints, lost
from service_rig import NAME, Box, alive, wait_for
from soak import SERVICE, Soak, figures, growths, small_disk

from deployctl import journal

CI_SECONDS, LONG_SECONDS = 12.0, 1800.0
DISK_MEGABYTES = 512
MIB_PER_MINUTE = 1.0
"""A leak of the size of one kept request in a hundred would be twice this."""
FILES_PER_MINUTE = 0.5


@pytest.fixture
def disk(tmp_path):
    """A box on a small disk of its own, where the tests may mount one."""
    box = Box(tmp_path, SERVICE)
    disk = small_disk(box.state, DISK_MEGABYTES)
    try:
        yield box, disk
    finally:
        box.stop()
        if disk:
            subprocess.run(["umount", "-l", str(disk)], check=True)
        box.close()


@pytest.mark.timeout(5400)
def test_whatever_happens_to_a_service_its_history_is_legal_and_its_memory_flat(disk, long, tally):
    box, small = disk
    seconds = float(os.environ.get("DEPLOYCTL_SOAK_SECONDS", LONG_SECONDS if long else CI_SECONDS))
    seed = int(os.environ.get("DEPLOYCTL_SOAK_SEED", "5"))
    box.up()
    soak = Soak(box, seconds, 10.0 if long else 1.5, seed, disk=small)
    soak.go()

    pids = box.status()["pids"]
    soak.history.journal = box.records()
    assert box.run("down", NAME).code == 0
    left = [pids["supervisor"], pids["controller"], *pids["routers"], *pids["workers"].values()]
    wait_for(lambda: not any(alive(pid) for pid in left), what="the end of every process")
    assert journal.read(box.home.journal) == soak.history.journal, "it ends as it was"

    said = complaints(soak.history)
    grew = growths(soak.samples, seconds / 4) if long else []
    words = "; ".join([figures(soak, lost(soak.history)), *map(str, grew)])
    tally.count("random faults", len(soak.history.faults), len(said), words)
    assert not said, said[:20]
    for growth in grew:
        assert growth.mib_per_minute - growth.interval < MIB_PER_MINUTE, growth
        assert growth.files_per_minute - growth.files_interval < FILES_PER_MINUTE, growth


# ── the checker is lied to ─────────────────────────────────────────────────────────────────────────────────────────


PLAN = {
    "baseline": {"version": "1"},
    "candidate": {"version": "2"},
    "steps": [{"weight": 20.0}, {"weight": 50.0}],
    "holdback": None,
}
PASS = {"verdict": {"result": "pass"}, "cause": "evidence", "by": "gate"}
BOB = {"cause": "person", "by": "person:bob"}
EVENTS = [
    ("started", {"plan": PLAN, "cause": "person", "by": "person:ann"}),
    ("learned", {"cause": "time", "by": "controller"}),
    ("climbed", {"step": 0, "cause": "time", "by": "gate"}),
    ("climbed", {"step": 1, **PASS}),
    ("promoted", PASS),
    ("rolled_back", BOB),
]
"""One second after the other, from second 1 on."""


def legal(plan=PLAN, **changes):
    """A service, its rollout and its rollback, as three people, a router and the journal saw them."""
    records = [{"seq": 1, "type": "served", "wall": _wall(0), "version": {"version": "1"}}]
    for number, (kind, more) in enumerate(EVENTS, 1):
        event = {"kind": kind, "step": None, "verdict": None, "plan": None, **more}
        event["plan"] = event["plan"] and plan
        records.append(
            {"seq": number + 1, "type": "event", "wall": _wall(number), "rollout": "r-1", "event": event}
        )
    history = History(records, lambda wall: datetime.fromisoformat(wall).timestamp())
    history.verbs = [
        Verb("begin", "person:ann", 0.5, 1.2, changed=True),
        Verb("rollback", "person:bob", 5.9, 6.3, changed=True, confirmed=True),
        Verb("rollback", "person:cy", 7.0, 7.1, changed=False),
    ]
    history.seen = [
        Seen(2.5, 2.51, "r-1", "pending", "1", 0.0),
        Seen(3.5, 3.51, "r-1", "progressing", "1", 20.0),
        Seen(5.5, 5.51, "r-1", "promoted", "2", 100.0),
        Seen(6.5, 6.51, "r-1", "rolled_back", "1", 0.0),
    ]
    history.responses = [
        Response(at, at + 0.01, 200, version)
        for at, version in (
            (0.5, "1"),
            (3.2, "2"),
            (4.2, "1"),
            (4.3, "2"),
            (5.6, "2"),
            (6.01, "2"),
            (7.0, "1"),
        )
    ]
    history.faults = [Fault("kill router", 4.5, 4.6, costs=True, back=4.8)]
    history.bad = frozenset({"nan"})
    for name, value in changes.items():
        setattr(history, name, value)
    return history


def _wall(second):
    return datetime.fromtimestamp(second, UTC).isoformat()


def _without(number):
    """The journal with this event gone and the others where they were."""
    return [record for record in legal().journal if record["seq"] != number]


def _changed(number, **changes):
    records = legal().journal
    records[number - 1]["event"] |= changes
    return records


def _more(name, one):
    return {name: [*getattr(legal(), name), one]}


def test_a_legal_history_is_no_complaint():
    assert complaints(legal()) == []


LIES = {
    "an acknowledged order is lost": (
        _more("verbs", Verb("pause", "person:dan", 3.3, 3.4, changed=True)),
        "person:dan: pause was answered as done, and is not in the journal",
    ),
    "an order that did nothing is in the journal": (
        {"verbs": [replace(legal().verbs[1], changed=False)]},
        "answered as nothing to do, and changed something",
    ),
    "an order is carried out before it was given": (
        {"verbs": [legal().verbs[0], replace(legal().verbs[1], began=6.2)]},
        "at a time at which it was not asked for",
    ),
    "orders swap places": (
        {
            "verbs": [
                replace(legal().verbs[0], began=0.9, ended=1.2),
                Verb("rollback", "person:bob", 0.1, 0.8, changed=True),
            ]
        },
        "came after an answered order and stands before it",
    ),
    "a status goes back": (
        _more("seen", Seen(6.8, 6.81, "r-1", "promoted", "2", 100.0)),
        "showed promoted of r-1, and that was over",
    ),
    "a version at weight 0 answers": (
        _more("responses", Response(6.9, 6.95, 200, "2")),
        "version 2 answered a request sent at 6.900",
    ),
    "a version answers before it has a weight": (
        _more("responses", Response(1.5, 1.6, 200, "2")),
        "version 2 answered a request sent at 1.500",
    ),
    "a promotion out of the blue": (
        {"journal": _changed(6, verdict=None)},
        "event 6: promoted without evidence and without a person",
    ),
    "a climb on a verdict that is not sure": (
        {"journal": _changed(5, verdict={"result": "inconclusive"})},
        "event 5: climbed without evidence",
    ),
    "a promotion by nobody": (
        {"journal": _changed(6, cause="person", by="person:eve")},
        "promoted by person:eve, who was never heard of",
    ),
    "something impossible happens": (
        {"journal": _changed(3, kind="finished")},
        "finished happened to r-1, which was pending",
    ),
    "a rollout begins from a version that is not live": (
        {"plan": PLAN | {"baseline": {"version": "9"}}},
        "began from version 9, but 1 was live",
    ),
    "a bad version stays": (
        {"journal": legal().journal[:-1], "bad": frozenset({"2"})},
        "the bad version 2 is promoted at the end",
    ),
    "a request is lost for nothing": (
        _more("responses", Response(3.3, 3.4, 502, None)),
        "was lost (502), and nothing it was in was killed",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_the_checker_sees_through(lie):
    changes, words = LIES[lie]
    said = complaints(legal(**changes))
    assert [one for one in said if words in one], said


def test_a_request_that_was_in_flight_in_what_was_killed_is_no_complaint():
    assert complaints(legal(**_more("responses", Response(4.4, 4.55, "failed", None)))) == []
