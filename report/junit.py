"""The report as JUnit's XML: a suite for each artifact, a case for each fact, tensor, run and limit.

Every CI service shows such files as results of tests. What is not compared, or decides nothing, is skipped; what
cannot be judged is an error, since it must not pass for a success.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

from gptoss_convert.report import wording
from gptoss_convert.report.document import Artifact, Comparison, Document, Footprint, Gate, Logits

State = Literal["passed", "failure", "error", "skipped"]
_STATES: dict[str, State] = {"pass": "passed", "fail": "failure", "inconclusive": "error"}


@dataclass(frozen=True)
class _Case:
    group: str
    name: str
    state: State
    message: str = ""
    seconds: float | None = None


def render_junit(document: Document) -> bytes:
    """Return the report as XML in UTF-8."""
    root = ElementTree.Element("testsuites", name=wording.subject(document))
    for index, artifact in enumerate(document.artifacts):
        _add_suite(root, document, artifact.path, list(_cases(document, index, artifact)))
    if document.memory:
        _add_suite(root, document, "memory", [case for item in document.memory for case in _memory_cases(item)])
    ElementTree.indent(root)
    data: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def _add_suite(root: ElementTree.Element, document: Document, name: str, cases: list[_Case]) -> None:
    counts = {
        key: str(sum(case.state == state for case in cases))
        for key, state in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped"))
    }
    total = sum(case.seconds or 0.0 for case in cases)
    created = document.conditions.created.removesuffix("Z")  # the format has no time zone
    facts = {"name": name, "tests": str(len(cases)), **counts, "time": f"{total:.3f}", "timestamp": created}
    suite = ElementTree.SubElement(root, "testsuite", facts)
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in _properties(document).items():
        ElementTree.SubElement(properties, "property", name=key, value=value)
    for case in cases:
        element = ElementTree.SubElement(
            suite, "testcase", classname=f"{name}: {case.group}", name=case.name, time=f"{case.seconds or 0.0:.3f}"
        )
        if case.state != "passed":
            child = ElementTree.SubElement(element, case.state, message=case.message)
            if case.state != "skipped":
                child.set("type", case.state)
                child.text = case.message


def _properties(document: Document) -> dict[str, str]:
    host = document.conditions.host
    facts = {
        document.tool.name: document.tool.version,
        "system": host.system,
        "machine": host.machine,
        "processor": host.processor,
        "cores": host.cores,
        "memory": host.memory,
        "python": host.python,
        "prompts": None if document.prompts is None else document.prompts.ids_sha256,
    }
    return {key: str(value) for key, value in facts.items() if value is not None}


def _cases(document: Document, index: int, artifact: Artifact) -> Iterator[_Case]:
    verdict = artifact.verdict
    yield _Case("verdict", wording.verdict(artifact), _STATES[verdict.outcome], verdict.reason)
    for check in artifact.structure.checks:
        state: State = "skipped" if check.passed is None else "passed" if check.passed else "failure"
        message = f"{check.artifact}, not {check.reference}: {check.note}" if state == "failure" else check.note
        yield _Case("structure", check.name, state, message)
    if artifact.weights is not None:
        for tensor in artifact.weights.tensors:
            yield _Case("weights", tensor.name, "passed" if tensor.passed else "failure", tensor.failure or "")
        for name in artifact.weights.not_compared:
            yield _Case("weights", name, "failure", "could not be compared")
        manifest = artifact.weights.manifest
        if manifest is not None:
            yield _Case(
                "manifest", "manifest", "passed" if manifest.passed else "failure", "; ".join(manifest.findings)
            )
    for logits in artifact.logits:
        yield from _logits_cases(document, index, logits)


def _logits_cases(document: Document, index: int, logits: Logits) -> Iterator[_Case]:
    for number, run in enumerate(logits.runs):
        took = document.conditions_of(index, logits.runtime, number)
        seconds = None if took is None else (took.load_seconds or 0.0) + (took.run_seconds or 0.0)
        # A run that is missing shows in the verdict; which of them fail an artifact, the verdict alone says.
        state: State = "passed" if run.status == "completed" else "skipped"
        yield _Case(f"runs, {logits.runtime}", wording.run(run), state, f"{run.status}: {run.reason}", seconds)
    for comparison in logits.comparisons:
        group = f"{wording.part(comparison, logits.runtime)}, {logits.runtime}"
        for gate in comparison.judgement.gates if comparison.judgement is not None else ():
            yield _Case(group, gate.figure, _gate_state(comparison, gate), wording.gate(gate))


def _gate_state(comparison: Comparison, gate: Gate) -> State:
    state = _STATES[gate.outcome]
    return state if state == "passed" or wording.decides(comparison) else "skipped"


def _memory_cases(item: Footprint) -> Iterator[_Case]:
    name = f"{item.artifact} in {item.runtime}"
    for what, value in (("predicted", item.total), ("measured", item.peak)):
        if value is None or item.budget is None:
            yield _Case(what, name, "skipped", "not measured" if value is None else "there is no budget")
        else:
            state: State = "passed" if value <= item.budget else "failure"
            yield _Case(what, name, state, f"{wording.size(value)} of a budget of {wording.size(item.budget)}")
