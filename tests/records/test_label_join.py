"""Labels meet answers by request id: every label ends in one count, and what people say decides by the rules of the manifest."""

import numpy as np
import pytest
from copies_rig import Intakes, Row
from hypothesis import given, settings
from hypothesis import strategies as st

from deployctl.core.plan import LabelRules
from deployctl.records import MAX_EARLY_LABELS, MAX_JOINABLE, LabelJoin, Rows
from deployctl.records.answers import CAPACITY, IdTable
from deployctl.records.rows import SEEN
from deployctl.wire.orders import LabelRow


def answers(*rows: Row, **settings) -> Intakes:
    seen = Intakes(**settings)
    seen.take(*rows)
    return seen


def labelled(seen: Intakes, *labels: LabelRow):
    """Of the answers that are judged now: how wrong they are."""
    return seen.take(labels=labels).labelled["wrong"].tolist()


def people(*said: str, identity: str = "a") -> list[LabelRow]:
    """Each a label of its own annotator."""
    return [LabelRow(identity, label, f"annotator {number}") for number, label in enumerate(said)]


# ── one label ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_people_are_right():
    seen = answers(Row("a", prediction="7"), Row("b", prediction="3"))
    arrived = seen.take(labels=[LabelRow("a", "7"), LabelRow("b", "7")])
    assert arrived.labelled["null"].tolist() == arrived.labelled["wrong"].tolist() == [0, 1]
    assert arrived.texts == ["7", "7"]
    assert seen.counts == {"joined": 2}


def test_a_joined_label_counts_for_the_split_and_arm_of_its_request():
    seen = answers(Row("a", arm=1, split=9))
    (row,) = seen.take(labels=[LabelRow("a", "7")]).labelled
    assert (row["arm"], row["split"]) == (1, 9)


def test_a_label_counts_once():
    seen = answers(Row("a"))
    assert labelled(seen, LabelRow("a", "7"), LabelRow("a", "7"), LabelRow("a", "3")) == [0]
    assert seen.counts == {"joined": 1, "repeated": 1, "late_vote": 1}


def test_who_thinks_again_is_counted_and_changes_nothing():
    seen = answers(Row("a"))
    ann = [LabelRow("a", label, "ann") for label in ("7", "3", "3", "7")]
    assert labelled(seen, *ann) == [0]
    assert seen.counts == {"joined": 1, "corrected": 2, "repeated": 1}


def test_what_another_says_later_changes_nothing():
    seen = answers(Row("a"))
    assert labelled(seen, LabelRow("a", "7", "ann"), LabelRow("a", "7", "bob"), LabelRow("a", "3")) == [0]
    assert seen.counts == {"joined": 1, "late_vote": 2}


def test_labels_that_come_before_their_answer_are_joined_when_it_comes_in_the_order_in_which_they_came():
    seen = answers()
    assert labelled(seen, LabelRow("b", "3"), LabelRow("a", "3"), LabelRow("b", "3")) == []
    assert seen.counts == {"unknown": 3}
    arrived = seen.take(Row("a", serial=1), Row("b", serial=2))
    assert arrived.labelled["serial"].tolist() == [2, 1]
    assert seen.counts == {"joined": 2, "repeated": 1}


def test_an_id_seen_twice_is_ambiguous_and_used_for_nothing():
    at_once, later = answers(Row("a"), Row("a", prediction="3")), answers(Row("a"))
    later.take(Row("b"), Row("a", prediction="3"))
    for seen in (at_once, later):
        assert labelled(seen, LabelRow("a", "7"), LabelRow("b", "7")) == ([0] if seen is later else [])
        assert seen.counts["ambiguous"] == 1


def test_votes_in_suspense_are_ambiguous_once_a_second_request_has_their_id():
    seen = answers(Row("a"), rules=LabelRules(votes=3))
    labelled(seen, *people("7", "7"))
    seen.take(Row("a"))
    labelled(seen, *people("7"))
    assert seen.counts == {"ambiguous": 3}


def test_no_answer_cannot_be_right_or_wrong():
    """A failed request has no prediction; an empty answer is a wrong one."""
    seen = answers(Row("failed", prediction=None, status=500), Row("empty", prediction=None))
    assert labelled(seen, LabelRow("failed", "7"), LabelRow("empty", "7")) == [1]
    assert seen.counts == {"joined": 1, "unanswered": 1}


def test_a_class_that_the_model_does_not_know_is_counted_and_left_out():
    seen = answers(Row("a"), classes=tuple("0123456789"))
    assert labelled(seen, LabelRow("a", "cat"), LabelRow("not yet", "cat")) == []
    assert seen.counts == {"unknown_class": 2}


