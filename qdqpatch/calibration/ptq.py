"""Post-training quantization: the whole sequence of calibration steps, in one call.

The order of the steps, and why:

1. Quantize, where the model is float: the quantizers say what there is to calibrate.
2. Smooth, then shift: they change what the quantizers see, so they come before anything is measured. Smooth
   first, because a channel's middle moves with its factor, and its factor hardly with its middle. What
   Linears and residual adds read is smoothed last, as it comes out of both.
3. Calibrate: collect what the quantizers see, and choose each range by itself.
4. Refine: the ranges learn together, from good ones; then tune, which biases and norms take part in.
5. Fuse what reads one tensor, fuse query, key and value, and clip GELU: what an engine or a user demands of
   ranges is the last word on them. Refined afterwards, they would part again.
6. Round weights: what they are multiplied by, and their levels, are final now.
7. Correct biases: the error to be corrected is that of the final ranges and weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel

from qdqpatch.calibration import (
    bias_correction,
    clipping,
    fusing,
    input_smoothing,
    refining,
    residual_smoothing,
    shared_inputs,
    shifting,
    smoothing,
    tuning,
    weight_rounding,
)
from qdqpatch.calibration.calibrate import calibrate
from qdqpatch.calibration.collecting import collect
from qdqpatch.calibration.known_outputs import check_known_outputs
from qdqpatch.calibration.methods import check_method, check_weight_method, method_for
from qdqpatch.calibration.texts import batches_of
from qdqpatch.calibration.undo import restored_if_raised
from qdqpatch.choices import Method, WeightMethod
from qdqpatch.config.config import QDQConfig
from qdqpatch.listening import CalibrationListener
from qdqpatch.nn.pooling import SentenceHead
from qdqpatch.patching.apply import is_quantized, own_config
from qdqpatch.patching.quantize import dequantize, quantize
from qdqpatch.patching.wrapped import unwrapped

Model = TypeVar("Model", bound=nn.Module)
Batch = Mapping[str, Any]


def ptq(
    model: Model,
    batches: Iterable[Batch] | Sequence[Any],
    config: QDQConfig | None = None,
    *,
    method: Method = "auto",
    percentile: float = 99.99,
    padding_aware: bool = True,
    weight_method: WeightMethod = "max",
    smooth: bool = False,
    shift: bool = False,
    smooth_inputs: bool = False,
    smooth_residuals: bool = False,
    refine: int = 0,
    tune: int = 0,
    fuse_inputs: bool = False,
    fuse_qkv: bool = False,
    clip_gelu: float | None = None,
    round_weights: bool = False,
    correct_biases: bool = False,
    tokenizer: Any = None,
    head: SentenceHead | None = None,
    listener: CalibrationListener | None = None,
) -> Model:
    """Quantize a model and set its ranges from data, by all steps that are switched on, in place.

    The steps run in the order of the arguments, whatever order they are given in; why in this one is said
    in `qdqpatch/calibration/ptq.py`. What can be known to fail is checked before the first of them.

    Args:
        model: A float model, which is quantized first, or a quantized one, calibrated or not; or a
            `SentenceTransformer` or `CrossEncoder` with one inside.
        batches: Keyword arguments for the model, as a tokenizer returns them; moved to its device. Each step
            goes through them again; those of an iterator, which can be used only once, are kept in memory.
            Or a list of texts, or of pairs of texts, all of which are used.
        config: What to quantize of a float model, as `qdqpatch.quantize` takes it; None for the defaults.
        method: How the ranges of activations are chosen, as `qdqpatch.calibrate` takes it.
        percentile: For `"percentile"`, the share of the magnitudes that are not clipped, in percent.
        padding_aware: Whether positions that the attention mask hides are left out.
        weight_method: How the ranges of weights are chosen: `"max"`, `"mse"`, or `"pairs"`, for processors
            without VNNI (`qdqpatch.calibration.weight_ranges`).
        smooth: Whether outlier channels of values, queries and keys are rescaled away first
            (`qdqpatch.calibration.smooth`).
        shift: Whether channels of values and LayerNorms are moved around zero first
            (`qdqpatch.calibration.shift`).
        smooth_inputs: Whether outlier channels of what the Linears read are rescaled away next, at the price
            of a product in front of them (`qdqpatch.calibration.smooth_inputs`).
        smooth_residuals: Whether the same is done for the operands of residual adds, which are multiplied
            back after their quantizers (`qdqpatch.calibration.smooth_residuals`).
        refine: For how many epochs all ranges learn together to keep the layers' outputs
            (`qdqpatch.calibration.refine_ranges`); 0 for none, and 2 to 4 are enough.
        tune: For how many epochs ranges, biases and norms learn together to keep the model's outputs
            (`qdqpatch.calibration.tune`); 0 for none. The float model changes with it.
        fuse_inputs: Whether quantizers that read one tensor get one range
            (`qdqpatch.calibration.fuse_inputs`), so that TensorRT writes and reads its integers once.
        fuse_qkv: Whether query, key and value get one range (`qdqpatch.calibration.fuse_qkv`).
        clip_gelu: Where ranges after GELU end at most (`qdqpatch.calibration.clip_gelu`); None for anywhere.
        round_weights: Whether weights are rounded so that their errors cancel in what the Linears compute
            (`qdqpatch.calibration.round_weights`); the float model changes with it.
        correct_biases: Whether the mean error of each Linear is taken out of its bias
            (`qdqpatch.calibration.correct_biases`); the float model changes with it.
        tokenizer: The model's, for texts; that of a `SentenceTransformer` is known.
        head: What makes embeddings of the last hidden states, for `tune`; None for their mean.
        listener: Is told how it goes on.

    Returns:
        The same model.

    Raises:
        ConfigError: If an argument is not one of those that there are, or there is nothing to refine, fuse,
            clip or round.
        QuantizedError: If a configuration is given and the model is quantized already.
        UnsupportedModelError: If the model cannot be quantized, or there is nothing to smooth or shift.
        NotQuantizedError: If no quantizer is on, or no Linear with a bias to correct is quantized.
        CalibrationError: If there is no batch, or a range cannot be determined from what there is.

    Whatever is raised, the model is as it was: a float model is float again.

    Examples:
        >>> model = ptq(AutoModelForMaskedLM.from_pretrained("ckpt"), batches, shift=True, refine=4)
    """
    method = method_for(method, percentile)
    check_method(method, percentile)
    check_weight_method(weight_method)
    if refine != 0:
        refining.check_epochs(refine, "refine")
    if tune != 0:
        refining.check_epochs(tune, "tune")
    if clip_gelu is not None:
        clipping.check_maximum(clip_gelu)
    listener = CalibrationListener() if listener is None else listener
    inner = unwrapped(model)
    data = _Told(batches_of(batches, tokenizer, model, inner), listener)
    with ExitStack() as stack:
        stack.enter_context(_quantized(inner, config))
        changed: list[nn.Parameter] = []
        if smooth:
            changed += smoothing.changed_parameters(smoothing.attentions_to_smooth(inner))
        if shift:
            changed += shifting.changed_parameters(shifting.shifts_to_make(inner))
        if smooth_inputs:
            linears = input_smoothing.linears_to_smooth(inner)
            changed += input_smoothing.changed_parameters(linears)
        if smooth_residuals:
            residual_smoothing.operands_to_smooth(inner)
        if refine or tune:
            refining.check_can_refine(inner)
        if tune:
            check_known_outputs(inner, data.batches)
            changed += tuning.tuned_parameters(inner)
        if fuse_qkv:
            fusing.groups_to_fuse(inner)
        if clip_gelu is not None:
            clipping.inputs_to_clip(inner, clip_gelu)
        if round_weights:
            changed += weight_rounding.changed_parameters(weight_rounding.linears_to_round(inner))
        if correct_biases:
            bias_correction.linears_to_correct(inner)
        if fuse_inputs:
            shared_inputs.check_can_fuse(inner, data.batches)
        stack.enter_context(restored_if_raised(inner, changed))

        if smooth:
            listener.say("Smoothing")
            smoothing.smooth(inner, data, padding_aware=padding_aware)
        if shift:
            listener.say("Shifting")
            shifting.shift(inner, data, padding_aware)
        if smooth_inputs:
            listener.say("Smoothing inputs")
            input_smoothing.smooth_inputs(inner, data, padding_aware)
        if smooth_residuals:
            listener.say("Smoothing residual adds")
            residual_smoothing.smooth_residuals(inner, data, padding_aware)
        listener.say("Calibrating")
        statistics = collect(inner, data, padding_aware, compare=method == "auto")
        calibrate(inner, statistics, method, percentile, weight_method=weight_method)
        if refine:
            listener.say("Refining the ranges")
            refining.refine_ranges(inner, data.batches, refine, padding_aware, listener.step)
        if tune:
            listener.say("Tuning")
            tuning.tune(inner, data.batches, tune, listener.step, head)
        if fuse_inputs:
            # Refined ranges are none of those that were compared.
            shared_inputs.fuse_inputs(inner, data.batches, None if refine or tune else statistics)
        if fuse_qkv:
            fusing.fuse_qkv(inner)
        if clip_gelu is not None:
            clipping.clip_gelu(inner, clip_gelu)
        if round_weights:
            listener.say("Rounding weights")
            weight_rounding.round_weights(inner, data, padding_aware)
        if correct_biases:
            listener.say("Correcting biases")
            bias_correction.correct_biases(inner, data, padding_aware)
        listener.collected(statistics)
    return model


@contextmanager
def _quantized(model: PreTrainedModel, config: QDQConfig | None) -> Iterator[None]:
    """Quantize a float model, and make it float again if the block raises."""
    if config is None and isinstance(model, PreTrainedModel) and is_quantized(model):
        yield
        return
    attributes = set(vars(model))
    with own_config(model):
        quantize(model, config)
        try:
            yield
        except BaseException:
            dequantize(model)
            for name in set(vars(model)) - attributes:  # transformers marks what it has dequantized
                del vars(model)[name]
            raise


class _Told:
    """Batches that tell a listener how many of them are done, each time that they are gone through."""

    def __init__(self, batches: Iterable[Batch], listener: CalibrationListener) -> None:
        self.batches = list(batches) if isinstance(batches, Iterator) else batches
        self._listener = listener

    def __iter__(self) -> Iterator[Batch]:
        total = len(self.batches) if isinstance(self.batches, Sized) else 0
        for done, batch in enumerate(self.batches, start=1):
            yield batch
            self._listener.step(done, total)
