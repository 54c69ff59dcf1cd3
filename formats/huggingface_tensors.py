"""Canonical tensors from the stored tensors of a Hugging Face folder, whichever tool wrote it.

Stored tensors are gathered by the canonical tensor that they belong to, and each such group is put together: its
parts, then the two halves of `gate_up_proj`, then the experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from gptoss_convert.checkpoint import Collected, ModelConfig, Storage, Tensor, collect_tensors
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.composed_storage import AdjoinedStorage, OffsetScalesStorage, StackedStorage
from gptoss_convert.formats.huggingface_names import Half, Layout, Part, Piece, recognise
from gptoss_convert.formats.quantization import GateUpRows, Quantization
from gptoss_convert.formats.safetensors import StoredTensor
from gptoss_convert.formats.safetensors_tensors import (
    FLOAT_DTYPES,
    PACKED_DTYPES,
    mxfp4_tensor,
    packed_mxfp4_tensor,
    plain_tensor,
    transposed_experts,
)
from gptoss_convert.formats.storage import InterleavedStorage

_Parts: TypeAlias = dict[Part, StoredTensor]
_Slot: TypeAlias = tuple[int | None, Half | None]
"""Expert and half, where each is a tensor of its own."""


@dataclass(frozen=True)
class _Group:
    """All stored tensors of one canonical tensor."""

    name: str
    members: tuple[tuple[Piece, StoredTensor], ...]

    @property
    def stored(self) -> StoredTensor:
        """The first member, whose file is named when something is wrong with the group."""
        return self.members[0][1]

    @property
    def layout(self) -> Layout:
        """That of the first member."""
        return self.members[0][0].layout

    @property
    def halved(self) -> bool:
        """Whether gate and up lie apart."""
        return self.members[0][0].half is not None

    @property
    def nested(self) -> bool:
        """Whether the names alone say that `gate_proj` holds the even rows."""
        return all(piece.nested for piece, _ in self.members)

    @property
    def is_bias(self) -> bool:
        """Whether a row, and not a matrix, belongs to an expert."""
        return self.name.endswith("_bias")

    @property
    def misnamed(self) -> bool:
        """Whether these are dequantised experts under the name of blocks, as transformers 5.23 saves them."""
        return (
            self.layout is Layout.BLOCKS
            and len(self.members) == 1
            and self.stored.dtype in FLOAT_DTYPES
            and len(self.stored.shape) == 3
            and self.stored.name == f"{self.name}_blocks"
        )


def read_tensors(
    stored: Mapping[str, StoredTensor], config: ModelConfig, quantization: Quantization
) -> tuple[Collected, tuple[str, ...]]:
    """Return the canonical tensors in `stored`, and remarks on what was repaired, assumed or left out.

    Args:
        stored: all tensors of the folder by name.
        config: says how many experts there have to be.
        quantization: what config.json says about how weights lie.
    """
    groups = _groups(stored)
    kept = [group for group in groups if group.layout is not Layout.LEFT_OUT]

    def canonical(group: _Group) -> Iterator[Tensor]:
        yield _canonical(group, config.num_local_experts, quantization)

    return collect_tensors(kept, canonical), _remarks(groups, quantization)


def _groups(stored: Mapping[str, StoredTensor]) -> list[_Group]:
    members: dict[str, list[tuple[Piece, StoredTensor]]] = {}
    for tensor in stored.values():
        piece = recognise(tensor.name)
        members.setdefault(piece.tensor, []).append((piece, tensor))
    return [_Group(name, tuple(group)) for name, group in members.items()]


def _remarks(groups: Sequence[_Group], quantization: Quantization) -> tuple[str, ...]:
    remarks = []
    if misnamed := [group for group in groups if group.misnamed]:
        remarks.append(
            f"{len(misnamed)} tensors named *_blocks are dequantised experts, which transformers saves under the "
            "wrong name: they are read right here, but transformers would load random experts from this folder"
        )
    apart = [group for group in groups if group.halved and group.layout is Layout.PER_EXPERT and not group.nested]
    if apart and quantization.method in ("none", "mxfp4"):
        remarks.append(
            "gate_proj and up_proj are taken to be what their names say; if llm-compressor 0.12 or 0.13 wrote this "
            "folder, each holds a mixture of both, which cannot be seen"
        )
    if left_out := [group.name for group in groups if group.layout is Layout.LEFT_OUT]:
        remarks.append(
            f"{len(left_out)} tensors are left out, such as {left_out[0][:_LONGEST_NAME]}: "
            "scales of activations or of the KV cache are no weights"
        )
    return (*quantization.remarks, *remarks)


def _canonical(group: _Group, experts: int, quantization: Quantization) -> Tensor:
    slots = _slots(group)
    if group.layout is Layout.PER_EXPERT:
        _require_all_experts(group, {expert for expert, _ in slots if expert is not None}, experts)
    if group.layout is Layout.TRANSPOSED or group.misnamed:
        return transposed_experts(group.name, group.stored)
    if group.layout is Layout.BLOCKS:
        return _blocks(group, slots[None, None])
    if group.halved:
        return _joined(group, slots, quantization)
    numbers = [slots[slot] for slot in sorted(slots, key=_order)]
    return _whole(group, [_numbers(group, parts, quantization) for parts in numbers])


def _order(slot: _Slot) -> int:
    """Return the number of the expert; halves are told apart before."""
    return slot[0] or 0


def _slots(group: _Group) -> dict[_Slot, _Parts]:
    """Return the stored tensors by their place.

    Raises:
        InputError: two tensors have the same place, or the group lies in two layouts at once.
    """
    slots: dict[_Slot, _Parts] = {}
    for piece, stored in group.members:
        if piece.layout is not group.layout or (piece.half is None) is group.halved:
            raise InputError(
                "tensor occurs twice, perhaps in two encodings",
                file=stored.file.path,
                tensor=group.name,
                found=f"{group.stored.name} and {stored.name}",
            )
        parts = slots.setdefault((_number(piece, stored), piece.half), {})
        if (other := parts.get(piece.part)) is not None:
            raise InputError(
                "tensor occurs twice under two names",
                file=stored.file.path,
                tensor=group.name,
                found=f"{other.name} and {stored.name}",
            )
        parts[piece.part] = stored
    return slots


_LONGEST_NAME = 200
"""Characters of a tensor's name in a remark: a stranger chose it."""
_PACKED_NAMES = (".weight", ".weight_packed")
"""How names of tensors end that may hold codes."""
_LONGEST_NUMBER = 10
"""Digits of an expert's number: no count has more."""


