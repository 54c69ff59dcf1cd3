"""Lock files name everything that is installed, in the versions that are tested."""

import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from gptoss_convert.bundle.runtimes import BUNDLE_RUNTIMES, lock_of
from gptoss_convert.bundle.texts import lock_file
from gptoss_convert.formats.onnx import readme

ROOT = Path(__file__).parents[3]
LINUX = {"extra": ""}
WINDOWS = LINUX | {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"}


def name_of(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", requirement).lower()


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {name_of(line.partition("==")[0]): line.partition("==")[2] for line in lines if "==" in line}


def closure(wanted: Iterable[str], environment: dict[str, str]) -> set[str]:
    """Names of all that these distributions need; of what is not installed here, the needs are not known."""
    found: set[str] = set()
    left = [Requirement(text) for text in wanted]
    while left:
        item = left.pop()
        if name_of(item.name) in found or not (item.marker is None or item.marker.evaluate(environment)):
            continue
        found.add(name_of(item.name))
        try:
            left += map(Requirement, metadata.requires(item.name) or [])
        except metadata.PackageNotFoundError:
            continue
    return found


@pytest.mark.parametrize("environment", [LINUX, WINDOWS], ids=["linux", "windows"])
@pytest.mark.parametrize("name", BUNDLE_RUNTIMES)
def test_a_lock_is_complete(name: str, environment: dict[str, str]) -> None:
    lock = lock_of(BUNDLE_RUNTIMES[name])
    own = [text for text in metadata.requires("gptoss-convert") or [] if "extra ==" not in text]
    pins = [f"{key}=={version}" for key, version in lock.items() if key not in ("gptoss-convert", "colorama")]
    assert closure([*own, *pins], environment) <= set(lock)


@pytest.mark.parametrize("name", BUNDLE_RUNTIMES)
def test_versions_are_those_that_are_tested(name: str) -> None:
    lock = lock_of(BUNDLE_RUNTIMES[name])
    elsewhere = {key for key in lock if re.match(r"colorama|onnxruntime.*-(gpu|cuda|directml|webgpu)", key)}
    known = constraints() | {"gptoss-convert": metadata.version("gptoss-convert")}
    assert {key: version for key, version in lock.items() if key not in elsewhere} == {
        key: known[key] for key in lock if key not in elsewhere
    }


@pytest.mark.parametrize("name", [name for name in BUNDLE_RUNTIMES if name != "llama.cpp"])
def test_runtimes_are_those_of_the_folders_own_instructions(name: str) -> None:
    lines = lock_file(BUNDLE_RUNTIMES[name]).splitlines()
    stated = re.findall(r"onnxruntime[a-z-]*==\S+", readme.TARGETS[name].packages)
    assert stated
    assert set(stated) <= set(lines)


def test_every_line_of_a_lock_pins_one_package() -> None:
    for runtime in BUNDLE_RUNTIMES.values():
        head, *lines = lock_file(runtime).splitlines()
        assert head.startswith("# ")
        assert all(re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+( ; sys_platform == \"win32\")?", line) for line in lines)
        assert not {"torch", "transformers"} & set(lock_of(runtime))
