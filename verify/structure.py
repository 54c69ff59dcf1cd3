"""Comparison of everything about two checkpoints but their numbers: tensors, configuration, tokenizer.

A check passes, fails, or is not made where one side says nothing: formats have no place for some facts. No tensor
data is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from typing import Any

import numpy as np

from gptoss_convert.assets import GENERATION_CONFIG
from gptoss_convert.checkpoint import Checkpoint, ModelConfig, Tensor, YarnRope
from gptoss_convert.errors import GptossConvertError
from gptoss_convert.tokenizer import Vocabulary

ABSENT = "absent"
"""Stands for a fact that one side does not state."""
_NOTHING = "none"
"""Stands for a list without entries."""

_TRUNCATE = "rope.truncate"
"""A field that GGUF has no key for: its reader states what gpt-oss has, whatever the source was."""
GENERATION_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Keys of generation_config.json that are compared."""
_SHOWN = 40
"""Characters of a token that a note shows."""


@dataclass(frozen=True)
class StructureCheck:
    """One fact on both sides."""

    name: str
    """Such as `config.rope.factor`, `tokenizer.tokens`, `tensor.model.norm.weight`."""
    reference: str
    artifact: str
    passed: bool | None
    """None if it could not be compared; `note` says why."""
    note: str = ""
    """What differs, in words."""

    def as_dict(self) -> dict[str, Any]:
        """Return the check as JSON-ready data."""
        return {
            "name": self.name,
            "reference": self.reference,
            "artifact": self.artifact,
            "passed": self.passed,
            "note": self.note,
        }


@dataclass(frozen=True)
class StructureResult:
    """All checks of an artifact's structure."""

    checks: tuple[StructureCheck, ...]

    @property
    def failed(self) -> tuple[StructureCheck, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.passed is False)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def reason(self) -> str:
        """Why it passed or not, in one sentence."""
        if not self.failed:
            left_out = sum(check.passed is None for check in self.checks)
            rest = f"; {left_out} could not be compared" if left_out else ""
            return f"{len(self.checks) - left_out} facts agree{rest}"
        first, *others = self.failed
        text = f"{first.name} is {first.artifact}, not {first.reference}"
        text += f": {first.note}" if first.note else ""
        return f"{text}; {len(others)} more differ" if others else text

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return {
            "passed": self.passed,
            "reason": self.reason,
            "checks": [check.as_dict() for check in self.checks],
        }


def unreadable_structure(error: GptossConvertError) -> StructureResult:
    """Return the result for an artifact that cannot be opened, for the reason `error`."""
    return StructureResult((StructureCheck("artifact", "readable", "unreadable", False, str(error)),))


def compare_structure(reference: Checkpoint, artifact: Checkpoint) -> StructureResult:
    """Compare what two opened checkpoints say of themselves.

    Raises:
        GptossConvertError: the reference is not sound. What is wrong with the artifact is in the result.
    """
    reference.require_sound()
    return StructureResult(
        (
            _soundness(artifact),
            *_tensors(reference, artifact),
            *compare_configuration(reference, artifact),
            *_tokenizer(reference, artifact),
            *_generation(reference, artifact),
        )
    )


def _equal(name: str, reference: object, artifact: object, note: str = "") -> StructureCheck:
    """Return a check that passes if both facts are equal; one that is None is not stated."""
    if reference is None or artifact is None:
        where = "reference" if reference is None else "artifact"
        note = note or f"the {where} does not state it"
    passed = None if reference is None or artifact is None else reference == artifact
    return StructureCheck(name, _text(reference), _text(artifact), passed, note)


def _text(value: object) -> str:
    return ABSENT if value is None else str(value)


def _soundness(artifact: Checkpoint) -> StructureCheck:
    problems = artifact.problems
    found = f"{len(problems)} problem(s)" if problems else "sound"
    return StructureCheck("artifact", "sound", found, not problems, "; ".join(map(str, problems[:3])))


# --- tensors


