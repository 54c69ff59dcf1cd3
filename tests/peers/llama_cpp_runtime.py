"""Next-token log-probabilities as llama.cpp computes them, through the public API of the xllamacpp wheel.

xllamacpp offers llama.cpp's server, which reports probabilities only for tokens it generates: every prefix
becomes a request for one token, and the KV cache leaves one token to compute for each. Run as a script this
file is the child process that holds the model; as such it must not import anything of the project.
"""

import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The server takes expf, which ends there, and calls what lies below the lowest float.
SMALLEST_LOGPROB = -149 * np.log(2)
# It adds up the softmax in float32, one token after another.
SUM_TOLERANCE = 1e-3


class LlamaCppError(Exception):
    """llama.cpp crashed or refused; the message carries the end of its log."""


def next_token_logprobs(model: Path, ids: Sequence[int], *, vocab: int) -> NDArray[np.float64]:
    """[len(ids), vocab]: the whole distribution after ids[:1], ids[:2], ...

    `model` may be the first of several splits. A position costs some 6 microseconds per entry of the
    vocabulary (JSON), so this is for small vocabularies.
    """
    found, values = _query(model, ids, vocab + 1)
    if found.shape[1] != vocab or (np.sort(found, axis=1) != np.arange(vocab)).any():
        raise LlamaCppError(f"{model} has {found.shape[1]} tokens or more, expected {vocab}")
    total = np.logaddexp.reduce(values, axis=1, keepdims=True)
    if (np.abs(np.expm1(total)) > SUM_TOLERANCE).any():
        raise LlamaCppError(f"{model}: probabilities add up to {np.exp(total).min()}..{np.exp(total).max()}")
    logprobs = np.empty_like(values)
    np.put_along_axis(logprobs, found, values - total, axis=1)
    return logprobs


def top_logprobs(model: Path, ids: Sequence[int], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids and log-probabilities, both [len(ids), k], of the k likeliest tokens after each prefix, best first.

    Unlike those above they carry the error of the server's float32 sum, one constant per position.
    """
    found, values = _query(model, ids, k)
    if found.shape[1] != k:
        raise LlamaCppError(f"{model} has only {found.shape[1]} tokens, asked for {k}")
    return found, values


def _query(model: Path, ids: Sequence[int], count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    with tempfile.TemporaryDirectory(prefix="llama-cpp-runtime-") as name:
        folder = Path(name)
        request = {"model": str(model.absolute()), "ids": [int(i) for i in ids], "count": count}
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        with (folder / "log.txt").open("wb") as log:
            command = [sys.executable, "-P", __file__, name]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if done.returncode:
            tail = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")[-8000:]
            raise LlamaCppError(f"llama.cpp on {model}: exit code {done.returncode}\n{tail}")
        with np.load(folder / "answer.npz") as answer:
            return answer["ids"], np.maximum(answer["logprobs"], SMALLEST_LOGPROB)


def _answer(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    prompt = request["ids"]
    server = _server(request["model"], len(prompt))
    rows = [_top(server, prompt[: n + 1], request["count"]) for n in range(len(prompt))]
    ids, logprobs = zip(*rows, strict=True)
    np.savez(folder / "answer.npz", ids=np.stack(ids), logprobs=np.stack(logprobs))


def _server(model: str, positions: int) -> Any:
    xllamacpp: Any = importlib.import_module("xllamacpp")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.swa_full = True  # else a sliding-window cache cannot be continued from an earlier prefix
    parameters.n_ctx = positions + 8
    parameters.n_parallel = 1
    parameters.n_gpu_layers = 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.cache_ram_mib = parameters.n_ctx_checkpoints = 0
    parameters.fit_params = parameters.warmup = parameters.use_jinja = False
    return xllamacpp.Server(parameters)


def _top(server: Any, prompt: list[int], count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    request = {"prompt": prompt, "cache_prompt": True, "n_predict": 1, "n_probs": count, "temperature": 0}
    # The reported probabilities are those before sampling, so this bias leaves them alone. It fixes the
    # sampled token: the server reports nothing when that token ends inside a UTF-8 character.
    answer = server.handle_completions(request | {"logit_bias": [["!", 1e9]]})
    try:
        [token] = answer["choices"][0]["logprobs"]["content"]
    except (KeyError, TypeError, ValueError):
        raise RuntimeError(f"no log-probabilities in {json.dumps(answer)[:2000]}") from None
    entries = token["top_logprobs"]
    ids = np.array([entry["id"] for entry in entries], np.int64)
    return ids, np.array([entry["logprob"] for entry in entries], np.float64)


if __name__ == "__main__":
    _answer(Path(sys.argv[1]))
