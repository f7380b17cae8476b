"""What a model is traced and compared with."""

import family_models as families
import models
import pytest
import torch
import transformers

from qdqpatch.engines.shapes import Shape
from qdqpatch.errors import ExportError
from qdqpatch.exporter.inputs import CHOICES, Inputs


@pytest.mark.parametrize("name", models.CHANGES)
def test_batches_are_what_the_head_takes(name: str) -> None:
    model = models.float_model(name)
    batches = list(Inputs(model).batches())
    wanted = models.inputs(name)
    lengths = []
    for batch in batches:
        assert batch.keys() == wanted.keys()
        assert {key: tensor.dtype for key, tensor in batch.items()} == {
            key: tensor.dtype for key, tensor in wanted.items()
        }
        assert {key: tensor.dim() for key, tensor in batch.items()} == {
            key: tensor.dim() for key, tensor in wanted.items()
        }
        lengths.append((len(batch["input_ids"]), batch["input_ids"].shape[-1]))
        models.outputs(model, name, **batch)
    sizes, sequences = zip(*lengths, strict=True)
    assert {1, 2} < set(sizes)
    assert len(set(sequences)) > 2
    assert max(sequences) == models.CONFIG["max_position_embeddings"]
    masks = [batch["attention_mask"] for batch in batches]
    assert any((mask == 0).any() for mask in masks)
    for batch, mask in zip(batches, masks, strict=True):
        assert (mask.flatten(0, -2)[0] == 1).all()
        assert (mask.diff(dim=-1) <= 0).all()
        assert (batch["input_ids"][mask == 0] == 0).all()
    assert {*torch.cat([batch["token_type_ids"].flatten() for batch in batches]).tolist()} == {0, 1}


def test_batches_differ_and_are_the_same_each_time() -> None:
    one, other = (list(Inputs(models.float_model(), Shape(2, 8)).batches()) for _ in range(2))
    assert [batch["input_ids"].shape for batch in one] == [(2, 8)] * 3
    for index in range(3):
        models.assert_equal(one[index], other[index])
        assert not torch.equal(one[index]["input_ids"], one[index - 1]["input_ids"])


@pytest.mark.parametrize("shape", [Shape(2, 8), Shape(1, 8)])
def test_a_fixed_shape_is_padded_too(shape: Shape) -> None:
    masks = [batch["attention_mask"] for batch in Inputs(models.float_model(), shape).batches()]
    assert any((mask == 0).any() for mask in masks)


def test_words_of_a_tokenizer() -> None:
    def tokenizer(text: str) -> dict[str, list[int]]:
        return {"input_ids": [5, 40, 99, 7]}  # 99 is not in the vocabulary

    first, *_ = Inputs(models.float_model()).batches(tokenizer)
    assert first["input_ids"].tolist() == [[5, 40, 7, 5, 40, 7, 5, 40]]


