"""Read the tensors of checkpoint files; whatever is wrong with a file is one error."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from qdqpatch.errors import CheckpointError, one_line

SAVE_TENSORS = "Save the tensors alone: torch.save(model.state_dict(), FILE)."


class TensorFile:
    """The tensors of one file, each read when it is asked for.

    Attributes:
        names: Their names.
    """

    def __init__(self, file: str | Path, tensors: Any, names: list[str]) -> None:
        self._file, self._tensors, self.names = file, tensors, names

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading the tensor."""
        if isinstance(self._tensors, dict):
            return tuple(self._tensors[name].shape)
        return tuple(self._tensors.get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Return a tensor's type by the name that safetensors has for it, such as `F32`."""
        if isinstance(self._tensors, dict):
            dtype = self._tensors[name].dtype
            kind = "C" if dtype.is_complex else "F" if dtype.is_floating_point else "I"
            return "BOOL" if dtype == torch.bool else f"{kind}{8 * dtype.itemsize}"
        return str(self._tensors.get_slice(name).get_dtype())

    def __getitem__(self, name: str) -> Tensor:
        if isinstance(self._tensors, dict):
            tensor: Tensor = self._tensors[name]
            return tensor
        try:
            read: Tensor = self._tensors.get_tensor(name)
        except Exception as error:  # safetensors and torch raise types of their own
            raise _unreadable(self._file, error) from error
        return read


@contextmanager
def open_tensors(file: str | Path) -> Iterator[TensorFile]:
    """Open a `.safetensors` file, or read a `.bin` one, of which no code is run.

    Raises:
        CheckpointError: If the file is not there, is damaged, or holds something else than tensors by name.
    """
    if str(file).endswith(".safetensors"):
        try:
            opened: Any = safe_open(str(file), framework="pt")
        except Exception as error:  # safetensors raises types of its own
            raise _unreadable(file, error) from error
        with opened as tensors:
            yield TensorFile(file, tensors, list(tensors.keys()))
        return
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    except Exception as error:  # what a damaged pickle raises is anything
        raise _unreadable(file, error) from error
    tensors = _tensors_by_name(file, state)
    yield TensorFile(file, tensors, list(tensors))


def read_shapes(files: list[str]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in the files, by its name.

    Raises:
        CheckpointError: If a file cannot be read, another tool has packed its weights, or they are not
            floats.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with open_tensors(file) as tensors:
            types = {name: tensors.dtype(name) for name in tensors.names}
            weights = [name for name in types if name.endswith(".weight")]
            if packed := [name for name in weights if types[name].startswith(("I8", "U8", "F8"))]:
                raise CheckpointError(
                    f"{file} holds numbers of 8 bits, as another tool packs them ({packed[0]}), and no "
                    "weights. Name the float checkpoint."
                )
            odd = [name for name in weights if not types[name].startswith(("F", "BF"))]
            odd += [name for name, kind in types.items() if kind.startswith("C")]
            if odd:
                raise CheckpointError(
                    f"{file} is damaged: {odd[0]} is of type {types[odd[0]]}, and weights are floats. "
                    "Copy or download it again."
                )
            shapes.update((name, tensors.shape(name)) for name in tensors.names)
    return shapes


def _tensors_by_name(file: str | Path, state: object) -> dict[str, Tensor]:
    """Return a state dict as a plain one, or say what the file holds in its place."""
    if not isinstance(state, Mapping):
        kind = type(state).__name__
        raise CheckpointError(f"{file} holds a {kind}, not a state dict of tensors. {SAVE_TENSORS}")
    others = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if not others:
        return {str(name): tensor for name, tensor in state.items()}
    inner = [str(name) for name, value in state.items() if isinstance(value, Mapping)]
    for name in inner:
        held = state[name]
        if held and all(isinstance(value, Tensor) for value in held.values()):
            raise CheckpointError(
                f"{file} holds the weights under {name!r}, as training loops save them, where only the "
                f"weights belong. Take them out: torch.save(torch.load(FILE)[{name!r}], FILE)."
            )
    raise CheckpointError(
        f"{file} holds something else than tensors ({', '.join(others[:3])}), so it is no state dict. "
        + SAVE_TENSORS
    )


def _unreadable(file: str | Path, error: Exception) -> CheckpointError:
    """Return the error for a file that could not be read, by what the file is."""
    try:
        with open(file, "rb") as stream:
            head = stream.read(64).lstrip()
    except OSError as problem:
        return CheckpointError(f"Cannot read {file}: {problem.strerror}.")
    if head.startswith(b"version https://git-lfs"):
        return CheckpointError(
            f"{file} is a pointer of git-lfs, not the weights. Run `git lfs pull` where it is from."
        )
    if head.startswith(b"<"):
        return CheckpointError(f"{file} is a web page, not weights. Download it again.")
    if isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error):
        return CheckpointError(
            f"{file} holds other objects than tensors, such as a whole model or NumPy arrays, and reading "
            f"those could run code. {SAVE_TENSORS}"
        )
    reason = type(error).__name__ if isinstance(error, pickle.UnpicklingError) else one_line(error)
    return CheckpointError(f"{file} is damaged ({reason}). Copy or download it again.")


def _is_zip(file: str | Path) -> bool:
    """Whether torch can map the file into memory: the format before torch 1.6 is not a zip."""
    with open(file, "rb") as stream:
        return stream.read(2) == b"PK"
