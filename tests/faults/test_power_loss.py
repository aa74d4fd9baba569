"""After a power cut at any moment the service starts, and everything that it had promised is there (the disk: `power_loss.py`)."""

import asyncio
import itertools
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import power_story
import pytest
from power_loss import (
    ACKNOWLEDGED,
    Directory,
    Disk,
    File,
    Op,
    digest,
    materialise,
    operations,
    strace,
    traced,
)
from power_story import SAID, Watched
from service_rig import NAME, Box, wait_for

from deployctl import journal
from deployctl.controller import recovery
from deployctl.controller.labels import MEMORY
from deployctl.controller.loop import Controller
from deployctl.core.plan import Phase
from deployctl.errors import DeployctlError, IntegrityError
from deployctl.records import LABELS, Intake, Records, segments_of
from deployctl.records import read as read_records
from deployctl.statedir import ServiceHome
from deployctl.store import Store

SHORT, LONG = 1_050, 6_000
"""Distinct states of the story that are looked at; the whole service and a recovery add theirs."""

FEW, MANY = 1, 4
"""Draws for each file at each cut, beside the likely and the odd, in the short version and in the long one."""

pytestmark = pytest.mark.skipif(
    strace() is None, reason="strace is not installed, and it says what is written"
)


@dataclass
class Promise:
    """What must be there after a cut now: everything that was said to the outside, or was on the platter."""

    service: str
    records: list[dict] = field(default_factory=list)
    """The journal as it is being written; what is found must be the beginning of it."""
    promised: int = 0
    key: bytes | None = None
    segments: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    """For each file of the records what was written, and how much of that is on the platter."""
    exported: bytes = b""


class Cuts:
    """The power is cut after each operation of a trace; every state of the disk then is given once for each promise."""

    def __init__(
        self, scratch: Path, disk: Disk, ops: list[Op], *, draws: int, most: int, service: str = "digits"
    ) -> None:
        self.disk, self.ops = disk, ops
        self.states: set[bytes] = set()
        self._scratch, self._draws, self._most = scratch, draws, most
        self._chance = random.Random(5)
        self._seen: set[tuple[bytes, int]] = set()
        self._home = ServiceHome(disk.root / "state", service)
        self._promise = Promise(service)

    def __iter__(self) -> Iterator[tuple[Path, Promise]]:
        for number, op in enumerate(self.ops):
            self.disk.apply(op)
            promise = self._promise = self._promised(op)
            fresh = dict(self._fresh(promise.promised))
            share = self._most * (number + 1) // len(self.ops) - len(self.states)
            for key in self._chance.sample([*fresh], min(len(fresh), max(share, 1))):
                self.states.add(key[0])
                self._seen.add(key)
                with self._on_disk(fresh[key]) as state:
                    yield state, promise

    def _fresh(self, promised: int) -> Iterator[tuple[tuple[bytes, int], dict]]:
        for tree in self.disk.after_a_cut(self._chance, self._draws):
            key = digest(tree), promised
            if key not in self._seen:
                yield key, tree

    @contextmanager
    def _on_disk(self, tree: dict) -> Iterator[Path]:
        disk = self._scratch / "disk"
        materialise(tree, disk)
        try:
            yield disk / "state"
        finally:
            shutil.rmtree(disk)

    def _promised(self, op: Op) -> Promise:
        lines = (self.disk.seen(self._home.journal) or b"").split(b"\n")[:-1]
        try:
            records = [json.loads(line[65:]) for line in lines]
        except ValueError:  # a damaged journal promises nothing
            records = []
        exported = self.disk.seen(self.disk.root / "state" / "exports" / "predictions.jsonl") or b""
        promise = replace(self._promise, records=records, segments={}, exported=exported)
        if op.kind == ACKNOWLEDGED:
            promise.promised, promise.key = len(records), self.disk.seen(self._home.input_key)
        directory = self.disk.find(self._home.records)
        for name, file in directory.now.items() if isinstance(directory, Directory) else ():
            assert isinstance(file, File)
            promise.segments[name] = file.now, len(file.versions[0])
        return promise


Look = Callable[[Path, Promise], None]


