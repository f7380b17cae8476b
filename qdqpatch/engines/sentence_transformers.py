"""The module that `modules.json` of an exported folder names: sentence-transformers on our exported files.

It takes the place of sentence-transformers' own `Transformer`, and needs no optimum. Because it is not part
of sentence-transformers, `SentenceTransformer(OUT, trust_remote_code=True)` is how it is allowed; without
that the folder is refused, and never loaded as the float model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules import Transformer as _Transformer
from torch import Tensor, nn
from transformers import PreTrainedConfig

from qdqpatch.checkpoint.files import find_file
from qdqpatch.engines.models import EXPORTS, TORCH
from qdqpatch.engines.sessions import ENGINES, Session
from qdqpatch.errors import CheckpointError, ConfigError, EngineError

BACKENDS = {"onnx": "onnxruntime", "openvino": "openvino"}
"""The engines by sentence-transformers' names of backends; `torch`, the default, leaves the choice to us."""


class EngineModel(nn.Module):
    """An exported file behind the call of a transformers model; it runs on the CPU.

    Args:
        config: The model's.
        session: The file, loaded.
    """

    device = torch.device("cpu")

    def __init__(self, config: PreTrainedConfig, session: Session) -> None:
        super().__init__()
        self.config = config
        self._session = session
        self._dtypes = {value.name: getattr(torch, value.dtype) for value in session.inputs}

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
        """
        batch = {"input_ids": input_ids}
        for name, value, filled in (
            ("attention_mask", attention_mask, 1),
            ("token_type_ids", token_type_ids, 0),
        ):
            batch[name] = torch.full_like(input_ids, filled) if value is None else value
        batch = {name: batch[name].to("cpu", dtype) for name, dtype in self._dtypes.items() if name in batch}
        return {name: torch.from_numpy(array) for name, array in self._session.run_tensors(batch).items()}


class Transformer(_Transformer):
    """sentence-transformers' `Transformer`, with its model in ONNX Runtime or OpenVINO.

    The engine is that of `backend="onnx"` or `"openvino"`, or of `model_kwargs={"engine": NAME}` with
    `onnxruntime`, `openvino` or `torch`; without either the first that is installed and has a file in the
    folder, and torch where no file is there.
    """

    def _load_model(
        self,
        model_name_or_path: str,
        transformer_task: Any,
        config: PreTrainedConfig,
        backend: str,
        is_peft_model: bool,
        engine: str | None = None,
        **model_kwargs: Any,
    ) -> Any:
        """Load the model; the one step of the base class that is another here."""
        if backend in BACKENDS:
            engine = BACKENDS[backend]
        if engine not in (None, TORCH, *ENGINES):
            raise ConfigError(f"There is no engine {engine!r}; there are {', '.join((TORCH, *ENGINES))}.")
        files = {} if engine == TORCH else _files(model_name_or_path)
        if engine is None:
            engine = next((name for name in files if ENGINES[name].version is not None), TORCH)
        if engine == TORCH:
            return super()._load_model(
                model_name_or_path, transformer_task, config, TORCH, is_peft_model, **model_kwargs
            )
        if engine not in files:
            raise CheckpointError(
                f"{model_name_or_path} has no file for {engine}. Write one: qdqpatch export CKPT OUT "
                f"--target {engine}"
            )
        return EngineModel(config, ENGINES[engine].load(Path(files[engine])))

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Save the model in torch; a file of an engine is copied with its folder.

        Raises:
            EngineError: If the model is in an engine.
        """
        if isinstance(self.model, EngineModel):
            raise EngineError("A model in an engine is not saved by this: copy the folder that it is from.")
        super().save(output_path, *args, **kwargs)


def _files(source: str) -> dict[str, str]:
    """Return the exported files of a folder or a hub repository, by engine."""
    found = {}
    for engine in ENGINES.values():
        suffix = engine.suffixes[0]
        for name in EXPORTS[suffix]:
            if file := find_file(source, name):
                for beside in (f"{name}_data", f"{name.removesuffix('.xml')}.bin"):
                    find_file(source, beside)  # from a hub it is downloaded
                found[engine.name] = file
                break
    return found
