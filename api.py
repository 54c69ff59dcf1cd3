"""The steps in one call each, for programs: `gptoss_convert.open`, `.convert`, `.verify`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from gptoss_convert.canonical_hash import ignore_progress as ignore_verify_progress
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.converters.adapter import with_adapter
from gptoss_convert.converters.conversions import CONVERSIONS, conversion_of
from gptoss_convert.converters.execute import Progress, Report, Resources, execute, ignore_progress
from gptoss_convert.converters.executors import opened_executor
from gptoss_convert.converters.plan import Plan
from gptoss_convert.errors import OptionError
from gptoss_convert.formats import open_checkpoint, open_tokenizer
from gptoss_convert.formats.peft import open_adapter
from gptoss_convert.formats.storage import RemotePath
from gptoss_convert.hub.reference import parse_uri
from gptoss_convert.source_options import locate
from gptoss_convert.verify.policy import read_policy
from gptoss_convert.verify.prompts import PRESETS, PromptSet, load_prompts
from gptoss_convert.verify.verification import LogitsOptions, Verification, VerifyOptions, verify_artifacts

if TYPE_CHECKING:
    from gptoss_convert.converters.conversions import ConversionOptions

Location = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a conversion wrote."""

    plan: Plan
    """Every file, tensor, encoding and byte."""
    report: Report
    """What happened to the numbers."""

    @property
    def output(self) -> Path:
        """The file or folder."""
        return self.plan.output


def open(source: Location, *, adapter: Location | None = None) -> Checkpoint:  # noqa: A001 - as gc.open
    """Open a model of any readable format. No tensor data is read.

    Args:
        source: a folder, a GGUF file, or a model on the Hugging Face Hub as `"hf://owner/name@revision"`, which is
            downloaded into the cache of `huggingface_hub`.
        adapter: folder of a LoRA adapter in PEFT's format, which is merged as the matrices are read.

    Raises:
        InputError: it is damaged, or nothing that can be read.
        UnsupportedError: it is another kind of model, or the adapter cannot be merged.
    """
    checkpoint = open_checkpoint(_located(source))
    return checkpoint if adapter is None else with_adapter(checkpoint, open_adapter(Path(adapter)))


def convert(
    source: Location | Checkpoint,
    output: Location,
    to: str | ConversionOptions,
    *,
    tokenizer: Location | None = None,
    scales_from: Location | Checkpoint | None = None,
    manifest: bool = False,
    replace: bool = False,
    resume: bool = False,
    recheck: bool = True,
    resources: Resources | None = None,
    progress: Progress = ignore_progress,
    executor: str | None = None,
) -> Converted:
    """Convert `source` and write `output`, which appears only when it is complete and on disk.

    Args:
        source: a model, open or where it lies.
        output: the file (GGUF) or folder (all else) to write.
        to: `GgufOptions`, `Bf16Options`, `Mxfp4Options` or `OnnxOptions`; or `"gguf"`, `"bf16"` or `"mxfp4"` for
            the defaults of that conversion.
        tokenizer: folder of the tokenizer, if it is not the source's own.
        scales_from: model in MXFP4 that the source was decoded or tuned from (to MXFP4 only).
        manifest: also write a manifest with the hashes of files and tensors.
        replace: whether an existing output may be replaced.
        resume: whether to go on where an earlier run with the same arguments was stopped, if one was.
        recheck: whether the output is read again and compared before it gets its name.
        resources: how many pieces at once, and memory for them.
        progress: is told what has been written.
        executor: `"dask://HOST:PORT"` for a Dask cluster with a shared file system; None for threads here.

    Raises:
        InputError: the source is damaged, or holds numbers that the encoding cannot hold.
        OptionError: options do not fit the source or the conversion, or there is no such cluster.
        OutputError: the output exists, or cannot be written.
        UnsupportedError: the target cannot express the model.
    """
    options = _default_options(to) if isinstance(to, str) else to
    plan = conversion_of(options).plan(
        _opened(source),
        Path(output),
        options,
        base=None if scales_from is None else _opened(scales_from),
        tokenizer=None if tokenizer is None else open_tokenizer(Path(tokenizer)),
    )
    if manifest:
        plan = plan.with_manifest()
    with opened_executor(executor) as pool:
        report = execute(
            plan,
            resources=resources,
            replace=replace,
            resume=resume,
            recheck=recheck,
            progress=progress,
            executor=pool,
        )
    return Converted(plan=plan, report=report)


def verify(
    reference: Location | Checkpoint,
    *artifacts: Location,
    prompts: str | Location | PromptSet | None = None,
    max_tokens: int | None = None,
    weights: bool = True,
    runtimes: tuple[str, ...] = (),
    provider: str | None = None,
    policy: Location | None = None,
    threads: int | None = None,
    jobs: int | None = None,
    progress: Callable[[str, int], None] = ignore_verify_progress,
) -> Verification:
    """Prove that each artifact is the model `reference`, or say what was lost, where, and who is to blame.

    Args:
        reference: the model, open or where it lies.
        artifacts: what is to be judged, in any readable format.
        prompts: what runtimes are run on: `"quick"`, `"full"`, `"long"`, a file (docs/prompts.md) or a set that is
            loaded already; None to compare structure and weights only, which needs no runtime.
        max_tokens: longer prompts are cut to so many.
        weights: whether every number is compared.
        runtimes: names of runtimes; empty for all those made for the format.
        provider: execution provider for ONNX.
        policy: TOML file with limits that replace the built-in ones.
        threads: of each runtime; None for all cores.
        jobs: chunks of weights at a time; None for all cores, up to four.
        progress: is told the tensor and the bytes that were compared.

    Raises:
        InputError: the reference, the prompts or the policy are damaged.
        OptionError: there is no such runtime, or nothing is left to compare.
    """
    checkpoint = _opened(reference)
    logits = None
    if prompts is not None:
        if not isinstance(prompts, PromptSet):
            place = prompts if isinstance(prompts, str) and prompts in PRESETS else Path(prompts)
            prompts = load_prompts(place, checkpoint.tokenizer, checkpoint.config, max_tokens=max_tokens)
        logits = LogitsOptions(prompts=prompts, runtimes=runtimes, provider=provider, threads=threads)
    options = VerifyOptions(
        weights=weights, logits=logits, policy=None if policy is None else read_policy(Path(policy)), jobs=jobs
    )
    return verify_artifacts(checkpoint, [Path(item) for item in artifacts], options, progress=progress)


def _opened(model: Location | Checkpoint) -> Checkpoint:
    return model if isinstance(model, Checkpoint) else open_checkpoint(_located(model))


def _located(source: Location) -> Path:
    """Return the path of a model, downloaded if it is on the Hub."""
    if not isinstance(source, str) or (reference := parse_uri(source)) is None:
        return cast(Path, source) if isinstance(source, RemotePath) else Path(source)
    return locate(reference)


def _default_options(name: str) -> ConversionOptions:
    if name not in CONVERSIONS:
        raise OptionError("no such conversion", found=name, expected=" or ".join(CONVERSIONS))
    conversion = CONVERSIONS[name]
    if conversion.has_defaults:
        return conversion.options_class()
    raise OptionError(f"a conversion to {name} has no defaults", hint=f"pass {conversion.options}(...)")