def test_axes_have_names() -> None:
    batch, choices, sequence = {0: "batch"}, {1: "choices"}, {1: "sequence"}
    assert Inputs(models.float_model()).axes()["input_ids"] == batch | sequence
    multiple = Inputs(models.float_model("BertForMultipleChoice")).axes()
    assert multiple["attention_mask"] == batch | choices | {2: "sequence"}
    crossed = Inputs(models.float_model(models.CROSS)).axes()
    assert crossed["encoder_hidden_states"] == batch | {1: "encoder_sequence"}
    assert crossed["encoder_attention_mask"] == batch | {1: "encoder_sequence"}
    assert Inputs(models.float_model(), Shape(2, 8)).axes() == {}
    assert Inputs(models.float_model("BertForMultipleChoice")).batch(Shape(2, 8))["input_ids"].shape == (
        2,
        CHOICES,
        8,
    )


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (Shape(1, 33), r"^The model has 32 positions; sequences of 33 do not fit\.$"),
        (Shape(0, 8), r"^A batch and a sequence have at least 1\.$"),
        (Shape(1, 0), r"^A batch and a sequence have at least 1\.$"),
    ],
)
def test_shapes_that_do_not_fit(shape: Shape, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        Inputs(models.float_model(), shape).check()
    Inputs(models.float_model(), Shape(1, 32)).check()
    Inputs(models.float_model()).check()


@pytest.mark.parametrize("positions", [4, 16])
def test_models_with_few_positions(positions: int) -> None:
    model = models.build("BertForTokenClassification", max_position_embeddings=positions)
    inputs = Inputs(model)
    lengths = [batch["input_ids"].shape[-1] for batch in (inputs.example(), *inputs.batches())]
    assert max(lengths) == positions
    for batch in inputs.batches():
        models.outputs(model, "BertForTokenClassification", **batch)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # DeBERTa in transformers 5.0
@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("roberta", {"input_ids", "attention_mask", "token_type_ids"}),
        ("distilbert", {"input_ids", "attention_mask"}),
        ("deberta-v2", {"input_ids", "attention_mask"}),
        ("layoutlm", {"input_ids", "attention_mask", "token_type_ids", "bbox"}),
        ("vit", {"pixel_values"}),
        ("t5", {"input_ids", "attention_mask"}),
        ("clip", {"input_ids", "attention_mask", "pixel_values"}),
        ("tapas", {"input_ids", "attention_mask", "token_type_ids"}),
        (
            "visual_bert",
            {
                "input_ids",
                "attention_mask",
                "token_type_ids",
                "visual_embeds",
                "visual_attention_mask",
                "visual_token_type_ids",
            },
        ),
    ],
)
def test_inputs_are_those_of_the_models_own_forward(family: str, names: set[str]) -> None:
    model = families.float_model(family)
    inputs = Inputs(model)
    assert {*inputs.axes()} == names
    for batch in inputs.batches():
        assert {*batch} == names
        assert model(**batch)[0].isfinite().all()


def test_the_token_that_ends_a_text_is_where_it_ends() -> None:
    model = families.build("bart", transformers.BartForSequenceClassification, **families.one_layer("bart"))
    for batch in Inputs(model).batches(lambda text: {"input_ids": [5, 2, 40, 3]}):
        ends = batch["input_ids"] == model.config.eos_token_id
        assert (ends.sum(1) == 1).all()
        assert (ends.int().argmax(1) == batch["attention_mask"].sum(1) - 1).all()


@pytest.mark.parametrize("name", ["T5Model", "T5ForConditionalGeneration"])
def test_a_model_that_generates_is_told_what_it_has_written(name: str) -> None:
    model = families.build("t5", getattr(transformers, name), **families.one_layer("t5"))
    assert Inputs(model).axes()["decoder_input_ids"] == {0: "batch", 1: "decoder_sequence"}
    assert Inputs(model, Shape(2, 12)).example()["decoder_input_ids"].shape == (2, 12)
    for batch in Inputs(model).batches():
        assert model(**batch)[0].isfinite().all()


def test_phrases_stand_in_the_text() -> None:
    name = transformers.VisualBertForRegionToPhraseAlignment
    model = families.build("visual_bert", name, **families.one_layer("visual_bert"))
    assert Inputs(model).axes()["region_to_phrase_position"] == {0: "batch", 1: "phrases"}
    for batch in Inputs(model).batches():
        assert model(**batch).logits.isfinite().all()


def test_padding_is_the_models_and_its_positions_are_left_for_it() -> None:
    model = families.float_model("roberta")
    assert Inputs(model).longest == 40 - model.config.pad_token_id - 1
    assert model.config.pad_token_id == 1
    batch = Inputs(model).batch(Shape(4, 8), full=False)
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 1).all()
    one_segment = transformers.RobertaModel(families.config("roberta", type_vocab_size=1))
    assert "token_type_ids" not in Inputs(one_segment).batch(Shape(2, 8))


def test_axes_of_images_and_boxes() -> None:
    assert Inputs(families.float_model("vit")).axes() == {"pixel_values": {0: "batch"}}
    assert Inputs(families.float_model("layoutlm")).axes()["bbox"] == {0: "batch", 1: "sequence"}
    both = Inputs(families.float_model("clip")).axes()
    assert (both["pixel_values"], both["input_ids"][0]) == ({0: "images"}, "batch")
    assert Inputs(families.float_model("clip")).longest == 40
    regions = Inputs(families.float_model("visual_bert")).axes()["visual_embeds"]
    assert regions == {0: "batch", 1: "regions"}
    assert Inputs(families.float_model("tapas")).axes()["token_type_ids"] == {0: "batch", 1: "sequence"}
