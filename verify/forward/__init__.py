"""The forward pass of gpt-oss in torch, over a checkpoint that stays on disk.

The steps are those of OpenAI's implementation (github.com/openai/gpt-oss, `gpt_oss/torch/model.py`); transformers'
`modeling_gpt_oss.py` computes the same numbers. Weights are decoded when a step needs them and forgotten after it.
"""

import os

# Read when torch is loaded. OpenMP threads that wait for work otherwise keep their processors busy, which the
# thread that decodes weights needs: on two cores this saves a third of the processor time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
