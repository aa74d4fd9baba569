"""Records are read again without the service: in columns, as a file for notebooks, and as a log that can be replayed."""

import json
import random
import sys
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from copies_rig import Row, batch

from deployctl.core.plan import HUMAN, Gate, LabelRules, MetricRule, Plan, Step, Version
from deployctl.core.rollout import Cause, Event, Kind
from deployctl.errors import InvalidError, UnavailableError
from deployctl.export import export
from deployctl.journal import Journal
from deployctl.outcome_log import OutcomeLog
from deployctl.prediction_export import export_predictions
from deployctl.prediction_log import AMBIGUOUS, NONE, UNKNOWN, Role, read_log
from deployctl.records import Arrivals, Began, Gone, Intake, Records, size_of
from deployctl.statedir import ServiceHome
from deployctl.wire.orders import LabelRow

ROLLOUT = "m-1-cafe"
WALL = 1767268800.0  # 2026-01-01T12:00:00Z


def plan(**changes) -> Plan:
    step = Step(0.0, Gate(100.0, last=True), mirror=100.0)
    rules = (MetricRule("label-error-rate", 0.0, 0.0, 0.01),)
    given = {"baseline": Version("1", "a"), "candidate": Version("2", "b")}
    return Plan("shadow", steps=(step,), metrics=rules, **{**given, **changes})


class Shadow:
    """A service in its state directory, with the journal of a shadow and the records that a test writes."""

    def __init__(self, folder: Path, **changes) -> None:
        self.home = ServiceHome(folder, "digits")
        self.home.create()
        journal = Journal.open(self.home.journal)
        wall = "2026-01-01T12:00:00.000Z"
        event = Event(1, Kind.STARTED, 0.0, "ann", Cause.PERSON, wall=wall, plan=plan(**changes))
        body = msgspec.to_builtins(event)
        journal.append({"type": "event", "wall": wall, "rollout": ROLLOUT, "event": body})
        journal.close()
        self.records = Records.open(self.home.records / f"{ROLLOUT}.records", segment_bytes=5000)
        self.records.append(Began(0, 1, 0.0))
        self._number, self._at = 0, 0.0

    def take(self, *rows: Row, labels=(), until: float = 1e9, mirrored_until: float = 1e9) -> None:
        self._number += 1
        self._at = round(self._at + 0.5, 6)
        told = batch(list(rows), self._number, until, mirrored_until, list(labels))
        self.records.append(Intake("r", self._at, told, 0.0))

    def lines(self) -> list[dict]:
        _, *lines = [json.loads(line) for line in b"".join(export(self.home, None)).splitlines()]
        return lines


@pytest.fixture
def shadow(tmp_path):
    one = Shadow(tmp_path)
    yield one
    one.records.close()


ASKED = Row("a", serial=1, copies=(1,), prediction="7")


# ── in columns ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_answer_is_a_row_and_a_copy_has_the_request_of_what_it_is_a_copy_of(shadow):
    shadow.take(Row("b", serial=2), ASKED)
    shadow.take(ASKED.copy(1, None, status=504))
    log = read_log(shadow.home)
    assert log.predictions["request"].tolist() == [0, 1, 1]
    assert log.predictions["role"].tolist() == [Role.BASELINE, Role.BASELINE, Role.SHADOW]
    assert log.predictions["shown"].tolist() == [1, 1, 0]
    assert log.predictions["status"].tolist() == [200, 200, 504]
    assert [log.texts[one] for one in log.predictions["prediction"][:2]] == ["7", "7"]
    assert log.predictions["prediction"][2] == NONE
    assert log.predictions["confidence"].tolist() == pytest.approx([0.9] * 3)
    assert [log.versions[arm].version for arm in log.predictions["arm"]] == ["1", "1", "2"]
    assert log.wall(log.predictions["t"]).tolist() == [WALL + 1] * 3


