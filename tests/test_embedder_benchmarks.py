"""The benchmarks of embedders run, here on a tiny BERT and few texts."""

import gzip
import json
import math

import pytest
import torch
from checkpoints import write_tokenizer
from models import config
from transformers import BertModel

pytestmark = pytest.mark.usefixtures("traced_once")


def test_embeddings_are_compared_with_the_first_contender(benchmark_module):
    embedders = benchmark_module("embedders")

    def tokenizer(texts, **options):
        assert options["max_length"] == embedders.LENGTH
        tokens = torch.tensor([[int(text), 0] for text in texts])
        return {"input_ids": tokens, "attention_mask": torch.tensor([[1, 0]] * len(texts))}

    def encoding(*angles):
        turned = torch.tensor(angles)
        hidden = torch.stack([turned.cos(), turned.sin()], -1)
        return lambda inputs: torch.stack(
            [hidden[inputs["input_ids"][:, 0]], torch.full((), 9.0).expand(len(inputs["input_ids"]), 2)], 1
        )

    embedder = embedders.Embedder(tokenizer, ["0", "1"], ["2", "3"])
    first = embedder.row("float", encoding(0.0, 1.0, 0.1, 0.9))
    assert first == ("float", "1.0000", "1.0000", "1.0000", "100.0", "100.0", "")
    row = embedder.row("int8", encoding(0.0, 1.0, 0.1, 0.1), 2.0)
    lowest = math.cos(0.8)
    assert row == ("int8", "1.0000", f"{(1 + lowest) / 2:.4f}", f"{lowest:.4f}", "50.0", "100.0", "2 s")


@pytest.mark.slow
def test_embedders_side_by_side(benchmark_module, tmp_path):
    module = benchmark_module("embedder_peers")
    BertModel(config()).save_pretrained(checkpoint := tmp_path / "model")
    write_tokenizer(checkpoint)
    (data := tmp_path / "data" / "wiki_text").mkdir(parents=True)
    with gzip.open(data / "train.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(f"the cat {word} {'o' * 300}" for word in ("sat", "on", "and", "the")))
    pairs = [{"context": f"the cat {word} .", "qas": [{"question": word}]} for word in ("sat", "dog")]
    (data.parent / "squad").mkdir()
    with gzip.open(data.parent / "squad" / "dev.json.gz", "wt", encoding="utf-8") as file:
        json.dump({"data": [{"paragraphs": pairs}]}, file)
    names = (
        "float",
        "dynamic int8 of torch's export",
        "dynamic int8 of our float file",
        "qdqpatch, linear-only",
    )
    chosen = [tool for tool in module.TOOLS if tool.name in names]
    quality, speed = module.measure(str(checkpoint), data.parent, 2, 1, 1, chosen, [(1, 4)])
    assert all(len(row) == len(module.QUALITY) for row in quality)
    floating, *_, own = quality
    assert (floating[0], *floating[1:4]) == ("float", "1.0000", "1.0000", "1.0000")
    assert [row[8] for row in quality] == [
        "0 of 16",
        "13 of 17",
        "12 of 16",
        "12 of 16",
    ]  # and dynamic int8's pooler
    assert own[7] == "1.0000"
    assert [row[0] for row in speed] == [tool.name for tool in chosen]
    assert speed[0][1].endswith(" (1.00x)")


def test_a_tool_that_is_not_installed_is_left_out_and_named(benchmark_module, capsys, monkeypatch):
    module, tools = benchmark_module("embedder_peers"), benchmark_module("embedder_tools")
    there, absent = tools.TOOLS[0], tools.Tool("other", tools.ONNX_RUNTIME, tools.dynamic, "no_such_tool")
    assert module.installed([there, absent]) == [there]
    assert capsys.readouterr().out.startswith("other is left out: no_such_tool is not there")
    monkeypatch.setenv("no_such_tool", "here")
    assert module.installed([there, absent]) == [there, absent]


def test_tools_can_be_chosen(benchmark_module, monkeypatch, capsys):
    module = benchmark_module("embedder_peers")
    seen = []
    monkeypatch.setattr(module.embedders, "find", lambda arguments: ("tiny", "ckpt", arguments.folder))
    monkeypatch.setattr(module, "prepare", lambda: None)
    monkeypatch.setattr(module, "measure", lambda *given: seen.extend(given[-1]) or ([], []))
    monkeypatch.setattr("sys.argv", ["embedder_peers.py", "--only", "float, OpenVINO", "float"])
    module.main()
    assert [tool.name for tool in seen] == ["float", "float, OpenVINO"]
    assert "cosine to float" in capsys.readouterr().out


def test_what_is_not_there_is_named(benchmark_module, capsys, tmp_path):
    embedders = benchmark_module("embedders")
    arguments = embedders.parser_of("Doc.").parse_args([str(tmp_path), "--model", "folder/mine"])
    assert embedders.find(arguments) is None
    assert capsys.readouterr().out == (
        f"Skipped: there is no {tmp_path / 'data'}. Name the folder that holds the data.\n"
    )
    (tmp_path / "data").mkdir()
    assert embedders.find(arguments) == ("mine", "folder/mine", tmp_path / "data")
