"""What names a model on the Hub, and what names a path."""

from pathlib import Path

import pytest

from gptoss_convert.description import model_name
from gptoss_convert.errors import OptionError
from gptoss_convert.hub.reference import HubReference, cached_commit, parse_source, parse_uri, upload_command


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://openai/gpt-oss-20b", HubReference("openai", "gpt-oss-20b")),
        ("hf://openai/gpt-oss-20b@v1.0", HubReference("openai", "gpt-oss-20b", "v1.0")),
        ("hf://o/n@refs/pr/3", HubReference("o", "n", "refs/pr/3")),
        ("hf://o/n@feature%2Fx/original", HubReference("o", "n", "feature/x", "original")),
        ("hf://o/n/a b/x.gguf", HubReference("o", "n", None, "a b/x.gguf")),
        ("hf://o/n/", HubReference("o", "n")),
    ],
)
def test_uri_names_owner_repository_revision_and_path(text: str, expected: HubReference) -> None:
    assert parse_uri(text) == expected
    assert parse_uri(str(expected)) == expected or "%2F" in text


@pytest.mark.parametrize(
    "text",
    [
        "hf://", "hf://owner", "hf://owner/", "hf://../name", "hf://o/n--m", "hf://o/n@", "hf://o/n@a%2F..%2Fb",
        "hf://o/n/../x", "hf://o/n/[x]*", "hf://o/n?x=1", "hf://o/n@%00", "hf:///etc/passwd",
    ],
)  # fmt: skip
def test_uri_that_names_no_model_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"hf://|cannot be"):
        parse_uri(text)


def test_owner_and_name_are_a_model_where_no_such_path_can_be_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_source("owner/name") == HubReference("owner", "name")
    for path in ("name", "./owner/name", "/owner/name", "a/b/c", "owner/", "owner/x.gguf", "../x", "~/x", "o/n--m"):
        assert parse_source(path) == Path(path)
    (tmp_path / "owner").mkdir()
    assert parse_source("owner/name") == Path("owner/name")  # mistyped, or yet to be made: nobody is asked
    assert parse_source("hf://owner/name") == HubReference("owner", "name")


def test_revision_of_an_option_must_not_contradict() -> None:
    reference = HubReference("o", "n")
    assert reference.at(None) == reference
    assert reference.at("main") == reference.at("main").at("main") == HubReference("o", "n", "main")
    with pytest.raises(OptionError, match="two revisions"):
        reference.at("main").at("other")
    with pytest.raises(OptionError, match="not a revision"):
        reference.at("../x")


def test_model_in_the_cache_is_called_as_its_repository(tmp_path: Path) -> None:
    repository = tmp_path / "models--openai--gpt-oss-20b"
    snapshot = repository / "snapshots" / ("a" * 40)
    (snapshot / "original").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "0123").touch()
    (snapshot / "x.gguf").symlink_to(repository / "blobs" / "0123")
    assert model_name(snapshot) == "gpt-oss-20b"
    assert model_name(snapshot / "x.gguf") == "x.gguf"
    assert model_name(snapshot / "original") == "original"
    assert model_name(tmp_path) == tmp_path.name
    assert {cached_commit(path) for path in (snapshot, snapshot / "x.gguf", snapshot / "original")} == {"a" * 40}
    assert cached_commit(tmp_path) is None


def test_upload_command_can_be_copied(tmp_path: Path) -> None:
    file = tmp_path / "my model.gguf"
    file.touch()
    assert upload_command(file) == f"hf upload 'OWNER/my model' '{file}'"
    assert upload_command(Path("out")) == "hf upload OWNER/out out"
