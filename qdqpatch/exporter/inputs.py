"""What a model is traced and checked with: its inputs, their dynamic axes, and batches of several shapes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from qdqpatch.data.lengths import config_limit
from qdqpatch.engines.shapes import Shape
from qdqpatch.errors import ExportError, one_line
from qdqpatch.patching.arguments import position_limit
from qdqpatch.spelling import counted

Batch = dict[str, Tensor]

TEXT = (
    "The bridge was closed for repairs, so the bus took the long way round the lake. Nobody had told the "
    "driver. How long did the detour last? About forty minutes, and half of the passengers fell asleep. "
    "I did not like the film at all: the plot was thin, the jokes were old, and the ending came too late. "
    "Her first novel, written in a rented room above a bakery, sold two thousand copies in its first year. "
)
"""What a model is compared on where there is a tokenizer."""

CHOICES = 3
"""In the batches for a multiple-choice head."""

COUNT_OF_REGIONS = 5
"""In the batches for a model that reads regions of images."""

COUNT_OF_PHRASES = 4
"""In the batches for a model that says which region a phrase is of."""

COUNT_OF_DECODED = 7
"""Tokens that a model which generates has written, in batches for any shape; in short ones fewer."""

LONGEST = 512
"""A model that takes longer sequences is compared on such as these."""

IMAGE = "pixel_values"
BOXES = "bbox"
REGIONS = "visual_embeds"

PHRASES = "region_to_phrase_position"
DECODED = "decoder_input_ids"

SEQUENCES = {
    "decoder_": "decoder_sequence",
    "encoder_": "encoder_sequence",
    "region_": "phrases",
    "visual_": "regions",
}
"""What the second axis of inputs is called, by the beginning of their names."""


@dataclass(frozen=True)
class Inputs:
    """Makes batches for a model: of what its own `forward` takes, as its config says how much of it there is.

    Attributes:
        model: An encoder of texts or images with any head.
        fixed: The only shape that the exported model takes; None for any.
    """

    model: PreTrainedModel
    fixed: Shape | None = None

    def axes(self) -> dict[str, dict[int, str]]:
        """Return the dynamic axes of every input, number and name."""
        if self.fixed is not None:
            return {}
        axes: dict[str, dict[int, str]] = {}
        for name in self.example():
            if name == IMAGE:  # the size of images is the model's
                axes[name] = {0: "images" if hasattr(self.model.config, "vision_config") else "batch"}
                continue
            sequence = next((SEQUENCES[first] for first in SEQUENCES if name.startswith(first)), "sequence")
            choices = {1: "choices", 2: sequence} if self._has_choices else {1: sequence}
            axes[name] = {0: "batch", **choices}
        return axes

    def example(self) -> Batch:
        """Return what to trace with: two of all, for a trace takes an axis of 1 for one that is always 1."""
        return self.batch(self.fixed or Shape(2, min(8, self.longest)))

    def batch(self, shape: Shape, seed: int = 0, words: Tensor | None = None, full: bool = True) -> Batch:
        """Return a batch whose rows are of different lengths, padded on the right; or one of images, or both.

        Every second row ends in a second segment, where the model tells segments.

        Args:
            shape: Of the batch.
            seed: For whatever is drawn.
            full: Whether the first row fills the batch; else none does.
            words: Tokens to take the rows from, one after the other; None for random ones.
        """
        generator = torch.Generator().manual_seed(seed)
        accepted = inspect.signature(self.model.forward).parameters
        if "input_ids" not in accepted:
            return {IMAGE: _images(self.model.config, shape.batch, generator)}
        config = getattr(self.model.config, "text_config", self.model.config)
        size = (shape.batch, CHOICES, shape.length) if self._has_choices else (shape.batch, shape.length)
        rows = size[0] if not self._has_choices else size[0] * CHOICES
        lengths = torch.randint(1 + shape.length // 2, shape.length + 1, (rows,), generator=generator)
        if full:
            lengths[0] = shape.length
        else:
            lengths = lengths.clamp(max=max(1, shape.length - 1))
        positions = torch.arange(shape.length)
        mask = (positions < lengths[:, None]).long()
        if words is None:
            ids = torch.randint(config.vocab_size, (rows, shape.length), generator=generator)
        else:
            ids = words[torch.arange(rows * shape.length) % len(words)].view(rows, shape.length)
        padding = getattr(config, "pad_token_id", None) or 0
        if self._reads_the_end:
            ids = ids.where(ids != config.eos_token_id, (config.eos_token_id + 1) % config.vocab_size)
            ids = ids.where(positions != lengths[:, None] - 1, config.eos_token_id)
        batch = {"input_ids": ids.where(mask.bool(), padding), "attention_mask": mask}
        if "token_type_ids" in accepted and getattr(config, "type_vocab_size", 0) > 1:
            batch["token_type_ids"] = (positions >= lengths[:, None] // 2).long() * mask
            batch["token_type_ids"][::2] = 0
        batch = {name: tensor.reshape(size) for name, tensor in batch.items()}
        if "token_type_ids" in accepted and hasattr(config, "type_vocab_sizes"):  # one for each column
            batch["token_type_ids"] = _columns(config.type_vocab_sizes, mask, generator)
        if hasattr(self.model.config, "vision_config"):  # any number of images, whatever that of texts
            batch[IMAGE] = _images(self.model.config, shape.batch + 1, generator)
        elif IMAGE in accepted and getattr(config, "visual_embed", False):
            batch[IMAGE] = _images(config, shape.batch, generator)
        if REGIONS in accepted:
            batch |= _regions(config.visual_embedding_dim, size[:-1], generator)
        if PHRASES in accepted:
            batch[PHRASES] = torch.randint(shape.length, (shape.batch, COUNT_OF_PHRASES), generator=generator)
        if self._takes_decoded:
            count = shape.length if self.fixed else min(COUNT_OF_DECODED, shape.length)
            batch[DECODED] = torch.randint(config.vocab_size, (shape.batch, count), generator=generator)
        if BOXES in accepted:
            batch[BOXES] = _boxes(config.max_2d_position_embeddings, size, generator)
        if getattr(config, "add_cross_attention", False):
            keys = shape.length + 1
            hidden = (shape.batch, keys, config.hidden_size)
            batch["encoder_hidden_states"] = torch.randn(hidden, generator=generator)
            batch["encoder_attention_mask"] = (torch.arange(keys) < 1 + lengths[:, None]).long()
        return batch

    def batches(self, tokenizer: Any = None) -> Iterator[Batch]:
        """Yield batches of several shapes: one row and more, padded, up to the longest sequence.

        Args:
            tokenizer: Makes the tokens from `TEXT`; None for random ones.
        """
        config = getattr(self.model.config, "text_config", self.model.config)
        words = None if tokenizer is None else _tokens(tokenizer, config.vocab_size)
        longest = min(self.longest, LONGEST)
        shapes = [
            Shape(1, min(8, longest)),
            Shape(2, min(17, longest)),
            Shape(3, min(48, longest)),
            Shape(1, longest),
        ]
        if self.fixed is not None:
            shapes = [self.fixed] * 3
        for seed, shape in enumerate(shapes):
            yield self.batch(shape, seed, words, full=self.fixed is None or seed == 0)

    def check(self) -> None:
        """Find out whether there are inputs for the model, and whether it can run the fixed shape.

        Raises:
            ExportError: If it takes neither texts nor images of a size that its config says; if the shape is
                longer than the model's positions, or empty.
        """
        vision = getattr(self.model.config, "vision_config", self.model.config)
        takes = inspect.signature(self.model.forward).parameters
        has_size = hasattr(vision, "image_size") or hasattr(vision, "input_size")
        if "input_ids" not in takes and not (IMAGE in takes and has_size):
            what = (
                f"{self.model.main_input_name}{', of a size that its config does not say' * (IMAGE in takes)}"
            )
            raise ExportError(
                "There are examples to trace models of texts (input_ids) and of images (pixel_values) with, "
                f"and {type(self.model).__name__} takes {what}. In torch its checkpoint runs as it is."
            )
        longest = self.longest
        if self.fixed is not None and self.fixed.length > longest:
            raise ExportError(
                f"The model has {counted(longest, 'position')}; sequences of {self.fixed.length} do not fit."
            )
        if self.fixed is not None and min(self.fixed.batch, self.fixed.length) < 1:
            raise ExportError("A batch and a sequence have at least 1.")
        try:
            self.example()
        except AttributeError as error:
            raise ExportError(
                f"{type(self.model).__name__} takes what no example to trace it with can be made of "
                f"({one_line(error)}). In torch its checkpoint runs as it is."
            ) from error

    @property
    def longest(self) -> int:
        """The longest sequence that the model takes."""
        return min(config_limit(self.model.config), position_limit(self.model))

    @property
    def _reads_the_end(self) -> bool:
        """Whether the head looks for the token that ends a text, of which all rows need as many."""
        name = type(self.model).__name__
        return self.model.config.is_encoder_decoder and name.endswith("ForSequenceClassification")

    @property
    def _takes_decoded(self) -> bool:
        """Whether the model is told what it has written; others make that of what they read."""
        name = type(self.model).__name__
        return self.model.config.is_encoder_decoder and name.endswith(("ForConditionalGeneration", "T5Model"))

    @property
    def _has_choices(self) -> bool:
        return type(self.model).__name__.endswith("ForMultipleChoice")


def _images(config: Any, count: int, generator: torch.Generator) -> Tensor:
    """Draw images of the size that a config says, shape `(count, channels, height, width)`."""
    config = getattr(config, "vision_config", config)
    size = config.image_size if hasattr(config, "image_size") else config.input_size
    channels = getattr(config, "num_channels", 3)
    return torch.randn((count, channels, *_pair(size)), generator=generator)


def _columns(sizes: Sequence[int], mask: Tensor, generator: torch.Generator) -> Tensor:
    """Draw where tokens stand in a table, and whether they do, shape `(*mask.shape, len(sizes))`."""
    columns = [torch.randint(min(3, size), mask.shape, generator=generator) for size in sizes]
    return torch.stack(columns, -1) * mask[..., None]


def _regions(width: int, rows: tuple[int, ...], generator: torch.Generator) -> Batch:
    """Draw features of regions of images: so many for each row, not all of them there."""
    size = (*rows, COUNT_OF_REGIONS)
    mask = torch.ones(size, dtype=torch.long)
    mask[..., -1] = 0
    return {
        REGIONS: torch.randn((*size, width), generator=generator),
        "visual_attention_mask": mask,
        "visual_token_type_ids": torch.ones(size, dtype=torch.long),
    }


def _pair(size: int | Sequence[int]) -> Sequence[int]:
    """Return height and width of an image that the config may give as one number."""
    return (size, size) if isinstance(size, int) else size


def _boxes(limit: int, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw where words stand on a page: left, top, right, bottom, shape `(*size, 4)`."""
    corners = torch.randint(limit // 2, (*size, 2), generator=generator)
    sides = torch.randint(limit - limit // 2, (*size, 2), generator=generator)
    return torch.cat([corners, corners + sides], -1)


def _tokens(tokenizer: Any, vocabulary: int) -> Tensor:
    tokens = torch.tensor(tokenizer(TEXT)["input_ids"])
    return tokens[tokens < vocabulary]
