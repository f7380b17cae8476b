"""What would quantize silently less than asked is an error or is listed."""

import copy
import functools
import pickle

import models
import pytest
import torch
from transformers import PreTrainedModel

import qdqpatch
from qdqpatch.errors import QuantizedError, UnsupportedModelError


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_refuses_to_run_without_its_quantizers(calibrated, implementation: str) -> None:
    model: PreTrainedModel = calibrated()
    expected = models.outputs(model)
    for copied in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied.set_attn_implementation(implementation)
        with pytest.raises(QuantizedError, match=f"{implementation!r}, which does not quantize the matmuls"):
            models.outputs(copied)
        copied.set_attn_implementation("qdqpatch")
        models.assert_equal(models.outputs(copied), expected)


def test_without_matmuls_any_implementation_runs(float_model) -> None:
    model = qdqpatch.quantize(float_model(), qdqpatch.QDQConfig(matmuls=False))
    assert model.config._attn_implementation == "sdpa"
    models.outputs(model)
    model.set_attn_implementation("eager")
    models.outputs(model)


def test_a_forward_on_the_instance_is_a_miss(float_model) -> None:
    model = float_model()
    linear = model.encoder.layer[0].intermediate.dense
    linear.forward = functools.partial(type(linear).forward, linear)
    plan = qdqpatch.plan(model)
    (miss,) = [miss for miss in plan.misses if "intermediate" in miss.path]
    assert miss.reason == (
        "its forward was replaced on the instance, as accelerate's hooks do; quantize before that"
    )
    assert len(plan.sites) == 19


def test_a_compiled_model_is_refused_with_a_hint(float_model) -> None:
    compiled = torch.compile(float_model(), backend="eager")
    with pytest.raises(UnsupportedModelError, match="not a OptimizedModule"):
        qdqpatch.quantize(compiled)
