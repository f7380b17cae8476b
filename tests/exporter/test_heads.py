"""`export` of every head: the file computes what the model does, for batches of any shape."""

import models
import pytest
import torch
from exports import MEAN, Made, assert_close, in_file, made

pytestmark = pytest.mark.slow


def expected(exported: Made, inputs: models.Tensors) -> models.Tensors:
    cache = {"use_cache": False} if exported.model.config.is_decoder else {}
    with torch.no_grad():
        return in_file(exported.model, models.flatten(exported.model(**inputs, **cache)))


@pytest.mark.parametrize("name", models.CHANGES)
def test_the_file_computes_what_the_model_does(name: str) -> None:
    exported, inputs = made(name), models.inputs(name, seed=5)
    assert set(exported.session.input_names) == set(inputs)
    assert_close(expected(exported, inputs), exported.session.run_tensors(inputs))


@pytest.mark.parametrize("name", models.CHANGES)
def test_the_model_is_left_as_it_was(name: str) -> None:
    exported = made(name)
    models.assert_unchanged(exported.model, exported.before)


@pytest.mark.parametrize("name", models.CHANGES)
def test_what_export_says_of_it(name: str) -> None:
    exported = made(name)
    result = exported.result
    assert result.target == "onnxruntime"
    assert result.engine.startswith("onnxruntime ")
    assert [comparison.output for comparison in result.comparisons] == [
        name
        for name in in_file(exported.model, models.outputs(exported.model, name))
        if not name.startswith("past")
    ]
    for comparison in result.comparisons:
        assert comparison.mean <= MEAN
        assert comparison.changed == 0
        assert (comparison.predictions > 0) == ("logits" in comparison.output)


@pytest.mark.parametrize("name", ["BertForTokenClassification", models.CROSS])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 32), (3, 5), (2, 17)])
def test_batch_and_sequence_are_free(name: str, batch: int, length: int) -> None:
    inputs = models.inputs(name, length=length, padded=False)
    inputs = {key: value[torch.arange(batch) % 2] for key, value in inputs.items()}
    inputs["attention_mask"][-1, 1 + length // 2 :] = 0
    if name == models.CROSS:  # the encoder's length is another one
        for key in ("encoder_hidden_states", "encoder_attention_mask"):
            inputs[key] = inputs[key][:, :4].contiguous()
    exported = made(name)
    assert_close(expected(exported, inputs), exported.session.run_tensors(inputs))


def test_choices_are_free() -> None:
    exported = made("BertForMultipleChoice")
    inputs = {key: value[:, :2].contiguous() for key, value in models.inputs("BertForMultipleChoice").items()}
    logits = expected(exported, inputs)
    assert logits["logits"].shape == (2, 2)
    assert_close(logits, exported.session.run_tensors(inputs))


def test_padding_is_masked() -> None:
    exported = made("BertForTokenClassification")
    inputs = models.inputs(length=8)
    short = {key: value[:1, :5] for key, value in inputs.items()}
    long = {key: value[:1] for key, value in inputs.items()}
    long["attention_mask"] = (torch.arange(8) < 5).long()[None]
    alone = exported.session.run_tensors(short)["logits"]
    padded = exported.session.run_tensors(long)["logits"][:, :5]
    assert alone.tolist() == padded.tolist()


@pytest.mark.parametrize("name", ["BertForTokenClassification", models.CROSS])
def test_tensorrt_has_the_same_numbers(name: str) -> None:
    exported = made(name, "tensorrt")
    assert exported.result.operations is None  # TensorRT is not here to say
    inputs = models.inputs(name, seed=5)
    assert_close(expected(exported, inputs), exported.session.run_tensors(inputs))
    models.assert_unchanged(exported.model, exported.before)
