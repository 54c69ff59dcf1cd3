"""Memory that is there and no more: a conversion takes what it was given, however large the model is."""

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.command import Outcome, environment, run_process
from tests.support.checkpoints import Shape, write_huggingface
from tests.support.tokenizers import write_small_tokenizer

LARGE = Shape(layers=2, hidden=1024, intermediate=2048, experts=16, experts_per_token=2)
"""403 MB of experts in BF16, in tensors of 134 and 67 MB."""
DATA_BYTES = 32 << 20
"""What a run may hold of them."""
CEILING = 192 << 20
"""Address space of the whole process, of which the interpreter, numpy and the stacks of threads take most."""
TOO_LOW = 150 << 20
"""Not enough for what it may hold: so much of `CEILING` is really used."""


def address_space(nbytes: int) -> Callable[[], None]:
    """Return a function that forbids this process more address space."""
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (nbytes, nbytes))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    write_small_tokenizer(folder)
    return write_huggingface(folder, LARGE, edge_blocks=False)


def converted(source: Path, output: Path, *options: str, ceiling: int = CEILING) -> Outcome:
    """Convert to BF16 under a ceiling."""
    one_thread = environment({"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"})
    words: tuple[str | Path, ...] = ("to-bf16", source, "-o", output, "--jobs", "2", "-q", *options)
    return run_process(*words, preexec_fn=address_space(ceiling), env=one_thread, timeout=300)


def test_conversion_keeps_to_its_memory(large: Path, tmp_path: Path) -> None:
    """Journal, checksums and rereading included."""
    outcome = converted(large, tmp_path / "out", "--max-memory", str(DATA_BYTES), "--manifest")
    assert (outcome.exit_code, outcome.stderr) == (0, "")


def test_memory_that_is_not_enough_is_an_error(large: Path, tmp_path: Path) -> None:
    outcome = converted(large, tmp_path / "out", "--max-memory", str(DATA_BYTES), ceiling=TOO_LOW)
    assert outcome.exit_code in (6, 70)
    assert len(outcome.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
