"""Reports on quantizers, and a checkpoint to report on."""

from pathlib import Path
from typing import Any

import models
import torch
from torch import Tensor

import qdqpatch
from qdqpatch.calibration import collect
from qdqpatch.calibration.histogram import Histogram
from qdqpatch.calibration.statistics import TensorStatistics
from qdqpatch.checkpoint.source import open_checkpoint
from qdqpatch.config.quantizer import QuantizerConfig
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.report import quantizers
from qdqpatch.report.quality import Quality
from qdqpatch.report.quantizers import QuantizerReport, load_statistics, report_quantizers

HEAD = "BertForMaskedLM"
# The histogram's share of a bin on either side of the range is a guess: off by a part of one bin's share.
SHARE_TOLERANCE = 2e-4


def statistics(values: Tensor, **settings: Any) -> TensorStatistics:
    return TensorStatistics.of(Histogram.of(values), None, quantizer(**settings))


def quantizer(**settings: Any) -> TensorQuantizer:
    return TensorQuantizer(QuantizerConfig(**settings).descriptor())


def calibrated_checkpoint(folder: Path, method: str = "percentile") -> Path:
    """Write a calibrated model and what its quantizers saw, as `qdqpatch convert` does."""
    model = models.uncalibrated(HEAD)
    batches = [models.inputs(HEAD, seed) for seed in (2, 3)]
    found = collect(model, batches, compare=method == "auto")
    qdqpatch.calibrate(model, found, method=method).save_pretrained(folder)
    found.save(folder / quantizers.STATISTICS_FILE)
    return folder


def reports_of(folder: Path, with_statistics: bool = True) -> list[QuantizerReport]:
    source = open_checkpoint(str(folder))
    found = load_statistics(source) if with_statistics else None
    return report_quantizers(source, source.plan(), source.ranges(), found, count_weights=True)


def report(path: str, sqnr_db: float | None, share: float = 0.0) -> QuantizerReport:
    return QuantizerReport(path, QuantizerConfig(), torch.tensor(1.0), None, Quality(share, sqnr_db))