def violations(cuts: Cuts, look: Look, *, enough: int = 5) -> list[str]:
    """What was wrong after which cut, until there is enough of it."""
    found = []
    for state, promise in cuts:
        try:
            look(state, promise)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong at this start is what is looked for
            found.append(f"{type(error).__name__}: {error}")
            if len(found) >= enough:
                break
    return found


# ── what must be so after a cut ────────────────────────────────────────────────────────────────────────────────────


def it_goes_on(state: Path, promise: Promise) -> None:
    """Start the service on what is left, as `up` would, and hold what is found against what was promised."""
    all_is_there(state, promise)
    home = ServiceHome(state, promise.service)
    with home.lock(), Watched(state) as service:
        found = service.journal.records
        _it_serves_and_obeys(service)
    assert journal.read(home.journal)[: len(found)] == found


def all_is_there(state: Path, promise: Promise) -> None:
    """Open all that a start opens, and hold what is found against what was promised."""
    home = ServiceHome(state, promise.service)
    with home.lock(), journal.Journal.open(home.journal) as opened:
        found = opened.records
        assert found == promise.records[: len(found)], "the journal tells another story"
        assert len(found) >= promise.promised, f"{promise.promised - len(found)} promised records are gone"
        store = Store(home.models)
        for named in {named for record in found for named in record.get("digests", ())}:
            assert store.holds(named), f"{named} is in the journal, and its model is not whole"
        if promise.key is not None:
            assert home.input_key.read_bytes() == promise.key, "the key for inputs is another one"
        if rollouts := [record["rollout"] for record in found if "rollout" in record]:
            Records.open(home.records / f"{rollouts[-1]}.records").close()
        _the_records_are_there(home, promise)
    exported = state / "exports" / "predictions.jsonl"
    assert not exported.exists() or exported.read_bytes() == promise.exported, "half an export"


def every(number: int, one: Look, another: Look) -> Look:
    """The one look at every so many states, the other at the rest: it is quicker."""
    looks = itertools.cycle([one, *[another] * (number - 1)])

    def look(state: Path, promise: Promise) -> None:
        next(looks)(state, promise)

    return look


def _the_records_are_there(home: ServiceHome, promise: Promise) -> None:
    labels = 0
    for path in home.records.glob("*.records"):
        entries = read_records(path)
        labels += sum(len(e.batch.labels) for e in entries if isinstance(e, Intake) and e.router == LABELS)
        for segment in segments_of(path):
            written, safe = promise.segments.get(segment.name, (b"", 0))  # none: made by the start just now
            assert segment.read_bytes()[:safe] == written[:safe], f"what was safe in {segment.name} is gone"
    memory = home.path / MEMORY
    if memory.exists():
        claimed = sum(place["line"] - 1 for place in json.loads(memory.read_bytes())["files"].values())
        assert labels >= claimed, f"{claimed} labels are taken for read, and {labels} are recorded"


def _it_serves_and_obeys(service: Watched) -> None:
    if service.controller.service is None:
        service.up()
        assert service.weight == 0
        return
    asyncio.run(service.commands.up(None, service.home.path))
    service.controller.tick(service.clock)
    assert service.traffic.in_force == service.controller.service.split
    if service.controller.service.running is not None:
        service.step()
        service.rollback()
        assert (service.weight, service.rollout.phase) == (0, Phase.ROLLED_BACK)


# ── the stories ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A place in memory, where there is one: thousands of disks are written and removed again."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path_factory.mktemp("scratch")
        return
    path = memory / f"deployctl-{tmp_path_factory.getbasetemp().name}-{random.Random().getrandbits(32):x}"
    path.mkdir()
    yield path
    shutil.rmtree(path)


