"""Our own forward pass over any readable checkpoint, as a runner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gptoss_convert import __version__
from gptoss_convert.checkpoint import ModelConfig
from gptoss_convert.errors import OptionError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.forward.batch import Batch
from gptoss_convert.verify.forward.experts import route
from gptoss_convert.verify.forward.model import Model
from gptoss_convert.verify.forward.precision import precision_named
from gptoss_convert.verify.forward.stages import ROUTER, Activations, Layer, Stage, run_layer
from gptoss_convert.verify.runners import RUNTIMES
from gptoss_convert.verify.runners.protocol import Scores, Session, Settings


class ReferenceRunner:
    """Computes gpt-oss layer by layer and expert by expert, in memory that does not depend on their number."""

    def versions(self) -> Mapping[str, str]:
        """Return the versions of this package and of torch."""
        return {"gptoss-convert": __version__, "torch": str(torch.__version__)}

    @contextmanager
    def open(self, artifact: Path, settings: Settings) -> Iterator[Session]:
        """Open a checkpoint; its weights are read while it runs.

        Raises:
            InputError: the file is damaged.
            OptionError: there is no such type, or no runtime of that name to imitate.
        """
        precision = precision_named(settings.dtype)
        checkpoint = open_checkpoint(artifact)
        checkpoint.require_sound()
        config = _computed_config(checkpoint.config, settings.imitates)
        with _threads(settings.threads), Model(checkpoint, config, precision) as model:
            yield ReferenceSession(model)


@dataclass(frozen=True)
class ReferenceSession:
    """A checkpoint that can be run."""

    model: Model

    def run(self, prompts: Sequence[Sequence[int]]) -> Iterator[Scores]:
        """Yield the scores of all positions of all prompts, prompt by prompt, positions in order.

        All prompts go through a layer before the next layer is read.

        Raises:
            InputError: the file is damaged.
            OptionError: a prompt is empty, or a token is not in the vocabulary.
        """
        batch = Batch.of(prompts)
        if not batch.prompts:
            return
        if not all(batch.prompts):
            raise OptionError("a prompt is empty", expected="one token or more")
        vocab = self.model.config.vocab_size
        strange = batch.ids[(batch.ids < 0) | (batch.ids >= vocab)]
        if strange.size:
            raise OptionError("token is not in the vocabulary", found=int(strange[0]), expected=f"0 to {vocab - 1}")
        routings = _Routings(batch.positions, self.model.config)
        hidden = self.model.embed(batch)
        for layer in self.model.layers(batch):
            hidden = run_layer(layer, hidden, routings.observe)
        for start, logprobs in self.model.logprobs(hidden):
            for prompt, begin, end in batch.pieces(start, start + len(logprobs)):
                yield Scores(
                    prompt=prompt,
                    start=begin - batch.spans[prompt][0],
                    logprobs=logprobs[begin - start : end - start],
                    routing=routings.experts[begin:end],
                    router_margins=routings.margins[begin:end],
                )


class _Routings:
    """What the routers of all layers chose."""

    def __init__(self, positions: int, config: ModelConfig) -> None:
        self.experts = np.empty((positions, config.num_hidden_layers, config.num_experts_per_tok), np.int16)
        self.margins = np.empty((positions, config.num_hidden_layers), np.float32)

    def observe(self, layer: Layer, stage: Stage, activations: Activations) -> None:
        if stage is ROUTER:
            routing = route(activations[ROUTER.name], layer.config.num_experts_per_tok)
            self.experts[:, layer.index] = routing.experts.numpy()
            self.margins[:, layer.index] = routing.margins.float().numpy()


def _computed_config(config: ModelConfig, imitated: str | None) -> ModelConfig:
    if imitated is None:
        return config
    if imitated not in RUNTIMES:
        raise OptionError("unknown runtime", found=imitated, expected="one of " + ", ".join(RUNTIMES))
    return RUNTIMES[imitated].computed_config(config)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let torch use `count` threads, and as many as before afterwards."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


RUNNER = ReferenceRunner()
