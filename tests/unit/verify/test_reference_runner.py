"""The reference runner: the same answer from every form of a model, however it is cut."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.to_bf16 import Bf16Options, plan_bf16
from gptoss_convert.errors import InputError, OptionError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.forward import model as model_module
from gptoss_convert.verify.recording import Recording, RecordingWriter
from gptoss_convert.verify.runners import RUNTIMES
from gptoss_convert.verify.runners.protocol import Settings
from gptoss_convert.verify.runners.reference import RUNNER
from tests.peers import metrics
from tests.support.checkpoints import Shape, write_original
from tests.support.conversions import make_checkpoint, to_gguf
from tests.support.runs import run

SHAPE = Shape(layers=3, hidden=96, intermediate=160, experts=6, experts_per_token=3, heads=6, sliding_window=16)
FILLING = {"edge_blocks": False, "fill": "gauss"}
PROMPTS = [np.random.default_rng(length).integers(0, SHAPE.vocab, length).tolist() for length in (33, 1, 100)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model in every form."""
    folder = tmp_path_factory.mktemp("models")
    make_checkpoint(folder / "mxfp4", SHAPE, shards=3, placement="shuffled", **FILLING)
    make_checkpoint(folder / "bf16", SHAPE, experts="bf16", **FILLING)
    write_original(folder / "openai", SHAPE, edge_blocks=False, fill="gauss")
    to_gguf(folder / "mxfp4", folder / "model.gguf")
    to_gguf(folder / "mxfp4", folder / "f32.gguf", dense="f32", experts="f32")
    to_gguf(folder / "mxfp4", folder / "rounded.gguf", dense="q8_0", experts="q8_0")
    execute(plan_bf16(open_checkpoint(folder / "mxfp4"), folder / "ours-bf16", Bf16Options()))
    execute(
        plan_bf16(
            open_checkpoint(folder / "rounded.gguf"), folder / "rounded-bf16", Bf16Options(allow_lossy_source=True)
        )
    )
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", ["bf16", "ours-bf16", "openai", "model.gguf", "f32.gguf"])
def test_every_form_of_a_model_gives_the_same_bits(folder: Path, form: str, dtype: str) -> None:
    expected = run(RUNNER, folder / "mxfp4", PROMPTS, dtype=dtype)
    for mine, other in zip(expected, run(RUNNER, folder / form, PROMPTS, dtype=dtype), strict=True):
        np.testing.assert_array_equal(other.logprobs, mine.logprobs)
        np.testing.assert_array_equal(other.routing, mine.routing)
        np.testing.assert_array_equal(other.margins, mine.margins)


def test_rounded_weights_are_taken_as_they_are(folder: Path) -> None:
    (exact,) = run(RUNNER, folder / "mxfp4", PROMPTS[2:])
    (rounded,) = run(RUNNER, folder / "rounded.gguf", PROMPTS[2:])
    assert 1e-7 < metrics.kl_divergence(exact.normalised, rounded.normalised).mean() < 1e-2
    (decoded,) = run(RUNNER, folder / "rounded-bf16", PROMPTS[2:])
    assert 1e-7 < metrics.kl_divergence(rounded.normalised, decoded.normalised).mean() < 1e-3


def test_scores_have_every_position_once(folder: Path) -> None:
    found = run(RUNNER, folder / "mxfp4", PROMPTS)
    for prompt, scores in zip(PROMPTS, found, strict=True):
        assert scores.logprobs.shape == (len(prompt), SHAPE.vocab)
        assert scores.logprobs.dtype == np.float32
        assert scores.routing.shape == (len(prompt), SHAPE.layers, SHAPE.experts_per_token)
        assert scores.margins.shape == (len(prompt), SHAPE.layers)
        assert (scores.margins > 0).all()
        np.testing.assert_allclose(np.exp(scores.logprobs.astype(np.float64)).sum(axis=1), 1, rtol=1e-5)
        assert all(len(set(chosen)) == SHAPE.experts_per_token for chosen in scores.routing[:, 0].tolist())


def test_prompts_together_and_alone_give_the_same(folder: Path) -> None:
    together = run(RUNNER, folder / "mxfp4", PROMPTS)
    for prompt, scores in zip(PROMPTS, together, strict=True):
        (alone,) = run(RUNNER, folder / "mxfp4", [prompt])
        np.testing.assert_array_equal(alone.routing, scores.routing)
        np.testing.assert_allclose(alone.logprobs, scores.logprobs, atol=2e-5)


