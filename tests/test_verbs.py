"""Every verb on every state of a model: it works, or it is refused and the model is as it was."""

from pathlib import Path

import models
import pytest
import torch
import verbs
from transformers import PreTrainedModel

from qdqpatch import training
from qdqpatch.errors import QdqError
from qdqpatch.patching.apply import is_quantized

NO_RANGE = "no range"
LEARNED = "learns its range"
REFUSED: dict[tuple[str, str], str] = {
    **{("quantize", state): "quantized already" for state in verbs.STATES},
    **{
        (verb, state): LEARNED
        for verb in ("smooth", "shift", "smooth_inputs", "smooth_residuals", "switch off")
        for state in ("lsq", "pact")
    },
    **{
        (verb, "uncalibrated"): NO_RANGE
        for verb in (
            "refine_ranges",
            "round_weights",
            "correct_biases",
            "fuse_inputs",
            "fuse_qkv",
            "clip_gelu",
            "expand_amax",
            "train_ranges lsq",
            "train_ranges clip",
            "train_ranges follow",
            "export",
        )
    },
    ("round_weights", "tracked"): "follows the weight",
    ("clip_gelu", "fixed"): "fixes the range",
    ("smooth_inputs", "fixed"): "no input to smooth",
    ("smooth_residuals", "fixed"): "no residual add to smooth",
    ("refine_ranges", "fixed"): "no layer with a range to refine",
    ("ptq", "fixed"): "no layer with a range to refine",
    ("train_ranges lsq", "per channel"): "one per tensor",
    ("train_ranges clip", "per channel"): "one per tensor",
    ("export", "per channel"): "range per channel",
}
"""What is refused, and how the error says why. Everything else works."""

REPLACES = ("load_state_dict assign", "load_state_dict fp16 assign")
"""What gives the model other Parameters, as torch says of `assign`."""

TAKES_RANGES = ("freeze_ranges", "train_ranges follow", "dequantize")
"""What takes learned ranges away from the parameters, as it says."""

COPIES = ("save and load", "deepcopy", "pickle")


def parameters(model: PreTrainedModel) -> dict[str, tuple[int, bool]]:
    """Return identity and `requires_grad` of every parameter."""
    return {name: (id(parameter), parameter.requires_grad) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("state", verbs.STATES)
@pytest.mark.parametrize("verb", verbs.VERBS)
def test_a_verb_works_or_is_refused(verb: str, state: str, tmp_path: Path) -> None:
    model = verbs.state(state)
    before, known, outputs = models.snapshot(model), parameters(model), models.outputs(model, verbs.NAME)
    reason = REFUSED.get((verb.removesuffix(verbs.INFERENCE), state))
    if reason is not None:
        with pytest.raises(QdqError, match=reason):
            verbs.VERBS[verb](model, tmp_path)
        models.assert_unchanged(model, before)
        assert parameters(model) == known
        models.assert_equal(models.outputs(model, verbs.NAME), outputs)
        return
    result = verbs.VERBS[verb](model, tmp_path)
    if verb in COPIES:
        assert result is not model
        models.assert_equal(models.outputs(result, verbs.NAME), outputs)
        models.assert_equal(models.outputs(model, verbs.NAME), outputs)
    else:
        assert result is model
        now = parameters(model)
        taken = {name for name in known if name.endswith("_amax")} if verb in TAKES_RANGES else set()
        assert {name: facts[1] for name, facts in known.items() if name not in taken}.items() <= {
            name: facts[1] for name, facts in now.items()
        }.items()
        if verb not in REPLACES:
            assert {name: facts for name, facts in known.items() if name not in taken}.items() <= now.items()
    verbs.check_ranges(result)
    if verb != "dequantize":
        verbs.check_configuration(result)
    assert is_quantized(result) is (verb != "dequantize")
    verbs.check_works(result)


def step(model: PreTrainedModel) -> None:
    """Take one step of training, after which tracked ranges are those of the weights before it."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**models.inputs(verbs.NAME), **models.labels(verbs.NAME)).loss.backward()
    optimizer.step()
    model.eval()


@pytest.mark.parametrize("verb", ["export", "collect", "deepcopy", "pickle", "plan"])
def test_what_only_reads_leaves_tracked_ranges(verb: str, tmp_path: Path) -> None:
    model = verbs.state("tracked")
    step(model)
    before = models.ranges(model)
    verbs.VERBS[verb](model, tmp_path)
    models.outputs(model, verbs.NAME)
    models.assert_equal(models.ranges(model), before)


@pytest.mark.parametrize("state", ["calibrated", "per tensor"])
def test_weights_are_tracked_after_expanding(state: str) -> None:
    model = verbs.calibrated(weight={"axis": None}) if state == "per tensor" else verbs.calibrated()
    training.train_ranges(model, "frozen", "follow")
    verbs.VERBS["expand_amax"](model, Path())
    step(model)
    training.freeze_ranges(model)
    for module in model.modules():
        if hasattr(module, "_weight_quantizer"):
            own = module.weight.detach().abs().amax(1, keepdim=True)
            assert torch.equal(module._weight_quantizer.amax, own)


def test_a_learned_range_below_zero_is_saved_as_it_is_used(tmp_path: Path) -> None:
    model = verbs.state("lsq")
    quantizer = model.bert.encoder.layer[1].intermediate.dense._input_quantizer
    with torch.no_grad():
        quantizer._amax.fill_(-0.5)
    outputs = models.outputs(model, verbs.NAME)
    loaded = verbs.saved_and_loaded(model, tmp_path)
    amax = loaded.bert.encoder.layer[1].intermediate.dense._input_quantizer.amax
    assert amax == 2.0**-24
    models.assert_equal(models.outputs(loaded, verbs.NAME), outputs)


def test_an_optimizer_cannot_move_what_was_frozen() -> None:
    model = verbs.state("lsq")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**models.inputs(verbs.NAME), **models.labels(verbs.NAME)).loss.backward()
    training.freeze_ranges(model)
    before = models.ranges(model)
    optimizer.step()
    models.assert_equal(models.ranges(model), before)


def test_new_rows_of_a_table_get_their_own_ranges() -> None:
    model = verbs.state("calibrated")
    table = model.bert.embeddings.word_embeddings
    before = 2 * table._weight_quantizer.amax
    table._weight_quantizer.amax = before
    verbs.resized(model, Path())
    amax = table._weight_quantizer.amax
    assert table.num_embeddings == len(amax) == len(before) + 3
    assert torch.equal(amax[:-3], before)
    assert torch.equal(amax[-3:], table.weight.detach()[-3:].abs().amax(1, keepdim=True))
    model.resize_token_embeddings(10)
    assert torch.equal(table._weight_quantizer.amax, before[:10])