def test_who_saw_the_answer_first_is_no_witness():
    seen = answers(Row("a"))
    shown = LabelRow("a", "7", "ann", shown=True)
    assert labelled(seen, shown, shown, LabelRow("a", "3", "ann", shown=False)) == [1]
    assert seen.counts == {"assisted": 2, "joined": 1}


# ── several people ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("adjudicate", "said", "wrong"),
    [
        ("majority", "773", [0.0]),
        ("majority", "733", [1.0]),
        ("any", "733", [0.0]),
        ("any", "334", [1.0]),
        ("soft", "733", [1 - 1 / 3]),
        ("soft", "777", [0.0]),
    ],
)
def test_what_several_people_say_decides_by_the_rule(adjudicate, said, wrong):
    seen = answers(Row("a", prediction="7"), rules=LabelRules(adjudicate, 3))
    first, second, third = people(*said)
    assert labelled(seen, first, second) == []
    assert seen.counts == {"waiting": 2}
    assert labelled(seen, third) == wrong
    assert seen.counts == {"joined": 3}
    assert seen.arrivals.join.requests == 1


def test_as_many_who_say_one_thing_as_another_dispute_it_until_somebody_decides():
    seen = answers(Row("a", prediction="7"), rules=LabelRules(votes=2))
    assert labelled(seen, *people("7", "3")) == []
    assert seen.counts == {"disputed": 2}
    assert labelled(seen, LabelRow("a", "3", "a third")) == [1]
    assert seen.counts == {"joined": 3}


def test_one_person_has_one_vote_and_may_change_it_before_it_counts():
    seen = answers(Row("a", prediction="7"), rules=LabelRules(votes=2))
    ann = [LabelRow("a", label, "ann") for label in ("3", "3", "7")]
    assert labelled(seen, *ann) == []
    assert seen.counts == {"repeated": 1, "corrected": 1, "waiting": 1}
    assert labelled(seen, LabelRow("a", "7", "bob")) == [0]


def test_labels_of_nobody_named_are_a_vote_each():
    seen = answers(Row("a"), rules=LabelRules(votes=2))
    assert labelled(seen, LabelRow("a", "7"), LabelRow("a", "7")) == [0]


def test_only_the_expert_counts_where_the_rules_name_one():
    seen = answers(Row("a", prediction="7"), rules=LabelRules("expert:dr who", 3))
    assert labelled(seen, *people("3", "3"), LabelRow("a", "3")) == []
    assert labelled(seen, LabelRow("a", "7", "dr who")) == [0]
    assert seen.counts == {"not_expert": 3, "joined": 1}


LABELS = st.builds(
    LabelRow,
    id=st.sampled_from("abcd"),
    label=st.sampled_from(["3", "7", "cat"]),
    annotator=st.sampled_from([None, "ann", "bob", "cy"]),
    shown=st.sampled_from([None, False, True]),
)
ROWS = st.builds(
    Row,
    id=st.sampled_from("abcd"),
    status=st.sampled_from([200, 200, 200, 500, 400, 499]),
    prediction=st.sampled_from(["3", "7", None]),
    copies=st.sampled_from([(), (1,), (1, 2)]),
)
RULES = st.builds(
    LabelRules,
    adjudicate=st.sampled_from(["majority", "any", "soft", "expert:ann"]),
    votes=st.integers(1, 3),
)


@given(RULES, st.lists(st.one_of(LABELS, ROWS), max_size=30), st.data())
@settings(deadline=None)
def test_every_label_is_in_exactly_one_count_at_any_time(rules, coming, data):
    seen = Intakes(rules=rules, classes=("3", "7"))
    labels, owed = 0, []
    for serial, one in enumerate(coming):
        if isinstance(one, LabelRow):
            labels += 1
            seen.take(labels=[one], mirrored_until=0.0)
        else:
            row = Row(one.id, serial, 0, one.prediction, one.status, serial + 1.0, one.copies)
            owed += [row.copy(arm) for arm in row.copies]
            seen.take(row, mirrored_until=0.0)
        assert sum(seen.counts.values()) == labels
        assert min(seen.counts.values(), default=0) >= 0
    kept = data.draw(st.lists(st.sampled_from(owed), unique=True)) if owed else []
    seen.take(*kept)
    assert sum(seen.counts.values()) == labels
    judged = [row["number"] for arrived in seen.arrived for row in arrived.labelled]
    judged += [
        number
        for arrived in seen.arrived
        for number in set(arrived.labelled_pairs.baseline["number"].tolist())
    ]
    assert len(judged) == len(set(judged)) == seen.arrivals.join.requests


