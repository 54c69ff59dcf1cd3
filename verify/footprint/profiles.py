"""Devices and budgets: how much memory there is for a model."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import msgspec

from gptoss_convert.errors import OptionError
from gptoss_convert.sizes import parse_size

Device = Literal["cpu", "gpu"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Memory that a model's program may take."""

    name: str
    """As the user named it: a profile, or a size."""
    title: str
    device: Device
    """Whose memory it is."""
    memory: int
    """Bytes that there are."""
    reserved: int = 0
    """Bytes of these that others take."""

    @property
    def available(self) -> int:
        """Bytes that are left for the program that runs the model."""
        return self.memory - self.reserved


class _Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    title: str
    device: Device
    memory: str
    reserved: str
    why: str
    """What the reserved memory is for."""


@cache
def load_profiles() -> Mapping[str, Budget]:
    """Return the devices of `profiles.toml` by name."""
    text = files("gptoss_convert.verify.footprint").joinpath("profiles.toml").read_text(encoding="utf-8")
    profiles = msgspec.convert(tomllib.loads(text), dict[str, _Profile])
    return {
        name: Budget(
            name=name,
            title=profile.title,
            device=profile.device,
            memory=parse_size(profile.memory),
            reserved=parse_size(profile.reserved),
        )
        for name, profile in profiles.items()
    }


def find_budget(text: str, device: Device = "cpu") -> Budget:
    """Return the budget that `text` names: a profile, or a size such as 16GB, all of which is for the model.

    Args:
        text: name or size.
        device: whose memory a size is; profiles know it themselves.

    Raises:
        OptionError: it is neither.
    """
    profiles = load_profiles()
    if text in profiles:
        return profiles[text]
    try:
        memory = parse_size(text)
    except ValueError:
        raise OptionError(
            "no such budget", found=text, expected="a size such as 16GB, or " + ", ".join(profiles)
        ) from None
    return Budget(name=text, title=f"{text} for the program alone", device=device, memory=memory)
