"""onnxruntime's WebGPU provider on a machine without a GPU: its own package, and SwiftShader for Vulkan.

onnxruntime-webgpu takes the place of onnxruntime, so it lies in a folder of its own, for child processes that get
`environment()`. SwiftShader, which computes in float32 only, comes from Debian's package of Chromium; apt checks
its signature, and needs no rights for that.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.peers.distributions import Distribution, cache

VERSION = "1.27.0"
PROVIDER = "WebGpuExecutionProvider"
_SHA256 = {
    "cp311": "142eb8bdb803c58117bf64164d201f43180bc87229cac14b590aa4ea79e0f70b",
    "cp312": "fe5e49e00ad71bc667316d57670bfbf525438783d4a3468e0d337314ec985cbe",
    "cp313": "3eb30b487d2b428d2e5c1ac538177ab6336cce9b204197135dc5a16753b0258e",
    "cp314": "864c9a9f241c3b9971051b1ff995ef7c26d9bee922b02bcf259db1eb8bdf74fd",
}
"""Of the wheel, by version of Python."""
_SWIFTSHADER = "usr/lib/chromium/libvk_swiftshader.so"
_PLACEMENT = re.compile(r"placed on \[(\w+)\]\. Number of nodes: (\d+)")


def environment() -> dict[str, str]:
    """Variables of a child process in which `onnxruntime` has the WebGPU provider, and Vulkan is SwiftShader.

    Downloads 25 MB from PyPI and 60 MB from Debian the first time.
    """
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(_package()), *_given("PYTHONPATH")]),
        "LD_LIBRARY_PATH": os.pathsep.join([str(_swiftshader()), *_given("LD_LIBRARY_PATH")]),
    }


def placements(graph: Path) -> dict[str, int]:
    """How many nodes of a graph each execution provider is given."""
    load = (
        "import onnxruntime, sys; options = onnxruntime.SessionOptions(); options.log_severity_level = 0; "
        f"onnxruntime.InferenceSession(sys.argv[1], options, providers=['{PROVIDER}'])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", load, graph],
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        raise RuntimeError(
            f"onnxruntime-webgpu does not load {graph} (exit code {done.returncode}):\n{done.stdout}"
        )
    counts: dict[str, int] = {}
    for provider, count in _PLACEMENT.findall(done.stdout):
        counts[provider] = counts.get(provider, 0) + int(count)
    return counts


def _given(variable: str) -> list[str]:
    return [os.environ[variable]] if variable in os.environ else []


def _package() -> Path:
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    if tag not in _SHA256:
        raise RuntimeError(f"onnxruntime-webgpu {VERSION} has no wheel for {tag}")
    wheel = Distribution(
        project="onnxruntime-webgpu",
        version=VERSION,
        filename=f"onnxruntime_webgpu-{VERSION}-{tag}-{tag}-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
        sha256=_SHA256[tag],
        pip_options=("--only-binary", "onnxruntime-webgpu"),
        folder="onnxruntime-webgpu",
        wanted=("onnxruntime/",),
    )
    return wheel.unpacked()


def _swiftshader() -> Path:
    """A folder with SwiftShader under the name that Vulkan's loader has; fetched once, then cached."""
    folder = cache() / "swiftshader"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetch-") as name:
        scratch = Path(name)
        for part in ("state/lists/partial", "cache/archives/partial"):  # so that apt needs no rights
            (scratch / part).mkdir(parents=True)
        apt = ["apt-get", "-qq", "-o", f"Dir::State={scratch}/state", "-o", f"Dir::Cache={scratch}/cache"]
        _run([*apt, "update"], scratch)
        _run([*apt, "download", "chromium-common"], scratch)
        [package] = scratch.glob("chromium-common_*.deb")
        _run(["dpkg-deb", "--extract", package.name, "tree"], scratch)
        found = scratch / "swiftshader"
        found.mkdir()
        (scratch / "tree" / _SWIFTSHADER).rename(found / "libvulkan.so.1")
        try:
            found.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster
                raise
    return folder


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except FileNotFoundError:
        raise RuntimeError(f"SwiftShader comes from a package of Debian, and {command[0]} is not there") from None
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed (exit code {done.returncode}):\n{done.stdout}")
