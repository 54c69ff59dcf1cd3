"""Making a bundle: what goes into it is planned, then copied and written into a folder that appears as a whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from gptoss_convert import __version__
from gptoss_convert.assets import KNOWN, MANIFEST
from gptoss_convert.bundle import texts
from gptoss_convert.bundle.runtimes import BundleRuntime, runtime_of
from gptoss_convert.bundle.texts import Facts
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.converters.execute import Progress, ignore_progress
from gptoss_convert.converters.manifest import TOOL, VERSION, hash_file
from gptoss_convert.converters.output import new_folder
from gptoss_convert.converters.plan import PlannedFile
from gptoss_convert.errors import BudgetError, OptionError, OutputError, VerificationError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.storage import FileRef
from gptoss_convert.verify.footprint.prediction import (
    DEFAULT_CONTEXT,
    conditions_for,
    largest_context,
    model_for,
    predict,
)
from gptoss_convert.verify.footprint.profiles import Budget
from gptoss_convert.verify.footprint.subject import open_subject
from gptoss_convert.verify.footprint.verdict import Fit, Verdict, judge
from gptoss_convert.verify.pack.reader import Pack, read_pack
from gptoss_convert.verify.structure import compare_structure

KIND = "bundle"
_COPIED_AT_ONCE = 64 << 20
"""Bytes between two notes of progress."""
_WEIGHTS = (".onnx.data",)


@dataclass(frozen=True, kw_only=True)
class BundlePlan:
    """A bundle that is yet to be made."""

    folder: Path
    artifact: Path
    facts: Facts
    copies: Mapping[str, FileRef]
    """What is copied, by its name in the bundle."""
    written: Mapping[str, bytes]
    """Everything else but the manifest, by name."""
    left_out: tuple[str, ...]
    """Files beside the artifact that are not known."""

    @property
    def nbytes(self) -> int:
        """Of all files but the manifest."""
        return sum(file.size for file in self.copies.values()) + sum(map(len, self.written.values()))

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON-ready data."""
        return {
            "folder": str(self.folder),
            "artifact": str(self.artifact),
            "runtime": self.facts.runtime.name,
            "context": self.facts.context,
            "footprint": self.facts.verdict.as_dict(),
            "nbytes": self.nbytes,
            "files": [*self.copies, *self.written, MANIFEST],
            "left_out": list(self.left_out),
        }


def plan_bundle(
    artifact: Path,
    folder: Path,
    budget: Budget,
    pack: Path,
    *,
    context: int | None = None,
    threads: int | None = None,
    allow_over_budget: bool = False,
) -> BundlePlan:
    """Say what a bundle will hold. Reads headers and the pack.

    Args:
        artifact: a GGUF file, whole or the first of its shards, or an ONNX folder.
        folder: the new folder.
        budget: the device.
        pack: what was recorded of the model that the artifact was made from.
        context: tokens that the start script asks for; by default 8,192, or as many as fit.
        threads: of the runtime on the device; by default as many as this machine has cores.
        allow_over_budget: whether a bundle is made for a device that is too small.

    Raises:
        BudgetError: the artifact needs more than the device has.
        InputError: the artifact or the pack is damaged.
        OptionError: the artifact is made for something else than the device, or its name is not plain.
        OutputError: there is something at `folder`.
        UnsupportedError: it is no form for the edge.
        VerificationError: the pack is of another model.
    """
    _require_new(folder)
    checkpoint = open_checkpoint(artifact)
    checkpoint.require_sound()
    # A folder may be named by the graph in it.
    place = artifact.parent if checkpoint.format == "onnx" and artifact.is_file() else artifact
    runtime = runtime_of(checkpoint, place)
    if runtime.device not in (None, budget.device):
        raise OptionError(
            f"the artifact is made for {runtime.title}",
            file=artifact,
            found=f"a device whose {budget.device} computes",
            hint="name another device, or `--computes gpu` if a size is that of a GPU",
        )
    verdict = _verdict(place, runtime, budget, context, threads, must_fit=not allow_over_budget)
    packed = read_pack(pack)
    structure = compare_structure(packed.model, checkpoint)
    if not structure.passed:
        raise VerificationError(f"the pack is of another model: {structure.reason}", file=pack)
    copies, left_out = _copies(checkpoint, place, artifact)
    facts = _facts(_name(checkpoint, place), runtime, verdict, packed)
    written = _written(facts, place, checkpoint, copies)
    copies = {**copies, texts.PACK: FileRef.at(pack)}
    return BundlePlan(
        folder=folder.absolute(), artifact=artifact, facts=facts, copies=copies, written=written, left_out=left_out
    )


def _require_new(folder: Path) -> None:
    try:
        if not folder.absolute().parent.is_dir():
            raise OutputError("output folder does not exist", file=folder.absolute().parent, hint="create it first")
        if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError("output exists", file=folder, hint="remove it yourself, or choose another name")
    except OSError as error:
        raise OutputError(f"cannot write: {error.strerror or error}", file=folder) from error


def _verdict(
    place: Path, runtime: BundleRuntime, budget: Budget, context: int | None, threads: int | None, *, must_fit: bool
) -> Verdict:
    """Judge the artifact by the device's memory, with a context that fits if none is asked for."""
    subject = open_subject(place)
    model = model_for(subject, runtime.runtime)
    longest = subject.config.max_position_embeddings
    widest = replace(conditions_for(subject, model, context=longest, threads=threads), device=budget.device)
    largest = largest_context(subject, model, widest, budget.available)
    if context is None:
        context = min(DEFAULT_CONTEXT, longest, largest or longest)
    how = replace(conditions_for(subject, model, context=context, threads=threads), device=budget.device)
    verdict = judge(budget, predict(subject, model, how), largest, None)
    if verdict.fit is Fit.OVER and must_fit:
        room = "no context fits" if largest is None else f"up to {largest:,} tokens fit"
        raise BudgetError(
            f"too large for {budget.name} with a context of {context:,}",
            file=place,
            found=verdict.reason,
            hint=f"{room}; --allow-over-budget makes the bundle all the same",
        )
    return verdict