def test_ids_can_be_asked_for_and_not_all_at_once(shadow):
    shadow.take(Row("b", serial=2), ASKED)
    shadow.take(ASKED.copy(1))
    log = read_log(shadow.home)
    assert log.ids([2, 0]) == ["a", "b"]
    with pytest.raises(ValueError, match="at most"):
        log.ids(list(range(10_001)))


def test_votes_find_their_request_whenever_they_came(shadow):
    early, ghost = LabelRow("a", "3", "ann", shown=True), LabelRow("ghost", "3")
    shadow.take(labels=[early, ghost])
    shadow.take(ASKED, Row("twice", serial=2), Row("twice", serial=3))
    shadow.take(labels=[LabelRow("twice", "7", "bob")])
    log = read_log(shadow.home)
    assert log.votes["request"].tolist() == [0, UNKNOWN, AMBIGUOUS]
    assert [log.texts[one] for one in log.votes["label"]] == ["3", "3", "7"]
    assert log.votes["annotator"].tolist() == [0, NONE, 1]
    assert log.annotators == ["ann", "bob"]
    assert log.votes["shown"].tolist() == [1, 0, 0]
    assert log.votes["t"].tolist() == [0.5, 0.5, 1.5]


def test_of_each_annotator_the_last_vote_stands_and_what_was_prompted_does_not(shadow):
    said = [("7", "ann"), ("3", "ann"), ("7", None), ("7", None), ("5", "bob")]
    shadow.take(ASKED, labels=[LabelRow("a", label, annotator) for label, annotator in said])
    shadow.take(labels=[LabelRow("a", "9", "cy", shown=True), LabelRow("ghost", "7", "ann")])
    log = read_log(shadow.home)
    assert [log.texts[one] for one in log.standing_votes()["label"]] == ["3", "7", "7", "5"]


def test_the_join_in_columns_finds_what_the_live_join_finds(shadow):
    """Some thousand requests in random order, labels before and after, ids twice, copies that never came."""
    draw = random.Random(3)
    rows = []
    for serial in range(1500):
        row = Row(
            f"r{draw.randrange(1400)}", serial=serial, copies=draw.choice([(), (1,)]), start=serial + 1.0
        )
        rows += [row, *[row.copy(arm, draw.choice("37")) for arm in row.copies if draw.random() < 0.9]]
    labels = [LabelRow(f"r{draw.randrange(1500)}", "7", f"p{draw.randrange(4)}") for _ in range(600)]
    for at in range(0, len(rows), 50):
        now, labels = labels[:10], labels[10:]
        shadow.take(*rows[at : at + 50], labels=now, mirrored_until=rows[at].start)
    shadow.take(labels=labels)
    shadow.records.append(Gone("r", 999.0))
    log = read_log(shadow.home)
    live = Arrivals((), with_labels=True)
    judged = set()
    for entry in shadow.records.read():
        arrived = live.fold(entry)
        for seen in (arrived.labelled, arrived.labelled_pairs.baseline):
            judged |= set(seen["serial"].tolist())
    times = Counter(row.id for row in rows if not row.mirrored)
    once = {row.serial for row in rows if times[row.id] == 1}
    standing = set(np.unique(log.standing_votes()["request"]).tolist())
    assert standing <= once
    assert judged & once <= standing
    assert len(standing - judged) <= live.join.counts.unanswered
    assert len(judged & once) > 100
    assert (log.votes["request"] == UNKNOWN).sum() == live.join.counts.unknown


def test_records_that_made_room_for_newer_ones_are_said_to_be_gone(shadow):
    for file in shadow.home.records.iterdir():
        file.unlink()
    for reading in (read_log, lambda home: list(export(home, None))):
        with pytest.raises(InvalidError, match=r"m-1-cafe are gone.*maxSize"):
            reading(shadow.home)


