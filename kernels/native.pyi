import numpy as np
from numpy.typing import NDArray

from gptoss_convert.kernels import Sums

def quantise(
    values: NDArray[np.uint16] | NDArray[np.float32],
    least_raised: int,
    named: NDArray[np.uint8] | None,
    codes: NDArray[np.uint8],
    scales: NDArray[np.uint8],
    odd: NDArray[np.uint8],
    /,
) -> Sums | None: ...
