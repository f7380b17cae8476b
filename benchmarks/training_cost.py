"""What a training step of a quantized BERT-base costs beside one of the float model, on the CPU.

    python benchmarks/training_cost.py

A step is forward pass, backward pass and AdamW. The contenders: the float model; the quantized one with
frozen ranges, with learned ones, and with the float model as its teacher; and pytorch-quantization's own
quantizers. They run in turn, and the first round does not count. Memory: the largest resident set of a
process that does nothing but build one contender and take two steps.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

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
from pytorch_quantization.nn import TensorQuantizer as ToolkitQuantizer
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

import qdqpatch
from qdqpatch.patching.apply import named_quantizers
from qdqpatch.training import Distillation, distillation_loss, parameter_groups, train_ranges

FLOAT = "float"
SHAPE = (4, 128)
ROUNDS = 3

Step = Callable[[], None]


def main() -> None:
    """Measure BERT-base and print two tables."""
    prepare()
    if len(sys.argv) > 1:  # a process whose memory is measured
        print(peak_memory(BERT_BASE, sys.argv[1]))
        return
    rows = measure({name: make(BERT_BASE) for name, make in CONTENDERS.items()}, ROUNDS)
    title = f"A training step: BERT-base, fp32, {SHAPE[0]}x{SHAPE[1]}, {ROUNDS} rounds"
    show(title, ("", "median", "fastest", "to float"), rows)
    memory = {name: run_alone(__file__, name) for name in CONTENDERS}
    rows = [(name, f"{taken:.0f} MB", f"{taken / memory[FLOAT]:.2f}") for name, taken in memory.items()]
    show("Largest resident set", ("", "memory", "to float"), rows)
    print(surroundings())


def floating(config: BertConfig) -> PreTrainedModel:
    """Return the float model."""
    torch.manual_seed(0)
    return BertForSequenceClassification(config)


def calibrated(config: BertConfig) -> PreTrainedModel:
    """Return the quantized model with ranges."""
    model = qdqpatch.quantize(floating(config))
    return qdqpatch.calibrate(model.eval(), [batch(config)], method="max")


def float_step(config: BertConfig) -> Step:
    """Return a step of the float model."""
    return step_of(floating(config), config)


def frozen_step(config: BertConfig) -> Step:
    """Return a step with frozen ranges."""
    return step_of(calibrated(config), config)


def learned_step(config: BertConfig) -> Step:
    """Return a step with learned ranges of activations, and those of weights following."""
    return step_of(train_ranges(calibrated(config)), config)


def distilled_step(config: BertConfig) -> Step:
    """Return a step with learned ranges and a teacher instead of labels."""
    return step_of(train_ranges(calibrated(config)), config, floating(config).eval())


def toolkit_step(config: BertConfig) -> Step:
    """Return a step with pytorch-quantization's own quantizers, ranges frozen."""
    model = calibrated(config)
    for _, quantizer in named_quantizers(model):
        quantizer.__class__ = ToolkitQuantizer
    return step_of(model, config)


CONTENDERS: dict[str, Callable[[BertConfig], Step]] = {
    FLOAT: float_step,
    "qdqpatch, frozen ranges": frozen_step,
    "qdqpatch, learned ranges": learned_step,
    "qdqpatch, learned ranges, distilled": distilled_step,
    "pytorch-quantization, frozen ranges": toolkit_step,
}


def step_of(model: PreTrainedModel, config: BertConfig, teacher: PreTrainedModel | None = None) -> Step:
    """Return a call that trains a model for one step."""
    model.train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-5))
    inputs = batch(config)
    labels = torch.arange(SHAPE[0]) % config.num_labels

    def step() -> None:
        optimizer.zero_grad()
        if teacher is None:
            loss = model(**inputs, labels=labels).loss
        else:
            with torch.no_grad():
                theirs = teacher(**inputs)
            loss = distillation_loss(model(**inputs), theirs, inputs, Distillation())
        loss.backward()
        optimizer.step()

    return step


def batch(config: BertConfig) -> dict[str, torch.Tensor]:
    """Return random tokens, none of them padding."""
    tokens = torch.randint(1, config.vocab_size, SHAPE, generator=torch.Generator().manual_seed(0))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def measure(steps: dict[str, Step], rounds: int) -> list[Row]:
    """Return a row for each contender: name, median and fastest time, ratio to float."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(1 + rounds):
        for name, step in steps.items():
            times[name].append(seconds(step)[0])
    reference = statistics.median(times[FLOAT][1:])
    return [
        (name, *spread(taken[1:])[:2], f"{statistics.median(taken[1:]) / reference:.2f}")
        for name, taken in times.items()
    ]


def peak_memory(config: BertConfig, name: str) -> float:
    """Return this process's largest resident set, in MB, after one contender's steps (Linux)."""
    step = CONTENDERS[name](config)
    step()
    step()
    return largest_resident_set()


if __name__ == "__main__":
    main()
