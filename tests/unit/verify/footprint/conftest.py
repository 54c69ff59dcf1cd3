"""Published configurations in a folder of their own, as a user may have them."""

import shutil
from pathlib import Path

import pytest

DATA = Path(__file__).parents[3] / "data" / "gpt-oss"


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, Path]:
    """Folders with nothing but the config.json of the published models, by size."""
    folders = {size: tmp_path / f"gpt-oss-{size}" for size in ("20b", "120b")}
    for size, folder in folders.items():
        folder.mkdir()
        shutil.copy(DATA / size / "config.json", folder)
    return folders
