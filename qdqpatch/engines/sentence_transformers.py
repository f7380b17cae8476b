"""The module that `modules.json` of an exported folder names: sentence-transformers on our exported files.

It takes the place of sentence-transformers' own `Transformer`, and needs no optimum. Because it is not part
of sentence-transformers, `SentenceTransformer(OUT, trust_remote_code=True)` is how it is allowed; without
that the folder is refused, and never loaded as the float model.
"""

from __future__ import annotations

import shutil
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from qdqpatch.checkpoint.companions import read_companions
from qdqpatch.checkpoint.files import find_file
from qdqpatch.checkpoint.weight_files import has_weights
from qdqpatch.data.lengths import config_limit
from qdqpatch.engines.contenders import TORCH
from qdqpatch.engines.homes import IR_FOLDER, ONNX_FOLDER
from qdqpatch.engines.models import EXPORTS
from qdqpatch.engines.saturation import may_saturate
from qdqpatch.engines.sessions import ENGINES, fixed_sizes
from qdqpatch.engines.vnni import saturates
from qdqpatch.errors import CheckpointError, ConfigError, DataError, EngineError
from qdqpatch.spelling import spelled

try:
    from sentence_transformers.base.modules import Transformer as _Transformer
except ImportError as error:
    raise ImportError(
        "This folder needs sentence-transformers 6 or newer: pip install -U sentence-transformers"
    ) from error

HUB = ("token", "cache_dir", "revision", "local_files_only")
"""What sentence-transformers says of how to reach the hub."""

BACKENDS = {"onnx": "onnxruntime", "openvino": "openvino"}
"""The engines by sentence-transformers' names of backends; `torch`, the default, leaves the choice to us."""


PathT = TypeVar("PathT", bound=PurePath)


class EngineModel(nn.Module):
    """An exported file behind the call of a transformers model; it runs on the CPU.

    A copy, also in another process, loads the file again.

    Args:
        config: The model's.
        engine: One of `ENGINES`.
        file: What it loads.
        threads: How many one run may use; None for the engine's own choice.

    Raises:
        EngineError: If the engine is not installed, or refuses the file.
        CheckpointError: If the file takes one shape alone.
    """

    def __init__(self, config: PreTrainedConfig, engine: str, file: Path, threads: int | None) -> None:
        super().__init__()
        self.config = config
        self._file = file
        self._made_of = (config, engine, file, threads)
        # Where integer kernels saturate with this file, the engine is asked for slower ones that do not.
        exact = saturates() and (engine != "onnxruntime" or may_saturate(file))
        self._session = ENGINES[engine].load(file, threads, exact=exact)
        if any(fixed_sizes(self._session.inputs)):
            raise CheckpointError(
                f"{file} takes one shape alone, and sentence-transformers gives batches of any: export it "
                f"without {spelled('shape')}."
            )
        self._dtypes = {value.name: getattr(torch, value.dtype) for value in self._session.inputs}
        self._longest = config_limit(config)
        # Goes where the modules behind this one go, so that they find what they take where they are.
        self.register_buffer("_place", torch.empty(0), persistent=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._made_of

    @property
    def device(self) -> torch.device:
        """Where inputs are expected and outputs are put."""
        return self.get_buffer("_place").device

    def save_pretrained(self, folder: str, **_: Any) -> None:
        """Write the config and the file that runs into a folder, where this module finds them again.

        Args:
            folder: Where to.
        """
        self.config.save_pretrained(folder)
        inside = self._file.parent.name
        out = Path(folder) / (inside if inside in (ONNX_FOLDER, IR_FOLDER) else "")
        out.mkdir(parents=True, exist_ok=True)
        for file in (self._file, *_beside(self._file)):
            if file.is_file() and not (out / file.name).exists():
                shutil.copyfile(file, out / file.name)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_dict: bool = True,
    ) -> dict[str, Tensor]:
        """Return the file's outputs by name.

        Args:
            input_ids: Shape `(batch, length)`.
            attention_mask: The same shape; None for ones.
            token_type_ids: The same shape; None for zeros.
            return_dict: Is always done.

        Raises:
            DataError: If there are more tokens than the model has positions.
        """
        if (length := input_ids.shape[1]) > self._longest:
            raise DataError(
                f"A text has {length} tokens, and the model takes {self._longest}. Set max_seq_length of "
                f"the model to {self._longest} at most: longer texts are cut then."
            )
        batch = {"input_ids": input_ids}
        for name, value, filled in (
            ("attention_mask", attention_mask, 1),
            ("token_type_ids", token_type_ids, 0),
        ):
            batch[name] = torch.full_like(input_ids, filled) if value is None else value
        batch = {name: batch[name].to("cpu", dtype) for name, dtype in self._dtypes.items() if name in batch}
        found = self._session.run_tensors(batch)
        return {name: torch.from_numpy(array).to(input_ids.device) for name, array in found.items()}


