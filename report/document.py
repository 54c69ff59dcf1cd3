"""The document that a report is made of, as far as reports look at it.

It may come from a stranger: every type is checked, numbers have bounds, and no text holds a control character.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from gptoss_convert.assets import read_small_file
from gptoss_convert.errors import InputError, printable

SCHEMA_VERSION = 2
LARGEST_DOCUMENT = 128 << 20
"""Bytes; a verification of the largest model takes one megabyte for each artifact."""

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Number = Annotated[float, msgspec.Meta(ge=-1e308, le=1e308)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Outcome = Literal["pass", "fail", "inconclusive"]


class _Part(msgspec.Struct, kw_only=True, frozen=True):
    """An object of the document; keys that reports do not look at are passed over."""


class Tool(_Part, frozen=True):
    """What wrote the document."""

    name: str
    version: str


class Reference(_Part, frozen=True):
    """The model that artifacts are held against."""

    path: str
    format: str


class Change(_Part, frozen=True):
    """A limit that is not the built-in one."""

    name: str
    value: Number | None
    default: Number | None


class Policy(_Part, frozen=True):
    """The limits."""

    changes: list[Change]


class Prompts(_Part, frozen=True):
    """What was run."""

    name: str
    prompts: Count
    positions: Count
    ids_sha256: str
    remarks: list[str]


class Verdict(_Part, frozen=True):
    """An outcome and its reason."""

    outcome: Outcome
    cause: str | None
    reason: str


class Check(_Part, frozen=True):
    """One fact on both sides; `passed` is None if it was not compared."""

    name: str
    reference: str
    artifact: str
    passed: bool | None
    note: str


class Structure(_Part, frozen=True):
    """All facts."""

    passed: bool
    reason: str
    checks: list[Check]


class LayerError(_Part, frozen=True):
    """Tensors of one group in one layer."""

    layer: Count | None
    group: str
    tensors: Count
    different: Count
    relative_error: Number
    tensor: str


class TensorFacts(_Part, frozen=True):
    """One tensor, number by number."""

    name: str
    reference: str
    artifact: str
    found: str
    values: Count
    different: Count
    largest_error: Number | None
    signal_to_noise: Number | None
    relative_error: Number | None
    passed: bool
    failure: str | None


class Manifest(_Part, frozen=True):
    """What the manifest beside the artifact says."""

    passed: bool
    findings: list[str]


class Weights(_Part, frozen=True):
    """All tensors."""

    passed: bool
    reason: str
    loss: str
    not_compared: list[str]
    manifest: Manifest | None
    layers: list[LayerError]
    tensors: list[TensorFacts]


class Estimate(_Part, frozen=True):
    """A mean and its interval."""

    mean: Number | None
    low: Number | None
    high: Number | None


class Divergence(_Part, frozen=True):
    """KL(reference || test) in nats."""

    mean: Estimate
    median: Number | None
    p99_9: Number | None
    largest: Number | None


class Top(_Part, frozen=True):
    """The likeliest tokens."""

    same: Estimate
    same_outside_near_ties: Estimate | None
    overlap: Share | None


class NextTokens(_Part, frozen=True):
    """The tokens that come next in the prompts."""

    rms_change: Number | None
    log_ratio: Number | None


class Summary(_Part, frozen=True):
    """Figures of all scored positions."""

    positions: Count
    nan: Count
    infinite: Count
    bounded: bool
    divergence: Divergence | None
    top: Top | None
    next_tokens: NextTokens | None


class Bin(_Part, frozen=True):
    """Positions with a divergence from `low` on and below `high`."""

    low: Annotated[float, msgspec.Meta(ge=1e-300, le=1e300)]
    high: Annotated[float, msgspec.Meta(ge=1e-300, le=1e300)]
    count: Count


class Percentile(_Part, frozen=True):
    """The divergence that a share of the positions is not above."""

    level: Share
    value: Number | None


class Stretch(_Part, frozen=True):
    """Positions of all prompts from `first` up to and with `last`."""

    first: Count
    last: Count
    positions: Count
    same_top1: Share
    mean_kl: Number | None
    median_kl: Number | None


class Spread(_Part, frozen=True):
    """How the divergences of the positions are spread."""

    below: Count
    histogram: list[Bin]
    percentiles: list[Percentile]
    by_position: list[Stretch]


class Routing(_Part, frozen=True):
    """Positions with the same experts."""

    criterion: Literal["experts", "margin"]
    steady_share: Share | None
    layer_shares: list[Share] | None


class Gate(_Part, frozen=True):
    """A figure and its limit."""

    figure: str
    value: Number | None
    limit: Number
    outcome: Outcome
    low: Number | None
    high: Number | None


class Judgement(_Part, frozen=True):
    """What limits say about a comparison."""

    profile: str
    outcome: Outcome
    gates: list[Gate]
    routing_excused: bool


class Comparison(_Part, frozen=True):
    """Two runs on the same prompts."""

    part: str
    reference: str
    test: str
    summary: Summary
    spread: Spread
    routing: Routing | None
    judgement: Judgement | None


class Run(_Part, frozen=True):
    """What was run."""

    runtime: str
    artifact: str
    dtype: str
    imitates: str | None
    provider: str | None
    status: str
    reason: str | None
    versions: dict[str, str]


class Logits(_Part, frozen=True):
    """What one runtime made of an artifact."""

    runtime: str
    verdict: Verdict
    noise_floor: Number | None
    comparisons: list[Comparison]
    runs: list[Run]

    def comparison(self, part: str) -> Comparison | None:
        """Return the comparison of this part, if it was made."""
        return next((item for item in self.comparisons if item.part == part), None)


class Finding(_Part, frozen=True):
    """The first stage that departs."""

    reason: str


class Bisection(_Part, frozen=True):
    """What a comparison stage by stage found."""

    finding: Finding | None
    hidden_errors: list[Number | None]


class Execution(_Part, frozen=True):
    """What was executed of an ONNX folder, and what only checked."""

    statement: str


class Artifact(_Part, frozen=True):
    """What was found out about one artifact."""

    path: str
    format: str | None
    profile: str | None
    verdict: Verdict
    structure: Structure
    weights: Weights | None
    logits: list[Logits]
    execution: Execution | None
    bisection: Bisection | None


class Phase(_Part, frozen=True):
    """Bytes in one phase of a run."""

    resident: Count
    anonymous: Count | None
    file_backed: Count | None


class Footprint(_Part, frozen=True):
    """Memory of an artifact in a runtime."""

    artifact: str
    runtime: str
    predicted: dict[str, Count]
    measured: dict[str, Phase] | None
    budget: Count | None

    @property
    def total(self) -> int:
        """The bytes that are predicted."""
        return sum(self.predicted.values())

    @property
    def peak(self) -> int | None:
        """The most resident bytes of all phases; None if nothing was measured."""
        return max((phase.resident for phase in (self.measured or {}).values()), default=None)


class Host(_Part, frozen=True):
    """The machine."""

    system: str
    machine: str
    processor: str | None
    cores: Count | None
    memory: Count
    python: str


class PeakMemory(_Part, frozen=True):
    """Bytes of a process."""

    resident: Count
    private: Count | None


class RunConditions(_Part, frozen=True):
    """What a run took."""

    artifact: Count
    runtime: str
    run: Count
    load_seconds: Number | None
    run_seconds: Number | None
    peak_memory: PeakMemory | None


class Conditions(_Part, frozen=True):
    """When, where and how long."""

    created: str
    seconds: Number | None
    host: Host
    runs: list[RunConditions]


class Document(_Part, frozen=True):
    """All that was found out."""

    tool: Tool
    reference: Reference | None
    outcome: Outcome
    policy: Policy | None
    prompts: Prompts | None
    artifacts: list[Artifact]
    memory: list[Footprint]
    conditions: Conditions

    def conditions_of(self, artifact: int, runtime: str, run: int) -> RunConditions | None:
        """Return what a run took, if that is known."""
        key = (artifact, runtime, run)
        return next((item for item in self.conditions.runs if (item.artifact, item.runtime, item.run) == key), None)


def parse_artifact(stated: Mapping[str, Any]) -> Artifact:
    """Return what a document says of one artifact.

    Raises:
        InputError: it says something that no verification does.
    """
    try:
        return msgspec.convert(_printable(stated), Artifact)
    except (msgspec.ValidationError, OverflowError, RecursionError) as error:
        raise InputError(f"not an artifact of a verification: {error}") from None


def read_document(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, such as `verify --json` prints; `parse_document` checks what is in it.

    Raises:
        InputError: the file cannot be read, is too large, or holds no JSON object.
    """
    data = read_small_file(path, largest=LARGEST_DOCUMENT)
    try:
        document = json.loads(data.decode("utf-8-sig"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}", file=path) from None
    if not isinstance(document, dict):
        raise InputError("not a JSON object", file=path, found=type(document).__name__)
    return document


def parse_document(document: Mapping[str, Any]) -> Document:
    """Return the document with every fact that reports show checked.

    Raises:
        InputError: it is of another version, or something in it is missing or of another type.
    """
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise InputError(
            "not the document of a verification"
            if version is None
            else "document of another version, which only its own version of gptoss-convert renders",
            found=f"schema_version {version}",
            expected=SCHEMA_VERSION,
        )
    try:
        return msgspec.convert(_printable(document), Document)
    except (msgspec.ValidationError, OverflowError, RecursionError) as error:
        raise InputError(f"not the document of a verification: {error}") from None


def _printable(value: object) -> object:
    """Return JSON-ready data with the control characters of every text escaped."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(item) for item in value]
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number in JSON")
