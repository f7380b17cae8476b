"""What may be taken for what was traced already."""

from collections.abc import Iterator

import models
import onnx_ir as ir
import pytest
import torch

import qdqpatch
from qdqpatch.exporter import tracing
from qdqpatch.exporter.tracing import Traces
from qdqpatch.nn.pooling import Pooling, SentenceHead

NAME = "BertForTokenClassification"


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ir.Model]]:
    """Graphs that are nothing but a number, and all that were made."""
    made: list[ir.Model] = []

    def trace(*_: object) -> ir.Model:
        made.append(ir.Model(ir.Graph([], [], nodes=[], name=str(len(made))), ir_version=10))
        return made[-1]

    monkeypatch.setattr(tracing, "_traced", trace)
    return made


def number(traces: Traces, model: models.PreTrainedModel, **changes: object) -> int:
    arguments = {"inputs": models.inputs(NAME), "axes": {"input_ids": {0: "batch"}}, "opset": 20} | changes
    return int(traces.trace(model, **arguments).graph.name)


def test_ranges_and_weights_of_quantized_linears_are_no_part_of_it() -> None:
    traces, model = Traces(), models.calibrated(NAME)
    assert number(traces, model) == 0
    for _, quantizer in models.named_quantizers(model):
        quantizer.amax *= 2
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight += 1
        model.bert.encoder.layer[0].output.dense.bias += 1
    config = qdqpatch.QDQConfig(activation={"symmetric": False})
    asymmetric = qdqpatch.quantize(models.float_model(NAME), config)
    assert number(traces, model) == number(traces, asymmetric) == 0
    assert traces.trace(model, models.inputs(), {}, 20) is not traces.trace(model, models.inputs(), {}, 20)


def test_all_else_is(traced: list[ir.Model]) -> None:
    traces = Traces(kept=None)
    found = [number(traces, models.calibrated(NAME))]

    def another(model: models.PreTrainedModel, **changes: object) -> None:
        found.append(number(traces, model, **changes))

    normed, moved, other = (models.calibrated(NAME) for _ in range(3))
    normed.bert.encoder.layer[1].output.LayerNorm.weight.data[3] += 1
    moved.bert.embeddings.position_ids[0, 1] = 0
    other.config.hidden_act = "relu"
    for model in (normed, moved, other, models.float_model(NAME), models.calibrated("BertModel")):
        another(model)
    another(qdqpatch.calibration.switch_quantizers(models.calibrated(NAME), {"*.layer.0.*": False}))
    another(models.calibrated(NAME), opset=21)
    another(models.calibrated(NAME), axes={})
    another(models.calibrated(NAME), inputs=models.inputs(NAME, length=9))
    for modes in (["cls"], ["mean"]):
        another(models.calibrated(NAME), head=SentenceHead(Pooling(modes)))
    assert found == list(range(len(traced))) == list(range(12))


def test_settings_of_modules_are() -> None:
    traces, model = Traces(kept=None), models.calibrated(NAME)
    found = [number(traces, model)]
    layer = model.bert.encoder.layer[0]

    def changed(module: torch.nn.Module, name: str, value: object) -> None:
        setattr(module, name, value)
        found.append(number(traces, model))

    changed(layer.output.LayerNorm, "eps", 0.5)
    changed(layer.attention.self, "scaling", 2.0)
    changed(layer.attention.self, "config", models.config(NAME, layer_norm_eps=0.5))
    changed(layer, "activation", torch.nn.functional.silu)
    changed(layer, "forward", lambda *states, **_: states)
    hook = layer.output.register_forward_hook(lambda *_: None)
    found.append(number(traces, model))
    hook.remove()
    assert found == [*range(7)]
    assert number(traces, model) == 5


def test_a_trace_whose_tensors_changed_since_is_none() -> None:
    traces, model = Traces(), models.calibrated(NAME)
    assert number(traces, model) == 0
    with torch.no_grad():
        model.bert.embeddings.LayerNorm.weight += 1
    assert number(traces, models.calibrated(NAME)) == 1
    assert number(traces, models.calibrated(NAME)) == 1


def test_the_last_ones_used_are_kept(traced: list[ir.Model]) -> None:
    traces, model = Traces(kept=2), models.calibrated(NAME)
    assert [number(traces, model, opset=opset) for opset in (18, 19, 18, 20, 18, 19)] == [0, 1, 0, 2, 0, 3]
