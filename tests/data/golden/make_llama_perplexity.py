"""Makes `llama-perplexity.npz`, which takes a C++ compiler; see README.md.

From the root of the repository: python -m tests.data.golden.make_llama_perplexity
"""

import dataclasses
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from tests.peers.llama_cpp_source import SDIST

FOLDER = Path(__file__).parent
SOURCE = dataclasses.replace(
    SDIST,
    folder="llama.cpp-perplexity",
    wanted=("tools/perplexity/", "common/", "include/", "ggml/include/", "vendor/"),
)
CHUNKS, CONTEXT, VOCABULARY = 8, 40, 48
STEP = np.float32(1 / 16)


def main() -> None:
    random = np.random.default_rng(7)
    base = random.normal(scale=2.5 / STEP, size=(CHUNKS, CONTEXT, VOCABULARY)).round().clip(-127, 127)
    test = (base + random.normal(scale=0.35 / STEP, size=base.shape).round()).clip(-127, 127)
    tokens = np.zeros((CHUNKS, CONTEXT), np.int32)
    tokens[:, 1:] = (base * STEP + random.gumbel(size=base.shape)).argmax(axis=2)[
        :, :-1
    ]  # as the base would choose
    np.savez_compressed(
        FOLDER / "llama-perplexity.npz",
        tokens=tokens,
        base=base.astype(np.int8),
        test=test.astype(np.int8),
        step=STEP,
        printed=printed(tokens, base * STEP, test * STEP),
    )


def printed(tokens: np.ndarray, base: np.ndarray, test: np.ndarray) -> str:
    """What the program prints for the logits of base and test."""
    with tempfile.TemporaryDirectory() as scratch:
        program, *files = (Path(scratch, name) for name in ("program", "tokens", "base", "test", "stored"))
        source = SOURCE.unpacked()
        includes = [f"-I{source / name}" for name in SOURCE.wanted]
        target = (FOLDER / "llama_perplexity.cpp", "-o", program)
        # the functions that compare tasks are left out, and with them all that they call
        sections = ["-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections"]
        subprocess.run(["g++", "-std=c++17", "-O1", "-w", "-pthread", *sections, *includes, *target], check=True)
        for path, values in zip(files, (tokens, base.astype("<f4"), test.astype("<f4")), strict=False):
            path.write_bytes(values.tobytes())
        sizes = [str(size) for size in (CONTEXT, VOCABULARY, CHUNKS)]
        return subprocess.run([program, *sizes, *files], check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