class Transformer(_Transformer):
    """sentence-transformers' `Transformer`, with its model in ONNX Runtime or OpenVINO.

    The engine is that of `backend="onnx"` or `"openvino"`, or of `model_kwargs={"engine": NAME}` with
    `onnxruntime`, `openvino` or `torch`; without either the first that is installed and has a file in the
    folder, and torch where no file is there. Two more of `model_kwargs` are ours: `threads`, how many one
    run may use, and `file_name`, another file than `onnx/model.onnx` or `openvino/openvino_model.xml`.
    """

    def _load_model(
        self,
        model_name_or_path: str,
        transformer_task: Any,
        config: PreTrainedConfig,
        backend: str,
        is_peft_model: bool,
        engine: str | None = None,
        threads: int | None = None,
        file_name: str | None = None,
        **model_kwargs: Any,
    ) -> Any:
        """Load the model; the one step of the base class that is another here."""
        if Path(model_name_or_path).is_dir():
            read_companions(model_name_or_path)  # refuses what the modules behind this one would stumble over
        if backend in BACKENDS:
            engine = BACKENDS[backend]
        if engine not in (None, TORCH, *ENGINES):
            raise ConfigError(f"There is no engine {engine!r}; there are {', '.join((TORCH, *ENGINES))}.")
        hub = {name: model_kwargs[name] for name in HUB if name in model_kwargs}
        files = {} if engine == TORCH else _files(model_name_or_path, file_name, hub)
        if engine is None and file_name and not files:
            raise CheckpointError(f"{model_name_or_path} has no {file_name} that one of the engines runs.")
        if engine is None:
            engine = next((name for name in files if ENGINES[name].version is not None), TORCH)
            if engine == TORCH and files and not has_weights(model_name_or_path, **hub):
                packages = " or ".join(ENGINES[name].package for name in files)
                raise EngineError(
                    f"Nothing that runs {model_name_or_path} is installed: pip install {packages}"
                )
        if engine == TORCH:
            return super()._load_model(
                model_name_or_path, transformer_task, config, TORCH, is_peft_model, **model_kwargs
            )
        if engine not in files:
            wanted = f"no {file_name}" if file_name else "no file"
            raise CheckpointError(
                f"{model_name_or_path} has {wanted} for {engine}. Write one: qdqpatch export CKPT OUT "
                f"--target {engine}"
            )
        return EngineModel(config, engine, Path(files[engine]), threads)


def _files(source: str, file_name: str | None, hub: dict[str, Any]) -> dict[str, str]:
    """Return the exported files of a folder or a hub repository, by engine."""
    found = {}
    for engine in ENGINES.values():
        suffix = engine.suffixes[0]
        for name in EXPORTS[suffix] if file_name is None else _named(file_name, suffix):
            if file := find_file(source, name, **hub):
                for beside in _beside(PurePosixPath(name)):
                    find_file(source, str(beside), **hub)  # from a hub it is downloaded
                found[engine.name] = file
                break
    return found


def _beside(file: PathT) -> tuple[PathT, PathT]:
    """Return where an exported file may have its weights."""
    return file.with_name(f"{file.name}_data"), file.with_suffix(".bin")


def _named(file_name: str, suffix: str) -> tuple[str, ...]:
    """Return where a file may lie that the user named with or without the folder for its engine."""
    folder = PurePosixPath(EXPORTS[suffix][0]).parent
    return (file_name, str(folder / file_name)) if file_name.endswith(suffix) else ()
