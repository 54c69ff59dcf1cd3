"""Runs notebooks: `python -m tests.support.notebooks` runs those in `examples/` and keeps what their cells show."""

import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SECONDS = 600


def run_notebook(path: Path, folder: Path, changes: "dict[str, str] | None" = None) -> Any:
    """Return the notebook with what its cells show, run in `folder`; `changes` are made to its code.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    for old, new in (changes or {}).items():
        (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source]
        cell.source = cell.source.replace(old, new)
    environment = os.environ | {"PYTHONSAFEPATH": "1", "IPYTHONDIR": str(folder / ".ipython")}
    client = NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
    return notebook


def main() -> None:
    """Run all and write them back."""
    for path in sorted(EXAMPLES.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(run_notebook(path, Path(folder)), path)


if __name__ == "__main__":
    main()
