"""What lies beside a checkpoint's weights and says how the model is used: read, checked, and carried along.

A folder of sentence-transformers names its modules in `modules.json`: the transformer at its root, then what
pools and normalizes, each in a folder of its own. Without them the same weights give other embeddings.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from qdqpatch.checkpoint.files import find_file
from qdqpatch.checkpoint.processor import PROCESSOR_FILES
from qdqpatch.checkpoint.tokenizer import copy_tokenizer
from qdqpatch.errors import CheckpointError, CheckpointWarning, ConfigError, one_line

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
CARD = "README.md"

LENGTHS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""What sentence-transformers has called the transformer's settings; the first that is there counts."""

CONFIG, WEIGHTS = "config.json", ("model.safetensors", "pytorch_model.bin")
"""A module's files: its settings, and its weights in one of two formats."""

HAS_SETTINGS = ("Pooling", "Dense", "LayerNorm")
HAS_WEIGHTS = ("Dense", "LayerNorm")
"""Modules that are nothing without those files. A folder of `Normalize` is empty, and so often not there."""

TRANSFORMER = "Transformer"


@dataclass(frozen=True)
class Module:
    """A line of `modules.json`.

    Attributes:
        kind: The name of its class, such as `Pooling`.
        path: Its folder; empty for the root.
    """

    kind: str
    path: str


@dataclass(frozen=True)
class Companions:
    """The companion files of a checkpoint; outside of sentence-transformers it has few or none.

    Attributes:
        source: The checkpoint.
        modules: What `modules.json` lists; empty where there is none.
        files: Where the files to carry along lie, by their paths in the checkpoint.
        prompts: What texts can begin with, by name.
        default_prompt: The name of the prompt that every text begins with; None for none.
        max_length: Where texts are cut, in tokens; None for as long as the model takes.
        lower_case: Whether texts are put in lower case.
        dimensions: To how many dimensions embeddings are cut; None for all of them.
    """

    source: str
    modules: tuple[Module, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    max_length: int | None = None
    lower_case: bool = False
    dimensions: int | None = None

    def copy(self, out: Path) -> None:
        """Copy them and the tokenizer's files into a folder, whose own files stay."""
        copy_tokenizer(self.source, out)
        for name, file in self.files.items():
            if not (out / name).exists():
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, out / name)

    def prompt(self, name: str | None = None) -> str:
        """Return what texts begin with.

        Args:
            name: Of the prompt; None for the default one.

        Raises:
            ConfigError: If there is no such prompt.
        """
        chosen = self.default_prompt if name is None else name
        if chosen is not None and chosen not in self.prompts:
            there = f"there are {', '.join(self.prompts)}" if self.prompts else "there are none"
            raise ConfigError(f"{self.source} has no prompt {chosen!r}; {there} ({PROMPTS}).")
        return "" if chosen is None else self.prompts[chosen]

    def text(self, text: str, prompt: str = "") -> str:
        """Return a text as the tokenizer gets it."""
        return prompt + (text.lower() if self.lower_case else text)


def read_companions(source: str) -> Companions:
    """Read the companion files of a checkpoint, and find out whether all that they name is there.

    Args:
        source: A folder, or a model's name on the hub.

    Raises:
        CheckpointError: If a file cannot be read, or names what is not there.

    Warns:
        CheckpointWarning: If the folder is the transformer alone of one of sentence-transformers.
    """
    names = (MODULES, PROMPTS, *LENGTHS, CARD, *PROCESSOR_FILES)
    files = {name: file for name in names if (file := find_file(source, name)) is not None}
    modules = _modules(source, files[MODULES]) if MODULES in files else ()
    if MODULES not in files and (whole := _whole(Path(source))) is not None:
        warnings.warn(
            f"{source} is the transformer alone of a model of sentence-transformers. How texts become "
            f"embeddings is said in {whole / MODULES}, and left out here. To take it along, save the whole "
            f"once more, SentenceTransformer({str(whole)!r}).save_pretrained(...), to another folder.",
            CheckpointWarning,
            stacklevel=2,
        )
    for module in modules:
        files |= _module_files(source, module)
    prompts, default_prompt = _prompts(source, files.get(PROMPTS))
    settings = _object(next((files[name] for name in LENGTHS if name in files), None))
    length = _count(settings, "max_seq_length", "tokens", source)
    lower_case = settings.get("do_lower_case") is True
    dimensions = _count(_object(files.get(PROMPTS)), "truncate_dim", "dimensions", source)
    return Companions(source, modules, files, prompts, default_prompt, length, lower_case, dimensions)


