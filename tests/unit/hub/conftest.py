"""A repository with files of all kinds, on a Hub on this machine."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.hub import hub_of
from tests.support.hub_server import HubServer

WEIGHTS = np.random.default_rng(0).bytes(100_000)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[HubServer, list[float]]]:
    """The server, and the seconds that were waited between attempts."""
    folder = tmp_path / "repository"
    for name in ("original", "metal"):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.safetensors").write_bytes(WEIGHTS[: 500 + len(name)])
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "metal" / "model.bin").write_bytes(b"metal")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "x-00001-of-00002.gguf").write_bytes(b"GGUF1")
    (folder / "x-00002-of-00002.gguf").write_bytes(b"GGUF2")
    (folder / "y.gguf").write_bytes(b"GGUF3")
    for name in ("config.json", "original/config.json", "README.md", "LICENSE", "chat_template.jinja"):
        (folder / name).write_text(name)
    (folder / "tokenizer.json").write_text("{}")
    with hub_of(folder, tmp_path / "cache") as served:
        yield served


@pytest.fixture
def server(hub: tuple[HubServer, list[float]]) -> HubServer:
    return hub[0]


@pytest.fixture
def waits(hub: tuple[HubServer, list[float]]) -> list[float]:
    return hub[1]
