"""The table of conversions: which options belong to which target, and who plans them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from gptoss_convert.errors import OptionError

if TYPE_CHECKING:
    from gptoss_convert.checkpoint import Checkpoint
    from gptoss_convert.converters.plan import Plan
    from gptoss_convert.converters.to_bf16 import Bf16Options
    from gptoss_convert.converters.to_gguf import GgufOptions
    from gptoss_convert.converters.to_mxfp4 import Mxfp4Options
    from gptoss_convert.converters.to_onnx import OnnxOptions
    from gptoss_convert.tokenizer import TokenizerSource

    ConversionOptions: TypeAlias = Bf16Options | GgufOptions | Mxfp4Options | OnnxOptions


@dataclass(frozen=True)
class Conversion:
    """A conversion to one target."""

    name: str
    """Of the target; the command is called `to-` and this."""
    options: str
    """Class of its options, in the module `to_` and the name."""
    takes_base: bool = False
    """Whether it takes the scales of another checkpoint."""

    @property
    def options_class(self) -> Callable[..., ConversionOptions]:
        """The class of its options."""
        return cast("Callable[..., ConversionOptions]", getattr(self._module, self.options))

    @property
    def has_defaults(self) -> bool:
        """Whether it can be done without options."""
        parameters = signature(self.options_class).parameters.values()
        return all(parameter.default is not parameter.empty for parameter in parameters)

    def plan(
        self,
        checkpoint: Checkpoint,
        output: Path,
        options: ConversionOptions,
        *,
        base: Checkpoint | None = None,
        tokenizer: TokenizerSource | None = None,
    ) -> Plan:
        """Plan it, as the function `plan_` and the name in its module does.

        Raises:
            OptionError: a base is given, and it takes none.
            GptossConvertError: as that function says.
        """
        if base is not None and not self.takes_base:
            raise OptionError(f"a conversion to {self.name} takes no scales of another checkpoint")
        arguments = {"base": base} if self.takes_base else {}
        planner = getattr(self._module, f"plan_{self.name}")
        return cast("Plan", planner(checkpoint, output, options, tokenizer=tokenizer, **arguments))

    @property
    def _module(self) -> Any:
        return import_module(f"gptoss_convert.converters.to_{self.name}")


CONVERSIONS: Mapping[str, Conversion] = {
    item.name: item
    for item in (
        Conversion("gguf", "GgufOptions"),
        Conversion("bf16", "Bf16Options"),
        Conversion("mxfp4", "Mxfp4Options", takes_base=True),
        Conversion("onnx", "OnnxOptions"),
    )
}
"""By name of the target."""


def conversion_of(options: ConversionOptions) -> Conversion:
    """Return the conversion that `options` are for."""
    return next(item for item in CONVERSIONS.values() if type(options).__name__ == item.options)
