import math
from typing import Any

import numpy as np
import pytest
import tiny_tasks
import torch
from hypothesis import given
from hypothesis import strategies as st
from texts import Write
from tiny_tasks import CLS, MASK, SEP

from qdqpatch.errors import ConfigError
from qdqpatch.evaluation.predicting import predict, torch_run
from qdqpatch.tasks.base import IGNORED, Columns, DataSource
from qdqpatch.tasks.fill_mask import WANTED, FillMask
from qdqpatch.tasks.masking import mask_tokens
from qdqpatch.tasks.unlabelled import Text

HEAD = "BertForMaskedLM"
LINES = ["The cat sat on the mat.", "a dog", "the cats and the dogs sat on the mat and the cat on a dog"]


@pytest.fixture(scope="module")
def task() -> FillMask:
    return tiny_tasks.make(FillMask, HEAD)[0]


def test_from_file_to_perplexity(write: Write) -> None:
    task, model = tiny_tasks.make(FillMask, HEAD)
    examples = task.read(DataSource(str(write("texts.txt.gz", "\n\n".join(LINES)))))
    assert examples == [Text(line) for line in LINES]
    features = task.features(examples)
    seen: list[set[str]] = []

    def run(batch: Any) -> Any:
        seen.append(set(batch))
        return torch_run(model)(batch)

    outputs = predict(run, task, features, batch_size=2)

    assert (
        seen == [{"input_ids", "token_type_ids", "attention_mask"}] * 2
    )  # nothing tells the model the answer
    assert all(output.keys() == {"nll"} and output["nll"].shape == () for output in outputs)
    losses = []
    for line, feature in zip(LINES, features, strict=True):
        whole = tiny_tasks.tokenizer()(line)["input_ids"]
        with torch.no_grad():
            (logits,) = model(torch.tensor([feature["input_ids"]])).logits
        probabilities = logits.double().softmax(-1)
        for place, wanted in enumerate(feature[WANTED]):
            if wanted != IGNORED:
                assert wanted == whole[place]
                losses.append(-math.log(probabilities[place, wanted]))
    (perplexity,) = task.score(examples, features, outputs)
    assert perplexity.name == "perplexity"
    assert perplexity.denominators.tolist() == [1, 1, 3]
    # Padding changes the order of sums, which is a few last bits of fp32 in each logit.
    assert perplexity.value == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert not perplexity.higher_is_better


def test_training_features_give_the_model_its_loss() -> None:
    task, model = tiny_tasks.make(FillMask, HEAD)
    examples = [Text(line) for line in LINES]
    plain, training = task.features(examples, seed=5), task.features(examples, training=True, seed=5)
    assert [row["labels"] for row in training] == [row[WANTED] for row in plain]
    assert [row["input_ids"] for row in training] == [row["input_ids"] for row in plain]
    assert all(WANTED not in row for row in training)
    (perplexity,) = task.score(examples, plain, predict(torch_run(model), task, plain))
    loss = model(**task.collate(training)).loss.item()
    assert math.exp(loss) == pytest.approx(perplexity.value, rel=1e-5)  # fp32


def test_texts_are_masked_alike_whatever_else_is_read_and_anew_for_another_seed(task: FillMask) -> None:
    first, second, third = (Text(line) for line in LINES)
    everything = task.features([first, second, third])
    assert task.features([first, second, third]) == everything
    assert task.features([third]) + task.features([first]) == [everything[2], everything[0]]
    others = [task.features([third], seed=seed)[0]["input_ids"] for seed in range(20)]
    assert len({tuple(order) for order in others}) > 10


def test_texts_of_one_length_are_masked_at_different_places() -> None:
    wanted = [mask_tokens([word] * 40, [0] * 40, MASK, 50, seed=0)[1] for word in range(5, 25)]
    assert len({tuple(label != IGNORED for label in one) for one in wanted}) == 20


def test_what_is_kept_is_no_view_of_the_logits(task: FillMask) -> None:
    (feature,) = task.features([Text("the cat")])
    logits = np.random.default_rng(0).normal(size=(4, 48)).astype(np.float32)
    logits.flags.writeable = False  # as an engine may give them
    kept = task.reduce(feature, {"logits": logits})["nll"]
    assert kept.nbytes == 8
    assert not np.shares_memory(kept, logits)


def test_texts_are_cut_at_max_length_and_pairs_are_read(write: Write) -> None:
    task, _ = tiny_tasks.make(FillMask, HEAD, 8)
    data = write("pairs.csv", "sentence1,sentence2,label\nthe cat sat on the mat,a dog,1\n")
    examples = task.read(DataSource(str(data)))
    assert examples == [Text("the cat sat on the mat", "a dog")]
    (feature,) = task.features(examples)
    assert len(feature["input_ids"]) == 8
    assert feature["input_ids"].count(SEP) == 2
    assert task.read(DataSource(str(data), Columns("sentence2"))) == [Text("a dog")]


def test_tokenizer_without_a_mask_token() -> None:
    class Maskless:
        mask_token_id = None

    with pytest.raises(ConfigError, match=r"^Filling in masks needs a tokenizer that has a mask token\.$"):
        FillMask(Maskless(), None)  # type: ignore[arg-type]


def test_texts_that_cannot_be_read(task: FillMask, write: Write) -> None:
    data = write("data.jsonl", '{"text": "the cat"}\n{"words": "the cat"}')
    assert tiny_tasks.error_of(task, data) == "data.jsonl, line 2, has no field 'text'."
    data = write("data.txt", b"the cat\n\n\xff\n")
    assert tiny_tasks.error_of(task, data) == "data.txt, line 3, is not UTF-8 text."
    data = write("data.csv", "one,two\na cat,a dog\n")
    assert tiny_tasks.error_of(task, data) == (
        "data.csv: which column holds the texts is not clear, for it has one, two. Name it with text_column."
    )


@given(st.lists(st.integers(5, 40), max_size=60), st.integers(0, 3))
def test_masks_are_fifteen_percent_of_ordinary_tokens(words: list[int], seed: int) -> None:
    tokens = [CLS, *words, SEP]
    special = [1, *[0] * len(words), 1]
    given, wanted = mask_tokens(tokens, special, MASK, 50, seed)
    masked = [place for place, tensor in enumerate(wanted) if tensor != IGNORED]
    assert len(masked) == (max(1, round(0.15 * len(words))) if words else 0)
    assert all(wanted[place] == tokens[place] and not special[place] for place in masked)
    assert all(given[place] == tokens[place] for place in range(len(tokens)) if place not in masked)
    assert all(0 <= token < 50 for token in given)


def test_masked_tokens_are_masks_replaced_or_kept_in_berts_shares() -> None:
    tokens = np.random.default_rng(1).integers(100, 30000, 200_000).tolist()
    given, wanted = mask_tokens(tokens, [0] * len(tokens), MASK, 30000, seed=0)
    pairs = [(a, b) for a, b in zip(given, wanted, strict=True) if b != IGNORED]
    assert len(pairs) == 30_000
    masks = sum(a == MASK for a, _ in pairs) / len(pairs)
    kept = sum(a == b for a, b in pairs) / len(pairs)
    # Four standard deviations of shares of 30000 draws.
    assert masks == pytest.approx(0.8, abs=0.0092)
    assert kept == pytest.approx(0.1, abs=0.0069)
    others = [a for a, b in pairs if a not in (b, MASK)]
    assert len(set(others)) > 2000  # random ones, not always the same
    places = [place for place, tensor in enumerate(wanted) if tensor != IGNORED]
    assert np.mean(places) == pytest.approx(100_000, abs=4 * 200_000 / math.sqrt(12 * 30_000))
