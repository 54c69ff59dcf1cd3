"""onnxruntime, with any of its execution providers."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.verify.runners.genai_config import (
    GENAI_CONFIG,
    Decoder,
    GenaiConfig,
    bytes_of_folder,
    read_genai_config,
)
from gptoss_convert.verify.runners.logits import log_softmax
from gptoss_convert.verify.runners.pieces import pieces
from gptoss_convert.verify.runners.protocol import Scores, Settings
from gptoss_convert.verify.runners.providers import provider_named, require_kernels_of_folder

BEST_FIRST = (
    "CUDAExecutionProvider",
    "DmlExecutionProvider",
    "WebGpuExecutionProvider",
    "CoreMLExecutionProvider",
    "CPUExecutionProvider",
)
"""Execution providers, of which the first that is installed is taken where that of the folder is not, and no
other one is chosen."""
MOST_POSITIONS = 64
"""Positions that are computed at once; the logits of each take 804 kB with the real vocabulary."""

_TYPES: Mapping[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}
"""numpy's types by onnxruntime's names, without bfloat16, which numpy has not."""


class OnnxruntimeRunner:
    """Loads folders with a graph and the genai_config.json that describes it."""

    def versions(self) -> Mapping[str, str]:
        """Return the versions of the programs that compute, by name."""
        return {"onnxruntime": import_module("onnxruntime").__version__}

    def memory_needed(self, artifact: Path, settings: Settings) -> int:
        """Return the bytes of the files, which are mapped into memory where the system can."""
        return bytes_of_folder(artifact)

    @contextmanager
    def open(self, artifact: Path, settings: Settings) -> Iterator[_Session]:
        """Load the graph. The log tells the execution providers that it is run with.

        Raises:
            ImportError: the graph is made for another execution provider than the one it would be run with, which
                has no kernel for it.
            InputError: the graph or genai_config.json is damaged, or onnxruntime refuses it.
            UnsupportedError: the execution provider is not there, or the graph asks for something unknown.
        """
        config = read_genai_config(artifact)
        session = _load(artifact / config.model.decoder.filename, config, settings)
        print("execution providers:", *session.get_providers(), file=sys.stderr)
        types = {node.name: _numpy_type(node, artifact) for node in session.get_inputs()}
        outputs = [node.name for node in session.get_outputs()]
        _require_known_names(artifact, config.model.decoder, types.keys(), outputs)
        yield _Session(
            artifact=artifact, config=config, settings=settings, session=session, types=types, outputs=outputs
        )


RUNNER = OnnxruntimeRunner()


@dataclass(frozen=True, kw_only=True)
class _Session:
    artifact: Path
    config: GenaiConfig
    settings: Settings
    session: Any
    types: Mapping[str, Any]
    """numpy's types of the inputs, by name."""
    outputs: Sequence[str]
    """Names of the outputs."""

    @property
    def provider(self) -> str:
        """onnxruntime's name of the provider that nodes are given to first."""
        return str(self.session.get_providers()[0])

    def run(self, prompts: Sequence[Sequence[int]]) -> Iterator[Scores]:
        most = self.config.positions_at_once(MOST_POSITIONS)
        for prompt, ids in enumerate(prompts):
            past = self._empty_past()
            for piece in pieces(self.settings, prompt, len(ids), most):
                logits, past = self._compute(ids[piece.start : piece.stop], piece.start, past)
                yield Scores(prompt=prompt, start=piece.start, logprobs=log_softmax(logits), decoded=piece.decoded)

    def _empty_past(self) -> dict[str, NDArray[Any]]:
        """Return the cache before the first position: by name, [1, heads, positions, head size]."""
        decoder = self.config.model.decoder
        return {
            entry.past: np.zeros(
                (1, decoder.num_key_value_heads, decoder.cache_capacity(entry.layer), decoder.head_size),
                self.types[entry.past],
            )
            for entry in _cache(decoder)
        }

    def _compute(
        self, ids: Sequence[int], start: int, past: Mapping[str, NDArray[Any]]
    ) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        """Return the logits of successive positions, [positions, vocab], and the cache after them."""
        decoder = self.config.model.decoder
        places = {
            decoder.inputs.input_ids: np.array([ids]),
            decoder.inputs.attention_mask: np.ones((1, start + len(ids))),
            decoder.inputs.position_ids: np.arange(start, start + len(ids))[None],
        }
        feeds = {name: array.astype(self.types[name]) for name, array in places.items() if name in self.types}
        try:
            values = self.session.run(None, {**feeds, **past})
        except _errors() as error:
            raise InputError("onnxruntime does not run it", file=self.artifact, found=error) from error
        found = dict(zip(self.outputs, values, strict=True))
        logits = found[decoder.outputs.logits]
        expected = (1, len(ids), self.config.model.vocab_size)
        if logits.shape != expected:
            raise UnsupportedError(
                "the graph gives logits of another shape", file=self.artifact, found=logits.shape, expected=expected
            )
        return logits[0], {entry.past: found[entry.present] for entry in _cache(decoder)}


