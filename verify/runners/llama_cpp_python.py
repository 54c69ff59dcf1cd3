"""llama.cpp through llama-cpp-python, which compiles llama.cpp when it is installed.

Its low-level functions give the logits of all positions of a batch, and the router logits through the callback of
the scheduler (`cb_eval` in llama.h).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.checkpoint import ModelConfig
from gptoss_convert.errors import InputError
from gptoss_convert.verify.runners.logits import log_softmax, route
from gptoss_convert.verify.runners.protocol import Scores, Settings
from gptoss_convert.verify.runners.threads import thread_count

DISTRIBUTION = "llama-cpp-python"

BATCH = 64
"""Positions that are computed at once; the logits of each take 804 kB with the real vocabulary."""

_ROUTER_LOGITS = "ffn_moe_probs-"
"""Name that llama.cpp gives the router logits with bias, before the number of the layer.

In the graph of gpt-oss the softmax comes after the choice of experts, so that these are no probabilities yet
(`build_moe_ffn` in llama-graph.cpp, gating function SOFTMAX_WEIGHT).
"""


@contextmanager
def open_session(artifact: Path, config: ModelConfig, settings: Settings) -> Iterator[_Session]:
    """Load a GGUF file.

    Raises:
        InputError: llama.cpp refuses it.
    """
    llama: Any = import_module("llama_cpp")
    llama.llama_backend_init()
    parameters = llama.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(str(artifact).encode(), parameters)
    if not model:
        raise InputError("llama.cpp does not load it", file=artifact, hint="see the log for its reason")
    try:
        found = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        if found != config.vocab_size:
            raise InputError("llama.cpp has other tokens", file=artifact, found=found, expected=config.vocab_size)
        yield _Session(llama=llama, artifact=artifact, config=config, threads=thread_count(settings), model=model)
    finally:
        llama.llama_model_free(model)


@dataclass(frozen=True, kw_only=True)
class _Session:
    llama: Any
    artifact: Path
    config: ModelConfig
    threads: int
    model: Any

    def run(self, prompts: Sequence[Sequence[int]]) -> Iterator[Scores]:
        routers = _RouterLogits(self.config)
        callback = self.llama.ggml_backend_sched_eval_callback(routers.collect)
        with self._context(max(map(len, prompts), default=1), callback) as context:
            for prompt, ids in enumerate(prompts):
                self.llama.llama_memory_clear(self.llama.llama_get_memory(context), True)
                for start in range(0, len(ids), BATCH):
                    logits = self._decode(context, ids[start : start + BATCH], start)
                    routing, margins = route(routers.take(), self.config.num_experts_per_tok)
                    yield Scores(
                        prompt=prompt,
                        start=start,
                        logprobs=log_softmax(logits),
                        routing=routing,
                        router_margins=margins,
                    )

    @contextmanager
    def _context(self, positions: int, callback: Any) -> Iterator[Any]:
        parameters = self.llama.llama_context_default_params()
        parameters.n_ctx = positions
        parameters.n_batch = parameters.n_ubatch = BATCH
        parameters.n_threads = parameters.n_threads_batch = self.threads
        parameters.type_k = parameters.type_v = self.llama.GGML_TYPE_F32
        parameters.flash_attn_type = self.llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.offload_kqv = parameters.op_offload = False
        parameters.cb_eval = callback
        context = self.llama.llama_init_from_model(self.model, parameters)
        if not context:
            raise InputError("llama.cpp does not run it", file=self.artifact, hint="see the log for its reason")
        try:
            yield context
        finally:
            self.llama.llama_free(context)

    def _decode(self, context: Any, ids: Sequence[int], start: int) -> NDArray[np.float32]:
        """Return the logits of successive positions, [positions, vocab]."""
        batch = self.llama.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for index, token in enumerate(ids):
                batch.token[index] = token
                batch.pos[index] = start + index
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = 0
                batch.logits[index] = True
            code = self.llama.llama_decode(context, batch)
        finally:
            self.llama.llama_batch_free(batch)
        if code:
            raise InputError("llama.cpp does not run it", file=self.artifact, found=f"llama_decode returned {code}")
        logits = self.llama.llama_get_logits(context)
        return np.ctypeslib.as_array(logits, (len(ids), self.config.vocab_size)).copy()


class _RouterLogits:
    """Takes the router logits of all layers from the graph while a batch is computed."""

    def __init__(self, config: ModelConfig) -> None:
        self._layers = config.num_hidden_layers
        self._experts = config.num_local_experts
        self._found: dict[int, NDArray[np.float32]] = {}
        package = Path(str(import_module("llama_cpp").__file__)).parent
        extensions: Any = import_module("llama_cpp._ctypes_extensions")
        self._ggml: Any = extensions.load_shared_library("ggml-base", package / "lib")
        self._ggml.ggml_get_name.restype = ctypes.c_char_p
        self._ggml.ggml_nbytes.restype = ctypes.c_size_t

    def collect(self, tensor: int, is_question: bool, _user_data: object) -> bool:
        """Say whether a tensor is wanted, and take it when it is there."""
        pointer = ctypes.c_void_p(tensor)
        name = self._ggml.ggml_get_name(pointer).decode()
        if not name.startswith(_ROUTER_LOGITS):
            return not is_question  # whether it is wanted; else, whether to go on
        if not is_question:
            values = np.empty(self._ggml.ggml_nbytes(pointer) // 4, np.float32)
            self._ggml.ggml_backend_tensor_get(
                pointer, ctypes.c_void_p(values.ctypes.data), ctypes.c_size_t(0), ctypes.c_size_t(values.nbytes)
            )
            self._found[int(name.removeprefix(_ROUTER_LOGITS))] = values.reshape(-1, self._experts)
        return True

    def take(self) -> NDArray[np.float32]:
        """Return the router logits of the last batch, [positions, layers, experts]."""
        found, self._found = self._found, {}
        return np.stack([found[layer] for layer in range(self._layers)], axis=1)
