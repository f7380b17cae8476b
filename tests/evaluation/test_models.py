"""Models that are loaded to be evaluated: in batches of any size, in graphs of one shape, in both engines."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import tiny_tasks
import torch
from evaluations import HEAD, TEXTS, features, loaded, write
from exported import write_onnx
from onnx import TensorProto
from torch import Tensor

from qdqpatch.data.arrays import Array, Arrays
from qdqpatch.errors import CheckpointError, ConfigError, EngineError
from qdqpatch.evaluation import models as loading
from qdqpatch.evaluation.models import Model
from qdqpatch.evaluation.predicting import predict
from qdqpatch.evaluation.static_shapes import filled
from qdqpatch.tasks.base import Batch, Task
from qdqpatch.tasks.feature_extraction import FeatureExtraction
from qdqpatch.tasks.fill_mask import FillMask
from qdqpatch.tasks.question_answering import QuestionAnswering
from qdqpatch.tasks.text_classification import TextClassification

LAST_BITS = 1e-5
"""Products in another order of magnitudes around 1, summed over at most 40 numbers of fp32."""

ENGINES = ["onnxruntime", "openvino"]


@pytest.fixture
def task(here: Path) -> Task[Any]:
    """Text classification, in an empty folder."""
    return TextClassification(tiny_tasks.tokenizer(), models.config(HEAD))


def outputs(model: Model, task: Task[Any], batch_size: int = 3, *texts: str) -> list[Arrays]:
    return predict(model.run, task, features(task, *(texts or TEXTS)), model.batch or batch_size)


def assert_close(found: list[Arrays], expected: list[Arrays]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_allclose(value, other[name], rtol=0, atol=LAST_BITS)


def test_padding_does_not_change_what_a_checkpoint_says(task: Task[Any]) -> None:
    models.calibrated(HEAD).save_pretrained("int8")
    for name in (write("float"), "int8"):
        model = loaded(name, task)
        together, alone = outputs(model, task, 3), outputs(model, task, 1)
        assert [outputs["logits"].argmax() for outputs in together] == [
            outputs["logits"].argmax() for outputs in alone
        ]
        if name == "float":  # an int8 level may hang on the last bit
            assert_close(together, alone)
            assert len({outputs["logits"].tobytes() for outputs in alone}) == len(TEXTS)


def test_padding_does_not_change_what_tokens_get(here: Path) -> None:
    write("qa", models.float_model("BertForQuestionAnswering"))
    task = QuestionAnswering(tiny_tasks.tokenizer(), models.config("BertForQuestionAnswering"))
    model = loaded("qa", task)
    together, alone = outputs(model, task, 4), outputs(model, task, 1)
    lengths = [len(feature["input_ids"]) for feature in features(task, *TEXTS)]
    assert [len(outputs["end_logits"]) for outputs in together] == lengths
    assert_close(together, alone)


def test_padding_is_on_the_right_whatever_the_tokenizer_says(here: Path) -> None:
    write("qa", models.float_model("BertForQuestionAnswering"))
    tokenizer = copy.deepcopy(tiny_tasks.tokenizer())
    tokenizer.padding_side = "left"
    task = QuestionAnswering(tokenizer, models.config("BertForQuestionAnswering"))
    model = loaded("qa", task)
    assert_close(outputs(model, task, 4), outputs(model, task, 1))


def test_a_checkpoint_is_run_in_eval_mode(task: Task[Any]) -> None:
    write("dropout", models.build(HEAD, hidden_dropout_prob=0.5))
    model = loaded("dropout", task)
    (expected,) = tiny_tasks.alone(models.build(HEAD), TEXTS[0])["logits"].numpy()
    assert_close(outputs(model, task, 1, TEXTS[0]), [{"logits": expected}])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("sizes", [(1, 12), (4, 12), ("batch", 12), (4, "sequence")])
def test_a_graph_of_one_shape(task: Task[Any], engine: str, sizes: tuple[int | str, int | str]) -> None:
    free = loaded(write_onnx(Path("free.onnx")), task, engine)
    fixed = loaded(write_onnx(Path("fixed.onnx"), sizes), task, engine)
    assert (free.batch, free.length) == (None, None)
    assert (fixed.batch, fixed.length) == tuple(size if isinstance(size, int) else None for size in sizes)
    assert_close(outputs(fixed, task), outputs(free, task))  # 6 texts: the last batch of 4 has 2


def test_what_is_added_to_a_batch(here: Path) -> None:
    task = FillMask(tiny_tasks.tokenizer(), models.config("BertForMaskedLM"))
    task.tokenizer.pad_token_id, before = 7, task.tokenizer.pad_token_id
    seen: list[dict[str, Any]] = []

    def run(batch: Mapping[str, Tensor]) -> Mapping[str, Array]:
        seen.append({name: tensor.tolist() for name, tensor in batch.items()})
        ids = batch["input_ids"].numpy()
        return {"logits": ids[..., None] + np.zeros(5), "loss": np.array(1.0), "pooled": ids.sum(axis=1)}

    try:
        batch = {"input_ids": torch.tensor([[2, 6, 3]]), "attention_mask": torch.tensor([[1, 1, 1]])}
        found = filled(run, 2, 5, task)(batch)
    finally:
        task.tokenizer.pad_token_id = before
    assert seen == [{"input_ids": [[2, 6, 3, 7, 7]] * 2, "attention_mask": [[1, 1, 1, 0, 0]] * 2}]
    assert found["logits"].shape == (1, 3, 5)  # by token: cut in both dimensions
    assert found["pooled"].tolist() == [25]
    assert filled(run, None, None, task) is run


@pytest.mark.parametrize("engine", ENGINES)
def test_a_text_that_is_too_long_for_a_graph(task: Task[Any], engine: str) -> None:
    model = loaded(write_onnx(Path("a.onnx"), (1, 6)), task, engine)
    model.check_lengths(task, features(task, "a cat sat on"))
    problem = rf"a\.onnx in {engine} is made for sequences of 6 tokens, and the data has some of 7\."
    with pytest.raises(ConfigError, match=rf"^{problem} Cut them with max_length=6\.$"):
        model.check_lengths(task, features(task, "a cat", "a cat sat on the"))


@pytest.mark.parametrize("engine", ENGINES)
def test_ids_of_another_type(task: Task[Any], engine: str) -> None:
    expected = outputs(loaded(write_onnx(Path("a.onnx")), task, engine), task)
    narrow = loaded(write_onnx(Path("b.onnx"), ids_type=TensorProto.INT32), task, engine)
    assert_close(outputs(narrow, task), expected)


def test_a_checkpoint_without_the_head(task: Task[Any]) -> None:
    write("bare", models.float_model())
    with pytest.raises(
        CheckpointError,
        match=r"^bare is no model for text-classification: it lacks "
        r"classifier\.bias, classifier\.weight\.$",
    ):
        loaded("bare", task)


def test_a_checkpoint_without_some_weights(here: Path) -> None:
    model = models.float_model("BertForMaskedLM")
    lost = "bert.encoder.layer.1.output.dense.weight"
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != lost}
    model.save_pretrained("part", state_dict=weights)
    task = FeatureExtraction(tiny_tasks.tokenizer(), model.config)
    with pytest.raises(CheckpointError, match=r"lacks encoder\.layer\.1\.output\.dense\.weight\.$"):
        loaded("part", task)


def test_a_graph_without_the_outputs(here: Path) -> None:
    task = QuestionAnswering(tiny_tasks.tokenizer(), models.config("BertForQuestionAnswering"))
    model = loaded(write_onnx(Path("a.onnx")), task, "onnxruntime")
    problem = r"a\.onnx in onnxruntime is no model for question-answering"
    with pytest.raises(ConfigError, match=rf"^{problem}: it gives logits, and no start_logits and"):
        outputs(model, task)


def test_a_run_that_fails_names_the_model_in_one_line(
    task: Task[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(write_onnx(Path("a.onnx"), ids="tokens"), task, "onnxruntime")
    with pytest.raises(
        EngineError, match=r"^a\.onnx in onnxruntime: The model needs the inputs tokens, which were not"
    ):
        outputs(model, task)

    def fail(batch: Batch) -> Arrays:
        raise RuntimeError("out of\n  memory")

    monkeypatch.setattr(loading, "torch_run", lambda model: fail)
    with pytest.raises(EngineError, match=r"^a in torch: out of memory$"):
        outputs(loaded(write("a"), task), task)
