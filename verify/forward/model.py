"""The whole model: embedding, layers, unembedding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from gptoss_convert.checkpoint import Checkpoint, ModelConfig
from gptoss_convert.verify.forward.batch import Batch
from gptoss_convert.verify.forward.precision import Precision
from gptoss_convert.verify.forward.rope import rotation
from gptoss_convert.verify.forward.stages import Layer, rms_norm
from gptoss_convert.verify.forward.weights import Rows, Weights

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
UNEMBEDDING = "lm_head.weight"

_LOGIT_BYTES = 400 << 20
"""Logits that are held at once; the unembedding is read once for each such block of positions."""
_UNEMBEDDED_BYTES = 64 << 20
"""Rows of the unembedding that are held at once, in two buffers each."""
_LOGPROB_BYTES = 8 << 20
"""Log-probabilities in float64 that are made at once; the allocator gives much larger memory back each time."""


class Model:
    """A checkpoint that can be run; a context manager."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, precision: Precision) -> None:
        """Take the tensors of `checkpoint`, and compute as `config` says, which need not be the checkpoint's."""
        self.config = config
        self.precision = precision
        self.weights = Weights(checkpoint, precision)

    def __enter__(self) -> Self:
        self.weights.__enter__()
        return self

    def __exit__(self, *reason: object) -> None:
        self.weights.__exit__(None, None, None)

    def embed(self, batch: Batch) -> torch.Tensor:
        """Return the hidden state `[positions, hidden_size]` before the first layer; other rows are not read.

        Raises:
            InputError: the file is damaged.
        """
        return self.weights.rows(EMBEDDING, batch.ids)

    def layers(self, batch: Batch) -> Iterator[Layer]:
        """Yield the layers, to be run on `batch` in turn."""
        tables = rotation(self.config.rope, self.config.head_dim, batch.longest, self.precision.dtype)
        places = torch.from_numpy(batch.places)
        cosines, sines = (table[places] for table in tables)
        for index in range(self.config.num_hidden_layers):
            yield Layer(index, self.config, self.weights, batch, (cosines, sines))

    def logprobs(self, hidden: torch.Tensor) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Unembed the hidden state `[positions, hidden_size]` after the last layer.

        Yields:
            The first position, and natural log-probabilities of the next token `[some positions, vocab_size]`,
            summed up in float64.

        Raises:
            InputError: the file is damaged.
        """
        normed = rms_norm(hidden, self.weights.exact(FINAL_NORM), self.config.rms_norm_eps)
        block = max(_LOGIT_BYTES // (self.config.vocab_size * normed.element_size()), 1)
        for start in range(0, len(normed), block):
            logits = self._logits(normed[start : start + block])
            step = max(_LOGPROB_BYTES // (8 * self.config.vocab_size), 1)
            for first in range(0, len(logits), step):
                wide = logits[first : first + step].double()
                wide -= wide.logsumexp(dim=-1, keepdim=True)
                yield start + first, wide.float().numpy()

    def _logits(self, normed: torch.Tensor) -> torch.Tensor:
        """Return the logits `[positions, vocab_size]`, streaming the unembedding."""
        vocab = self.config.vocab_size
        logits = normed.new_empty(len(normed), vocab)
        step = max(_UNEMBEDDED_BYTES // (self.config.hidden_size * normed.element_size()), 1)
        starts = range(0, vocab, step)
        groups = ((Rows(UNEMBEDDING, start, min(start + step, vocab)),) for start in starts)
        for start, (rows,) in zip(starts, self.weights.stream(groups), strict=True):
            logits[:, start : start + step] = normed @ rows.T
        return logits
