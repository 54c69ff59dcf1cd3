"""What a Hugging Face folder says about its model."""

import contextlib
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.assets import Assets
from gptoss_convert.checkpoint import parameter_count
from gptoss_convert.description import Description, Reference
from gptoss_convert.errors import InputError
from gptoss_convert.formats.gguf.container import serialise_header
from gptoss_convert.formats.gguf.description import description_metadata
from gptoss_convert.formats.huggingface import parse_config
from gptoss_convert.formats.model_card import LONGEST_LIST, LONGEST_TEXT, describe_folder, hub_reference

PUBLISHED = Path(__file__).resolve().parents[2] / "data/gpt-oss"
RAW = json.loads((PUBLISHED / "20b/config.json").read_text(encoding="utf-8"))
CONFIG = parse_config(RAW, Path("config.json"))


def described(folder: Path, card: str | bytes | None = None, **files: str | bytes) -> Description:
    """What a folder with these files says; what it says can be stored."""
    folder.mkdir(exist_ok=True)
    named = {"generation": "generation_config.json"}
    contents = {named.get(name, name): content for name, content in files.items()}
    if card is not None:
        contents["README.md"] = card
    for name, content in contents.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    said = describe_folder(Assets(folder), RAW, parameter_count(CONFIG))
    serialise_header(description_metadata(said, CONFIG), [])
    return said


def front_matter(text: str) -> str:
    return f"---\n{text}\n---\n# Model\n"


def test_folder_name_describes_the_model(tmp_path: Path) -> None:
    assert described(tmp_path / "gpt-oss-20b") == Description(
        name="Gpt Oss 20b", basename="gpt-oss", size_label="20B"
    )


def test_size_in_the_folder_name_is_believed_only_if_it_fits(tmp_path: Path) -> None:
    assert described(tmp_path / "gpt-oss-1b").size_label is None


def test_no_folder_says_nothing() -> None:
    assert describe_folder(Assets(None), {}, 1) == Description()


def test_model_card_goes_before_the_folder_name(tmp_path: Path) -> None:
    text = "model_name: My model\nlicense: apache-2.0\ntags: [a, b]\nbase_model: openai/gpt-oss-20b\nlanguage: no"
    said = described(tmp_path / "gpt-oss-20b", front_matter(text.replace("no", '"no"')))
    assert said.name == "My model"
    assert said.size_label == "20B"
    assert said.license == "apache-2.0"
    assert said.tags == ("a", "b")
    assert said.languages == ("no",)
    assert said.base_models == (
        Reference(name="Gpt Oss 20b", organization="Openai", repo_url="https://huggingface.co/openai/gpt-oss-20b"),
    )


def test_references_may_be_written_out(tmp_path: Path) -> None:
    text = "datasets:\n- name: Texts\n  author: Someone\n  size: 5\n- owner/more\n"
    said = described(tmp_path, front_matter(text))
    assert said.datasets == (
        Reference(name="Texts", author="Someone"),
        Reference(name="More", organization="Owner", repo_url="https://huggingface.co/owner/more"),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [("license: 5", "5"), ("license: [mit, isc]", "mit,isc"), ("license: ''", ""), ("license:", None)],
)
def test_licence_of_the_model_card(tmp_path: Path, text: str, expected: str | None) -> None:
    assert described(tmp_path, front_matter(text)).license == expected


def test_apache_licence_is_recognised(tmp_path: Path) -> None:
    text = (PUBLISHED.parents[2] / "LICENSE").read_bytes()
    assert described(tmp_path, LICENSE=text).license == "apache-2.0"
    assert described(tmp_path, front_matter("license: mit"), LICENSE=text).license == "mit"


@pytest.mark.parametrize("text", [b"", b"MIT License", b"Apache License\nVersion 1.1", b"\xff\xfe"])
def test_other_licence_is_not_recognised(tmp_path: Path, text: bytes) -> None:
    assert described(tmp_path, LICENSE=text).license is None


