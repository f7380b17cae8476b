"""`qdqpatch export`: what it writes and says, and errors in one line."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from checkpoints import SENTENCES, write_checkpoint
from click.testing import Result
from commands import invoke
from transformers import AutoTokenizer

pytestmark = pytest.mark.usefixtures("traced_once")

Export = Callable[..., Result]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints `float`, `calibrated`, `linears` and, without any range, `bare`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    write_checkpoint(folder / "float")
    (folder / "data.txt").write_text(SENTENCES, encoding="utf-8")
    calib = ["--calib", folder / "data.txt", "--max-length", 16]
    for name, *arguments in (
        ("calibrated", *calib),
        ("linears", *calib, "--preset", "linear-only"),
        ("bare",),
    ):
        result = invoke("convert", folder / "float", folder / name, *arguments)
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def export(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Export one of the checkpoints in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda name, *options: invoke("export", folder / name, *options)


@pytest.mark.slow
def test_onnx_runtime_is_the_default(export: Export) -> None:
    result = export("calibrated", "deep/out")
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.split())
    size = sum(path.stat().st_size for path in Path("deep/out/onnx").glob("model.onnx*")) / 1e6
    assert output.startswith(f"Wrote deep/out/onnx/model.onnx: {size:.1f} MB for onnxruntime (")
    assert "16 of 18 matmuls run as integer kernels. Float:" in output
    reason = "not quantized: its part of the model is off in the QDQConfig"
    assert f"cls.predictions.transform.dense: {reason}" in output
    assert f"cls.predictions.decoder: {reason}" in output
    assert "Compared with the model in onnxruntime " in output
    assert "predictions differ." in output
    assert {path.name for path in Path("deep/out").iterdir()} >= {"config.json", "export.json", "onnx"}
    config = json.loads(Path("deep/out/config.json").read_text(encoding="utf-8"))
    assert config["quantization_config"]["quant_method"] == "qdqpatch"
    assert AutoTokenizer.from_pretrained("deep/out")("the cat")["input_ids"] == [2, 10, 6, 3]


@pytest.mark.slow
def test_options_reach_the_export(export: Export) -> None:
    options = ["--target", "tensorrt", "--shape", "2x8", "--weights", "fp32", "--int8-embeddings"]
    result = export(
        "calibrated",
        "out",
        *options,
        "--opset",
        19,
        "--dtype",
        "float32",
        "--no-check",
        "--task",
        "feature-extraction",
    )
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.split())
    assert "MB for tensorrt (" in output
    assert output.endswith("Not compared with the model: --no-check.")
    assert "integer kernels" not in output
    model = onnx.load("out/onnx/model.onnx")
    assert [opset.version for opset in model.opset_import if not opset.domain] == [19]
    stored = {initializer.name: initializer.data_type for initializer in model.graph.initializer}
    assert stored["encoder.layer.0.output.dense.weight"] == onnx.TensorProto.FLOAT
    assert stored["embeddings.word_embeddings.weight_quantized"] == onnx.TensorProto.INT8
    (ids,) = (value for value in model.graph.input if value.name == "input_ids")
    assert [size.dim_value for size in ids.type.tensor_type.shape.dim] == [2, 8]
    assert {value.name for value in model.graph.output} == {"last_hidden_state"}


@pytest.mark.slow
def test_processors_without_vnni_get_uint8(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    for option, expected in (("--no-vnni", onnx.TensorProto.UINT8), ("--vnni", onnx.TensorProto.INT8)):
        unchecked = () if option == "--no-vnni" else ("--no-check",)
        result = export("linears", "out", "--shape", "1x8", "--force", option, *unchecked)
        assert result.exit_code == 0, result.output
        stored = {
            initializer.name: initializer.data_type
            for initializer in onnx.load("out/onnx/model.onnx").graph.initializer
        }
        assert stored["bert.encoder.layer.0.output.dense.weight_quantized"] == expected
        assert "It was compared with products in fp32" not in result.output
    monkeypatch.setattr("qdqpatch.engines.sessions.saturates", lambda: True)
    result = export("linears", "ov", "--shape", "1x8", "--target", "openvino")
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.split())
    assert re.search(
        r"It was compared with products in fp32: openvino [\w.-]+'s integer kernels saturate on this "
        r"processor, which has no VNNI\. Run the file where there is VNNI\.$",
        output,
    )


@pytest.mark.slow
def test_reasons_are_folded_over_the_layers(export: Export) -> None:
    result = export("linears", "out", "--shape", "1x8")
    output = " ".join(result.output.split())
    assert "12 of 18 matmuls run as integer kernels. Float:" in output
    assert "attention.self.query_x_key" in output
    assert "matmul_q_input_quantizer and matmul_k_input_quantizer off" in output
    assert output.count("query_x_key") == 1


def test_errors_are_one_line(export: Export, folder: Path) -> None:
    Path("file").touch()
    Path("full").mkdir()
    Path("full/old.txt").touch()
    for name, out, options, fragment in (
        ("float", "out", (), "is not quantized. Make an int8 checkpoint of it first: qdqpatch convert"),
        ("bare", "out", (), "quantizers have no range"),
        ("missing", "out", (), "missing"),
        ("calibrated", "file", (), "is a file; name a folder to write to"),
        ("calibrated", "full", (), "is not empty"),
        ("calibrated", folder / "calibrated", ("--force",), "is the checkpoint that is read"),
        ("calibrated", "out", ("--weights", "fp32"), "--weights fp32 is for TensorRT alone"),
        ("calibrated", "out", ("--target", "tensorrt", "--vnni"), "vnni is for onnxruntime alone"),
        ("calibrated", "out", ("--shape", "1x99"), "sequences of 99 do not fit"),
    ):
        result = export(name, out, *options)
        assert result.exit_code == 1, (fragment, result.output)
        assert fragment in " ".join(result.stderr.split())
        assert result.stderr.startswith("Error: ")
        assert "Traceback" not in result.output
    assert sorted(path.name for path in Path().iterdir()) == ["file", "full"]
    assert (folder / "calibrated" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (("--shape", "8"), "'8' is no shape: write BATCHxLENGTH, such as 8x128."),
        (("--shape", "2X8"), "'2X8' is no shape"),
        (("--target", "tvm"), "'tvm' is not one of"),
        (("--opset", "16"), "16 is not in the range 17<=x<=25"),
    ],
)
def test_options_that_make_no_sense(export: Export, options: tuple[str, ...], fragment: str) -> None:
    result = export("calibrated", "out", *options)
    assert result.exit_code == 2
    assert fragment in " ".join(result.stderr.split())


def test_packages_that_are_not_installed(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = export("calibrated", "out")
    assert result.exit_code == 1
    assert result.stderr == "Error: Exporting needs onnx: pip install onnx\n"
    assert not Path("out").exists()


def test_help_and_import_need_none_of_the_packages() -> None:
    code = (
        "import sys, qdqpatch\n"
        "from click.testing import CliRunner\n"
        "from qdqpatch.cli import main\n"
        "for arguments in (['--help'], ['export', '--help']):\n"
        "    assert CliRunner().invoke(main, arguments).exit_code == 0\n"
        "heavy = {'onnx', 'onnx_ir', 'onnxscript', 'onnxruntime', 'openvino'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_convert_exports_in_one_go(export: Export, folder: Path) -> None:
    data = ["--calib", folder / "data.txt", "--max-length", 16, "--method", "max"]
    result = invoke("convert", folder / "float", "out", *data, "--export", "onnxruntime")
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.split())
    assert "Wrote out/onnx/model.onnx: " in output
    assert "16 of 18 matmuls run as integer kernels" in output
    assert {path.name for path in Path("out").iterdir()} >= {"model.safetensors", "onnx"}
    assert Path("out/tokenizer_config.json").exists()


def test_convert_leaves_nothing_if_the_export_fails(export: Export, folder: Path) -> None:
    result = invoke("convert", folder / "float", "out", "--export", "onnxruntime")
    assert result.exit_code == 1
    assert "quantizers have no range" in result.output
    assert not list(Path().iterdir())


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT for RTX is not installed"
)
def test_export_builds(export: Export) -> None:
    result = export(
        "calibrated", "out", "--target", "tensorrt", "--build", "--capability", "SM89", "--no-check"
    )
    assert result.exit_code == 0, result.output
    assert "model.onnx compiled for SM89 by TensorRT for RTX" in result.output
    assert result.output.splitlines()[-1].startswith("SM89: ")


def test_only_tensorrt_is_built(export: Export) -> None:
    result = export("calibrated", "out", "--build")
    assert result.exit_code == 2
    assert "--build compiles for TensorRT; there is none for onnxruntime." in result.output
    assert not Path("out").exists()
