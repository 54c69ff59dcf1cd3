"""What is written beside the manifest of a build: provenance, bill of materials, signature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_convert.converters.output import write_file
from gptoss_convert.errors import as_output_error
from gptoss_convert.recipes.bom import bill_of_materials
from gptoss_convert.recipes.provenance import provenance
from gptoss_convert.recipes.signing import SIGNATURE, require_signing, sign_folder

PROVENANCE = "provenance.json"
BILL_OF_MATERIALS = "bom.json"


@dataclass(frozen=True, kw_only=True)
class Papers:
    """What is written beside the manifest."""

    builder: str | None = None
    """URI of who runs the build, for a statement of provenance; None for no statement."""
    bill_of_materials: bool = False
    signing_key: Path | None = None
    """Private key to sign the folder with; None for no signature."""

    def require_possible(self) -> None:
        """Refuse what would fail after hours of work.

        Raises:
            InputError: there is no such key.
            UnsupportedError: a library is not installed.
        """
        if self.bill_of_materials:
            bill_of_materials({"artifacts": [], "source": {}, "tool": {"name": "", "version": ""}, "libraries": {}})
        if self.signing_key is not None:
            require_signing(self.signing_key)


def write_papers(folder: Path, papers: Papers, manifest: Mapping[str, Any]) -> None:
    """Write the papers, and remove those of an earlier build, which may say what is not true any more."""
    for name in (PROVENANCE, BILL_OF_MATERIALS, SIGNATURE):
        with as_output_error(folder / name):
            (folder / name).unlink(missing_ok=True)
    if papers.builder is not None:
        write_file(folder / PROVENANCE, provenance(manifest, papers.builder))
    if papers.bill_of_materials:
        write_file(folder / BILL_OF_MATERIALS, bill_of_materials(manifest))
    if papers.signing_key is not None:
        sign_folder(folder, papers.signing_key)
