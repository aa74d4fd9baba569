"""An inspection line written down as a service would: requests, copies of them, and people who label some, with what came of it."""

from __future__ import annotations

import random
import sys
from array import array
from dataclasses import replace
from pathlib import Path

import msgspec

from deployctl.core.plan import HUMAN, Gate, LabelRules, MetricRule, Plan, Step, Version
from deployctl.core.rollout import Cause, Event, Kind
from deployctl.core.verdict import Result, Verdict
from deployctl.journal import Journal
from deployctl.records import Began, Intake, Records
from deployctl.statedir import ServiceHome
from deployctl.wire.orders import LabelRow

sys.path[:0] = [str(Path(__file__).parent / "records")]

from copies_rig import Row, batch  # noqa: E402 - found only now

ROLLOUT = "m-1-cafe"
WALL = "2026-01-01T12:00:00.000Z"
CLASSES = ("no scratch", "light scratch", "deep scratch", "cracked glass")


class Line:
    """A service in its state directory with one shadow of version 2 (and `others`), which a test fills."""

    def __init__(self, folder: Path, name: str = "phones", **changes) -> None:
        self.home = ServiceHome(folder, name)
        self.home.create()
        self._journal = Journal.open(self.home.journal)
        step = Step(0.0, Gate(100.0, last=True), mirror=100.0)
        rules = (MetricRule("label-error-rate", 0.0, 0.0, 0.01),)
        given = {"baseline": Version("1", "a"), "candidate": Version("2", "b")}
        plan = Plan("shadow", steps=(step,), metrics=rules, **{**given, **changes})
        self._seq = 0
        self._write(Kind.STARTED, by="ann", cause=Cause.PERSON, plan=plan)
        self.records = Records.open(self.home.records / f"{ROLLOUT}.records")
        self.records.append(Began(0, 1, 0.0))
        self._number, self._at = 0, 0.0

    def take(self, *rows: Row, labels=(), latencies=()) -> None:
        """One batch, half a second after the one before."""
        self._number += 1
        self._at = round(self._at + 0.5, 6)
        told = batch(list(rows), self._number, 1e9, 1e9, list(labels))
        if latencies:
            told = msgspec.structs.replace(told, latency=array("f", latencies).tobytes())
        self.records.append(Intake("r", self._at, told, 0.0))

    def retire(self, result: Result, reason: str, by: str = "gate") -> None:
        """The shadow ends."""
        self._write(Kind.CLIMBED, by="gate", cause=Cause.TIME, step=0, reason="the candidate is warm")
        self._write(Kind.RETIRED, by=by, cause=Cause.EVIDENCE, verdict=Verdict(result, reason), reason=reason)

    def close(self) -> None:
        self.records.close()
        self._journal.close()

    def _write(self, kind: Kind, **fields) -> None:
        self._seq += 1
        event = Event(self._seq, kind, 0.0, wall=WALL, **fields)
        body = {"type": "event", "wall": WALL, "rollout": ROLLOUT, "event": msgspec.to_builtins(event)}
        self._journal.append(body)


def inspect(
    line: Line,
    requests: int,
    *,
    people: int = 3,
    seed: int = 1,
    right: tuple[float, ...] = (0.90, 0.95),
    classes: tuple[str, ...] = CLASSES,
    human_baseline: bool = False,
) -> None:
    """Pictures of phones that every version answers and up to `people` inspectors look at; each inspector errs on 4 %."""
    draw = random.Random(seed)
    weights = [2.0**-at for at in range(len(classes))]

    def other(than: str) -> str:
        return draw.choice([one for one in classes if one != than] or [than])

    late: list[LabelRow] = []
    for first in range(0, requests, 100):
        rows, labels, latencies = [], [], []
        for serial in range(first, min(first + 100, requests)):
            (truth,) = draw.choices(classes, weights)
            asked = Row(
                f"phone-{serial:06d}",
                serial=serial,
                start=serial / 200,
                copies=tuple(range(1, len(right))),
                prediction=None if human_baseline else truth,
            )
            hard = draw.random() ** 3
            for arm, share in enumerate(right):
                is_right = draw.random() < share + (1 - share) * (1 - 2 * hard)
                sure = min(0.999, max(0.3, 0.99 - 0.45 * hard + draw.gauss(0, 0.05)))
                said = truth if is_right else other(truth)
                if arm == 0:
                    rows.append(asked if human_baseline else _answer(asked, said, sure))
                else:
                    failed = draw.random() < 0.002
                    rows.append(
                        asked.copy(
                            arm, None if failed else said, status=504 if failed else 200, confidence=sure
                        )
                    )
                latencies.append(draw.lognormvariate(1.6 + 0.2 * arm, 0.3))
            for who in range(draw.randint(0, people)):
                label = truth if draw.random() > 0.04 + 0.1 * hard else other(truth)
                labels.append(LabelRow(f"phone-{serial:06d}", label, f"inspector {who}"))
        line.take(*rows, labels=late, latencies=latencies)
        late = labels
    line.take(labels=late)


def _answer(asked: Row, said: str, sure: float) -> Row:
    return replace(asked, prediction=said, confidence=sure)


__all__ = ["CLASSES", "HUMAN", "LabelRow", "LabelRules", "Line", "Result", "Row", "Version", "inspect"]