def test_whoever_waits_is_told_how_much_has_been_read_and_of_how_much(shadow, tmp_path):
    for serial in range(50):
        shadow.take(Row(f"r{serial}", serial=serial))
    length = size_of(shadow.home.records / f"{ROLLOUT}.records")
    for passes, reading in (
        (1, lambda heard: read_log(shadow.home, None, heard)),
        (1, lambda heard: read_log(shadow.home).ids([0], heard)),
        (2, lambda heard: list(export(shadow.home, None, heard))),
        (2, lambda heard: export_predictions(shadow.home, None, tmp_path / "all.jsonl", heard)),
    ):
        heard = []
        reading(lambda done, of, heard=heard: heard.append((done, of)))
        assert heard == sorted(heard)
        assert heard[-1] == (passes * length, passes * length)
        assert len(heard) >= 50


# ── for notebooks ──────────────────────────────────────────────────────────────────────────────────────────────────


def filled(shadow: Shadow) -> None:
    shadow.take(Row("b", serial=2, prediction=None, confidence=float("nan")), ASKED)
    shadow.take(ASKED.copy(1, "3"), labels=[LabelRow("a", "3", "ann")])


def test_each_answer_is_a_line_with_what_people_said(shadow, tmp_path):
    filled(shadow)
    path = tmp_path / "out.jsonl"
    path.write_text("an older file")
    assert export_predictions(shadow.home, None, path) == 3
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["b", "a", "a"]
    assert lines[0]["prediction"] is None
    assert lines[0]["null"] is True
    assert lines[0]["confidence"] is None
    assert lines[0]["votes"] == []
    votes = [{"label": "3", "annotator": "ann", "t": 1.0, "shown": False}]
    assert lines[2] == {
        "request": 1,
        "id": "a",
        "key": lines[1]["key"],
        "t": 1.0,
        "time": "2026-01-01T12:00:01.000Z",
        "version": "2",
        "digest": "b",
        "role": "shadow",
        "status": 200,
        "latency_ms": 6.0,
        "prediction": "3",
        "confidence": 0.899999976,
        "null": False,
        "shown": False,
        "votes": votes,
    }
    assert [file.name for file in tmp_path.iterdir() if "out" in file.name] == ["out.jsonl"]


