"""Merging of adapters: a checkpoint whose tensors are those of another one, changed while they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.checkpoint import Checkpoint, Tensor
from gptoss_convert.encodings import ENCODINGS, Chunk, Encoding, Float32, Order
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.peft import CONFIG_NAME, WEIGHTS_NAME, Adapter, factors, swapped_experts
from gptoss_convert.formats.storage import ReadOnlyStorage

_F32 = ENCODINGS["f32"]
_TILE_VALUES = 1 << 17
"""Values whose change is held at once; it takes 8 bytes for each."""
_BLOCK_PRODUCTS = 1 << 18
"""Products per call of the matrix library. From more on, OpenBLAS starts threads of its own, for which the threads
of a conversion would queue (`interface/gemm.c`: GEMM_MULTITHREAD_THRESHOLD * SMP_THRESHOLD_MIN)."""
_LEAST_BLOCK = 16


def with_adapter(checkpoint: Checkpoint, adapter: Adapter) -> Checkpoint:
    """Return `checkpoint` with `adapter` merged into it. Nothing is read until its tensors are.

    Merged tensors are f32. Where encodings are kept, they get that of the tensor that they were; those that were
    in blocks, as MXFP4 experts are, become bf16.

    Raises:
        InputError: the checkpoint is not sound, or the adapter does not fit it.
        UnsupportedError: the adapter changes a tensor whose encoding cannot be decoded.
    """
    checkpoint.require_sound()
    tensors = dict(checkpoint.tensors)
    for name in (*adapter.pairs, *adapter.replacements):
        if name not in tensors:
            raise InputError(
                "adapter changes a tensor that the model has not", file=adapter.path / WEIGHTS_NAME, tensor=name
            )
    for name, replacement in adapter.replacements.items():
        tensors[name] = _replaced(tensors[name], replacement)
    swapped = swapped_experts(adapter, {name: tensors[name].shape for name in adapter.pairs})
    for name, pair in adapter.pairs.items():
        base = tensors[name]
        if not base.encoding.can_decode:
            raise UnsupportedError(
                "numbers of the source cannot be decoded", file=base.file, tensor=name, found=base.encoding.name
            )
        change = factors(pair, name, base.shape, swapped=swapped or False)
        storage = MergedStorage(base, change.left, change.right, change.scaling)
        tensors[name] = Tensor(name, base.shape, _F32, storage, preferred=_plain(base.kept_encoding))
    return replace(
        checkpoint,
        tensors=tensors,
        notes=(*checkpoint.notes, *_notes(checkpoint, adapter, swapped=swapped)),
        further_files=(*checkpoint.further_files, (adapter.path / CONFIG_NAME).absolute()),
    )


def _plain(encoding: Encoding) -> Encoding:
    """Return the encoding that changed numbers are kept in: there is no fine change of coarse blocks."""
    return encoding if encoding.block == 1 else ENCODINGS["bf16"]


def _replaced(base: Tensor, replacement: Tensor) -> Tensor:
    if replacement.shape != base.shape:
        raise InputError(
            "adapter does not fit the model",
            file=replacement.file,
            tensor=base.name,
            found=f"shape {list(replacement.shape)}",
            expected=list(base.shape),
        )
    return replace(replacement, preferred=_plain(base.kept_encoding))


def _notes(checkpoint: Checkpoint, adapter: Adapter, *, swapped: bool | None) -> Iterator[str]:
    ranks = Counter(pair.rank for pair in adapter.pairs.values())
    kinds = [f"{count} of rank {rank}" for rank, count in sorted(ranks.items())]
    if adapter.replacements:
        kinds.append(f"{len(adapter.replacements)} replaced as a whole")
    changed = [checkpoint.tensors[name] for name in adapter.pairs.keys() | adapter.replacements.keys()]
    trained_on = f", trained on {adapter.base_model}" if adapter.base_model else ""
    yield (
        f"adapter {adapter.path.resolve().name}{trained_on}: merged in float32 into {len(changed)} of "
        f"{len(checkpoint.tensors)} tensors ({', '.join(kinds)})"
    )
    blocks = Counter(tensor.kept_encoding.name for tensor in changed if tensor.kept_encoding.block > 1)
    for name, count in sorted(blocks.items()):
        yield f"{count} of them are no longer {name}: they become bf16 where no other encoding is asked for"
    if swapped is None and any(len(checkpoint.tensors[name].shape) == 3 for name in adapter.pairs):
        yield "the adapter's experts are square: taken as [in, out], as PEFT does with transformers 5"


@dataclass(frozen=True)
class MergedStorage(ReadOnlyStorage):
    """The rows of `base` `[..., out, in]`, to which `scaling * left @ right.T` is added as they are read.

    The change is computed in float64 and rounded to float32 once, in tiles that lie fixed in the matrix, so that
    the same numbers come out whichever rows are read together. Then it is added to the rows in float32.
    """

    base: Tensor
    left: Tensor
    """`[..., out, r]`."""
    right: Tensor
    """`[..., in, r]`."""
    scaling: float
    order: Order = field(default="C", init=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of the base tensor, then those of the adapter."""
        storages = (self.base.storage, self.left.storage, self.right.storage)
        return tuple(dict.fromkeys(file for storage in storages for file in storage.files))

    @property
    def row_group(self) -> int:
        """Rows of one matrix, which share `right`."""
        return self.base.shape[-2]

    def read(self, start: int, stop: int) -> Chunk:
        """Return rows `start` to `stop` as float32 `[rows, in]`.

        Raises:
            InputError: a file changed or cannot be read, or the change is not finite.
        """
        merged = np.empty((stop - start, self.base.columns), np.float32)
        position = start
        while position < stop:
            matrix, first = divmod(position, self.row_group)
            last = min(first + stop - position, self.row_group)
            self._merge(matrix, first, last, merged[position - start : position - start + last - first])
            position += last - first
        return (merged,)

    def _merge(self, matrix: int, first: int, last: int, merged: Float32) -> None:
        """Fill `merged` with rows `first` to `last` of one matrix."""
        height, width = self.row_group, self.base.columns
        tile = max(_TILE_VALUES // width, 1)
        top, bottom = first - first % tile, min(last + -last % tile, height)
        base = self.base.read(matrix * height + first, matrix * height + last)
        left = _float64(self.left, matrix * height + top, matrix * height + bottom)
        right = np.ascontiguousarray(_float64(self.right, matrix * width, (matrix + 1) * width).T)
        for tile_top in range(top, bottom, tile):
            change = self._change(left[tile_top - top : tile_top - top + tile], right)
            begin, end = max(tile_top, first), min(tile_top + tile, last)
            rows = slice(begin - first, end - first)
            with self.base.named_errors():
                values = self.base.encoding.decode(tuple(part[rows] for part in base))
            np.add(values, change[begin - tile_top : end - tile_top], out=merged[rows])

    def _change(self, left: NDArray[np.float64], right: NDArray[np.float64]) -> Float32:
        """Return `scaling * left @ right` for `left` `[rows, r]` and `right` `[r, in]`."""
        rank, width = right.shape
        change = np.empty((len(left), width), np.float64)
        step = max(_BLOCK_PRODUCTS // (len(left) * rank), _LEAST_BLOCK)
        with np.errstate(over="ignore", invalid="ignore"):
            for column in range(0, width, step):
                block = slice(column, column + step)
                np.matmul(left, right[:, block], out=change[:, block])
            change *= self.scaling
            rounded = change.astype(np.float32)
        if not np.isfinite(rounded).all():
            raise InputError("change by the adapter is not finite", file=self.left.file, tensor=self.base.name)
        return rounded


def _float64(tensor: Tensor, start: int, stop: int) -> NDArray[np.float64]:
    """Return rows `start` to `stop` of a factor, contiguous."""
    return tensor.encoding.decode(tensor.read(start, stop)).astype(np.float64, order="C")


__all__ = ["MergedStorage", "with_adapter"]