@given(st.lists(st.one_of(LABELS, ROWS), max_size=30), st.sampled_from(["majority", "any", "soft"]))
@settings(deadline=None)
def test_the_short_way_of_a_first_label_ends_where_the_long_one_does(coming, adjudicate):
    short, long = (Intakes(rules=LabelRules(adjudicate, 1), classes=("3", "7")) for _ in range(2))
    long.arrivals.join._one_vote = False
    for seen in (short, long):
        for serial, one in enumerate(coming):
            if isinstance(one, LabelRow):
                seen.take(labels=[one], mirrored_until=0.0)
            else:
                row = Row(one.id, serial, 0, one.prediction, one.status, serial + 1.0, one.copies)
                seen.take(row, *[row.copy(arm) for arm in row.copies], mirrored_until=serial / 2)
        seen.take()
    assert short.counts == long.counts
    for one, other in zip(short.arrived, long.arrived, strict=True):
        assert (one.texts, one.pair_texts) == (other.texts, other.pair_texts)
        assert one.labelled.tobytes() == other.labelled.tobytes()
        assert one.labelled_pairs.baseline.tobytes() == other.labelled_pairs.baseline.tobytes()
        assert one.labelled_pairs.candidate.tobytes() == other.labelled_pairs.candidate.tobytes()


@given(RULES, st.lists(LABELS, max_size=8), st.lists(LABELS, max_size=8))
@settings(deadline=None)
def test_it_does_not_matter_whether_labels_or_answers_come_first(rules, early, late):
    rows = [Row(identity, serial) for serial, identity in enumerate("abcd")]
    results = []
    for before, after in ((early, late), ([], early + late), (early + late, [])):
        seen = Intakes(rules=rules)
        seen.take(labels=before)
        seen.take(*rows)
        seen.take(labels=after)
        judged = {
            int(row["serial"]): float(row["wrong"]) for arrived in seen.arrived for row in arrived.labelled
        }
        results.append((judged, seen.counts))
    assert results[0] == results[1] == results[2]


# ── how much ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_million_answers_can_be_labelled_and_no_more_than_half_as_many_again_are_kept():
    join = LabelJoin(rules=LabelRules(votes=2))
    total = MAX_JOINABLE + 2 * CAPACITY
    size = 60_000
    for start in range(0, total, size):
        columns = np.zeros(size, SEEN)
        columns["said"], columns["status"] = 1, 200
        columns["number"] = np.arange(start, start + size)
        ids = [f"a{number}" for number in range(start, start + size)]
        join.remember(Rows(columns, ids, [], np.zeros(size, bool)))
        if not start:
            join.join([LabelRow("a1", "7")])
    assert MAX_JOINABLE <= sum(answers.count for answers in join._answers) <= 1.5 * MAX_JOINABLE
    last = start + size
    oldest, newest = f"a{last - MAX_JOINABLE}", f"a{last - 1}"
    join.join([LabelRow("a1", "7"), *[LabelRow(one, "7") for one in (oldest, newest) for _ in "12"]])
    assert join.joined().labelled["number"].tolist() == [last - MAX_JOINABLE, last - 1]
    assert (join.counts.joined, join.counts.unknown, join.counts.waiting) == (4, 2, 0)


def test_early_labels_are_bounded_and_stay_counted():
    join = LabelJoin()
    join.join([LabelRow(f"early{number}", "7") for number in range(MAX_EARLY_LABELS + 10)])
    assert sum(map(len, join._early.values())) == MAX_EARLY_LABELS
    assert join.counts.unknown == MAX_EARLY_LABELS + 10


@given(st.lists(st.lists(st.integers(1, 2**64 - 1), max_size=40), max_size=5))
@settings(deadline=None)
def test_a_table_of_ids_finds_what_was_added_also_where_hashes_meet(pieces):
    table, known = IdTable(128), {}
    for piece in pieces:
        new = [identity % 7 * 256 + identity % 61 + 1 for identity in piece]
        new = [identity for identity in dict.fromkeys(new) if identity not in known][: 128 - len(known)]
        places = np.arange(len(known), len(known) + len(new))
        table.add(np.array(new, np.uint64), places)
        known |= dict(zip(new, places.tolist(), strict=True))
        asked = [*known, 0xFFFF]
        assert table.find(np.array(asked, np.uint64)).tolist() == [*known.values(), -1]
