"""What is installed: one import package, whole, and nothing beside it."""

import ast
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_INSTALLED = {"tests", "benchmarks", "examples"}
PACKAGE = "gptoss_convert"


def project_files() -> list[Path]:
    """Return the files that belong to the project, relative to its root: no caches, no build results."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    return [Path(name) for name in names if name and (ROOT / name).is_file()]


FILES = project_files()
SOURCES = [path for path in FILES if path.suffix == ".py"]
SIBLINGS = {path.stem for path in SOURCES if len(path.parts) == 1} | {
    path.parts[0] for path in SOURCES if len(path.parts) > 1 and path.name == "__init__.py"
}
"""Names that would be top-level modules if the root were on the path."""


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a wheel and an sdist, built from a clean copy."""
    folder = tmp_path_factory.mktemp("build")
    for path in FILES:
        (folder / "copy" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, folder / "copy" / path)
    isolation = ["--no-isolation"] if int(version("setuptools").partition(".")[0]) >= 77 else []
    options = ["--wheel", "--sdist", *isolation, "--outdir", str(folder)]
    build = [sys.executable, "-P", "-m", "build", *options, str(folder / "copy")]
    done = subprocess.run(build, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture(scope="session")
def wheel(distributions: Path) -> Path:
    (path,) = distributions.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def wheel_names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="session")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment in which the wheel is installed, and the dependencies of this one."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    scripts, interpreter = ("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python")
    python = folder / scripts / interpreter
    pip = [sys.executable, "-P", "-m", "pip", "--python", str(python), "install"]
    subprocess.run([*pip, "--quiet", "--no-index", "--no-deps", str(wheel)], check=True)
    # A path file adds the packages here, but not what their own path files add: an editable installation.
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(python, "-c", query, cwd=folder).stdout.strip())
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


# The wheel


def test_wheel_has_one_top_level_package(wheel_names: set[str]) -> None:
    top = {name.partition("/")[0] for name in wheel_names}
    assert {name for name in top if not name.endswith(".dist-info")} == {PACKAGE}
    assert len(top) == 2


def test_wheel_has_every_package_and_module(wheel_names: set[str]) -> None:
    expected = {f"{PACKAGE}/{path.as_posix()}" for path in SOURCES if path.parts[0] not in NOT_INSTALLED}
    packages = {
        path.parent for path in SOURCES if path.name == "__init__.py" and path.parts[0] not in NOT_INSTALLED
    }
    modules = {name for name in expected if Path(name).relative_to(PACKAGE).parent in packages}
    assert modules - wheel_names == set()
    assert {name for name in wheel_names if name.endswith(".py")} - expected == set()


def test_every_module_lies_in_a_package() -> None:
    packages = {path.parent for path in SOURCES if path.name == "__init__.py"}
    loose = {path for path in SOURCES if path.parts[0] not in NOT_INSTALLED and path.parent not in packages}
    assert {path for path in loose if path.parts[0] not in {"docs", "examples", ".ci"}} == set()


def test_wheel_has_its_data(wheel_names: set[str]) -> None:
    folders = {("demo", "tiny-gpt-oss"), ("verify", "prompt_data")}
    files = [path for path in FILES if path.parts[:2] in folders]
    assert {path.parts[:2] for path in files} == folders
    data = {f"{PACKAGE}/{path.as_posix()}" for path in files}
    assert data | {f"{PACKAGE}/py.typed"} <= wheel_names


def test_wheel_has_kernels_where_there_is_a_compiler_and_serves_every_python(wheel: Path) -> None:
    """Without a compiler numpy takes their place; see `kernels/__init__.py`."""
    with zipfile.ZipFile(wheel) as archive:
        compiled = [name for name in archive.namelist() if name.startswith(f"{PACKAGE}/kernels/native.abi3")]
    assert "-cp311-abi3-" in wheel.name
    assert len(compiled) == (shutil.which(sysconfig.get_config_var("CC").split()[0]) is not None)


