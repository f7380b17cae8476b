"""Packages that only some work needs: found out about before the work, and named with how to install them."""

import sys
from collections.abc import Sequence

import pytest

from qdqpatch.errors import ConfigError, ExportError
from qdqpatch.packages import missing, pip_install, require


def test_how_to_install() -> None:
    assert pip_install("onnx", "onnx_ir.passes", "onnx_ir") == "pip install onnx onnx-ir"


def test_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    assert missing("onnx_ir", "json", "no_such_package") == ["onnx_ir", "no_such_package"]
    require("Work", "json", error=ConfigError)
    with pytest.raises(ExportError) as caught:
        require("Work", "onnx_ir", "json", "no_such", error=ExportError, otherwise="do without: --no-work")
    assert str(caught.value) == (
        "Work needs onnx-ir and no_such: pip install onnx-ir no_such, or do without: --no-work"
    )


def test_an_import_hook_that_forbids(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forbidding:
        def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> None:
            if name == "forbidden":
                raise ImportError("forbidden here")

    monkeypatch.setattr(sys, "meta_path", [Forbidding(), *sys.meta_path])
    assert missing("forbidden", "json") == ["forbidden"]
