"""Every command on every kind of head, with labels and without: no figure is blind to what a model gives."""

import json
import random
import re
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from checkpoints import write_tokenizer
from click.testing import Result
from commands import invoke
from safetensors.torch import load_file

SEQUENCES = "BertForSequenceClassification"
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "classes": (SEQUENCES, {}),
    "score": (SEQUENCES, {"num_labels": 1}),
    "labels": (SEQUENCES, {"num_labels": 4, "problem_type": "multi_label_classification"}),
    "tags": ("BertForTokenClassification", {}),
    "embedder": ("BertModel", {}),
}
MAIN = {
    "classes": "unchanged predictions",
    "score": "correlation",
    "labels": "unchanged predictions",
    "tags": "unchanged predictions",
    "embedder": "cosine",
}
"""What stands in for a metric where there are no labels."""

QUICK = (
    "--epochs",
    "2",
    "--lr",
    "1e-3",
    "--batch-size",
    "8",
    "--no-shift",
    "--refine",
    "0",
    "--method",
    "max",
)
WORDS = ["the", "cat", "dog", "sat", "on", "mat", "and", ".", ","]
DRAW = random.Random(0)
TEXTS = [" ".join(DRAW.choices(WORDS, k=DRAW.randint(2, 9))) for _ in range(24)]
ROWS = {
    "classes": [{"text": text, "label": place % 3} for place, text in enumerate(TEXTS)],
    "score": [{"text": text, "label": len(text) / 10} for text in TEXTS],
    "labels": [{"text": text, "label": [place % 2, 1, place % 3 > 0, 0]} for place, text in enumerate(TEXTS)],
    "tags": [{"tokens": text.split(), "tags": [len(word) % 3 for word in text.split()]} for text in TEXTS],
}


def passed(*arguments: object) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