def test_wheel_has_the_licence(wheel_names: set[str]) -> None:
    assert any(re.fullmatch(r"[^/]+\.dist-info/licenses/LICENSE", name) for name in wheel_names)


@pytest.mark.parametrize("folder", ["tests", "docs"])
def test_sdist_has_everything_that_the_repository_has(folder: str, distributions: Path) -> None:
    (path,) = distributions.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {Path(*Path(name).parts[1:]) for name in archive.getnames()}
    assert {file for file in FILES if file.parts[0] == folder} - names == set()


# The installed wheel


def test_installed_package_is_not_the_repository(python: Path, tmp_path: Path) -> None:
    done = run(python, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ROOT not in Path(done.stdout.strip()).parents


@pytest.mark.parametrize("module", ["formats", "cli", "verify", "converters", "demo", "encodings.mxfp4"])
def test_installation_adds_no_other_module(module: str, python: Path, tmp_path: Path) -> None:
    done = run(python, "-c", f"import {module}", cwd=tmp_path)
    assert "ModuleNotFoundError" in done.stderr


def test_tests_are_not_installed(python: Path, tmp_path: Path) -> None:
    assert "ModuleNotFoundError" in run(python, "-c", f"import {PACKAGE}.tests", cwd=tmp_path).stderr


def test_console_script_runs_the_demo_in_any_folder(python: Path, tmp_path: Path) -> None:
    done = run(python.with_name("gptoss-convert"), "demo", "-o", "artifact", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.rglob("*.gguf")] == ["tiny-gpt-oss.gguf"]


def test_package_runs_as_a_module(python: Path, tmp_path: Path) -> None:
    done = run(python, "-m", PACKAGE, "--version", cwd=tmp_path)
    assert done.stdout == run(python.with_name("gptoss-convert"), "--version", cwd=tmp_path).stdout != ""


DISTRIBUTIONS = {
    "cyclonedx": "cyclonedx-python-lib",
    "model_signing": "model-signing",
    "vl_convert": "vl-convert-python",
    "yaml": "pyyaml",
}
"""Distribution by the name of its import package, where the two differ."""


def test_what_is_imported_is_declared_and_what_always_comes_along_is_imported(python: Path, tmp_path: Path) -> None:
    query = f"from importlib.metadata import requires; print(*requires({PACKAGE!r}), sep='\\n')"
    lines = run(python, "-c", query, cwd=tmp_path).stdout.splitlines()
    always = distributions_of(line for line in lines if "extra ==" not in line)
    extras = distributions_of(line for line in lines if re.search("extra == .(?!peers|test)", line))
    modules = {name for path in SOURCES if path.parts[0] not in NOT_INSTALLED for name in imported(path)}
    foreign = {DISTRIBUTIONS.get(name, name) for name in modules - sys.stdlib_module_names - {PACKAGE}}
    assert always <= foreign <= always | extras


def distributions_of(requirements: Iterable[str]) -> set[str]:
    return {re.split(r"[^\w-]", line)[0] for line in requirements}


# The sources


def imported(path: Path) -> set[str]:
    """Return the top-level names that a source file imports; `.` stands for a relative import."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." if node.level else (node.module or "").partition(".")[0])
    return names


def test_imports_are_absolute_from_the_package() -> None:
    allowed = {"tests": {"tests", "."}, "benchmarks": {"benchmarks", "tests", "."}}
    wrong = {
        str(path): names
        for path in SOURCES
        if (names := imported(path) & (SIBLINGS | {"."}) - allowed.get(path.parts[0], set()))
    }
    assert wrong == {}


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    places = re.compile(rb"(?<![\w.])/(?:work|root|home|Users)/")
    binary = {".safetensors", ".npy", ".npz", ".xz", ".gguf", ".png"}
    texts = {path: (ROOT / path).read_bytes() for path in FILES if path.suffix not in binary}
    wrong = {str(path): found.group() for path, text in texts.items() if (found := places.search(text))}
    assert wrong == {}
