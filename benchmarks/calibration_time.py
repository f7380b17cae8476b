"""What calibrating BERT-base costs beside plain forward passes, and beside the toolkit's calibration.

    python benchmarks/calibration_time.py

Collection: the float model on the same batches, without quantizers; `qdqpatch.calibration.collect`; and the
toolkit's own flow, its HistogramCalibrator on each of the 168 activation quantizers. They run in turn, and
the first round does not count. Searches: all of ours for all quantizers; one of the toolkit's for a single
quantizer, which would have to be repeated 168 times. Memory: the largest resident set of a process that does
nothing but build the model and run one of these.
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Mapping
from typing import Any

import torch
from common import (
    BERT_BASE,
    Row,
    largest_resident_set,
    prepare,
    run_alone,
    seconds,
    show,
    spread,
    surroundings,
)
from pytorch_quantization.calib import HistogramCalibrator
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedModel

import qdqpatch
from qdqpatch.calibration import Statistics, collect
from qdqpatch.choices import METHODS
from qdqpatch.patching.apply import named_quantizers

FLOAT = "float forward passes"
OURS = "qdqpatch"
TOOLKIT = "pytorch-quantization"
SHAPE = (8, 128)
BATCHES = 4
ROUNDS = 5


def main() -> None:
    """Measure BERT-base and print three tables."""
    prepare()
    if len(sys.argv) > 1:  # a process whose memory is measured
        print(peak_memory(BERT_BASE, sys.argv[1]))
        return
    models = contenders(BERT_BASE)
    batches = inputs(BERT_BASE, *SHAPE)
    title = f"Collecting from {BATCHES} batches of {SHAPE[0]}x{SHAPE[1]}, BERT-base, fp32, {ROUNDS} rounds"
    show(title, ("", "median", "fastest", "to float"), measure_collection(models, batches, ROUNDS))
    found = collect(models[OURS], batches)
    show("Searching the ranges of 168 quantizers", ("", "time"), measure_searches(models, found))
    rows = [(name, f"{run_alone(__file__, name):.0f} MB") for name in models]
    show("Largest resident set", ("", "memory"), rows)
    print(surroundings())


def contenders(config: BertConfig) -> dict[str, PreTrainedModel]:
    """Return a float model, its quantized copy, and a copy of that with the toolkit's calibrators."""
    torch.manual_seed(0)
    models = {FLOAT: BertModel(config).eval()}
    models[OURS] = qdqpatch.quantize(copy.deepcopy(models[FLOAT]))
    models[TOOLKIT] = copy.deepcopy(models[OURS])
    return models


def inputs(config: BertConfig, batch: int, length: int) -> list[dict[str, Tensor]]:
    """Return batches of random tokens, none of them padding."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, config.vocab_size, (BATCHES, batch, length), generator=generator)
    return [{"input_ids": token, "attention_mask": torch.ones_like(token)} for token in tokens]


def measure_collection(
    models: Mapping[str, PreTrainedModel], batches: list[dict[str, Tensor]], rounds: int
) -> list[Row]:
    """Return a row for each contender: name, median and fastest time, ratio to float."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(1 + rounds):
        for name, model in models.items():
            times[name].append(seconds(lambda model=model, name=name: RUNS[name](model, batches))[0])
    reference = statistics.median(times[FLOAT][1:])
    return [
        (name, *spread(taken[1:])[:2], f"{statistics.median(taken[1:]) / reference:.2f}")
        for name, taken in times.items()
    ]


def forward(model: PreTrainedModel, batches: list[dict[str, Tensor]]) -> None:
    """Run the float model on the batches."""
    with torch.no_grad():
        for batch in batches:
            model(**batch)


def collect_as_toolkit(model: PreTrainedModel, batches: list[dict[str, Tensor]]) -> None:
    """Collect histograms of activations as NVIDIA's calibration scripts do."""
    for path, quantizer in named_quantizers(model):
        quantizer.disable_quant()
        if not path.endswith("_weight_quantizer"):
            quantizer._calibrator = HistogramCalibrator(8, None, False)
            quantizer.enable_calib()
    forward(model, batches)


RUNS: dict[str, Any] = {FLOAT: forward, OURS: collect, TOOLKIT: collect_as_toolkit}


def measure_searches(models: Mapping[str, PreTrainedModel], found: Statistics) -> list[Row]:
    """Return a row for each of our methods, for all of them, and for the toolkit's entropy search."""
    methods = [method for method in METHODS if method != "auto"]
    taken = {method: seconds(lambda method=method: found.ranges(method))[0] for method in methods}
    rows = [(f"{OURS}, {method}, all quantizers", f"{time:.3f} s") for method, time in taken.items()]
    rows.append((f"{OURS}, all four methods, all quantizers", f"{sum(taken.values()):.3f} s"))
    for bins in (2048, 8192):
        calibrator = HistogramCalibrator(8, None, False, num_bins=bins)
        calibrator.collect(torch.randn(2**18, generator=torch.Generator().manual_seed(0)))
        time, _ = seconds(lambda calibrator=calibrator: calibrator.compute_amax("entropy"))
        rows.append((f"{TOOLKIT}, entropy, one quantizer, {bins} bins", f"{time:.3f} s"))
    return rows


def peak_memory(config: BertConfig, name: str) -> float:
    """Return this process's largest resident set, in MB, after one contender's collection (Linux)."""
    model = BertModel(config).eval()
    if name != FLOAT:
        qdqpatch.quantize(model)
    RUNS[name](model, inputs(config, *SHAPE))
    return largest_resident_set()


if __name__ == "__main__":
    main()
