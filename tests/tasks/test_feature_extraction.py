import numpy as np
import pytest
import tiny_tasks
import torch
from texts import Write

from qdqpatch.errors import ConfigError
from qdqpatch.evaluation.predicting import predict, torch_run
from qdqpatch.tasks.base import DataSource
from qdqpatch.tasks.feature_extraction import EMBEDDING, FeatureExtraction
from qdqpatch.tasks.unlabelled import Text

TEXTS = ["the cat", "a dog sat on the mat", "mats"]


def test_from_file_to_cosine(write: Write) -> None:
    task, model = tiny_tasks.make(FeatureExtraction, "BertModel")
    other = tiny_tasks.make(FeatureExtraction, "BertModel", hidden_act="relu")[1]
    examples = task.read(DataSource(str(write("texts.txt", "\n".join(TEXTS)))))
    assert examples == [Text(text) for text in TEXTS]
    features = task.features(examples)

    outputs, reference = (
        predict(torch_run(candidate), task, features, batch_size=2) for candidate in (model, other)
    )

    cosines = []
    for text, output, wanted in zip(TEXTS, outputs, reference, strict=True):
        own, exact = (
            tiny_tasks.alone(candidate, text)["last_hidden_state"][0].double().mean(0)
            for candidate in (model, other)
        )
        # Padding changes the order of sums, which is a few last bits of fp32.
        torch.testing.assert_close(torch.tensor(output[EMBEDDING]), own, atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.tensor(wanted[EMBEDDING]), exact, atol=1e-5, rtol=0)
        cosines.append(float(own @ exact / own.norm() / exact.norm()))
    (cosine,) = task.score(examples, features, outputs, reference)
    assert cosine.name == "cosine"
    assert cosine.numerators == pytest.approx(cosines, abs=1e-5)
    assert cosine.value == pytest.approx(np.mean(cosines), abs=1e-5)
    assert cosine.value < 0.999  # another model, so that the metric can tell them apart
    assert str(cosine) == f"{np.mean(cosines):.4f}"


def test_a_model_is_like_itself() -> None:
    task, model = tiny_tasks.make(FeatureExtraction, "BertModel")
    examples = [Text(text) for text in TEXTS]
    features = task.features(examples)
    outputs = predict(torch_run(model), task, features)
    assert task.score(examples, features, outputs, outputs)[0].value == pytest.approx(1, abs=1e-12)


def test_opposite_embeddings() -> None:
    task, _ = tiny_tasks.make(FeatureExtraction, "BertModel")
    own = [{EMBEDDING: np.array([1.0, 2.0])}, {EMBEDDING: np.array([1.0, 0.0])}]
    other = [{EMBEDDING: np.array([-2.0, -4.0])}, {EMBEDDING: np.array([0.0, 3.0])}]
    examples = [Text("a"), Text("b")]
    (cosine,) = task.score(examples, task.features(examples), own, other)
    assert cosine.numerators.tolist() == pytest.approx([-1, 0], abs=1e-15)


def test_what_is_kept_is_no_view_of_the_states() -> None:
    task, _ = tiny_tasks.make(FeatureExtraction, "BertModel")
    states = np.array([[1, 2], [3, 6]], np.float32)
    kept = task.reduce({}, {"last_hidden_state": states})[EMBEDDING]
    assert kept.tolist() == [2, 4]
    assert not np.shares_memory(kept, states)


def test_a_reference_is_needed() -> None:
    task, _ = tiny_tasks.make(FeatureExtraction, "BertModel")
    with pytest.raises(ConfigError) as caught:
        task.score([], [], [])
    assert str(caught.value) == (
        "Embeddings have no metric of their own: name a model to compare them with, such as the one before "
        "quantization."
    )


def test_training_features_have_no_labels() -> None:
    task, _ = tiny_tasks.make(FeatureExtraction, "BertModel")
    examples = [Text("the cat", "a dog")]
    assert task.features(examples, training=True) == task.features(examples)
    assert task.features(examples)[0]["input_ids"] == [2, 10, 6, 3, 5, 7, 3]
    assert not task.needs_labels
    assert not task.has_loss
