"""What can be run of the models that a user names, and in which engines."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from qdqpatch.checkpoint.files import HUB_NAME
from qdqpatch.checkpoint.source import open_checkpoint
from qdqpatch.checkpoint.weight_files import WEIGHTS
from qdqpatch.data.lengths import positions_for_tokens
from qdqpatch.engines.contenders import TORCH, Contender, Facts, engine_of
from qdqpatch.engines.gpu import GPU_ENGINES
from qdqpatch.engines.homes import IR_FOLDER, ONNX_FOLDER, read_config
from qdqpatch.engines.sessions import ENGINES, ONNX_RUNTIME
from qdqpatch.errors import CheckpointError, ConfigError, EngineError
from qdqpatch.packages import pip_install
from qdqpatch.spelling import spelled

EXPORTS = {
    ".onnx": (f"{ONNX_FOLDER}/model.onnx", "model.onnx", f"{ONNX_FOLDER}/model_quantized.onnx"),
    ".xml": (f"{IR_FOLDER}/openvino_model.xml", "openvino_model.xml"),
}
"""The exported files of a folder; the first that is there counts."""


def find_contenders(
    models: Sequence[str], engines: Collection[str] = (), gpu: bool = False
) -> list[Contender]:
    """Return the models in each engine that can load them, in the order given.

    Args:
        models: Files, folders, and names of checkpoints on the hub.
        engines: Some of `RUNNERS` and, with `gpu`, of `GPU_RUNNERS`; empty for all that are installed.
        gpu: Whether engines on a GPU count.

    Raises:
        CheckpointError: If a model is not there, or is nothing that could be run.
        EngineError: If an engine that is needed is not installed, or needs a GPU where there is none.
        ConfigError: If none of the engines runs a model, or an engine none of the models.
    """
    for engine in engines:
        if engine in GPU_ENGINES and (reason := GPU_ENGINES[engine].lacking()):
            raise EngineError(reason)
        if engine != TORCH:
            engine_of(engine).require()
    on_gpu = [name for name, engine in GPU_ENGINES.items() if gpu and not engine.lacking()]
    contenders = []
    for name, label in zip(models, _labels(models), strict=True):
        files = _files(name)
        if ONNX_RUNTIME.name in files:
            files |= dict.fromkeys(on_gpu, files[ONNX_RUNTIME.name])
        if engines and not files.keys() & set(engines):
            raise ConfigError(f"{name} runs in {' and '.join(files)}, not in {' or '.join(engines)}.")
        usable = [file for file in files if (file in engines if engines else _installed(file))]
        if not usable:
            ways = " or ".join(pip_install(engine_of(file).package) for file in files)
            raise EngineError(f"Nothing that runs {name} is installed: {ways}")
        facts = _facts(name)
        contenders += [Contender(label, runner, files[runner], facts) for runner in usable]
    if idle := [runner for runner in engines if runner not in {found.engine for found in contenders}]:
        raise ConfigError(
            f"{' and '.join(idle)} can run none of these models; leave out "
            f"{spelled(repr(idle[0]), f'--engine {idle[0]}')}."
        )
    return contenders


def _installed(engine: str) -> bool:
    return engine == TORCH or engine_of(engine).is_installed


def _files(name: str) -> dict[str, str]:
    """Return what each engine would load, by the engine."""
    path = Path(name)
    if path.is_dir():
        return _files_in(path)
    by_suffix = [engine.name for engine in ENGINES.values() if path.suffix in engine.suffixes]
    if path.exists() and by_suffix:
        return dict.fromkeys(by_suffix, name)
    if path.exists():
        raise CheckpointError(f"{name} is neither a folder nor an .onnx or .xml file.")
    if by_suffix or not HUB_NAME.fullmatch(name):
        raise CheckpointError(f"There is no {'file' if by_suffix else 'folder'} {name}.")
    return {TORCH: name}


def _files_in(folder: Path) -> dict[str, str]:
    files = {}
    if any((folder / f"{weight}{index}").is_file() for weight in WEIGHTS for index in ("", ".index.json")):
        files[TORCH] = str(folder)
    for engine in ENGINES.values():
        exports = (folder / name for suffix in engine.suffixes for name in EXPORTS[suffix])
        if (export := next(filter(Path.is_file, exports), None)) is not None:
            files[engine.name] = str(export)
    if not files:
        others = sorted(path.relative_to(folder) for path in folder.rglob("*.onnx"))
        hint = f" To run {others[0]}, name the file." if others else ""
        usual = ", ".join((*WEIGHTS, *(names[0] for names in EXPORTS.values())))
        raise CheckpointError(f"There is nothing to run in {folder}: none of {usual}.{hint}")
    return files


def _facts(name: str) -> Facts:
    """Read the config of a checkpoint, or the one beside an exported file."""
    path = Path(name)
    if not path.exists():
        return facts_of(open_checkpoint(name).config.to_dict())
    config = read_config(path)
    return Facts() if config is None else facts_of(config)


def facts_of(config: Mapping[str, Any]) -> Facts:
    """Return what a config says, as `config.json` has it."""
    vocabulary, padding = (
        value if isinstance(value := config.get(key), int) else None for key in ("vocab_size", "pad_token_id")
    )
    return Facts(vocabulary, positions_for_tokens(config), padding, _image(config))


def _image(config: Mapping[str, Any]) -> tuple[int, int, int] | None:
    vision = config.get("vision_config")
    settings = vision if isinstance(vision, Mapping) else config
    channels, size = settings.get("num_channels", 3), settings.get("image_size")
    sides = [size, size] if isinstance(size, int) else size
    numbers = [channels, *sides] if isinstance(sides, list | tuple) else []
    if len(numbers) != 3 or not all(isinstance(number, int) for number in numbers):
        return None
    return numbers[0], numbers[1], numbers[2]


def _labels(models: Sequence[str]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart; the same path twice gets a number."""
    parts = [PurePath(name).parts for name in models]
    labels: list[str] = []
    for own in parts:
        others = {part for part in parts if part != own}
        sizes = range(1, len(own) + 1)
        size = next((n for n in sizes if all(other[-n:] != own[-n:] for other in others)), len(own))
        label = str(PurePath(*own[-size:])) if own else "."
        before = sum(part == own for part in parts[: len(labels)])
        labels.append(f"{label} ({before + 1})" if before else label)
    return labels
