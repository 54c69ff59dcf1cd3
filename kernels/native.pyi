import numpy as np
from numpy.typing import NDArray

from gptoss_convert.kernels import Buffer, Sums

def quantise(
    values: NDArray[np.uint16] | NDArray[np.float32],
    least_raised: int,
    named: NDArray[np.uint8] | None,
    codes: NDArray[np.uint8],
    scales: NDArray[np.uint8],
    odd: NDArray[np.uint8],
    /,
) -> Sums | None: ...
def join_pairs(json: Buffer, /) -> bytes | None: ...
def prefix_lengths(texts: Buffer, /) -> bytes: ...
def decode_columns(
    codes: NDArray[np.uint8],
    scales: NDArray[np.uint8],
    pairs: NDArray[np.uint32],
    stored: NDArray[np.uint16],
    /,
) -> bool: ...
