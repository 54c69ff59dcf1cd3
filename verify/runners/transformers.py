"""transformers' GptOssForCausalLM with eager attention on the CPU, MXFP4 decoded when it is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gptoss_convert.checkpoint import parameter_count
from gptoss_convert.errors import InputError, OptionError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.first_use import use_vector_functions_alone
from gptoss_convert.verify.runners.protocol import Scores, Settings

BYTES_PER_PARAMETER = {"float32": 4, "bfloat16": 2, "float64": 8}
WORKING_MEMORY = 1.1
"""Memory to load and run a model, as a multiple of its parameters'."""
BLOCK_BYTES = 64 << 20
"""Bytes of the float64 log-probabilities that are computed at once."""


class TransformersRunner:
    """Loads folders in the Hugging Face layout.

    The whole of a prompt is computed at once, so that attention takes 12 bytes for each head and pair of positions.
    """

    def versions(self) -> Mapping[str, str]:
        """Return the versions of the programs that compute, by name."""
        return {name: version(name) for name in ("transformers", "torch")}

    def memory_needed(self, artifact: Path, settings: Settings) -> int:
        """Return the bytes that the parameters take in memory, and some more."""
        parameters = parameter_count(open_checkpoint(artifact).config)
        return int(WORKING_MEMORY * parameters * BYTES_PER_PARAMETER[_dtype(settings)])

    @contextmanager
    def open(self, artifact: Path, settings: Settings) -> Iterator[_Session]:
        """Load the model.

        Raises:
            InputError: transformers refuses it, or does not find all of its tensors there.
            OptionError: there is no such type of activations.
        """
        torch: Any = import_module("torch")
        if settings.threads:
            torch.set_num_threads(settings.threads)
        use_vector_functions_alone()
        yield _Session(torch=torch, model=_load(artifact, getattr(torch, _dtype(settings))))


RUNNER = TransformersRunner()


@dataclass(frozen=True, kw_only=True)
class _Session:
    torch: Any
    model: Any

    def run(self, prompts: Sequence[Sequence[int]]) -> Iterator[Scores]:
        with self.torch.inference_mode():
            for index, ids in enumerate(prompts):
                yield from self._scores(index, ids)

    def _scores(self, prompt: int, ids: Sequence[int]) -> Iterator[Scores]:
        with _router_outputs(self.model) as routers:
            output = self.model.model(input_ids=self.torch.tensor([list(ids)]), use_cache=False)
        hidden = output.last_hidden_state[0]
        chosen, margins = self._routing(routers)
        step = max(BLOCK_BYTES // (8 * self.model.config.vocab_size), 1)
        for start in range(0, len(ids), step):
            block = slice(start, start + step)
            logprobs = self.torch.log_softmax(self.model.lm_head(hidden[block]).double(), dim=-1)
            yield Scores(
                prompt=prompt,
                start=start,
                logprobs=logprobs.float().numpy(),
                routing=chosen[block].short().numpy(),
                router_margins=margins[block].numpy(),
            )

    def _routing(self, routers: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
        """Return the chosen experts, [positions, layers, experts per token], and the margins."""
        logits = self.torch.stack([logits for logits, _ in routers], dim=1).float()
        chosen = self.torch.stack([chosen for _, chosen in routers], dim=1)
        others = logits.scatter(-1, chosen, -self.torch.inf)
        return chosen, logits.gather(-1, chosen[..., -1:])[..., 0] - others.amax(dim=-1)


@contextmanager
def _router_outputs(model: Any) -> Iterator[list[tuple[Any, Any]]]:
    """Collect what routers compute while the context is open: layer by layer, logits and chosen experts."""
    collected: list[tuple[Any, Any]] = []

    def collect(_router: Any, _inputs: Any, outputs: Any) -> None:
        logits, _weights, chosen = outputs
        collected.append((logits, chosen))

    handles = [layer.mlp.router.register_forward_hook(collect) for layer in model.model.layers]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()


def _dtype(settings: Settings) -> str:
    if settings.dtype not in BYTES_PER_PARAMETER:
        raise OptionError(
            "no such type of activations", found=settings.dtype, expected=" or ".join(BYTES_PER_PARAMETER)
        )
    return settings.dtype


def _load(artifact: Path, dtype: Any) -> Any:
    transformers: Any = import_module("transformers")
    damaged: Any = import_module("safetensors").SafetensorError
    try:
        config = transformers.AutoConfig.from_pretrained(artifact)
        is_quantised = getattr(config, "quantization_config", None) is not None
        model, report = transformers.GptOssForCausalLM.from_pretrained(
            artifact,
            config=config,
            dtype=dtype,
            attn_implementation="eager",
            **({"experts_implementation": "eager"} if dtype.itemsize == 8 else {}),  # the default is for no doubles
            quantization_config=transformers.Mxfp4Config(dequantize=True) if is_quantised else None,
            output_loading_info=True,
        )
    except (OSError, ValueError, damaged) as error:
        raise InputError("transformers does not load it", file=artifact, found=_first_line(error)) from error
    for kind, names in report.items():
        if names:  # it goes on with random numbers for tensors that are missing
            raise InputError(
                f"transformers does not load all of it: {kind.replace('_', ' ')}",
                file=artifact,
                found=", ".join(sorted(map(str, names))),
            )
    return model.eval()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
