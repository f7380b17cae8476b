"""An embedder side by side: what each tool makes of one model, how near it stays, and how fast it runs.

    python benchmarks/embedder_peers.py [FOLDER] [--questions 200] [--rounds 7] [--threads 1] [--model PATH]
        [--only TOOL ...]

The model and the texts are those of `benchmarks/embedders.py` (`--texts sentences`): all tools calibrate with
the same 128. Beside ours are sentence-transformers' dynamic int8, for which QDQPATCH_SERVERS_PYTHON names the
Python of an environment with `tests/servers.txt`; the same of torch's own export, and of our float file; and
what `transformers.exporters` makes with ONNX Runtime's and with NNCF's quantizers, for which `make
.peers/installed` brings NNCF. Each file is run by its engine, in one process and in turns, with free shapes
and any padding, as a server runs it. "Alone" is the lowest cosine between what a text gets in a batch of 16
and what it gets alone.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import embedders
import numpy as np
import numpy.typing as npt
import peers
import torch
from common import Row, in_turn, prepare, quiet, seconds, show, surroundings
from embedder_tools import TOOLS, Material, Tool
from torch import Tensor
from transformers import AutoTokenizer

from qdqpatch.engines.sessions import ENGINES, Session

SHAPES = ((1, 16), (1, 128), (16, 32), (16, 256))
ALONE = 32
"""So many questions are embedded alone too."""

QUALITY = (*embedders.COLUMNS, "alone", "integer", "MB")


def main() -> None:
    """Print a table of quality and one of speed."""
    parser = embedders.parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    names = [tool.name for tool in TOOLS]
    parser.add_argument("--only", nargs="+", metavar="TOOL", choices=names, default=names)
    arguments = parser.parse_args()
    if (found := embedders.find(arguments)) is None:
        return
    name, checkpoint, data = found
    prepare()
    tools = [tool for tool in TOOLS if tool.name in arguments.only]
    numbers = (arguments.questions, arguments.rounds, arguments.threads)
    quality, speed = measure(checkpoint, data, *numbers, tools)
    show(f"{name}, {arguments.questions} contexts and questions, cosine to float", QUALITY, quality)
    columns = ("milliseconds", *(f"{batch}x{length}" for batch, length in SHAPES))
    show(f"{name}, times as fast as float in the same engine", columns, speed)
    print(surroundings(), *(f"{engine.name} {engine.version}" for engine in ENGINES.values()), sep=", ")


def measure(
    checkpoint: str,
    data: Path,
    questions: int,
    rounds: int,
    threads: int,
    tools: Sequence[Tool] = TOOLS,
    shapes: Sequence[tuple[int, int]] = SHAPES,
) -> tuple[list[Row], list[Row]]:
    """Return the rows of both tables; the first tool of an engine is the float model in it."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    contexts, asked = embedders.squad(data / "squad" / "dev.json.gz", questions)
    embedder = embedders.Embedder(tokenizer, contexts, asked)
    batches = embedders.calibration(tokenizer, data, "sentences")
    embedder.row("float", embedders.hidden_states(embedders.load(checkpoint)))
    quality: list[Row] = []
    sessions: dict[str, Session] = {}
    tools = installed(tools)
    with tempfile.TemporaryDirectory() as folder:
        material = Material(checkpoint, batches, Path(folder))
        for tool in tools:
            with quiet():
                duration, file = seconds(lambda: tool.make(material))  # noqa: B023
            sessions[tool.name] = session = ENGINES[tool.target.name].load(file, threads)
            row = embedder.row(tool.name, encoder(session), duration)
            kernels = tool.target.kernels(file) if tool.target.kernels else []
            integer = f"{sum(kernel.integer for kernel in kernels)} of {len(kernels)}"
            alone = together_and_alone(tokenizer, encoder(session), asked[:ALONE])
            quality.append((*row, f"{alone:.4f}", integer, f"{size(file) / 1e6:.1f}"))
            print(quality[-1], file=sys.stderr, flush=True)
        feeds = {shape: feed(len(tokenizer), *shape) for shape in shapes}
        runs = {
            shape: {name: functools.partial(session.run, feeds[shape]) for name, session in sessions.items()}
            for shape in shapes
        }
        times = {shape: in_turn(runs[shape], rounds) for shape in shapes}
    floats: dict[str, str] = {}
    speed = []
    for tool in tools:
        base = floats.setdefault(tool.target.name, tool.name)
        taken = [(times[shape][tool.name], times[shape][base]) for shape in shapes]
        speed.append((tool.name, *(f"{1000 * own:.1f} ({before / own:.2f}x)" for own, before in taken)))
    return quality, speed


def installed(tools: Sequence[Tool]) -> list[Tool]:
    """Return the tools whose modules are there, and say which are not."""
    if peers.FOLDER.is_dir() and str(peers.FOLDER) not in sys.path:
        sys.path.append(str(peers.FOLDER))
    found = []
    for tool in tools:
        if tool.needs not in os.environ and importlib.util.find_spec(tool.needs) is None:
            print(f"{tool.name} is left out: {tool.needs} is not there; see this file's beginning")
        else:
            found.append(tool)
    return found


def encoder(session: Session) -> embedders.Encode:
    """Return what runs a file."""

    def encode(inputs: dict[str, Tensor]) -> Tensor:
        outputs = session.run_tensors(inputs)
        return torch.from_numpy(np.asarray(outputs.get("last_hidden_state", next(iter(outputs.values())))))

    return encode


def together_and_alone(tokenizer: Any, encode: embedders.Encode, texts: Sequence[str]) -> float:
    """Return the lowest cosine between what texts get in batches and what they get alone."""
    lowest = 1.0
    for start in range(0, len(texts), embedders.BATCH):
        batch = texts[start : start + embedders.BATCH]
        together = vectors(tokenizer, encode, batch)
        alone = torch.cat([vectors(tokenizer, encode, [text]) for text in batch])
        lowest = min(lowest, float((together * alone).sum(-1).min()))
    return lowest


def vectors(tokenizer: Any, encode: embedders.Encode, texts: Sequence[str]) -> Tensor:
    """Return the normalized means of the last hidden states of one batch, shape `(texts, hidden)`."""
    inputs = embedders.tokenized(tokenizer, texts, embedders.LENGTH)
    mask = inputs["attention_mask"][..., None]
    return torch.nn.functional.normalize((encode(inputs) * mask).sum(1) / mask.sum(1), dim=-1)


def size(file: Path) -> int:
    """Return the bytes of a file, and of the weights beside it."""
    beside = [file.with_suffix(".bin")] if file.suffix == ".xml" else file.parent.glob(f"{file.name}*data")
    return sum(one.stat().st_size for one in (file, *beside))


def feed(vocabulary: int, batch: int, length: int) -> dict[str, npt.NDArray[np.int64]]:
    """Return inputs without padding."""
    ids = np.random.default_rng(0).integers(0, vocabulary, (batch, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


if __name__ == "__main__":
    main()
