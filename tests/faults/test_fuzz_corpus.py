"""Inputs that coverage-guided fuzzing found, those that once crashed a reader among them, read again.

`python -m tests.fuzz` makes new ones; see docs/security.md.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptoss_convert.errors import GptossConvertError
from gptoss_convert.formats.storage import FileRef
from tests.fuzz.targets import TARGETS, Target, prepared
from tests.support.bounds import TooSlowError, bounded

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"
LARGEST_CORPUS = 1_000_000
"""Bytes of all inputs that are kept."""


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_that_were_found_are_read_within_bounds(name: str, tmp_path: Path) -> None:
    target = prepared(name, tmp_path / "model")
    for seed in target.seeds:  # what is imported late counts as memory of nobody
        target.run(seed, extra=1 << 30)
    kept = sorted((CORPUS / name).iterdir())
    assert kept
    for path in kept:
        target.run(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_a_sound_file_is_among_the_seeds(name: str, tmp_path: Path) -> None:
    """A target whose seeds are all turned away at the door would fuzz nothing."""
    target = prepared(name, tmp_path / "model")
    accepted = 0
    for seed in target.seeds:
        try:
            target.read(seed)
        except GptossConvertError:
            continue
        accepted += 1
    assert accepted


def test_corpus_is_small() -> None:
    assert {path.name for path in CORPUS.iterdir()} == TARGETS.keys()
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < LARGEST_CORPUS


def test_bounds_are_enforced() -> None:
    with pytest.raises(MemoryError), bounded(1 << 20):
        bytearray(100 << 20)
    with bounded(1 << 20):
        bytearray(10 << 20)
    with pytest.raises(TooSlowError), bounded(0, seconds=0.01):
        sum(range(3_000_000))


def test_a_reader_that_takes_a_length_on_trust_would_be_found(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes((1 << 30).to_bytes(8, "little"))

    def trusting(data: bytes) -> None:
        FileRef.at(path).read(0, int.from_bytes(data, "little"))

    with pytest.raises(MemoryError):
        Target(trusting, ()).run(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_any_change_to_a_sound_file_is_read_within_bounds(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = prepared(name, tmp_path_factory.mktemp(name) / "model")
    for seed in target.seeds:
        target.run(seed, extra=1 << 30)

    @settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        seed=st.sampled_from(target.seeds),
        cut=st.floats(0, 1),
        changes=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=8)), max_size=4),
        whole=st.booleans(),
    )
    def check(seed: bytes, cut: float, changes: list[tuple[float, bytes]], whole: bool) -> None:
        data = seed if whole else seed[: int(cut * len(seed))]
        for place, piece in changes:
            position = int(place * len(data))
            data = data[:position] + piece + data[position + len(piece) * (position % 2) :]
        target.run(data)

    check()
