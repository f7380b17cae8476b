"""What makes many exports quick."""

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import invoke
from onnxscript.function_libs.torch_lib import ops, registration
from sentence_folders import TEXTS, write_embedder


@pytest.fixture(scope="session", autouse=True)
def operators_are_read_once() -> Iterator[None]:
    """Keep what torch asks of onnxscript for every export: it parses 500 functions each time."""
    assert ops  # which fill the registry
    with pytest.MonkeyPatch.context() as patch:
        kinds = {
            type(function)
            for group in registration.default_registry.values()
            for function in (*group.overloads, *group.complex)
        }
        for kind in kinds:
            read = kind.__dict__.get("function_ir")
            if isinstance(read, property):
                patch.setattr(kind, "function_ir", property(functools.cache(read.fget)))
        yield


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float embedder, and one folder with its int8 form for torch, ONNX Runtime and OpenVINO."""
    root = tmp_path_factory.mktemp("layout")
    write_embedder(root / "float", dense=True, prompts={"query": "a "})
    (root / "texts.txt").write_text("\n".join(TEXTS))
    result = invoke(
        "convert", root / "float", root / "out", "--calib", root / "texts.txt", "--method", "max",
        "--export", "onnxruntime", "--export", "openvino", "--triton",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return root
