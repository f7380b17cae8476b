"""The files of `reference/`: what the original QDQBERT classes computed."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from safetensors import safe_open
from torch import Tensor
from transformers import BertConfig, PreTrainedModel

from qdqpatch import QDQConfig, quantize

FOLDER = Path(__file__).parents[1] / "reference"
NAMES = sorted(path.stem for path in (FOLDER / "cases").glob("*.safetensors"))
CACHED = [name for name in NAMES if name.endswith("cache")]
CHECKPOINTS = {
    "QDQBertForSequenceClassification": "BertForSequenceClassification-calibrated",
    "QDQBertForMaskedLM": "BertForMaskedLM-calibrated",
}
PROMPT = 4


@dataclass(frozen=True)
class Case:
    """One file of `reference/cases`; `reference/README.md` describes the keys."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors below a prefix such as `output/toolkit`."""
        below = f"{prefix}/"
        return {name[len(below) :]: value for name, value in self.tensors.items() if name.startswith(below)}

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The keyword arguments, labels included, and no cache for a decoder."""
        no_cache = {"use_cache": False} if self.metadata["head"] == "BertLMHeadModel" else {}
        return self.group("input") | no_cache

    @property
    def config(self) -> BertConfig:
        """The model's configuration."""
        return BertConfig(**json.loads(self.metadata["config"]))

    @property
    def recipe(self) -> QDQConfig:
        """How the original's quantizers were set."""
        axis = None if self.metadata["weight_axis"] == "none" else int(self.metadata["weight_axis"])
        return QDQConfig(weight={"num_bits": int(self.metadata["weight_num_bits"]), "axis": axis})

    def model(self, **changes: Any) -> PreTrainedModel:
        """Build the model in eval mode with the case's weights and ranges; `changes` are to its config."""
        config = self.config
        for name, value in changes.items():
            setattr(config, name, value)
        model = quantize(getattr(transformers, self.metadata["head"])(config), self.recipe)
        model.load_state_dict(self.group("state"))
        return model.eval()


@functools.cache
def load(name: str) -> Case:
    """Read a case; its tensors must not be changed."""
    with safe_open(FOLDER / "cases" / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no dict
        return Case(tensors, file.metadata())
