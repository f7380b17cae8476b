"""The verbs on what people hold: models of sentence-transformers, and texts."""

import copy
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from sentence_folders import TEXTS, write_embedder
from torch import nn
from transformers import PreTrainedModel

import qdqpatch
from qdqpatch import calibration
from qdqpatch.checkpoint.source import open_checkpoint
from qdqpatch.errors import CheckpointError, DataError, UnsupportedModelError
from qdqpatch.patching.apply import is_quantized

CONFIG = {"prompts": {"query": "a "}, "default_prompt_name": "query"}


class Pipeline:
    """Holds a model as transformers' pipelines do."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model


class Compiled(nn.Module):
    """Has every attribute of the model in it, as what torch.compile returns."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self._orig_mod = model

    def __getattr__(self, name: str) -> object:
        return super().__getattr__(name) if name == "_orig_mod" else getattr(self._orig_mod, name)


@pytest.fixture
def embedder(tmp_path: Path) -> nn.Module:
    library = pytest.importorskip("sentence_transformers")
    folder = write_embedder(tmp_path / "embedder", dense=True, **CONFIG)
    return library.SentenceTransformer(str(folder), device="cpu")


def test_the_model_inside_is_quantized_in_place(embedder: nn.Module) -> None:
    inner = embedder.transformers_model
    before = embedder.encode(TEXTS, convert_to_tensor=True)
    assert str(qdqpatch.plan(embedder)) == str(qdqpatch.plan(inner))
    assert qdqpatch.quantize(embedder) is embedder
    assert embedder.transformers_model is inner
    assert is_quantized(inner)
    assert qdqpatch.calibrate(embedder, TEXTS, "max") is embedder
    found = embedder.encode(TEXTS, convert_to_tensor=True)
    assert 0.98 < torch.nn.functional.cosine_similarity(found, before).min() < 1 - 1e-6
    assert qdqpatch.dequantize(embedder) is embedder
    assert torch.equal(embedder.encode(TEXTS, convert_to_tensor=True), before)


def test_texts_are_read_as_the_embedder_reads_them(embedder: nn.Module) -> None:
    """With its prompt, cut where it cuts, in batches of which each range sees all."""
    inner = embedder.transformers_model
    long = [*TEXTS, " ".join(["the cat sat on the mat"] * 4)]
    qdqpatch.ptq(embedder, long, method="max")
    ranges = models.ranges(inner)
    qdqpatch.dequantize(embedder)
    tokens = embedder.tokenizer(
        [f"a {text}" for text in long], padding=True, truncation=True, max_length=12, return_tensors="pt"
    )
    qdqpatch.ptq(inner, [dict(tokens)], method="max")
    models.assert_equal(models.ranges(inner), ranges)


def test_texts_need_a_tokenizer(embedder: nn.Module) -> None:
    inner, tokenizer = embedder.transformers_model, embedder.tokenizer
    for call in (qdqpatch.ptq, lambda model, texts: qdqpatch.calibrate(qdqpatch.quantize(model), texts)):
        with pytest.raises(DataError, match=r"pass the model's tokenizer too, as tokenizer=\.\.\."):
            call(inner, TEXTS)
        if is_quantized(inner):
            qdqpatch.dequantize(inner)
    with pytest.raises(DataError, match="pass a list of texts"):
        qdqpatch.ptq(inner, "the cat", tokenizer=tokenizer)
    long = [" ".join(["the cat"] * 8)]
    tokenizer.model_max_length = 12
    qdqpatch.ptq(inner, long, method="max", tokenizer=tokenizer)
    found = models.ranges(inner)
    qdqpatch.dequantize(inner)
    batch = tokenizer(long, truncation=True, max_length=12, return_tensors="pt")
    qdqpatch.ptq(inner, [dict(batch)], method="max")
    models.assert_equal(models.ranges(inner), found)


class Column:
    """As pandas has them: no sequence of Python's."""

    def __init__(self, texts: list[str]) -> None:
        self.tolist = lambda: texts


def test_texts_come_in_many_forms(embedder: nn.Module) -> None:
    model, tokenizer = models.build(), embedder.tokenizer
    qdqpatch.ptq(model, TEXTS, method="max", tokenizer=tokenizer)
    expected = models.ranges(model)
    for texts in (Column(TEXTS), np.array(TEXTS), [{"text": text, "label": 0} for text in TEXTS]):
        qdqpatch.calibrate(model, texts, "max", tokenizer=tokenizer)
        models.assert_equal(models.ranges(model), expected)
    for texts, message in (
        (Path("texts.txt"), "For a file, qdqpatch.data.text_batches"),
        ((text for text in TEXTS), r"Batch 1 is a str; .* Tokenize texts first; .* with tokenizer="),
        (tokenizer, "another iterable of them, not a "),
        ({"text": TEXTS}, r"This is one batch, .*: pass \[batch\]"),
    ):
        with pytest.raises(DataError, match=message):
            qdqpatch.ptq(model, texts, tokenizer=tokenizer)
    with pytest.raises(DataError, match=r"is a name: pass AutoTokenizer\.from_pretrained\('it'\)"):
        qdqpatch.ptq(model, TEXTS, tokenizer="it")


