"""Requests, their copies and labels as a router would tell of them, in batches that a test cuts where it likes."""

from array import array
from dataclasses import dataclass, replace
from hashlib import blake2b

from deployctl.records import Arrivals, Began, Intake
from deployctl.wire.orders import Batch, LabelRow


@dataclass(frozen=True)
class Row:
    """One row of a batch. `copies` are the arms that copies were sent to."""

    id: str
    serial: int = 0
    arm: int = 0
    prediction: str | None = "7"
    status: int = 200
    start: float = 1.0
    copies: tuple[int, ...] = ()
    mirrored: bool = False
    null: bool | None = None
    split: int = 1
    confidence: float = 0.9
    explicit: bool = False

    def copy(self, arm: int, prediction: str | None = "7", **changes) -> "Row":
        """The row of the copy that this arm was sent."""
        given = {"arm": arm, "prediction": prediction, "copies": (), "mirrored": True, "status": 200}
        return replace(self, **{**given, **changes})


def batch(
    rows: list[Row],
    number: int,
    watermark: float,
    mirror_watermark: float | None = None,
    labels: list[LabelRow] | None = None,
) -> Batch:
    nulls = [row.prediction is None and row.status < 400 if row.null is None else row.null for row in rows]
    return Batch(
        number=number,
        watermark=watermark,
        id=[row.id for row in rows],
        key=b"".join(blake2b(row.id.encode(), digest_size=8).digest() for row in rows),
        arm=array("b", [row.arm for row in rows]).tobytes(),
        split=array("I", [row.split for row in rows]).tobytes(),
        start=array("d", [row.start for row in rows]).tobytes(),
        latency=array("f", [5.0 + row.arm for row in rows]).tobytes(),
        status=array("H", [row.status for row in rows]).tobytes(),
        null=array("b", nulls).tobytes(),
        explicit=bytes(row.explicit for row in rows),
        prediction=[row.prediction for row in rows],
        labels=labels or [],
        serial=array("Q", [row.serial for row in rows]).tobytes(),
        mirrored=bytes(row.mirrored for row in rows),
        copies=array("H", [sum(1 << arm for arm in row.copies) for row in rows]).tobytes(),
        confidence=array("f", [row.confidence for row in rows]).tobytes(),
        input=bytes(8 * len(rows)),
        mirror_watermark=mirror_watermark,
    )


class Intakes:
    """Batches of routers into `Arrivals`, one after the other, and all that arrived of them."""

    def __init__(self, **settings) -> None:
        self.arrivals = Arrivals(settings.pop("classes", ()), with_labels=True, **settings)
        self.arrivals.fold(Began(0, 1, 0.0))
        self.arrived = []
        self._numbers: dict[str, int] = {}
        self._at = 0.0

    def take(
        self, *rows: Row, until: float = 1e9, mirrored_until: float | None = None, labels=(), router="r"
    ):
        """One batch; gives what it brought."""
        self._at += 0.01
        number = self._numbers[router] = self._numbers.get(router, 0) + 1
        told = batch(list(rows), number, until, mirrored_until, list(labels))
        return self.fold(Intake(router, self._at, told, 0.0))

    def fold(self, entry):
        self.arrived.append(self.arrivals.fold(entry))
        return self.arrived[-1]

    @property
    def counts(self) -> dict[str, int]:
        """The labels, by what became of them, without zeros."""
        counts = self.arrivals.join.counts
        return {name: n for name in counts.__slots__ if (n := getattr(counts, name))}
