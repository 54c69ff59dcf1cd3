"""onnxruntime-genai, which runs graphs as chat programs do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.verify.runners.genai_config import GenaiConfig, bytes_of_folder, read_genai_config
from gptoss_convert.verify.runners.logits import log_softmax
from gptoss_convert.verify.runners.pieces import pieces
from gptoss_convert.verify.runners.protocol import Scores, Settings
from gptoss_convert.verify.runners.providers import PROVIDERS, provider_named, require_kernels_of_folder

MOST_POSITIONS = 64
"""Positions that are computed at once; the logits of each take 804 kB with the real vocabulary."""

_GENAI_NAMES = {full: short for short, full in PROVIDERS.items()}


class OnnxruntimeGenaiRunner:
    """Loads folders with a graph and the genai_config.json that describes it.

    Unless another one is chosen, the execution provider is that of genai_config.json.
    """

    def versions(self) -> Mapping[str, str]:
        """Return the versions of the programs that compute, by name."""
        return {
            "onnxruntime-genai": import_module("onnxruntime_genai").__version__,
            "onnxruntime": import_module("onnxruntime").__version__,
        }

    def memory_needed(self, artifact: Path, settings: Settings) -> int:
        """Return the bytes of the files, which are mapped into memory where the system can."""
        return bytes_of_folder(artifact)

    @contextmanager
    def open(self, artifact: Path, settings: Settings) -> Iterator[_Session]:
        """Load the graph.

        Raises:
            ImportError: the installed package lacks the execution provider that the folder is made for, or the
                chosen one has no kernel for the graph.
            InputError: the graph or genai_config.json is damaged, or onnxruntime refuses it.
        """
        config = read_genai_config(artifact)
        genai: Any = import_module("onnxruntime_genai")
        if settings.provider is None:
            _require_providers(genai, config)
        try:
            model = genai.Model(_configuration(genai, artifact, settings))
        except (RuntimeError, ValueError) as error:
            if settings.provider is not None:
                made_for = config.model.decoder.provider
                require_kernels_of_folder(error, provider_named(settings.provider), made_for)
            raise InputError("onnxruntime-genai does not load it", file=artifact, found=error) from error
        yield _Session(artifact=artifact, config=config, settings=settings, genai=genai, model=model)


RUNNER = OnnxruntimeGenaiRunner()


@dataclass(frozen=True, kw_only=True)
class _Session:
    artifact: Path
    config: GenaiConfig
    settings: Settings
    genai: Any
    model: Any

    @property
    def provider(self) -> str:
        """onnxruntime-genai's name of the device that the cache lies on."""
        return str(self.model.device_type)

    def run(self, prompts: Sequence[Sequence[int]]) -> Iterator[Scores]:
        for prompt, ids in enumerate(prompts):
            try:
                yield from self._scores(prompt, ids)
            except RuntimeError as error:
                raise InputError("onnxruntime-genai does not run it", file=self.artifact, found=error) from error

    def _scores(self, prompt: int, ids: Sequence[int]) -> Iterator[Scores]:
        parameters = self.genai.GeneratorParams(self.model)
        decoder = self.config.model.decoder
        room = max(decoder.cache_capacity(layer) for layer in range(decoder.num_hidden_layers))
        parameters.set_search_options(max_length=max(len(ids) + 1, room))  # it makes no cache larger than this
        generator = self.genai.Generator(self.model, parameters)
        most = self.config.positions_at_once(MOST_POSITIONS)
        for piece in pieces(self.settings, prompt, len(ids), most):
            part = np.array(ids[piece.start : piece.stop], np.int32)
            generator.append_tokens(part)
            logits = np.asarray(generator.get_output(decoder.outputs.logits))
            expected = (1, len(part), self.config.model.vocab_size)
            if logits.shape != expected:
                raise UnsupportedError(
                    "the graph gives logits of another shape",
                    file=self.artifact,
                    found=logits.shape,
                    expected=expected,
                )
            yield Scores(prompt=prompt, start=piece.start, logprobs=log_softmax(logits[0]), decoded=piece.decoded)


def _require_providers(genai: Any, config: GenaiConfig) -> None:
    """Raise `ImportError` if the folder asks for an execution provider that the installed package has not."""
    for options in config.model.decoder.session_options.provider_options:
        for name in options:
            available = getattr(genai, f"is_{name.lower()}_available", None)
            if available is not None and not available():
                raise ImportError(
                    f"the installed onnxruntime-genai has no provider {name}, for which the folder is made; "
                    "install its package for it, or choose another provider with --provider"
                )


def _configuration(genai: Any, artifact: Path, settings: Settings) -> Any:
    configuration = genai.Config(str(artifact))
    if settings.threads:
        options = {"intra_op_num_threads": settings.threads}
        configuration.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    if settings.provider is not None:
        provider = provider_named(settings.provider)
        configuration.clear_providers()
        if provider != PROVIDERS["cpu"]:  # which is what is left without any
            configuration.append_provider(_GENAI_NAMES.get(provider, provider.removesuffix("ExecutionProvider")))
    return configuration
