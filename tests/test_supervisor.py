"""What the supervisor does without deciding anything."""

from deployctl.supervisor import BACK_OFF, back_off


def test_a_child_that_ran_for_long_is_started_again_at_once() -> None:
    assert back_off(0) == 0


def test_a_child_that_ends_again_and_again_is_waited_for_longer_and_longer() -> None:
    pauses = [back_off(times) for times in range(1, 20)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (BACK_OFF[0], BACK_OFF[-1])
