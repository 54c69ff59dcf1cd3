"""How tools name the tensors of a gpt-oss model in Hugging Face folders: one table for all of them.

Sources: openai/gpt-oss-20b at 6cee5e81; `transformers/models/gpt_oss` 5.23 (fused experts, `[experts, in, out]`);
llm-compressor and compressed-tensors (`experts.<e>.gate_proj.weight_packed`; `experts.experts.<e>` by
`modeling/gpt_oss.py` of 0.10 and 0.11); AMD Quark 0.13 (`experts.<e>.gate_up_proj.weight` with `.weight_scale`,
which 0.11 may save as `.weight_quantizer.scale`); unsloth (`experts.gate_up_projs.<e>`, `router.linear`);
mlx-lm `models/gpt_oss.py` (`experts.gate_proj.weight` with `.scales`, for all experts).
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass


class Layout(enum.Enum):
    """How the numbers of a canonical tensor lie."""

    WHOLE = "as one tensor"
    """In the canonical orientation; MXFP4 as packed codes and scales."""
    TRANSPOSED = "as one tensor [experts, in, out]"
    BLOCKS = "as blocks and scales"
    """`[experts, out, in / 32, 16]` and `[experts, out, in / 32]`."""
    PER_EXPERT = "as one tensor per expert"
    """Each `[out, in]`, a bias `[out]`; otherwise as `WHOLE`."""
    LEFT_OUT = "not at all"
    """Not part of the weights: how activations or the KV cache were scaled."""


class Part(enum.Enum):
    """What a stored tensor is of the numbers."""

    NUMBERS = enum.auto()
    """Floats, or the codes of MXFP4."""
    SCALES = enum.auto()


class Half(enum.Enum):
    """Which of the two matrices that `gate_up_proj` holds."""

    GATE = "gate_proj"
    UP = "up_proj"


@dataclass(frozen=True)
class Piece:
    """What a stored tensor is, judged by its name."""

    tensor: str
    """Name of the canonical tensor that it belongs to."""
    layout: Layout
    part: Part = Part.NUMBERS
    expert: str | None = None
    """Number of the expert as the name spells it, if there is a tensor per expert."""
    half: Half | None = None
    nested: bool = False
    """Whether the experts lie below a second `experts`; code that names them so gives `gate_proj` the even rows."""


_PLACE = r"(?P<place>.*\.mlp\.experts)"
_FUSED = r"(?P<matrix>gate_up_proj|down_proj)"
_ANY = r"(?P<matrix>gate_up_proj|gate_proj|up_proj|down_proj)"
_SCALE = r"weight_scale|weight_quantizer\.scale|scales"
_PART = rf"(?P<part>weight|weight_packed|{_SCALE}|bias)"

_SPELLINGS = tuple(
    (re.compile(pattern), layout)
    for pattern, layout in (
        # Longest suffixes first: nothing below may match what stands above.
        (r".*\.(input|output|k|v|q|kv|prob)_(scale|global_scale|zero_point)", Layout.LEFT_OUT),
        (r".*\.(input|output)_quantizer\.(scale|zero_point)", Layout.LEFT_OUT),
        (rf"{_PLACE}(?P<nested>\.experts)?\.(?P<expert>[0-9]+)\.{_ANY}\.{_PART}", Layout.PER_EXPERT),
        (rf"{_PLACE}\.{_FUSED}s\.(?P<expert>[0-9]+)\.{_PART}", Layout.PER_EXPERT),
        (rf"{_PLACE}\.{_FUSED}_(?P<part>blocks|scales)", Layout.BLOCKS),
        (rf"{_PLACE}\.{_FUSED}_(?P<part>bias)", Layout.WHOLE),
        (rf"{_PLACE}\.{_FUSED}", Layout.TRANSPOSED),
        (rf"{_PLACE}\.(?P<matrix>gate_proj|up_proj|down_proj)\.{_PART}", Layout.WHOLE),
        (r"(?P<module>.*\.mlp\.router)\.linear\.(?P<part>weight|bias)", Layout.WHOLE),
        (rf"(?P<module>.*)\.(?P<part>weight_packed|{_SCALE})", Layout.WHOLE),
    )
)
_MATRICES = {"gate_proj": ("gate_up_proj", Half.GATE), "up_proj": ("gate_up_proj", Half.UP)}
_SCALES = ("weight_scale", "weight_quantizer.scale", "scales")


def recognise(name: str) -> Piece:
    """Return what the stored tensor called `name` is; a name that no rule is for is that of a canonical tensor."""
    for pattern, layout in _SPELLINGS:
        if (match := pattern.fullmatch(name)) is not None:
            return _piece(name, layout, match.groupdict())
    return Piece(name, Layout.WHOLE)


def _piece(name: str, layout: Layout, said: dict[str, str | None]) -> Piece:
    if layout is Layout.LEFT_OUT:
        return Piece(name, layout)
    suffix = said.get("part")
    part = Part.SCALES if suffix in _SCALES else Part.NUMBERS
    if module := said.get("module"):
        return Piece(f"{module}.{'bias' if suffix == 'bias' else 'weight'}", layout, part)
    spelled = said["matrix"] or ""
    matrix, half = _MATRICES.get(spelled, (spelled, None))
    tensor = f"{said['place']}.{matrix}{'_bias' if suffix == 'bias' else ''}"
    return Piece(tensor, layout, part, said.get("expert"), half, said.get("nested") is not None)
