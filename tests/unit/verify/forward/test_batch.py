"""Prompts along one axis of positions."""

import numpy as np

from gptoss_convert.verify.forward.batch import Batch

BATCH = Batch.of([[5, 6, 7], [8], np.array([9, 10])])


def test_positions_are_numbered_through() -> None:
    assert BATCH.prompts == ((5, 6, 7), (8,), (9, 10))
    assert BATCH.ids.tolist() == [5, 6, 7, 8, 9, 10]
    assert BATCH.places.tolist() == [0, 1, 2, 0, 0, 1]
    assert BATCH.spans == ((0, 3), (3, 4), (4, 6))
    assert (BATCH.positions, BATCH.longest) == (6, 3)


def test_pieces_end_where_prompts_end() -> None:
    assert list(BATCH.pieces(0, 6)) == [(0, 0, 3), (1, 3, 4), (2, 4, 6)]
    assert list(BATCH.pieces(1, 4)) == [(0, 1, 3), (1, 3, 4)]
    assert list(BATCH.pieces(3, 5)) == [(1, 3, 4), (2, 4, 5)]
    assert list(BATCH.pieces(1, 2)) == [(0, 1, 2)]


def test_no_prompts_are_no_positions() -> None:
    empty = Batch.of([])
    assert (empty.positions, empty.longest, empty.spans) == (0, 0, ())
    assert empty.ids.shape == empty.places.shape == (0,)
