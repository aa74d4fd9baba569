"""A service lives through a whole story on a disk that is being watched (see `power_loss.py`).

Everything that touches the disk is the real one: the lock, the journal, the store, the records, the key, the label folder. Callers, routers
and workers are made up, on a clock of their own, so that a story takes a second. What is said to the outside (an order to the routers,
the answer to a command) is a write to /dev/null, so that it stands in the trace at its place.

    python power_story.py STATE life | recovery | recovery-in-place
"""

import asyncio
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fakes import Behaviour, FakeService, FakeTraffic

from deployctl import journal
from deployctl.controller import __main__ as process
from deployctl.controller.labels import LabelIntake
from deployctl.prediction_export import export_predictions
from deployctl.records import Records
from deployctl.statedir import ServiceHome

GOOD = {"1": Behaviour(errors=0.01, wrong=0.05), "2": Behaviour(errors=0.01), "3": Behaviour(errors=0.6)}
CANARY = {
    "steps": [20, 50],
    "minDwell": "300ms",
    "bake": "300ms",
    "metrics": [{"name": "error-rate", "margin": "40%"}, {"name": "label-error-rate", "margin": "40%"}],
}
SEGMENT_BYTES = 6 * 1024
"""So that a story has several."""

STEP = 0.25
"""Seconds between two batches: what a batch costs when the state is looked at counts, thousands of times."""

SAID = b"said"


def say() -> None:
    """From here on, what was written down is promised."""
    fd = os.open("/dev/null", os.O_WRONLY)
    os.write(fd, SAID)
    os.close(fd)


class Telling(FakeTraffic):
    """Routers whose every order stands in the trace."""

    def apply(self, split, upstreams):
        say()
        super().apply(split, upstreams)


class Watched(FakeService):
    """A service with such routers, and a folder of labels."""

    def __init__(self, state: Path) -> None:
        self.folder = state / "labels"
        super().__init__(state, dict(GOOD), per_second=100.0, labelled=0.3)

    def _start(self):
        if not isinstance(self.traffic, Telling):
            self.traffic = self.callers.traffic = Telling()
        controller, commands = super()._start()
        self.intake = LabelIntake(controller)
        return controller, commands

    def step(self) -> None:
        self.clock = round(self.clock + STEP, 6)
        self.controller.tick(self.clock)
        self.controller.on_batch(self.callers.router, self.callers.batch(self.clock))

    def watch(self, seconds: float, until=lambda: False) -> None:
        for _ in range(round(seconds / STEP)):
            if not until():
                self.step()

    def _manifest(self, *args):
        document = json.loads(super()._manifest(*args))
        document["spec"]["labels"] = {"watch": str(self.folder), "format": "jsonl"}
        return json.dumps(document)

    def label(self, count: int) -> None:
        """People say of so many answers what they should have been, in a file."""
        answered = self.callers.number
        rows = [{"id": f"r{number}", "label": "1"} for number in range(1, count + 1)]
        self.folder.mkdir(exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / f"{answered}.jsonl").write_text(text)
        asyncio.run(self.intake.look())


def life(state: Path) -> None:
    """Up, a good version promoted with labels and a restart, taken back by hand, a bad one rolled back, one promoted in full, one paused."""
    with ServiceHome(state, "digits").lock(), Watched(state) as service:
        service.up()
        say()
        service.watch(0.5)
        service.ramp("2", CANARY)
        say()
        service.watch(1)
        service.label(40)
        service.restart()
        service.watch_until_over()
        service.watch(0.5)
        service.rollback()
        say()
        (state / "exports").mkdir()
        export_predictions(service.home, service.rollout.id, state / "exports" / "predictions.jsonl")
        service.ramp("3", CANARY)
        say()
        service.watch_until_over()
        service.ramp("2", CANARY | {"minDwell": "60s"})
        say()
        service.watch(1.5)
        service.label(80)
        service.promote("so it is said", full=True)
        say()
        service.ramp("3", CANARY | {"minDwell": "60s"})
        service.watch(0.5)
        service.pause()
        say()


def recovery(state: Path) -> None:
    """`up --recover` over a journal that is damaged, and a new rollout."""
    home = ServiceHome(state, "digits")
    with home.lock():
        process._open_journal(home, recover=True).close()
        with Watched(state) as service:
            asyncio.run(service.commands.up(None, state))
            service.controller.tick(service.clock)
            say()
            service.ramp("2", CANARY | {"minDwell": "60s"})
            say()


def recovery_in_place(state: Path) -> None:
    """A twin that keeps a copy of the damaged journal and cuts the journal itself; the rollout is ended afterwards."""

    def recover(path: Path, ending) -> journal.Recovery:
        contents = journal._contents(path)
        kept = path.with_name(f"{path.name}.damaged-1")
        kept.write_bytes(path.read_bytes())
        for safe in (kept, path.parent):
            fd = os.open(safe, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
        os.truncate(path, contents.proven_bytes)
        with journal.Journal.open(path) as opened:
            opened.append(ending(opened.records))
        return journal.Recovery(contents.records, kept, contents.damage)

    process.recovery.recover_journal = recover
    recovery(state)


STORIES = {"life": life, "recovery": recovery, "recovery-in-place": recovery_in_place}

if __name__ == "__main__":
    Records.open.__func__.__kwdefaults__["segment_bytes"] = SEGMENT_BYTES
    STORIES[sys.argv[2]](Path(sys.argv[1]))
