"""A reranker's folder, unchanged, in sentence-transformers: int8 in every engine, never the float model."""

import json
import shutil
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from checkpoints import write_tokenizer
from sentence_folders import TEXTS

import qdqpatch
from qdqpatch.checkpoint.companions import read_companions
from qdqpatch.exporter.layout import write_beside
from qdqpatch.patching.apply import is_quantized

pytestmark = pytest.mark.slow

library = pytest.importorskip("sentence_transformers")

PAIRS = list(zip(TEXTS, reversed(TEXTS), strict=True))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float reranker without `modules.json`, what is exported of it, and a checkpoint with that file."""
    root = tmp_path_factory.mktemp("reranker")
    model = models.build("BertForSequenceClassification", num_labels=1)
    model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    model.save_pretrained(root / "float")
    write_tokenizer(root / "float")
    reranker = library.CrossEncoder(str(root / "float"), device="cpu")
    reranker.max_seq_length = 10
    qdqpatch.ptq(reranker, PAIRS, method="max")
    qdqpatch.export(reranker, root / "exported", "onnxruntime", check=False)
    inner = reranker.transformers_model
    inner.save_pretrained(root / "checkpoint")
    write_beside(inner, root / "checkpoint", read_companions(str(root / "float")), None)
    shutil.copytree(root / "exported/onnx", root / "checkpoint/onnx")
    return root


def load(folder: Path, **options: Any) -> Any:
    return library.CrossEncoder(str(folder), device="cpu", trust_remote_code=True, **options)


@pytest.mark.parametrize(
    ("name", "engine"), [("exported", None), ("checkpoint", None), ("checkpoint", "torch")]
)
def test_scores_are_those_of_int8(name: str, engine: str | None, root: Path) -> None:
    expected = library.CrossEncoder(str(root / "float"), device="cpu").predict(PAIRS)
    model = load(root / name, model_kwargs={"engine": engine})
    found = model.predict(PAIRS)
    assert found.shape == expected.shape == (len(PAIRS),)
    difference = abs(found - expected)
    assert 1e-6 < difference.min() < difference.max() < np.ptp(expected) / 2  # close, and not the float ones
    assert type(model.activation_fn).__name__ == "Identity"
    assert is_quantized(model[0].model) == (engine == "torch")
    assert sorted(row["corpus_id"] for row in model.rank(TEXTS[0], TEXTS)) == list(range(len(TEXTS)))


def test_a_reranker_in_memory_is_exported_with_its_files(root: Path) -> None:
    settings = json.loads((root / "exported/config_sentence_transformers.json").read_text())
    assert settings["model_type"] == "CrossEncoder"
    model = load(root / "exported")
    assert model.max_seq_length == 10
    model.save_pretrained(str(root / "again"))
    assert (load(root / "again").predict(PAIRS) == model.predict(PAIRS)).all()


def test_without_our_module_it_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        library.CrossEncoder(str(root / "checkpoint"), device="cpu")
