"""Makes the picture in docs/reports.md: `python -m tests.support.report_picture`, in the root of the repository.

The built-in model is converted and verified, and Chromium shows the report; or that of a document which is named.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.peers.chromium import page

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "pictures" / "report.png"
WIDTH, HEIGHT = 1180, 1020
MODEL = "tiny-gpt-oss"
STEPS = (
    ("to-gguf", MODEL, "-o", "exact.gguf"),
    ("to-gguf", MODEL, "-o", "dense-q8_0.gguf", "--dense", "q8_0"),
    (
        "verify",
        MODEL,
        "exact.gguf",
        "dense-q8_0.gguf",
        "--report",
        "report",
        "--max-tokens",
        "64",
        "--threads",
        "1",
    ),
)


def main(documents: Sequence[str]) -> None:
    """Convert and verify, or take the document, and write the picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "demo" / MODEL, folder / MODEL)
        steps = [("report", str(Path(path).absolute()), "-o", "report") for path in documents[:1]] or STEPS
        for step in steps:
            subprocess.run([sys.executable, "-P", "-m", "gptoss_convert", *step], cwd=folder, check=True)
        with page() as shown:
            shown.open(folder / "report" / "report.html", width=WIDTH)
            PICTURE.parent.mkdir(exist_ok=True)
            PICTURE.write_bytes(shown.picture(height=HEIGHT))


if __name__ == "__main__":
    main(sys.argv[1:])
