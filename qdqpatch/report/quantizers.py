"""Everything there is to know about each quantizer of a checkpoint, without building its model."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from qdqpatch.calibration.histogram import Histogram
from qdqpatch.calibration.statistics import Statistics, TensorStatistics
from qdqpatch.checkpoint.files import find_file
from qdqpatch.checkpoint.source import Checkpoint
from qdqpatch.config.quantizer import QuantizerConfig
from qdqpatch.nn.affine import ends
from qdqpatch.nn.names import WEIGHT, is_weight
from qdqpatch.patching.apply import make_quantizer
from qdqpatch.patching.plan import Plan
from qdqpatch.patching.tensor_files import open_tensors
from qdqpatch.report.quality import Quality, of_statistics, of_tensor

STATISTICS_FILE = "calibration.safetensors"
"""The file of a checkpoint that holds what its quantizers saw; transformers does not look at it."""


_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, eq=False)
class QuantizerReport:
    """What is known of one quantizer.

    Attributes:
        path: Its path in the model.
        settings: How it rounds.
        amax: Its range, 0-dim or one per channel; None if it computes one from each input. Of a range that
            does not lie around zero, the largest magnitude in it.
        seen: What it saw in calibration, or for a weight what the weight is; None if that is not known.
        quality: The figures of the range; None if there is no range, or it is not known what was seen.
        ends: The lowest and the highest value of a range that does not lie around zero, shape `(2,)`.
    """

    path: str
    settings: QuantizerConfig
    amax: Tensor | None
    seen: TensorStatistics | None = None
    quality: Quality | None = None
    ends: Tensor | None = None

    @property
    def sqnr_db(self) -> float | None:
        """The signal to quantization noise ratio, None if unknown."""
        return None if self.quality is None else self.quality.sqnr_db

    @property
    def layer(self) -> int | None:
        """The layer's number, the first in the path; None outside the layers."""
        found = _LAYER.search(self.path)
        return int(found.group()) if found else None

    @property
    def role(self) -> str:
        """The path within the layer, the same in all layers; the whole path outside the layers."""
        found = _LAYER.search(self.path)
        return self.path[found.end() + 1 :] if found else self.path


def load_statistics(source: Checkpoint) -> Statistics | None:
    """Return the calibration statistics that a checkpoint holds, None if it holds none.

    Raises:
        CalibrationError: If the file is damaged or of another kind.
    """
    file = find_file(source.name, STATISTICS_FILE)
    return None if file is None else Statistics.load(file)


def report_quantizers(
    source: Checkpoint,
    plan: Plan,
    ranges: Mapping[str, Tensor],
    statistics: Statistics | None,
    count_weights: bool = False,
    zero_points: Mapping[str, Tensor] | None = None,
) -> list[QuantizerReport]:
    """Return a report on every quantizer that is on, in the plan's order.

    Activations are judged by the statistics, weights by themselves: they are read one by one.

    Args:
        source: The checkpoint, a quantized one.
        plan: Its plan.
        ranges: Its ranges, as `source.ranges()` returns them.
        statistics: What its quantizers saw in calibration, if that is known.
        count_weights: Whether to count the magnitudes of the weights too, which pictures need.
        zero_points: Those of its ranges, as `source.zero_points()` returns them.
    """
    settings = {
        f"{site.path}.{name}": config
        for site in plan.sites
        for name, config in site.quantizers.items()
        if config is not None
    }
    steps = dict(ranges)
    intervals = {
        path: ends(ranges[path].reshape(()), zero_point.reshape(()), make_quantizer(settings[path]).levels)
        for path, zero_point in (zero_points or {}).items()
        if path in ranges and path in settings
    }
    ranges = steps | {path: interval.abs().amax() for path, interval in intervals.items()}
    weights = {path for path in ranges.keys() & settings.keys() if is_weight(path)}
    known: dict[str, tuple[TensorStatistics | None, Quality]] = {}
    for path, weight in _read_weights(source.weight_files(), weights):
        quantizer = make_quantizer(settings[path])
        seen = TensorStatistics.of(Histogram.of(weight), None, quantizer) if count_weights else None
        known[path] = seen, of_tensor(weight, _effective(ranges[path], settings[path]), quantizer)
    for path in ranges.keys() & settings.keys() & (set() if statistics is None else set(statistics)):
        assert statistics is not None
        if ranges[path].numel() == 1 and statistics[path].counts.any():
            stored = statistics[path]
            amax, step = (float(_effective(kind[path], settings[path])) for kind in (ranges, steps))
            levels = round(amax / step * stored.levels) if step else stored.levels
            known[path] = stored, of_statistics(dataclasses.replace(stored, levels=levels), amax)
    reports = []
    for path, config in settings.items():
        figures = known.get(path)
        saw, quality = (None, None) if figures is None else figures
        reports.append(QuantizerReport(path, config, ranges.get(path), saw, quality, intervals.get(path)))
    return reports


def worst_first(reports: Iterable[QuantizerReport]) -> list[QuantizerReport]:
    """Sort by rising SQNR; where that is not known comes last, and else the order stays."""
    return sorted(reports, key=lambda report: float("inf") if report.sqnr_db is None else report.sqnr_db)


def _effective(amax: Tensor, settings: QuantizerConfig) -> Tensor:
    return amax if settings.scale_amax is None else amax * settings.scale_amax


def _read_weights(files: Iterable[str], quantizers: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights that the quantizers at these paths see; those tied to others are not stored."""
    wanted = {f"{path.removesuffix(f'.{WEIGHT}')}.weight": path for path in quantizers}
    for file in files:
        with open_tensors(file) as tensors:
            for name in wanted.keys() & set(tensors.names):
                yield wanted[name], tensors[name]
