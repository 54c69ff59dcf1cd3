"""The format MXFP4: blocks of 32 four-bit floats (E2M1) that share one power-of-two scale (E8M0).

Source: OCP Microscaling Formats (MX) Specification v1.0, sections 5.3.3 (E2M1), 5.4.1 (E8M0) and 6.3
(conversion). Part layout is that of OpenAI's checkpoints (`gpt_oss/torch/weights.py`): byte j of a block
holds element 2j in its low nibble and element 2j+1 in its high nibble.

A code is `sign << 3 | magnitude`; its value is `(-1)**sign * MAGNITUDES[magnitude] * 2**(scale - 127)`.
Zero has two codes, 0 and 8, and both are kept. Scale byte 255 is NaN in the specification; no sound
checkpoint contains it.
"""

from __future__ import annotations

import numpy as np

BLOCK = 32
SCALE_BIAS = 127
SCALE_NAN = 255
LARGEST_EXACT_SCALE = 252
"""Up to this scale byte every code is a finite float32 (and bfloat16): 6 * 2**125 < 2**128.

Larger ones add nothing: the largest value that they can mean in float32 is 6 * 2**125 too.
"""

MAGNITUDES = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
CODE_VALUES = np.concatenate([MAGNITUDES, -MAGNITUDES])
EMAX_ELEMENT = 2
"""Exponent of the largest E2M1 magnitude, 6 = 1.5 * 2**2."""

NOT_NAMED = 255
"""Where scales are named for blocks, stands for none: no sound block has it."""
