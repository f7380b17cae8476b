"""The settings of one quantizer, and changes to the settings of some: the parts of a `QDQConfig`."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from qdqpatch.config import patterns
from qdqpatch.errors import ConfigError
from qdqpatch.nn.float8 import E4M3
from qdqpatch.nn.toolkit import Float8Descriptor, QuantDescriptor
from qdqpatch.spelling import spelled

T = TypeVar("T")

LARGEST = torch.finfo(torch.float32).max
"""The largest range: ranges are fp32."""


@dataclass(frozen=True)
class QuantizerConfig:
    """How one quantizer rounds: the settings of pytorch-quantization's `QuantDescriptor`.

    Attributes:
        num_bits: Width of the integer, 2 to 16; or (4, 3) for FP8 with four bits of exponent and three of
            mantissa, which goes by the name "e4m3" too.
        axis: Dimensions that each keep a range of their own, as an int or a tuple of ints (0 is a
            weight's output channel); None for one range per tensor.
        unsigned: Whether the integers start at 0, for tensors that are never negative.
        symmetric: Whether the range lies around zero. One that does not takes in what is there, from the
            lowest value to the highest, with a zero point: for activations in ONNX Runtime and OpenVINO.
        narrow_range: Whether a signed integer leaves out its lowest value: [-127, 127], not [-128, 127].
        amax: A fixed range for the whole tensor; None leaves it to calibration.
        scale_amax: A factor on the range, for experiments; None for 1.
        calib_method: The calibrator that NVIDIA's own calibration scripts find on the quantizer,
            "max" or "histogram". `qdqpatch.calibrate` takes its method as an argument instead.

    Raises:
        ConfigError: If a value is of the wrong type or out of range.
    """

    num_bits: int | tuple[int, int] = 8
    axis: int | tuple[int, ...] | None = None
    unsigned: bool = False
    narrow_range: bool = False
    amax: float | None = None
    scale_amax: float | None = None
    calib_method: Literal["max", "histogram"] = "max"
    symmetric: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.axis, (list, tuple)):
            axis = self.axis[0] if len(self.axis) == 1 else tuple(self.axis)
            object.__setattr__(self, "axis", axis)
        given: Any = self.num_bits
        if given == "e4m3" or (isinstance(given, list) and tuple(given) == E4M3):
            object.__setattr__(self, "num_bits", E4M3)
        elif self.num_bits != E4M3 and not (type(self.num_bits) is int and 2 <= self.num_bits <= 16):
            raise ConfigError(
                f"num_bits must be an integer from 2 to 16, or (4, 3) for FP8, not {self.num_bits!r}."
            )
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        if self.axis is not None and not all(type(axis) is int for axis in axes):
            raise ConfigError(f"axis must be an integer, a list of them or null, not {self.axis!r}.")
        for name in ("unsigned", "narrow_range", "symmetric"):
            check_bool(name, getattr(self, name))
            if self.is_float8 and name != "symmetric" and getattr(self, name):
                raise ConfigError(f"FP8 has a sign and one range: {name} is for integers.")
        if not self.symmetric:
            self._check_asymmetric()
        for name in ("amax", "scale_amax"):
            _check_range(name, getattr(self, name))
        if self.calib_method not in ("max", "histogram"):
            raise ConfigError(f'calib_method must be "max" or "histogram", not {self.calib_method!r}.')

    @property
    def is_float8(self) -> bool:
        """Whether values are rounded to FP8 (E4M3), not to integers."""
        return self.num_bits == E4M3

    def _check_asymmetric(self) -> None:
        if self.is_float8:
            raise ConfigError(
                f"FP8 lies around zero: {spelled('symmetric=False', '--asymmetric')} is for integers."
            )
        reasons = {
            "axis": "has one range for the whole tensor",
            "unsigned": "reaches as far to either side as it needs to",
            "narrow_range": "has all levels",
            "amax": "is not told by one number",
        }
        for name, reason in reasons.items():
            value = getattr(self, name)
            if value is not None and value is not False:  # 0 is an axis, and a range
                raise ConfigError(f"A range that is not symmetric {reason}: leave out {name} or symmetric.")

    @classmethod
    def from_descriptor(cls, descriptor: QuantDescriptor) -> QuantizerConfig:
        """Take over the settings of a pytorch-quantization `QuantDescriptor`.

        Raises:
            ConfigError: If it asks for what a converted model does not have: real quantization
                (`fake_quant=False`), a range that learns from the start (`learn_amax=True`; `train_ranges` is
                for that), or a fixed range per channel, which cannot suit every layer.
        """
        if not descriptor.fake_quant:
            raise ConfigError("The descriptor has fake_quant=False; only fake quantization is possible.")
        if descriptor.learn_amax:
            raise ConfigError(
                "The descriptor has learn_amax=True. Ranges are learned once they are calibrated: leave it "
                "out, and call qdqpatch.training.train_ranges(model)."
            )
        if descriptor.amax is not None and np.size(descriptor.amax) != 1:
            raise ConfigError("The descriptor fixes a range per channel; only one per tensor can be fixed.")
        known = (item.name for item in dataclasses.fields(cls) if hasattr(descriptor, item.name))
        settings = {name: getattr(descriptor, name) for name in known}
        if descriptor.amax is not None:
            settings["amax"] = float(descriptor.amax)
        return cls(**settings)

    def descriptor(self) -> QuantDescriptor:
        """Return the same settings as a `QuantDescriptor`, which cannot say `symmetric`."""
        settings = dataclasses.asdict(self)
        del settings["symmetric"]
        if self.is_float8:
            del settings["num_bits"]
            return Float8Descriptor(**settings)
        return QuantDescriptor(**settings)

    def without_amax(self) -> QuantizerConfig:
        """Return the same settings without the fixed range."""
        return dataclasses.replace(self, amax=None)

    def check_axis(self, dims: int, of: str) -> None:
        """Find out whether tensors have the axes.

        Args:
            dims: How many dimensions the tensors have.
            of: What they are, for the message.

        Raises:
            ConfigError: If they have not, or one axis is named twice.
        """
        axes = self.axis if isinstance(self.axis, tuple) else () if self.axis is None else (self.axis,)
        wrong = [axis for axis in axes if not -dims <= axis < dims]
        if wrong:
            raise ConfigError(f"axis must be from {-dims} to {dims - 1} for {of}, not {wrong[0]}.")
        if len({axis % dims for axis in axes}) < len(axes):
            raise ConfigError(f"axis names a dimension of {of} twice: {self.axis}.")

    def __str__(self) -> str:
        text = "fp8" if self.is_float8 else f"{'u' if self.unsigned else ''}int{self.num_bits}"
        if not self.symmetric:
            text = f"asymmetric {text}"
        if self.axis is not None:
            text += f" per channel (axis {self.axis})"
        return text


@dataclass(frozen=True)
class Override:
    """A change to the quantizers whose path matches a pattern.

    Attributes:
        pattern: A glob over quantizer paths as `model.named_modules()` gives them, for example
            `*.layer.0.*` or `*_weight_quantizer`; `*` also matches dots, and `{0..11}` the numbers from
            0 to 11. The path of a module, as printed plans have it, stands for all its quantizers.
        enabled: True or False turns the quantizers on or off, whatever their part says; None
            leaves that as it is.
        settings: Fields of `QuantizerConfig` to change, for example `{"num_bits": 4}`.

    Raises:
        ConfigError: If a setting is unknown or its value is out of range, or the pattern would not match
            what it looks like (`qdqpatch.config.patterns`).
    """

    pattern: str
    enabled: bool | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str) or not self.pattern:
            raise ConfigError(f"An override's pattern must be a non-empty text, not {self.pattern!r}.")
        patterns.check_pattern(self.pattern)
        if self.enabled is not None:
            check_bool(f"enabled of override {self.pattern!r}", self.enabled)
        checked = build(QuantizerConfig, self.settings, f"override {self.pattern!r}")
        settings = {name: getattr(checked, name) for name in self.settings}
        object.__setattr__(self, "settings", settings)

    @classmethod
    def parse(cls, text: str) -> Override:
        """Read `PATTERN=off`, `PATTERN=on` or `PATTERN=KEY:VALUE,...`, as on the command line.

        Raises:
            ConfigError: If the text has another form.
        """
        pattern, equals, change = text.rpartition("=")
        if change in ("on", "off") and equals:
            return cls(pattern, enabled=change == "on")
        pairs = [item.partition(":") for item in change.split(",")]
        if not equals or not all(colon for _, colon, _ in pairs):
            raise ConfigError(
                f"Cannot read the override {text!r}: write PATTERN=off, PATTERN=on or "
                "PATTERN=KEY:VALUE,... such as '*_weight_quantizer=num_bits:4'."
            )
        return cls(pattern, settings={key: _parse_value(value) for key, _, value in pairs})

    def matches(self, paths: Iterable[str]) -> bool:
        """Whether the pattern matches one of the names that a quantizer goes by, or its module's."""
        return any(
            patterns.matches(self.pattern, name) for path in paths for name in (path, path.rpartition(".")[0])
        )


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Make a dataclass of `values`, with an error that names an unknown key and its likely spelling."""
    names = [item.name for item in dataclasses.fields(cls) if item.init]  # type: ignore[arg-type]  # only given dataclasses
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" The keys are {', '.join(names)}."
            raise ConfigError(f"Unknown key {key!r} in {where}.{hint}")
    return cls(**values)


def check_bool(name: str, value: object) -> None:
    """Raise a `ConfigError` that names `name` unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, not {value!r}.")


def _parse_value(text: str) -> Any:
    """Read a setting's value from the command line: JSON, with `none` for null and bare words as text."""
    if text.lower() in ("none", "null"):
        return None
    try:
        return json.loads(text.lower())
    except (ValueError, RecursionError):
        return text


def _check_range(name: str, value: object) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 <= value <= LARGEST):  # type: ignore[operator]
        raise ConfigError(
            f"{name} must be a finite number that is not negative, at most {LARGEST:.1e} (fp32's largest), "
            f"not {value!r}."
        )
