"""Every state that a quantized model can be in, and every verb that a user has for it."""

import copy
import functools
import pickle
from collections.abc import Callable
from pathlib import Path

import models
import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel

import qdqpatch
from qdqpatch import calibration, training
from qdqpatch.calibration.input_smoothing import linears_to_smooth
from qdqpatch.exporter.grids import check_grids
from qdqpatch.exporter.preparing import prepared
from qdqpatch.exporter.tracing import outputs_of
from qdqpatch.patching.apply import named_quantizers
from qdqpatch.patching.placement import placement
from qdqpatch.patching.quantize import float_twin

Verb = Callable[[PreTrainedModel, Path], PreTrainedModel]

NAME = "BertForMaskedLM"
FIXED = 4.0
PER_CHANNEL = "bert.encoder.layer.1.attention.self.query._input_quantizer"


def batches() -> list[models.Tensors]:
    """Two batches of tokens."""
    return [models.inputs(NAME, seed) for seed in (2, 3)]


def quantized(**config: object) -> PreTrainedModel:
    """A model with quantized embeddings, which has one range a row, and an int8 LM head."""
    return qdqpatch.quantize(models.build(NAME), qdqpatch.QDQConfig(embeddings=True, head=True, **config))


def calibrated(**config: object) -> PreTrainedModel:
    return qdqpatch.calibrate(quantized(**config), batches(), "max")


def smoothed() -> PreTrainedModel:
    """A calibrated model whose Linears multiply their inputs, each channel by another factor."""
    model = quantized()
    for linear in linears_to_smooth(model).values():
        linear.scale_input(torch.exp2(torch.arange(linear.in_features) % 5 - 2.0))
    return qdqpatch.calibrate(model, batches(), "max")


STATES: dict[str, Callable[[], PreTrainedModel]] = {
    "calibrated": calibrated,
    "lsq": lambda: training.train_ranges(calibrated(), "lsq", "frozen"),
    "pact": lambda: training.train_ranges(calibrated(), "clip", "frozen"),
    "tracked": lambda: training.train_ranges(calibrated(), "frozen", "follow"),
    "partly off": lambda: calibration.switch_quantizers(calibrated(), {"*.layer.0.output.*": False}),
    "uncalibrated": quantized,
    "fixed": lambda: calibrated(activation={"amax": FIXED}),
    "per channel": lambda: calibrated(overrides={PER_CHANNEL: {"axis": 2}}),
    "per tensor": lambda: calibrated(weight={"axis": None}),
    "smoothed": smoothed,
}


@functools.cache
def _state(name: str) -> PreTrainedModel:
    return STATES[name]()


def state(name: str) -> PreTrainedModel:
    """Return a fresh model in a state; one weight, and one range where they are learned, is not trained."""
    model = copy.deepcopy(_state(name))
    model.bert.encoder.layer[1].output.dense.weight.requires_grad_(False)
    for parameter in list(training.ranges.learned_ranges(model).values())[:1]:
        parameter.requires_grad_(False)
    return model


