"""Copies of requests: what the caller does not notice, what becomes of each copy, and what is recorded of it."""

import pytest
from rig import do

BASELINE, CANDIDATE = 0, 1


def test_a_copy_has_the_row_of_its_request_and_an_answer_of_its_own(street):
    split = street.mirror()
    street.infer(do("answer", by="2", prediction="8", confidence=0.25), x_request_id="r")
    copy = street.controller.copies_of("r")[CANDIDATE]
    request = street.controller.outcome_of("r")
    assert (request.arm, request.mirrored, request.copies) == (BASELINE, 0, 1 << CANDIDATE)
    assert (copy.mirrored, copy.copies, copy.status, copy.split) == (1, 0, 200, split.number)
    for column in ("id", "key", "serial", "start", "split", "explicit"):
        assert getattr(copy, column) == getattr(request, column)
    assert (request.prediction, copy.prediction) == ("7", "8")
    assert (request.confidence, copy.confidence) == (0.5, 0.25)


@pytest.mark.parametrize(("end", "status"), [("hang", 504), ("crash", 502), ("garbage", 502)])
def test_what_happens_to_a_copy_fails_no_request_and_is_recorded(street, end, status):
    street.mirror(copy_timeout=0.2)
    assert street.infer(do(end, by="2"), x_request_id="r").status == 200
    assert street.controller.copies_of("r")[CANDIDATE].status == status
