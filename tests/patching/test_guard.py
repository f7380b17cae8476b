"""Where this package is not imported, transformers refuses a quantized checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import family_models as families
import models
import pytest
import torch
from sentence_folders import write_embedder
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    PreTrainedModel,
    pipeline,
)
from transformers.quantizers import auto

import qdqpatch
from qdqpatch.patching.apply import is_quantized
from qdqpatch.patching.guard import FIELD, PART, WHOLE

REFUSED = f'"{WHOLE}"` is not supported'


@pytest.fixture
def not_imported(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What makes transformers know as little of this package as where it is not imported."""

    def forget() -> None:
        for mapping in (auto.AUTO_QUANTIZATION_CONFIG_MAPPING, auto.AUTO_QUANTIZER_MAPPING):
            monkeypatch.delitem(mapping, "qdqpatch")

    return forget


LOADERS: dict[str, Callable[[Path], Any]] = {
    "AutoModel": AutoModel.from_pretrained,
    "another head": AutoModelForSequenceClassification.from_pretrained,
    "its class": BertModel.from_pretrained,
    "an attention": lambda folder: AutoModel.from_pretrained(folder, attn_implementation="eager"),
    "a config": lambda folder: AutoModel.from_pretrained(folder, config=AutoConfig.from_pretrained(folder)),
    "pipeline": lambda folder: pipeline("feature-extraction", str(folder)),
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_a_quantized_checkpoint_is_refused(
    load: Callable[[Path], Any], calibrated, not_imported, tmp_path: Path
) -> None:
    calibrated().save_pretrained(tmp_path)
    not_imported()
    with pytest.raises(ValueError, match=REFUSED):
        load(tmp_path)


@pytest.mark.parametrize("family", ["mpnet", "t5", "vit"])
def test_models_without_an_interface_for_attention_are_refused_too(
    family: str, not_imported, tmp_path: Path
) -> None:
    model = families.calibrated(family)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert is_quantized(loaded)
    models.assert_equal(dict(loaded.state_dict()), dict(model.state_dict()))
    not_imported()
    with pytest.raises(ValueError, match=REFUSED):
        type(model).from_pretrained(tmp_path)


def test_options_do_what_they_did(calibrated, tmp_path: Path) -> None:
    model = calibrated()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, output_attentions=True)
    assert is_quantized(loaded)
    assert len(loaded(**models.inputs()).attentions) == 2
    assert getattr(loaded.config, FIELD) == getattr(model.config, FIELD) != WHOLE


def test_what_makes_a_model_without_its_ranges_is_refused(calibrated, tmp_path: Path) -> None:
    calibrated().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=REFUSED):
        AutoModel.from_config(AutoConfig.from_pretrained(tmp_path))


def test_a_dequantized_model_is_everyones(calibrated, not_imported, tmp_path: Path) -> None:
    model = calibrated("BertForMaskedLM")
    model.save_pretrained(tmp_path / "int8")
    qdqpatch.dequantize(model).save_pretrained(tmp_path / "float")
    assert (
        not {FIELD, "quantization_config"} & json.loads((tmp_path / "float/config.json").read_text()).keys()
    )
    not_imported()
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "float")
    models.assert_equal(models.outputs(loaded, "BertForMaskedLM"), models.outputs(model, "BertForMaskedLM"))


def clip() -> PreTrainedModel:
    parts = {
        f"{part}_config": families.CONFIGS[f"clip_{part}_model"] | {"projection_dim": 8}
        for part in ("text", "vision")
    }
    torch.manual_seed(1)
    return CLIPModel(CLIPConfig(**parts, projection_dim=8)).eval()


def test_parts_of_a_model_are_refused(not_imported, tmp_path: Path) -> None:
    """Their ranges have other names, so that a part would be a float model even with this package."""
    qdqpatch.quantize(clip()).save_pretrained(tmp_path)
    loaded = CLIPModel.from_pretrained(tmp_path)
    assert is_quantized(loaded)
    for config in (loaded.config, loaded.config.text_config, loaded.config.vision_config):
        assert getattr(config, FIELD) not in (WHOLE, PART)
    with pytest.raises(ValueError, match=f'"{PART}"` is not supported'):
        CLIPTextModel.from_pretrained(tmp_path)
    not_imported()
    with pytest.raises(ValueError, match=REFUSED):
        CLIPModel.from_pretrained(tmp_path)
    loaded.config.text_config.to_json_file(tmp_path / "text.json")
    assert json.loads((tmp_path / "text.json").read_text())[FIELD] == PART
    qdqpatch.dequantize(loaded)
    loaded.config.text_config.to_json_file(tmp_path / "text.json")
    assert FIELD not in json.loads((tmp_path / "text.json").read_text())


@pytest.fixture
def embedder(tmp_path: Path) -> Path:
    folder = write_embedder(tmp_path / "embedder")
    model = AutoModel.from_pretrained(folder)
    qdqpatch.calibrate(qdqpatch.quantize(model), [models.inputs()]).save_pretrained(folder)
    return folder


def test_sentence_transformers_refuses_it(embedder: Path, not_imported) -> None:
    library = pytest.importorskip("sentence_transformers")
    not_imported()
    with pytest.raises(ValueError, match=REFUSED):
        library.SentenceTransformer(str(embedder), device="cpu")
