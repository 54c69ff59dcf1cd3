"""Lets `huggingface_hub` in this process talk to a server on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import tenacity.nap
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from tests.support.hub_server import HubServer, serve

REPOSITORY = "owner/model"


@contextmanager
def hub_of(folder: Path, cache: Path, repository: str = REPOSITORY) -> Iterator[tuple[HubServer, list[float]]]:
    """Serve `folder` as a repository, with an empty cache at `cache`.

    Yields:
        The server, and the seconds that were waited between attempts, which pass at once.
    """
    waits: list[float] = []
    with serve(folder, repository) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", server.endpoint)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.delenv("HF_TOKEN", raising=False)
        patch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        patch.setattr(tenacity.nap, "time", SimpleNamespace(sleep=waits.append))
        try:
            yield server, waits
        finally:
            close_session()
