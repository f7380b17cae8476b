"""What a collection pass found out, to be searched by any method, saved, and looked at."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qdqpatch.calibration.histogram import Histogram
from qdqpatch.calibration.methods import bins_in_range, check_method
from qdqpatch.choices import DEFAULT_PERCENTILE, Method
from qdqpatch.errors import CalibrationError, ReportError
from qdqpatch.nn.float8 import LARGEST
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.output.file import replace_file

FORMAT = "qdqpatch-statistics-1"
"""What a file of statistics calls itself."""


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """What one quantizer saw.

    Attributes:
        counts: How many magnitudes fell into each bin, int64, shape `(bins,)`; bin i begins at
            `i * width`.
        width: The bin width, a power of two.
        amax: The largest magnitude, exactly.
        levels: The highest level of the quantizer: 127 for int8, 448 for FP8.
        channel_amax: Of a quantizer with a range per channel, the largest magnitude of each, shaped like
            its range. It has no histogram: its counts are 0.
        errors: How far each candidate range moves the operation's result on the batches that were held
            back (`calibration/comparing.py` says in what measure); empty if nothing was compared.
        ends: Of a quantizer that is not symmetric, the lowest and the highest value, and 0 between them. A
            range is told by the magnitude that it takes in on either side; it goes no further than they do.
    """

    counts: NDArray[np.int64]
    width: float
    amax: float
    levels: int
    channel_amax: Tensor | None = None
    errors: dict[float, float] = field(default_factory=dict)
    ends: tuple[float, float] | None = None

    @classmethod
    def of(
        cls,
        histogram: Histogram,
        channel_amax: Tensor | None,
        quantizer: TensorQuantizer,
        ends: tuple[float, float] | None = None,
    ) -> TensorStatistics:
        """Bring what was collected to the host."""
        amax = histogram.amax
        if channel_amax is not None:
            amax = channel_amax.amax().nan_to_num(nan=torch.inf, posinf=torch.inf)
            channel_amax = channel_amax.float().cpu()
        return cls(
            histogram.counts.cpu().numpy(),
            2.0 ** int(histogram.exponent),
            float(amax),
            quantizer.levels,
            channel_amax,
            ends=ends,
        )

    def interval(self, amax: Tensor) -> Tensor:
        """Return the range that takes in the magnitudes up to `amax`, as quantizers load it."""
        if self.ends is None:
            return amax
        return torch.stack([torch.tensor(end).clamp(-amax, amax) for end in self.ends])

    @property
    def resolution(self) -> int:
        """How many levels there are on the longer side of the range, for the searches."""
        if self.ends is None or self.ends[0] == self.ends[1]:
            return self.levels
        return int((2 * self.levels + 1) * self.amax / (self.ends[1] - self.ends[0]))

    @property
    def is_float8(self) -> bool:
        """Whether the levels are FP8's; on the longer side of a range of 9 bits there can be as many."""
        return self.levels == LARGEST

    def best_range(self, method: Method, percentile: float = DEFAULT_PERCENTILE) -> Tensor:
        """Return the magnitude that a method lets the range end at, fp32, never beyond the largest.

        A quantizer with a range per channel gets its maxima, whatever the method; one that no batch held
        back has reached, or whose range makes no difference there, the percentile for `"auto"`. The range is
        0 only if the tensor was zero everywhere.
        """
        if self.channel_amax is not None:
            return self.channel_amax
        if method == "auto" and any(self.errors.values()):
            return torch.tensor(least_error(self.errors))
        filled = np.flatnonzero(self.counts)
        if method == "max" or not len(filled) or filled[-1] == 0:
            return torch.tensor(self.amax)
        counts = self.counts[: filled[-1] + 1]
        bins = bins_in_range(counts, self.resolution, method, percentile, self.is_float8)
        # The lower edge of the first bin, which the toolkit would take too, would make every value 0.
        return torch.tensor(min(max(bins, 1.0) * self.width, self.amax))


def least_error(errors: Mapping[float, float]) -> float:
    """Return the range with the smallest error, the smaller of two that are equally good."""
    return min(errors, key=lambda amax: (errors[amax], amax))


