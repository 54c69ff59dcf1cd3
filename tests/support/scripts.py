"""Python programs that documents show, run as a reader would."""

import subprocess
import sys
from pathlib import Path


def run_script(program: str, folder: Path) -> str:
    """What a program prints that is run in `folder`."""
    done = subprocess.run(
        [sys.executable, "-P", "-X", "utf8", "-c", program], cwd=folder, capture_output=True, encoding="utf-8"
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}:\n{done.stderr}")
    return done.stdout
