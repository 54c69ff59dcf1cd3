"""Documents of verifications, made up: every section filled, with any text in the place of names."""

import copy
import json
from pathlib import Path
from typing import Any

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "verification.schema.json").read_text(encoding="utf-8"))

MARKUP = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> "
    "<svg onload=alert(1)>|`code` ``` **bold** [link](http://127.0.0.1:9/x) http://127.0.0.1:9/y @somebody #1 "
    "]]> --> &lt;b&gt; {{7*7}} {% raw %} \\ \x00\x1b[31m\u202e\ud800\r\n# heading </title></style>"
)
"""A name that tries to be markup in every format."""


def summary(mean: float) -> dict[str, Any]:
    """A summary of 400 positions."""
    share = {"mean": 0.97, "low": 0.95, "high": 0.99}
    return {
        "positions": 400, "prompts": 8, "nan": 0, "infinite": 0, "coverage": 1.0, "bounded": False,
        "divergence": {
            "mean": {"mean": mean, "low": mean / 2, "high": mean * 2}, "median": mean / 10, "p90": mean * 2,
            "p99": mean * 5, "p99_9": mean * 20, "largest": mean * 30, "largest_prompt": 1, "largest_place": 7,
        },
        "top": {"same": share, "near_ties": 3, "same_outside_near_ties": share, "overlap": 0.98},
        "next_tokens": {
            "positions": 390, "mean_change": 0.0, "rms_change": 0.01, "reference_perplexity": 9.0,
            "test_perplexity": 9.1, "log_ratio": 0.01, "log_ratio_error": 0.001, "lost": 1, "won": 2,
        },
        "centred": None,
    }  # fmt: skip


def comparison(part: str, mean: float, outcome: str = "pass", name: str = "x") -> dict[str, Any]:
    """A comparison with routing in four layers."""
    gate = {"figure": "mean KL", "value": mean, "limit": 0.1, "outcome": outcome, "low": mean / 2, "high": mean * 2}
    levels = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)
    return {
        "part": part, "reference": name, "test": name, "summary": summary(mean),
        "spread": {
            "below": 2,
            "histogram": [
                {"low": 10 ** (step / 4), "high": 10 ** ((step + 1) / 4), "count": 40 - abs(step + 14) * 3}
                for step in range(-24, -4)
            ],
            "percentiles": [{"level": level, "value": mean * 10 ** (3 * level - 2)} for level in levels],
            "by_position": [
                {"first": first, "last": 2 * first - 1, "positions": 100, "same_top1": 0.99 - first / 1000,
                 "mean_kl": mean, "median_kl": mean / 10}
                for first in (4, 8, 16, 32)
            ],
        },
        "routing": {
            "criterion": "experts", "threshold": None, "steady_share": 0.9, "layer_shares": [1.0, 0.99, 0.98, 0.96],
            "first_margins": None, "steady": summary(mean), "others": summary(mean),
        },
        "judgement": {"profile": "in-all", "outcome": outcome, "gates": [gate], "routing_excused": False},
    }  # fmt: skip


