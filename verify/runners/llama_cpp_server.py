"""llama.cpp through xllamacpp, whose wheel installs in seconds and whose public API is llama.cpp's server.

The server reports probabilities only of tokens that it generates, so every prefix of a prompt becomes a request for
one token; the KV cache leaves one token to compute for each. Besides that a request costs some 15 microseconds per
token that is reported (they travel as JSON): 60 milliseconds for the `LIKELIEST` of the real vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.checkpoint import ModelConfig
from gptoss_convert.errors import InputError
from gptoss_convert.verify.runners.protocol import Scores, Settings
from gptoss_convert.verify.runners.threads import thread_count

DISTRIBUTION = "xllamacpp"

LARGEST_WHOLE_VOCABULARY = 8192
"""Tokens of the largest vocabulary of which all are asked for."""
LIKELIEST = 4096
"""Tokens asked for of a larger one."""
SMALLEST_LOGPROB = -149 * math.log(2)
"""The server calculates exp in float32, which ends there; what lies below it reports as the lowest float."""

_CONTEXT = 4096
_ROOM = 8
"""Positions that the server wants beyond those of the prompt."""
_BATCH = 64
_ANY_TOKEN = "!"
"""Whole in UTF-8."""


@contextmanager
def open_session(artifact: Path, config: ModelConfig, settings: Settings) -> Iterator[_Session]:
    """Load a GGUF file.

    Raises:
        InputError: llama.cpp refuses it.
    """
    yield _Session(artifact, config, thread_count(settings))


class _Session:
    def __init__(self, artifact: Path, config: ModelConfig, threads: int) -> None:
        self._artifact = artifact
        self._vocab = config.vocab_size
        self._threads = threads
        self._context = _CONTEXT
        self._server = self._load()

    def run(self, prompts: Sequence[Sequence[int]]) -> Iterator[Scores]:
        longest = max(map(len, prompts), default=0)
        if longest > self._context:  # a server keeps the context that it was started with
            self._context = longest
            self._server = None
            self._server = self._load()
        for prompt, ids in enumerate(prompts):
            for position in range(len(ids)):
                yield self._scores(prompt, list(ids[: position + 1]))

    def _scores(self, prompt: int, prefix: list[int]) -> Scores:
        is_whole = self._vocab <= LARGEST_WHOLE_VOCABULARY
        # One more than there are, so that a model with more tokens is found out.
        tokens, logprobs = self._next_token(prefix, self._vocab + 1 if is_whole else LIKELIEST)
        start = len(prefix) - 1
        if not is_whole:
            return Scores(
                prompt=prompt, start=start, logprobs=logprobs[None], tokens=tokens[None], decoded=start > 0
            )
        if not np.array_equal(np.sort(tokens), np.arange(self._vocab)):
            raise InputError(
                "llama.cpp has other tokens", file=self._artifact, found=len(tokens), expected=self._vocab
            )
        by_token = np.empty((1, self._vocab), np.float32)
        by_token[0, tokens] = logprobs
        return Scores(prompt=prompt, start=start, logprobs=by_token, decoded=start > 0)

    def _next_token(self, prefix: list[int], count: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return the likeliest tokens and their log-probabilities, both [count], best first."""
        request = {"prompt": prefix, "cache_prompt": True, "n_predict": 1, "n_probs": count, "temperature": 0}
        # Probabilities are those before sampling, so that this bias leaves them alone. It fixes the sampled token:
        # the server reports nothing when that token ends inside a UTF-8 character.
        answer = self._server.handle_completions(request | {"logit_bias": [[_ANY_TOKEN, 1e9]]})
        try:
            [token] = answer["choices"][0]["logprobs"]["content"]
        except (KeyError, TypeError, ValueError):
            raise InputError(
                "llama.cpp gives no log-probabilities", file=self._artifact, found=json.dumps(answer)
            ) from None
        entries: list[Mapping[str, Any]] = token["top_logprobs"]
        tokens = np.array([entry["id"] for entry in entries], np.int32)
        logprobs = np.array([entry["logprob"] for entry in entries])
        return tokens, np.maximum(logprobs, SMALLEST_LOGPROB).astype(np.float32)

    def _load(self) -> Any:
        xllamacpp: Any = import_module("xllamacpp")
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(self._artifact)
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.swa_full = True  # else a sliding-window cache cannot be continued from an earlier prefix
        parameters.n_ctx = self._context + _ROOM
        parameters.n_batch = parameters.n_ubatch = _BATCH
        parameters.n_parallel = 1
        parameters.n_gpu_layers = 0
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = self._threads
        # Threads that spin while they wait take time from each other wherever something else runs, too.
        parameters.cpuparams.poll = parameters.cpuparams_batch.poll = 0
        parameters.cache_ram_mib = parameters.n_ctx_checkpoints = 0
        parameters.fit_params = parameters.warmup = parameters.use_jinja = False
        try:
            return xllamacpp.Server(parameters)
        except (RuntimeError, ValueError) as error:
            raise InputError("llama.cpp does not load it", file=self._artifact, found=error) from error
