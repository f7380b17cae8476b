"""Texts as batches of tokens."""

import sys
import warnings
from types import SimpleNamespace

import family_models as families
import models
import pytest
import torch
from checkpoints import write_checkpoint
from texts import rows
from torch import nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    RobertaConfig,
    T5Config,
)

from qdqpatch import calibrate, quantize
from qdqpatch.calibration import text_batches
from qdqpatch.data.batches import TextBatches
from qdqpatch.data.lengths import config_limit, shortness
from qdqpatch.errors import CalibrationError, CalibrationWarning, ConfigError
from qdqpatch.evaluation.predicting import batches
from qdqpatch.patching.arguments import position_limit
from qdqpatch.tasks import make_task
from qdqpatch.tasks.unlabelled import Text


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(write_checkpoint(tmp_path_factory.mktemp("tokenizer")))


def test_batches_are_what_the_tokenizer_makes(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["the cat sat on the mat", "a dog", "and", "the mat.", "the cats"]
    batches = text_batches(texts, tokenizer, batch_size=2, max_length=7)
    expected = [
        tokenizer(texts[i : i + 2], padding=True, truncation=True, max_length=7, return_tensors="pt")
        for i in (0, 2, 4)
    ]
    assert len(batches) == 3
    for _ in range(2):  # some methods look at the data twice
        for actual, wanted in zip(batches, expected, strict=True):
            models.assert_equal(dict(actual), dict(wanted))
    assert batches.lengths == [7, 4, 3, 5, 5]


def test_pairs_are_tokenized_together(tokenizer: PreTrainedTokenizerBase) -> None:
    batches = text_batches([("the cat sat on the mat", "a dog")] * 3, tokenizer, max_length=8)
    batch = next(iter(batches))
    assert tokenizer.decode(batch["input_ids"][0]) == "[CLS] the cat sat [SEP] a dog [SEP]"
    assert batch["token_type_ids"][0].tolist() == [0] * 5 + [1] * 3


def test_columns_samples_and_seed_reach_the_batches(tokenizer: PreTrainedTokenizerBase) -> None:
    data = [{"a": "the " * i, "b": "the"} for i in range(1, 21)]
    batches = text_batches(data, tokenizer, "a", "b", samples=5, batch_size=5, seed=3, max_length=64)
    first = [row.count("the") for row in tokenizer.batch_decode(next(iter(batches))["input_ids"])]
    assert first == [text.count("the") + 1 for text, _ in rows(data, "a", "b", samples=5, seed=3)]


def test_batches_fit_the_model(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["the " * 50, "a dog"]
    model = models.uncalibrated("BertForMultipleChoice")
    (batch,) = text_batches(texts, tokenizer, model=model, max_length=64)
    assert {tuple(tensor.shape) for tensor in batch.values()} == {(2, 1, 32)}
    with torch.no_grad():
        assert model(**batch).logits.shape == (2, 1)
    assert next(iter(text_batches(texts, tokenizer, max_length=40)))["input_ids"].shape == (2, 40)
    with pytest.raises(CalibrationError, match="16 tokens and the model only 10: they do not belong"):
        text_batches(texts, tokenizer, model=models.build("BertModel", vocab_size=10))


def test_a_model_that_takes_no_segments_gets_none(tokenizer: PreTrainedTokenizerBase) -> None:
    model = families.float_model("distilbert")
    (batch,) = text_batches(["the cat", "a dog sat"], tokenizer, model=model, max_length=16)
    assert list(batch) == ["input_ids", "attention_mask"]
    task = make_task("feature-extraction", tokenizer, model.config)
    features = task.features([Text("the cat"), Text("a dog sat")])
    assert "token_type_ids" in batches(task, features, 2)[0]
    (batch,) = batches(task, features, 2, model)
    assert list(batch) == ["input_ids", "attention_mask"]
    calibrate(quantize(model), [batch], method="max")


def test_positions_of_tokens_alone_limit_a_sequence() -> None:
    assert position_limit(families.build("clip")) == 40  # its images have 5 pieces
    assert position_limit(families.build("layoutlm", max_2d_position_embeddings=30)) == 40
    assert position_limit(families.build("dinov2")) == sys.maxsize


def test_positions_that_roberta_leaves_for_padding_do_not_count() -> None:
    assert position_limit(models.build("BertModel", max_position_embeddings=20)) == 20
    tables = {"words": nn.Embedding(9, 4), "position_embeddings": nn.Embedding(514, 4, padding_idx=1)}
    assert position_limit(nn.ModuleDict(tables)) == 512
    assert position_limit(None) == sys.maxsize


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (RobertaConfig(max_position_embeddings=514), 512),
        (MPNetConfig(max_position_embeddings=514), 512),
        (ModernBertConfig(), 8192),
        (BertConfig(), 512),
        (T5Config(), sys.maxsize),
    ],
)
def test_the_positions_that_a_config_has_for_tokens(config: PreTrainedConfig, limit: int) -> None:
    assert config_limit(config) == limit


def test_numbers_out_of_range(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match="batch_size must be at least 1, not 0"):
        text_batches(["the cat"], tokenizer, batch_size=0)
    with pytest.raises(ConfigError, match="max_length must be more than the 2 special tokens, not 2"):
        text_batches(["the cat"], tokenizer, max_length=2)
    with pytest.raises(ConfigError, match="max_length must be more than the 3 special tokens, not 3"):
        text_batches([("the cat", "sat")], tokenizer, max_length=3)


def test_a_tokenizer_without_padding() -> None:
    bare = SimpleNamespace(pad_token=None, num_special_tokens_to_add=lambda pair: 0)
    with pytest.raises(CalibrationError, match="no padding token"):
        TextBatches([("the cat", None)], bare)


def test_short_sequences_are_told_of_unless_their_length_is_given(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    model = models.build()  # takes 32 tokens
    with pytest.warns(CalibrationWarning, match=r"up to 32 tokens, .* have at most 15 \(median 4\)"):
        text_batches(["the " * 13, "a dog", "a dog"], tokenizer, model=model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text_batches(["the " * 14, "a dog", "a dog"], tokenizer, model=model)
        text_batches(["a dog"], tokenizer, model=model, max_length=32)
        text_batches(["a dog"], tokenizer)  # nothing says what a model takes


def test_texts_are_cut_at_what_the_model_takes_and_512(tokenizer: PreTrainedTokenizerBase) -> None:
    long = ["the " * 2000]
    assert text_batches(long, tokenizer).lengths == [512]
    assert text_batches(long, tokenizer, model=models.build()).lengths == [32]
    with pytest.warns(CalibrationWarning, match=r"up to 1100 tokens, .* are cut at 512 \("):
        text_batches(long, tokenizer, model=models.build("BertModel", max_position_embeddings=1100))


def test_one_text_in_a_hundred_may_be_longer() -> None:
    assert "have at most 10 (median 10)" in (shortness([10] * 99 + [500], 512, 512) or "")
    assert shortness([10] * 98 + [500] * 2, 512, 512) is None
    assert shortness([255], 512, 512) is not None
    assert shortness([256], 512, 512) is None
