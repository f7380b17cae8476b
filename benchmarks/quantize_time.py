"""How long quantizing a BERT-base takes beside loading it, and that it copies no weight.

    python benchmarks/quantize_time.py

The contenders run in turn in one process, each round on a newly loaded model; the first round warms the
caches and does not count.
"""

from __future__ import annotations

import gc
import tempfile
import tracemalloc
from collections.abc import Iterator
from typing import Any

from common import BERT_BASE, Row, prepare, seconds, show, spread, surroundings
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import BertModel

import qdqpatch
from qdqpatch import QDQConfig

LOAD = "from_pretrained, float"
QUANTIZE = "qdqpatch.quantize"
DEQUANTIZE = "qdqpatch.dequantize"
LOAD_QUANTIZED = "from_pretrained, quantization_config=QDQConfig()"


def main() -> None:
    """Measure BERT-base and print the tables."""
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        BertModel(BERT_BASE).save_pretrained(folder)
        times = measure_time(folder, rounds=9)
        memory = measure_memory(folder)
    show("Time: BERT-base, fp32, 9 rounds", ("", "median", "fastest", "slowest"), times)
    show("Memory: qdqpatch.quantize", ("", ""), memory)
    print(surroundings())


def measure_time(folder: str, rounds: int) -> list[Row]:
    """Return a row for each contender: its name, then median, fastest and slowest time."""
    times: dict[str, list[float]] = {name: [] for name in (LOAD, QUANTIZE, DEQUANTIZE, LOAD_QUANTIZED)}
    for _ in range(1 + rounds):
        gc.collect()
        taken, model = seconds(lambda: BertModel.from_pretrained(folder))
        times[LOAD].append(taken)
        times[QUANTIZE].append(seconds(lambda model=model: qdqpatch.quantize(model))[0])
        times[DEQUANTIZE].append(seconds(lambda model=model: qdqpatch.dequantize(model))[0])
        del model
        gc.collect()
        quantized = seconds(lambda: BertModel.from_pretrained(folder, quantization_config=QDQConfig()))
        times[LOAD_QUANTIZED].append(quantized[0])
        del quantized
    return [(name, *spread(taken[1:])) for name, taken in times.items()]


def measure_memory(folder: str) -> list[Row]:
    """Return a row for each figure about what quantizing allocates."""
    model = BertModel.from_pretrained(folder)
    before = dict(model.named_parameters())
    addresses = {name: parameter.data_ptr() for name, parameter in before.items()}
    tensors = {id(tensor) for tensor in reachable(model)}
    with AllocatedBytes() as allocated:
        qdqpatch.quantize(model)
    after = dict(model.named_parameters())
    kept = sum(
        after.get(name) is parameter and after[name].data_ptr() == addresses[name]
        for name, parameter in before.items()
    )
    added = [tensor for tensor in reachable(model) if id(tensor) not in tensors]

    other = BertModel.from_pretrained(folder)
    tracemalloc.start()
    qdqpatch.quantize(other)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return [
        ("weights of the model", megabytes(sum(size(parameter) for parameter in before.values()))),
        ("same Parameter at the same address after", f"{kept} of {len(before)}"),
        ("Parameters added", str(len(after.keys() - before.keys()))),
        ("tensors the model holds more", megabytes(sum(size(tensor) for tensor in added))),
        ("tensors allocated meanwhile", megabytes(allocated.total)),
        ("Python objects, at their peak", megabytes(peak)),
    ]


class AllocatedBytes(TorchDispatchMode):
    """Adds up the memory of every tensor that an operation made and did not take over from its inputs.

    Attributes:
        total: Bytes so far, freed ones included.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count."""
        result = func(*args, **(kwargs or {}))
        given = {storage(leaf) for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)}
        made = {storage(leaf): size(leaf) for leaf in tree_iter(result) if isinstance(leaf, Tensor)}
        self.total += sum(bytes_ for key, bytes_ in made.items() if key not in given)
        return result


def reachable(model: nn.Module) -> Iterator[Tensor]:
    """Yield every tensor that a module has as parameter, buffer or plain attribute."""
    for module in model.modules():
        yield from module.parameters(recurse=False)
        yield from module.buffers(recurse=False)
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


def storage(tensor: Tensor) -> int:
    """Return what two tensors share if one is a view of the other."""
    return tensor.untyped_storage()._cdata


def size(tensor: Tensor) -> int:
    """Return the bytes of the memory behind a tensor."""
    return tensor.untyped_storage().nbytes()


def megabytes(number: int) -> str:
    """Write a number of bytes as megabytes; an exact 0 as `0`."""
    return f"{number / 1e6:.1f} MB" if number else "0"


if __name__ == "__main__":
    main()
