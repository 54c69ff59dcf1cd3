"""Downloads into the cache: which files, of which commit, and what is said when it does not work."""

import errno
import os
from pathlib import Path

import pytest
from huggingface_hub import constants

from gptoss_convert.description import model_name
from gptoss_convert.errors import GptossConvertError, InputError, OutputError
from gptoss_convert.hub.download import download
from gptoss_convert.hub.reference import HubReference, cached_commit, parse_uri
from tests.support.hub_server import HubServer, broken_connection

MODEL = HubReference("owner", "model")
TOKEN = "hf_secretsecretsecret"


def files_in(path: Path) -> set[str]:
    return {item.relative_to(path).as_posix() for item in path.rglob("*") if item.is_file()}


def test_only_files_that_are_read_are_downloaded(server: HubServer) -> None:
    path = download(MODEL, progress=False)
    assert files_in(path) == {
        "config.json", "README.md", "LICENSE", "chat_template.jinja", "tokenizer.json", "model.safetensors"
    }  # fmt: skip
    assert (path / "model.safetensors").read_bytes() == (server.folder / "model.safetensors").read_bytes()
    assert cached_commit(path) == server.commit
    assert model_name(path) == "model"


def test_folder_comes_with_the_tokenizer_above_it(server: HubServer) -> None:
    path = download(HubReference("owner", "model", "main", "original"), progress=False)
    assert files_in(path) == {"config.json", "model.safetensors"}
    assert (path.parent / "tokenizer.json").is_file()
    assert not (path.parent / "model.safetensors").exists()


def test_file_comes_with_its_other_shards_only(server: HubServer) -> None:
    path = download(HubReference("owner", "model", None, "x-00001-of-00002.gguf"), progress=False)
    assert path.read_bytes() == b"GGUF1"
    assert files_in(path.parent) == {"x-00001-of-00002.gguf", "x-00002-of-00002.gguf"}


def test_cache_is_enough_offline_and_nobody_is_asked(server: HubServer) -> None:
    path = download(MODEL, progress=False)
    server.seen.clear()
    assert download(MODEL, offline=True, progress=False) == path
    assert download(HubReference("owner", "model", server.commit), offline=True, progress=False) == path
    assert server.seen == []


def test_second_download_fetches_no_file(server: HubServer) -> None:
    download(MODEL, progress=False)
    server.seen.clear()
    download(MODEL, progress=False)
    assert [request.path for request in server.seen] == ["/api/models/owner/model/revision/main"]


def test_connection_that_breaks_is_resumed(server: HubServer) -> None:
    server.faults[0] = broken_connection
    path = download(HubReference("owner", "model", None, "original"), progress=False)
    assert (path / "model.safetensors").read_bytes() == (server.folder / "original/model.safetensors").read_bytes()


def test_hub_that_is_busy_is_asked_again(server: HubServer, waits: list[float]) -> None:
    server.hub_faults = [503, 429, 503]
    assert download(MODEL, progress=False).exists()
    assert len(waits) == 3
    assert waits == sorted(waits)


def refused(reference: HubReference, offline: bool = False) -> GptossConvertError:
    with pytest.raises(GptossConvertError) as caught:
        download(reference, offline=offline, progress=False)
    assert "\n" not in str(caught.value)
    assert "http" not in str(caught.value)
    return caught.value


def test_what_cannot_be_had_is_one_line(server: HubServer) -> None:
    uri = parse_uri("hf://owner/missing")
    assert uri is not None
    error = refused(uri)
    assert isinstance(error, InputError)
    assert "no such repository on the Hub, or it is private (hf://owner/missing)" in str(error)
    assert "no such revision (hf://owner/model@v9)" in str(refused(HubReference("owner", "model", "v9")))
    assert "nothing there that can be read" in str(refused(HubReference("owner", "model", None, "z.gguf")))
    server.gated = True
    assert "access to this repository is restricted" in str(refused(MODEL))


def test_what_is_not_in_the_cache_is_named_offline(server: HubServer) -> None:
    assert "not in the cache" in str(refused(MODEL, offline=True))
    download(HubReference("owner", "model", None, "y.gguf"), progress=False)
    assert "not in the cache, or not all of it" in str(refused(MODEL, offline=True))
    assert [request for request in server.seen if request.path.endswith("tokenizer.json")] == []


def test_hub_that_does_not_answer_is_given_up(server: HubServer, waits: list[float]) -> None:
    server.hub_faults = [503] * 100
    error = refused(MODEL)
    assert error.exit_code == 3
    assert "gave up after 8 attempts" in str(error)
    assert len(waits) == 7


def test_no_connection_is_one_line(server: HubServer, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "no answer from the Hub (ConnectError)" in str(refused(MODEL))


def test_token_is_sent_and_never_printed(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.token = TOKEN
    assert "private" in str(refused(MODEL))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert download(MODEL, progress=False).exists()
    assert {request.authorization for request in server.ranges} == {None}  # a storage server never sees it
    server.gated = True
    assert TOKEN not in repr(refused(HubReference("owner", "model", None, "original")))


def test_full_disk_names_the_cache(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import gptoss_convert.hub.download as module

    def full(*arguments: object, **options: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "snapshot_download", full)
    error = refused(MODEL)
    assert isinstance(error, OutputError)
    assert "HF_HUB_CACHE" in str(error)
