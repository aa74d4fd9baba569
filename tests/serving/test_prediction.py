"""What is read from output tensors, without a worker around it."""

import math

import numpy as np
import pytest

from deployctl.errors import InvalidError
from deployctl.serving.prediction import Reader
from deployctl.serving.settings import Prediction
from deployctl.wire.oip import DATATYPES, TensorSpec


def reader(warm_up, **prediction):
    """A reader of one output, y, that was `warm_up` in the warm-up."""
    specs = [TensorSpec("y", DATATYPES[warm_up.dtype], warm_up.shape)]
    return Reader(Prediction("y", **prediction) if prediction else None, specs, {"y": warm_up})


SCORES = np.zeros((1, 3), dtype=np.float32)
PROBABILITIES = np.full((1, 3), 1 / 3, dtype=np.float32)


def test_scores_that_are_no_probabilities_have_no_confidence():
    reading = reader(SCORES, read="argmax").read({"y": np.float32([[0.1, 0.9, 0]])})
    assert (reading.prediction, reading.null) == ("1", False)
    assert math.isnan(reading.confidence)


@pytest.mark.parametrize("values", [[0, math.nan, 1], [math.inf, 0, 0], [-math.inf] * 3])
def test_a_row_without_a_finite_maximum_is_no_answer(values):
    for read in (reader(SCORES, read="argmax"), reader(SCORES)):
        assert read.read({"y": np.float32([values])}).null


def test_the_logarithm_of_zero_is_an_answer():
    assert (
        reader(SCORES, read="argmax").read({"y": np.float32([[-math.inf, 0, -math.inf]])}).prediction == "1"
    )


def test_an_int_label_is_read_as_text():
    reading = reader(np.zeros(1, dtype=np.int64), read="text").read({"y": np.array([7])})
    assert (reading.prediction, reading.null) == ("7", False)


def test_argmax_of_one_value_per_row_is_refused_because_it_would_always_say_the_same():
    with pytest.raises(InvalidError, match="has no row of scores"):
        reader(np.zeros(1, dtype=np.int64), read="argmax")


def test_long_texts_are_cut_and_stay_different():
    read = reader(np.array([""], dtype=object), read="text")
    one, two = (read.read({"y": np.array(["a" * 5000 + end], dtype=object)}).prediction for end in "12")
    assert one != two
    assert len(one) < 4200


def test_an_empty_batch_has_no_prediction_and_is_not_null():
    for read in (reader(PROBABILITIES, read="argmax"), reader(PROBABILITIES)):
        reading = read.read({"y": np.zeros((0, 3), dtype=np.float32)})
        assert (reading.prediction, reading.null) == (None, False)


def test_nan_in_another_output_than_the_one_that_is_read_is_no_answer_either():
    label, scores = np.zeros(1, dtype=np.int64), np.zeros((1, 2), dtype=np.float32)
    specs = [TensorSpec("label", "INT64", (-1,)), TensorSpec("scores", "FP32", (-1, 2))]
    read = Reader(Prediction("label", read="text"), specs, {"label": label, "scores": scores})
    assert read.read({"label": label, "scores": scores + math.nan}).null
    assert not read.read({"label": label, "scores": scores}).null


def test_confidence_that_a_nan_warm_up_could_not_show_refuses_nothing():
    read = reader(PROBABILITIES + math.nan, read="argmax", confidence_below=0.5)
    assert read.read({"y": PROBABILITIES}).prediction == "0"
