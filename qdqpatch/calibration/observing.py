"""Run a float model on batches, with observers in the place of its quantizers' calibrators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch import distributed
from qdqpatch.calibration.batching import as_tensors
from qdqpatch.calibration.counting import BatchCounts
from qdqpatch.calibration.histogram import Histogram
from qdqpatch.calibration.padding import Padding
from qdqpatch.errors import CalibrationError
from qdqpatch.nn.fake_quantize import absolute_max
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.apply import named_quantizers
from qdqpatch.patching.arguments import run
from qdqpatch.patching.chunks import unchunked
from qdqpatch.spelling import counted, spelled

HELD_BACK = 8
"""Of so many batches one is held back, the second first, where ranges are to be compared on it."""

COMPARED_TOKENS = 768
"""Of a batch that is held back, the first rows are used up to so many positions. More take time, and were not
worth it on SQuAD: the divergence of the logits was 0.077 with an eighth of the rows, and 0.073 with all."""


class Observer:
    """Counts what one quantizer sees; a calibrator in the toolkit's sense.

    Args:
        name: The quantizer's name in its module.
        quantizer: The quantizer.
        device: Where to count.

    Attributes:
        ends: Of a quantizer that is not symmetric, how far below and above 0 its values reach, fp32, `(2,)`.
    """

    def __init__(self, name: str, quantizer: TensorQuantizer, device: torch.device) -> None:
        self.name = name
        self.axis = quantizer.axis
        self.histogram = Histogram.empty(device)
        self.channel_amax: Tensor | None = None
        self.ends = None if quantizer.is_symmetric else torch.zeros(2, device=device)
        self.batch = BatchCounts(None)
        self.was_reached = False

    def collect(self, inputs: Tensor) -> None:
        """Take a tensor into account."""
        self.was_reached = True
        if self.axis is None:
            self.batch.count(inputs, self.name, self.histogram)
            if self.ends is not None:
                low, high = torch.aminmax(self.batch.shown(inputs, self.name).detach())
                self.ends = torch.maximum(self.ends, torch.stack([-low, high]).float())
            return
        amax = absolute_max(self.batch.shown(inputs, self.name), self.axis)
        self.channel_amax = amax if self.channel_amax is None else torch.maximum(self.channel_amax, amax)


@contextmanager
def observing(model: PreTrainedModel, observers: Mapping[str, Observer]) -> Iterator[None]:
    """Let quantizers collect instead of quantize, and put everything back however it ends."""
    modes = {module: module.training for module in model.modules()}
    everything = dict(named_quantizers(model))
    before = {
        path: (quantizer._calibrator, quantizer._if_calib, quantizer._if_quant)
        for path, quantizer in everything.items()
    }
    model.eval()
    for path, quantizer in everything.items():
        quantizer._if_quant, quantizer._if_calib = False, path in observers
        if path in observers:
            quantizer._calibrator = observers[path]
    try:
        with unchunked(model):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for path, quantizer in everything.items():
            quantizer._calibrator, quantizer._if_calib, quantizer._if_quant = before[path]


def feed_batches(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    observers: Mapping[str, Observer],
    padding_aware: bool,
    held_back: list[Mapping[str, Any]] | None = None,
) -> int:
    """Run the batches, but for those to hold back, and return how many there were."""
    count = 0
    for count, batch in enumerate(as_tensors(batches, model), start=1):
        if held_back is not None and count % HELD_BACK == 2:
            held_back.append(first_rows(batch, COMPARED_TOKENS))
            continue
        counts = BatchCounts(Padding(batch) if padding_aware else None)
        for observer in observers.values():
            observer.batch = counts
        run(model, on_device(batch, model.device), f"batch {count}")
        counts.finish()
    if held_back is not None and count == 1:
        held_back.append(first_rows(batch, COMPARED_TOKENS))
    return count


def feed_watched(
    model: PreTrainedModel,
    modules: Mapping[str, nn.Module],
    observers: Mapping[str, Observer],
    batches: Iterable[Mapping[str, Any]],
    padding_aware: bool,
    inputs: bool = False,
    held_back: list[Mapping[str, Any]] | None = None,
) -> int:
    """Run the float model on the batches, and show each observer what its module computes.

    Args:
        model: A quantized model; it is left as it was.
        modules: What to look at, by path.
        observers: Who looks, by the same paths.
        batches: Keyword arguments for the model.
        padding_aware: Whether observers are told which positions the attention mask hides.
        inputs: Whether they are shown what the modules read, not what they return.
        held_back: Gets batches that are not run, as in `feed_batches`; None to run all.

    Returns:
        How many batches there were in this process; it fails if another one does.
    """
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(observing(model, {}))
        for path, module in modules.items():

            def show(_: nn.Module, given: Any, output: Tensor, observer: Observer = observers[path]) -> None:
                observer.collect(given[0] if inputs else output)

            stack.callback(module.register_forward_hook(show).remove)
        return distributed.together(
            lambda: feed_batches(model, batches, observers, padding_aware, held_back), model.device
        )


def first_rows(batch: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """Return the first rows of a batch, one at least, that have no more positions than `tokens` together.

    Args:
        batch: Keyword arguments for a model; what has as many rows as its tokens is cut to as many.
        tokens: Positions, padding included.
    """
    ids, embeddings = batch.get("input_ids"), batch.get("inputs_embeds")
    if isinstance(embeddings, Tensor) and ids is None:
        ids = embeddings[..., 0]
    if not isinstance(ids, Tensor) or not ids.numel():
        return dict(batch)
    rows = max(1, tokens // ids.shape[1:].numel())
    return {
        name: tensor[:rows] if isinstance(tensor, Tensor) and tensor.shape[:1] == ids.shape[:1] else tensor
        for name, tensor in batch.items()
    }


def on_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the batch with its tensors on the device."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def no_batch() -> CalibrationError:
    """Return the error that there was nothing to run."""
    return CalibrationError("There was no calibration batch. An iterator can be used only once.")


def nothing_seen(path: str, was_reached: bool, batches: int) -> CalibrationError:
    """Return the error that says why what stands at the path saw no data in so many batches."""
    if not batches:
        return no_batch()
    if was_reached:
        return CalibrationError(
            f"All that {path} saw is padding: the attention mask hides every position. Check "
            f"{spelled('the batches, or pass padding_aware=False', 'the texts')}."
        )
    return CalibrationError(
        f"{path} saw no tensor in {counted(batches, 'batch', 'batches')}: their inputs do not reach it. Add "
        "the inputs it needs (encoder_hidden_states for cross-attention, global_attention_mask for "
        f"Longformer, entity_ids for LUKE), or turn it off with {spelled('an override', '--override')}."
    )
