"""The source of a recipe, opened once for all its artifacts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from gptoss_convert import api
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.converters.plan import Plan
from gptoss_convert.formats import open_checkpoint, open_tokenizer
from gptoss_convert.hub.reference import HubReference
from gptoss_convert.recipes.recipe import ArtifactRecipe, SourceRecipe
from gptoss_convert.source_options import locate
from gptoss_convert.tokenizer import TokenizerSource


@dataclass(frozen=True, kw_only=True)
class OpenSource:
    """What artifacts are made of."""

    checkpoint: Checkpoint
    tokenizer: TokenizerSource | None
    """Takes the place of the checkpoint's own."""
    base: Checkpoint | None
    """For the conversions that take one."""

    @property
    def reference(self) -> Checkpoint:
        """What artifacts are compared with: the checkpoint as it is converted."""
        return self.checkpoint if self.tokenizer is None else replace(self.checkpoint, tokenizer=self.tokenizer)

    def plan(self, artifact: ArtifactRecipe, folder: Path) -> Plan:
        """Plan an artifact in `folder`.

        Raises:
            GptossConvertError: as the conversion's own function says.
        """
        return artifact.conversion.plan(
            self.checkpoint,
            folder / artifact.output,
            artifact.options,
            base=self.base if artifact.conversion.takes_base else None,
            tokenizer=self.tokenizer,
        )


def open_source(source: SourceRecipe, *, only_headers: bool = False) -> OpenSource:
    """Open what a recipe names.

    Args:
        source: what the recipe says.
        only_headers: whether no more than headers will be read, for which a model on the Hub is not downloaded.

    Raises:
        InputError: something is damaged or missing.
        UnsupportedError: it is another kind of model.
    """
    path = locate(source.path, stream=only_headers and isinstance(source.path, HubReference))
    checkpoint = api.open(path, adapter=source.adapter)
    checkpoint.require_sound()
    return OpenSource(
        checkpoint=checkpoint,
        tokenizer=None if source.tokenizer is None else open_tokenizer(source.tokenizer),
        base=None if source.scales_from is None else open_checkpoint(source.scales_from),
    )
