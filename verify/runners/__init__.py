"""Runtimes that compute log-probabilities: one module each.

Adding a runtime means adding one module here with `RUNNER`, and one entry to `RUNTIMES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec

from gptoss_convert.checkpoint import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Departure:
    """A way in which a runtime is known to compute another model than the one in the file."""

    name: str
    explanation: str
    """One sentence for people."""
    apply: Callable[[ModelConfig], ModelConfig]
    """Returns the configuration of the model that the runtime computes."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A program that can run models, whether it is installed or not."""

    name: str
    module: str
    """Offers `RUNNER`; imported in the process that runs the model, and nowhere else."""
    formats: tuple[str, ...]
    """Names in `gptoss_convert.formats.FORMATS` of the models that it loads."""
    needs: tuple[tuple[str, ...], ...]
    """Modules that have to be installed; of each group, one."""
    install: str
    """Command that installs them."""
    departures: tuple[Departure, ...] = ()
    has_providers: bool = False
    """It computes by execution providers, of which one can be chosen."""
    decodes: bool = False
    """It can be told where to go on token by token; its KV cache is part of the artifact, and has to be judged."""

    @property
    def is_installed(self) -> bool:
        """Whether all that it needs can be imported."""
        return all(any(find_spec(module) is not None for module in group) for group in self.needs)

    def computed_config(self, config: ModelConfig) -> ModelConfig:
        """Return the configuration of the model that this runtime computes for a file with `config`."""
        for departure in self.departures:
            config = departure.apply(config)
        return config


def _with_whole_yarn_range(config: ModelConfig) -> ModelConfig:
    return replace(config, rope=replace(config.rope, truncate=True))


WHOLE_YARN_RANGE = Departure(
    name="rounded YaRN range",
    explanation="llama.cpp rounds the range of rotary dimensions that YaRN scales to whole numbers "
    "(ggml_rope_yarn_corr_dims), which gpt-oss does not; no GGUF file can say otherwise.",
    apply=_with_whole_yarn_range,
)

RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        Runtime(
            name="reference",
            module="gptoss_convert.verify.runners.reference",
            formats=("huggingface", "openai", "gguf", "onnx"),
            needs=(("torch",),),
            install="pip install torch",
        ),
        Runtime(
            name="transformers",
            module="gptoss_convert.verify.runners.transformers",
            formats=("huggingface",),
            needs=(("torch",), ("transformers",), ("accelerate",)),
            install="pip install torch transformers accelerate",
        ),
        Runtime(
            name="llama.cpp",
            module="gptoss_convert.verify.runners.llama_cpp",
            formats=("gguf",),
            needs=(("llama_cpp", "xllamacpp"),),
            install="pip install xllamacpp",
            departures=(WHOLE_YARN_RANGE,),
        ),
        Runtime(
            name="onnxruntime",
            module="gptoss_convert.verify.runners.onnxruntime",
            formats=("onnx",),
            needs=(("onnxruntime",),),
            install="pip install onnxruntime",
            has_providers=True,
            decodes=True,
        ),
        Runtime(
            name="onnxruntime-genai",
            module="gptoss_convert.verify.runners.onnxruntime_genai",
            formats=("onnx",),
            needs=(("onnxruntime_genai",),),
            install="pip install onnxruntime-genai",
            has_providers=True,
            decodes=True,
        ),
    )
}
"""By name."""


def departing_runtimes(config: ModelConfig) -> tuple[str, ...]:
    """Return the names of the runtimes that compute another model than a file with `config` says."""
    return tuple(name for name, runtime in RUNTIMES.items() if runtime.computed_config(config) != config)