def test_later_tokens_change_nothing_before_them(folder: Path) -> None:
    (whole,) = run(RUNNER, folder / "mxfp4", [PROMPTS[2]])
    (start,) = run(RUNNER, folder / "mxfp4", [PROMPTS[2][:40]])
    np.testing.assert_allclose(start.logprobs, whole.logprobs[:40], atol=2e-5)


@pytest.mark.parametrize("positions", [1, 7, 134])
def test_blocks_of_logits_change_nothing(folder: Path, positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(RUNNER, folder / "mxfp4", PROMPTS)
    monkeypatch.setattr(model_module, "_LOGIT_BYTES", positions * 4 * SHAPE.vocab)
    monkeypatch.setattr(model_module, "_UNEMBEDDED_BYTES", 70 * 4 * SHAPE.hidden)
    monkeypatch.setattr(model_module, "_LOGPROB_BYTES", 5 * 8 * SHAPE.vocab)
    for mine, other in zip(expected, run(RUNNER, folder / "mxfp4", PROMPTS), strict=True):
        np.testing.assert_allclose(other.logprobs, mine.logprobs, atol=2e-5)


def test_run_can_be_recorded(folder: Path, tmp_path: Path) -> None:
    lengths = [len(prompt) for prompt in PROMPTS]
    with RUNNER.open(folder / "model.gguf", Settings()) as session, RecordingWriter(tmp_path, lengths) as writer:
        for scores in session.run(PROMPTS):
            writer.add(scores)
        writer.finish()
    recording = Recording(tmp_path)
    routing = recording.routing()
    assert recording.is_whole
    assert routing is not None
    np.testing.assert_array_equal(routing[34:], run(RUNNER, folder / "model.gguf", PROMPTS)[2].routing)


def test_session_can_run_again(folder: Path) -> None:
    with RUNNER.open(folder / "mxfp4", Settings()) as session:
        first, second = (np.concatenate([item.logprobs for item in session.run(PROMPTS)]) for _ in range(2))
        assert list(session.run([])) == []
    np.testing.assert_array_equal(first, second)


def test_threads_are_as_many_as_asked_for(folder: Path) -> None:
    before = torch.get_num_threads()
    assert before == 1
    with RUNNER.open(folder / "mxfp4", Settings(threads=2)):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


def test_versions_name_what_computes() -> None:
    assert RUNNER.versions().keys() == {"gptoss-convert", "torch"}
    assert RUNNER.versions()["torch"] == torch.__version__


def test_table_of_runtimes_leads_here() -> None:
    assert RUNTIMES["reference"].module == "gptoss_convert.verify.runners.reference"
    assert RUNTIMES["reference"].is_installed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(dtype="float8"), "float8, expected one of float32, bfloat16, float64"),
        (Settings(imitates="vLLM"), "vLLM, expected one of reference, transformers, llama.cpp"),
    ],
)
def test_unknown_settings_are_refused(folder: Path, settings: Settings, message: str) -> None:
    with pytest.raises(OptionError, match=message), RUNNER.open(folder / "mxfp4", settings):
        pass


@pytest.mark.parametrize("token", [-1, SHAPE.vocab])
def test_unknown_token_is_refused(folder: Path, token: int) -> None:
    with (
        RUNNER.open(folder / "mxfp4", Settings()) as session,
        pytest.raises(OptionError, match=f"token.*found {token}, expected 0 to 511"),
    ):
        list(session.run([[1, 2], [3, token]]))


def test_empty_prompt_is_refused(folder: Path) -> None:
    with RUNNER.open(folder / "mxfp4", Settings()) as session, pytest.raises(OptionError, match="prompt is empty"):
        list(session.run([[1, 2], []]))


def test_damaged_expert_is_refused_when_it_is_met(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    make_checkpoint(path, SHAPE, **FILLING)
    tensor = open_checkpoint(path).tensors["model.layers.2.mlp.experts.down_proj"]
    scales = tensor.read(0, tensor.rows)[1].tobytes()
    file = path / "model.safetensors"
    data = file.read_bytes()
    assert data.count(scales) == 1
    file.write_bytes(data.replace(scales, b"\xff" * len(scales)))
    with (
        RUNNER.open(path, Settings()) as session,
        pytest.raises(InputError, match=r"layers\.2\.mlp\.experts\.down_proj"),
    ):
        list(session.run(PROMPTS))


def test_unsound_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    broken = make_checkpoint(tmp_path / "broken", SHAPE, config_overrides={"num_attention_heads": 8}, **FILLING)
    with pytest.raises(InputError, match="does not fit"), RUNNER.open(broken, Settings()):
        pass
