"""A model of no type that transformers knows, made of two layers of any class."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel


class OwnConfig(PreTrainedConfig):
    model_type = "own"


class Own(PreTrainedModel):
    """A model of two layers of a kind, a table of tokens and a pooler."""

    config_class = OwnConfig

    def __init__(self, layer: type[nn.Module]) -> None:
        super().__init__(OwnConfig())
        self.tokens = nn.Embedding(5, 4)
        self.layers = nn.ModuleList([layer(), layer()])
        self.pooler = Pooler()

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Any:
        for layer in self.layers:
            states = layer(states, attention_mask)
        return (self.pooler(states),)


class Pooler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(4, 4)

    def forward(self, states: Tensor) -> Tensor:
        return self.dense(states)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.dense = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return states + self.dense(states)
