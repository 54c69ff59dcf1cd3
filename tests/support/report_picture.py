"""Makes the pictures in docs/reports.md: `python -m tests.support.report_picture`, in the root of the repository.

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
PICTURES = ROOT / "docs" / "pictures"
WIDTH, MARGIN = 1180, 12
SECOND_PICTURE = """
(() => {
    const box = document.querySelectorAll("figure")[1].getBoundingClientRect();
    return [Math.floor(box.top), Math.ceil(box.bottom)];
})()
"""
"""Where histograms of the first artifact begin and end: the light picture ends there, the dark one shows them."""
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
    """Convert and verify, or take the document, and write the pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "demo" / MODEL, folder / MODEL)
        steps = [("report", str(Path(path).absolute()), "-o", "report") for path in documents[:1]] or STEPS
        for step in steps:
            subprocess.run([sys.executable, "-P", "-m", "gptoss_convert", *step], cwd=folder, check=True)
        with page() as shown:
            page_file = folder / "report" / "report.html"
            shown.open(page_file, width=WIDTH)
            start, end = shown.evaluate(SECOND_PICTURE)
            (PICTURES / "report.png").write_bytes(shown.picture(height=start - MARGIN // 2))
            shown.open(page_file, width=WIDTH, scheme="dark")
            (PICTURES / "report-dark.png").write_bytes(
                shown.picture(top=start - MARGIN, height=end - start + 2 * MARGIN)
            )


if __name__ == "__main__":
    main(sys.argv[1:])
