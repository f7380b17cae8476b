import copy
import pickle

import models
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.bert.modeling_bert import BertOutput, BertSelfOutput

from qdqpatch import QDQConfig, plan, quantize
from qdqpatch.errors import OverrideError, QuantizationWarning, UnsupportedModelError
from qdqpatch.patching.plan import Plan

LAYERS = models.CONFIG["num_hidden_layers"]


def counts(found: Plan) -> dict[str, int]:
    """Count the sites by the rule that found them."""
    rules = [site.rule for site in found.sites]
    return {rule: rules.count(rule) for rule in dict.fromkeys(rules)}


def miss_of(found: Plan, path: str) -> str:
    """Return the reason of the one miss at a path."""
    (miss,) = [miss for miss in found.misses if miss.path == path]
    return miss.reason


def test_sites_of_every_head(any_head: str, float_model) -> None:
    linears, matmuls, adds = (10, 4, 3) if any_head == models.CROSS else (6, 2, 2)
    expected = {"Linears": linears, "AttentionMatmuls": matmuls, "ResidualAdds": adds}
    found = plan(float_model(any_head))
    assert counts(found) == {rule: LAYERS * number for rule, number in expected.items()}
    assert found.model == any_head.split()[0]


def test_every_linear_and_embedding_is_a_site_or_a_miss(any_head: str, float_model) -> None:
    model = float_model(any_head)
    found = plan(model)
    listed = {place.path for place in (*found.sites, *found.misses)}
    layers = {path for path, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Embedding))}
    assert layers <= listed
    assert not {site.path for site in found.sites} & {miss.path for miss in found.misses}


def test_a_plan_can_be_copied_and_pickled(float_model, uncalibrated) -> None:
    for model in (float_model(models.CROSS), uncalibrated("BertModel")):
        found = plan(model)
        for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
            assert other == found
            assert other.record == found.record


HEAD_LINEARS = {
    "BertModel": set(),
    "BertLMHeadModel": {"cls.predictions.transform.dense", "cls.predictions.decoder"},
    "BertForPreTraining": {
        "cls.predictions.transform.dense",
        "cls.predictions.decoder",
        "cls.seq_relationship",
    },
    "BertForMaskedLM": {"cls.predictions.transform.dense", "cls.predictions.decoder"},
    "BertForSequenceClassification": {"classifier"},
    "BertForNextSentencePrediction": {"cls.seq_relationship"},
    "BertForMultipleChoice": {"classifier"},
    "BertForTokenClassification": {"classifier"},
    "BertForQuestionAnswering": {"qa_outputs"},
}


def test_the_heads_linears_stay_float_until_they_are_turned_on(head: str, float_model) -> None:
    off, on = plan(float_model(head)), plan(float_model(head), QDQConfig(head=True))
    reasons = {miss.path: miss.reason for miss in off.misses}
    for path in HEAD_LINEARS[head]:
        assert reasons[path] == "head=False in the configuration, as in QDQBERT"
    added = {site.path for site in on.sites} - {site.path for site in off.sites}
    assert added == HEAD_LINEARS[head]


@pytest.mark.parametrize(
    ("part", "rule", "number"),
    [("linears", "Linears", 12), ("matmuls", "AttentionMatmuls", 4), ("residual_adds", "ResidualAdds", 4)],
)
def test_a_part_that_is_off_is_a_miss_with_the_reason(part: str, rule: str, number: int, float_model) -> None:
    default, found = plan(float_model()), plan(float_model(), QDQConfig(**{part: False}))
    assert rule not in counts(found)
    assert [miss.reason for miss in found.misses].count(f"{part}=False in the configuration") == number
    assert len(found.sites) + len(found.misses) == len(default.sites) + len(default.misses)


@pytest.mark.parametrize(
    ("part", "paths"),
    [
        ("embeddings", {f"embeddings.{kind}_embeddings" for kind in ("word", "position", "token_type")}),
        ("pooler", {"pooler.dense"}),
    ],
)
def test_a_part_that_is_off_by_default_can_be_turned_on(part: str, paths: set[str], float_model) -> None:
    off, on = plan(float_model()), plan(float_model(), QDQConfig(**{part: True}))
    assert {miss.path for miss in off.misses if f"{part}=False" in miss.reason} == paths
    assert {site.path for site in on.sites} - {site.path for site in off.sites} == paths


def test_an_override_that_turns_a_site_off_is_the_reason(float_model) -> None:
    found = plan(float_model(), QDQConfig(overrides=["*.layer.0.*.query.*=off"]))
    reason = miss_of(found, "encoder.layer.0.attention.self.query")
    assert reason == "override '*.layer.0.*.query.*' turns it off"


def test_a_site_with_one_quantizer_off_is_still_a_site(float_model) -> None:
    found = plan(float_model(), QDQConfig(overrides=["*.query._input_quantizer=off"]))
    (site,) = [site for site in found.sites if site.path == "encoder.layer.0.attention.self.query"]
    assert site.quantizers["_input_quantizer"] is None
    assert site.quantizers["_weight_quantizer"] is not None


class LowRankLinear(nn.Linear):
    """Might compute anything."""


def test_a_subclass_of_linear_stays_float(float_model) -> None:
    model = float_model()
    model.encoder.layer[0].attention.self.query = LowRankLinear(24, 24)
    reason = miss_of(plan(model), "encoder.layer.0.attention.self.query")
    assert reason.startswith("it is a LowRankLinear, and only a plain nn.Linear is known")
    with pytest.warns(
        QuantizationWarning, match=r"linear of encoder\.layer\.0\.attention\.self\.query \(it is a Low"
    ):
        quantize(model)
    assert type(model.encoder.layer[0].attention.self.query) is LowRankLinear


