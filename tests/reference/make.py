"""Record what the original QDQBERT classes compute, for the test-suite to compare with bit for bit.

Runs with the packages of ``requirements.txt``, apart from the environment of the tests.
``README.md`` describes the files.

    python make.py                  write cases/, checkpoints/ and state_dict_keys.json
    python make.py --check DIR ...  run checkpoints with their original classes
"""

import os

# Float results depend on the instructions a kernel was built for and on how threads split its sums.
# These settings choose the plainest kernels; whoever compares with the files has to set them too,
# before torch is imported, and to call `torch.set_num_threads(1)`.
os.environ.update(
    ATEN_CPU_CAPABILITY="default",
    MKL_CBWR="COMPATIBLE",
    ONEDNN_MAX_CPU_ISA="SSE41",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
)

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import absl.logging
import torch
import transformers
from originals import (
    CASES,
    CHECKPOINTS,
    HEADS,
    PROMPT,
    SEED,
    STEPS,
    Case,
    Tensors,
    build_model,
    make_inputs,
    make_labels,
    quantizers,
)
from pytorch_quantization.nn import TensorQuantizer
from safetensors.torch import load_file, save
from torch import nn
from transformers.modeling_outputs import ModelOutput

ARITHMETICS = {"toolkit": False, "fb": True}  # the value of `TensorQuantizer.use_fb_fake_quant`


@contextmanager
def arithmetic(name: str) -> Iterator[None]:
    """Let quantizers compute as the toolkit does (`toolkit`) or by torch's own kernels (`fb`)."""
    TensorQuantizer.use_fb_fake_quant = ARITHMETICS[name]
    try:
        yield
    finally:
        TensorQuantizer.use_fb_fake_quant = False


def flatten(outputs: ModelOutput) -> Tensors:
    """Name every tensor of the outputs; the i-th of a tuple `name` is `name.i`."""
    tensors = {}
    for name, value in outputs.items():
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif name != "past_key_values":
            tensors.update({f"{name}.{i}": tensor for i, tensor in enumerate(value)})
    return tensors


@torch.no_grad()
def run(model: nn.Module, inputs: Tensors) -> Tensors:
    """Run in eval mode; return every output, hidden state and attention."""
    model.eval()
    kwargs = {"use_cache": False} if model.config.is_decoder else {}
    return flatten(model(**inputs, **kwargs, output_hidden_states=True, output_attentions=True))


@torch.no_grad()
def run_cached(model: nn.Module, inputs: Tensors) -> Tensors:
    """Run the prompt, then token by token on the cache; return every step's logits."""
    model.eval()
    encoder = {name: value for name, value in inputs.items() if name.startswith("encoder_")}
    steps, cache = {}, None
    for step in range(STEPS + 1):
        start, stop = (PROMPT + step - 1 if step else 0), PROMPT + step
        outputs = model(
            inputs["input_ids"][:, start:stop],
            token_type_ids=inputs["token_type_ids"][:, start:stop],
            attention_mask=inputs["attention_mask"][:, :stop],
            past_key_values=cache,
            use_cache=True,
            **encoder,
        )
        cache = outputs.past_key_values
        steps[f"step.{step}.logits"] = outputs.logits
    return steps


def differentiate(model: nn.Module, inputs: Tensors, probes: Tensors) -> tuple[torch.Tensor, Tensors]:
    """Run in train mode; return the loss and its gradients, under every name of a tied parameter.

    Without a loss of its own, the model's is the sum of its outputs times `probes`.
    """
    model.train()
    model.zero_grad(set_to_none=True)
    outputs = model(**inputs)
    loss = outputs.get("loss")
    if loss is None:
        loss = sum((outputs[name] * probe).sum() for name, probe in probes.items())
    loss.backward()
    named = model.named_parameters(remove_duplicate=False)
    return loss.detach(), {n: p.grad.clone() for n, p in named if p.grad is not None}


def metadata(case: Case, model: nn.Module) -> dict[str, str]:
    """Return what rebuilds the model besides its tensors, and the versions it was made with."""
    weight = next(q for n, q in quantizers(model).items() if n.endswith("_weight_quantizer"))
    axis = weight.axis[0] if isinstance(weight.axis, tuple) else weight.axis
    return {
        "config": json.dumps(case.bert_config, sort_keys=True),
        "head": case.head,
        "weight_num_bits": str(weight.num_bits),
        "weight_axis": "none" if axis is None else str(axis),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pytorch_quantization": version("pytorch-quantization"),
    }


