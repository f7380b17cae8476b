"""Write which model types there are rules for: `python docs/models.py` writes models.md.

The model types are those of the code; what is quantized in a layer and what stays float is what the tests
hold them to, in their tables of sites, of audits and of other types.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from qdqpatch.rules.architectures import ARCHITECTURES

DOCS = Path(__file__).parent
PAGE = DOCS / "models.md"
TESTS = DOCS.parent / "tests"
LEVELS = TESTS / "exporter" / "levels.json"
OLDEST = "5.0.0"
WIDTH = 110
LAYERS = 2
"""So many layers the tables' models have; those of ALBERT are one and the same."""

KINDS = {"linear": ("linear",), "product": ("x",), "add": ("add",)}

TEXT = """# Models

There are rules for {count} model types (`config.model_type`), with every task head that transformers has
for them. This page is written by `python docs/models.py` from `qdqpatch/rules/architectures.py` and the
tables of the tests.

**In a layer** says what is quantized: Linears, products of two tensors, and residual adds; of a model with
several kinds of layers, those of all kinds together. **Float** is what the audit of a base model finds that
no quantizer feeds; the pooler and the head are quantized if the configuration says so. Of all of them the
tests see that the sites are these, that the calibrated model is close to the float one, that it is saved
and loaded bit for bit, that a training step trains it, and that it can be dequantized. **Export** is `full`
where files for any batch and length were written for ONNX Runtime, OpenVINO and TensorRT (in fp16), run, and
compared with the model, and the first two engines computed all products of the layers with integer kernels;
what nothing reads is in no file. Of many types it is a model with a task head that is exported, each kind of
head once. (The tests leave out a few types that are exported like another one, unless
`QDQPATCH_LEVELS=all` is set.) `open` is what no test has exported.

Files take what the model takes: LayoutLM, LayoutLMv3 and LiLT the boxes of the words (and LayoutLMv3 the
image of the page, where its configuration says so), TAPAS the place of a word in its table, VisualBERT any
number of regions, and CLIP and SigLIP any number of images beside any number of texts. The size of images is
that of the configuration. How fast files of base size are, and what making them takes, is under
[performance](performance.md).

Models of images are calibrated from a folder (`qdqpatch convert CKPT OUT --calib images/`) and evaluated on a
folder with a subfolder for each class, or on a table of paths and labels (`qdqpatch eval CKPT OUT --data
images/`); `qdqpatch train`, `qdqpatch sensitivity` and `qdqpatch optimize` take such folders too,
and `qdqpatch bench` gives them random ones. This needs Pillow: `pip install "qdqpatch[images]"`.

{oldest}

A model type that is not here is quantized by [what its structure shows](adding-an-architecture.md), with a
warning; see [below](#beyond-the-table).

| model type | in a layer | float | quantize, save, train | export |
| --- | --- | --- | --- | --- |
{rows}

## Beyond the table

These types have no table, and the tests hold what their structure shows of them. Small models of all of them
with random weights were also quantized, calibrated, compared with the float model, audited where they can be
traced, saved, loaded and trained for a step; that is not tested with every release. What of yours is float is
shown by `qdqpatch.audit(model, batch)`, and `export` refuses in one line what no file can be made of: models
of sounds, and such as branch on values.

{whole}

Of {partial_count} others the plan names what stays float in the layers:

| model type | float |
| --- | --- |
{partial}

{refused}

A checkpoint that brings the code of its model along (`auto_map` in its `config.json`) is of such a type too.
Commands run that code with `--trust-remote-code` alone, and write it beside what they save.
"""


def write() -> str:
    """Return the page."""
    sites = _read(TESTS / "rules" / "sites.json")["present"]
    audits = _read(TESTS / "patching" / "audits.json")
    levels = _read(LEVELS)
    rows = [_row(name, sites.get(name), audits.get(name), levels.get(name)) for name in sorted(ARCHITECTURES)]
    return TEXT.format(count=len(rows), rows="\n".join(rows), oldest=_oldest(levels), **_others())


def _oldest(levels: dict[str, Any]) -> str:
    """Return which types the oldest transformers lacks, and which are at another level there."""
    by_level: dict[str, list[str]] = {}
    for name, level in sorted(levels.items()):
        by_level.setdefault(level.get(OLDEST, {}).get("level", "same"), []).append(f"`{name}`")
    texts = {
        "absent": "{} are not there yet.",
        "partial": "{} is exported for one shape alone (`--shape`).",
        "refused": "{} is quantized, saved and trained, and no file is made of it.",
        "same": "All others are at the same level.",
    }
    parts = [text.format(_listed(by_level[level])) for level, text in texts.items() if level in by_level]
    return _wrapped(f"With transformers {OLDEST}, the lowest version that is supported, {' '.join(parts)}")


def _others() -> dict[str, str]:
    """Return what the tests have of the types without a table."""
    found = _read(TESTS / "rules" / "others.json")
    whole = [f"`{name}`" for name, row in found.items() if row.get("float") == []]
    partial = [_partial(name, row["float"]) for name, row in found.items() if row.get("float")]
    refused = [f"`{name}` ({row['refused']})" for name, row in found.items() if "refused" in row]
    return {
        "whole": _wrapped(
            f"In {len(whole)} of them nothing of the layers stays float that the configuration turns on: "
            f"{_listed(whole)}."
        ),
        "partial": "\n".join(partial),
        "partial_count": str(len(partial)),
        "refused": _wrapped(
            f"In the rest nothing would be quantized, and `quantize` refuses them: {', '.join(refused)}. "
            "Rules of your own may reach what they compute with."
        ),
    }


def _partial(name: str, misses: list[list[str]]) -> str:
    operations = dict.fromkeys(operation for _, operation in misses)
    cells = (
        f"{operation} of " + ", ".join(f"`{path}`" for path, other in misses if other == operation)
        for operation in operations
    )
    return f"| {name} | {'; '.join(cells)} |"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _row(name: str, sites: Any, audit: Any, level: Any) -> str:
    cells = [name, _in_layer(sites), _floats(audit["misses"]), "yes", _export(level)]
    return f"| {' | '.join(cells)} |"


def _in_layer(sites: dict[str, list[str]]) -> str:
    counts = {
        kind: sum(
            max(1, int(row.rpartition(" x")[2]) // LAYERS)
            for operation, rows in sites.items()
            if any(word in operation.partition(":")[0].split() for word in words)
            for row in rows
        )
        for kind, words in KINDS.items()
    }
    return ", ".join(f"{count} {kind}{'s' * (count != 1)}" for kind, count in counts.items() if count)


def _floats(misses: list[list[str]]) -> str:
    cells = (f"`{path}`" + ("" if kind == "linear" else f" ({kind})") for path, kind, _ in misses)
    return ", ".join(dict.fromkeys(cells))


def _export(level: Any) -> str:
    """Return how far a model type is exported, and for which engines something is float or refused."""
    if level is None:
        return "open"
    notes = [f"not for {target}: {reason}" for target, reason in level.get("refused", {}).items()]
    notes += [
        f"float for {target}: {', '.join(f'`{name}`' for name in floats)}"
        for target, floats in level.get("float", {}).items()
    ]
    notes += [f"a part is in no file: {reason}" for reason in dict.fromkeys(level.get("unread", {}).values())]
    return "; ".join([level["level"], *notes])


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    PAGE.write_text(write(), encoding="utf-8")
