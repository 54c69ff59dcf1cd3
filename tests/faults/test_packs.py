"""Packs of strangers: what is wrong with one is said in one line, and nothing worse happens."""

import contextlib
import functools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptoss_convert.errors import GptossConvertError
from gptoss_convert.verify.pack.layout import LARGEST_HEADER, LARGEST_VOCABULARY
from gptoss_convert.verify.pack.reader import Pack, read_pack
from tests.cli.command import run_here
from tests.faults.checks import assert_one_line
from tests.support.checkpoints import Shape
from tests.support.conversions import make_checkpoint, to_gguf
from tests.support.packs import Arrays, make_pack, read_arrays, with_facts, write_arrays

pytestmark = pytest.mark.filterwarnings("error")

Change = Callable[[Arrays], object]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `model.gguf`, `whole.pack` and `listed.pack` lie."""
    folder = tmp_path_factory.mktemp("packs")
    model = make_checkpoint(folder / "model", Shape(layers=1), fill="gauss", edge_blocks=False)
    to_gguf(model, folder / "model.gguf")
    make_pack(model, folder / "whole.pack")
    make_pack(model, folder / "listed.pack", top=20)
    return folder


def number(name: str, index: int, value: float) -> Change:
    def apply(arrays: Arrays) -> None:
        arrays[name].reshape(-1)[index] = value

    return apply


def shaped(name: str, change: Callable[[Any], Any]) -> Change:
    def apply(arrays: Arrays) -> None:
        arrays[name] = change(arrays[name])

    return apply


def facts(change: Callable[[Any], object]) -> Change:
    return with_facts(change)


def put(*keys: Any, value: Any) -> Change:
    def change(content: Any) -> None:
        *outer, last = keys
        functools.reduce(lambda place, key: place[key], outer, content)[last] = value

    return with_facts(change)


def vocabulary(change: Callable[[Any], object]) -> Change:
    def apply(arrays: Arrays) -> None:
        content = msgspec.json.decode(zlib.decompress(arrays["vocabulary"].tobytes()))
        change(content)
        arrays["vocabulary"] = np.frombuffer(zlib.compress(msgspec.json.encode(content)), np.uint8)

    return apply


def raw_vocabulary(change: Callable[[bytes], bytes]) -> Change:
    return shaped("vocabulary", lambda array: np.frombuffer(change(array.tobytes()), np.uint8))


def narrowed(columns: int) -> Change:
    def apply(arrays: Arrays) -> None:
        for name in ("reference.logprobs", "reference.tokens"):
            arrays[name] = arrays[name][:, :columns]

    return apply


def drop(name: str) -> Change:
    return lambda arrays: arrays.pop(name)


BOMB = zlib.compress(bytes(LARGEST_VOCABULARY + 1))
NORM = "model.norm.weight"

AT_OPENING: list[tuple[str, Change, tuple[str, ...]]] = [
    ("no facts", drop("facts"), ("not a pack", "gptoss-convert record")),
    ("other version", put("pack_version", value=9), ("pack of another version", "found 9, expected 1")),
    ("no version", facts(lambda f: f.pop("pack_version")), ("pack is damaged", "pack_version")),
    ("facts are no JSON", shaped("facts", lambda a: a[:-5]), ("pack is damaged", "tensor facts")),
    ("facts of wide numbers", shaped("facts", lambda a: a.astype("<i4")), ("another type or shape", "U8 [any]")),
    ("deep facts", shaped("facts", lambda a: np.frombuffer(b"[" * 100_000, np.uint8)), ("pack is damaged",)),
    ("unknown field", put("more", value=1), ("pack is damaged", "more")),
    ("unknown format", put("source_format", value="pickle"), ("unknown format", "found pickle")),
    ("negative layers", put("config", "num_hidden_layers", value=-1), ("pack is damaged", "num_hidden_layers")),
    ("too many layers", put("config", "num_hidden_layers", value=1 << 40), ("pack is damaged",)),
    ("contradictory configuration", put("config", "head_dim", value=31), ("contradicts itself",)),
    ("huge vocabulary", put("config", "vocab_size", value=(1 << 31) - 1), ("vocabulary is larger than any",)),
    ("unknown layers", put("config", "layer_types", value=["odd"]), ("unknown layer type",)),
    ("tensor missing", facts(lambda f: f["tensors"].pop(NORM)), ("does not know a tensor", f"tensor {NORM}")),
    ("tensor too many", put("tensors", "more", value={"encoding": "f32", "sha256": "0" * 64}), ("tensor more",)),
    ("unknown encoding", put("tensors", NORM, "encoding", value="q9"), ("cannot be in this encoding", "found q9")),
    ("digest too short", put("tensors", NORM, "sha256", value="00"), ("pack is damaged", "sha256")),
    ("other digest", put("tensors", NORM, "sha256", value="0" * 64), ("canonical hash of the pack is not that",)),
    ("no prompts", put("prompts", "prompts", value=[]), ("no prompts, or too many", "found 0 positions")),
    ("empty prompt", put("prompts", "prompts", 0, "tokens", value=0), ("pack is damaged", "tokens")),
    ("too many tokens", put("prompts", "prompts", 0, "tokens", value=1 << 30), ("no prompts, or too many",)),
    ("one token more", put("prompts", "prompts", 0, "tokens", value=21), ("tensor ids", "I32 [60]", "I32 [61]")),
    ("prompt too long", put("config", "max_position_embeddings", value=19), ("longer than the model can read",)),
    ("other ids", number("ids", 3, 1), ("token ids of the pack are not those that were recorded",)),
    ("token beyond", number("ids", 3, 512), ("a token that its model has not",)),
    ("token below", number("ids", 3, -1), ("a token that its model has not",)),
    ("ids missing", drop("ids"), ("pack lacks an array", "tensor ids")),
    ("samples missing", shaped("samples", lambda a: a[:-1]), ("another type or shape", "tensor samples")),
    ("run missing", facts(lambda f: f["runs"].pop(0)), ("lacks the run of its reference",)),
    ("run twice", facts(lambda f: f["runs"].append(f["runs"][1])), ("has a run twice",)),
    ("run imitates us", put("runs", 1, "imitates", value="reference"), ("imitates the reference",)),
    ("run with odd name", put("runs", 1, "imitates", value="../x"), ("pack is damaged", "imitates")),
    ("logprobs missing", drop("reference.logprobs"), ("pack lacks an array", "reference.logprobs")),
    ("position missing", shaped("reference.logprobs", lambda a: a[:-1]), ("another type or shape",)),
    ("rest missing", drop("reference.rest"), ("pack lacks an array", "reference.rest")),
    ("tokens of other width", shaped("reference.tokens", lambda a: a[:, :-1]), ("tensor reference.tokens",)),
    ("no columns", narrowed(0), ("lists no tokens",)),
    ("routing of other width", shaped("reference.routing", lambda a: a[:, :, :1]), ("reference.routing",)),
    ("wide margins", shaped("reference.router_margins", lambda a: a.astype("<f8")), ("found F64",)),
    ("array too many", lambda a: a.update(more=np.zeros(3, np.uint8)), ("does not belong to it", "tensor more")),
    ("negative noise", put("noise_floor", value=-1.0), ("pack is damaged", "noise_floor")),
    ("no noise floor", facts(lambda f: f.pop("noise_floor")), ("pack is damaged", "noise_floor")),
    ("odd ids of generation", put("generation", value={"eos_token_id": "x"}), ("pack is damaged", "generation")),
    ("vocabulary is no zlib", raw_vocabulary(lambda b: b"no" + b), ("pack is damaged", "tensor vocabulary")),
    ("vocabulary is cut", raw_vocabulary(lambda b: b[:-9]), ("vocabulary of the pack is cut",)),
    ("more after vocabulary", raw_vocabulary(lambda b: b + b"x"), ("vocabulary of the pack is cut",)),
    ("vocabulary is a bomb", raw_vocabulary(lambda b: BOMB), ("larger than any can be",)),
    ("vocabulary lacks kinds", vocabulary(lambda v: v["kinds"].pop()), ("kinds of more or fewer tokens",)),
    ("long vocabulary", vocabulary(lambda v: v.update(tokens=[""] * 600, kinds=[1] * 600)), ("at most 512",)),
    ("unknown kind", vocabulary(lambda v: v["kinds"].__setitem__(0, 77)), ("unknown kind of token", "found 77")),
    ("token is a number", vocabulary(lambda v: v["tokens"].__setitem__(0, 7)), ("pack is damaged", "tokens")),
]  # fmt: skip

WHEN_EXTRACTED: list[tuple[str, Change, tuple[str, ...]]] = [
    ("NaN", number("reference.logprobs", 5, float("nan")), ("do not add up to 1", "reference.logprobs")),
    ("infinity", number("reference.logprobs", 5, float("inf")), ("do not add up to 1",)),
    ("too likely", number("reference.logprobs", 5, 3.0), ("do not add up to 1",)),
    ("too little", number("reference.rest", 2, -50.0), ("do not add up to 1",)),
    ("rest is NaN", number("reference.rest", 2, float("nan")), ("do not add up to 1",)),
    ("token twice", lambda a: a["reference.tokens"].__setitem__((0, 1), a["reference.tokens"][0, 0]), ("twice",)),
    ("token beyond", number("reference.tokens", 0, 512), ("one that does not exist", "reference.tokens")),
    ("token below", number("reference.tokens", 0, -1), ("one that does not exist",)),
    ("expert beyond", number("reference.routing", 0, 4), ("an expert that does not exist",)),
    ("expert below", number("llama.cpp.routing", 0, -1), ("an expert that does not exist", "llama.cpp.routing")),
    ("margin below", number("reference.router_margins", 0, -1.0), ("not a number from 0 on",)),
    ("margin is NaN", number("reference.router_margins", 0, float("nan")), ("not a number from 0 on",)),
]


def damaged(folder: Path, target: Path, change: Change) -> Path:
    arrays = read_arrays(folder / "listed.pack")
    change(arrays)
    return write_arrays(target, arrays)


def extract(pack: Pack, folder: Path) -> None:
    for number, run in enumerate(pack.runs.values()):
        place = folder / f"run-{number}"
        place.mkdir(exist_ok=True)
        run.extract(place)


def test_a_pack_that_was_written_again_passes(folder: Path, tmp_path: Path) -> None:
    """So that what follows is refused because of its damage."""
    pack = damaged(folder, tmp_path / "p.pack", lambda arrays: None)
    outcome = run_here("verify", "--against", pack, folder / "model.gguf", "--weights", "-q")
    assert (outcome.exit_code, outcome.stderr) == (0, "")


@pytest.mark.parametrize(("change", "words"), [pytest.param(*row[1:], id=row[0]) for row in AT_OPENING])
def test_damaged_pack_is_refused_at_once(
    change: Change, words: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    pack = damaged(folder, tmp_path / "p.pack", change)
    assert_one_line(run_here("verify", "--against", pack, folder / "model.gguf"), 3, words, tmp_path)


@pytest.mark.parametrize(("change", "words"), [pytest.param(*row[1:], id=row[0]) for row in WHEN_EXTRACTED])
def test_damaged_distributions_are_refused_when_they_are_needed(
    change: Change, words: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    pack = read_pack(damaged(folder, tmp_path / "p.pack", change))
    with pytest.raises(GptossConvertError) as caught:
        extract(pack, tmp_path)
    assert [word for word in (*words, "p.pack") if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a safetensors file"),
        (b"GGUF" + bytes(100), "this is a GGUF file"),
        (b"<html>" + bytes(100), "this looks like a web page"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "truncated in its header"),
        ((LARGEST_HEADER + 8).to_bytes(8, "little") + b" " * (LARGEST_HEADER + 8), "truncated in its header"),
    ],
)  # fmt: skip
def test_what_is_no_pack_is_refused(content: bytes, words: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "p.pack").write_bytes(content)
    outcome = run_here("verify", "--against", tmp_path / "p.pack", folder / "model.gguf")
    assert_one_line(outcome, 3, [words], tmp_path)


def test_a_checkpoint_is_no_pack(folder: Path, tmp_path: Path) -> None:
    outcome = run_here("verify", "--against", folder / "model" / "model.safetensors", folder / "model.gguf")
    assert_one_line(outcome, 3, ["not a pack"], folder)


@pytest.mark.parametrize("name", ["whole", "listed"])
def test_no_cut_file_is_read(name: str, folder: Path, tmp_path: Path) -> None:
    content = (folder / f"{name}.pack").read_bytes()
    path = tmp_path / "p.pack"
    for length in (7, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(GptossConvertError):
            read_pack(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_other_bytes_are_an_error_or_a_pack(data: st.DataObject, folder: Path, tmp_path: Path) -> None:
    """Mostly in the header and the JSON, which steer what is read."""
    content = bytearray((folder / "listed.pack").read_bytes())
    header = int.from_bytes(content[:8], "little") + 8
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.one_of(st.integers(0, header - 1), st.integers(0, len(content) - 1)))
        content[start : start + 1] = data.draw(st.binary(min_size=0, max_size=3))
    path = tmp_path / "p.pack"
    path.write_bytes(content)
    with contextlib.suppress(GptossConvertError):
        extract(read_pack(path), tmp_path)
