"""The manual: its links lead somewhere, its tables are those of the code, its programs run."""

import re
import tomllib
from importlib.resources import files
from pathlib import Path

import click
import pytest

from gptoss_convert.cli import load_command
from gptoss_convert.verify.parts import PARTS
from gptoss_convert.verify.policy import PROFILES, Profile
from gptoss_convert.verify.runners import RUNTIMES
from gptoss_convert.verify.verdict import Cause
from tests.cli.samples import Samples

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
VERIFICATION = (ROOT / "docs" / "verification.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith("http")]
    assert [link for link in local if not (document.parent / link).exists()] == []


def test_the_site_has_every_page_of_the_manual() -> None:
    pages = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert pages == {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_have_the_options_that_documents_name(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for name, arguments in re.findall(r"^\$? ?gptoss-convert ([a-z0-9-]+)(.*)$", text, re.MULTILINE):
        known = {option for param in load_command(name).params for option in param.opts}
        assert set(re.findall(r"(?<=\s)--[a-z-]+", arguments)) <= known, f"{name}{arguments}"


def test_every_option_of_verify_is_in_the_manual() -> None:
    manual = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    section = manual.partition("## Verify\n")[2].partition("\n## ")[0]
    common = {"--json", "--quiet", "--debug", "--no-progress"}
    options = {param.opts[-1] for param in load_command("verify").params if isinstance(param, click.Option)}
    assert {option for option in options - common if f"`{option}" not in section} == set()


def test_runtimes_are_those_of_the_code() -> None:
    rows = [
        f"| {runtime.name} | {', '.join(runtime.formats)} | `{runtime.install}` | "
        f"{', '.join(item.name for item in runtime.departures) or 'what the file says'} |"
        for runtime in RUNTIMES.values()
    ]
    assert "\n".join(rows) in VERIFICATION


def test_parts_profiles_and_causes_are_those_of_the_code() -> None:
    assert tuple(re.findall(r"^\| `([a-z]+)` \| [^|]+ \| [^|]+ \| [^|]+ \|$", VERIFICATION, re.MULTILINE)) == PARTS
    assert tuple(re.findall(r"^\| `([a-z0-9-]+)` \| [^|]+ \|$", VERIFICATION, re.MULTILINE)) == PROFILES
    causes = set(re.findall(r"^\| [A-Z]+ \| `([a-z]+)` \|", VERIFICATION, re.MULTILINE))
    assert causes == set(map(str, Cause))


def test_every_line_of_the_policy_is_explained() -> None:
    policy = tomllib.loads(files("gptoss_convert.verify").joinpath("policy.toml").read_text(encoding="utf-8"))
    names = {f"{table}.{key}" for table in ("evidence", "near_ties", "routing") for key in policy[table]}
    names |= set(Profile.__struct_fields__)
    assert {name for name in names if f"`{name}`" not in VERIFICATION} == set()


def test_the_diagram_of_the_parts_is_that_of_the_code() -> None:
    code = (ROOT / "verify" / "parts.py").read_text(encoding="utf-8")
    drawing = [line.strip() for line in code.splitlines() if re.search("[─│▼]", line)]
    assert drawing == [line.strip() for line in VERIFICATION.splitlines() if re.search("[─│▼]", line)]


def test_the_program_in_the_readme_runs(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt-oss-20b").symlink_to(samples.path("huggingface"))
    # What runs models takes a minute and is tested elsewhere.
    program = program.replace(', prompts="quick")', ")")
    exec(program, {})
    loss_and_size, outcome = capsys.readouterr().out.splitlines()
    assert loss_and_size.split()[0] == "lossy"
    assert outcome == "pass"
