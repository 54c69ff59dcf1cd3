"""Our GGUF files against those that llama.cpp's own converter (of llama-cpp-python 0.3.36) writes."""

from pathlib import Path

import pytest

from gptoss_convert.formats.gguf.container import read_header
from gptoss_convert.formats.storage import FileRef
from tests.peers import llama_cpp_converter
from tests.support import gguf_files, tokenizers
from tests.support.checkpoints import Shape, write_huggingface, write_original
from tests.support.conversions import TINY, make_checkpoint, to_gguf

SHAPES = {
    "four experts, even layers": Shape(layers=2, experts=4),
    "odd layers, many experts": Shape(layers=3, experts=32, hidden=96, intermediate=64),
    "twelve layers, in string order 0 1 10 11 2": Shape(layers=12, hidden=32, intermediate=32, experts=4),
    "hidden wider than experts, one KV head": Shape(layers=1, hidden=160, intermediate=32, heads=8, kv_heads=1),
    "query width no multiple of 32": Shape(layers=1, heads=3, kv_heads=3, head_dim=16),
}


def theirs(checkpoint: Path, outtype: str = "auto", *extra: str) -> Path:
    output = checkpoint.parent / f"theirs-{checkpoint.name}-{outtype}.gguf"
    llama_cpp_converter.convert(checkpoint, output, outtype, *extra)
    return output


def assert_same_model(ours: Path, other: Path) -> None:
    expected, found = gguf_files.tensors(other), gguf_files.tensors(ours)
    assert found.keys() == expected.keys()
    different = [name for name in expected if found[name] != expected[name]]
    assert different == []
    expected_keys, found_keys = gguf_files.metadata(other), gguf_files.metadata(ours)
    assert found_keys == expected_keys
    assert list(found_keys) == list(expected_keys)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_random_checkpoint_gives_the_converters_tensors_and_metadata(shape: Shape, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "gpt-oss-20b", shape)
    assert_same_model(to_gguf(checkpoint, tmp_path / "ours.gguf"), theirs(checkpoint))


def test_trained_model(tmp_path: Path) -> None:
    output = tmp_path / "theirs.gguf"
    llama_cpp_converter.convert(TINY, output)
    assert_same_model(to_gguf(TINY, tmp_path / "ours.gguf"), output)


@pytest.mark.parametrize("dense", ["bf16", "f16", "f32", "q8_0"])
def test_dense_encodings_give_the_converters_outtypes(dense: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", Shape(layers=2, heads=3, kv_heads=3, head_dim=16))
    assert_same_model(to_gguf(checkpoint, tmp_path / "ours.gguf", dense=dense), theirs(checkpoint, dense))


@pytest.mark.parametrize("encoding", ["bf16", "f16", "f32", "q8_0"])
def test_bf16_experts(encoding: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", Shape(), experts="bf16", edge_blocks=False)
    assert_same_model(
        to_gguf(checkpoint, tmp_path / "ours.gguf", dense=encoding, experts=encoding), theirs(checkpoint, encoding)
    )


def test_shards_in_any_order_and_the_original_layout_give_the_bytes_of_one_file(tmp_path: Path) -> None:
    shape = Shape(layers=3)
    one = make_checkpoint(tmp_path / "one" / "model", shape)
    shuffled = make_checkpoint(tmp_path / "shuffled" / "model", shape, shards=5, placement="shuffled")
    repository = make_checkpoint(tmp_path / "repository" / "model", shape)
    original = write_original(repository / "original", shape)
    expected = to_gguf(one, tmp_path / "one.gguf").read_bytes()
    assert to_gguf(shuffled, tmp_path / "shuffled.gguf").read_bytes() == expected
    assert to_gguf(original, tmp_path / "original.gguf").read_bytes() == expected


def test_split_files_hold_the_converters_tensors(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", Shape())
    first = to_gguf(checkpoint, tmp_path / "ours.gguf", split_max_size=100_000)
    whole = theirs(checkpoint, "auto")
    parts = sorted(tmp_path.glob("ours-*.gguf"))
    assert parts[0] == first
    found: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for number, part in enumerate(parts):
        found |= gguf_files.tensors(part)
        keys = {key: value for key, (_, value) in gguf_files.metadata(part).items() if key.startswith("split.")}
        expected = {"split.no": number, "split.count": len(parts), "split.tensors.count": 41}
        assert keys == expected
    assert found == gguf_files.tensors(whole)


def test_model_card_and_folder_name_are_read_as_the_converter_reads_them(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "My-Tuned-gpt-oss-20b-v1.1-chat", Shape())
    (checkpoint / "README.md").write_text(
        "---\nlicense: mit\nbase_model: openai/gpt-oss-20b\ntags:\n- chat\n- mxfp4\npipeline_tag: text-generation\n"
        "language:\n- en\n- no\ndatasets:\n- someone/some-data\n---\n# A model\n",
        encoding="utf-8",
    )
    assert_same_model(to_gguf(checkpoint, tmp_path / "ours.gguf"), theirs(checkpoint))


def test_licence_text_beside_the_weights_is_the_one_fact_that_the_converter_leaves_out(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", Shape(layers=1))
    (checkpoint / "LICENSE").write_bytes((Path(__file__).parents[2] / "LICENSE").read_bytes())
    found = gguf_files.metadata(to_gguf(checkpoint, tmp_path / "ours.gguf"))
    assert found.pop("general.license") == (["STRING"], "apache-2.0")
    assert found == gguf_files.metadata(theirs(checkpoint))


def test_real_tokenizer(tmp_path: Path) -> None:
    checkpoint = tmp_path / "gpt-oss-20b"
    checkpoint.mkdir()
    ids = tokenizers.write_real_tokenizer(checkpoint)
    write_huggingface(checkpoint, Shape(hidden=32, intermediate=32, vocab=201088), special_ids=ids)
    # gguf-py takes a minute for a vocabulary of this size; our reader does not change what is equal.
    ours, other = (
        read_header(FileRef.at(path)).metadata
        for path in (to_gguf(checkpoint, tmp_path / "ours.gguf"), theirs(checkpoint))
    )
    assert list(ours) == list(other)
    assert len(ours["tokenizer.ggml.merges"].value) == 446_189
    assert [key for key in ours if ours[key].serialise() != other[key].serialise()] == []


def test_gguf_py_decodes_the_experts_to_the_values_of_a_bf16_checkpoint(tmp_path: Path) -> None:
    mxfp4 = make_checkpoint(tmp_path / "mxfp4", Shape())
    bf16 = make_checkpoint(tmp_path / "bf16", Shape(), experts="bf16")
    expected = gguf_files.dequantised(to_gguf(bf16, tmp_path / "bf16.gguf", experts="f32"))
    found = gguf_files.dequantised(to_gguf(mxfp4, tmp_path / "mxfp4.gguf"))
    experts = [name for name in expected if "_exps.weight" in name]
    assert len(experts) == 6
    assert all((found[name] == expected[name]).all() for name in experts)