class Story:
    """A story that was told once, under the eyes of strace."""

    def __init__(self, folder: Path, name: str, before: Callable[[Path], None] = lambda _state: None) -> None:
        self._root, self._before, self._scratch = folder / "now", folder / "before", folder
        self._root.mkdir(parents=True)
        before(self._root / "state")
        shutil.copytree(self._root, self._before)
        log = folder / "strace"
        argv = [sys.executable, power_story.__file__, str(self._root / "state"), name]
        subprocess.run(traced(argv, log), check=True)
        found = operations(log, self._root, lambda _path, data: data == SAID)
        users = [self._root / "state" / name for name in ("models-of-the-user", "labels")]
        self.ops = [op for op in found if not any(op.path.is_relative_to(one) for one in users)]
        self.state = self._root / "state"

    def cuts(self, draws: int, most: int, without: Callable[[Op, Op], bool] = lambda _b, _o: False) -> Cuts:
        """Cuts at every moment of it; `without(operation before, operation)` says which operations were never made."""
        pairs = zip([Op("begin"), *self.ops], self.ops, strict=False)
        kept = [op for before, op in pairs if not without(before, op)]
        return Cuts(self._scratch, Disk(self._root, self._before), kept, draws=draws, most=most)


@pytest.fixture(scope="module")
def life(scratch):
    return Story(scratch / "life", "life")


def test_after_a_power_cut_at_any_moment_all_that_was_promised_is_there(life, long, tally, capfd):
    cuts = life.cuts(MANY if long else FEW, LONG if long else SHORT)
    found = violations(cuts, every(2 if long else 5, it_goes_on, all_is_there))
    tally.count("power cut: states of the disk", len(cuts.states), len(found), f"{len(life.ops)} operations")
    assert not found
    assert len(cuts.states) >= (5_000 if long else 1_000)
    capfd.readouterr()  # each start says what it had to cut


def it_can_be_taken_up(state: Path, promise: Promise) -> None:
    """As `all_is_there`, and a controller takes up what was running."""
    all_is_there(state, promise)
    home = ServiceHome(state, promise.service)
    with home.lock(), journal.Journal.open(home.journal) as opened:
        controller = Controller(home, opened, Store(home.models))
        assert (controller.service is None) == (not opened.records)


@pytest.mark.timeout(3600)
def test_after_a_power_cut_in_the_life_of_a_whole_service_all_that_was_promised_is_there(
    tmp_path, scratch, long, tally, capfd
):
    """The same with every process and real traffic; what the command line and the routers were told is promised."""
    if not long:
        pytest.skip("long: the processes are slow under strace")
    box, log = Box(tmp_path), tmp_path / "strace"
    root, box.state = box.state, box.state / "state"
    box.home = ServiceHome(box.state, NAME)
    (before := tmp_path / "before").mkdir()
    try:
        _lead_a_whole_life(box, log)
        ops = operations(log, root, _is_said_by_the_controller)
        cuts = Cuts(scratch, Disk(root, before), ops, draws=FEW, most=1_500, service=NAME)
        found = violations(cuts, every(3, it_can_be_taken_up, all_is_there))
    finally:
        box.close()
    tally.count(
        "power cut, whole service: states of the disk", len(cuts.states), len(found), f"{len(ops)} operations"
    )
    assert not found
    assert len(cuts.states) >= 1_000
    capfd.readouterr()


def _lead_a_whole_life(box: Box, log: Path) -> None:
    argv = traced([sys.executable, "-m", "deployctl", "up", box.manifest()], log)
    with subprocess.Popen(argv, env=box.environment, stdout=subprocess.DEVNULL) as watched:
        try:
            wait_for(lambda: _serves(box), within=120)
            _live(box)
            assert box.run("down", NAME).code == 0
        finally:
            box.stop()
            assert watched.wait(60) == 0


def _serves(box: Box) -> bool:
    if not box.home.admin_socket.exists():  # httpcore forgets the socket with which it could not connect
        return False
    with suppress(DeployctlError):
        return box.status()["weight"] is not None
    return False


def _live(box: Box) -> None:
    with box.traffic(60) as traffic:
        traffic.wait_for_answers(100)
        assert box.ramp(box.manifest()).code == 0
        assert box.run("rollback", NAME).code == 0
        assert box.ramp(box.manifest(candidate="nan")).code == 3
        assert box.run("canary", "ramp", box.manifest(canary={"minDwell": "60s"}), "--detach").code == 0
        traffic.wait_for_answers(20, of="2")
        box.kill(box.status()["pids"]["controller"])
        assert box.run("pause", NAME).code == 0
        assert box.run("promote", NAME, "--full", "--reason", "so it is said").code == 0