class NoAdd(BertSelfOutput):
    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(hidden_states))


class TwoAdds(BertOutput):
    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(hidden_states) + input_tensor) + input_tensor


class Calling(BertOutput):
    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return super().forward(hidden_states, input_tensor) if input_tensor.max() > 0 else input_tensor


@pytest.mark.parametrize(
    ("path", "block_class", "reason"),
    [
        ("encoder.layer.1.attention.output", NoAdd, "its forward has 0 adds"),
        ("encoder.layer.1.output", TwoAdds, "its forward has 2 adds"),
        ("encoder.layer.1.output", Calling, "its forward has 0 adds"),
    ],
)
def test_a_block_that_cannot_be_rewritten_stays_float(
    path: str, block_class: type, reason: str, float_model
) -> None:
    model = float_model()
    model.get_submodule(path).__class__ = block_class
    found = plan(model)
    assert miss_of(found, path).startswith(reason)
    assert counts(found) == {"Linears": 12, "AttentionMatmuls": 4, "ResidualAdds": 3}
    with pytest.warns(QuantizationWarning, match=f"residual add of {path} .{reason}"):
        quantize(model)
    assert type(model.get_submodule(path)) is block_class
    assert all(tensor.isfinite().all() for tensor in models.outputs(model).values())


def test_what_the_configuration_leaves_float_is_no_shortfall(float_model) -> None:
    model = float_model("BertForMaskedLM")
    model.cls.predictions.decoder.__class__ = LowRankLinear
    assert plan(model).shortfall() == ""
    assert "cls.predictions.decoder" in plan(model, QDQConfig(head=True)).shortfall()


def test_an_architecture_that_no_rule_reaches_is_refused() -> None:
    tiny = GPT2LMHeadModel(GPT2Config(vocab_size=48, n_embd=24, n_head=2, n_layer=1, n_positions=16))
    with pytest.raises(
        UnsupportedModelError,
        match=r"Nothing in GPT2LMHeadModel .* model type gpt2, which computes with matrix product, Conv1D",
    ):
        plan(tiny)


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), nn.Sequential(), None, 3], ids=type)
def test_what_is_no_transformers_model_is_refused(thing: object) -> None:
    with pytest.raises(UnsupportedModelError, match=f"not a {type(thing).__name__}"):
        plan(thing)  # type: ignore[arg-type]


def test_a_model_inside_a_wrapper_is_not_looked_for(float_model) -> None:
    with pytest.raises(UnsupportedModelError, match="pass the model inside it"):
        plan(nn.DataParallel(float_model()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "turned_on"),
    [
        (QDQConfig(linears=False, matmuls=False, residual_adds=False), "none of them"),
        (QDQConfig(overrides=["*=off"]), "linears, matmuls, residual_adds"),
        (QDQConfig.preset("linear-only", overrides=["*=off"]), "turns on linears,"),
    ],
)
def test_nothing_left_says_what_was_looked_for(config: QDQConfig, turned_on: str, float_model) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        plan(float_model(), config)
    assert "Nothing in BertModel would be quantized" in str(error.value)
    assert "Linears, attention matmuls and residual adds" in str(error.value)
    assert turned_on in str(error.value)


def test_a_model_without_layers_has_no_site() -> None:
    with pytest.raises(UnsupportedModelError, match="Nothing in BertModel"):
        plan(models.build(num_hidden_layers=0))


def test_nothing_left_says_why_where_all_is_hooked(float_model) -> None:
    model = float_model()
    for module in model.modules():
        if module is not model:
            module.forward = module.forward
    with pytest.raises(UnsupportedModelError, match=r"All of that stays float: its forward was replaced on"):
        plan(model)


def test_planning_changes_nothing(any_head: str, float_model) -> None:
    model = float_model(any_head)
    before = models.snapshot(model)
    random_state = torch.random.get_rng_state()
    plan(model, QDQConfig(**models.PARTS_ON, overrides=["*.layer.0.*=off"]))
    with pytest.raises(OverrideError):
        plan(model, QDQConfig(overrides=["nothing=off"]))
    models.assert_unchanged(model, before)
    assert torch.equal(torch.random.get_rng_state(), random_state)


@pytest.mark.parametrize(
    "config", [None, QDQConfig(**models.PARTS_ON, overrides=["*.layer.0.*.query.*=off"])]
)
def test_the_plan_of_a_quantized_model_is_the_one_before(
    config: QDQConfig | None, head: str, float_model
) -> None:
    model = float_model(head)
    before = plan(model, config)
    quantize(model, config)
    state = models.snapshot(model)
    after = plan(model)
    assert after == before
    models.assert_unchanged(model, state)


def test_planning_a_quantized_model_copies_no_weight(calibrated, monkeypatch: pytest.MonkeyPatch) -> None:
    model = calibrated()

    def refuse(*args: object) -> None:
        raise AssertionError("a tensor was copied")

    monkeypatch.setattr(torch.Tensor, "__deepcopy__", refuse)
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", refuse)
    assert len(plan(model).sites) == LAYERS * 10


def test_a_quantized_model_can_be_planned_otherwise(calibrated, float_model) -> None:
    config = QDQConfig.preset("linear-only")
    model = calibrated()
    before = models.snapshot(model)
    assert plan(model, config) == plan(float_model(), config)
    models.assert_unchanged(model, before)


def test_the_config_given_is_left_alone(float_model) -> None:
    config = QDQConfig()
    found = plan(float_model(), config)
    assert config.weight is None
    assert found.config.weight is not None
