"""Tables of the quantiser, entry by entry, against the nearest of eight codes in exact fractions."""

from fractions import Fraction

import pytest

from gptoss_convert.encodings.mxfp4_distances import (
    BINADE,
    CODE_SHIFT,
    COMPARISON,
    DEPTH,
    ERROR_MASK,
    GAIN_BITS,
    LEAST_DIFFERENCE,
    LEAST_GAIN,
    LEAST_SQUARE,
    LOWERED,
    OUTCOMES,
    ROUNDED,
    SIX,
    STEPS,
)

CODES = [Fraction(value) for value in (0, 0.5, 1, 1.5, 2, 3, 4, 6)]
DISTANCES = range(2, STEPS)


def magnitude(distance: int) -> Fraction:
    binade, step = divmod(distance, BINADE)
    return Fraction(BINADE + step, BINADE) * Fraction(2) ** (binade - DEPTH)


def nearest(size: Fraction, scale: Fraction) -> int:
    return min(range(8), key=lambda code: (abs(size - scale * CODES[code]), code % 2))


def squared_error(distance: int, scale: Fraction) -> Fraction:
    size = magnitude(distance)
    return (size - scale * CODES[nearest(size, scale)]) ** 2


@pytest.mark.parametrize("larger", [0, 1])
def test_codes_and_errors_of_every_distance(larger: int) -> None:
    scale = Fraction(2**larger)
    for distance in DISTANCES:
        entry = int(OUTCOMES[distance + larger * STEPS])
        code = nearest(magnitude(distance), scale)
        assert entry >> CODE_SHIFT == code
        assert ROUNDED[distance + larger * STEPS] == scale * CODES[code]
        error = (entry & ERROR_MASK) * Fraction(LEAST_SQUARE)
        exact = squared_error(distance, scale)
        assert abs(error - exact) <= (
            0 if magnitude(distance) >= Fraction(1, 2**16) else Fraction(LEAST_SQUARE) / 2
        )


def test_zero_costs_nothing_and_the_least_number_something() -> None:
    assert OUTCOMES[0] == OUTCOMES[STEPS] == 0
    assert OUTCOMES[1] == OUTCOMES[STEPS + 1] == 1
    assert COMPARISON[0] == COMPARISON[1] == 0


def test_differences_between_scales_are_exact() -> None:
    for distance in DISTANCES:
        difference = (int(COMPARISON[distance]) >> GAIN_BITS) * Fraction(LEAST_DIFFERENCE)
        assert difference == squared_error(distance, Fraction(1)) - squared_error(distance, Fraction(2))


def test_gains_of_the_next_smaller_scale_are_upper_bounds() -> None:
    for distance in DISTANCES:
        bound = (int(COMPARISON[distance]) & (1 << GAIN_BITS) - 1) * Fraction(LEAST_GAIN)
        gain = squared_error(distance, Fraction(1)) - squared_error(distance, Fraction(1, 2))
        assert gain <= bound <= max(gain, Fraction(0)) + Fraction(LEAST_GAIN)
        assert LOWERED[distance] == CODES[nearest(magnitude(distance), Fraction(1, 2))] / 2


def test_sums_over_a_block_keep_their_fields_apart() -> None:
    assert int((OUTCOMES & ERROR_MASK).max()) * 32 < 2**53
    assert int((OUTCOMES & ERROR_MASK).max()) < 2**48
    assert int((COMPARISON & (1 << GAIN_BITS) - 1).max()) * 32 < 1 << GAIN_BITS
    assert int(abs(COMPARISON.astype(int)).max()) * 32 < 2**31


def test_six_is_the_largest_number_that_is_not_cut_off() -> None:
    assert magnitude(SIX) == 6
