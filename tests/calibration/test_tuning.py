"""Tuning: ranges, biases and norms learn to give the float model's outputs; matrices stay."""

import models
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification, ViTModel

import qdqpatch
from qdqpatch import QDQConfig, calibrate, quantize
from qdqpatch.calibration import tune, tuning
from qdqpatch.errors import CalibrationError, ConfigError, NotQuantizedError
from qdqpatch.listening import CalibrationListener
from qdqpatch.nn.pooling import Pooling, SentenceHead

NARROW = "encoder.layer.1.output.dense._input_quantizer"
ASYMMETRIC = QDQConfig(activation={"symmetric": False})


def batches(count: int = 9, name: str = "BertModel") -> list[models.Tensors]:
    return [models.inputs(name, seed) for seed in range(31, 31 + count)]


def spoilt(name: str = "BertModel", config: QDQConfig | None = None) -> PreTrainedModel:
    """A calibrated model with one range that is far too narrow."""
    model = calibrate(quantize(models.float_model(name), config), batches(2, name), method="max")
    quantizer = model.base_model.get_submodule(NARROW)
    quantizer.load_range(quantizer.interval * 0.2)
    return model


def embedding_error(model: PreTrainedModel, mode: str = "mean") -> float:
    """One minus the cosine to the float model's embeddings, the mean over texts that were not seen."""
    head, reference = SentenceHead(Pooling((mode,))), models.float_model()
    total = 0.0
    for seed in range(81, 85):
        batch = models.inputs(seed=seed)
        found, expected = (
            head(models.outputs(each, **batch)["last_hidden_state"], batch["attention_mask"])
            for each in (model, reference)
        )
        total += float((1 - torch.cosine_similarity(found, expected)).mean())
    return total / 4


def matrices(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_parameters() if value.dim() > 1}


@pytest.mark.parametrize(("config", "mode"), [(None, "mean"), (ASYMMETRIC, "cls")])
def test_embeddings_come_closer_and_matrices_stay(
    config: QDQConfig | None, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Eight batches of two rows teach a range, which is far off, and not a thousand biases.
    monkeypatch.setattr(tuning, "RANGE_RATE", 0.1)
    monkeypatch.setattr(tuning, "RATE", 1e-5)
    model = spoilt(config=config)
    before, weights = embedding_error(model, mode), matrices(model)
    ranges, wanted = models.ranges(model), {name: p.requires_grad for name, p in model.named_parameters()}
    assert tune(model, batches(), epochs=6, head=SentenceHead(Pooling((mode,)))) is model
    assert embedding_error(model, mode) < 0.8 * before
    models.assert_equal(matrices(model), weights)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    same = {path for path, amax in models.ranges(model).items() if torch.equal(amax, ranges[path])}
    assert {path for path in ranges if path.endswith("_weight_quantizer")} == same
    biases = dict(models.float_model().named_parameters())
    assert all(
        not torch.equal(value, biases[name])
        for name, value in model.named_parameters()
        if name in biases and name.startswith("encoder.") and name.endswith("output.dense.bias")
    )


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "BertForQuestionAnswering"])
def test_heads_come_closer_in_divergence(name: str) -> None:
    model, reference = spoilt(name), models.float_model(name)

    def divergence() -> float:
        total = 0.0
        for batch in batches(9, name):
            found, expected = (models.outputs(each, name, **batch) for each in (model, reference))
            for key, logits in expected.items():
                if key.endswith("logits"):
                    ours, theirs = found[key].log_softmax(-1), logits.log_softmax(-1)
                    total += float((theirs.exp() * (theirs - ours)).sum())
        return total

    before = divergence()
    tune(model, batches(9, name), epochs=6)
    assert divergence() < 0.9 * before


def test_the_float_outputs_are_those_before_anything_moved() -> None:
    model = spoilt()
    state = tuning._State(list(tuning.learnable(model).values()), tuning.tuned_parameters(model))
    loss = tuning._Divergence(model, SentenceHead(Pooling()), state)
    with tuning.observing(model, {}):
        before = float(loss.of(batches(1)))
        with torch.no_grad():
            norm = model.encoder.layer[-1].output.LayerNorm
            norm.bias += torch.linspace(-3, 3, len(norm.bias))
            moved = norm.bias.clone()
        assert float(loss.of(batches(1))) > 10 * before
        assert torch.equal(norm.bias, moved)


def test_what_is_no_better_on_texts_held_back_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "RATE", 1.0)
    model = spoilt()
    before = models.snapshot(model)
    tune(model, batches(3), epochs=1)
    models.assert_unchanged(model, before)


def test_what_cannot_be_tuned_is_refused_and_stays() -> None:
    with pytest.raises(NotQuantizedError, match="float model"):
        tune(models.float_model(), batches(1))
    model = spoilt()
    before = models.snapshot(model)
    for arguments, error, message in (
        ({"epochs": 0}, ConfigError, "epochs"),
        ({"batches": []}, CalibrationError, "no calibration batch"),
    ):
        with pytest.raises(error, match=message):
            tune(model, **{"batches": batches(2)} | arguments)  # type: ignore[arg-type]
        models.assert_unchanged(model, before)


def test_it_is_a_step_of_the_sequence() -> None:
    class Said(CalibrationListener):
        def __init__(self) -> None:
            self.texts: list[str] = []

        def say(self, text: str) -> None:
            self.texts.append(text)

    said = Said()
    qdqpatch.ptq(models.float_model(), batches(3), refine=1, tune=1, listener=said)
    assert said.texts == ["Calibrating", "Refining the ranges", "Tuning"]
    with pytest.raises(ConfigError, match="tune must be a positive integer"):
        qdqpatch.ptq(models.float_model(), batches(1), tune=-1)


def test_what_returns_nothing_that_is_known_is_refused_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(CalibrationListener, "say", lambda self, text: said.append(text))
    monkeypatch.setattr("qdqpatch.calibration.known_outputs.is_known", lambda name: name == "other")
    for outputs in ("only last_hidden_state, pooler_output", "only some without names"):
        models.assert_refused(
            lambda model: qdqpatch.ptq(model, batches(2), tune=1),
            models.float_model(),
            CalibrationError,
            f"BertModel has no output that tuning knows, {outputs}",
        )
        monkeypatch.setattr("qdqpatch.calibration.known_outputs.run", lambda model, inputs: (inputs,))
    assert said == []


def test_images_and_embeddings_are_given_without_tokens() -> None:
    config = ViTConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=40, image_size=8,
        patch_size=4, num_labels=3,
    )  # fmt: skip
    images = [{"pixel_values": torch.randn(2, 3, 8, 8)} for _ in range(2)]
    for cls in (ViTForImageClassification, ViTModel):
        model = calibrate(quantize(cls(config).eval()), images, method="max")
        assert tune(model, images, epochs=1) is model
    embeddings = [{"inputs_embeds": torch.randn(2, 8, 24)} for _ in range(2)]
    model = spoilt()
    assert tune(model, embeddings, epochs=1) is model


def test_a_model_in_half_precision_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "RATE", 1e-5)
    monkeypatch.setattr(tuning, "RANGE_RATE", 0.1)
    model = spoilt().half()
    before = embedding_error(model.float())
    model = tune(model.half(), batches(), epochs=4)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert embedding_error(model.float()) < 0.9 * before
