"""Log-probabilities, experts and margins from logits."""

import numpy as np

from gptoss_convert.verify.runners.logits import log_softmax, route

LOGITS = np.array([[[0.5, 2.0, -1.0, 1.25, 2.0]], [[4.0, 3.0, 2.0, 1.0, 0.0]]], np.float32)


def test_experts_come_best_first_and_the_margin_is_the_lead_of_the_last_one() -> None:
    experts, margins = route(LOGITS, 2)
    assert experts.tolist() == [[[1, 4]], [[0, 1]]]
    assert margins.tolist() == [[0.75], [1.0]]
    assert (experts.dtype, margins.dtype) == (np.int16, np.float32)


def test_margin_is_infinite_where_all_experts_are_chosen() -> None:
    experts, margins = route(LOGITS, 5)
    assert experts.tolist() == [[[1, 4, 3, 0, 2]], [[0, 1, 2, 3, 4]]]
    assert np.isposinf(margins).all()


def test_log_softmax_neither_overflows_nor_loses_small_differences() -> None:
    found = log_softmax(np.array([[60000.0, 60000.0], [-1000.0, 0.0]], np.float16))
    np.testing.assert_allclose(found, [[-np.log(2), -np.log(2)], [-1000, 0]], rtol=1e-7)
    many = log_softmax(np.zeros((1, 200_000), np.float32))
    np.testing.assert_allclose(many, np.full((1, 200_000), -np.log(200_000)), rtol=1e-7)
    assert many.dtype == np.float32
