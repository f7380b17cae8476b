"""Run the notebooks and keep what they print.

    python notebooks/execute.py [NOTEBOOK ...]

Only outputs change: nothing of the time or the machine is recorded.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import matplotlib.font_manager  # noqa: F401  # makes its cache now, or a notebook's first plot would say so
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent


def execute(path: Path) -> NotebookNode:
    """Return the notebook with fresh outputs.

    Raises:
        CellExecutionError: If a cell raises.
    """
    notebook = nbformat.read(path, as_version=4)
    # tqdm warns of a progress widget that is not installed, and names the path of its own file.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore:IProgress not found"}
    metadata = dict(notebook.metadata)
    client = NotebookClient(
        notebook, timeout=300, record_timing=False, resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute(env=environment)
    notebook.metadata = metadata
    return notebook


def main() -> None:
    """Execute the notebooks named, or all of them, in place."""
    for path in [Path(name) for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        print(path, flush=True)
        nbformat.write(execute(path), path)


if __name__ == "__main__":
    main()