class Statistics(Mapping[str, TensorStatistics]):
    """What every activation quantizer of a model saw, by the quantizer's path.

    Examples:
        >>> statistics = collect(model, batches)
        >>> statistics.save("statistics.safetensors")
        >>> model = calibrate(model, statistics, method="entropy")
    """

    def __init__(self, tensors: Mapping[str, TensorStatistics]) -> None:
        self._tensors = dict(tensors)

    def __getitem__(self, path: str) -> TensorStatistics:
        return self._tensors[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def with_errors(self, errors: Mapping[str, Mapping[float, float]]) -> Statistics:
        """Return the same statistics with the errors of candidate ranges, by path."""
        return Statistics(
            {
                path: dataclasses.replace(tensor, errors=dict(errors.get(path, {})))
                for path, tensor in self._tensors.items()
            }
        )

    def ranges(self, method: Method = "auto", percentile: float = DEFAULT_PERCENTILE) -> dict[str, Tensor]:
        """Search the range of every quantizer.

        Args:
            method: `"max"`, the largest magnitude; `"percentile"`, the magnitude that the given share
                stays below; `"mse"`, the smallest mean squared error; `"entropy"`, the smallest
                Kullback-Leibler divergence; or `"auto"`, the one of all these that preserved the
                operation's result best.
            percentile: The share, in percent, for `"percentile"`, and for what nothing was compared of.

        Returns:
            The ranges by path: fp32, 0-dim, or shaped for a quantizer with a range per channel; of one that
            is not symmetric the lowest and the highest value, shape `(2,)`.

        Raises:
            ConfigError: If there is no such method or percentile.
            CalibrationError: If the method is `"auto"` and nothing was compared.
        """
        found = self.magnitudes(method, percentile)
        return {path: self._tensors[path].interval(amax) for path, amax in found.items()}

    def magnitudes(
        self, method: Method = "auto", percentile: float = DEFAULT_PERCENTILE
    ) -> dict[str, Tensor]:
        """Return the magnitudes that ranges end at; what they are of is as for `ranges`."""
        check_method(method, percentile)
        with_histogram = [tensor for tensor in self._tensors.values() if tensor.channel_amax is None]
        if method == "auto" and with_histogram and not any(tensor.errors for tensor in with_histogram):
            raise CalibrationError(
                'The method "auto" compares ranges on batches that were held back: collect the statistics '
                "with compare=True."
            )
        found: dict[tuple[bytes, float, float, int, bool], Tensor] = {}
        ranges = {}
        for path, tensor in self._tensors.items():
            if method == "auto" or tensor.channel_amax is not None:
                ranges[path] = tensor.best_range(method, percentile)
                continue
            # Query, key, value and the residual add saw the same, and need one search.
            key = (tensor.counts.tobytes(), tensor.width, tensor.amax, tensor.resolution, tensor.is_float8)
            if key not in found:
                found[key] = tensor.best_range(method, percentile)
            ranges[path] = found[key].clone()
        return ranges

    def save(self, file: str | Path) -> None:
        """Write the statistics to a safetensors file; equal histograms are written once.

        Raises:
            CalibrationError: If the file cannot be written, or is there and holds something else.
        """
        try:
            replace_file(Path(file), self.write, _is_ours)
        except ReportError as error:
            raise CalibrationError(str(error)) from error

    def write(self, file: Path) -> None:
        """Write the statistics as `save` does, over whatever is there.

        Raises:
            SafetensorError: If the file cannot be written.
        """
        rows: dict[bytes, int] = {}
        tensors, facts = {}, {}
        for path, tensor in self._tensors.items():
            row = rows.setdefault(tensor.counts.tobytes(), len(rows))
            facts[path] = {
                "row": row,
                "width": tensor.width,
                "amax": tensor.amax,
                "levels": tensor.levels,
                "errors": list(tensor.errors.items()),
            }
            if tensor.ends is not None:
                facts[path]["ends"] = tensor.ends
            if tensor.channel_amax is not None:
                tensors[f"{path}.channel_amax"] = tensor.channel_amax
        counts = np.frombuffer(b"".join(rows), dtype=np.int64).reshape(len(rows), -1 if rows else 0)
        tensors["counts"] = torch.from_numpy(counts.copy())
        metadata = {"format": FORMAT, "quantizers": json.dumps(facts)}
        save_file(tensors, file, metadata)

    @classmethod
    def load(cls, file: str | Path) -> Statistics:
        """Read what `save` wrote.

        Raises:
            CalibrationError: If the file cannot be read or is of another kind.
        """
        try:
            with safe_open(str(file), framework="pt") as stored:
                metadata = stored.metadata() or {}
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # no dict
            if metadata.get("format") != FORMAT:
                raise CalibrationError(f"{file} holds no calibration statistics of this version.")
            counts = tensors["counts"].numpy()
            return cls(
                {
                    path: TensorStatistics(
                        counts=counts[fact["row"]],
                        width=fact["width"],
                        amax=fact["amax"],
                        levels=fact["levels"],
                        channel_amax=tensors.get(f"{path}.channel_amax"),
                        errors=dict(fact["errors"]),
                        ends=None if fact.get("ends") is None else tuple(fact["ends"]),
                    )
                    for path, fact in json.loads(metadata["quantizers"]).items()
                }
            )
        except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
            raise CalibrationError(f"Cannot read the statistics {file}: {error}") from error


def _is_ours(file: Path) -> bool:
    try:
        with safe_open(str(file), framework="pt") as stored:
            return (stored.metadata() or {}).get("format") == FORMAT
    except (OSError, SafetensorError):
        return False