def record(case: Case, model: nn.Module) -> Tensors:
    """Return every tensor of the case's file."""
    inputs = make_inputs(case, SEED + 1)
    labels = {} if case.cached else make_labels(case, inputs, SEED + 2)
    probes = {}
    if case.head == "BertModel":
        generator = torch.Generator().manual_seed(SEED + 3)
        for name in ("last_hidden_state", "pooler_output"):
            probes[name] = torch.randn(run(model, inputs)[name].shape, generator=generator)
    tensors = {f"state/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"input/{name}": value for name, value in (inputs | labels).items()}
    tensors |= {f"probe/{name}": value for name, value in probes.items()}
    for kind in ARITHMETICS:
        with arithmetic(kind):
            outputs = (run_cached if case.cached else run)(model, inputs)
            tensors |= {f"output/{kind}/{name}": value for name, value in outputs.items()}
            if not case.cached:
                loss, gradients = differentiate(model, inputs | labels, probes)
                tensors[f"loss/{kind}"] = loss
                tensors |= {f"grad/{kind}/{name}": value for name, value in gradients.items()}
    # One copy for each key: safetensors refuses tensors that share memory, as tied weights do.
    return {name: value.detach().clone().contiguous() for name, value in tensors.items()}


def save_tensors(tensors: Tensors, path: Path, about: dict[str, str] | None = None) -> None:
    """Write a safetensors file whose bytes depend on nothing but its content.

    safetensors writes the metadata in an order that changes from run to run; here it is sorted.
    """
    content = save(tensors, about)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight bytes
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def make(out: Path) -> None:
    """Write all reference files below `out`, in place of those that are there."""
    for folder in ("cases", "checkpoints"):
        shutil.rmtree(out / folder, ignore_errors=True)
    (out / "cases").mkdir(parents=True)
    keys: dict[str, dict[str, list[str]]] = {head: {} for head in HEADS}
    for case in CASES:
        model = build_model(case)
        if case.id in CHECKPOINTS:
            # Before it is run: a classifier's loss writes a `problem_type` into the config.
            folder = out / "checkpoints" / type(model).__name__
            model.save_pretrained(folder, safe_serialization=CHECKPOINTS[case.id])
        if case.variant in ("dynamic", "calibrated"):
            keys[case.head][case.variant] = sorted(model.state_dict())
        path = out / "cases" / f"{case.id}.safetensors"
        save_tensors(record(case, model), path, metadata(case, model))
        print(f"{path.stat().st_size:8d}  {path.name}")
    (out / "state_dict_keys.json").write_text(json.dumps(keys, indent=1) + "\n")


def check(folder: Path, kind: str) -> None:
    """Run a checkpoint with its original class; write `outputs.KIND.safetensors`, print one JSON line.

    Args:
        folder: Holds a model of type "qdqbert" and `inputs.safetensors`, its keyword arguments.
        kind: The arithmetic to run it with; a key of `ARITHMETICS`.
    """
    config = transformers.QDQBertConfig.from_pretrained(folder)
    name = config.architectures[0]
    original = {cls.__name__: cls for cls in HEADS.values()}[name]
    # The toolkit moves an `_amax` it loads to CUDA, which fails where there is none; the model is
    # run on the CPU anyway, so for the time of loading a tensor's `cuda` leaves it where it is.
    with patch.object(torch.Tensor, "cuda", lambda self, *args, **kwargs: self):
        model, info = original.from_pretrained(folder, output_loading_info=True)
    with arithmetic(kind), torch.no_grad():
        outputs = flatten(model.eval()(**load_file(folder / "inputs.safetensors")))
    outputs = {key: value.clone().contiguous() for key, value in outputs.items()}
    save_tensors(outputs, folder / f"outputs.{kind}.safetensors")
    first = next(key for key in outputs if key != "loss")
    report = {
        "class": name,
        "arithmetic": kind,
        "output": first,
        "sha256": hashlib.sha256(outputs[first].float().numpy().tobytes()).hexdigest(),
        "quantizers_with_amax": sum(hasattr(q, "_amax") for q in quantizers(model).values()),
        "missing_keys": sorted(info["missing_keys"]),
        # `_amax` is created while loading, so the original takes its key for an unexpected one.
        "unexpected_keys": sorted(k for k in info["unexpected_keys"] if not k.endswith("._amax")),
    }
    print(json.dumps(report))


def main() -> None:
    """Parse the command line and do what it asks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).parent
    parser.add_argument("--out", type=Path, default=here, help="where to write (default: here)")
    parser.add_argument("--check", type=Path, nargs="+", metavar="DIR", help="run these checkpoints instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    absl.logging.set_verbosity("error")
    transformers.logging.set_verbosity_error()
    if options.check is None:
        make(options.out)
    else:
        for folder in options.check:
            for kind in ARITHMETICS:
                check(folder, kind)


if __name__ == "__main__":
    main()
