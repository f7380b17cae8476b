"""TensorQuantizer: NVIDIA's class with our forward.

What differs from the toolkit's is what a caller does not see in fp32: nothing here waits for the device, so
that the same code runs eagerly, under `torch.compile(fullgraph=True)` and in `torch.export`; and fp16 and
bf16 tensors are quantized in fp32 and rounded once, at the end, where the toolkit divides in half precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qdqpatch.errors import CalibrationError
from qdqpatch.nn import float8
from qdqpatch.nn.affine import as_affine, ends
from qdqpatch.nn.fake_quantize import (
    FakeQuantize,
    Limits,
    absolute_max,
    at_least_fp32,
    fake_quantize,
    scales_of,
)
from qdqpatch.nn.input_scale import ScalesInput
from qdqpatch.nn.names import INPUT_SCALE, ZERO_POINT
from qdqpatch.nn.toolkit import QuantDescriptor, quant_nn


class TensorQuantizer(ScalesInput, quant_nn.TensorQuantizer):  # type: ignore[misc]  # the toolkit has no types
    """Round a tensor to a few levels and back, in its own floating-point dtype: those of an integer, or FP8.

    A quantizer that has a range `_amax` (fp32; a 0-dim tensor, or one entry per channel with the other
    dimensions kept as 1) uses it; one without computes it from each tensor that it sees. `_amax` stays
    fp32 when the model is cast.

    One that is not symmetric has a zero point as well, `_zero_point` (`qdqpatch.nn.affine`), and its `_amax`
    is the range that its step would have around zero.

    One that has factors of channels (`load_input_scale`) rounds its input times these, and divides by them
    after: Q(x s) / s. Its range is that of x s.

    Args:
        quant_desc: Bits, axis and the rest, as pytorch-quantization describes them.
        **stages: `disabled`, `if_quant`, `if_calib`, as in the toolkit.
    """

    _amax: Tensor

    is_fixed = False
    """Whether the configuration gives the range, so that calibration and training leave it."""

    is_symmetric = True
    """Whether the range lies around zero."""

    def __init__(self, quant_desc: QuantDescriptor | None = None, **stages: bool) -> None:
        super().__init__(QuantDescriptor() if quant_desc is None else quant_desc, **stages)

    @property
    def amax(self) -> Tensor | None:
        """The range, or None where each tensor's own is used."""
        amax = self._buffers.get("_amax", self._parameters.get("_amax"))
        return None if amax is None else amax.detach()

    @amax.setter
    def amax(self, value: Tensor | float) -> None:
        amax = torch.as_tensor(value, dtype=torch.float32).detach().clone()
        if not bool(((amax >= 0) & amax.isfinite()).all()):
            raise CalibrationError(f"A range must be finite and not negative, not {amax}.")
        current = self.amax
        if current is not None and current.shape != amax.shape:
            raise TypeError(f"The range has shape {tuple(current.shape)}, not {tuple(amax.shape)}.")
        self.load_range(amax if current is None else amax.to(current.device))

    @property
    def zero_point(self) -> Tensor | None:
        """The level of 0, fp32, 0-dim; None where the range lies around zero, and 0 has the level 0."""
        zero_point: Tensor | None = self._buffers.get(ZERO_POINT)
        return zero_point

    @property
    def interval(self) -> Tensor | None:
        """The range as `load_range` takes it: `amax`, or the lowest and the highest value, fp64, `(2,)`."""
        amax, zero_point = self.amax, self.zero_point
        return amax if amax is None or zero_point is None else ends(amax, zero_point, self.levels)

    @property
    def is_enabled(self) -> bool:
        """Whether the quantizer does anything; `disable()` and `enable()` switch it."""
        return not self._disabled

    @property
    def scale_amax(self) -> float | None:
        """A factor on the range, for experiments; None for 1."""
        factor: float | None = self._scale_amax
        return factor

    @property
    def is_learned(self) -> bool:
        """Whether the range is a Parameter."""
        return "_amax" in self._parameters

    @property
    def is_float8(self) -> bool:
        """Whether the levels are those of FP8 (E4M3), not of an integer."""
        return bool(self.num_bits == float8.E4M3)

    @property
    def levels(self) -> int:
        """The highest level: 127 for int8, 448 for FP8."""
        return self.bounds[1]

    def load_range(self, amax: Tensor) -> None:
        """Take a copy of a range, whatever shape the one before had, without looking at its values.

        A learned range stays the Parameter that it is, which an optimizer may hold, and keeps its
        `requires_grad`.

        Args:
            amax: The range. Of a quantizer that is not symmetric also the lowest and the highest value,
                shape `(2,)`; else its zero point stays.
        """
        if not self.is_symmetric:
            with torch.inference_mode(False), torch.no_grad():
                zero_point = self.zero_point
                if amax.shape == (2,):
                    amax, zero_point = as_affine(amax.detach(), self.levels)
                elif zero_point is None:
                    zero_point = torch.zeros_like(amax, dtype=torch.float32)
                persistent = "_amax" not in self._non_persistent_buffers_set
                self.register_buffer(ZERO_POINT, zero_point.detach().clone(), persistent=persistent)
        # What is made in inference mode could neither be trained nor be loaded into afterwards.
        with torch.inference_mode(False), torch.no_grad():
            amax = amax.detach().to(torch.float32, copy=True)
            learned = self._parameters.get("_amax")
            if learned is None:
                persistent = "_amax" not in self._non_persistent_buffers_set
                self.register_buffer("_amax", amax, persistent=persistent)
            elif learned.shape == amax.shape:
                learned.copy_(amax)
            else:
                self._amax = nn.Parameter(amax, requires_grad=learned.requires_grad)

    def drop_range(self) -> None:
        """Forget the range, so that each tensor's own is used."""
        if self.amax is not None:
            del self._amax
        self._buffers.pop(ZERO_POINT, None)

    def learn_range(self, learned: bool = True) -> None:
        """Make the range a Parameter of its own memory, or a buffer again."""
        amax = self.amax
        if amax is not None and learned != self.is_learned:
            del self._amax
            self.load_range(amax)
            if learned:
                buffer = self._buffers.pop("_amax")
                assert buffer is not None, "it was loaded"
                self._amax = nn.Parameter(buffer)

    def load_calib_amax(self, *args: Any, strict: bool = True, **kwargs: Any) -> None:
        """Take the range from the calibrator, as the toolkit does, without a log line a quantizer.

        Raises:
            CalibrationError: If `strict` and the calibrator has not seen a tensor.
        """
        amax = self._calibrator.compute_amax(*args, **kwargs)
        if amax is not None:
            if not self.is_symmetric:
                self.drop_range()  # a zero point of before is not of this range, which lies around zero
            self.amax = amax
        elif strict:
            raise CalibrationError(
                "The calibrator has not seen a tensor, so it has no range: run the model on data first."
            )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `inputs` rounded to the quantizer's levels; shape and dtype stay."""
        if not self.is_enabled:
            return inputs
        if self._if_calib:
            self._calibrator.collect(self.scaled(inputs))
        if not self._if_quant:
            return inputs
        scale = self.input_scale
        if scale is None:
            return self._rounded(inputs)
        return self._rounded(self.scaled(inputs)) * scale.reciprocal().to(inputs.dtype)

    def _rounded(self, inputs: Tensor) -> Tensor:
        """Return an input that has been multiplied by the factors, rounded to levels."""
        amax, zero_point = self.range_of(inputs), self.zero_point
        if self.amax is None and not self.is_symmetric:
            amax, zero_point = as_affine(torch.stack(torch.aminmax(inputs.detach())), self.levels)
            amax = amax if self.scale_amax is None else amax * self.scale_amax
        limits = self._limits(zero_point)
        arguments = (inputs, amax, self.levels, limits, self.use_fb_fake_quant, self.is_float8)
        if torch.is_grad_enabled() and inputs.requires_grad:
            outputs: Tensor = FakeQuantize.apply(*arguments)  # type: ignore[no-untyped-call]
            return outputs
        return fake_quantize(*arguments)[0]

    def quantized(self, inputs: Tensor, amax: Tensor) -> Tensor:
        """Return `inputs` rounded to the levels of another range than the quantizer's own.

        Args:
            inputs: Floating-point values of any shape.
            amax: The range; of a quantizer that is not symmetric also the lowest and the highest value,
                shape `(2,)`, and else its zero point stays.
        """
        zero_point = self.zero_point
        if not self.is_symmetric and amax.shape == (2,):
            amax, zero_point = as_affine(amax, self.levels)
        limits, native = self._limits(zero_point), self.use_fb_fake_quant
        return fake_quantize(inputs, amax, self.levels, limits, native, self.is_float8)[0]

    def integers(self, inputs: Tensor) -> Tensor:
        """Return the levels that `inputs` are rounded to, in fp32: whole numbers, or FP8's."""
        to_levels, _ = scales_of(self.range_of(inputs), self.levels, self.use_fb_fake_quant)
        return self.nearest_levels(at_least_fp32(inputs) * to_levels)

    def nearest_levels(self, steps: Tensor) -> Tensor:
        """Return the levels nearest to fp32 values that are given in steps, without the zero point."""
        if self.is_float8:
            return float8.nearest(steps)
        return steps.round().clamp_(*self.limits)

    @property
    def step_size(self) -> Tensor | None:
        """The range over the highest level; None where there is no range."""
        return None if self.amax is None else self.amax / self.levels

    @property
    def bounds(self) -> tuple[int, int]:
        """The lowest and the highest level."""
        if self.is_float8:
            return -float8.LARGEST, float8.LARGEST
        high = 2 ** (self.num_bits - 1 + int(self.unsigned)) - 1
        if self.unsigned:
            return 0, high
        # Native fake quantization always has the full range, whatever narrow_range says.
        return (-high if self.narrow_range and not self.use_fb_fake_quant else -high - 1), high

    @property
    def limits(self) -> Limits:
        """The lowest and the highest multiple of the step: the bounds, but for the zero point."""
        return self._limits(self.zero_point)

    def _limits(self, zero_point: Tensor | None) -> Limits:
        low, high = self.bounds
        return (low, high) if zero_point is None else (low - zero_point, high - zero_point)

    def range_of(self, inputs: Tensor) -> Tensor:
        """Return the range that `inputs` are quantized with: the quantizer's, or else their own.

        Raises:
            CalibrationError: If the quantizer has ranges of channels that `inputs` do not have, as those of a
                weight that was resized.
        """
        amax = self.amax
        if amax is None:
            amax = absolute_max(inputs, self.axis)
        elif amax.dim() == inputs.dim() and any(
            size not in (1, other) for size, other in zip(amax.shape, inputs.shape, strict=True)
        ):
            raise CalibrationError(
                f"The quantizer has ranges of shape {tuple(amax.shape)} for a tensor of shape "
                f"{tuple(inputs.shape)}, which was resized since: set them anew by qdqpatch.calibrate."
            )
        return amax if self.scale_amax is None else amax * self.scale_amax

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TensorQuantizer:
        """Move or cast the module; the range and its gradient follow the device and keep their dtype."""

        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        super()._apply(moved, recurse)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Make room for a range and factors that the state dict has and this quantizer has not, in fp32."""
        for name in (prefix + "_amax", prefix + ZERO_POINT, prefix + INPUT_SCALE):
            stored = state_dict.get(name)
            if stored is not None and stored.dtype != torch.float32:  # it would be assigned as it is
                state_dict[name] = stored.detach().float()
        amax, zero_point = state_dict.get(prefix + "_amax"), state_dict.get(prefix + ZERO_POINT)
        if amax is not None and self.amax is None:
            self.load_range(amax)
        if zero_point is not None and not self.is_symmetric and self.zero_point is None:
            self.register_buffer(ZERO_POINT, zero_point.detach().clone())
        self.make_room(state_dict, prefix)
        # The toolkit's own method would put the range on CUDA, so its parent's is called.
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args, **kwargs)
