"""What is computed token by token: few positions, across the edge of the window where prompts reach beyond it."""

import pytest

from gptoss_convert.verify.decode import Decoding, choose_decoding
from gptoss_convert.verify.prompts import DECODE, PromptSet
from tests.support.recordings import prompt_set

WINDOW = 128


def prompts(*lengths: int) -> PromptSet:
    return prompt_set([[number * 1000 + place for place in range(length)] for number, length in enumerate(lengths)])


def chosen(*lengths: int, positions: int = 128) -> Decoding:
    decoding = choose_decoding(prompts(*lengths), WINDOW, positions)
    assert decoding is not None
    return decoding


def test_long_prompts_are_decoded_across_the_edge_of_the_window() -> None:
    decoding = chosen(90, 170, 675, 129, 95, 80)
    assert decoding.indices == (1, 2, 3, 4)
    assert decoding.prefixes == (120, 120, 97, 0)
    assert decoding.lengths == (152, 152, 129, 32)
    assert decoding.positions == 128
    assert decoding.prompts.name == DECODE


def test_beginnings_are_those_of_the_prompts() -> None:
    whole, decoding = prompts(170, 60, 40), chosen(170, 60, 40)
    for index, part in zip(decoding.indices, decoding.prompts.prompts, strict=True):
        assert whole.prompts[index].ids[: len(part.ids)] == part.ids


def test_shortest_of_them_is_decoded_from_its_first_token() -> None:
    assert chosen(30, 20).prefixes == (1, 0)
    assert chosen(30, 20).positions == 29 + 20


def test_a_single_prompt_keeps_a_prefix() -> None:
    assert (chosen(500).prefixes, chosen(500).lengths) == ((96,), (224,))


@pytest.mark.parametrize("positions", [1, 4, 10, 63, 128])
def test_no_more_positions_than_asked_for(positions: int) -> None:
    decoding = choose_decoding(prompts(*(200,) * 9), WINDOW, positions)
    assert (0 if decoding is None else decoding.positions) <= positions


@pytest.mark.parametrize(("lengths", "positions"), [((), 128), ((1,), 128), ((50, 50), 0)])
def test_nothing_to_decode(lengths: tuple[int, ...], positions: int) -> None:
    assert choose_decoding(prompts(*lengths), WINDOW, positions) is None