def _tensors(reference: Checkpoint, artifact: Checkpoint) -> Iterator[StructureCheck]:
    """Yield a check of the number of tensors, and one for each that is missing, unknown or of another shape."""
    expected, found = (
        {name: _shape(item) for name, item in side.tensors.items()} for side in (reference, artifact)
    )
    wrong = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    yield StructureCheck("tensors", str(len(expected)), str(len(found)), not wrong, _listed(wrong))
    for name in wrong:
        note = _tensor_note(name, expected, found)
        yield StructureCheck(f"tensor.{name}", expected.get(name, ABSENT), found.get(name, ABSENT), False, note)


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _tensor_note(name: str, expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    if name not in found:
        return "the artifact lacks this tensor"
    return "the reference has no such tensor" if name not in expected else "other shape"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


# --- configuration


def compare_configuration(reference: Checkpoint, artifact: Checkpoint) -> Iterator[StructureCheck]:
    """Compare every field of the configurations."""
    without_key = "gguf" in (reference.format, artifact.format)
    expected, found = _fields(reference.config), _fields(artifact.config)
    for name, value in expected.items():
        if name == _TRUNCATE and without_key:
            yield StructureCheck(f"config.{name}", _text(value), _text(found[name]), None, "GGUF has no key for it")
        else:
            yield _field(name, value, found[name])


def _fields(config: ModelConfig) -> dict[str, Any]:
    """Return the fields by name, those of the rotary embedding as `rope.` and their name."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    rope = values.pop("rope")
    return values | {f"rope.{field.name}": getattr(rope, field.name) for field in fields(YarnRope)}


def _field(name: str, expected: Any, found: Any) -> StructureCheck:
    if isinstance(expected, float):
        # Every program computes with float32, and GGUF stores no more.
        same = bool(np.float32(expected) == np.float32(found))
        return StructureCheck(f"config.{name}", f"{expected:g}", f"{found:g}", same)
    if isinstance(expected, tuple):
        wrong = [str(index) for index, pair in enumerate(zip_longest(expected, found)) if pair[0] != pair[1]]
        note = f"layers {_listed(wrong)}" if wrong else ""
        return StructureCheck(f"config.{name}", _layers(expected), _layers(found), not wrong, note)
    return _equal(f"config.{name}", expected, found)


def _layers(kinds: Sequence[str]) -> str:
    """Return the kinds of layers, each by its first letter."""
    return "".join(kind[0] for kind in kinds)


# --- tokenizer


def _tokenizer(reference: Checkpoint, artifact: Checkpoint) -> Iterator[StructureCheck]:
    if reference.tokenizer is None:
        yield StructureCheck("tokenizer", ABSENT, _presence(artifact), None, "the reference has no tokenizer")
        return
    expected = reference.tokenizer.vocabulary()
    if artifact.tokenizer is None:
        # OpenAI's layout is weights alone: the programs that read it bring the tokenizer.
        passed = None if artifact.format == "openai" else False
        yield StructureCheck("tokenizer", "present", ABSENT, passed, "the artifact has no tokenizer")
        return
    try:
        found = artifact.tokenizer.vocabulary()
    except GptossConvertError as error:
        yield StructureCheck("tokenizer", "readable", "unreadable", False, str(error))
        return
    yield from _vocabularies(expected, found)


def _presence(checkpoint: Checkpoint) -> str:
    return ABSENT if checkpoint.tokenizer is None else "present"


def _vocabularies(expected: Vocabulary, found: Vocabulary) -> Iterator[StructureCheck]:
    yield _sequences("tokenizer.tokens", "id", expected.tokens, found.tokens)
    yield _sequences(
        "tokenizer.kinds",
        "id",
        [kind.name.lower() for kind in expected.kinds],
        [k.name.lower() for k in found.kinds],
    )
    yield _sequences("tokenizer.merges", "rank", expected.merges, found.merges)
    yield StructureCheck(
        "tokenizer.pattern",
        _digest(expected.pattern),
        _digest(found.pattern),
        expected.pattern == found.pattern,
        "" if expected.pattern == found.pattern else "text is split by another regular expression",
    )
    for purpose in _in_either(expected.special_ids, found.special_ids):
        yield _special_id(purpose, expected, found)
    for purpose in _in_either(expected.added_automatically, found.added_automatically):
        # What a tokenizer does not mention it does not do.
        yield _equal(
            f"tokenizer.adds_{purpose}",
            expected.added_automatically.get(purpose, False),
            found.added_automatically.get(purpose, False),
        )
    templates = [
        {_gguf_name(name): text for name, text in side.chat_templates.items()} for side in (expected, found)
    ]
    for name in _in_either(*templates):
        yield _template(name, templates[0].get(name), templates[1].get(name))


def _special_id(purpose: str, expected: Vocabulary, found: Vocabulary) -> StructureCheck:
    """Return the check of a special id; one that the artifact lost is a fault, one that it adds is not compared."""
    ids = expected.special_ids.get(purpose), found.special_ids.get(purpose)
    if ids[0] is not None and ids[1] is None:
        return StructureCheck(f"tokenizer.{purpose}", str(ids[0]), ABSENT, False, "the artifact does not state it")
    note = ""
    if None not in ids and ids[0] != ids[1]:
        note = f"{_token(expected.tokens, ids[0])} became {_token(found.tokens, ids[1])}"
    return _equal(f"tokenizer.{purpose}", *ids, note)


def _template(name: str, expected: str | None, found: str | None) -> StructureCheck:
    """Return the check of a chat template, whose line breaks mean the same to Jinja however they are written.

    One that the artifact lost is a fault: programs would format conversations in another way.
    """
    if expected is not None and found is None:
        return StructureCheck(f"chat_template.{name}", _digest(expected), ABSENT, False, "the artifact lost it")
    if expected is None or found is None:
        return _equal(
            f"chat_template.{name}",
            None if expected is None else _digest(expected),
            None if found is None else _digest(found),
        )
    same = _unix(expected) == _unix(found)
    note = "line breaks differ, which mean the same" if same and expected != found else ""
    return StructureCheck(f"chat_template.{name}", _digest(expected), _digest(found), same, note)


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _gguf_name(name: str) -> str:
    """Return a template's name as GGUF spells it."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name)


def _in_either(first: Iterable[str], second: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*first, *second]))


