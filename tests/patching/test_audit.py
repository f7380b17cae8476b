"""The audit of a traced model; `audits.json` has for each architecture what is computed of float operands."""

import json
from pathlib import Path
from typing import Any

import family_models as families
import models
import pytest
import torch
import transformers
from commands import invoke
from family_models import family as family  # a fixture
from torch import nn
from transformers import BertConfig, BertModel, SplinterConfig, SplinterModel

import qdqpatch
from qdqpatch.errors import ConfigError, DataError, UnsupportedModelError
from qdqpatch.patching.audit import Audit, audit

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("audits.json").read_text())
OLDEST = transformers.__version__ == "5.0.0"
QUERY = "encoder.layer.1.attention.self.query"


def audited(model: Any) -> Audit:
    return audit(model, models.inputs())


@pytest.mark.slow
@pytest.mark.skipif(OLDEST, reason="its classes are cut otherwise, and so are their paths")
def test_what_is_computed_of_float_operands(family: str) -> None:
    model = qdqpatch.quantize(families.float_model(family))
    found = audit(model, families.inputs(model))
    expected = GOLDEN[family]
    assert len(found.operations) == expected["operations"]
    assert [list(row) for row in found.rows()] == expected["misses"]


def test_there_is_a_row_for_every_architecture() -> None:
    assert {*GOLDEN} == {*families.CONFIGS}


@pytest.fixture(scope="module")
def complete() -> Audit:
    return audited(qdqpatch.quantize(models.float_model(), qdqpatch.QDQConfig(pooler=True)))


def test_a_bert_is_complete(complete: Audit) -> None:
    layer = ["linear"] * 3 + ["matmul"] * 2 + ["linear", "residual add"] + ["linear"] * 2 + ["residual add"]
    assert [operation.kind for operation in complete.operations] == [*layer, *layer, "linear"]
    assert complete.misses == ()
    assert str(complete) == "BertModel: 21 operations on the path, 0 of them with float operands"


def test_what_feeds_a_quantizer_is_told(complete: Audit) -> None:
    matmul = next(operation for operation in complete.operations if operation.kind == "matmul")
    assert matmul.path == "encoder.layer.0.attention.self"
    assert [(operand.name, operand.quantizer, operand.source) for operand in matmul.operands] == [
        (name, f"{matmul.path}.matmul_{letter}_input_quantizer", f"linear of {matmul.path}.{linear}")
        for name, letter, linear in (("first", "q", "query"), ("second", "k", "key"))
    ]


def test_a_quantizer_that_was_removed_or_turned_off_is_missed() -> None:
    model = models.calibrated()
    del model.encoder.layer[0].attention.self.matmul_v_input_quantizer
    model.get_submodule(f"{QUERY}._input_quantizer").disable()
    before = models.snapshot(model)
    found = audited(model)
    models.assert_unchanged(model, before)
    misses = {(miss.path, miss.kind): miss.floats for miss in found.misses if miss.path != "pooler.dense"}
    assert {place: [(one.name, one.source) for one in floats] for place, floats in misses.items()} == {
        ("encoder.layer.0.attention.self", "matmul"): [
            ("second", "linear of encoder.layer.0.attention.self.value")
        ],
        (QUERY, "linear"): [("input", "layer_norm of encoder.layer.0.output.LayerNorm")],
    }
    text = repr(found)
    assert f"\n{QUERY}: linear\n  input (layer_norm of encoder.layer.#.output.LayerNorm)\n" in text
    assert max(map(len, text.splitlines())) <= 80
    assert json.loads(json.dumps(found.to_dict()))["operations"][0]["kind"] == "linear"


class Odd(BertModel):
    """Computes in ways that no rule knows, and an add that is no residual."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.mix = nn.Conv1d(config.hidden_size, config.hidden_size, 1)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        states = super().forward(*args, **kwargs).last_hidden_state
        states = states + self.mix(states.transpose(1, 2)).transpose(1, 2)
        states = states + states.pow(3)
        scores = torch.einsum("bqd,bkd->bqk", states, states)
        return (nn.functional.scaled_dot_product_attention(states, states, states), torch.bmm(scores, states))


def test_what_no_rule_knows_is_missed() -> None:
    torch.manual_seed(0)
    model = Odd(models.config()).train()
    qdqpatch.quantize(model)
    rows = audited(model).rows()[1:]
    assert model.training
    assert [(path, kind) for path, kind, _ in rows] == [
        ("mix", "conv1d"),
        ("the model itself", "residual add"),
        ("the model itself", "einsum"),
        ("the model itself", "scaled_dot_product_attention"),
        ("the model itself", "bmm"),
    ]
    norm = "layer_norm of encoder.layer.#.output.LayerNorm"
    assert rows[1][2] == f"first ({norm}), second (conv1d of mix)"


def test_what_cannot_be_audited_is_refused_and_left_as_it_was() -> None:
    model = models.calibrated()
    before = models.snapshot(model)
    for batch, kind, message in (
        ({"token": torch.tensor([[1]])}, DataError, "'token', which BertModel does not take: leave it out"),
        (
            {"attention_mask": torch.ones(1, 2)},
            UnsupportedModelError,
            "cannot be traced with attention_mask: You must specify exactly one of input_ids or inputs_embeds"
            r"\. See whether",
        ),
        ({}, ConfigError, "holds no tensor"),
        ([], ConfigError, "not a list"),
    ):
        with pytest.raises(kind, match=message):
            audit(model, batch)
    models.assert_unchanged(model, before)
    with pytest.raises(UnsupportedModelError, match="not a Linear"):
        audit(nn.Linear(2, 2), models.inputs())


def test_a_model_type_without_rules_is_told_of_the_audit() -> None:
    class Renamed(BertConfig):
        model_type = "renamed"

    model = BertModel(Renamed(**models.CONFIG))
    with pytest.warns(qdqpatch.errors.QuantizationWarning, match=r"qdqpatch\.audit\(model, batch\) lists"):
        qdqpatch.quantize(model)


def test_the_command_lists_the_audit(here: Path) -> None:
    models.calibrated().save_pretrained("ckpt")
    result = invoke("inspect", "ckpt", "--audit")
    assert result.exit_code == 0, result.output
    assert "BertModel: 21 operations on the path, 1 of them with float operands" in result.stdout
    assert "pooler.dense" in result.stdout
    data = json.loads(invoke("inspect", "ckpt", "--audit", "--json").stdout)
    assert len(data["audit"]["operations"]) == 21


def test_the_commands_say_that_a_model_type_has_no_rules(here: Path) -> None:
    SplinterModel(SplinterConfig(**models.CONFIG)).save_pretrained("ckpt")
    for command in (("convert", "ckpt", "out"), ("inspect", "ckpt")):
        result = invoke(*command)
        assert result.exit_code == 0, result.output
        text = " ".join(result.output.split())
        assert "There are no rules for splinter made of these classes" in text
        assert "`qdqpatch inspect --audit` lists what of its products" in text
