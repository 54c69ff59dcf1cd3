"""OpenAI's own implementation of gpt-oss in torch, taken from the wheel of gpt-oss on PyPI, on the CPU.

The wheel demands Python 3.12 and packages for its tools and servers, so it is not installed. Its folder
`gpt_oss/torch` needs torch and safetensors alone and is sound Python 3.11; it is unpacked and imported, unchanged.

Their model keeps every parameter but the norms in BF16 and computes in the dtype of its parameters. `float()` of
the loaded model makes it compute in float32 throughout, and changes no parameter: float32 holds BF16 exactly.
"""

import functools
import importlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.verify.first_use import use_vector_functions_alone
from tests.peers.distributions import Distribution

VERSION = "0.0.9"
WHEEL = Distribution(
    project="gpt-oss",
    version=VERSION,
    filename=f"gpt_oss-{VERSION}-py3-none-any.whl",
    sha256="4bbd174a6af2060179ab292505ec8e0f2505188628a6d102bd72690d06387f9c",
    pip_options=("--only-binary", ":all:", "--python-version", "3.12"),
    folder="gpt-oss",
    wanted=("gpt_oss/__init__.py", "gpt_oss/torch/", f"gpt_oss-{VERSION}.dist-info/licenses/LICENSE"),
)


def next_token_logprobs(
    original_folder: Path, ids: Sequence[int], *, dtype: Literal["float32", "bfloat16"] = "float32"
) -> NDArray[np.float64]:
    """[len(ids), vocab]: natural log-probabilities of the next token after ids[:1], ids[:2], ...

    `original_folder` is in OpenAI's layout. "bfloat16" is how they run it.
    """
    import torch

    use_vector_functions_alone()
    model = _module("model").Transformer.from_checkpoint(str(original_folder), device="cpu")
    if dtype == "float32":
        model = model.float()
    with torch.inference_mode():
        logits = model(torch.tensor([int(i) for i in ids]))
        logprobs: NDArray[np.float64] = torch.log_softmax(logits.double(), dim=-1).numpy()
    return logprobs


def dequantised_tensors(original_folder: Path) -> Mapping[str, Any]:
    """What their `Checkpoint` returns for every parameter of their model (torch tensors), MXFP4 decoded to BF16."""
    import torch

    fields = json.loads((original_folder / "config.json").read_text(encoding="utf-8"))
    model, weights = _module("model"), _module("weights")
    empty = model.Transformer(model.ModelConfig(**fields), device=torch.device("meta"))
    checkpoint = weights.Checkpoint(str(original_folder), torch.device("cpu"))
    return {name: checkpoint.get(name) for name, _ in empty.named_parameters()}


@functools.cache
def _module(name: str) -> Any:
    with _importable(WHEEL.unpacked()):
        return importlib.import_module(f"gpt_oss.torch.{name}")


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
