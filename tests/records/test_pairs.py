"""A request and its copy are a pair: in the order of the requests, whenever the rows come and however they are batched."""

from itertools import pairwise

import numpy as np
import pytest
from copies_rig import Intakes, Row, batch
from hypothesis import given, settings
from hypothesis import strategies as st

from deployctl.records import Arrivals, Began, Gone, Intake, LeftOut, without_texts
from deployctl.wire.orders import LabelRow

REQUEST = Row("a", serial=1, copies=(1,))


def summary(pairs):
    """Serial, the candidate's arm, what differs."""
    return list(
        zip(pairs.baseline["serial"].tolist(), pairs.arm.tolist(), pairs.differs.tolist(), strict=True)
    )


def test_a_request_and_its_copy_are_a_pair_and_only_the_request_is_an_outcome():
    arrived = Intakes().take(REQUEST, REQUEST.copy(1, "3"))
    assert summary(arrived.pairs) == [(1, 1, 1)]
    assert arrived.pairs.baseline["mirrored"].tolist() == [0]
    assert arrived.pairs.candidate["mirrored"].tolist() == [1]
    assert arrived.outcomes["mirrored"].tolist() == [0]


def test_the_baseline_of_a_pair_is_the_copy_where_the_candidate_answered():
    answered = Row("a", serial=1, arm=1, prediction="3", copies=(0,))
    pairs = Intakes().take(answered, answered.copy(0, "7")).pairs
    assert pairs.baseline[["arm", "mirrored"]].tolist() == [(0, 1)]
    assert pairs.candidate[["arm", "mirrored"]].tolist() == [(1, 0)]


def test_several_candidates_are_compared_with_the_same_answer():
    asked = Row("a", serial=1, copies=(1, 2, 3))
    pairs = Intakes().take(asked, asked.copy(3), asked.copy(1, "3"), asked.copy(2, None)).pairs
    assert summary(pairs) == [(1, 1, 1), (1, 2, -1), (1, 3, 0)]


def test_a_copy_that_failed_is_half_of_a_pair_and_predicts_nothing():
    pairs = Intakes().take(REQUEST, REQUEST.copy(1, None, status=504)).pairs
    assert pairs.candidate["status"].tolist() == [504]
    assert pairs.differs.tolist() == [-1]


def test_a_pair_waits_for_its_copy_and_for_every_earlier_pair():
    seen = Intakes()
    late, early = Row("a", serial=1, copies=(1,), start=1.0), Row("b", serial=2, copies=(1,), start=2.0)
    assert not len(seen.take(late, early, early.copy(1), mirrored_until=1.0).pairs)
    assert len(seen.arrived[-1].outcomes) == 2, "outcomes do not wait for copies"
    assert summary(seen.take(late.copy(1), mirrored_until=3.0).pairs) == [(1, 1, 0), (2, 1, 0)]


def test_a_pair_waits_for_an_earlier_request_that_is_still_in_flight():
    """Whether it will have copies is not known yet."""
    seen = Intakes()
    assert not len(seen.take(REQUEST, REQUEST.copy(1), until=0.5, mirrored_until=9.0).pairs)
    assert len(seen.take(until=9.0, mirrored_until=9.0).pairs) == 1


def test_without_a_mirror_watermark_the_watermark_is_one():
    seen = Intakes()
    assert not len(seen.take(REQUEST, REQUEST.copy(1), until=1.0).pairs)
    assert len(seen.take(until=1.1).pairs) == 1


@pytest.mark.parametrize(
    ("request_status", "copy_status", "pairs"),
    [(200, 500, 1), (500, 200, 1), (400, 400, 0), (400, 422, 0), (400, 200, 1), (200, 400, 1), (499, 200, 0)],
)
def test_what_the_caller_did_wrong_in_both_eyes_is_no_pair(request_status, copy_status, pairs):
    seen = Intakes()
    asked = Row("a", serial=1, copies=(1,), status=request_status)
    assert len(seen.take(asked, asked.copy(1, status=copy_status)).pairs) == pairs
    assert seen.arrivals.left_out.client_left_pairs == (request_status == 499)


