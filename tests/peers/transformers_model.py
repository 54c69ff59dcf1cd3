"""The reference: transformers' GptOssForCausalLM, in float32 with eager attention."""

import functools
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.verify.first_use import use_vector_functions_alone


def next_token_logprobs(
    checkpoint: Path, ids: Sequence[int], *, rope_truncate: bool = False
) -> NDArray[np.float64]:
    """[len(ids), vocab]: natural log-probabilities of the next token after ids[:1], ids[:2], ...

    `rope_truncate` rounds the bounds of YaRN's ramp as llama.cpp always does; without it the checkpoint's
    own configuration holds.
    """
    import torch

    model = _model(checkpoint.absolute(), "float32", rope_truncate, _state(checkpoint))
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[int(i) for i in ids]]), use_cache=False).logits[0]
        logprobs: NDArray[np.float64] = torch.log_softmax(logits.double(), dim=-1).numpy()
    return logprobs


def chosen_experts(checkpoint: Path, ids: Sequence[int]) -> NDArray[np.int64]:
    """[len(ids), layers, experts per token]: what the router of each layer chose, the best first."""
    import torch

    model = _model(checkpoint.absolute(), "float32", False, _state(checkpoint))
    chosen: list[Any] = []
    hooks = [
        layer.mlp.router.register_forward_hook(lambda router, inputs, output: chosen.append(output[2]))
        for layer in model.model.layers
    ]
    try:
        with torch.inference_mode():
            model(input_ids=torch.tensor([[int(i) for i in ids]]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    experts: NDArray[np.int64] = torch.stack(chosen, dim=1).numpy()
    return experts


def dequantised_tensors(checkpoint: Path) -> Mapping[str, Any]:
    """The state dict (torch tensors) after transformers read `checkpoint`, MXFP4 decoded, all in BF16."""
    model = load(checkpoint, "bfloat16")
    state: dict[str, Any] = model.state_dict()
    return state


def load(checkpoint: Path, dtype: str, *, rope_truncate: bool = False) -> Any:
    """The model, with MXFP4 decoded; every tensor of the checkpoint is in it."""
    use_vector_functions_alone()
    transformers: Any = importlib.import_module("transformers")
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    if rope_truncate:
        config.rope_parameters["truncate"] = True
    quantised = getattr(config, "quantization_config", None) is not None
    model, report = transformers.GptOssForCausalLM.from_pretrained(
        checkpoint,
        config=config,
        dtype=dtype,
        attn_implementation="eager",
        quantization_config=transformers.Mxfp4Config(dequantize=True) if quantised else None,
        output_loading_info=True,
    )
    if wrong := {kind: names for kind, names in report.items() if names}:  # it invents what is missing
        raise ValueError(f"transformers did not load all of {checkpoint}: {wrong}")
    return model.eval()


@functools.lru_cache(maxsize=2)
def _model(checkpoint: Path, dtype: str, rope_truncate: bool, state: object) -> Any:
    return load(checkpoint, dtype, rope_truncate=rope_truncate)


def _state(checkpoint: Path) -> tuple[tuple[str, int, int], ...]:
    """Part of the cache key, for a test may write another checkpoint to the same folder."""
    files = sorted(checkpoint.iterdir())
    return tuple((file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)
