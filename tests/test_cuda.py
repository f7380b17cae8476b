"""What needs a GPU: moving there and back, calibrating and training there, and the commands using it."""

from pathlib import Path
from typing import Any

import checkpoints
import models
import pytest
import torch
from commands import invoke
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, TrainingArguments

from qdqpatch import calibrate, quantize
from qdqpatch.calibration import refine_ranges, shift
from qdqpatch.calibration.observing import observing
from qdqpatch.training import DistillationTrainer, freeze_ranges, train_ranges

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

NAME = "BertForSequenceClassification"


def devices(tensors: dict[str, Tensor]) -> set[str]:
    return {tensor.device.type for tensor in tensors.values()}


@pytest.mark.parametrize("name", ["BertForMaskedLM", models.CROSS])
def test_a_model_moves_to_cuda_and_back(name: str, calibrated) -> None:
    model = calibrated(name)
    expected, ranges = models.outputs(model, name), models.ranges(model)
    on_cuda = {key: value.cuda() for key, value in models.inputs(name).items()}
    model.cuda()
    assert devices(dict(model.state_dict())) == {"cuda"}
    actual = {key: value.cpu() for key, value in models.outputs(model, name, **on_cuda).items()}
    # CUDA sums in another order, so a value may fall on the other side of a rounding boundary: one step of
    # the last quantizer, and one more for those that follow from it.
    for key, value in expected.items():
        assert (actual[key] - value).abs().max() <= 2 * value.abs().max() / 127, key
    models.assert_equal(models.ranges(model.cpu()), ranges)
    models.assert_equal(models.outputs(model, name), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_model_on_cuda_is_quantized_calibrated_and_trained_there(dtype: torch.dtype, float_model) -> None:
    model = quantize(float_model(NAME).to("cuda", dtype))
    batch = {key: value.cuda() for key, value in models.inputs().items()}
    calibrate(model, [models.inputs()])
    assert devices(models.ranges(model)) == {"cuda"}
    model.train()(**batch, labels=torch.tensor([0, 1], device="cuda")).loss.backward()
    assert model.classifier.weight.grad.isfinite().all()


def error(model: PreTrainedModel, batches: list[models.Tensors]) -> float:
    """The squared error of the last hidden states, relative to the float ones."""
    total = 0.0
    for batch in batches:
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        with torch.no_grad():
            with observing(model, {}):
                expected = model(**inputs).last_hidden_state
            total += float(
                (model(**inputs).last_hidden_state - expected).square().sum() / expected.square().sum()
            )
    return total / len(batches)


@pytest.mark.parametrize("method", ["max", "percentile", "mse", "entropy", "auto"])
def test_calibrating_on_cuda_is_as_good_as_on_the_cpu(method: Any, uncalibrated) -> None:
    batches = [models.inputs(seed=seed) for seed in range(31, 47)]
    found = {}
    for device in ("cpu", "cuda"):
        model = shift(uncalibrated().to(device), batches)
        calibrate(model, batches, method)
        refine_ranges(model, batches, epochs=2)
        assert devices(models.ranges(model)) == {device}
        found[device] = error(model, batches)
    # Ranges learn from gradients of roundings, some of which fall the other way on the other device.
    assert found["cuda"] == pytest.approx(found["cpu"], rel=0.1)


@pytest.mark.parametrize("bf16", [False, True])
def test_learned_ranges_are_distilled_on_cuda(bf16: bool, calibrated, tmp_path: Path) -> None:
    model = calibrated(NAME)
    before = models.ranges(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # so that there is more to learn than what bf16 rounds away
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=30,
        per_device_train_batch_size=2,
        learning_rate=2e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        bf16=bf16,
    )
    batch = models.inputs(NAME, seed=4)
    examples = [{key: value[row] for key, value in batch.items()} for row in range(2)]
    trainer = DistillationTrainer(
        train_ranges(model), arguments, teacher=models.float_model(NAME), train_dataset=examples
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert min(losses[-3:]) < 0.5 * losses[0]
    assert devices(models.ranges(model)) == {"cuda"}
    freeze_ranges(model).save_pretrained(tmp_path / "saved")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    ranges = models.ranges(loaded)
    models.assert_equal(ranges, {path: amax.cpu() for path, amax in models.ranges(model).items()})
    assert all(not torch.equal(amax, before[path]) for path, amax in ranges.items())


@pytest.mark.parametrize(
    "command",
    [
        ["convert", "ckpt", "out", "--calib", "texts.txt"],
        ["train", "ckpt", "out", "--task", "fill-mask", "--data", "texts.txt", "--max-length", 16],
        ["eval", "ckpt", "--task", "fill-mask", "--data", "texts.txt", "--max-length", 16],
        ["sensitivity", "ckpt", "--task", "fill-mask", "--data", "texts.txt", "--max-length", 16],
    ],
    ids=lambda command: command[0],
)
def test_commands_run_models_on_the_gpu(command: list[Any], here: Path) -> None:
    checkpoint = here / "ckpt"
    checkpoint.mkdir()
    checkpoints.write_checkpoint(checkpoint)
    (here / "texts.txt").write_text(checkpoints.SENTENCES * 8, encoding="utf-8")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.max_memory_allocated()
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    assert torch.cuda.max_memory_allocated() > before
