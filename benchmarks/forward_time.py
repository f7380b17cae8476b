"""How long a forward pass of a fake-quantized BERT-base takes beside the float one, eagerly on the CPU.

    python benchmarks/forward_time.py

The contenders: the float model; the quantized one, calibrated; the same with its quantizers made instances
of pytorch-quantization's own TensorQuantizer, the state being the same. The latter two in both of the
toolkit's arithmetics, its own and PyTorch's native one (`TensorQuantizer.use_fb_fake_quant`). They run in
turn, and the first round does not count.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from common import BERT_BASE, Row, prepare, seconds, show, spread, surroundings
from pytorch_quantization.nn import TensorQuantizer as ToolkitQuantizer
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedModel

import qdqpatch
from qdqpatch.patching.apply import named_quantizers

FLOAT = "float"
OURS = "qdqpatch"
TOOLKIT = "pytorch-quantization"
ROUNDS = {(1, 128): 7, (8, 128): 5}


def main() -> None:
    """Measure BERT-base at both shapes and print a table for each."""
    prepare()
    models = contenders(BERT_BASE)
    for (batch, length), rounds in ROUNDS.items():
        rows = measure(models, batch, length, rounds)
        title = f"Forward pass: BERT-base, fp32, eager, {batch}x{length}, {rounds} rounds"
        show(title, ("", "median", "fastest", "to float"), rows)
    print(surroundings())


def contenders(config: BertConfig) -> dict[str, PreTrainedModel]:
    """Return a float model, its quantized copy, and a copy of that with the toolkit's quantizers."""
    torch.manual_seed(0)
    models = {FLOAT: BertModel(config).eval()}
    models[OURS] = qdqpatch.quantize(copy.deepcopy(models[FLOAT]))
    qdqpatch.calibrate(models[OURS], [inputs(config, 2, 32)])
    models[TOOLKIT] = copy.deepcopy(models[OURS])
    for _, quantizer in named_quantizers(models[TOOLKIT]):
        quantizer.__class__ = ToolkitQuantizer
    return models


def measure(models: Mapping[str, PreTrainedModel], batch: int, length: int, rounds: int) -> list[Row]:
    """Return a row for each contender: name, median and fastest time, ratio to float.

    Raises:
        RuntimeError: If the two kinds of quantizers give different outputs, so that their times mean
            nothing beside each other.
    """
    feed = inputs(models[FLOAT].config, batch, length)
    times: dict[str, list[float]] = {FLOAT: []}
    for _ in range(1 + rounds):
        times[FLOAT].append(forward(models[FLOAT], feed)[0])
        for native in (False, True):
            with arithmetic(native):
                ours, toolkit = (forward(models[name], feed) for name in (OURS, TOOLKIT))
            if not torch.equal(ours[1], toolkit[1]):
                raise RuntimeError(f"Outputs differ by up to {(ours[1] - toolkit[1]).abs().max()}.")
            for name, (taken, _) in ((OURS, ours), (TOOLKIT, toolkit)):
                times.setdefault(f"{name}, {'native' if native else 'toolkit'} arithmetic", []).append(taken)
    reference = statistics.median(times[FLOAT][1:])
    return [
        (name, *spread(taken[1:])[:2], f"{statistics.median(taken[1:]) / reference:.2f}")
        for name, taken in times.items()
    ]


def forward(model: PreTrainedModel, feed: Mapping[str, Tensor]) -> tuple[float, Tensor]:
    """Run the model without gradients; return the time and the last hidden states."""
    with torch.no_grad():
        taken, result = seconds(lambda: model(**feed))
    return taken, result.last_hidden_state


def inputs(config: BertConfig, batch: int, length: int) -> dict[str, Tensor]:
    """Return random tokens, none of them padding."""
    tokens = torch.randint(1, config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


@contextmanager
def arithmetic(native: bool) -> Iterator[None]:
    """Choose the arithmetic of every quantizer, and put back the one there was."""
    before = ToolkitQuantizer.use_fb_fake_quant
    ToolkitQuantizer.use_fb_fake_quant = native
    try:
        yield
    finally:
        ToolkitQuantizer.use_fb_fake_quant = before


if __name__ == "__main__":
    main()
