"""What every conversion does to the numbers: the table from which documentation and tests are made.

`loss_class` derives what a plan can promise from two encodings alone. The table also says what a run finds for
weights that were published, whose values came from MXFP4 and bfloat16, and what the way back restores.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from gptoss_convert.encodings import LossClass

BYTE_EXACT, VALUE_EXACT, LOSSY = LossClass


class Form(enum.StrEnum):
    """How a model lies on disk, as far as its numbers are concerned."""

    HUGGINGFACE = "MXFP4 in the Hugging Face layout"
    OPENAI = "MXFP4 in OpenAI's layout"
    BF16 = "BF16 in the Hugging Face layout"
    GGUF = "GGUF with experts in MXFP4, matrices in BF16"
    GGUF_BF16 = "GGUF with all matrices in BF16"
    GGUF_F16 = "GGUF with all matrices in F16"
    GGUF_F32 = "GGUF with everything in F32"
    GGUF_Q8_0 = "GGUF with experts in MXFP4, matrices in Q8_0"
    GGUF_QUANTISED = "GGUF with other quantised types of ggml"
    ONNX = "ONNX with experts in MXFP4, all else in F32"
    ONNX_F16 = "ONNX with experts in MXFP4, all else in F16"
    ONNX_INT8 = "ONNX with experts in int8, all else in F32"
    ONNX_INT4 = "ONNX with experts in int4, all else in F32"


class Restored(enum.StrEnum):
    """What a tensor is after a conversion and the conversion back."""

    BYTES = "the same bytes"
    VALUES = "the same values; with --scales-from the same bytes"
    """MXFP4 blocks that are not canonical get the smallest scale that holds them."""
    VALUES_ONLY = "the same values"
    UNSIGNED = "the same bytes, but zeros without sign"
    UNKNOWN = "depends on the numbers"
    ROUNDED = "rounded values"


@dataclass(frozen=True)
class Conversion:
    """One way from one form to another."""

    source: Form
    target: Form
    command: str
    """Command and options, without source and output."""
    promised: LossClass
    """The worst that the plan says of any tensor."""
    found: LossClass | None
    """The worst that the run finds, for weights as published; None where it depends on the numbers."""
    restored: Restored
    """What is there after the conversion from `target` to `source`."""


_BF16 = "to-bf16"
_HF = "to-mxfp4"
_OPENAI = "to-mxfp4 --layout openai"
_F16 = "to-gguf --dense f16 --experts f16"
_F32 = "to-gguf --dense f32 --experts f32"
_ONNX = "to-onnx --target directml --experts mxfp4 --activations f32"
_ONNX_F16 = "to-onnx --target directml --experts mxfp4 --activations f16"
_INT8 = "to-onnx --target cpu --experts int8 --activations f32"
_INT4 = "to-onnx --target cpu --experts int4 --activations f32"
_PERMITTED = " --allow-lossy-source"

_BYTES, _VALUES, _ONLY, _UNSIGNED, _UNKNOWN, _ROUNDED = Restored

# fmt: off
_TARGETS: dict[Form, tuple[tuple[Form, str, LossClass, LossClass | None, Restored], ...]] = {
    Form.HUGGINGFACE: (
        (Form.HUGGINGFACE, _HF, BYTE_EXACT, BYTE_EXACT, _BYTES),
        (Form.OPENAI, _OPENAI, BYTE_EXACT, BYTE_EXACT, _BYTES),
        (Form.BF16, _BF16, VALUE_EXACT, VALUE_EXACT, _BYTES),
        (Form.GGUF, "to-gguf", VALUE_EXACT, VALUE_EXACT, _BYTES),
        (Form.GGUF_BF16, "to-gguf --experts bf16", VALUE_EXACT, VALUE_EXACT, _VALUES),
        (Form.GGUF_F16, _F16, LOSSY, None, _UNKNOWN),
        (Form.GGUF_F32, _F32, VALUE_EXACT, VALUE_EXACT, _VALUES),
        (Form.GGUF_Q8_0, "to-gguf --dense q8_0", LOSSY, LOSSY, _ROUNDED),
        (Form.ONNX, _ONNX, VALUE_EXACT, VALUE_EXACT, _BYTES),
        (Form.ONNX_F16, _ONNX_F16, LOSSY, None, _UNKNOWN),
        (Form.ONNX_INT8, _INT8, VALUE_EXACT, VALUE_EXACT, _UNSIGNED),
        (Form.ONNX_INT4, _INT4, LOSSY, LOSSY, _ROUNDED),
    ),
    Form.OPENAI: (
        (Form.HUGGINGFACE, _HF, BYTE_EXACT, BYTE_EXACT, _BYTES),
        (Form.OPENAI, _OPENAI, BYTE_EXACT, BYTE_EXACT, _BYTES),
        (Form.BF16, _BF16, VALUE_EXACT, VALUE_EXACT, _BYTES),
        (Form.GGUF, "to-gguf", VALUE_EXACT, VALUE_EXACT, _BYTES),
        (Form.GGUF_BF16, "to-gguf --experts bf16", VALUE_EXACT, VALUE_EXACT, _VALUES),
        (Form.GGUF_F16, _F16, LOSSY, None, _UNKNOWN),
        (Form.GGUF_F32, _F32, VALUE_EXACT, VALUE_EXACT, _VALUES),
        (Form.GGUF_Q8_0, "to-gguf --dense q8_0", LOSSY, LOSSY, _ROUNDED),
        (Form.ONNX, _ONNX, VALUE_EXACT, VALUE_EXACT, _BYTES),
        (Form.ONNX_F16, _ONNX_F16, LOSSY, None, _UNKNOWN),
        (Form.ONNX_INT8, _INT8, VALUE_EXACT, VALUE_EXACT, _UNSIGNED),
        (Form.ONNX_INT4, _INT4, LOSSY, LOSSY, _ROUNDED),
    ),
    Form.BF16: (
        (Form.HUGGINGFACE, _HF, LOSSY, VALUE_EXACT, _BYTES),
        (Form.OPENAI, _OPENAI, LOSSY, VALUE_EXACT, _BYTES),
        (Form.BF16, _BF16, BYTE_EXACT, BYTE_EXACT, _BYTES),
        (Form.GGUF, "to-gguf --experts mxfp4", LOSSY, VALUE_EXACT, _BYTES),
        (Form.GGUF_BF16, "to-gguf", VALUE_EXACT, VALUE_EXACT, _BYTES),
        (Form.GGUF_F16, _F16, LOSSY, None, _UNKNOWN),
        (Form.GGUF_F32, _F32, VALUE_EXACT, VALUE_EXACT, _BYTES),
        (Form.GGUF_Q8_0, "to-gguf --dense q8_0 --experts mxfp4", LOSSY, LOSSY, _ROUNDED),
        (Form.ONNX, _ONNX, LOSSY, VALUE_EXACT, _BYTES),
        (Form.ONNX_F16, _ONNX_F16, LOSSY, None, _UNKNOWN),
        (Form.ONNX_INT8, _INT8, LOSSY, VALUE_EXACT, _UNSIGNED),
        (Form.ONNX_INT4, _INT4, LOSSY, LOSSY, _ROUNDED),
    ),
    Form.GGUF: (
        (Form.HUGGINGFACE, _HF, LOSSY, VALUE_EXACT, _BYTES),
        (Form.OPENAI, _OPENAI, LOSSY, VALUE_EXACT, _BYTES),
        (Form.BF16, _BF16, LOSSY, VALUE_EXACT, _ONLY),
        (Form.GGUF, "to-gguf", BYTE_EXACT, BYTE_EXACT, _BYTES),
        (Form.GGUF_BF16, "to-gguf --experts bf16", VALUE_EXACT, VALUE_EXACT, _ONLY),
        (Form.GGUF_F16, _F16, LOSSY, None, _UNKNOWN),
        (Form.GGUF_F32, _F32, VALUE_EXACT, VALUE_EXACT, _ONLY),
        (Form.GGUF_Q8_0, "to-gguf --dense q8_0", LOSSY, LOSSY, _ROUNDED),
        (Form.ONNX, _ONNX, VALUE_EXACT, VALUE_EXACT, _BYTES),
        (Form.ONNX_F16, _ONNX_F16, LOSSY, None, _UNKNOWN),
        (Form.ONNX_INT8, _INT8, VALUE_EXACT, VALUE_EXACT, _UNSIGNED),
        (Form.ONNX_INT4, _INT4, LOSSY, LOSSY, _ROUNDED),
    ),
    Form.GGUF_BF16: (
        (Form.HUGGINGFACE, _HF, LOSSY, VALUE_EXACT, _BYTES),
        (Form.OPENAI, _OPENAI, LOSSY, VALUE_EXACT, _BYTES),
        (Form.BF16, _BF16, LOSSY, VALUE_EXACT, _BYTES),
        (Form.GGUF, "to-gguf --experts mxfp4", LOSSY, VALUE_EXACT, _BYTES),
        (Form.GGUF_BF16, "to-gguf", BYTE_EXACT, BYTE_EXACT, _BYTES),
        (Form.GGUF_F16, _F16, LOSSY, None, _UNKNOWN),
        (Form.GGUF_F32, _F32, VALUE_EXACT, VALUE_EXACT, _BYTES),
        (Form.GGUF_Q8_0, "to-gguf --dense q8_0 --experts mxfp4", LOSSY, LOSSY, _ROUNDED),
        (Form.ONNX, _ONNX, LOSSY, VALUE_EXACT, _BYTES),
        (Form.ONNX_F16, _ONNX_F16, LOSSY, None, _UNKNOWN),
        (Form.ONNX_INT8, _INT8, LOSSY, VALUE_EXACT, _UNSIGNED),
        (Form.ONNX_INT4, _INT4, LOSSY, LOSSY, _ROUNDED),
    ),
    Form.GGUF_F16: (
        (Form.HUGGINGFACE, _HF, LOSSY, VALUE_EXACT, _BYTES),
        (Form.OPENAI, _OPENAI, LOSSY, VALUE_EXACT, _BYTES),
        (Form.BF16, _BF16, LOSSY, VALUE_EXACT, _BYTES),
        (Form.GGUF, "to-gguf --dense bf16 --experts mxfp4", LOSSY, VALUE_EXACT, _BYTES),
        (Form.GGUF_BF16, "to-gguf --dense bf16 --experts bf16", LOSSY, VALUE_EXACT, _BYTES),
        (Form.GGUF_F16, "to-gguf", BYTE_EXACT, BYTE_EXACT, _BYTES),
        (Form.GGUF_F32, _F32, VALUE_EXACT, VALUE_EXACT, _BYTES),
        (Form.GGUF_Q8_0, "to-gguf --dense q8_0 --experts mxfp4", LOSSY, LOSSY, _ROUNDED),
        (Form.ONNX, _ONNX, LOSSY, VALUE_EXACT, _BYTES),
        (Form.ONNX_F16, _ONNX_F16, LOSSY, None, _UNKNOWN),
        (Form.ONNX_INT8, _INT8, LOSSY, VALUE_EXACT, _UNSIGNED),
        (Form.ONNX_INT4, _INT4, LOSSY, LOSSY, _ROUNDED),
    ),
    Form.GGUF_F32: (
        (Form.HUGGINGFACE, _HF, LOSSY, VALUE_EXACT, _BYTES),
        (Form.OPENAI, _OPENAI, LOSSY, VALUE_EXACT, _BYTES),
        (Form.BF16, _BF16, LOSSY, VALUE_EXACT, _BYTES),
        (Form.GGUF, "to-gguf --dense bf16 --experts mxfp4", LOSSY, VALUE_EXACT, _BYTES),
        (Form.GGUF_BF16, "to-gguf --dense bf16 --experts bf16", LOSSY, VALUE_EXACT, _BYTES),
        (Form.GGUF_F16, _F16, LOSSY, None, _UNKNOWN),
        (Form.GGUF_F32, "to-gguf", BYTE_EXACT, BYTE_EXACT, _BYTES),
        (Form.GGUF_Q8_0, "to-gguf --dense q8_0 --experts mxfp4", LOSSY, LOSSY, _ROUNDED),
        (Form.ONNX, _ONNX, LOSSY, VALUE_EXACT, _BYTES),
        (Form.ONNX_F16, _ONNX_F16, LOSSY, None, _UNKNOWN),
        (Form.ONNX_INT8, _INT8, LOSSY, VALUE_EXACT, _UNSIGNED),
        (Form.ONNX_INT4, _INT4, LOSSY, LOSSY, _ROUNDED),
    ),
    Form.GGUF_Q8_0: (
        (Form.HUGGINGFACE, _HF + _PERMITTED, LOSSY, LOSSY, _UNKNOWN),
        (Form.OPENAI, _OPENAI + _PERMITTED, LOSSY, LOSSY, _UNKNOWN),
        (Form.BF16, _BF16 + _PERMITTED, LOSSY, LOSSY, _UNKNOWN),
        (Form.GGUF, "to-gguf --dense bf16" + _PERMITTED, LOSSY, LOSSY, _UNKNOWN),
        (Form.GGUF_BF16, "to-gguf --dense bf16 --experts bf16" + _PERMITTED, LOSSY, LOSSY, _UNKNOWN),
        (Form.GGUF_F16, _F16 + _PERMITTED, LOSSY, LOSSY, _UNKNOWN),
        (Form.GGUF_F32, _F32 + _PERMITTED, VALUE_EXACT, VALUE_EXACT, _UNKNOWN),
        (Form.GGUF_Q8_0, "to-gguf", BYTE_EXACT, BYTE_EXACT, _BYTES),
        (Form.ONNX, _ONNX + _PERMITTED, VALUE_EXACT, VALUE_EXACT, _UNKNOWN),
        (Form.ONNX_F16, _ONNX_F16 + _PERMITTED, LOSSY, LOSSY, _UNKNOWN),
        (Form.ONNX_INT8, _INT8 + _PERMITTED, VALUE_EXACT, VALUE_EXACT, _UNKNOWN),
        (Form.ONNX_INT4, _INT4 + _PERMITTED, LOSSY, LOSSY, _ROUNDED),
    ),
    Form.GGUF_QUANTISED: (
        (Form.HUGGINGFACE, _HF + _PERMITTED, LOSSY, LOSSY, _ROUNDED),
        (Form.OPENAI, _OPENAI + _PERMITTED, LOSSY, LOSSY, _ROUNDED),
        (Form.BF16, _BF16 + _PERMITTED, LOSSY, LOSSY, _ROUNDED),
        (Form.GGUF, "to-gguf --dense bf16 --experts mxfp4" + _PERMITTED, LOSSY, LOSSY, _ROUNDED),
        (Form.GGUF_BF16, "to-gguf --dense bf16 --experts bf16" + _PERMITTED, LOSSY, LOSSY, _ROUNDED),
        (Form.GGUF_F16, _F16 + _PERMITTED, LOSSY, LOSSY, _ROUNDED),
        (Form.GGUF_F32, _F32 + _PERMITTED, VALUE_EXACT, VALUE_EXACT, _ROUNDED),
        (Form.GGUF_QUANTISED, "to-gguf", BYTE_EXACT, BYTE_EXACT, _BYTES),
        (Form.ONNX, _ONNX + _PERMITTED, LOSSY, LOSSY, _ROUNDED),
        (Form.ONNX_F16, _ONNX_F16 + _PERMITTED, LOSSY, LOSSY, _ROUNDED),
        (Form.ONNX_INT8, _INT8 + _PERMITTED, LOSSY, LOSSY, _ROUNDED),
        (Form.ONNX_INT4, _INT4 + _PERMITTED, LOSSY, LOSSY, _ROUNDED),
    ),
    Form.ONNX: (
        (Form.HUGGINGFACE, _HF, LOSSY, VALUE_EXACT, _BYTES),
        (Form.OPENAI, _OPENAI, LOSSY, VALUE_EXACT, _BYTES),
        (Form.BF16, _BF16, LOSSY, VALUE_EXACT, _BYTES),
        (Form.GGUF, "to-gguf --dense bf16", LOSSY, VALUE_EXACT, _BYTES),
        (Form.GGUF_BF16, "to-gguf --dense bf16 --experts bf16", LOSSY, VALUE_EXACT, _ONLY),
        (Form.GGUF_F16, _F16, LOSSY, None, _UNKNOWN),
        (Form.GGUF_F32, _F32, VALUE_EXACT, VALUE_EXACT, _ONLY),
        (Form.GGUF_Q8_0, "to-gguf --dense q8_0", LOSSY, LOSSY, _ROUNDED),
        (Form.ONNX, _ONNX, BYTE_EXACT, BYTE_EXACT, _BYTES),
        (Form.ONNX_F16, _ONNX_F16, LOSSY, None, _UNKNOWN),
        (Form.ONNX_INT8, _INT8, VALUE_EXACT, VALUE_EXACT, _UNSIGNED),
        (Form.ONNX_INT4, _INT4, LOSSY, LOSSY, _ROUNDED),
    ),
    Form.ONNX_F16: (
        (Form.HUGGINGFACE, _HF, LOSSY, VALUE_EXACT, _BYTES),
        (Form.OPENAI, _OPENAI, LOSSY, VALUE_EXACT, _BYTES),
        (Form.BF16, _BF16, LOSSY, VALUE_EXACT, _BYTES),
        (Form.GGUF, "to-gguf --dense bf16", LOSSY, VALUE_EXACT, _BYTES),
        (Form.GGUF_BF16, "to-gguf --dense bf16 --experts bf16", LOSSY, VALUE_EXACT, _ONLY),
        (Form.GGUF_F16, _F16, LOSSY, None, _UNKNOWN),
        (Form.GGUF_F32, _F32, VALUE_EXACT, VALUE_EXACT, _ONLY),
        (Form.GGUF_Q8_0, "to-gguf --dense q8_0", LOSSY, LOSSY, _ROUNDED),
        (Form.ONNX, _ONNX, VALUE_EXACT, VALUE_EXACT, _BYTES),
        (Form.ONNX_F16, _ONNX_F16, BYTE_EXACT, BYTE_EXACT, _BYTES),
        (Form.ONNX_INT8, _INT8, VALUE_EXACT, VALUE_EXACT, _UNSIGNED),
        (Form.ONNX_INT4, _INT4, LOSSY, LOSSY, _ROUNDED),
    ),
    Form.ONNX_INT8: (
        (Form.HUGGINGFACE, _HF, LOSSY, VALUE_EXACT, _BYTES),
        (Form.OPENAI, _OPENAI, LOSSY, VALUE_EXACT, _BYTES),
        (Form.BF16, _BF16, LOSSY, VALUE_EXACT, _ONLY),
        (Form.GGUF, "to-gguf --dense bf16 --experts mxfp4", LOSSY, VALUE_EXACT, _BYTES),
        (Form.GGUF_BF16, "to-gguf --dense bf16 --experts bf16", LOSSY, VALUE_EXACT, _ONLY),
        (Form.GGUF_F16, _F16, LOSSY, None, _UNKNOWN),
        (Form.GGUF_F32, _F32, VALUE_EXACT, VALUE_EXACT, _ONLY),
        (Form.GGUF_Q8_0, "to-gguf --dense q8_0 --experts mxfp4", LOSSY, LOSSY, _ROUNDED),
        (Form.ONNX, _ONNX, LOSSY, VALUE_EXACT, _BYTES),
        (Form.ONNX_F16, _ONNX_F16, LOSSY, None, _UNKNOWN),
        (Form.ONNX_INT8, _INT8, BYTE_EXACT, BYTE_EXACT, _BYTES),
        (Form.ONNX_INT4, _INT4, LOSSY, LOSSY, _ROUNDED),
    ),
    Form.ONNX_INT4: (
        (Form.HUGGINGFACE, _HF + _PERMITTED, LOSSY, LOSSY, _UNKNOWN),
        (Form.OPENAI, _OPENAI + _PERMITTED, LOSSY, LOSSY, _UNKNOWN),
        (Form.BF16, _BF16 + _PERMITTED, LOSSY, VALUE_EXACT, _UNKNOWN),
        (Form.GGUF, "to-gguf --dense bf16 --experts mxfp4" + _PERMITTED, LOSSY, LOSSY, _UNKNOWN),
        (Form.GGUF_BF16, "to-gguf --dense bf16 --experts bf16" + _PERMITTED, LOSSY, VALUE_EXACT, _UNKNOWN),
        (Form.GGUF_F16, _F16 + _PERMITTED, LOSSY, LOSSY, _ROUNDED),
        (Form.GGUF_F32, _F32 + _PERMITTED, VALUE_EXACT, VALUE_EXACT, _UNKNOWN),
        (Form.GGUF_Q8_0, "to-gguf --dense q8_0 --experts mxfp4" + _PERMITTED, LOSSY, LOSSY, _ROUNDED),
        (Form.ONNX, _ONNX + _PERMITTED, LOSSY, LOSSY, _UNKNOWN),
        (Form.ONNX_F16, _ONNX_F16 + _PERMITTED, LOSSY, LOSSY, _ROUNDED),
        (Form.ONNX_INT8, _INT8 + _PERMITTED, LOSSY, VALUE_EXACT, _UNKNOWN),
        (Form.ONNX_INT4, _INT4, BYTE_EXACT, BYTE_EXACT, _BYTES),
    ),
}
# fmt: on

MATRIX = tuple(Conversion(source, *facts) for source, targets in _TARGETS.items() for facts in targets)
"""Every conversion, one for each pair of forms."""


def conversion(source: Form, target: Form) -> Conversion | None:
    """Return the conversion from one form to another; None if there is none."""
    return next((item for item in MATRIX if (item.source, item.target) == (source, target)), None)


_INTRODUCTION = """\
# Conversions

