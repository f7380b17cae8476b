"""Every head of every architecture: quantized as its base is, and nothing that it adds is left out unsaid."""

import collections
from typing import Any

import family_models as families
import pytest
import torch
import transformers
from family_models import family as family  # a fixture
from torch import Tensor
from transformers import PreTrainedModel

import qdqpatch
from qdqpatch.engines.shapes import Shape
from qdqpatch.exporter.inputs import Inputs
from qdqpatch.patching.audit import audit

OLDEST = transformers.__version__ == "5.0.0"
IN_ONE_PART = ("BartForCausalLM", "CLIPForImageClassification", "SiglipForImageClassification")
"""Heads of one of a model's two parts, so that they have not all of its sites."""

BROKEN = ("CamembertForMultipleChoice", "XLMRobertaForMultipleChoice") if OLDEST else ()
"""Heads whose float models raise in transformers 5.0.0: they read a pooler that they do not build."""

DECODER = {"linear": 10, "query x key": 2, "probabilities x value": 2, "residual add": 3}
"""What a layer of T5's decoder adds to the sites of its encoder."""

UNNAMED = {("vision_model.head", "residual add"), ("head", "residual add")}
"""The add in the pooling of SigLIP, which is no layer."""

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")


def batch_for(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return arguments for a model with any head: two rows."""
    shape = Shape(2, 8)
    accepted = Inputs(model, shape).batch(shape)
    if type(model).__name__ == "BartForCausalLM":
        accepted["encoder_hidden_states"] = torch.randn(2, 5, model.config.d_model)
    return accepted


def first_tensor(outputs: Any) -> Tensor:
    while not isinstance(outputs, Tensor):
        outputs = outputs[0]
    return outputs


def operations(model: PreTrainedModel) -> collections.Counter[str]:
    return collections.Counter(site.operation for site in qdqpatch.plan(model).sites)


def test_every_head_is_calibrated_and_close_to_its_float_model(family: str) -> None:
    one = families.one_layer(family)
    base = operations(families.build(family, **one))
    for name, head in families.heads(family).items():
        model = families.build(family, head, **one)
        batch = batch_for(model)
        found = operations(model)
        if name in BROKEN:
            with pytest.raises(IndexError):
                model(**batch)
            continue
        if name not in IN_ONE_PART:
            extra = DECODER if family == "t5" and model.config.is_encoder_decoder else {}
            assert found == base + collections.Counter(extra), name
        with torch.no_grad():
            expected = first_tensor(model(**batch))
            qdqpatch.calibrate(qdqpatch.quantize(model), [batch], method="max")
            actual = first_tensor(model(**batch))
        # Random weights amplify, and a head of few outputs does not average: 8 bits move it by up to a fifth.
        assert (actual - expected).norm() < 0.2 * expected.norm(), name
        assert not torch.equal(actual, expected), name


@pytest.fixture(scope="module")
def seen() -> set[Any]:
    """Return what was audited already."""
    return set()


@pytest.mark.slow
@pytest.mark.skipif(OLDEST, reason="its classes are cut otherwise, and so are their paths")
def test_what_a_head_computes_of_float_operands_is_in_its_plan(family: str, seen: set[Any]) -> None:
    """Of heads that add modules of the same classes one is looked at, whichever model they are of."""
    one = families.one_layer(family)
    for name, head in families.heads(family).items():
        model = families.build(family, head, **one)
        if model.base_model is model:  # `test_audit.py` has these
            continue
        inside = {id(module) for module in model.base_model.modules()}
        added = {type(module).__name__ for module in model.modules() if id(module) not in inside} - {name}
        key = frozenset(cls.removeprefix(name.partition("For")[0]) for cls in added)
        if key in seen:
            continue
        seen.add(key)
        named = {(miss.path, miss.operation) for miss in qdqpatch.plan(model).misses}
        paths = {path for path, _ in named}
        found = audit(qdqpatch.quantize(model), batch_for(model))
        silent = {(miss.path, miss.kind) for miss in found.misses if miss.path not in paths}
        assert silent <= UNNAMED, name
