"""Whatever happens to the bytes of a journal: a start finds an exact prefix and says what it cut, or refuses and names the record.

The file format alone is tested in `tests/test_journal.py`; this is what a service makes of it.
"""

import contextlib
import io
import json
import random
import shutil

import power_story
import pytest
from fakes import FakeTraffic, FakeVersions
from service_rig import wait_for
from two_controllers import FULL, Service

from deployctl.controller import __main__ as process
from deployctl.controller import recovery
from deployctl.controller.fold import service_of
from deployctl.controller.loop import Controller
from deployctl.core.plan import Phase
from deployctl.errors import Exit, IntegrityError
from deployctl.statedir import ServiceHome
from deployctl.store import Store

SHORT, LONG_FLIPS = 60, 1_000


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    """The home of a service that has seen much, and the bytes of its journal."""
    state = tmp_path_factory.mktemp("lived")
    with contextlib.redirect_stderr(io.StringIO()):
        power_story.life(state)
    home = ServiceHome(state, "digits")
    return home, home.journal.read_bytes()


def _ends(data):
    return [0, *(at + 1 for at, byte in enumerate(data) if byte == ord("\n"))]


def _opened(home):
    """The journal as a controller opens it, and what it said."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        return process._open_journal(home, recover=False), said.getvalue()


def _started(home):
    """A controller on what is there: how it folds, and what it asks of the routers."""
    opened, _ = _opened(home)
    with opened:
        controller = Controller(home, opened, Store(home.models))
        controller.traffic, controller.workers = FakeTraffic(), FakeVersions()
        for _ in range(2 if controller.service is not None else 0):  # ready, and then sent to
            controller.act(0.0)
        if controller._records is not None:
            controller._records.close()
        return controller.service, controller.traffic.in_force


def _fold(home, data):
    """What whole lines of a journal add up to."""
    records = [json.loads(line[65:]) for line in data.splitlines()]
    return records, service_of(records, home.journal)


def _is_an_exact_prefix(home, before, damaged, *, start):
    """What is found is the beginning of what was written, and the routers are asked for what that adds up to."""
    opened, said = _opened(home)
    opened.close()
    whole = _ends(before)[len(opened.records)]
    expected, folded = _fold(home, before[:whole])
    assert opened.records == expected
    assert home.journal.read_bytes() == before[:whole]
    if cut := len(damaged) - whole:
        assert f"{cut} bytes of an unfinished record were cut" in said
    if start:
        service, in_force = _started(home)
        assert (service.split if service else None) == (folded.split if folded else None)
        assert in_force == (folded.split if folded else None)


def _is_refused_and_recovered(home, before, damaged, error):
    """One line names the file and the record; `--recover` keeps the file, and what is proven serves with no rollout."""
    proven = next(n for n, end in enumerate(_ends(before)) if damaged[:end] != before[:end]) - 1
    assert error.exit_code is Exit.INTEGRITY
    assert str(error).startswith(f"{home.journal}:{proven + 1}: ")
    assert "up --recover" in str(error)
    assert "\n" not in str(error)
    assert home.journal.read_bytes() == damaged, "it was changed"
    (line,) = recovery.recover(home)
    kept = home.path / "journal.damaged-1"
    assert str(kept) in line
    assert f"{proven} records are proven" in line
    assert kept.read_bytes() == damaged
    kept.unlink()
    service, in_force = _started(home)
    _, folded = _fold(home, before[: _ends(before)[proven]])
    assert (service.live if service else None) == (folded.live if folded else None)
    if service is not None:
        assert service.running is None
        answers = in_force.candidate if in_force.weight == 100 else in_force.baseline
        assert answers == service.live
    if folded is not None and folded.running is not None:
        assert service.rollout.phase is Phase.ROLLED_BACK


def _look(lived, damaged, *, start=True):
    """Whether the damage was refused; without `start` the journal is opened, and no controller is put on it."""
    home, before = lived
    home.journal.write_bytes(damaged)
    try:
        _is_an_exact_prefix(home, before, damaged, start=start)
    except IntegrityError as error:
        _is_refused_and_recovered(home, before, damaged, error)
        return True
    return False


def test_a_journal_that_was_cut_anywhere_is_an_exact_prefix(lived, long, tally):
    _, before = lived
    every = range(len(before) + 1)
    cuts = every if long else random.Random(1).sample(every, SHORT)
    at_ends = {end + near for end in _ends(before) for near in (-2, -1, 0, 1)}
    started = 0
    for cut in cuts:
        start = not long or cut in at_ends or cut % 16 == 0
        started += start
        assert not _look(lived, before[:cut], start=start)
    tally.count("journal cut at a byte", len(cuts), 0, f"a controller started on {started:,} of them")


def test_a_journal_with_a_flipped_bit_is_refused_or_an_exact_prefix(lived, long, tally):
    _, before = lived
    bits = random.Random(2).sample(range(8 * len(before)), LONG_FLIPS if long else SHORT)
    refused = 0
    for bit in bits:
        damaged = bytearray(before)
        damaged[bit // 8] ^= 1 << bit % 8
        refused += _look(lived, bytes(damaged))
    tally.count(
        "bit of the journal flipped, service started", len(bits), 0, f"{refused} refused, then recovered"
    )
    assert refused > 0.99 * len(bits)


def test_a_journal_that_lost_sectors_is_refused_or_an_exact_prefix(lived, long, tally):
    """Zeros in the last record are what a power cut leaves; anywhere else they are damage."""
    _, before = lived
    sectors = range(0, len(before), 512)
    last = _ends(before)[-2]
    for start in sectors if long else random.Random(3).sample(sectors, 12):
        damaged = before[:start] + bytes(min(512, len(before) - start)) + before[start + 512 :]
        assert _look(lived, damaged) == (start < last)
    tally.count("sector of the journal lost, service started", len(sectors) if long else 12)


# ── with a real router ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def service(tmp_path):
    service = Service(tmp_path)
    yield service
    service.close()


def test_while_a_damaged_journal_is_refused_the_callers_stay_where_they_were(service, long, tally):
    """A controller that takes over refuses every call, and the router goes on with its last split; a first start ends with 9."""
    controller = service.controller(1)
    service.promote(controller)
    before = service.box.home.journal.read_bytes()
    chance = random.Random(4)
    bits = chance.sample(range(8 * len(before)), 20 if long else 1)
    for number, bit in enumerate(bits, 2):
        service.end(controller)
        damaged = bytearray(before)
        damaged[bit // 8] ^= 1 << bit % 8
        service.box.home.journal.write_bytes(damaged)
        controller = service.controller(number)
        for call, body in (
            ("/v1/rollback", {"by": "a test", "reason": "", "to": None}),
            ("/v1/promote", FULL),
        ):
            with (
                controller.client() as client,
                pytest.raises(IntegrityError, match="traffic stays as it was") as refused,
            ):
                client.post(call, body)
            assert "journal:" in str(refused.value)
        assert service.version() == "2"
        assert service.box.home.journal.read_bytes() == damaged
        assert controller.told == [], "it asks for nothing"
    service.end(controller)
    first = service.controller(1)
    (told,) = wait_for(lambda: first.told, what="its last word")
    assert told["exit"]["code"] == Exit.INTEGRITY
    assert told["exit"]["message"].startswith(f"{service.box.home.journal}:")
    tally.count("damaged journal under a running router", len(bits))


# ── damaged records ────────────────────────────────────────────────────────────────────────────────────────────────


def test_damaged_records_are_kept_aside_and_the_rollout_ends(lived, tmp_path):
    """A service whose records are damaged must have a way to start again, as one with a damaged journal has."""
    home, before = lived
    shutil.copytree(home.path, tmp_path / "digits")
    home = ServiceHome(tmp_path, "digits")
    home.journal.write_bytes(before)
    records = max(home.records.glob("*-4-*.records"))
    damaged = bytearray(records.read_bytes())
    damaged[len(damaged) // 2] ^= 0x10
    records.write_bytes(damaged)
    with pytest.raises(IntegrityError, match="up --recover"):
        _started(home)
    (line,) = recovery.recover(home)
    kept = records.with_name(f"{records.stem}.damaged-1.records")
    assert str(kept) in line
    assert kept.read_bytes() == damaged
    service, in_force = _started(home)
    assert service.running is None
    assert service.rollout.ended_by.by == recovery.BY
    assert in_force.weight == 0
    assert list(recovery.recover(home)) == [], "there is nothing more to do"


def test_a_recovery_of_what_is_not_damaged_changes_nothing(lived, tmp_path):
    home, before = lived
    shutil.copytree(home.path, tmp_path / "digits")
    home = ServiceHome(tmp_path, "digits")
    home.journal.write_bytes(before)
    files = {path: path.read_bytes() for path in home.path.rglob("*") if path.is_file()}
    assert list(recovery.recover(home)) == []
    assert {path: path.read_bytes() for path in home.path.rglob("*") if path.is_file()} == files
    with process._open_journal(home, recover=True) as journal:
        controller = Controller(home, journal, Store(home.models))
    assert controller.service.running is not None
