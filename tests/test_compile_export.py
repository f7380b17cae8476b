"""The same code eagerly, compiled without a graph break, exported, and without waiting for the device."""

import shutil
from collections.abc import Iterator
from typing import Any

import models
import pytest
import torch
from pytorch_quantization.nn import TensorQuantizer as ToolkitQuantizer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from qdqpatch import QDQConfig, calibrate, quantize
from qdqpatch.calibration import histogram
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.apply import named_quantizers

STATES = ["uncalibrated", "calibrated"]
# Heads add float Linears alone: a training step has one, and `exporter/test_heads.py` traces all of them.
# Layers are alike: two are traced once, and one elsewhere.
CASES = [
    ("calibrated", "BertModel", 2),
    ("uncalibrated", "BertModel", 1),
    pytest.param("calibrated", models.CROSS, 1, marks=pytest.mark.slow),
]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def prepared(state: str, name: str, layers: int = 2) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return a fresh model, which may have its first layer alone, and its keyword arguments."""
    model = getattr(models, state)(name)
    del getattr(model, "bert", model).encoder.layer[layers:]
    return model, models.inputs(name) | ({"use_cache": False} if model.config.is_decoder else {})


@pytest.mark.parametrize(("state", "name", "layers"), CASES)
def test_a_compiled_model_gives_the_same_outputs(state: str, name: str, layers: int) -> None:
    model, batch = prepared(state, name, layers)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        models.assert_equal(models.flatten(compiled(**batch)), models.flatten(model(**batch)))


@pytest.mark.slow
# dynamo makes an instance of `Function` to trace `apply`, which torch itself deprecated.
@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not be instantiated")
def test_a_compiled_training_step_gives_the_same_gradients() -> None:
    model, batch = prepared("calibrated", "BertForMaskedLM", layers=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for called in (model, compiled):
        model.zero_grad(set_to_none=True)
        outputs = called(**batch)
        outputs[0].square().sum().backward()
        gradients = {path: parameter.grad for path, parameter in model.named_parameters()}
        results.append(gradients | models.flatten(outputs))
    assert results[0]["bert.embeddings.word_embeddings.weight"].any()
    models.assert_equal(results[1], results[0])


def test_native_arithmetic_compiles() -> None:
    ToolkitQuantizer.use_fb_fake_quant = True
    model, batch = prepared("calibrated", "BertModel", layers=1)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        models.assert_equal(models.flatten(compiled(**batch)), models.flatten(model(**batch)))


@pytest.mark.slow
# inductor imports `torch.utils.mkldnn`, whose classes torch itself deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductors_kernels_are_within_two_steps() -> None:
    """Inductor sums in another order, so a value may fall on the other side of a rounding boundary.

    That is one step at its quantizer and can push a neighbour over a boundary later, so two steps of the
    coarsest quantizer that the last layer's output could go through are allowed.
    """
    model, batch = calibrate(quantize(models.build(num_hidden_layers=1)), [models.inputs()]), models.inputs()
    compiled = torch.compile(model, fullgraph=True, backend="inductor")
    with torch.no_grad():
        actual, expected = (called(**batch).last_hidden_state for called in (compiled, model))
    step = expected.abs().max() / 127
    assert (actual - expected).abs().max() <= 2 * step


@pytest.mark.parametrize(
    ("state", "name", "gradients"),
    [
        ("calibrated", "BertModel", False),
        ("calibrated", "BertModel", True),
        ("uncalibrated", "BertModel", True),
        pytest.param("calibrated", models.CROSS, False, marks=pytest.mark.slow),
    ],
)
def test_an_exported_model_gives_the_same_outputs(state: str, name: str, gradients: bool) -> None:
    model, batch = prepared(state, name)
    with torch.set_grad_enabled(gradients):
        exported = torch.export.export(model, (), batch)
    with torch.no_grad():
        models.assert_equal(models.flatten(exported.module()(**batch)), models.flatten(model(**batch)))


@pytest.mark.parametrize("state", STATES)
def test_native_arithmetic_exports(state: str) -> None:
    ToolkitQuantizer.use_fb_fake_quant = True
    model, batch = prepared(state, "BertModel")
    with torch.no_grad():
        exported = torch.export.export(model, (), batch)
        models.assert_equal(models.flatten(exported.module()(**batch)), models.flatten(model(**batch)))


def test_an_exported_model_is_free_in_batch_and_length() -> None:
    model, batch = prepared("calibrated", "BertForSequenceClassification")
    free = {0: torch.export.Dim("rows", min=1, max=8), 1: torch.export.Dim("length", min=2, max=32)}
    with torch.no_grad():
        exported = torch.export.export(model, (), batch, dynamic_shapes=dict.fromkeys(batch, free))
        other = {name: torch.cat([value, value, value])[:5, :6] for name, value in batch.items()}
        models.assert_equal(models.flatten(exported.module()(**other)), models.flatten(model(**other)))


class NoWaiting(TorchDispatchMode):
    """Refuses every operation that copies a value to the host, which on a GPU waits for all before it."""

    WAITING = ("_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        assert name not in self.WAITING, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


def test_the_guard_refuses_what_waits() -> None:
    values = torch.ones(2)
    with NoWaiting():
        for waits in (lambda: values.sum().item(), lambda: bool(values[0]), lambda: values.equal(values)):
            with pytest.raises(AssertionError, match="waits for the device"):
                waits()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("state", STATES)
def test_nothing_waits_for_the_device(any_head: str, state: str, arithmetic: str, training: bool) -> None:
    model, batch = prepared(state, any_head)
    # Without a mask and token types: transformers itself looks into a mask, to see whether it hides anything.
    batch = {name: value for name, value in batch.items() if name not in ("attention_mask", "token_type_ids")}
    batch.pop("encoder_attention_mask", None)
    with torch.set_grad_enabled(training), NoWaiting():
        outputs = model(**batch)
        if training:
            outputs[0].sum().backward()


@pytest.mark.parametrize("settings", [{}, {"unsigned": True}, {"narrow_range": True}, {"scale_amax": 0.5}])
@pytest.mark.parametrize("axis", [None, 0])
def test_no_setting_makes_a_quantizer_wait(
    settings: dict[str, Any], axis: int | None, arithmetic: str
) -> None:
    config = QDQConfig(activation=settings).activation
    quantizer = TensorQuantizer(config.descriptor())
    quantizer._axis = axis
    values = torch.rand(3, 4, requires_grad=True)
    for amax in (None, torch.ones(()) if axis is None else torch.ones(3, 1)):
        if amax is not None:
            quantizer.load_range(amax)
        with NoWaiting():
            quantizer(values).sum().backward()


def test_calibration_feeds_the_model_without_waiting(float_model, monkeypatch) -> None:
    """What was counted is looked at once, at the end; not a batch or a tensor at a time."""
    # As on a device: on a CPU nothing is waited for, and a look is free.
    monkeypatch.setattr(histogram, "_count_on_cpu", lambda flat, scale, amax: histogram._count(flat, scale))
    model = quantize(float_model())
    looked_at: list[int] = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket._qualified_op_name.removeprefix("aten::") in NoWaiting.WAITING:
                looked_at.append(1)
            return func(*args, **(kwargs or {}))

    counts = []
    for number in (1, 4):
        looked_at.clear()
        batches = [{"input_ids": models.inputs(seed=seed)["input_ids"]} for seed in range(number)]
        with Counting():
            calibrate(model, batches, "percentile")
        counts.append(len(looked_at))
    # The bin width and the maximum of an activation, and whether a weight's maximum is finite.
    assert counts[0] == counts[1] <= 2 * len(dict(named_quantizers(model)))