def _number(piece: Piece, stored: StoredTensor) -> int | None:
    if piece.expert is None:
        return None
    if len(piece.expert) > _LONGEST_NUMBER or piece.expert != str(int(piece.expert)):
        raise InputError(
            "number of an expert is not plainly spelled",
            file=stored.file.path,
            tensor=stored.name,
            found=piece.expert,
            expected="0, 1, 2 ... without leading zeros",
        )
    return int(piece.expert)


def _require_all_experts(group: _Group, found: set[int], count: int) -> None:
    if (largest := max(found)) >= count:
        raise InputError(
            "number of an expert is beyond the count of the configuration",
            file=group.stored.file.path,
            tensor=group.name,
            found=largest,
            expected=f"0 to {count - 1}",
        )
    if len(found) != count:
        missing = next(number for number in range(count) if number not in found)
        raise InputError(
            "experts are missing",
            file=group.stored.file.path,
            tensor=group.name,
            found=f"{len(found)} experts, number {missing} is not there",
            expected=count,
        )


def _blocks(group: _Group, parts: _Parts) -> Tensor:
    if Part.NUMBERS not in parts:
        raise InputError("scales without blocks", file=group.stored.file.path, tensor=group.stored.name)
    return mxfp4_tensor(group.name, parts[Part.NUMBERS], parts.get(Part.SCALES))


def _numbers(group: _Group, parts: _Parts, quantization: Quantization) -> Tensor:
    """Return the tensor of one place: floats, or codes with scales."""
    numbers, scales = parts.get(Part.NUMBERS), parts.get(Part.SCALES)
    if numbers is None:
        stored = parts[Part.SCALES]
        raise InputError("scales without weight", file=stored.file.path, tensor=stored.name)
    is_packed = numbers.dtype in PACKED_DTYPES and numbers.name.endswith(_PACKED_NAMES) and len(numbers.shape) > 1
    if scales is None and not is_packed:
        return plain_tensor(group.name, numbers)
    tensor = packed_mxfp4_tensor(group.name, numbers, scales)
    if not quantization.scale_offset:
        return tensor
    return replace(tensor, storage=OffsetScalesStorage(tensor.storage, quantization.scale_offset))


