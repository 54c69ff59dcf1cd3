"""Runs a model as a program that answers would: load, compute a prompt, compute an answer.

Runs in the child process. Runtimes are imported by name, and nothing else is, so that the process takes what the
runtime takes.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

_EVERY_LAYER = 999
"""More layers than any model has, and the unembedding."""


class Session(Protocol):
    """A model that is loaded."""

    def compute(self, tokens: list[int], start: int) -> None:
        """Compute the next tokens of a sequence, of which `start` have been computed."""


class LlamaCpp:
    """llama.cpp's server, through xllamacpp, with its own settings but for the slots' caches."""

    MODULES = ("xllamacpp",)

    def __init__(self, request: dict[str, Any]) -> None:
        xllamacpp: Any = import_module("xllamacpp")
        parameters = xllamacpp.CommonParams()
        parameters.model.path = request["artifact"]
        kv_type = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{request['kv_type'].upper()}")
        parameters.cache_type_k = parameters.cache_type_v = kv_type
        parameters.n_ctx = request["context"]
        parameters.n_batch = parameters.n_ubatch = request["batch"]
        parameters.n_parallel = 1
        parameters.n_gpu_layers = _EVERY_LAYER if request["device"] == "gpu" else 0
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = request["threads"]
        parameters.cache_ram_mib = parameters.n_ctx_checkpoints = 0
        parameters.fit_params = parameters.warmup = parameters.use_jinja = False
        self._server = xllamacpp.Server(parameters)
        self._tokens: list[int] = []

    def compute(self, tokens: list[int], start: int) -> None:
        """Ask for one token after all that came before: the server finds those in its cache."""
        self._tokens = [*self._tokens[:start], *tokens]
        # The last token of a request is computed anew, and one is generated.
        answer = self._server.handle_completions(
            {"prompt": self._tokens, "n_predict": 1, "temperature": 0, "cache_prompt": True}
        )
        if "error" in answer:
            raise RuntimeError(json.dumps(answer["error"]))


class Onnxruntime:
    """A session without arena: what is freed goes back to the system."""

    MODULES = ("numpy", "onnxruntime")

    def __init__(self, request: dict[str, Any]) -> None:
        onnxruntime: Any = import_module("onnxruntime")
        self._numpy: Any = import_module("numpy")
        graph = request["graph"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = request["threads"]
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        options.add_session_config_entry("session.disable_prepacking", graph["disable_prepacking"])
        path = str(Path(request["artifact"]) / graph["file"])
        self._session = onnxruntime.InferenceSession(path, options, providers=[request["provider"]])
        if request["provider"] not in self._session.get_providers():  # it goes on without
            raise RuntimeError(f"{request['provider']} does not start")
        self._graph = graph
        self._types = {node.name: node.type for node in self._session.get_inputs()}
        self._outputs = [node.name for node in self._session.get_outputs()]
        self._batch = request["batch"]
        self._past = {
            entry["past"]: self._numpy.zeros(
                (1, graph["heads"], entry["cells"], graph["head_size"]), self._type(entry["past"])
            )
            for entry in graph["cache"]
        }

    def compute(self, tokens: list[int], start: int) -> None:
        """Compute a batch at a time; the cache of a step is the input of the next."""
        for index in range(0, len(tokens), self._batch):
            self._step(tokens[index : index + self._batch], start + index)

    def _step(self, tokens: list[int], start: int) -> None:
        numpy, names = self._numpy, self._graph
        end = start + len(tokens)
        values = {
            names["input_ids"]: numpy.array([tokens]),
            names["attention_mask"]: numpy.ones((1, end)),
            names["position_ids"]: numpy.arange(start, end)[None],
        }
        feeds = {name: value.astype(self._type(name)) for name, value in values.items() if name in self._types}
        found = dict(zip(self._outputs, self._session.run(None, {**feeds, **self._past}), strict=True))
        self._past = {entry["past"]: found[entry["present"]] for entry in names["cache"]}

    def _type(self, name: str) -> Any:
        kinds = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int32)": "int32"}
        return kinds.get(self._types[name], "int64")


class OnnxruntimeGenai:
    """onnxruntime-genai with a cache for the whole context."""

    MODULES = ("numpy", "onnxruntime_genai")

    def __init__(self, request: dict[str, Any]) -> None:
        genai: Any = import_module("onnxruntime_genai")
        self._numpy: Any = import_module("numpy")
        configuration = genai.Config(request["artifact"])
        options = {"intra_op_num_threads": request["threads"]}
        configuration.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        if request["device"] == "cpu":
            configuration.clear_providers()
        self._model = genai.Model(configuration)
        parameters = genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=request["context"])
        self._generator = genai.Generator(self._model, parameters)
        self._batch = request["batch"]

    def compute(self, tokens: list[int], start: int) -> None:
        """Append a batch at a time."""
        for index in range(0, len(tokens), self._batch):
            self._generator.append_tokens(self._numpy.array(tokens[index : index + self._batch], "int32"))


class Transformers:
    """GptOssForCausalLM in bfloat16 with eager attention; MXFP4 is decoded."""

    MODULES = ("torch", "transformers")

    def __init__(self, request: dict[str, Any]) -> None:
        self._torch: Any = import_module("torch")
        transformers: Any = import_module("transformers")
        self._torch.set_num_threads(request["threads"])
        config = transformers.AutoConfig.from_pretrained(request["artifact"])
        on_cpu = request["device"] == "cpu"
        quantised = getattr(config, "quantization_config", None) is not None
        self._model = transformers.GptOssForCausalLM.from_pretrained(
            request["artifact"],
            dtype=self._torch.bfloat16,
            attn_implementation="eager",
            quantization_config=transformers.Mxfp4Config(dequantize=on_cpu) if quantised else None,
            device_map=None if on_cpu else "cuda",
        ).eval()
        self._batch = request["batch"]
        self._cache: Any = None

    def compute(self, tokens: list[int], start: int) -> None:
        """Compute a batch at a time, and the logits of its last token."""
        with self._torch.inference_mode():
            for index in range(0, len(tokens), self._batch):
                ids = self._torch.tensor([tokens[index : index + self._batch]], device=self._model.device)
                output = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
                self._cache = output.past_key_values


SESSIONS: dict[str, Any] = {
    "llama.cpp": LlamaCpp,
    "onnxruntime": Onnxruntime,
    "onnxruntime-genai": OnnxruntimeGenai,
    "transformers": Transformers,
}
"""By name of the runtime: `MODULES` to import before, and called with a request it loads the model."""
