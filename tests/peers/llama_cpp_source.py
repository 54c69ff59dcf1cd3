"""llama.cpp's own converter, taken from the sdist of llama-cpp-python, which vendors all of llama.cpp.

pip asks the build backend of the sdist for metadata: that takes seconds and compiles nothing.
"""

import re
from dataclasses import replace
from pathlib import Path

from tests.peers.distributions import Distribution

VERSION = "0.3.36"
LLAMA_CPP_COMMIT = "0c1e57098bba43ac29e6e3b677cdceebdd22334f"  # the revision vendored in that sdist
SDIST = Distribution(
    project="llama-cpp-python",
    version=VERSION,
    filename=f"llama_cpp_python-{VERSION}.tar.gz",
    sha256="832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    pip_options=("--no-binary", "llama-cpp-python"),
    folder="llama.cpp",
    prefix=f"llama_cpp_python-{VERSION}/vendor/llama.cpp/",
    wanted=("convert_hf_to_gguf.py", "LICENSE", "conversion/", "gguf-py/"),
)


def converter_source() -> Path:
    """The folder with convert_hf_to_gguf.py, conversion/, gguf-py/ and LICENSE."""
    return SDIST.unpacked()


def option_names() -> frozenset[str]:
    """The options of llama.cpp's programs, such as `--ctx-size`, as its parser lists them."""
    arguments = replace(SDIST, folder="llama.cpp-arguments", wanted=("common/arg.cpp",))
    source = (arguments.unpacked() / "common" / "arg.cpp").read_text(encoding="utf-8")
    return frozenset(re.findall(r'"(--?[a-z][a-z0-9-]*)"', source))
