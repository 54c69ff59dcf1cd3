"""Makes `mxfp4-quantisers.npz` with quantisers whose packages are too large for the tests; see README.md."""

from pathlib import Path

import numpy as np
import torch
from auto_round.data_type.mxfp import quant_mx, quant_mx_opt_rtn
from modelopt.torch.quantization.qtensor.mxfp4_tensor import MXFP4QTensor
from quark.torch.quantization.config.type import Dtype
from quark.torch.quantization.utils import even_round

FOLDER = Path(__file__).parent
ROWS, COLUMNS = 64, 128
BOUNDARIES = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 7.5)


def main() -> None:
    bits = numbers()
    values = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    blocks = values.float().reshape(-1, 32)
    packed, scales = MXFP4QTensor.quantize(values, 32)
    plain, plain_exponents, _ = quant_mx(values.float(), bits=4, group_size=32, data_type="mx_fp")
    searched, searched_exponents, _ = quant_mx_opt_rtn(values.float(), bits=4, group_size=32)
    np.savez_compressed(
        FOLDER / "mxfp4-quantisers.npz",
        values=bits,
        modelopt_codes=packed._quantized_data.numpy(),
        modelopt_scales=scales.reshape(ROWS, -1).numpy(),
        quark_scales=exponents_of(torch.log2(even_round(blocks.abs().amax(dim=-1), Dtype.fp4))),
        auto_round_values=plain.numpy(),
        auto_round_scales=exponents_of(plain_exponents),
        auto_round_searched_values=searched.numpy(),
        auto_round_searched_scales=exponents_of(searched_exponents),
    )


def exponents_of(logarithms: torch.Tensor) -> np.ndarray:
    return (logarithms + 127).to(torch.uint8).reshape(ROWS, -1).numpy()


def numbers() -> np.ndarray:
    """bfloat16: random rows of very different sizes, ties and the largest numbers at which rules change, zeros."""
    rng = np.random.default_rng(2)
    values = rng.standard_normal((ROWS, COLUMNS)) * np.exp2(rng.integers(-12, 6, (ROWS, 1)))
    half = ROWS // 2
    values[half:] = rng.choice(BOUNDARIES, (half, COLUMNS)) * rng.choice([-1, 1], (half, COLUMNS))
    values[-1, 32:64] = 0
    values[-1, 40] = -0.0
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


if __name__ == "__main__":
    main()
