"""Whether a folder's exported files still compute on this machine what they did where they were written.

`qdqpatch.json` keeps a few texts with what the model made of them. Another processor, or another version of
an engine, must make the same of them but for rounding.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdqpatch.checkpoint.tokenizer import load_tokenizer
from qdqpatch.engines.exactness import Exactness, exactness
from qdqpatch.engines.homes import home_of
from qdqpatch.engines.sessions import ENGINES, ONNX_RUNTIME
from qdqpatch.errors import CheckpointError, EngineError
from qdqpatch.output.manifest import MANIFEST, foreign, read_sections
from qdqpatch.packages import pip_install

Floats = NDArray[np.float64]

LEAST_COSINE = 0.995
"""Of an embedding with the recorded one. Levels that round the other way cost MiniLM at most 0.002; integer
sums that saturate, as U8S8 does without VNNI, ten times as much."""

LEAST_IN_BFLOAT16 = 0.97
"""The same where the engine computes in bf16 what the file has in fp32, so that many more levels round the
other way: MiniLM is at 0.989, and as near to the float model as in fp32. Processors with bf16 have VNNI too,
where no sum saturates."""

MOST_APART = 0.1
"""Of logits: how far they may be from the recorded ones, as a share of those."""


@dataclass(frozen=True)
class Verified:
    """What a file does here.

    Attributes:
        file: The file, by its path in the folder.
        engine: What ran it, with its version.
        measure: What `values` are: `cosine`, or `apart` where outputs are logits.
        values: One for each text.
        exactness: Whether texts are the same alone and in a batch; None for a graph of one shape.
        changed: Whether the file is another one than what was written.
        note: What else there is to know of how the engine computes here; None for nothing.
        precision: What it computes in where the file says fp32.
        saturates: Whether sums of the file's products may be too large for this processor's kernels, which
            few texts need not show.
    """

    file: str
    engine: str
    measure: str
    values: tuple[float, ...]
    exactness: Exactness | None
    changed: bool
    note: str | None = None
    precision: str = "float32"
    saturates: bool = False

    @property
    def worst(self) -> float:
        """The value of the text that is furthest off."""
        return float((np.min if self.measure == "cosine" else np.max)(self.values))  # NaN, if one is

    @property
    def drifts(self) -> bool:
        """Whether it computes something else than it did."""
        least = LEAST_IN_BFLOAT16 if self.precision == "bfloat16" else LEAST_COSINE
        beyond = self.worst < least if self.measure == "cosine" else self.worst > MOST_APART
        return beyond or self.changed or self.saturates or not np.isfinite(self.worst)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {**dataclasses.asdict(self), "worst": self.worst, "drifts": self.drifts}


def verify(folder: Path) -> list[Verified]:
    """Run the canary texts of a folder in the engines that its files are for.

    Args:
        folder: What was written; the folder `onnx` or `openvino` in it, or a file there, stands for it. Files
            that were taken away, and those whose engine is not installed, are left out.

    Raises:
        CheckpointError: If there is no such folder, no record in it, no file of those that the record names,
            or no canary texts in it.
        EngineError: If none of the engines is installed, or one fails.
    """
    folder = home_of(folder) if folder.exists() else folder
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder {folder}.")
    record = read_sections(folder)
    exports: Mapping[str, Any] = record.get("exports") or {}
    if not exports:
        raise CheckpointError(
            f"{folder} has no exported file that its {MANIFEST} tells of: write one with qdqpatch export."
        )
    there = {file: entry for file, entry in exports.items() if (folder / file).is_file()}
    if not there:
        raise CheckpointError(
            f"{folder} has none of the files that its {MANIFEST} tells of: {', '.join(exports)}."
        )
    canaries = record.get("canaries")
    if not canaries:
        raise CheckpointError(
            f"{folder} has no canary texts in its {MANIFEST}: they are written with embedders and "
            "classifiers that have a tokenizer and take any shape. Export it once more to get them."
        )
    wanted = {file: ENGINES.get(entry["target"], ONNX_RUNTIME) for file, entry in there.items()}
    installed = {file: engine for file, engine in wanted.items() if engine.version is not None}
    if not installed:
        packages = pip_install(*dict.fromkeys(engine.package for engine in wanted.values()))
        raise EngineError(f"Nothing that runs the files of {folder} is installed: {packages}")
    tokenizer: Any = load_tokenizer(str(folder))
    changed = {path.removesuffix(" (changed since)") for path in foreign(folder)}
    encoded = tokenizer([canary["text"] for canary in canaries], padding=True, return_tensors="np")
    rows = tokenizer([canary["text"] for canary in canaries])["input_ids"]
    expected = np.array([canary["vector"] for canary in canaries], dtype=np.float64)
    output = canaries[0].get("output", "sentence_embedding")
    found = []
    for file, engine in installed.items():
        session = engine.load(folder / file)
        given = {
            value.name: encoded[value.name].astype(value.dtype)
            for value in session.inputs
            if value.name in encoded
        }
        vectors = session.run(given)
        if output not in vectors:
            raise EngineError(f"{folder / file} gives no {output}, which {MANIFEST} has canaries of.")
        measure = "cosine" if output == "sentence_embedding" else "apart"
        found.append(
            Verified(
                file,
                f"{engine.name} {engine.version}",
                measure,
                _compared(vectors[output].astype(np.float64), expected, measure),
                exactness(
                    functools.partial(engine.load, folder / file),
                    rows,
                    tokenizer.pad_token_id or 0,
                ),
                file in changed,
                session.note,
                session.precision,
                session.saturated,
            )
        )
    return found


def _compared(found: Floats, expected: Floats, measure: str) -> tuple[float, ...]:
    """Return the cosine of each row, or its distance as a share of the largest expected row's length."""
    lengths = np.linalg.norm(expected, axis=1)
    if measure == "cosine":
        values = (found * expected).sum(axis=1) / (np.linalg.norm(found, axis=1) * lengths)
    else:
        values = np.linalg.norm(found - expected, axis=1) / max(float(lengths.max()), 1e-12)
    return tuple(float(value) for value in values)