def _require_alike(group: _Group, tensors: Sequence[Tensor]) -> None:
    first = tensors[0]
    for tensor in tensors[1:]:
        if (tensor.shape, tensor.encoding) != (first.shape, first.encoding):
            raise InputError(
                "parts of a tensor differ in shape or encoding",
                file=tensor.file,
                tensor=group.name,
                found=f"{tensor.encoding.name} {list(tensor.shape)}",
                expected=f"{first.encoding.name} {list(first.shape)}",
            )


def _require_rank(group: _Group, tensor: Tensor) -> None:
    """Require a matrix, or a row for a bias, for each expert."""
    rank = 1 if group.is_bias else 2
    rank += group.layout is not Layout.PER_EXPERT
    if len(tensor.shape) != rank:
        raise InputError(
            "tensor of experts has the wrong number of dimensions",
            file=tensor.file,
            tensor=group.name,
            found=list(tensor.shape),
            expected=f"{rank} dimensions",
        )


def _whole(group: _Group, tensors: Sequence[Tensor]) -> Tensor:
    """Return one tensor of all experts: stacked in order if there is one for each, else the only one."""
    if group.layout is not Layout.PER_EXPERT:
        return tensors[0]
    _require_rank(group, tensors[0])
    _require_alike(group, tensors)
    return replace(
        tensors[0],
        shape=(len(tensors), *tensors[0].shape),
        storage=StackedStorage(tuple(tensor.storage for tensor in tensors), tensors[0].rows),
    )


def _joined(group: _Group, slots: Mapping[_Slot, _Parts], quantization: Quantization) -> Tensor:
    """Return `gate_up_proj`, or its bias, of gate and up that lie apart."""
    rule = GateUpRows.ALTERNATING if group.nested else quantization.gate_up
    _require_known(group, rule, quantization)
    _require_pairs(group, slots)
    gates, ups = (
        [_numbers(group, slots[slot], quantization) for slot in sorted(slots, key=_order) if slot[1] is half]
        for half in Half
    )
    _require_rank(group, gates[0])
    _require_alike(group, [*gates, *ups])
    gate, up = _whole(group, gates), _whole(group, ups)
    axis = 1 if group.is_bias else 0
    storage: Storage
    if rule is GateUpRows.ALTERNATING:
        storage = InterleavedStorage(gate.storage, up.storage, axis)
    elif group.is_bias:
        storage = AdjoinedStorage(gate.storage, up.storage, gate.columns)
    else:
        pairs = zip(gates, ups, strict=True)
        storage = StackedStorage(tuple(half.storage for pair in pairs for half in pair), gates[0].rows)
    doubled = 1 if axis == 1 else len(gate.shape) - 2
    shape = tuple(2 * size if index == doubled else size for index, size in enumerate(gate.shape))
    return Tensor(group.name, shape, gate.encoding, storage)


def _require_known(group: _Group, rule: GateUpRows | None, quantization: Quantization) -> None:
    """Require that it is known which rows gate and up are; only tensors per expert were ever cut in the middle."""
    if rule is GateUpRows.ALTERNATING:
        return
    if rule is None or group.layout is not Layout.PER_EXPERT:
        raise UnsupportedError(
            "it cannot be told which rows gate_proj and up_proj hold",
            file=group.stored.file.path,
            tensor=group.name,
            found=f"written by {quantization.method}",
            hint=quantization.gate_up_hint,
        )


def _require_pairs(group: _Group, slots: Mapping[_Slot, _Parts]) -> None:
    for half, other in ((Half.GATE, Half.UP), (Half.UP, Half.GATE)):
        for expert, found in slots:
            if found is half and (expert, other) not in slots:
                raise InputError(
                    f"{half.value} without {other.value}",
                    file=group.stored.file.path,
                    tensor=group.name,
                    found=None if expert is None else f"expert {expert}",
                )