def test_parquet_has_the_same_rows(shadow, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is an extra")
    filled(shadow)
    for name in ("out.jsonl", "out.parquet"):
        export_predictions(shadow.home, None, tmp_path / name)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    for row in rows:
        row["confidence"] = row["confidence"] and pytest.approx(row["confidence"])
    assert lines == rows


def test_without_pyarrow_a_parquet_file_says_what_to_install(shadow, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidError, match=r"pip install 'deployctl\[parquet\]'"):
        export_predictions(shadow.home, None, tmp_path / "out.parquet")
    assert not list(tmp_path.glob("*out*"))


def test_a_file_of_another_kind_names_the_known_ones(shadow, tmp_path):
    with pytest.raises(InvalidError, match=r"\.jsonl, \.parquet"):
        export_predictions(shadow.home, None, tmp_path / "out.csv")


def test_a_place_that_cannot_be_written_leaves_nothing(shadow, tmp_path):
    with pytest.raises(UnavailableError, match="cannot be written"):
        export_predictions(shadow.home, None, tmp_path / "nowhere" / "out.jsonl")


# ── for a replay ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_that_was_copied_is_one_line_with_both_answers(shadow):
    shadow.take(ASKED, until=1.5, mirrored_until=1.0)
    shadow.take(ASKED.copy(1, "3"), labels=[LabelRow("a", "3")])
    (line,) = shadow.lines()
    assert line.pop("key").startswith("#")
    assert line == {
        "t": 1.0,
        "id": "a",
        "baseline": {"ok": True, "latency_ms": 5.0, "prediction": "7"},
        "candidate": {"ok": True, "latency_ms": 6.0, "prediction": "3"},
        "label": "3",
        "label_t": 1.0,
        "seen_t": 0.5,
        "pair_t": 1.0,
        "split": 1,
    }


def test_lines_stay_in_the_order_of_the_requests_whichever_copies_are_late(shadow):
    rows = [Row(f"r{n}", serial=n, start=float(n), copies=(1,) if n % 2 else ()) for n in range(1, 7)]
    rows[2] = Row("r3", serial=3, start=3.0, copies=(1,), status=400, prediction=None)
    shadow.take(*rows, mirrored_until=1.0)
    shadow.take(rows[4].copy(1), rows[2].copy(1), mirrored_until=1.0)
    shadow.take(rows[0].copy(1))
    lines = shadow.lines()
    assert [line["id"] for line in lines] == [f"r{n}" for n in range(1, 7)]
    assert [line.get("pair_t") for line in lines] == [1.5, None, 1.5, None, 1.5, None]
    assert lines[2]["baseline"] == {"ok": True, "latency_ms": 5.0, "status": 400}


def test_what_only_one_version_answered_has_one_arm(shadow):
    shadow.take(ASKED, mirrored_until=1.0)
    shadow.records.append(Gone("r", 2.0))
    (line,) = shadow.lines()
    assert "candidate" not in line
    assert "pair_t" not in line


def test_a_copy_to_the_baseline_says_who_was_served(shadow):
    answered = Row("a", serial=1, arm=1, prediction="3", copies=(0,))
    shadow.take(answered, answered.copy(0, "7"))
    (line,) = shadow.lines()
    assert line["served"] == "candidate"
    assert line["baseline"]["prediction"] == "7"


def test_several_candidates_stand_by_their_versions(tmp_path):
    shadow = Shadow(tmp_path, others=(Version("3", "c"),))
    asked = Row("a", serial=1, copies=(1, 2))
    shadow.take(asked, asked.copy(1, "3"), asked.copy(2, "5"))
    (line,) = shadow.lines()
    assert line["candidate"]["prediction"] == "3"
    assert {version: one["prediction"] for version, one in line["candidates"].items()} == {"2": "3", "3": "5"}


def test_where_votes_are_shares_a_line_says_how_wrong_each_was(tmp_path):
    shadow = Shadow(tmp_path, labels=LabelRules("soft", 4))
    votes = [LabelRow("a", label, f"p{n}") for n, label in enumerate("7773")]
    shadow.take(ASKED, ASKED.copy(1, "3"), labels=votes)
    (line,) = shadow.lines()
    assert (line["label"], line["baseline"]["wrong"], line["candidate"]["wrong"]) == ("7", 0.25, 0.75)


def test_people_are_not_wrong_in_the_log_of_a_shadow_without_a_baseline(tmp_path):
    shadow = Shadow(tmp_path, baseline=HUMAN)
    asked = Row("a", serial=1, prediction=None, copies=(1,))
    shadow.take(asked, asked.copy(1, "3"), labels=[LabelRow("a", "7")])
    (line,) = shadow.lines()
    assert line["baseline"]["wrong"] == 0.0
    assert "wrong" not in line["candidate"]


def test_the_log_of_a_shadow_can_be_read_again(shadow, tmp_path):
    draw = random.Random(5)
    for serial in range(400):
        row = Row(f"r{serial}", serial=serial, start=float(serial), copies=draw.choice([(), (1,)]))
        shadow.take(row, *[row.copy(1, draw.choice("37")) for _ in row.copies], mirrored_until=serial + 0.5)
    path = tmp_path / "shadow.jsonl"
    path.write_bytes(b"".join(export(shadow.home, None)))
    pieces = list(OutcomeLog(path).pieces())
    assert sum(len(piece.lines) for piece in pieces) == 400
    both = sum(int(piece.there.all(axis=0).sum()) for piece in pieces)
    assert both == sum(line.pair_t == line.pair_t for piece in pieces for line in piece.lines) > 100
