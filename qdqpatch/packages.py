"""Packages that only some work needs: found out about before the work, and how to install them."""

from __future__ import annotations

import importlib.util

from qdqpatch.errors import QdqError

DISTRIBUTIONS = {"onnx_ir": "onnx-ir", "PIL": "pillow"}
"""The names by which pip knows packages that are imported by another one."""


def pip_install(*modules: str) -> str:
    """Return the command that installs the packages of some modules: `pip install onnx onnx-ir`."""
    roots = dict.fromkeys(module.partition(".")[0] for module in modules)
    return f"pip install {' '.join(DISTRIBUTIONS.get(root, root) for root in roots)}"


def missing(*modules: str) -> list[str]:
    """Return those of some top-level modules that cannot be imported, without importing them."""
    return [module for module in modules if not _is_there(module)]


def require(purpose: str, *modules: str, error: type[QdqError], otherwise: str = "") -> None:
    """Find out before the work whether what it needs is installed.

    Args:
        purpose: What needs it, as the beginning of a sentence.
        *modules: Top-level modules.
        error: What is raised.
        otherwise: What can be done instead, as the end of a sentence; empty for nothing.

    Raises:
        QdqError: If something is missing; the message names it and the command that installs it.
    """
    if absent := missing(*modules):
        names = " and ".join(DISTRIBUTIONS.get(module, module) for module in absent)
        raise error(f"{purpose} needs {names}: {pip_install(*absent)}{', or ' * bool(otherwise)}{otherwise}")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # an import hook's no, or a module that came without a spec
        return False
