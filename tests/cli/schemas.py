"""Keys and types of the JSON documents that the command line prints."""

from typing import Any

CONFIG = {
    "num_hidden_layers": "int", "hidden_size": "int", "intermediate_size": "int", "num_local_experts": "int",
    "num_experts_per_tok": "int", "num_attention_heads": "int", "num_key_value_heads": "int", "head_dim": "int",
    "vocab_size": "int", "max_position_embeddings": "int", "sliding_window": "int", "layer_types": ["str"],
    "rope": {
        "theta": "float", "factor": "float", "beta_fast": "float", "beta_slow": "float",
        "original_context_length": "int", "truncate": "bool",
    },
    "rms_norm_eps": "float", "swiglu_limit": "float",
}  # fmt: skip
INSPECTION = {
    "path": "str", "format": "str", "title": "str", "files": "int", "config": CONFIG, "parameters": "int",
    "active_parameters": "int",
    "groups": [{"role": "str", "encoding": "str", "tensors": "int", "parameters": "int", "nbytes": "int"}],
    "nbytes": "int",
    "tokenizer": {
        "tokens": "int", "padding_rows": "int", "merges": "int", "control_tokens": "int",
        "special": {"bos": "str", "eos": "str", "pad": "str"}, "chat_templates": {"default": "str"},
    },
    "description": {"name": "str"}, "details": {}, "problems": [], "remarks": [], "hash": "NoneType",
}  # fmt: skip
PROBLEM = {
    "error": "str", "what": "str", "file": "str", "tensor": "str", "found": "NoneType", "expected": "str",
    "hint": "NoneType", "exit_code": "int",
}  # fmt: skip
PLAN = {
    "source": "str", "source_format": "str", "format": "str", "loss": "str", "nbytes": "int",
    "files": [{"path": "str", "nbytes": "int"}], "files_made_at_the_end": [],
    "tensors": [
        {
            "name": "str", "shape": ["int"], "encoding": "str", "file": "int", "offset": "int", "nbytes": "int",
            "source": "str", "source_encoding": "str", "loss": "str", "note": "NoneType",
        }
    ],
    "notes": ["str"],
}  # fmt: skip
ROUNDING = {
    "values": "int", "different": "int", "largest_error": "float", "signal_to_noise": "float",
    "relative_error": "float",
}  # fmt: skip
QUANTISATION = {
    "blocks": "int", "signal_to_noise": "float", "relative_error": "float", "compared_blocks": "int",
    "relative_error_by_rule": dict.fromkeys(("mse", "even", "floor", "rceil", "ceil"), "float"),
    "clipped_blocks": "int", "clipped_values": "int", "kept_blocks": "int",
}  # fmt: skip
SURVIVAL = {
    "relative_change": "float", "share_tuned": "float", "share_moved": "float", "share_kept": "float",
    "rounded_away": "bool",
}  # fmt: skip
REPORT = {
    "loss": "str", "named_scales": "int", "canonical_hash": "NoneType",
    "tensors": [
        {
            "name": "str", "source_encoding": "str", "encoding": "str", "loss": "str", "rounding": "NoneType",
            "quantisation": "NoneType", "survival": "NoneType", "half_precision": "NoneType",
            "signs_of_zero": "int",
            "rounded_in_graph": "int",
        }
    ],
}  # fmt: skip
COMPARISON = {
    "name": "str", "reference": "str", "artifact": "str", "expected": "str", "found": "str", "values": "int",
    "different": "int", "largest_error": "float", "signal_to_noise": "NoneType",
    "least_signal_to_noise": "float", "largest_block_error": "float",
    "relative_error": "float", "different_blocks": "int",
    "worst_block": "NoneType", "signs_of_zero": "int", "rescaled_blocks": "int", "new_nan": "int",
    "new_infinite": "int", "declared": "NoneType", "problem": "NoneType", "basis": "str",
    "promised": "str", "passed": "bool",
    "failure": "NoneType",
}  # fmt: skip


def schema(value: Any) -> Any:
    """Return keys and type names; a list is described by its first item."""
    if isinstance(value, dict):
        return {key: schema(item) for key, item in value.items()}
    if isinstance(value, list):
        return [schema(item) for item in value[:1]]
    return type(value).__name__
