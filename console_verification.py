"""What the command line shows of a verification: a few lines per artifact, tables of figures, and the verdict."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gptoss_convert.console import human_bytes, make_console, make_table
from gptoss_convert.errors import printable
from gptoss_convert.verify.parts import IN_WORDS, TOTAL

if TYPE_CHECKING:
    from rich.console import Console

    from gptoss_convert.verify.bisect import Bisection
    from gptoss_convert.verify.logits import Comparison, LogitsResult
    from gptoss_convert.verify.metrics.summary import Summary
    from gptoss_convert.verify.runners.launch import Run
    from gptoss_convert.verify.verification import ArtifactResult, Verification

NOTHING = "-"


def print_verification(verification: Verification) -> None:
    """Print what was compared, what was found, and the verdict on each artifact."""
    console = make_console()
    console.print(printable(f"reference  {verification.reference} ({verification.reference_format})"))
    pack = verification.pack
    if pack is not None:
        kept = "all" if pack["whole"] else f"the {pack['columns']} likeliest"
        console.print(
            printable(
                f"recorded   of {pack['source']}, canonical hash {pack['canonical_hash']}, log-probabilities of "
                f"{kept} tokens, by gptoss-convert {pack['tool']}"
            )
        )
    prompts = verification.prompts
    if prompts is not None:
        console.print(
            printable(
                f"prompts    {prompts.name}: {len(prompts.prompts)} prompts, {prompts.positions} positions, "
                f"SHA-256 of their ids {prompts.sha256}"
            )
        )
        for remark in prompts.remarks:
            console.print(printable(f"           {remark}"))
    for change in verification.changes:
        console.print(printable(f"policy     {change.name} is {change.value} instead of {change.default}"))
    for artifact in verification.artifacts:
        console.print()
        print_artifact(artifact)
    if len(verification.artifacts) > 1:
        console.print()
        _print_overview(console, verification)


def _print_overview(console: Console, verification: Verification) -> None:
    """Print a line for each artifact: what scrolled away, in one place."""
    table = make_table(
        f"{verification.outcome.upper()}, all artifacts",
        ("artifact", "left"), ("format", "left"), ("verdict", "left"), ("numbers", "left"), ("mean KL", "right"),
        ("top-1", "right"),
    )  # fmt: skip
    for artifact in verification.artifacts:
        totals = [comparison.summary for result in artifact.logits if (comparison := result.comparison(TOTAL))]
        cause = f" ({artifact.verdict.cause})" if artifact.verdict.cause else ""
        tops = (None if summary.top is None else summary.top.same.mean for summary in totals)
        cells = (
            str(artifact.path),
            artifact.format or "unreadable",
            f"{artifact.verdict.outcome.upper()}{cause}",
            NOTHING if artifact.weights is None else str(artifact.weights.loss),
            ", ".join(map(_mean, totals)) or NOTHING,
            ", ".join(map(_share, tops)) or NOTHING,
        )
        table.add_row(*map(printable, cells))
    console.print(table)


def print_artifact(artifact: ArtifactResult) -> None:
    """Print what was found out about one artifact, and the verdict."""
    console = make_console()
    limits = f", limits for {artifact.profile}" if artifact.profile else ""
    console.print(printable(f"{artifact.path} ({artifact.format or 'unreadable'}{limits})"))
    console.print(printable(f"  structure  {_said(artifact.structure.passed)}: {artifact.structure.reason}"))
    if artifact.weights is not None:
        console.print(printable(f"  weights    {_said(artifact.weights.passed)}: {artifact.weights.reason}"))
    for result in artifact.logits:
        _print_logits(console, result)
    if artifact.execution is not None:
        console.print(printable(f"  execution  {artifact.execution.statement}"))
    if artifact.bisection is not None:
        _print_bisection(console, artifact.bisection)
    verdict = artifact.verdict
    cause = f" ({verdict.cause})" if verdict.cause else ""
    console.print(printable(f"  {verdict.outcome.upper()}{cause}: {verdict.reason}"), style="bold")


def _print_bisection(console: Console, bisection: Bisection) -> None:
    finding = bisection.finding
    reason = "no stage departs from the reference" if finding is None else finding.reason
    console.print(printable(f"  bisection  {reason}"))
    errors = ", ".join(f"{error:.1e}" for error in bisection.hidden_errors)
    console.print(f"             hidden state off by (embedding, then after each layer): {errors}")


def _print_logits(console: Console, result: LogitsResult) -> None:
    for run in result.runs:
        console.print(printable(f"  ran        {_run(run)}"))
    if result.noise_floor is not None:
        console.print(f"  noise      reference in bfloat16: mean KL {result.noise_floor:.2g}")
    if not result.comparisons:
        return
    table = make_table(
        f"{result.runtime}: next-token distributions at {result.comparisons[0].summary.positions} positions",
        ("what differs", "left"), ("mean KL [95 %]", "left"), ("median", "right"), ("99.9 %", "right"),
        ("top-1", "right"), ("clear top-1", "right"), ("top-10", "right"), ("RMS dp", "right"), ("PPL", "right"),
        ("experts", "right"), ("limits", "left"),
    )  # fmt: skip
    table.columns[1].no_wrap = True  # an interval is read in one piece; where space is short, words go to new lines
    for comparison in result.comparisons:
        table.add_row(*map(printable, _row(comparison, result.runtime)))
    console.print(table)


def _row(item: Comparison, runtime: str) -> tuple[str, ...]:
    summary, routing, judgement = item.summary, item.routing, item.judgement
    divergence, top, following = summary.divergence, summary.top, summary.next_tokens
    steady = None if routing is None else routing.steady_share
    excused = ", steady positions" if judgement is not None and judgement.routing_excused else ""
    return (
        IN_WORDS[item.part].format(runtime),
        _mean(summary),
        NOTHING if divergence is None else f"{divergence.median:.2g}",
        NOTHING if divergence is None else f"{divergence.p99_9:.2g}",
        _share(None if top is None else top.same.mean),
        _share(None if top is None or top.same_outside_near_ties is None else top.same_outside_near_ties.mean),
        _share(None if top is None else top.overlap),
        _share(None if following is None else following.rms_change),
        NOTHING if following is None else f"{math.expm1(following.log_ratio):+.3%}",
        _share(steady) if routing is not None and routing.criterion == "experts" else NOTHING,
        "-" if judgement is None else f"{judgement.outcome} ({judgement.profile}{excused})",
    )


def _mean(summary: Summary) -> str:
    if summary.divergence is None:
        return NOTHING
    estimate = summary.divergence.mean
    text = f"{'>= ' if summary.bounded else ''}{estimate.mean:.2g}"
    return text if estimate.low is None else f"{text} [{estimate.low:.1g}, {estimate.high:.1g}]"


def _share(share: float | None) -> str:
    return NOTHING if share is None else f"{share:.2%}"


def _run(run: Run) -> str:
    manner = f" as {run.settings.imitates} computes" if run.settings.imitates else ""
    if run.settings.dtype != "float32":
        manner += f" in {run.settings.dtype}"
    text = f"{run.artifact} in {run.runtime}{manner}: {run.status}"
    if run.reason is not None:
        return f"{text}, {run.reason}"
    if run.prefill_positions is not None:
        text += f", prefill {run.prefill_positions} positions, decode {run.decode_positions}"
    if run.memory is not None:
        private = "" if run.memory.private is None else f" ({human_bytes(run.memory.private)} private)"
        text += f", peak memory {human_bytes(run.memory.resident)}{private}"
    if run.provider is not None:
        text += f", computed by {run.provider}"
    seconds = (run.load_seconds or 0.0) + (run.run_seconds or 0.0)
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    return f"{text}, {seconds:.1f} s; {versions}"


def _said(passed: bool) -> str:
    return "pass" if passed else "FAIL"
