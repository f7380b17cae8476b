"""The record of a folder that we write: what is in `qdqpatch.json`, and the model card that says the same."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from qdqpatch.output.manifest import add_sections, read_sections
from qdqpatch.spelling import counted

CARD = "README.md"
BEGIN, END = "<!-- qdqpatch -->", "<!-- /qdqpatch -->"
"""What our part of a card lies between, so that a later one takes its place."""

PACKAGES = ("qdqpatch", "torch", "transformers", "onnxruntime", "openvino")


def write_record(model: PreTrainedModel, folder: Path, **sections: Any) -> None:
    """Write recipe, versions and results into a folder's `qdqpatch.json` and its card.

    Args:
        model: The model; a float one has no recipe, and no part of the card.
        folder: Where to; the card that is there is the base of the new one.
        sections: What else there is to tell, by name; None for what there is not.
    """
    config = getattr(model.config, "quantization_config", None)
    recipe = None if config is None else config.to_dict()
    given = {name: value for name, value in sections.items() if value is not None}
    add_sections(folder, recipe=recipe, versions=_versions(), **given)
    data = read_sections(folder)
    known = {name: data.get(name) for name in ("recipe", "calibration", "data")}
    variant = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]
    add_sections(folder, variant=variant)
    if recipe is not None:
        write_card(folder)


def data_record(source: str) -> dict[str, str]:
    """Return what a record says of data: its name and, if it is a file, its hash."""
    path = Path(source)
    if not path.is_file():
        return {"name": path.name}
    return {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def write_card(folder: Path) -> None:
    """Write our part of the model card, behind what is there."""
    file = folder / CARD
    before = file.read_text(encoding="utf-8") if file.is_file() else ""
    if BEGIN in before and END in before:
        head, rest = before.split(BEGIN, 1)
        before = head + rest.split(END, 1)[1]
    part = f"{BEGIN}\n{_text(read_sections(folder), _ways(folder))}{END}\n"
    file.write_text(f"{before.rstrip()}\n\n{part}".lstrip(), encoding="utf-8")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _ways(folder: Path) -> list[str]:
    """Return how a folder is loaded, by what is in it."""
    ways = []
    if any(folder.glob("model*.safetensors")):
        ways.append("`import qdqpatch`, then `from_pretrained` of transformers")
    modules = _read(folder / "modules.json")
    if modules and str(modules[0].get("type", "")).startswith("qdqpatch."):
        kind = (_read(folder / "config_sentence_transformers.json") or {}).get("model_type")
        ways.append(f"`{kind or 'SentenceTransformer'}(FOLDER, trust_remote_code=True)`")
    return ways


def _read(file: Path) -> Any:
    """Return what is in a JSON file; None where there is none."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _text(data: Mapping[str, Any], ways: Sequence[str] = ()) -> str:
    lines = [
        "## Int8",
        "",
        f"Quantized by qdqpatch, variant `{data['variant']}`; the whole record is in `qdqpatch.json`.",
        "",
        *([f"To load it where qdqpatch is installed: {'; '.join(ways)}.", ""] if ways else []),
    ]
    if calibration := data.get("calibration"):
        settings = ", ".join(f"{name} {value}" for name, value in calibration.items() if value)
        lines += [f"Calibrated: {settings}.", ""]
    if gates := data.get("optimization"):
        met = "met" if gates["met"] else "not met"
        lines += [
            f"Judged in {gates['engine']} on {counted(gates['held_back'], 'text')}: {gates['asked']}, {met}.",
            "",
        ]
        chosen = next(rung for rung in gates["rungs"] if rung["name"] == gates["chosen"])
        lines += [f"- {name}: {value:.5g}" for name, value in chosen["figures"].items()]
        if chosen["speedup"] is not None:
            lines += [f"- speed: {chosen['speedup']:.2f} times that of the float model"]
        lines += [""]
    if source := data.get("data"):
        digest = f", SHA-256 `{source['sha256'][:16]}`" if "sha256" in source else ""
        lines += [f"Data: {source['name']}{digest}.", ""]
    for stage, metrics in data.get("training", {}).items():
        figures = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        lines += [f"- {stage}: {figures}"]
    exports = data.get("exports", {})
    if exports:
        lines += [
            "| file | engine | MB | integer matmuls | off by, in steps of 1/127 |",
            "| - | - | - | - | - |",
        ]
    for name, export in exports.items():
        off = "; ".join(f"{output} {mean:.2f}" for output, mean in export["steps"].items()) or "not compared"
        matmuls = "not known" if export["matmuls"] is None else f"{export['integer']} of {export['matmuls']}"
        lines.append(f"| `{name}` | {_engine(export)} | {export['bytes'] / 1e6:.1f} | {matmuls} | {off} |")
    versions = ", ".join(f"{name} {number}" for name, number in data["versions"].items())
    return "\n".join([*lines, *([""] if exports else []), f"Made with {versions}.", ""])


def _engine(export: Mapping[str, Any]) -> str:
    """Return what a file is for, and what it was compared in: the same with its version, if it could be."""
    target, compared = export["target"], export["engine"]
    if compared is None:
        return str(target)
    return compared if compared.startswith(target) else f"{target}, compared in {compared}"
