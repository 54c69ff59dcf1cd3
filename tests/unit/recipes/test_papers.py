"""What a build writes beside its manifest: provenance, bill of materials, signature."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement

from gptoss_convert.errors import InputError, VerificationError
from gptoss_convert.recipes.build import build
from gptoss_convert.recipes.papers import Papers
from gptoss_convert.recipes.recipe import read_recipe
from gptoss_convert.recipes.signing import require_signature
from tests.support.conversions import TINY

BUILDER = "https://example.org/workflows/release"


def new_keys(folder: Path) -> tuple[Path, Path]:
    """Write a private key and its public key."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / "key.pem", folder / "key.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build with all papers, and the keys beside it."""
    top = tmp_path_factory.mktemp("papers")
    shutil.copytree(TINY, top / "model")
    recipe = top / "recipe.toml"
    recipe.write_text(
        'version = 1\nsource.path = "model"\n[[artifacts]]\nto = "gguf"\noutput = "model.gguf"\n'
        '[[artifacts]]\nto = "mxfp4"\noutput = "original"\noptions.layout = "openai"\n'
    )
    private, _ = new_keys(top)
    papers = Papers(builder=BUILDER, bill_of_materials=True, signing_key=private)
    assert build(read_recipe(recipe), top / "dist", papers=papers).exit_code == 0
    return top / "dist"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_provenance_names_every_file_and_every_source(folder: Path) -> None:
    statement = json.loads((folder / "provenance.json").read_text())
    subjects = {item["name"]: item["digest"]["sha256"] for item in statement["subject"]}
    others = {"manifest.json", "build-state.json", "provenance.json", "bom.json", "model.sig"}
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - others
    artifacts = {name for name in files if not name.startswith("cards/")}
    assert subjects == {name: sha256(folder / name) for name in artifacts}
    definition = statement["predicate"]["buildDefinition"]
    source = folder.parent / "model"
    assert {item["name"]: item["digest"]["sha256"] for item in definition["resolvedDependencies"]} == {
        f"model/{path.name}": sha256(path) for path in source.glob("*.safetensors")
    }
    assert statement["predicate"]["runDetails"]["builder"]["id"] == BUILDER


def test_the_library_of_the_specification_takes_the_statement(folder: Path) -> None:
    statement = json.loads((folder / "provenance.json").read_text())
    subjects = [ResourceDescriptor(**subject).pb for subject in statement["subject"]]
    Statement(subjects, statement["predicateType"], statement["predicate"]).validate()


def test_the_bill_of_materials_is_what_cyclonedx_specifies(folder: Path) -> None:
    text = (folder / "bom.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    models = {item["name"]: item for item in json.loads(text)["components"]}
    assert set(models) == {"model.gguf", "original"}
    assert all(item["type"] == "machine-learning-model" for item in models.values())
    hashes = {file["name"]: file["hashes"][0]["content"] for file in models["original"]["components"]}
    assert hashes["original/model.safetensors"] == sha256(folder / "original" / "model.safetensors")


def test_the_same_build_has_the_same_papers(folder: Path) -> None:
    before = [(folder / name).read_bytes() for name in ("bom.json", "provenance.json")]
    papers = Papers(builder=BUILDER, bill_of_materials=True, signing_key=folder.parent / "key.pem")
    build(read_recipe(folder.parent / "recipe.toml"), folder, papers=papers)
    assert [(folder / name).read_bytes() for name in ("bom.json", "provenance.json")] == before


@pytest.mark.parametrize("name", ["manifest.json", "model.gguf", "original/config.json"])
def test_the_signature_holds_for_what_was_signed_only(name: str, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "build-state.json").unlink()
    require_signature(copy, folder.parent / "key.pub")
    with (copy / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(VerificationError, match="signature does not hold"):
        require_signature(copy, folder.parent / "key.pub")


def test_papers_that_were_not_asked_for_again_are_gone(folder: Path, tmp_path: Path) -> None:
    top = shutil.copytree(folder.parent, tmp_path / "copy")
    build(read_recipe(top / "recipe.toml"), top / "dist")
    assert not {"model.sig", "bom.json", "provenance.json"} & {path.name for path in (top / "dist").iterdir()}


def test_another_key_does_not_fit(folder: Path, tmp_path: Path) -> None:
    _, public = new_keys(tmp_path)
    with pytest.raises(VerificationError):
        require_signature(folder, public)


def test_what_is_missing_is_named_before_the_work(folder: Path, tmp_path: Path) -> None:
    papers = Papers(signing_key=tmp_path / "key")
    with pytest.raises(InputError, match="no such key"):
        build(read_recipe(folder.parent / "recipe.toml"), tmp_path / "dist", papers=papers)
    assert not (tmp_path / "dist").exists()
    with pytest.raises(InputError, match="no such signature"):
        require_signature(tmp_path, folder.parent / "key.pub")
    (tmp_path / "no.pub").write_text("nothing")
    with pytest.raises(InputError, match="not a public key"):
        require_signature(folder, tmp_path / "no.pub")