@pytest.mark.slow
def test_export_takes_it_with_its_pooling(embedder: nn.Module, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    embedder.prompts["passage"] = "the "
    qdqpatch.ptq(embedder, TEXTS, method="max")
    result = qdqpatch.export(embedder, tmp_path / "out", "onnxruntime", shape=(1, 6))
    assert [one.output for one in result.comparisons] == ["last_hidden_state", "sentence_embedding"]
    session = onnxruntime.InferenceSession(result.file)
    batch = embedder.tokenizer("a dog sat .", padding="max_length", max_length=6, return_tensors="np")
    _, vector = session.run(None, {value.name: batch[value.name] for value in session.get_inputs()})
    expected = embedder.encode("dog sat .", convert_to_tensor=True)
    assert torch.nn.functional.cosine_similarity(torch.from_numpy(vector[0]), expected, dim=0) > 0.999
    names = {path.relative_to(result.folder).as_posix() for path in result.folder.rglob("*.*")}
    assert names >= {"modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors", "tokenizer.json"}
    assert "model.safetensors" not in names
    assert '"passage": "the "' in (result.folder / "config_sentence_transformers.json").read_text()


def test_a_cross_encoder(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    write_embedder(tmp_path)
    (tmp_path / "modules.json").unlink()
    models.build("BertForSequenceClassification", num_labels=1).save_pretrained(tmp_path)
    reranker = library.CrossEncoder(str(tmp_path), device="cpu")
    pairs = [(TEXTS[0], TEXTS[1]), (TEXTS[2], TEXTS[3])]
    before = reranker.predict(pairs)
    assert qdqpatch.ptq(reranker, pairs, method="max") is reranker
    assert is_quantized(reranker.transformers_model)
    assert abs(reranker.predict(pairs) - before).max() < 0.1


def test_of_two_models_inside_none_is_left_out(embedder: nn.Module, tmp_path: Path) -> None:
    """As where queries and documents have encoders of their own."""
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    second = copy.deepcopy(embedder[0])
    routes = modules.Router.for_query_document([embedder[0]], [second])
    model = pytest.importorskip("sentence_transformers").SentenceTransformer(modules=[routes], device="cpu")
    with pytest.raises(
        UnsupportedModelError, match=r"has 2 transformers models\. .*\('0\.sub_modules\.query\.0"
    ):
        qdqpatch.quantize(model)
    assert not is_quantized(model)
    model.save_pretrained(str(tmp_path / "routed"))
    with pytest.raises(
        CheckpointError, match=r"routes texts to 2 transformers: .*routed/document_0_Transformer\.$"
    ):
        open_checkpoint(str(tmp_path / "routed"))
    routes = modules.Router.for_query_document([embedder[0]], [embedder[0]])
    qdqpatch.quantize(type(model)(modules=[routes], device="cpu"))


def test_steps_are_told_the_model_inside(embedder: nn.Module) -> None:
    qdqpatch.ptq(embedder, TEXTS, method="max")
    batch = dict(embedder.tokenizer(TEXTS, padding=True, return_tensors="pt"))
    inside = r"not a SentenceTransformer\. .* its attribute \.transformers_model\."
    for step in (calibration.shift, calibration.collect, calibration.correct_biases):
        with pytest.raises(UnsupportedModelError, match=inside):
            step(embedder, [batch])
    assert str(qdqpatch.audit(embedder, batch)) == str(qdqpatch.audit(embedder.transformers_model, batch))


def test_refusals_name_the_attribute(embedder: nn.Module) -> None:
    wrapped = Pipeline(models.float_model())
    for call in (
        qdqpatch.quantize,
        qdqpatch.plan,
        lambda model: qdqpatch.calibrate(model, []),
        lambda model: qdqpatch.ptq(model, []),
        lambda model: qdqpatch.export(model, "out"),
    ):
        with pytest.raises(
            UnsupportedModelError, match=r"not a Pipeline\. Of a wrapper, pass .* attribute \.model\."
        ):
            call(wrapped)
        with pytest.raises(
            UnsupportedModelError, match=r"Load it first: AutoModel\.from_pretrained\('my-bert'\)"
        ):
            call("my-bert")
    with pytest.raises(UnsupportedModelError, match=r"not a DataParallel\. .* its attribute \.module\."):
        qdqpatch.quantize(nn.DataParallel(models.float_model()))
    with pytest.raises(UnsupportedModelError, match=r"not a Compiled\. .* its attribute \._orig_mod\."):
        qdqpatch.quantize(Compiled(models.build("BertForMaskedLM", num_hidden_layers=1)))
    with pytest.raises(
        UnsupportedModelError, match=r"not a Linear\. Of a pipeline or wrapper, pass the model in"
    ):
        qdqpatch.quantize(nn.Linear(1, 1))
    del embedder[0].model
    embedder[0].model = nn.Linear(1, 1)
    with pytest.raises(
        UnsupportedModelError, match=r"\(\.transformers_model\) is a Linear: load it in torch"
    ):
        qdqpatch.quantize(embedder)
