"""Where an artifact departs from the reference: the first stage of the model, and the tensor in it.

Both models are computed exactly, layer by layer. Each stage of the artifact gets the activations of the reference,
so that what it makes of them is its own doing; how far the artifact is off when left to itself is told by layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.verify.forward.batch import Batch
from gptoss_convert.verify.forward.model import EMBEDDING, FINAL_NORM, UNEMBEDDING, Model
from gptoss_convert.verify.forward.precision import precision_named
from gptoss_convert.verify.forward.stages import BLOCKS, HIDDEN, rms_norm, run_layer
from gptoss_convert.verify.metrics.plain import Plain
from gptoss_convert.verify.prompts import PromptSet
from gptoss_convert.verify.structure import compare_configuration
from gptoss_convert.verify.weights import compare_tensor

MOST_POSITIONS = 512
"""Positions that are run; more do not find more."""
UNEMBEDDED_POSITIONS = 32


@dataclass(frozen=True, kw_only=True)
class Departure(Plain):
    """A stage that makes something else of the reference's activations."""

    layer: int | None
    """None before the first layer and after the last."""
    stage: str
    relative_error: float
    """Norm of the difference relative to that of the reference's result."""
    tensors: tuple[str, ...]
    """What the stage uses, by canonical name."""

    @property
    def place(self) -> str:
        """The stage in words."""
        return self.stage if self.layer is None else f"layer {self.layer}, {self.stage}"


@dataclass(frozen=True, kw_only=True)
class Finding(Plain):
    """The departure that is more than the artifact's encodings may lose, or else the largest."""

    departure: Departure
    tensor: str | None
    """The tensor that makes it; None if all that the stage uses is equal, so that the configuration does."""
    reason: str
    """One sentence."""


@dataclass(frozen=True, kw_only=True)
class Bisection(Plain):
    """What a comparison stage by stage found."""

    positions: int
    finding: Finding | None
    """None if no stage departs."""
    departures: tuple[Departure, ...]
    """In the order of computation, up to the finding."""
    hidden_errors: tuple[float, ...]
    """Relative error of the artifact's own hidden state: after the embedding, then after each layer."""


_SHAPE = (
    "num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "num_local_experts", "num_experts_per_tok", "intermediate_size",
)  # fmt: skip


def have_same_stages(reference: Checkpoint, artifact: Checkpoint) -> bool:
    """Return whether each stage of one model can take the activations of the other, and has the same tensors."""
    same_sizes = all(getattr(reference.config, name) == getattr(artifact.config, name) for name in _SHAPE)
    return same_sizes and reference.tensors.keys() == artifact.tensors.keys()


def bisect(reference: Checkpoint, artifact: Checkpoint, prompts: PromptSet) -> Bisection:
    """Find the first stage of an artifact that departs from the reference by more than its encodings may lose.

    Where all departures are as small as encodings promise, the largest is told.

    Raises:
        InputError: a file is damaged, or the artifact lacks a tensor.
    """
    reference.require_sound()
    artifact.require_sound()
    batch = _batch(prompts)
    precision = precision_named("float32")
    with (
        torch.inference_mode(),
        Model(reference, reference.config, precision) as expected,
        Model(artifact, artifact.config, precision) as found,
    ):
        departures: list[Departure] = []
        finding = None
        for departure in _departures(expected, found, batch):
            departures.append(departure)
            finding = _finding(departure, reference, artifact)
            if finding is not None:
                break
        errors = tuple(_hidden_errors(expected, found, batch))
    if finding is None and departures:
        finding = _lossy_finding(max(departures, key=lambda departure: departure.relative_error))
    return Bisection(positions=batch.positions, finding=finding, departures=tuple(departures), hidden_errors=errors)


def _batch(prompts: PromptSet) -> Batch:
    """Return the first prompts, and the first positions of the last of these."""
    chosen: list[tuple[int, ...]] = []
    left = MOST_POSITIONS
    for prompt in prompts.prompts:
        if left:
            chosen.append(prompt.ids[:left])
            left -= len(chosen[-1])
    return Batch.of(chosen)


def _departures(expected: Model, found: Model, batch: Batch) -> Iterator[Departure]:
    """Yield the stages that differ, in the order of computation."""
    hidden = expected.embed(batch)
    yield from _departure(None, "embedding", (EMBEDDING,), hidden, found.embed(batch))
    for layer, other in zip(expected.layers(batch), found.layers(batch), strict=True):
        for block in BLOCKS:
            activations = {HIDDEN: hidden}
            for stage in block:
                result, other_result = stage.run(layer, activations), stage.run(other, activations)
                names = tuple(layer.name(tensor) for tensor in stage.tensors)
                yield from _departure(layer.index, stage.name, names, result, other_result)
                activations[stage.name] = result
            hidden = hidden + result
    normed, other_normed = (
        rms_norm(hidden, model.weights.exact(FINAL_NORM), model.config.rms_norm_eps) for model in (expected, found)
    )
    yield from _departure(None, "final norm", (FINAL_NORM,), normed, other_normed)
    few = hidden[-UNEMBEDDED_POSITIONS:]
    logprobs, other_logprobs = (
        torch.cat([torch.from_numpy(rows) for _, rows in model.logprobs(few)]) for model in (expected, found)
    )
    yield from _departure(None, "unembedding", (UNEMBEDDING,), logprobs, other_logprobs)


def _departure(
    layer: int | None, stage: str, tensors: tuple[str, ...], expected: torch.Tensor, found: torch.Tensor
) -> Iterator[Departure]:
    error = _relative_error(expected, found)
    if error:
        yield Departure(layer=layer, stage=stage, relative_error=error, tensors=tensors)


def _relative_error(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Return the norm of the difference relative to that of what is expected; infinity where one is not finite."""
    error = torch.linalg.vector_norm((found - expected).double()).item()
    if error == 0:
        return 0.0
    norm = torch.linalg.vector_norm(expected.double()).item()
    return error / norm if norm and math.isfinite(error) else math.inf


def _finding(departure: Departure, reference: Checkpoint, artifact: Checkpoint) -> Finding | None:
    """Return what is wrong with a stage; None if its tensors differ by no more than their encodings may lose."""
    comparisons = [compare_tensor(reference.tensors[name], artifact.tensors[name]) for name in departure.tensors]
    failed = next((item for item in comparisons if item.failure is not None), None)
    if failed is not None:
        reason = f"{departure.place} departs: tensor {failed.name} {failed.failure}"
        return Finding(departure=departure, tensor=failed.name, reason=reason)
    if any(item.different for item in comparisons):
        return None
    differing = [check.name for check in compare_configuration(reference, artifact) if check.passed is False]
    reason = f"{departure.place} departs although all of its tensors are equal"
    reason += f": the artifact states another {', '.join(differing)}" if differing else ""
    return Finding(departure=departure, tensor=None, reason=reason)


def _lossy_finding(departure: Departure) -> Finding:
    reason = (
        f"no stage departs by more than the encodings may lose; {departure.place} loses most, "
        f"{departure.relative_error:.2%} of its result"
    )
    return Finding(departure=departure, tensor=None, reason=reason)


def _hidden_errors(expected: Model, found: Model, batch: Batch) -> Iterator[float]:
    """Yield how far the hidden state of the artifact is off when it gets nothing of the reference."""
    hidden, other_hidden = expected.embed(batch), found.embed(batch)
    yield _relative_error(hidden, other_hidden)
    for layer, other in zip(expected.layers(batch), found.layers(batch), strict=True):
        hidden, other_hidden = run_layer(layer, hidden), run_layer(other, other_hidden)
        yield _relative_error(hidden, other_hidden)