What every conversion does to the numbers. `converters/matrix.py` is the table that this page is made from, and the
tests run every line of it: `python -m gptoss_convert.converters.matrix > docs/conversions.md` writes it anew.

- **byte-exact**: the encoding stays; every code and scale is kept, at most in another order.
- **value-exact**: another encoding, which holds every value exactly, zeros with their sign unless it is said
  otherwise. The hash stays.
- **lossy**: values are rounded. The report says how many, and by how much.

*Promised* is what the plan says of the worst tensor, from the encodings alone: F32 to BF16 may round. *Found* is
what the run reports for weights as they were published. Norms that a GGUF file holds in F32 came from BF16 and lose
nothing; experts in BF16 that came from MXFP4 return to it. Fine-tuned experts do not: `to-mxfp4` tells what is left
of them. *There and back* is what the tensors are after the conversion in the opposite direction.

A value of MXFP4 can often be written with several scales. `to-bf16` names those that the values do not tell in
`mxfp4-scales.zip` beside the weights, from where `to-mxfp4` takes them again. GGUF has no place for such names:
`--scales-from` takes them from the original model.

ONNX has the same experts in other forms, as its targets want them. Int8 has one zero only, so that
the hash of a model with signed zeros changes although no value does; the report counts them.

Numbers beyond the range of F16 or Q8_0 are an error, not an infinity. Numbers that were rounded when the source was
stored are decoded with `--allow-lossy-source` only.
"""


def _lines() -> Iterator[str]:
    yield _INTRODUCTION
    for source in _TARGETS:
        yield f"## From {source}\n"
        yield "| to | command | promised | found | there and back |"
        yield "|---|---|---|---|---|"
        for item in MATRIX:
            if item.source is source:
                found = "depends on the numbers" if item.found is None else item.found
                yield f"| {item.target} | `{item.command}` | {item.promised} | {found} | {item.restored} |"
        yield ""


def render() -> str:
    """Return the documentation of all conversions, Markdown."""
    return "\n".join(_lines()).rstrip() + "\n"


if __name__ == "__main__":
    print(render(), end="")
