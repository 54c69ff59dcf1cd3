"""Packages of Debian, fetched once and kept in a cache folder; apt checks their signatures, and needs no rights."""

import subprocess
import tempfile
from pathlib import Path

from tests.peers.distributions import cache

_STATUS = "/var/lib/dpkg/status"


def unpacked(package: str, wanted: str) -> Path:
    """The folder that a package is unpacked to, with all it depends on and this machine lacks.

    `wanted` is a file that has to be in it.
    """
    folder = cache() / package
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetch-") as name:
        scratch = Path(name)
        for part in ("state/lists/partial", "cache/archives/partial"):
            (scratch / part).mkdir(parents=True)
        settings = {
            "Dir::State": f"{scratch}/state",
            "Dir::State::status": _STATUS,
            "Dir::Cache": f"{scratch}/cache",
            "Debug::NoLocking": "1",
            "APT::Sandbox::User": "",
        }
        apt = ["apt-get", "-qq", "--yes", "--no-install-recommends"]
        apt += [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        _run([*apt, "update"], scratch)
        _run([*apt, "--download-only", "install", package], scratch)
        for archive in sorted((scratch / "cache" / "archives").glob("*.deb")):
            _run(["dpkg-deb", "--extract", str(archive), "tree"], scratch)
        if not (scratch / "tree" / wanted).is_file():
            raise RuntimeError(f"Debian's package {package} holds no {wanted}")
        try:
            (scratch / "tree").rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster
                raise
    return folder


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except FileNotFoundError:
        raise RuntimeError(f"a package of Debian is wanted, and {command[0]} is not there") from None
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed (exit code {done.returncode}):\n{done.stdout}")