def _copies(checkpoint: Checkpoint, place: Path, artifact: Path) -> tuple[dict[str, FileRef], tuple[str, ...]]:
    """Return the artifact's files by their names in the bundle, and names of those that are not known."""
    if checkpoint.format == "onnx":
        name = place.resolve().name
        found = sorted(path for path in place.iterdir() if path.is_file())
        weights = {path.name for path in checkpoint.files}
        known = [
            path for path in found if path.name in KNOWN or path.name in weights or path.name.endswith(_WEIGHTS)
        ]
        left_out = tuple(path.name for path in place.iterdir() if path not in known)
        copies = {f"{name}/{path.name}": path for path in known}
    else:
        left_out = ()
        manifest = artifact.with_name(f"{artifact.name}.{MANIFEST}")
        copies = {path.name: path for path in (*checkpoint.files, manifest) if path != manifest or path.is_file()}
    for inner in copies:
        for part in PurePosixPath(inner).parts:
            if not texts.PLAIN_NAME.fullmatch(part):
                raise OptionError(
                    "a name that goes into scripts is not plain",
                    file=artifact,
                    found=part,
                    expected="letters, digits, . _ -",
                    hint="rename it",
                )
    return {inner: FileRef.at(path) for inner, path in copies.items()}, tuple(sorted(left_out))


def _name(checkpoint: Checkpoint, place: Path) -> str:
    """Return what is to be opened in the bundle: the folder, the file, or the first of its shards."""
    name = place.resolve().name if checkpoint.format == "onnx" else checkpoint.files[0].name
    if name.casefold() in _OWN_NAMES:
        raise OptionError("the bundle itself uses this name", file=place, hint="rename it")
    return name


def _facts(name: str, runtime: BundleRuntime, verdict: Verdict, packed: Pack) -> Facts:
    return Facts(
        name=name,
        runtime=runtime,
        context=verdict.prediction.conditions.context,
        verdict=verdict,
        reference=packed.source,
        canonical_hash=packed.canonical_hash,
        prompts=packed.prompts.name,
        positions=packed.prompts.positions,
    )


_OWN_NAMES = {
    name.casefold()
    for name in (texts.PACK, texts.LOCK, texts.README, texts.MODELFILE, texts.PROGRAM, MANIFEST,
                 "start.sh", "start.cmd", "verify.sh", "verify.cmd")
}  # fmt: skip


def _written(
    facts: Facts, place: Path, checkpoint: Checkpoint, copies: Mapping[str, FileRef]
) -> Mapping[str, bytes]:
    stated = {texts.LOCK: texts.lock_file(facts.runtime), **texts.scripts(facts)}
    if facts.runtime.name != "llama.cpp":
        stated[texts.PROGRAM] = texts.program(
            place, checkpoint.config, target=facts.runtime.name, context=facts.context
        )
    elif len(checkpoint.files) == 1:
        stated[texts.MODELFILE] = texts.modelfile(facts)
    stated[texts.README] = texts.readme(facts, [*copies, *stated])
    return {name: content.encode() for name, content in stated.items()}


def write_bundle(plan: BundlePlan, *, progress: Progress = ignore_progress) -> Path:
    """Make a bundle, and return its folder. Files are copied by the system where it can; none is held in memory.

    Raises:
        InputError: a file changed since the plan was made.
        OutputError: the bundle cannot be written; nothing is left of it.
    """
    folder = plan.folder
    planned = [PlannedFile(folder / name, file.size, b"") for name, file in plan.copies.items()]
    planned += [PlannedFile(folder / name, len(content), content) for name, content in plan.written.items()]
    manifest = folder / MANIFEST
    with new_folder(folder, planned, made_at_the_end=[manifest]) as outputs:
        for name, file in plan.copies.items():
            for start in range(0, file.size, _COPIED_AT_ONCE):
                count = min(_COPIED_AT_ONCE, file.size - start)
                outputs.copy(folder / name, start, file, start, count)
                progress(name, count)
        for name in plan.written:
            if name.endswith(".sh"):
                _make_executable(outputs.temporary(folder / name), folder / name)
        hashes = {name: hash_file(outputs.temporary(folder / name)) for name in (*plan.copies, *plan.written)}
        outputs.create(manifest, _manifest(plan, hashes))
    return folder


def _make_executable(temporary: Path, path: Path) -> None:
    try:
        temporary.chmod(temporary.stat().st_mode | 0o111)
    except OSError as error:
        raise OutputError(f"cannot write: {error.strerror or error}", file=path) from error


def _manifest(plan: BundlePlan, hashes: Mapping[str, tuple[int, str]]) -> bytes:
    """Return what `gptoss-convert check` reads: the same for the same files, device and version."""
    facts = plan.facts
    document = {
        "kind": KIND,
        "manifest_version": VERSION,
        "tool": {"name": TOOL, "version": __version__},
        "artifact": facts.name,
        "runtime": facts.runtime.name,
        "reference": {"name": facts.reference, "canonical_hash": facts.canonical_hash},
        "context": facts.context,
        "threads": facts.verdict.prediction.conditions.threads,
        "footprint": facts.verdict.as_dict(),
        "files": [
            {"name": name, "nbytes": nbytes, "sha256": sha256} for name, (nbytes, sha256) in sorted(hashes.items())
        ],
    }
    return (json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False) + "\n").encode()
