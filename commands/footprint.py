"""`footprint`: how much memory an artifact takes, and whether it fits."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from gptoss_convert import console
from gptoss_convert.errors import OptionError
from gptoss_convert.options import SectionedCommand, Size, common_options
from gptoss_convert.process import CHECK_FAILED, OVER_BUDGET


@click.command(cls=SectionedCommand)
@click.argument("artifact", metavar="ARTIFACT", type=click.Path(path_type=Path))
@click.option(
    "--as", "form", metavar="FORM",
    help="[input] Predict what ARTIFACT would take converted to: gguf, gguf-q8_0, mxfp4, bf16, onnx-cpu, "
    "onnx-directml, onnx-webgpu, onnx-cuda. A folder with nothing but a config.json will do.",
)  # fmt: skip
@click.option(
    "--runtime", metavar="NAME",
    help="[memory] llama.cpp, onnxruntime, onnxruntime-genai or transformers (default: the first that loads it).",
)  # fmt: skip
@click.option(
    "--context", type=click.IntRange(1), metavar="N",
    help="[memory] Tokens that there has to be room for (default: 8192).",
)  # fmt: skip
@click.option(
    "--batch", type=click.IntRange(1), metavar="N",
    help="[memory] Tokens that are computed at once (default: what the runtime takes).",
)  # fmt: skip
@click.option(
    "--kv-type", metavar="TYPE",
    help="[memory] Type of the KV cache, where it can be chosen: f32, f16, bf16, q8_0, q4_0 (default: as the "
    "runtime).",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(1, 1024), metavar="N", help="[memory] Of the runtime (default: cores)."
)
@click.option(
    "--device", type=click.Choice(("cpu", "gpu")), default="cpu", show_default=True,
    help="[memory] What computes; a budget by name knows it itself.",
)  # fmt: skip
@click.option(
    "--budget", "budgets", multiple=True, metavar="SIZE|NAME",
    help="[memory] What there is: 16GB, or a device of docs/footprint.md such as laptop-16gb. Repeatable.",
)  # fmt: skip
@click.option(
    "--fit", "fit_for", metavar="SIZE|NAME",
    help="[memory] Propose what to convert ARTIFACT to for this device, the most exact form that fits, and print "
    "the command. Goes with --context, --threads and --device.",
)  # fmt: skip
@click.option(
    "--measure", "with_measurement", is_flag=True, help="[measurement] Run it in a child process and measure, too."
)
@click.option(
    "--prompt", type=click.IntRange(1), metavar="N", help="[measurement] Tokens of the prompt (default: 1024)."
)
@click.option(
    "--answer", type=click.IntRange(1), metavar="N", help="[measurement] Tokens of the answer (default: 16)."
)
@click.option(
    "--memory-limit", type=Size(), metavar="SIZE",
    help="[measurement] Private memory that the child may reserve (default: no limit; on Linux).",
)  # fmt: skip
@click.option(
    "--largest-error", type=click.FloatRange(0), default=0.1, show_default=True, metavar="SHARE",
    help="[measurement] By how much the prediction may be off.",
)  # fmt: skip
@click.option(
    "--timeout", type=click.FloatRange(1), metavar="SECONDS", help="[measurement] For the child (default: none)."
)
@click.option(
    "--report", type=click.Path(path_type=Path), metavar="DIR",
    help="[reporting] Write report.json, report.md, report.xml and report.html to this folder (docs/reports.md).",
)  # fmt: skip
@click.option("--force", is_flag=True, help="[reporting] Replace files of an older report.")
@common_options
def footprint(
    artifact: Path,
    *,
    form: str | None,
    runtime: str | None,
    budgets: Sequence[str],
    fit_for: str | None,
    with_measurement: bool,
    report: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Predict from headers how much memory ARTIFACT takes in a runtime, and say whether it fits and with how much
    context; --measure runs it and explains the difference.

    The exit code is 6 if it is over a budget or the child ran out of memory, and 1 if the measurement could not be
    completed or the prediction is off by too much.

    \b
    Examples:
      gptoss-convert footprint gpt-oss-20b.gguf --budget laptop-16gb --budget gpu-24gb
      gptoss-convert footprint gpt-oss-120b --as gguf --context 131072 --budget 80GB --device gpu
      gptoss-convert footprint gpt-oss-20b.gguf --context 16384 --measure
      gptoss-convert footprint gpt-oss-20b --fit laptop-16gb --context 65536
    """
    if fit_for is not None:
        chosen = {"--as": form, "--runtime": runtime, "--budget": budgets, "--measure": with_measurement,
                  "--report": report, "--batch": options["batch"], "--kv-type": options["kv_type"]}  # fmt: skip
        _require_none(chosen)
        _fit(artifact, fit_for, options, as_json=as_json, quiet=quiet)
        return
    from gptoss_convert.commands.reporting import check_report, write_report
    from gptoss_convert.console_footprint import print_footprint
    from gptoss_convert.verify.conditions import Conditions as RunConditions
    from gptoss_convert.verify.conditions import now, this_host
    from gptoss_convert.verify.footprint.footprint import MeasureOptions, take_footprint
    from gptoss_convert.verify.footprint.prediction import conditions_for, model_for
    from gptoss_convert.verify.footprint.profiles import find_budget
    from gptoss_convert.verify.footprint.subject import open_subject

    only_measuring = {name: options[name] for name in ("prompt", "answer", "memory_limit", "timeout")}
    if not with_measurement and any(value is not None for value in only_measuring.values()):
        raise OptionError("--prompt, --answer, --memory-limit and --timeout are for --measure")
    if report is not None:
        check_report(report, (artifact,), replace=force)
    started, created = time.monotonic(), now()
    device = options["device"]
    limits = [find_budget(budget, device) for budget in budgets]
    subject = open_subject(artifact, form)
    model = model_for(subject, runtime)
    how = conditions_for(
        subject,
        model,
        context=options["context"],
        batch=options["batch"],
        kv_type=options["kv_type"],
        threads=options["threads"],
        device=device,
    )
    measuring = None
    if with_measurement:
        measuring = MeasureOptions(
            prompt=options["prompt"],
            answer=options["answer"],
            limit=options["memory_limit"],
            timeout=options["timeout"],
            largest_error=options["largest_error"],
        )
    result = take_footprint(subject, model, how, budgets=limits, measuring=measuring)
    if report is not None:
        from gptoss_convert.report.memory import memory_document

        run = RunConditions(created=created, seconds=round(time.monotonic() - started, 3), host=this_host())
        write_report(report, memory_document(result, run), (artifact,), replace=force)
    if as_json:
        console.print_json(result.as_dict())
    elif not quiet:
        print_footprint(result)
    if result.is_over_budget:
        sys.exit(OVER_BUDGET)
    if result.failure is not None:
        sys.exit(CHECK_FAILED)


def _require_none(chosen: Mapping[str, Any]) -> None:
    given = [name for name, value in chosen.items() if value]
    if given:
        raise OptionError(f"{', '.join(given)} and --fit exclude each other: the forms to choose from are fixed")


def _fit(artifact: Path, device: str, options: Mapping[str, Any], *, as_json: bool, quiet: bool) -> None:
    """Print what a device had best be given."""
    from gptoss_convert.console_footprint import print_proposal
    from gptoss_convert.verify.footprint.fit import propose
    from gptoss_convert.verify.footprint.profiles import find_budget

    budget = find_budget(device, options["device"])
    proposal = propose(artifact, budget, context=options["context"], threads=options["threads"])
    if as_json:
        console.print_json(proposal.as_dict())
    elif not quiet:
        print_proposal(proposal)
    if proposal.best is None:
        sys.exit(OVER_BUDGET)
