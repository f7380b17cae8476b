"""Ways in which a checkpoint is damaged, and what is said of it."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import torch
from safetensors.torch import load_file, save_file

HEAD = "BertForSequenceClassification"
INPUT = "bert.encoder.layer.0.attention.self.query._input_quantizer._amax"
WEIGHT = "bert.encoder.layer.0.attention.self.query._weight_quantizer._amax"


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Let `change` edit the tensors in place, or return others."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    changed = change(tensors)
    save_file(tensors if changed is None else changed, file, {"format": "pt"})


def write_bin(folder: Path, content: object) -> None:
    (folder / "model.safetensors").unlink()
    if isinstance(content, bytes):
        (folder / "pytorch_model.bin").write_bytes(content)
    else:
        torch.save(content, folder / "pytorch_model.bin")


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def index(folder: Path, content: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)


def prefixed(prefix: str) -> Callable[[Path], None]:
    return lambda folder: change_weights(
        folder, lambda tensors: {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    )


def layer_of_positions(folder: Path) -> None:
    change_config(folder, position_embedding_type="relative_key")
    name = "bert.encoder.layer.0.attention.self.distance_embedding.weight"
    change_weights(folder, lambda tensors: tensors.update({name: torch.ones(63, 12)}))


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (cut, r"ckpt/model\.safetensors is damaged"),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "(ckpt has no weights|nothing to run in ckpt)",
    ),
    "pointer": (
        lambda folder: write_bin(folder, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
        r"ckpt/pytorch_model\.bin is a pointer of git-lfs.*git lfs pull",
    ),
    "web page": (
        lambda folder: write_bin(folder, b"<!doctype html>"),
        r"ckpt/pytorch_model\.bin is a web page",
    ),
    "pickle": (
        lambda folder: write_bin(folder, pickle.dumps(print)),
        r"ckpt/pytorch_model\.bin (holds other|is damaged)",
    ),
    "whole model": (
        lambda folder: write_bin(folder, models.float_model()),
        "holds other objects than tensors.*state_dict",
    ),
    "list": (lambda folder: write_bin(folder, [torch.ones(1)]), r"holds a list, not a state dict"),
    "wrapped": (
        lambda folder: write_bin(folder, {"model": tensors_of(folder), "epoch": 3}),
        r"ckpt/pytorch_model\.bin holds the weights under 'model'.*Take them out",
    ),
    "numbers": (lambda folder: write_bin(folder, {"epoch": 3}), r"something else than tensors \(epoch\)"),
    "index": (lambda folder: index(folder, "{"), r"Cannot read ckpt/model\.safetensors\.index\.json"),
    "index without map": (lambda folder: index(folder, "[]"), r"index\.json is no index of weights"),
    "index of numbers": (
        lambda folder: index(folder, '{"weight_map": {"a": 1}}'),
        r"index\.json is no index of weights",
    ),
    "packed": (
        lambda folder: change_weights(
            folder,
            lambda tensors: tensors.update({name: tensor.to(torch.int8) for name, tensor in tensors.items()}),
        ),
        r"holds numbers of 8 bits, as another tool packs them \(bert\.",
    ),
    "whole numbers": (
        lambda folder: change_weights(
            folder,
            lambda tensors: tensors.update(
                {name: tensor.to(torch.int32) for name, tensor in tensors.items()}
            ),
        ),
        r"is damaged: bert\.[\w.]+ is of type I32, and weights are floats",
    ),
    "complex numbers": (
        lambda folder: change_weights(
            folder, lambda tensors: tensors.update({"bert.pooler.dense.bias": torch.zeros(24) + 0j})
        ),
        r"is damaged: bert\.pooler\.dense\.bias is of type C64, and",
    ),
    "sizes": (
        lambda folder: change_config(folder, intermediate_size=48),
        r"intermediate\.dense\.bias has shape \(40,\) in it, and \(48,\)",
    ),
    "pruned": (
        lambda folder: change_config(folder, intermediate_size=48, pruned_heads={"0": [1]}),
        "transformers 5 has no pruned heads",
    ),
    "module": (prefixed("module."), r"begin with 'module\.', which DistributedDataParallel"),
    "compiled": (prefixed("_orig_mod."), r"begin with '_orig_mod\.', which torch\.compile"),
    "unmerged": (
        prefixed("base_model.model."),
        r"begin with 'base_model\.model\.', which peft.*merge_and_unload",
    ),
    "other names": (prefixed("x.y.z.w."), "ckpt holds next to no weights of BertForSequenceClassification"),
    "layer lost": (
        lambda folder: lose(folder),
        r"ckpt is not whole: it lacks bert\.encoder\.layer\.1\.output\.dense\.bias\.",
    ),
    "adapter beside": (
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        "ckpt holds an adapter.*merge_and_unload",
    ),
    "adapter within": (
        lambda folder: change_weights(
            folder,
            lambda tensors: tensors.update(
                {"bert.encoder.layer.0.attention.self.query.lora_A.weight": torch.ones(2, 24)}
            ),
        ),
        "no place for 1 weight of ckpt.*merge_and_unload",
    ),
    "relative positions": (layer_of_positions, r"position_embedding_type='relative_key'"),
    "other tool": (
        lambda folder: change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4}),
        r"ckpt is quantized by another tool \(gptq\)",
    ),
    "tool without a name": (
        lambda folder: change_config(folder, quantization_config={"load_in_4bit": True}),
        r"ckpt does not say which tool quantized it \(quant_method\)",
    ),
    "method of a list": (
        lambda folder: change_config(folder, quantization_config=[1]),
        "Cannot read the config of ckpt",
    ),
    "word for a number": (
        lambda folder: change_config(folder, hidden_size="big"),
        r"Cannot (read the config|build a model by the config\.json) of ckpt",  # by its version
    ),
    "no attention heads": (
        lambda folder: change_config(folder, num_attention_heads=0),
        r"Cannot build a model by the config\.json of ckpt",
    ),
    "fewer than none": (
        lambda folder: change_config(folder, num_attention_heads=-1),
        r"config\.json of ckpt: num_attention_heads is -1\.",
    ),
    "a million layers": (
        lambda folder: change_config(folder, num_hidden_layers=10**6),
        r"config\.json of ckpt is damaged: num_hidden_layers is 1000000, and there are 41 weights in all\.",
    ),
    "a billion of states": (
        lambda folder: change_config(folder, hidden_size=10**9),
        r"config\.json of ckpt is not that of its weights: it describes a model of 9\.0e\+18 numbers",
    ),
    "a billion of words": (
        lambda folder: change_config(folder, vocab_size=10**9),
        r"word_embeddings\.weight would have shape \(1000000000, 24\)\.",
    ),
    "a billion of labels": (
        lambda folder: change_config(folder, num_labels=10**9),
        r"config\.json of ckpt is damaged: num_labels is 1000000000\.",
    ),
    "a number for a class": (
        lambda folder: change_config(folder, architectures=5),
        r"architectures in config\.json of ckpt must be a list of classes, not 5\.",
    ),
    "unknown activation": (
        lambda folder: change_config(folder, hidden_act="evil"),
        r"config\.json of ckpt: 'evil'",
    ),
    "unknown dtype": (lambda folder: change_config(folder, dtype="bogus"), "Cannot read the config of ckpt"),
    "not JSON": (lambda folder: (folder / "config.json").write_text("{"), "Cannot read .*ckpt"),
}


UNCLEAR: dict[str, tuple[Callable[[Path], object], str]] = {
    "no class": (
        lambda folder: change_config(folder, architectures=None),
        r"no place for 2 weights of ckpt: classifier\.bias, classifier\.weight\..*--task",
    ),
    "a class of their own": (
        lambda folder: change_config(folder, architectures=["BertForIntent"]),
        "name the head that is wanted with --task",
    ),
    "no model's class": (
        lambda folder: change_config(folder, architectures=["pipeline"]),
        "name the head that is wanted with --task",
    ),
    "part of a head": (
        lambda folder: change_weights(
            folder, lambda tensors: tensors.update({"crf.transitions": torch.ones(3, 3)})
        ),
        r"BertForSequenceClassification has no place for 1 weight of ckpt: crf\.transitions\..*--task",
    ),
}


RANGES: dict[str, tuple[str, torch.Tensor, str]] = {
    "nan": (INPUT, torch.tensor(float("nan")), "is nan, where it must be finite"),
    "negative": (INPUT, torch.tensor(-1.0), "is -1, where it must be finite"),
    "infinite": (INPUT, torch.tensor(float("inf")), "is inf, where it must be finite"),
    "of many": (INPUT, torch.ones(3), r"has shape \(3,\), where it must be \(\)"),
    "of other rows": (WEIGHT, torch.ones(3, 1), r"has shape \(3, 1\), where it must be \(\) or \(24, 1\)"),
    "empty": (WEIGHT, torch.ones(0), r"has shape \(0,\)"),
}


def lose(folder: Path) -> None:
    change_weights(
        folder,
        lambda tensors: {
            name: tensor for name, tensor in tensors.items() if not name.endswith("layer.1.output.dense.bias")
        },
    )
