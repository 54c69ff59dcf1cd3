"""What a conversion did to every tensor, put together from what its tasks found out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gptoss_convert.canonical_hash import CheckpointHash, model_digest, tensor_digest
from gptoss_convert.converters.output import Outputs
from gptoss_convert.converters.plan import Plan, Transfer
from gptoss_convert.converters.recoding import NOTHING_FOUND, Findings, NamingRecoding
from gptoss_convert.converters.tasks import Task, TaskResult
from gptoss_convert.encodings import LossClass
from gptoss_convert.encodings.mxfp4_format import BLOCK, NOT_NAMED
from gptoss_convert.formats.scale_sidecar import ScaleSidecarWriter


@dataclass(frozen=True)
class TensorReport:
    """What a conversion did to a tensor."""

    transfer: Transfer
    findings: Findings
    canonical_hash: str | None = None
    """Of the values that were written; None if none was wanted."""

    @property
    def loss(self) -> LossClass:
        """What happened: rounding that changed no value was exact."""
        if self.transfer.loss is LossClass.LOSSY and not self.findings.changed:
            return LossClass.VALUE_EXACT
        return self.transfer.loss

    def as_dict(self) -> dict[str, Any]:
        """Return what is known as JSON-ready data."""
        return {
            "name": self.transfer.source.name,
            "source_encoding": self.transfer.source.encoding.name,
            "encoding": self.transfer.target.encoding.name,
            "loss": str(self.loss),
            **self.findings.as_dict(),
        }


@dataclass(frozen=True)
class Report:
    """What a conversion did."""

    tensors: tuple[TensorReport, ...]
    """In canonical order."""
    named_scales: int = 0
    """MXFP4 blocks whose scale is named beside the weights, since their values do not tell it."""

    @property
    def loss(self) -> LossClass:
        """The worst that happened to any tensor."""
        return LossClass.worst(tensor.loss for tensor in self.tensors)

    @property
    def hash(self) -> CheckpointHash | None:
        """Canonical hash of what was written; None if none was wanted."""
        digests = {item.transfer.target.name: item.canonical_hash for item in self.tensors}
        known = {name: digest for name, digest in digests.items() if digest is not None}
        return CheckpointHash(model_digest(known), known) if known else None

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        return {
            "loss": str(self.loss),
            "named_scales": self.named_scales,
            "canonical_hash": None if self.hash is None else self.hash.model,
            "tensors": [tensor.as_dict() for tensor in self.tensors],
        }


class Found:
    """Puts together, in the order of the plan, what tasks found out."""

    def __init__(self, plan: Plan, outputs: Outputs) -> None:
        self._plan = plan
        # By identity: two halves of a tensor that are copied one by one have the same name.
        self._findings: dict[int, Findings] = {}
        self._digests: dict[int, list[bytes]] = {}
        path = plan.scale_sidecar
        self._sidecar = None if path is None else ScaleSidecarWriter(outputs.temporary(path))

    def add(self, task: Task, result: TaskResult) -> None:
        """Take what a task found out; tasks of a tensor come in their order.

        Raises:
            OutputError: the file of scales cannot be written.
        """
        name, key = task.transfer.source.name, id(task.transfer)
        self._findings[key] = self._findings.get(key, NOTHING_FOUND) + result.findings
        self._digests.setdefault(key, []).append(result.segment_digests)
        if self._sidecar is not None and isinstance(task.transfer.recoding, NamingRecoding):
            named = result.named_scales
            if named is None:  # also rows without names count, for a matrix may be cut
                shape = task.stop - task.start, task.transfer.source.columns // BLOCK
                named = np.broadcast_to(np.uint8(NOT_NAMED), shape)
            rows = task.transfer.source.shape[-2]
            for matrix in range(task.start // rows, -(-task.stop // rows)):
                first = max(matrix * rows - task.start, 0)
                last = (matrix + 1) * rows - task.start
                self._sidecar.add(name, matrix, named[first:last])

    def close(self) -> None:
        """Complete the file of scales.

        Raises:
            OutputError: it cannot be written.
        """
        if self._sidecar is not None:
            self._sidecar.close()

    def report(self) -> Report:
        """Return what was found out about all tensors."""
        return Report(
            tuple(map(self._tensor, self._plan.transfers)),
            named_scales=0 if self._sidecar is None else self._sidecar.blocks,
        )

    def _tensor(self, transfer: Transfer) -> TensorReport:
        digests = b"".join(self._digests[id(transfer)])
        digest = tensor_digest(transfer.source.shape, digests) if digests else None
        return TensorReport(transfer, self._findings[id(transfer)], digest)
