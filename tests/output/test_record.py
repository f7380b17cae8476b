"""The model card says what a folder's record says."""

import json
from pathlib import Path

import pytest

from qdqpatch.output.manifest import add_sections
from qdqpatch.output.record import CARD, write_card


@pytest.mark.parametrize(
    ("target", "engine", "cell"),
    [
        ("onnxruntime", "onnxruntime 1.32.0", "onnxruntime 1.32.0"),
        ("tensorrt", "onnxruntime 1.32.0", "tensorrt, compared in onnxruntime 1.32.0"),
        ("tensorrt", None, "tensorrt"),
    ],
)
def test_a_file_is_for_its_target_wherever_it_was_compared(
    tmp_path: Path, target: str, engine: str | None, cell: str
) -> None:
    export = {"target": target, "engine": engine, "bytes": 1e6, "matmuls": None, "integer": None, "steps": {}}
    add_sections(tmp_path, variant="0", versions={}, exports={"onnx/model.onnx": export})
    assert json.loads((tmp_path / "qdqpatch.json").read_text(encoding="utf-8"))["exports"]
    write_card(tmp_path)
    row = next(
        line for line in (tmp_path / CARD).read_text(encoding="utf-8").splitlines() if "model.onnx" in line
    )
    assert row == f"| `onnx/model.onnx` | {cell} | 1.0 | not known | not compared |"


def test_the_card_says_how_the_folder_is_loaded(tmp_path: Path) -> None:
    add_sections(tmp_path, variant="0", versions={})
    write_card(tmp_path)
    assert "To load it" not in (tmp_path / CARD).read_text(encoding="utf-8")
    (tmp_path / "model.safetensors").touch()
    write_card(tmp_path)
    expected = (
        "To load it where qdqpatch is installed: `import qdqpatch`, then `from_pretrained` of transformers"
    )
    assert f"\n{expected}.\n" in (tmp_path / CARD).read_text(encoding="utf-8")
    kind = {"type": "qdqpatch.engines.sentence_transformers.Transformer"}
    (tmp_path / "modules.json").write_text(json.dumps([kind]))
    for settings, name in (({}, "SentenceTransformer"), ({"model_type": "CrossEncoder"}, "CrossEncoder")):
        (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(settings))
        write_card(tmp_path)
        text = (tmp_path / CARD).read_text(encoding="utf-8")
        assert f"\n{expected}; `{name}(FOLDER, trust_remote_code=True)`.\n" in text
