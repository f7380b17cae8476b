"""What can go wrong, each with the built-in exception a caller would expect it to be."""

import re
from collections.abc import Sequence

from qdqpatch.spelling import spelled

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class QdqError(Exception):
    """Base of every error that qdqpatch raises on purpose."""


class ConfigError(QdqError, ValueError):
    """A configuration names an unknown key, holds a value out of range, or contradicts itself."""


class OverrideError(ConfigError):
    """An override's pattern matches no quantizer of the model."""


class UnsupportedModelError(QdqError, TypeError):
    """The object is not a model that any rule knows, or nothing in it can be quantized."""


class QuantizedError(QdqError, RuntimeError):
    """The model is quantized already and the call needs a float one."""


class NotQuantizedError(QdqError, RuntimeError):
    """The call needs a quantized model and was given a float one."""


class CalibrationError(QdqError, RuntimeError):
    """A range could not be determined from the data given."""


class ProcessError(CalibrationError):
    """Another one of the processes that work together failed, and says why."""


class DataError(CalibrationError, ValueError):
    """Data is missing, damaged, or wrong at a place that the message names."""


class NoLabelsError(DataError):
    """Data has no labels at all where they are asked for; texts alone may do."""


class CheckpointError(QdqError, OSError):
    """A checkpoint is missing, damaged, of another kind, or cannot be written."""


class ReportError(QdqError, OSError):
    """A report cannot be drawn or written."""


class OccupiedError(CheckpointError, ReportError):
    """Where something is to be written stands what qdqpatch wrote before, and nobody said to replace it."""


class InterruptedRunError(OccupiedError):
    """Where training is to keep its checkpoints lies a run that was interrupted."""


class TrainingError(QdqError, ArithmeticError):
    """Training diverged: the loss or the weights are no numbers any more."""


class BudgetError(QdqError, RuntimeError):
    """Nothing that was tried is as close to the float model as it should be."""


class ExportError(QdqError, RuntimeError):
    """A model cannot be exported for the target, or the exported file does not do what the model does."""


class EngineError(QdqError, RuntimeError):
    """A runtime is not installed, refuses a file, or fails to run it."""


class QuantizationWarning(UserWarning):
    """A model is quantized, but not all of what its configuration asks for."""


class CalibrationWarning(UserWarning):
    """Calibration goes on, but its data is not what it should be."""


class CheckpointWarning(UserWarning):
    """A checkpoint is read or written, but not all that belongs to it."""


def no_range(paths: Sequence[str], remedy: str | None = None) -> str:
    """Return what is to be said of quantizers, by their paths, that have no range and need one.

    Args:
        paths: The quantizers.
        remedy: What to do; None to calibrate.
    """
    if remedy is None:
        way = spelled("qdqpatch.calibrate(model, batches)", "qdqpatch convert CKPT OUT --calib FILE")
        remedy = f"Calibrate the model first: {way}."
    found = f"{paths[0]} has" if len(paths) == 1 else f"{len(paths)} quantizers have"
    first = "" if len(paths) == 1 else f", the first one {paths[0]}"
    return f"{found} no range yet{first}. {remedy}"


def one_line(error: BaseException) -> str:
    """Return an error's message, which engines spread over several lines, as one."""
    text = " ".join(_COLOURS.sub("", str(error)).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]}..."