def test_a_lost_router_releases_the_pairs_of_others_and_what_it_owes_is_dropped_and_counted():
    seen = Intakes()
    other = Row("b", serial=1, copies=(1,), start=2.0)
    seen.take(Row("a", serial=1, copies=(1, 2)), mirrored_until=1.0, router="dying")
    assert not len(seen.take(other, other.copy(1), router="other").pairs)
    pairs = seen.fold(Gone("dying", 1.0)).pairs
    assert summary(pairs) == [(1, 1, 0)]
    assert pairs.baseline["router"].tolist() == [1]
    assert seen.arrivals.left_out == LeftOut(lost_pairs=2)


def test_a_copy_without_a_request_and_a_pair_without_a_baseline_are_counted_too():
    seen = Intakes()
    answered = Row("a", serial=2, arm=1, copies=(0,))
    assert not len(seen.take(REQUEST.copy(1), answered).pairs)
    assert seen.arrivals.left_out.lost_pairs == 2


def test_equal_serials_of_two_routers_are_two_requests():
    seen = Intakes()
    seen.take(REQUEST, router="one", mirrored_until=0.0)
    seen.take(REQUEST.copy(1), router="two", mirrored_until=0.0)
    for router in ("one", "two"):
        assert not len(seen.take(router=router).pairs)


def test_explicitly_versioned_requests_and_those_of_an_older_split_are_in_no_pair():
    seen = Intakes()
    old = Row("b", serial=2, split=0, copies=(1,))
    named = Row("c", serial=3, arm=-1, explicit=True)
    assert not len(seen.take(old, old.copy(1), named).pairs)
    assert seen.arrivals.left_out == LeftOut(explicit=1)


def test_a_record_without_texts_gives_pairs_of_which_nobody_knows_whether_they_differ():
    arrivals = Arrivals((), with_labels=False)
    arrivals.fold(Began(0, 1, 0.0))
    told = without_texts(batch([REQUEST, REQUEST.copy(1, "3")], 1, 9.0))
    pairs = arrivals.fold(Intake("r", 1.0, told)).pairs
    assert pairs.differs.tolist() == [-1]


# ── however it comes ───────────────────────────────────────────────────────────────────────────────────────────────


@st.composite
def traffic(draw):
    """What happens in a router, in order: ('begin', row), ('end', row) and ('copied', row)."""
    requests = []
    for serial in range(draw(st.integers(1, 8))):
        arm = draw(st.sampled_from([0, 0, 1]))
        arms = draw(st.sampled_from([(1,), (1, 2), (2,), ()])) if arm == 0 else (0,)
        row = Row(
            f"r{serial}",
            serial=serial,
            arm=arm,
            copies=arms,
            start=serial + 1.0,
            status=draw(st.sampled_from([200, 200, 500, 400, 499])),
            prediction=draw(st.sampled_from(["3", "7", None])),
        )
        ends = serial + 1.0 + draw(st.floats(0.1, 5.0))
        copies = [
            row.copy(a, draw(st.sampled_from(["3", "7"])), status=draw(st.sampled_from([200, 504, 400])))
            for a in arms
        ]
        late = [ends + draw(st.floats(0.0, 5.0)) for _ in arms]
        requests.append((row, ends, copies, late))
    happens = [(row.start, 0, row.serial, "begin", row) for row, *_ in requests]
    happens += [(ends, 1, row.serial, "end", row) for row, ends, *_ in requests]
    happens += [
        (at, 2, 10 * row.serial + copy.arm, "copied", copy)
        for row, _, copies, late in requests
        for copy, at in zip(copies, late, strict=True)
    ]
    return [(at, kind, row) for at, _, _, kind, row in sorted(happens, key=lambda one: one[:3])]


