"""Writes the tokenizer of gpt-oss, whole or truncated, from the compact copy in tests/data/gpt-oss.

The published tokenizer.json (28 MB) follows from its list of tokens: the merges are all ways to split a token
into two tokens.
"""

import json
import lzma
import shutil
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[1] / "data" / "gpt-oss"

TOKENIZER_SHA256 = "0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3"
"""SHA-256 of the published tokenizer.json."""


def write_real_tokenizer(folder: str | PathLike[str]) -> dict[str, int]:
    """Write the published tokenizer files, byte for byte; returns the special ids by content."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _read_skeleton()
    _write_tokenizer(folder, tokenizer, _read_tokens())
    for name in ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        shutil.copyfile(DATA / name, folder / name)
    return _special_ids(tokenizer)


def write_small_tokenizer(folder: str | PathLike[str], tokens: int = 480) -> dict[str, int]:
    """Write the tokenizer cut to its first ordinary `tokens`; returns the special ids by content.

    The 21 special tokens follow the ordinary ones in their published order, so the vocabulary of the
    checkpoint needs tokens + 21 rows. The first 256 tokens are the single bytes: without them, text cannot be
    encoded.
    """
    ordinary = _read_tokens()
    if not 256 <= tokens <= len(ordinary):
        raise ValueError(f"tokens must lie between 256, the single bytes, and {len(ordinary)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _read_skeleton()
    config = json.loads((DATA / "tokenizer_config.json").read_text(encoding="utf-8"))
    decoder = {}
    for offset, special in enumerate(tokenizer["added_tokens"]):
        published, special["id"] = special["id"], tokens + offset
        if "reserved_" in special["content"]:
            special["content"] = f"<|reserved_{special['id']}|>"
        entry = config["added_tokens_decoder"][str(published)]
        decoder[str(special["id"])] = entry | {"content": special["content"]}
    config["added_tokens_decoder"] = decoder

    _write_tokenizer(folder, tokenizer, ordinary[:tokens])
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in ("special_tokens_map.json", "chat_template.jinja"):
        shutil.copyfile(DATA / name, folder / name)
    return _special_ids(tokenizer)


def byte_of_character() -> dict[str, int]:
    """The bytes by the characters that stand for them in byte-level BPE: GPT-2's alphabet."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _read_tokens() -> list[str]:
    """The ordinary tokens by id, in the printable spelling of byte-level BPE."""
    return lzma.decompress((DATA / "tokens.txt.xz").read_bytes()).decode().split("\n")


def _read_skeleton() -> dict[str, Any]:
    """The published tokenizer.json with empty vocabulary and merges."""
    skeleton: dict[str, Any] = json.loads((DATA / "tokenizer-skeleton.json").read_text(encoding="utf-8"))
    return skeleton


def _special_ids(tokenizer: dict[str, Any]) -> dict[str, int]:
    return {special["content"]: special["id"] for special in tokenizer["added_tokens"]}


def _write_tokenizer(folder: Path, tokenizer: dict[str, Any], tokens: Sequence[str]) -> None:
    """Write tokenizer.json as `json.dumps(..., indent=2, ensure_ascii=False)` would, but faster."""
    quoted = [json.dumps(token, ensure_ascii=False) for token in tokens]
    vocab = ",\n".join(f"      {token}: {i}" for i, token in enumerate(quoted))
    pairs = [f"        {quoted[left]},\n        {quoted[right]}" for left, right in _merges(tokens)]
    merges = ",\n".join(f"      [\n{pair}\n      ]" for pair in pairs)
    text = json.dumps(tokenizer, indent=2, ensure_ascii=False)
    text = text.replace('"vocab": {}', f'"vocab": {{\n{vocab}\n    }}')
    text = text.replace('"merges": []', f'"merges": [\n{merges}\n    ]')
    (folder / "tokenizer.json").write_bytes(text.encode())


def _merges(tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Ids of every two tokens that make up a third, by the ids of the whole, the left and the right."""
    ids = {token: i for i, token in enumerate(tokens)}
    merges: list[tuple[int, int]] = []
    for token in tokens:
        halves = ((token[:i], token[i:]) for i in range(1, len(token)))
        merges += sorted((ids[left], ids[right]) for left, right in halves if left in ids and right in ids)
    return merges