def random_model(name: str, seed: int) -> Any:
    head, changes = HEADS[name]
    model = models.build(head, **changes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(params=HEADS)
def name(request: pytest.FixtureRequest, here: Path) -> str:
    """A kind of head, of which `ckpt` and `other`, which has other weights, lie in this folder; and data."""
    for place, folder in enumerate(("ckpt", "other")):
        random_model(request.param, place).save_pretrained(folder)
        write_tokenizer(Path(folder))
    Path("sentences.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    rows = ROWS.get(request.param)
    if rows is not None:
        Path("data.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return request.param


def evaluated(*arguments: object) -> list[dict[str, Any]]:
    return json.loads(passed("eval", *arguments, "--engine", "torch", "--json").stdout)["results"]


def test_documented_commands_need_no_labels(name: str) -> None:
    passed("convert", "ckpt", "out", "--calib", "sentences.txt", "--method", "max")
    float_one, int8, other = evaluated("ckpt", "out", "other", "--data", "sentences.txt")
    figure = MAIN[name]
    best = 100 if figure == "unchanged predictions" else 1
    assert float_one["metrics"][figure] == pytest.approx(best)
    assert other["metrics"][figure] < int8["metrics"][figure] <= best + 1e-9
    assert other["drop_percent"] > 0.5
    result = invoke(
        "eval", "ckpt", "other", "--data", "sentences.txt", "--max-drop", "0", "--engine", "torch"
    )
    assert result.exit_code == 1, result.output

    alone = invoke("eval", "ckpt", "--data", "sentences.txt", "--engine", "torch")
    assert alone.exit_code == 1
    assert "name a" in alone.stderr
    assert "Traceback" not in alone.stderr

    passed("train", "ckpt", "trained", "--distill", "--data", "sentences.txt", *QUICK)
    report = json.loads(Path("trained/training.json").read_text(encoding="utf-8"))
    assert [list(stage["metrics"])[-1] for stage in report["stages"]] == [figure] * 3
    assert report["stages"][0]["metrics"][figure] == pytest.approx(best)
    assert report["loss"] > 0
    before, after = (load_file(f"{folder}/model.safetensors") for folder in ("ckpt", "trained"))
    moved = [key for key in before if "position" not in key and not torch.equal(before[key], after[key])]
    assert len(moved) > 20


def test_units_cost_something_without_labels(name: str) -> None:
    found = json.loads(passed("sensitivity", "ckpt", "--data", "sentences.txt", "--json").stdout)["costs"]
    assert found["measure"] == {"score": "squared difference", "embedder": "1 - cosine"}.get(
        name, "KL divergence"
    )
    assert min(unit["cost"] for unit in found["units"]) >= 0
    assert max(unit["cost"] for unit in found["units"]) > 0
    searched = passed("sensitivity", "ckpt", "--data", "sentences.txt", "--max-drop", "60", "--json")
    assert json.loads(searched.stdout)["search"]["metric"] == MAIN[name]


def test_labels_are_learned_and_judged_by(name: str) -> None:
    if name not in ROWS:
        pytest.skip("has no labels")
    metrics = {
        "classes": ["accuracy"],
        "score": ["MSE", "Pearson", "Spearman"],
        "labels": ["all labels right", "micro F1"],
        "tags": ["accuracy"],
    }[name]
    first, other = evaluated("ckpt", "other", "--data", "data.jsonl")
    assert list(first["metrics"]) == metrics
    assert first["metrics"] != other["metrics"]
    long = ("--epochs", "12", "--lr", "1e-3", *QUICK[4:])
    passed("train", "ckpt", "trained", "--data", "data.jsonl", "--eval-data", "data.jsonl", *long)
    report = json.loads(Path("trained/training.json").read_text(encoding="utf-8"))
    float_one, _, trained = (stage["metrics"][metrics[-1]] for stage in report["stages"])
    assert trained > float_one


def test_scores_that_cannot_tell_models_apart_are_refused(here: Path) -> None:
    random_model("score", 0).save_pretrained("ckpt")
    write_tokenizer(Path("ckpt"))
    Path("same.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t0\n" for text in TEXTS), encoding="utf-8")
    for command in (
        ["eval", "ckpt", "--engine", "torch"],
        ["sensitivity", "ckpt", "--metric"],
        ["train", "ckpt", "out"],
    ):
        result = invoke(*command, "--data", "same.tsv")
        assert result.exit_code == 1
        assert re.search(r"All (2|24) labels are 0, and nothing correlates with that\.", result.stderr)
    distilled = passed("train", "ckpt", "out", "--data", "same.tsv", "--distill", *QUICK)
    assert (
        "Models are compared with the float one, and judged by no labels. (All 2 labels" in distilled.stderr
    )
    assert json.loads(Path("out/training.json").read_text(encoding="utf-8"))["loss"] > 0


def test_tokens_that_the_model_does_not_know_are_refused_by_every_command(here: Path) -> None:
    models.build(SEQUENCES, vocab_size=9).save_pretrained("small")
    write_tokenizer(Path("small"))
    Path("data.tsv").write_text("text\tlabel\nthe cat\t0\na dog\t1\n", encoding="utf-8")
    for command in (["eval", "small"], ["train", "small", "out"], ["sensitivity", "small"]):
        result = invoke(*command, "--data", "data.tsv")
        assert result.exit_code == 1, result.output
        assert "tokens and the model only 9: they do not belong together" in result.stderr


def test_pairs_for_a_model_that_knows_one_kind_of_text(here: Path) -> None:
    models.build(SEQUENCES, type_vocab_size=1).save_pretrained("ckpt")
    write_tokenizer(Path("ckpt"))
    rows = [f"the cat\ta dog sat\t{place % 3}" for place in range(8)]
    Path("pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tlabel", *rows]) + "\n", encoding="utf-8")
    passed("convert", "ckpt", "int8", "--calib", "pairs.tsv", "--method", "max")
    assert len(evaluated("ckpt", "int8", "--data", "pairs.tsv")) == 2
    passed("train", "ckpt", "out", "--data", "pairs.tsv", *QUICK)