def batches_of(happens, cuts):
    """What a router reports of it, cut at these places: rows, watermark, mirror watermark."""
    flying, owed = {}, {}
    for start, stop in pairwise([0, *sorted(cuts), len(happens)]):
        rows = []
        for _, kind, row in happens[start:stop]:
            if kind == "begin":
                flying[row.serial] = row.start
                owed[row.serial] = len(row.copies)
                continue
            rows.append(row)
            if kind == "end":
                del flying[row.serial]
            else:
                owed[row.serial] -= 1
        watermark = min(flying.values(), default=happens[stop - 1][0] if stop else 0.0)
        yield rows, watermark, min([watermark, *(serial + 1.0 for serial in owed if owed[serial])])


def expected_pairs(happens):
    """By hand: every request, in order of start, with each of its copies."""
    copies = {(row.serial, row.arm): row for _, kind, row in happens if kind == "copied"}
    pairs = []
    for row in (row for _, kind, row in happens if kind == "begin"):
        arms = {arm: copies[row.serial, arm] for arm in row.copies} | {row.arm: row}
        for arm in sorted(arms.keys() - {0}):
            one, other = arms[0], arms[arm]
            if row.status == 499 or not row.copies:
                continue
            if 400 <= one.status < 499 and 400 <= other.status < 499:
                continue
            said = [None if x.status >= 400 else x.prediction for x in (one, other)]
            pairs.append((row.serial, arm, -1 if None in said else int(said[0] != said[1])))
    return pairs


@given(traffic(), st.lists(st.integers(0, 40), max_size=12))
@settings(deadline=None)
def test_pairs_are_the_same_and_in_the_same_order_however_the_rows_are_batched(happens, cuts):
    seen = Intakes()
    for rows, watermark, mirror_watermark in batches_of(happens, [c for c in cuts if c < len(happens)]):
        seen.take(*rows, until=watermark, mirrored_until=mirror_watermark)
    end = seen.take()
    found = [pair for arrived in seen.arrived for pair in summary(arrived.pairs)]
    assert found == expected_pairs(happens)
    assert not seen.arrivals.left_out.lost_pairs
    times = np.concatenate([arrived.pairs.baseline["t"] for arrived in seen.arrived])
    assert (np.diff(times) >= 0).all()
    assert not len(end.outcomes) or end.outcomes["mirrored"].max() == 0


@given(traffic(), st.integers(0, 40), st.lists(st.integers(0, 40), max_size=6))
@settings(deadline=None)
def test_a_router_that_dies_costs_the_pairs_it_owed_and_no_other(happens, death, cuts):
    happens = happens[:death]
    seen = Intakes()
    for rows, watermark, mirror_watermark in batches_of(happens, [c for c in cuts if c < len(happens)]):
        seen.take(*rows, until=watermark, mirrored_until=mirror_watermark)
    seen.fold(Gone("r", 99.0))
    recorded = {(row.serial, row.arm) for _, kind, row in happens if kind != "begin"}
    asked = [row for _, kind, row in happens if kind == "end" and row.copies]
    whole = [
        (row.serial, arm)
        for row in asked
        for arm in sorted({row.arm, *row.copies} - {0})
        if {(row.serial, 0), (row.serial, arm)} <= recorded
    ]
    compared = [pair[:2] for arrived in seen.arrived for pair in summary(arrived.pairs)]
    assert set(compared) <= set(whole)
    owed = sum(len({row.arm, *row.copies} - {0}) for row in asked if row.status != 499)
    assert seen.arrivals.left_out.lost_pairs == owed - sum(
        next(row for row in asked if row.serial == serial).status != 499 for serial, _ in whole
    )


# ── labels of pairs ────────────────────────────────────────────────────────────────────────────────────────────────


def wrong(arrived):
    pairs = arrived.labelled_pairs
    return list(
        zip(
            pairs.arm.tolist(),
            pairs.baseline["wrong"].tolist(),
            pairs.candidate["wrong"].tolist(),
            strict=True,
        )
    )