def saved_and_loaded(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    model.save_pretrained(folder)
    return AutoModelForMaskedLM.from_pretrained(folder).eval()


def loaded_from(**options: object) -> Verb:
    def load(model: PreTrainedModel, _: Path) -> PreTrainedModel:
        dtype = options.get("dtype")
        tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if dtype is not None:
            tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        model.load_state_dict(tensors, assign=bool(options.get("assign")))
        return model.float()

    return load


def exported(model: PreTrainedModel, _: Path) -> PreTrainedModel:
    with prepared(model, int8_embeddings=False) as cpu_model:
        check_grids(cpu_model, signed=True)
        outputs_of(cpu_model)(batches()[0])
    return model


def resized(model: PreTrainedModel, _: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    model.resize_token_embeddings(models.CONFIG["vocab_size"] + 3, mean_resizing=False)
    return model


def on(function: Callable[..., object], *arguments: object, **options: object) -> Verb:
    """Make a verb of a function of a model."""

    def verb(model: PreTrainedModel, _: Path) -> PreTrainedModel:
        result = function(
            model, *(batches() if argument is batches else argument for argument in arguments), **options
        )
        return result if isinstance(result, PreTrainedModel) else model

    return verb


VERBS: dict[str, Verb] = {
    **{
        f"calibrate {method}": on(qdqpatch.calibrate, batches, method)
        for method in ("max", "percentile", "mse", "entropy", "auto")
    },
    "collect": on(calibration.collect, batches),
    "smooth": on(calibration.smooth, batches),
    "shift": on(calibration.shift, batches),
    "smooth_inputs": on(calibration.smooth_inputs, batches),
    "smooth_residuals": on(calibration.smooth_residuals, batches),
    "refine_ranges": on(calibration.refine_ranges, batches, epochs=1),
    "round_weights": on(calibration.round_weights, batches),
    "correct_biases": on(calibration.correct_biases, batches),
    "fuse_inputs": on(calibration.fuse_inputs, batches),
    "fuse_qkv": on(calibration.fuse_qkv),
    "clip_gelu": on(calibration.clip_gelu, 0.5),
    "ptq": on(qdqpatch.ptq, batches, method="max", refine=1),
    "recalibrate_weights": on(calibration.recalibrate_weights),
    "recalibrate_weights mse": on(calibration.recalibrate_weights, "mse"),
    "expand_amax": on(calibration.expand_amax),
    "switch off": on(calibration.switch_quantizers, {"*.layer.{1..1}.output.*": False}),
    "switch on": on(calibration.switch_quantizers, {"*.layer.0.output.*": True}),
    "train_ranges lsq": on(training.train_ranges, "lsq"),
    "train_ranges clip": on(training.train_ranges, "clip"),
    "train_ranges follow": on(training.train_ranges, "frozen"),
    "freeze_ranges": on(training.freeze_ranges),
    "save and load": saved_and_loaded,
    "deepcopy": lambda model, _: copy.deepcopy(model),
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model)),
    "load_state_dict": loaded_from(),
    "load_state_dict assign": loaded_from(assign=True),
    "load_state_dict fp16": loaded_from(dtype=torch.float16),
    "load_state_dict fp16 assign": loaded_from(dtype=torch.float16, assign=True),
    "double": lambda model, _: model.double().float(),
    "half and float": lambda model, _: model.half().float(),
    "to bfloat16": lambda model, _: model.to(torch.bfloat16),
    "export": exported,
    "plan": on(qdqpatch.plan),
    "quantize": on(qdqpatch.quantize),
    "dequantize": on(qdqpatch.dequantize),
    "resize_token_embeddings": resized,
}

INFERENCE = " in inference mode"


def _in_inference_mode(verb: Verb) -> Verb:
    def inside(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        with torch.inference_mode():
            return verb(model, folder)

    return inside


VERBS |= {
    name + INFERENCE: _in_inference_mode(VERBS[name])
    for name in ("calibrate max", "smooth", "refine_ranges", "train_ranges lsq", "load_state_dict")
}

PLACED = ("num_bits", "axis", "unsigned", "narrow_range", "scale_amax")


def check_configuration(model: PreTrainedModel) -> None:
    """See that the configuration says which quantizers are on, how, and with which fixed ranges."""
    wanted = placement(float_twin(model), model.config.quantization_config)
    found = {path: quantizer for path, quantizer in named_quantizers(model) if quantizer.is_enabled}
    assert found.keys() == wanted.keys()
    for path, settings in wanted.items():
        quantizer = found[path]
        assert [getattr(quantizer, name) for name in PLACED] == [getattr(settings, name) for name in PLACED]
        assert quantizer.is_fixed is (settings.amax is not None), path
        if settings.amax is not None:
            assert bool((quantizer.amax == settings.amax).all()), path


def check_ranges(model: PreTrainedModel) -> None:
    """See that ranges are fp32, finite, not negative and no inference tensors."""
    for path, quantizer in named_quantizers(model):
        stored = quantizer._buffers.get("_amax", quantizer._parameters.get("_amax"))
        if stored is not None:
            assert stored.dtype == torch.float32, path
            assert not stored.is_inference(), path
            assert bool((stored.isfinite() & (stored >= 0)).all()), path


def check_works(model: PreTrainedModel) -> None:
    """See that the model computes, takes a training step, and computes again."""
    assert bool(models.outputs(model.eval(), NAME)["logits"].isfinite().all())
    result = model.train()(**models.inputs(NAME), **models.labels(NAME))
    assert bool(result["logits"].isfinite().all())
    result["loss"].backward()
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-3
    )
    optimizer.step()
    assert bool(models.outputs(model.eval(), NAME)["logits"].isfinite().all())
