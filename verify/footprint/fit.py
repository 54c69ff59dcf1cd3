"""The best form of a model for a device: the most exact one that fits, from headers alone."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptoss_convert.checkpoint import Role
from gptoss_convert.encodings import ENCODINGS, LossClass, loss_class
from gptoss_convert.errors import UnsupportedError
from gptoss_convert.verify.footprint.prediction import (
    DEFAULT_CONTEXT,
    conditions_for,
    largest_context,
    model_for,
    predict,
)
from gptoss_convert.verify.footprint.profiles import Budget
from gptoss_convert.verify.footprint.subject import Subject, in_form, open_source
from gptoss_convert.verify.footprint.weights import FORMS, WeightGroup

SCHEMA_VERSION = 1

CANDIDATES: Mapping[str, Mapping[str, str]] = {
    "cpu": {"gguf": "llama.cpp", "gguf-q8_0": "llama.cpp", "onnx-cpu": "onnxruntime-genai"},
    "gpu": {
        "gguf": "llama.cpp",
        "gguf-q8_0": "llama.cpp",
        "onnx-directml": "onnxruntime",
        "onnx-webgpu": "onnxruntime",
        "onnx-cuda": "onnxruntime-genai",
    },
}
"""Forms that are for the edge and the runtimes that run them there, by what computes."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A form that the model could be converted to, on one device."""

    form: str
    runtime: str
    loss: LossClass
    """The worst that the encodings promise; a run may find that nothing was rounded."""
    signal_to_noise: float
    """Decibels that the matrices keep which it rounds most; infinite if it rounds none."""
    weight_bytes: int
    needed: int
    """Bytes with the context that is wanted."""
    fits: bool
    """With that context."""
    largest_context: int | None
    """The largest one that fits; None if none does."""
    command: str
    """That makes it."""

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON-ready data."""
        return {
            "form": self.form,
            "runtime": self.runtime,
            "loss": str(self.loss),
            "least_signal_to_noise": None if math.isinf(self.signal_to_noise) else self.signal_to_noise,
            "weight_bytes": self.weight_bytes,
            "needed": self.needed,
            "fits": self.fits,
            "largest_context": self.largest_context,
            "command": self.command,
        }


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What a device had best be given."""

    path: Path
    budget: Budget
    asked: int | None
    """Tokens that there has to be room for; None if that was left open."""
    context: int
    """Tokens that candidates were judged with."""
    candidates: tuple[Candidate, ...]
    """The most exact one first."""

    @property
    def best(self) -> Candidate | None:
        """The most exact candidate that fits; if the context was left open and none does, that with the largest."""
        fitting = [item for item in self.candidates if item.fits]
        if fitting or self.asked is not None:
            return fitting[0] if fitting else None
        return self.roomiest

    @property
    def roomiest(self) -> Candidate | None:
        """The candidate with the largest context, the more exact one of two that have the same."""
        able = [item for item in self.candidates if item.largest_context is not None]
        return max(able, key=lambda item: item.largest_context or 0, default=None)

    @property
    def best_context(self) -> int | None:
        """Tokens that the best candidate is proposed with: those that are wanted, or as many as fit."""
        if self.best is None or self.best.largest_context is None:
            return None
        return self.context if self.best.fits else self.best.largest_context

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready data, as docs/fit.schema.json describes it."""
        budget, best = self.budget, self.best
        return {
            "schema_version": SCHEMA_VERSION,
            "path": str(self.path),
            "budget": {
                "name": budget.name,
                "title": budget.title,
                "device": budget.device,
                "memory": budget.memory,
                "reserved": budget.reserved,
                "available": budget.available,
            },
            "asked_context": self.asked,
            "context": self.context,
            "candidates": [item.as_dict() for item in self.candidates],
            "proposal": None
            if best is None
            else {"form": best.form, "context": self.best_context, "command": best.command},
        }


def propose(path: Path, budget: Budget, *, context: int | None = None, threads: int | None = None) -> Proposal:
    """Judge every form that suits a device, and order them: exact ones first, then by what rounding leaves.

    Args:
        path: the model; a folder with nothing but a `config.json` is taken for one that was published in MXFP4.
        budget: the device.
        context: tokens that there has to be room for; by default what `conditions_for` takes, or fewer.
        threads: of the runtime.

    Raises:
        InputError: the model is damaged.
        OptionError: the context is longer than the model's.
        UnsupportedError: its numbers were rounded already, or it is another kind of model.
    """
    source = open_source(path)
    _require_whole_numbers(source)
    candidates = [_candidate(source, name, budget, context, threads) for name in CANDIDATES[budget.device]]
    candidates.sort(key=lambda item: (item.loss.severity, -item.signal_to_noise, -(item.largest_context or 0)))
    wanted = min(DEFAULT_CONTEXT, source.config.max_position_embeddings) if context is None else context
    return Proposal(path=path, budget=budget, asked=context, context=wanted, candidates=tuple(candidates))


def _require_whole_numbers(source: Subject) -> None:
    """Refuse a source of which a form that holds the same numbers is already a loss."""
    rounded = sorted({group.encoding for group in source.weights if ENCODINGS[group.encoding].rounds})
    if rounded:
        raise UnsupportedError(
            "numbers of the source were rounded already",
            file=source.path,
            found=", ".join(rounded),
            hint="name the model that it was made of, or ask about the file as it is with --budget",
        )


def _candidate(source: Subject, form: str, budget: Budget, context: int | None, threads: int | None) -> Candidate:
    subject = in_form(source, form)
    model = model_for(subject, CANDIDATES[budget.device][form])
    how = replace(conditions_for(subject, model, context=context, threads=threads), device=budget.device)
    widest = replace(how, batch=model.batch(subject))  # which a short context may have cut
    needed = predict(subject, model, how).needed
    loss, kept = _loss(source.weights, subject.weights)
    return Candidate(
        form=form,
        runtime=model.runtime,
        loss=loss,
        signal_to_noise=kept,
        weight_bytes=subject.nbytes,
        needed=needed,
        fits=needed <= budget.available,
        largest_context=largest_context(subject, model, widest, budget.available),
        command=build_command(source, form),
    )


def _loss(before: Sequence[WeightGroup], after: Sequence[WeightGroup]) -> tuple[LossClass, float]:
    """Return the worst class of all roles, and the decibels that the worst rounding leaves."""
    classes, kept = [], math.inf
    for role, first, second in _pairs(before, after):
        source, target = ENCODINGS[first], ENCODINGS[second]
        found = loss_class(source, target)
        classes.append(found)
        # Norms, biases, sinks and routers are few; what is done to matrices decides.
        if found is LossClass.LOSSY and role in _MATRICES:
            kept = min(kept, target.least_signal_to_noise)
    return LossClass.worst(classes), kept


_MATRICES = {str(role) for role in (Role.EMBEDDING, Role.UNEMBEDDING, Role.ATTENTION, Role.EXPERTS)}


def _pairs(before: Sequence[WeightGroup], after: Sequence[WeightGroup]) -> Iterator[tuple[str, str, str]]:
    for first in before:
        for second in after:
            if first.role == second.role:
                yield first.role, first.encoding, second.encoding


def build_command(source: Subject, form: str) -> str:
    """Return the command that converts `source` to `form`, for a POSIX shell."""
    wanted = FORMS[form]
    stem = source.path.absolute().name.removesuffix(".gguf") or "model"
    name = shlex.quote(str(source.path))
    if wanted.format == "onnx":
        target = form.removeprefix("onnx-")
        return f"gptoss-convert to-onnx {name} -o {shlex.quote(f'{stem}-{target}')} --target {target}"
    options = ""
    dense = _encodings(source, Role.EMBEDDING, Role.UNEMBEDDING, Role.ATTENTION)
    if dense != {wanted.others}:
        options += f" --dense {wanted.others}"
    if _encodings(source, Role.EXPERTS) != {wanted.experts}:
        options += f" --experts {wanted.experts}"
    output = f"{stem}-{wanted.others}.gguf" if wanted.others in form else f"{stem}.gguf"
    if source.path.suffix == ".gguf" and output == source.path.name:
        output = f"{stem}-{wanted.others}.gguf"
    return f"gptoss-convert to-gguf {name} -o {shlex.quote(output)}{options}"


def _encodings(source: Subject, *roles: Role) -> set[str]:
    wanted = set(map(str, roles))
    return {group.encoding for group in source.weights if group.role in wanted}