def test_a_label_counts_for_both_answers_of_a_pair():
    seen = Intakes()
    seen.take(REQUEST, REQUEST.copy(1, "3"))
    arrived = seen.take(labels=[LabelRow("a", "7")])
    assert wrong(arrived) == [(1, 0.0, 1.0)]
    assert arrived.pair_texts == ["7"]
    assert not len(arrived.labelled), "a request with copies is a pair, and not half a sample as well"
    assert seen.counts == {"joined": 1}


def test_a_label_counts_for_every_candidate():
    asked = Row("a", serial=1, copies=(1, 2))
    seen = Intakes()
    seen.take(asked, asked.copy(1, "3"), asked.copy(2, None, status=500))
    assert wrong(seen.take(labels=[LabelRow("a", "7")])) == [(1, 0.0, 1.0), (2, 0.0, 1.0)]


def test_a_label_that_comes_before_its_pair_is_complete_waits_for_it():
    seen = Intakes()
    assert wrong(seen.take(until=0.5, labels=[LabelRow("b", "7")])) == []
    other = Row("b", serial=2, copies=(1,), start=2.0)
    assert wrong(seen.take(REQUEST, other, mirrored_until=0.5, labels=[LabelRow("a", "3")])) == []
    assert seen.counts == {"waiting": 2}
    arrived = seen.take(REQUEST.copy(1, "3"), other.copy(1, "3"))
    assert arrived.labelled_pairs.baseline["serial"].tolist() == [2, 1], "in the order of the labels"
    assert wrong(arrived) == [(1, 0.0, 1.0), (1, 1.0, 0.0)]
    assert seen.counts == {"joined": 2}


def test_a_label_of_a_pair_that_never_comes_is_counted_as_one_of_no_answer():
    seen = Intakes()
    seen.take(REQUEST, mirrored_until=0.5, labels=[LabelRow("a", "3")])
    seen.fold(Gone("r", 1.0))
    seen.take(labels=[LabelRow("a", "7")], router="another")
    assert seen.counts == {"unanswered": 2}


def test_people_are_never_wrong_where_they_decide():
    seen = Intakes(human=True)
    asked = Row("a", serial=1, prediction=None, copies=(1,))
    seen.take(asked, asked.copy(1, "3"))
    assert wrong(seen.take(labels=[LabelRow("a", "7")])) == [(1, 0.0, 1.0)]


def test_without_people_an_answer_without_a_prediction_is_wrong():
    seen = Intakes()
    asked = Row("a", serial=1, prediction=None, copies=(1,))
    seen.take(asked, asked.copy(1, "7"))
    assert wrong(seen.take(labels=[LabelRow("a", "7")])) == [(1, 1.0, 0.0)]


@given(traffic(), st.lists(st.integers(0, 40), max_size=12), st.data())
@settings(deadline=None)
def test_the_pairs_that_a_label_judges_do_not_depend_on_when_it_came(happens, cuts, data):
    names = sorted({row.id for _, _, row in happens})
    labels = data.draw(st.lists(st.tuples(st.sampled_from(names), st.sampled_from("37")), max_size=10))
    results = []
    for late in (True, False):
        seen = Intakes()
        waiting = [LabelRow(*label) for label in labels]
        for rows, watermark, mirror_watermark in batches_of(happens, [c for c in cuts if c < len(happens)]):
            now = [] if late else waiting[:1]
            waiting = waiting[len(now) :]
            seen.take(*rows, until=watermark, mirrored_until=mirror_watermark, labels=now)
        seen.take()
        seen.take(labels=waiting)
        joined = seen.counts.get("joined", 0)
        results.append((sorted(pair for arrived in seen.arrived for pair in named(arrived)), joined))
    assert results[0] == results[1]


def named(arrived):
    serials = arrived.labelled_pairs.baseline["serial"].tolist()
    return [(serial, *pair) for serial, pair in zip(serials, wrong(arrived), strict=True)]
