"""Packages that only some work needs: found out about before the work, and how to install them."""

from __future__ import annotations

import importlib.util

from qdqpatch.errors import QdqError

DISTRIBUTIONS = {
    "onnx_ir": "onnx-ir",
    "PIL": "pillow",
    "tensorrt_rtx_bindings": "tensorrt-rtx-cu12-libs tensorrt-rtx-cu12-bindings",
}
"""The names by which pip knows packages that are imported by another one."""

TITLES = {"tensorrt_rtx_bindings": "TensorRT for RTX"}
"""What packages are called, where it is by another name than pip's."""


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
    if reason := lacking(purpose, *modules, otherwise=otherwise):
        raise error(reason)


def lacking(purpose: str, *modules: str, otherwise: str = "", install: str | None = None) -> str | None:
    """Return what `require` would say; None if nothing is missing.

    Args:
        purpose: What needs the modules, as the beginning of a sentence.
        *modules: Top-level modules.
        otherwise: What can be done instead, as the end of a sentence; empty for nothing.
        install: What pip is to install; None for the modules' own packages.
    """
    if not (absent := missing(*modules)):
        return None
    names = " and ".join(TITLES.get(module) or DISTRIBUTIONS.get(module, module) for module in absent)
    way = pip_install(*absent) if install is None else f"pip install {install}"
    return f"{purpose} needs {names}: {way}{', or ' * bool(otherwise)}{otherwise}"


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # an import hook's no, or a module that came without a spec
        return False
