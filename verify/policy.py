"""What an artifact must keep to pass: limits by loss class, from a versioned TOML file."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import msgspec

from gptoss_convert.assets import read_small_file
from gptoss_convert.errors import InputError

VERSION = 1
"""Of the policy files that can be read."""

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Finite = Annotated[float, msgspec.Meta(ge=0, le=sys.float_info.max)]
"""A limit of infinity would be none."""
Nats = _Finite
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


class _Section(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A table of the file."""


class Evidence(_Section, frozen=True):
    """What it takes to judge at all."""

    positions: Count
    prompts: Count
    coverage: Share
    """Probability that the reference gives to the tokens compared one by one."""


class NearTies(_Section, frozen=True):
    """When a change of the likeliest token says nothing."""

    margin: Nats
    """Log-probability of the reference's first token minus that of its second."""


class RoutingPolicy(_Section, frozen=True):
    """When positions are judged apart because their experts differ."""

    fragile_margin: _Finite
    """Difference of router logits below which a choice is fragile."""
    largest_share: Share
    least_positions: Count
    largest_kl: Nats
    """Mean KL up to which the positions with other routing are excused."""


class Profile(_Section, frozen=True, omit_defaults=True):
    """Limits for one kind of comparison; None for what is reported only."""

    mean_kl: Nats
    median_kl: Nats | None = None
    p999_kl: Nats | None = None
    same_top1: Share | None = None
    same_top1_clear: Share | None = None
    """Same likeliest token where it is no near tie."""
    noise_factor: _Finite = 0.0
    """The mean may be this many times the noise floor, but no more than `largest_mean_kl`."""
    largest_mean_kl: Nats = 0.0


class _EvidenceByPreset(Evidence, frozen=True):
    quick: Evidence
    decode: Evidence


class Policy(_Section, frozen=True):
    """All limits."""

    version: int
    evidence: _EvidenceByPreset
    near_ties: NearTies
    routing: RoutingPolicy
    profiles: dict[str, Profile]

    def evidence_for(self, prompt_set: str) -> Evidence:
        """Return what it takes to judge by the prompt set of this name."""
        return {"quick": self.evidence.quick, "decode": self.evidence.decode}.get(prompt_set, self.evidence)

    def changes(self) -> tuple[Change, ...]:
        """Return where this policy departs from the built-in one."""
        ours, theirs = _flat(msgspec.to_builtins(self)), _flat(msgspec.to_builtins(default_policy()))
        return tuple(
            Change(name=name, value=ours.get(name), default=theirs.get(name))
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        )


class Change(_Section, frozen=True):
    """A limit that is not the built-in one."""

    name: str
    """Path of keys, with dots."""
    value: float | None
    """None: there is no limit."""
    default: float | None


PROFILES = ("exact", "exact-in-runtime", "lossy-8bit", "lossy-4bit", "in-all")
"""Every policy has these."""


def default_policy() -> Policy:
    """Return the built-in policy."""
    text = files(__package__).joinpath("policy.toml").read_bytes()
    return msgspec.convert(_parsed(text), Policy)


def read_policy(path: Path) -> Policy:
    """Return the built-in policy with what the TOML file at `path` says instead.

    A file names its version, and only what it changes.

    Raises:
        InputError: it is no TOML, of another version, or has unknown keys or impossible limits.
    """
    try:
        changes = _parsed(read_small_file(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"not a policy: {error}", file=path) from None
    if changes.get("version") != VERSION:
        raise InputError(
            "policy of another version", file=path, found=changes.get("version", "none"), expected=VERSION
        )
    try:
        return msgspec.convert(_merged(msgspec.to_builtins(default_policy()), changes), Policy)
    except (msgspec.ValidationError, OverflowError) as error:
        raise InputError(f"not a policy: {error}", file=path) from None


def _parsed(text: bytes) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(text.decode())


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `changes`, table by table."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return dict(_leaves(tree, prefix))


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