@dataclass(frozen=True)
class _CacheEntry:
    past: str
    """Name of the input."""
    present: str
    """Name of the output that is the next input."""
    layer: int


def _cache(decoder: Decoder) -> list[_CacheEntry]:
    pairs = (
        (decoder.inputs.past_key_names, decoder.outputs.present_key_names),
        (decoder.inputs.past_value_names, decoder.outputs.present_value_names),
    )
    return [
        _CacheEntry(past.replace("%d", str(layer)), present.replace("%d", str(layer)), layer)
        for layer in range(decoder.num_hidden_layers)
        for past, present in pairs
    ]


def _require_known_names(
    artifact: Path, decoder: Decoder, inputs: Collection[str], outputs: Collection[str]
) -> None:
    names = decoder.inputs
    cache = _cache(decoder)
    optional = {names.attention_mask, names.position_ids}
    needed = {names.input_ids, *(entry.past for entry in cache)}
    given = {decoder.outputs.logits, *(entry.present for entry in cache)}
    wrong = sorted((needed - set(inputs)) | (set(inputs) - needed - optional) | (given - set(outputs)))
    if wrong:
        raise UnsupportedError(
            f"the graph's inputs and outputs are not those of {GENAI_CONFIG}", file=artifact, found=", ".join(wrong)
        )


def _load(graph: Path, config: GenaiConfig, settings: Settings) -> Any:
    onnxruntime: Any = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    prepacking = config.model.decoder.session_options.disable_prepacking
    options.add_session_config_entry("session.disable_prepacking", prepacking)
    if settings.threads:
        options.intra_op_num_threads = settings.threads
    provider = _provider(onnxruntime.get_available_providers(), settings.provider, config.model.decoder.provider)
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=[provider])
    except _errors() as error:
        require_kernels_of_folder(error, provider, config.model.decoder.provider)
        raise InputError("onnxruntime does not load it", file=graph, found=error) from error
    if provider not in session.get_providers():  # it goes on without
        raise UnsupportedError(
            f"{provider} does not start", file=graph, hint="see the log for its reason, or choose another one"
        )
    return session


def _provider(available: Sequence[str], chosen: str | None, made_for: str) -> str:
    """Return the execution provider to run with: the chosen one, the one that the folder is made for, or the best.

    Raises:
        UnsupportedError: the chosen one is not installed.
    """
    if chosen is None:
        return next(provider for provider in (made_for, *BEST_FIRST) if provider in available)
    provider = provider_named(chosen)
    if provider not in available:
        raise UnsupportedError(
            "no such execution provider", found=chosen, expected=" or ".join(available) or "none is installed"
        )
    return provider


def _numpy_type(node: Any, artifact: Path) -> Any:
    if node.type not in _TYPES:
        raise UnsupportedError(
            f"input {node.name} has a type that cannot be fed",
            file=artifact,
            found=node.type,
            expected=" or ".join(_TYPES),
        )
    return _TYPES[node.type]


def _errors() -> tuple[type[Exception], ...]:
    """Return what onnxruntime raises: classes that have nothing but Exception in common."""
    state = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    return tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