def _is_said_by_the_controller(path: str, _data: bytes) -> bool:
    """To whoever gave a command, or to a router."""
    return "admin.sock" in path or "orders.sock" in path


def _appends_of_the_journal(_before: Op, op: Op) -> bool:
    return op.kind == "sync" and op.path.name == "journal"


def _the_directory_after_a_rename(before: Op, op: Op) -> bool:
    """With what opens the directory for its fsync in between, which is no operation."""
    return op.kind == "sync" and before.kind == "rename" and op.path == before.path.parent


def _temporary_files(_before: Op, op: Op) -> bool:
    return op.kind == "sync" and op.path.name.startswith((".incoming", ".input.key", "label-files.json."))


@pytest.mark.parametrize(
    "without",
    [_appends_of_the_journal, _the_directory_after_a_rename, _temporary_files],
    ids=lambda f: f.__name__,
)
def test_a_twin_that_leaves_an_fsync_out_is_caught(life, without, tally, capfd):
    cuts = life.cuts(FEW, SHORT, without)
    assert len(cuts.ops) < len(life.ops)
    found = violations(cuts, all_is_there, enough=1)
    tally.count("power cut: sabotaged twins, all caught", 1, int(not found))
    assert found
    capfd.readouterr()


# ── a recovery ─────────────────────────────────────────────────────────────────────────────────────────────────────


DAMAGED = 12
"""The record that took back the bad version: what is proven is that it is being tried."""


def _damage(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    assert b'"rolled_back"' in lines[DAMAGED - 1]
    lines[DAMAGED - 1] = lines[DAMAGED - 1].replace(b"rolled_back", b"rolled_bacK")
    return b"".join(lines)


@pytest.fixture(scope="module")
def recovered(life, scratch):
    """Makes a story of a recovery; what the service was like is the end of its life, with a damaged journal."""

    def before(state: Path) -> None:
        shutil.copytree(life.state, state)
        whole = ServiceHome(state, "digits").journal
        whole.write_bytes(_damage(whole.read_bytes()))

    return lambda name: Story(scratch / name, name, before)


def it_is_recovered(damaged: bytes) -> Look:
    """The damaged journal is there as it was or kept aside, and no rollout goes on whose end was lost with it."""
    proven = [json.loads(line[65:]) for line in damaged.splitlines()[: DAMAGED - 1]]

    def look(state: Path, promise: Promise) -> None:
        home = ServiceHome(state, "digits")
        try:
            found = journal.read(home.journal)
        except IntegrityError:
            assert home.journal.read_bytes() == damaged, "a damaged journal was changed"
            assert promise.promised == 0, "it was said that it is recovered"
            with home.lock():
                assert len([*recovery.recover(home)]) == 1
            found = journal.read(home.journal)
        assert found[: len(proven)] == proven
        assert found[len(proven) :][:1] != [], "the rollout would go on"
        assert found[len(proven)]["event"]["by"] == recovery.BY
        assert len(found) >= promise.promised
        assert damaged in [kept.read_bytes() for kept in home.path.glob("journal.damaged-*")], (
            "it was not kept"
        )
        with home.lock(), Watched(state) as service:
            _it_serves_and_obeys(service)

    return look


def test_a_power_cut_in_a_recovery_leaves_the_damaged_journal_or_the_recovered_one(
    recovered, long, tally, capfd
):
    story = recovered("recovery")
    cuts = story.cuts(MANY if long else FEW, 1_000 if long else 100)
    damaged = ServiceHome(story.state, "digits").journal.with_name("journal.damaged-1").read_bytes()
    found = violations(cuts, it_is_recovered(damaged))
    tally.count("power cut in `up --recover`: states of the disk", len(cuts.states), len(found))
    assert not found
    assert len(cuts.states) >= 50
    capfd.readouterr()


def test_a_recovery_that_cuts_the_journal_in_place_is_caught(recovered, tally, capfd):
    story = recovered("recovery-in-place")
    damaged = ServiceHome(story.state, "digits").journal.with_name("journal.damaged-1").read_bytes()
    found = violations(story.cuts(FEW, 100), it_is_recovered(damaged), enough=1)
    tally.count("power cut: sabotaged twins, all caught", 1, int(not found))
    assert found
    capfd.readouterr()
