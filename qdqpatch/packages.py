"""How to install what is not installed: packages that only some work needs."""

from __future__ import annotations

DISTRIBUTIONS = {"onnx_ir": "onnx-ir", "PIL": "pillow"}
"""The names by which pip knows packages that are imported by another one."""


def pip_install(*modules: str) -> str:
    """Return the command that installs the packages of some modules: `pip install onnx onnx-ir`."""
    roots = dict.fromkeys(module.partition(".")[0] for module in modules)
    return f"pip install {' '.join(DISTRIBUTIONS.get(root, root) for root in roots)}"