def artifact(name: str, outcome: str = "pass") -> dict[str, Any]:
    """An artifact in a runtime, with a tensor that differs; `name` stands wherever a name or a reason can."""
    passed = outcome == "pass"
    tensor = {
        "name": name, "reference": "bf16", "artifact": "q8_0", "expected": "lossy", "found": "lossy", "values": 100,
        "different": 90, "largest_error": 0.1, "signal_to_noise": 45.0, "least_signal_to_noise": 40.0,
        "largest_block_error": None, "relative_error": 0.005, "different_blocks": 3, "worst_block": None,
        "signs_of_zero": 0, "rescaled_blocks": 0, "new_nan": 0, "new_infinite": 0, "declared": None,
        "problem": None, "basis": "numbers", "promised": "lossy", "passed": passed,
        "failure": None if passed else name,
    }  # fmt: skip
    checks = [
        {"name": name, "reference": name, "artifact": name, "passed": state, "note": name}
        for state in (True, None, passed)
    ]
    run = {
        "runtime": name, "artifact": name, "dtype": "float32", "imitates": None, "threads": 2, "provider": name,
        "status": "completed", "reason": None, "versions": {name: name},
        "prefill_positions": 100, "decode_positions": 28,
    }  # fmt: skip
    verdict = {"outcome": outcome, "cause": None if passed else "file", "reason": name}
    return {
        "path": name, "format": "gguf", "profile": "lossy-8bit", "verdict": verdict,
        "structure": {"passed": passed, "reason": name, "checks": checks},
        "weights": {
            "passed": passed, "reason": name, "loss": "lossy", "worst_tensor": name, "not_compared": [name],
            "manifest": {"path": name, "passed": passed, "findings": [name]},
            "layers": [
                {"layer": layer, "group": group, "tensors": 4, "different": 2, "relative_error": 0.01 / (layer + 1),
                 "tensor": name}
                for layer in range(4)
                for group in ("attention", "experts")
            ],
            "tensors": [tensor],
        },
        "logits": [
            {
                "runtime": name, "verdict": verdict, "noise_floor": 0.003,
                "comparisons": [
                    comparison("total", 0.002, outcome, name),
                    comparison("file", 0.001, outcome, name),
                    comparison("departures", 1e-4, "fail", name),
                ],
                "runs": [run, run | {"status": "missing", "reason": name}],
            }
        ],
        "execution": {
            "kernels": {"provider": name, "release": name, "missing": [name], "unchecked": None},
            "runs": [{"runtime": name, "provider": name, "prefill_positions": 100, "decode_positions": 28}],
            "executed_on_target": passed, "statement": name,
        },
        "bisection": {
            "positions": 10,
            "finding": {
                "departure": {"layer": 1, "stage": name, "relative_error": 0.1, "tensors": [name]}, "tensor": name,
                "reason": name,
            },
            "departures": [], "hidden_errors": [0.0, 0.01, None, 0.05],
        },
    }  # fmt: skip


def footprint(name: str = "gpt-oss-20b.gguf", *, told_apart: bool = True) -> dict[str, Any]:
    """The memory of a model in a runtime: 13.5 GB predicted, 13.7 GB measured, 16 GB allowed."""

    def phase(anonymous: int, mapped: int) -> dict[str, Any]:
        parts = (
            {"anonymous": anonymous, "file_backed": mapped}
            if told_apart
            else {"anonymous": None, "file_backed": None}
        )
        return {"resident": anonymous + mapped, **parts}

    return {
        "artifact": name, "runtime": "llama.cpp" if told_apart else name,
        "predicted": {
            "experts": 10_150_000_000, "attention": 900_000_000, "embedding": 1_158_000_000, "router": 12_000_000,
            "KV cache": 420_000_000, "logits": 400_000_000, "compute buffers": 300_000_000, "runtime": 120_000_000,
        },
        "measured": {
            "loaded": phase(1_200_000_000, 11_200_000_000),
            "first token": phase(1_900_000_000, 11_200_000_000),
            "prefill": phase(2_500_000_000, 11_200_000_000),
        },
        "budget": 16_000_000_000,
    }  # fmt: skip


def document(*names: str, outcome: str = "pass", memory: bool = False) -> dict[str, Any]:
    """A document about artifacts of these names; the last one has the outcome."""
    artifacts = [artifact(name, outcome if name == names[-1] else "pass") for name in names]
    name = names[-1] if names else "x"
    run = {"load_seconds": 1.5, "run_seconds": 2.5, "peak_memory": {"resident": 10**9, "private": None}}
    facts = {
        "schema_version": 2,
        "tool": {"name": "gptoss-convert", "version": "0.1.0"},
        "reference": {"path": name, "format": "huggingface", "pack": None} if names else None,
        "outcome": outcome,
        "policy": {"version": 1, "changes": [{"name": name, "value": 0.1, "default": None}]} if names else None,
        "prompts": {"name": name, "prompts": 8, "positions": 432, "ids_sha256": "0" * 64, "remarks": [name]},
        "artifacts": artifacts,
        "memory": [footprint(), footprint(name, told_apart=False)] if memory else [],
        "conditions": {
            "created": "2026-01-02T03:04:05Z", "seconds": 12.5,
            "host": {"system": "Linux 6", "machine": "x86_64", "processor": None, "cores": 2, "memory": 2**34,
                     "python": "3.11.0"},
            "runs": [{"artifact": index, "runtime": name, "run": 0} | run for index, name in enumerate(names)],
        },
    }  # fmt: skip
    return copy.deepcopy(facts)