def companions_of(model: object) -> Companions | None:
    """Read the companion files of the local folder that a model was loaded from.

    Returns:
        None where sentence-transformers did not write that folder, or there is none.

    Raises:
        CheckpointError: If a file cannot be read, or names what is not there.
    """
    folder = getattr(model, "name_or_path", "")
    return read_companions(folder) if folder and (Path(folder) / MODULES).is_file() else None


def module_settings(companions: Companions, module: Module) -> dict[str, Any]:
    """Return a module's settings; empty if it has no file of them."""
    return _object(companions.files.get(f"{module.path}/{CONFIG}"))


def _whole(folder: Path) -> Path | None:
    """Return the folder of the model whose transformer alone lies in `folder`; None if there is none."""
    parent = folder.parent if folder.name else folder.resolve().parent
    try:
        path = json.loads((parent / MODULES).read_text(encoding="utf-8"))[0]["path"]
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return None
    return parent if path == folder.resolve().name else None


def _modules(source: str, file: str) -> tuple[Module, ...]:
    try:
        listed = json.loads(Path(file).read_text(encoding="utf-8"))
        modules = tuple(Module(str(entry["type"]).rpartition(".")[2], entry["path"]) for entry in listed)
        paths = [PurePosixPath(module.path) for module in modules]
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"Cannot read {file}: {one_line(error)}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is no list of modules, each with a type and a path.") from error
    for path in paths:
        if path.is_absolute() or ".." in path.parts:
            raise CheckpointError(f"{MODULES} of {source} names {path}, which is not inside it.")
    if modules and modules[0].path:
        raise CheckpointError(
            f"{MODULES} of {source} names {modules[0].path} for the transformer, which is read here from the "
            "root alone. Save the model once more with a sentence-transformers of today."
        )
    return modules


def _module_files(source: str, module: Module) -> dict[str, str]:
    """Return the files of a module's folder, by their paths in the checkpoint."""
    if not module.path:
        return {}
    folder = Path(source) / module.path
    if Path(source).is_dir():
        found = {
            path.relative_to(source).as_posix(): str(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
    else:
        names = [f"{module.path}/{name}" for name in (CONFIG, *WEIGHTS)]
        found = {name: file for name in names if (file := find_file(source, name)) is not None}
    if module.kind in HAS_SETTINGS and f"{module.path}/{CONFIG}" not in found:
        raise CheckpointError(
            f"{MODULES} of {source} names {module.path} ({module.kind}), which has no {CONFIG}."
        )
    if module.kind in HAS_WEIGHTS and not any(f"{module.path}/{name}" in found for name in WEIGHTS):
        raise CheckpointError(
            f"{MODULES} of {source} names {module.path} ({module.kind}), which has no weights: neither "
            f"{' nor '.join(WEIGHTS)} is there."
        )
    return found


def _count(settings: Mapping[str, Any], name: str, of: str, source: str) -> int | None:
    """Return a number of at least 1; None where the settings have none."""
    count = settings.get(name)
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise CheckpointError(f"{name} of {source} must be a number of {of}, not {count!r}.")
    return count


def _prompts(source: str, file: str | None) -> tuple[dict[str, str], str | None]:
    settings = _object(file)
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise CheckpointError(f"prompts in {file} must be texts by their names.")
    if default is not None and default not in prompts:
        raise CheckpointError(
            f"default_prompt_name in {PROMPTS} of {source} is {default!r}, which is none of its prompts: "
            f"{', '.join(prompts) or 'there are none'}."
        )
    return {name: text or "" for name, text in prompts.items()}, default


def _object(file: str | None) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one where there is no file."""
    if file is None:
        return {}
    try:
        data = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"Cannot read {file}: {one_line(error)}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"Cannot read {file}: it holds no object.")
    return data