def _sequences(
    name: str, index: str, expected: Sequence[str | None], found: Sequence[str | None]
) -> StructureCheck:
    """Return the check of two lists, given as digests, with a note that says where they differ first."""
    digests = _digest(list(expected)), _digest(list(found))
    wrong = [place for place, pair in enumerate(zip_longest(expected, found)) if pair[0] != pair[1]]
    same = not wrong and len(expected) == len(found)
    return StructureCheck(name, *digests, same, "" if same else _where(index, expected, found, wrong))


def _where(index: str, expected: Sequence[str | None], found: Sequence[str | None], wrong: Sequence[int]) -> str:
    if len(wrong) == 2:
        first, second = wrong
        pair = _token(expected, first), _token(expected, second)
        if pair == (_token(found, second), _token(found, first)):
            return f"{index} {first} ({pair[0]}) and {index} {second} ({pair[1]}) are exchanged"
    if not wrong:
        return f"{len(expected)} became {len(found)}"
    first = wrong[0]
    return (
        f"{len(wrong)} of {len(expected)} differ, first {index} {first}: "
        f"{_token(expected, first)} became {_token(found, first)}"
    )


def _token(tokens: Sequence[str | None], index: int | None) -> str:
    token = tokens[index] if index is not None and 0 <= index < len(tokens) else None
    return ABSENT if token is None else json.dumps(token[:_SHOWN], ensure_ascii=False)


def _digest(content: str | list[str | None]) -> str:
    """Return the SHA-256 of a text in UTF-8, or of a list as JSON in ASCII without spaces."""
    if not isinstance(content, str):
        content = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


# --- generation


def _generation(reference: Checkpoint, artifact: Checkpoint) -> Iterator[StructureCheck]:
    """Yield a check for each token that generation_config.json names; several ends have no order."""
    expected = reference.assets.read_json_object(GENERATION_CONFIG)
    if expected is None:
        return
    try:
        found = artifact.assets.read_json_object(GENERATION_CONFIG)
    except GptossConvertError as error:
        yield StructureCheck("generation", "readable", "unreadable", False, str(error))
        return
    for key in GENERATION_IDS:
        if key in expected or key in (found or {}):
            yield _equal(f"generation.{key}", _ids(expected.get(key)), _ids((found or {}).get(key)))


def _ids(value: Any) -> str | None:
    if value is None:
        return None
    items = value if isinstance(value, list) else [value]
    return ", ".join(sorted(map(str, items), key=lambda text: (len(text), text))) or _NOTHING
