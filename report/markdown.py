"""The report as Markdown, for the summary of a CI job.

Names and reasons come from files of strangers. Names stand in code spans, in which nothing is markup; of all other
text every character is escaped that could be.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence

from gptoss_convert.report import wording
from gptoss_convert.report.document import Artifact, Document, Footprint, Logits

LARGEST = 900_000
"""Bytes; GitHub takes 1 MiB for all that a step says."""
MOST_ROWS = 50
"""Of a table with one row per fact or tensor."""
LONGEST_CELL = 400
"""Characters of a name or a reason."""

_PUNCTUATION = re.compile(r"([\\`*_{}\[\]()#+\-.!|~^$:@=\"'/])")
"""What Markdown, or GitHub's kind of it, may take for markup, links or mentions; `<` and `&` become entities."""


def render_markdown(document: Document) -> bytes:
    """Return the report; what does not fit is left out from the end, and that is said."""
    blocks, size = [], 0
    for block in _blocks(document):
        size += len(block.encode()) + 2
        if size > LARGEST:
            blocks.append("The rest is left out here; the JSON document has it.")
            break
        blocks.append(block)
    return ("\n\n".join(blocks) + "\n").encode()


def text(value: object) -> str:
    """Return foreign text so that no character of it is markup."""
    escaped = html.escape(_cut(str(value)), quote=False)
    # The entities of `html.escape` hold no punctuation that is escaped here but `&` and `;`.
    return _PUNCTUATION.sub(r"\\\1", escaped)


def code(value: object) -> str:
    """Return a foreign name as a code span, also for a cell of a table."""
    content = _cut(str(value)) or " "
    fence = "`" * (max((len(run) for run in re.findall(r"`+", content)), default=0) + 1)
    space = " " if content[0] in "` " or content[-1] in "` " else ""
    return f"{fence}{space}{content}{space}{fence}".replace("|", "\\|")


def _cut(content: str) -> str:
    return content if len(content) <= LONGEST_CELL else f"{content[:LONGEST_CELL]}..."


def _blocks(document: Document) -> Iterator[str]:
    yield f"## {text(wording.subject(document))}: {document.outcome.upper()}"
    if document.artifacts:
        yield table(("artifact", "format", "verdict", "mean KL", "top-1"), list(map(_overview, document.artifacts)))
    if document.memory:
        sizes = list(map(_memory, document.memory))
        yield table(("artifact", "runtime", "predicted", "measured", "budget"), sizes, right=2)
    if document.policy is not None and document.policy.changes:
        changes = document.policy.changes
        rows = [(code(item.name), wording.number(item.value), wording.number(item.default)) for item in changes]
        yield "Limits that are not the built-in ones:"
        yield table(("limit", "is", "instead of"), _shortened(rows, 3))
    for artifact in document.artifacts:
        yield from _artifact(artifact)
    yield _origin(document)


def _overview(artifact: Artifact) -> tuple[str, ...]:
    totals = wording.totals(artifact)
    tops = (None if summary.top is None else summary.top.same.mean for _, summary in totals)
    return (
        code(artifact.path),
        text(artifact.format or "unreadable"),
        f"**{text(wording.verdict(artifact))}**",
        ", ".join(text(wording.mean_kl(summary)) for _, summary in totals) or wording.NOTHING,
        ", ".join(text(wording.share(top)) for top in tops) or wording.NOTHING,
    )


def _memory(item: Footprint) -> tuple[str, ...]:
    sizes = (item.total, item.peak, item.budget)
    return code(item.artifact), text(item.runtime), *map(wording.size, sizes)


def _artifact(artifact: Artifact) -> Iterator[str]:
    yield f"### {code(artifact.path)}"
    yield f"**{text(wording.verdict(artifact))}**: {text(artifact.verdict.reason)}"
    lines = [f"- structure: {text(artifact.structure.reason)}"]
    if artifact.weights is not None:
        lines.append(f"- weights: {text(artifact.weights.reason)}")
    lines += [f"- {text(run)}" for run in _unfinished(artifact)]
    if artifact.execution is not None:
        lines.append(f"- execution: {text(artifact.execution.statement)}")
    if artifact.bisection is not None and artifact.bisection.finding is not None:
        lines.append(f"- bisection: {text(artifact.bisection.finding.reason)}")
    yield "\n".join(lines)
    for logits in artifact.logits:
        if logits.comparisons:
            yield f"{text(logits.runtime)}, {logits.comparisons[0].summary.positions} positions:"
            yield figures(logits)
    failed = [item for item in artifact.structure.checks if item.passed is False]
    if failed:
        rows = [(code(item.name), text(item.reference), text(item.artifact), text(item.note)) for item in failed]
        yield table(("fact", "reference", "artifact", "what differs"), _shortened(rows, 4))
    wrong = [] if artifact.weights is None else [item for item in artifact.weights.tensors if not item.passed]
    if wrong:
        reasons = [(code(item.name), text(item.failure)) for item in wrong]
        yield table(("tensor", "what differs"), _shortened(reasons, 2))


def _unfinished(artifact: Artifact) -> Iterator[str]:
    for logits in artifact.logits:
        for run in logits.runs:
            if run.status != "completed":
                yield f"{wording.run(run)}: {run.status}, {run.reason}"


def figures(logits: Logits) -> str:
    """Return the table of what a runtime made of the prompts."""
    rows = [tuple(map(text, wording.figures(item, logits.runtime))) for item in logits.comparisons]
    return table(wording.HEADINGS, rows, right=2)


def _origin(document: Document) -> str:
    lines = []
    prompts, host = document.prompts, document.conditions.host
    if prompts is not None:
        name = text(prompts.name)
        lines.append(
            f"Prompts {name}: {prompts.prompts}, {prompts.positions} positions, {code(prompts.ids_sha256)}."
        )
    tool = f"{document.tool.name} {document.tool.version}"
    lines.append(text(f"{tool}, {document.conditions.created}, {host.system}, {host.machine}."))
    return " ".join(lines)


def _shortened(rows: Sequence[tuple[str, ...]], columns: int) -> list[tuple[str, ...]]:
    if len(rows) <= MOST_ROWS:
        return list(rows)
    return [*rows[:MOST_ROWS], (f"and {len(rows) - MOST_ROWS} more", *[""] * (columns - 1))]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: int | None = None) -> str:
    """Return a table; columns from number `right` on are aligned to the right."""
    aligned = len(headings) if right is None else right
    rule = ["---" if number < aligned else "---:" for number in range(len(headings))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows))