def test_hub_id_is_a_reference() -> None:
    assert hub_reference("a/b-c") == Reference(
        name="B C", organization="A", repo_url="https://huggingface.co/a/b-c"
    )
    assert hub_reference("d") == Reference(name="D")


# --- damage


@pytest.mark.parametrize(
    "text",
    [
        front_matter("license: {a: b}"),
        front_matter("license: [{a: b}]"),
        front_matter("license: [{name: b}]"),
        front_matter("license: yes"),
        front_matter("license: " + "x" * (LONGEST_TEXT + 1)),
        front_matter('license: "\\ud800"'),
        front_matter("tags: [1]"),
        front_matter("datasets: [5]"),
        front_matter("tags: [{a: b}]"),
        front_matter("tags: [{name: a}]"),
        front_matter("tags: [" + "a," * (LONGEST_LIST + 1) + "]"),
        front_matter("base_model: {name: a}"),
        front_matter("base_model: [{size: 5}]"),
        front_matter("dataset_sources: [[a]]"),
        front_matter("foo: ["),
        front_matter("foo: !!python/object/apply:os.system ['true']"),
        front_matter("a: &a [*a]\nlicense: *a"),
        front_matter("license: " + "[" * 10_000),
        b"---\nlicense: \xff\n---\n",
        front_matter("license: \x1b[31m"),
    ],
)
def test_damaged_model_card_is_refused(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(InputError, match=r"README\.md") as caught:
        described(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "text",
    [
        "# No front matter",
        "",
        "---",
        "---\nno end: of it",
        front_matter("- a"),
        front_matter("model-index: 5"),
        front_matter("datasets:\nbase_model:\ntags:\nlicense:"),
        front_matter("metrics: {a: [b]}\n5: six\nnull: x"),
        front_matter("tags:\t[a]"),
    ],
)
def test_unusual_model_card_does_no_harm(tmp_path: Path, text: str) -> None:
    assert described(tmp_path / "gpt-oss-20b", text).name == "Gpt Oss 20b"


KEYS = st.sampled_from(
    [
        *("name", "model_name", "model_type", "model_creator", "license", "license_link", "tags", "pipeline_tag"),
        *("language", "url", "sampling", "version", "base_model", "base_models", "base_model_sources"),
        *("datasets", "dataset_sources"),
    ]
)
TEXTS = st.text("aZ0é-/._: \n", max_size=8) | st.sampled_from(["openai/gpt-oss-20b", "https://huggingface.co/a/b"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "author", "doi", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(card=st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_model_card_is_refused_or_can_be_stored(tmp_path: Path, card: dict[str, object]) -> None:
    with contextlib.suppress(InputError):
        said = described(tmp_path, front_matter(yaml.safe_dump(card)))
        assert all(isinstance(text, str) for text in (*said.tags, *said.languages))


# --- sampling


def test_sampling_settings_are_read(tmp_path: Path) -> None:
    text = (
        '{"temperature": 0.5, "top_k": 40.0, "min_p": 0, "repetition_penalty": 1.1, "sequence": "kpt", "other": []}'
    )
    said = described(tmp_path, generation=text)
    assert said.sampling == {"temp": 0.5, "top_k": 40, "min_p": 0, "penalty_repeat": 1.1, "sequence": "kpt"}


def test_sampling_setting_of_null_is_not_said(tmp_path: Path) -> None:
    assert described(tmp_path, generation='{"temperature": null}').sampling == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"temperature": "hot"}',
        '{"temperature": true}',
        '{"temperature": NaN}',
        '{"temperature": 1e999}',
        '{"top_k": 5000000000}',
        '{"top_k": [1]}',
        '{"top_k": 1.5}',
        '{"top_p": {}}',
        '{"sequence": "\\ud800"}',
    ],
)
def test_damaged_generation_settings_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"generation_config\.json"):
        described(tmp_path, generation=text)
