"""What can be asked of an export, beside which model, for which engine and where to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from qdqpatch.choices import Cpu


@dataclass(frozen=True)
class ExportOptions:
    """The arguments of `qdqpatch.export` by their names, where each is explained."""

    shape: tuple[int, int] | None = None
    float_weights: bool = False
    cpu: Cpu | None = None
    vnni: bool | None = None
    as_float: bool = False
    int8_embeddings: bool = False
    dtype: str | None = None
    int32_inputs: bool = False
    float32_outputs: bool = False
    opset: int | None = None
    check: bool = True
    batches: Iterable[dict[str, Tensor]] | None = None
    tokenizer: Any = None
    source: str | Path | None = None
    triton: bool = False
    build: Sequence[str] = ()
    progress: Callable[[str], None] | None = None

    def say(self, text: str) -> None:
        """Tell who wants to know what begins."""
        if self.progress is not None:
            self.progress(text)


DEFAULTS = ExportOptions()
"""What is done where nothing is asked."""
