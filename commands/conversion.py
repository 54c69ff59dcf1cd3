"""What commands that convert do with their plan."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from gptoss_convert import console
from gptoss_convert.commands.next_steps import next_steps
from gptoss_convert.hub.reference import HubReference, upload_command
from gptoss_convert.options import RunOptions
from gptoss_convert.process import CHECK_FAILED, Arguments


def convert(plan: Any, run: RunOptions, source: Any, tokenizer: Any, named: HubReference | Path) -> None:
    """Print a plan; or execute it, and compare what was written if that is wanted."""
    from gptoss_convert.converters.execute import execute
    from gptoss_convert.converters.executors import opened_executor

    if run.manifest:
        plan = plan.with_manifest()
    if run.dry_run:
        if run.as_json:
            console.print_json(plan.as_dict())
        elif not run.quiet:
            console.print_plan(plan, every_tensor=True)
            if run.verify:
                console.say("note: the output would then be compared with the source")
        _tell_of_unfinished(plan, run)
        return
    _tell_of_unfinished(plan, run)
    started = time.monotonic()
    with (
        opened_executor(run.executor) as executor,
        console.progress_bar(plan.data_nbytes, shown=run.shows_progress) as progress,
    ):
        try:
            report = execute(
                plan,
                resources=run.resources(),
                replace=run.force,
                resume=run.resume,
                recheck=not run.no_recheck,
                progress=progress,
                executor=executor,
            )
        except KeyboardInterrupt:
            _tell_how_to_resume(plan)
            raise
    seconds = time.monotonic() - started
    if not run.quiet and not run.as_json:
        console.print_plan(plan, every_tensor=False)
        console.print_report(report)
        console.say(f"done in {seconds:.1f} s, {console.human_bytes(plan.nbytes / max(seconds, 1e-9))}/s")
    compared = _compared(plan, run, source, tokenizer) if run.verify else None
    if run.as_json:
        document = plan.as_dict() | {"report": report.as_dict(), "seconds": round(seconds, 3)}
        console.print_json(document | ({} if compared is None else {"verification": compared.as_dict()}))
    if compared is not None and not compared.passed:
        console.say(f"verification failed; what was written is still there: {plan.output}")
        sys.exit(CHECK_FAILED)
    if not run.quiet and not run.as_json:
        is_source = run.adapter is None and run.tokenizer is None and not isinstance(named, HubReference)
        for line in next_steps(plan, comparable=is_source, compared=run.verify):
            console.say(line)
    if isinstance(named, HubReference) and not run.quiet and not run.as_json:
        console.say(f"source: {plan.source}")
        console.say(f"to publish it: {upload_command(plan.output)}")


def _tell_of_unfinished(plan: Any, run: RunOptions) -> None:
    """Say what a run does with what an earlier one left unfinished."""
    from gptoss_convert.converters.session import find_unfinished

    unfinished = find_unfinished(plan)
    if run.quiet or (unfinished is None and not run.resume):
        return
    if unfinished is None:
        console.say("note: nothing is there to resume; begins anew")
    elif run.resume:
        console.say(f"note: resumes an unfinished output, of which {unfinished.share:.0%} is written")
    else:
        console.say(
            f"note: begins anew and removes an unfinished output, of which {unfinished.share:.0%} is written; "
            "--resume would go on with it"
        )


def _tell_how_to_resume(plan: Any) -> None:
    """Say what a run that was interrupted has left, and the command that goes on with it."""
    from gptoss_convert.converters.session import find_unfinished

    unfinished = find_unfinished(plan)
    if unfinished is not None:
        arguments = click.get_current_context().find_object(Arguments) or Arguments()
        console.say(f"{unfinished.share:.0%} is written and stays; go on with: {arguments.command('--resume')}")


def _compared(plan: Any, run: RunOptions, source: Any, tokenizer: Any) -> Any:
    """Compare what was written with its source, and print what was found."""
    from gptoss_convert.console_verification import print_artifact
    from gptoss_convert.verify.verification import verify_written

    total = sum(tensor.nbytes for tensor in source.tensors.values())
    with console.progress_bar(total, shown=run.shows_progress) as progress:
        result = verify_written(source, plan.output, tokenizer=tokenizer, jobs=run.jobs, progress=progress)
    if not run.quiet and not run.as_json:
        print_artifact(result)
    return result
