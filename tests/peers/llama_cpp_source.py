"""llama.cpp's own converter, taken from the sdist of llama-cpp-python, which vendors all of llama.cpp."""

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "0.3.36"
SDIST = f"llama_cpp_python-{VERSION}.tar.gz"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
LLAMA_CPP_COMMIT = "0c1e57098bba43ac29e6e3b677cdceebdd22334f"  # the revision vendored in that sdist
VENDORED = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"
WANTED = ("convert_hf_to_gguf.py", "LICENSE", "conversion/", "gguf-py/")


def converter_source() -> Path:
    """The folder with convert_hf_to_gguf.py, conversion/, gguf-py/ and LICENSE; fetched once, then cached."""
    folder = _cache() / f"llama.cpp-{VERSION}-{SHA256[:8]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetch-") as scratch:
        tree = Path(scratch, "llama.cpp")
        _extract(_download(Path(scratch)), tree)
        try:
            tree.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster, with the same bytes
                raise
    return folder


def _cache() -> Path:
    if chosen := os.environ.get("GPTOSS_CONVERT_TEST_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "gptoss-convert-tests"


def _download(folder: Path) -> Path:
    """pip asks the sdist's build backend for metadata: that takes seconds and compiles nothing."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"llama-cpp-python=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    sdist = folder / SDIST
    if done.returncode or not sdist.is_file():
        raise RuntimeError(f"pip could not download {SDIST} (exit code {done.returncode}):\n{done.stdout}")
    return sdist


def _extract(sdist: Path, tree: Path) -> None:
    with sdist.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != SHA256:
        raise RuntimeError(f"{sdist.name} has SHA-256 {digest}, expected {SHA256}")
    with tarfile.open(sdist) as archive:
        for member in archive:
            name = member.name.removeprefix(VENDORED)
            if member.isfile() and name != member.name and name.startswith(WANTED):
                target = tree / name
                target.parent.mkdir(parents=True, exist_ok=True)
                source = archive.extractfile(member)
                assert source is not None
                target.write_bytes(source.read())
    missing = [name for name in WANTED if not (tree / name).exists()]
    if missing:
        raise RuntimeError(f"{sdist.name} holds no {', '.join(VENDORED + name for name in missing)}")
