"""Every architecture that has rules, exported for every engine: as `levels.json` says, and the check passes.

`levels.json` has for each model type how far it is supported, and for each engine what of its layers stays
float there, and why, and what nothing reads and no file has; `#` stands for the number of a layer. Where the
oldest transformers that is supported is at another level, it has that too.
"""

import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import family_models as families
import pytest
import transformers
from transformers import PreTrainedModel
from transformers.utils import logging

import qdqpatch
from qdqpatch.choices import TARGETS
from qdqpatch.engines.shapes import Shape
from qdqpatch.errors import QdqError, QuantizationWarning
from qdqpatch.exporter.export import prepare_export
from qdqpatch.exporter.inputs import Inputs
from qdqpatch.exporter.kernels import AGAIN, product_name
from qdqpatch.exporter.options import ExportOptions
from qdqpatch.exporter.tracing import Traces
from qdqpatch.nn.names import letters_of
from qdqpatch.rules.architectures import ARCHITECTURES

OLDEST = transformers.__version__ == "5.0.0"
LEVELS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("levels.json").read_text())
CONSTANT = {"pos_proj", "pos_q_proj"}
"""What DeBERTa computes of constants alone where the length is fixed, and engines when they load the file."""

LAYERS_DIFFER = {"albert", "bert", "gemma3_text", "lilt", "modernbert"}
"""Have two layers here: one module twice, or attention of two kinds, or what the others are like."""

COPIES = {
    *("camembert", "data2vec-text", "xlm-roberta"),  # of roberta
    *("electra", "ernie", "megatron-bert", "tapas", "visual_bert"),  # of bert
}
"""Make masks and positions as another one does, so that one shape is enough, which takes half the time."""

ALIKE = {
    "siglip": "clip",
    "tapas": "megatron-bert",
    "visual_bert": "megatron-bert",
    "layoutlmv3": "megatron-bert",
    "esmc": "nomic_bert",
    "qwen3": "eurobert",
    "gemma3_text": "eurobert",
}
"""What another type is exported like, which is exported every time; these are with QDQPATCH_LEVELS=all."""

HEADS = {
    "albert": "AlbertForPreTraining",
    "bart": "BartForSequenceClassification",
    "camembert": "CamembertForMultipleChoice",
    "clip_text_model": "CLIPTextModelWithProjection",
    "clip_vision_model": "CLIPVisionModelWithProjection",
    "convbert": "ConvBertForQuestionAnswering",
    "data2vec-text": "Data2VecTextForTokenClassification",
    "deberta": "DebertaForMaskedLM",
    "deberta-v2": "DebertaV2ForSequenceClassification",
    "deit": "DeiTForImageClassificationWithTeacher",
    "dinov2": "Dinov2ForImageClassification",
    "electra": "ElectraForPreTraining",
    "ernie": "ErnieForNextSentencePrediction",
    "layoutlm": "LayoutLMForQuestionAnswering",
    "lilt": "LiltForTokenClassification",
    "megatron-bert": "MegatronBertForCausalLM",
    "rembert": "RemBertForCausalLM",
    "vit": "ViTForMaskedImageModeling",
}
"""Heads that are exported in place of base models: one of each kind, behind the same layers."""

OTHERS = {
    "qwen3": "Qwen3ForSequenceClassification",
    "t5": "T5ForConditionalGeneration",
    "tapas": "TapasForQuestionAnswering",
    "visual_bert": "VisualBertForRegionToPhraseAlignment",
}
"""Of these kinds too, whose layers are exported as of other types or as the base model."""

EVERY = os.environ.get("QDQPATCH_LEVELS") == "all"

NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")


def matmuls(model: PreTrainedModel) -> set[str]:
    """Return the names of the matmuls that the plan of a float model quantizes, as an export calls them."""
    found = set()
    for site in qdqpatch.plan(model).sites:
        letters = [pair for pair in map(letters_of, site.quantizers) if pair is not None]
        if letters:
            found.add(f"{site.path}.{product_name((letters[0], letters[1]))}")
        elif site.operation == "linear":
            found.add(site.path)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [family for family in families.FAMILIES if family in LEVELS and (EVERY or family not in ALIKE)]
)
def test_it_is_exported_as_its_level_says(family: str, tmp_path: Path) -> None:
    logging.disable_progress_bar()
    level = LEVELS[family].get("5.0.0", LEVELS[family]) if OLDEST else LEVELS[family]
    changes = {} if family in LAYERS_DIFFER else families.one_layer(family)
    head = families.heads(family)[HEADS[family]] if family in HEADS else None
    source = families.build(family, head, **changes)
    wanted, traces = matmuls(source), Traces()
    inside = f"{source.base_model_prefix}." if head is not None else ""
    shape = (2, 8) if family in COPIES or level.get("shape") == "one" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QuantizationWarning)
        model = qdqpatch.quantize(source)
    qdqpatch.calibrate(model, [Inputs(model).batch(Shape(3, 9))], method="max")
    for target in TARGETS:
        if reason := level.get("refused", {}).get(target):
            with pytest.raises(QdqError, match=re.escape(reason)):
                qdqpatch.export(model, tmp_path / target, target)
            continue
        folder = tmp_path / target
        folder.mkdir()
        result = prepare_export(model, target, ExportOptions(shape=shape), traces)(folder, folder)
        assert result.comparisons
        if result.operations is None:
            continue
        integer: dict[str, bool] = {}
        for operation in result.operations:
            name = operation.name.partition(AGAIN)[0]
            integer[name] = integer.get(name, True) and operation.integer
        missing = {NUMBER.sub("#", name) for name in wanted - {*integer}}
        unread = {name.removeprefix(inside) for name in missing if name.rpartition(".")[2] not in CONSTANT}
        assert unread == {*level.get("unread", ())}, target
        floats = {
            NUMBER.sub("#", name) for name, is_integer in integer.items() if name in wanted and not is_integer
        }
        assert floats == {*level.get("float", {}).get(target, {})}, target


@pytest.mark.slow
@pytest.mark.parametrize("family", OTHERS)
def test_other_kinds_of_heads(family: str, tmp_path: Path) -> None:
    source = families.build(family, families.heads(family)[OTHERS[family]], **families.one_layer(family))
    wanted = matmuls(source)
    model = qdqpatch.quantize(source)
    qdqpatch.calibrate(model, [Inputs(model).batch(Shape(3, 9))], method="max")
    result = prepare_export(model, "onnxruntime", ExportOptions(shape=(2, 8)))(tmp_path, tmp_path)
    assert result.comparisons
    assert result.operations is not None
    assert wanted == {operation.name for operation in result.operations if operation.integer}


def test_every_level_is_of_an_architecture() -> None:
    assert {*LEVELS} <= {*ARCHITECTURES}
    for level in LEVELS.values():
        assert level["level"] in ("full", "partial", "refused")
        assert (level["level"] == "full") == (level.keys() <= {"level", "unread", "5.0.0"})
