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
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import absl.logging
import torch
import transformers
from pytorch_quantization.nn import QuantLinear, TensorQuantizer
from pytorch_quantization.tensor_quant import QuantDescriptor
from safetensors.torch import load_file, save
from torch import nn
from transformers.modeling_outputs import ModelOutput
from transformers.models.bert.modeling_bert import BertForPreTrainingOutput
from transformers.models.qdqbert import modeling_qdqbert as qdqbert

Tensors = dict[str, torch.Tensor]

SEED = 2021
LENGTH = 10
PROMPT, STEPS = 4, 4  # of the cached cases: tokens run at once, then tokens run one by one
ARITHMETICS = {"toolkit": False, "fb": True}  # the value of `TensorQuantizer.use_fb_fake_quant`
CLIPPING = 0.7  # calibrated activation ranges are cut to this share, so that values are clipped

# Fields that `BertConfig` and `QDQBertConfig` share. Heads of 12 features: the square root that
# attention divides by is no power of two, so the order of the operations shows in the result.
CONFIG = {
    "vocab_size": 48,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "is_decoder": False,
    "add_cross_attention": False,
    "num_labels": 3,
}


class QDQBertForPreTraining(qdqbert.QDQBertPreTrainedModel):
    """The head the original lacks, put together from its parts the way `BertForPreTraining` is."""

    def __init__(self, config: transformers.QDQBertConfig) -> None:
        super().__init__(config)
        self.bert = qdqbert.QDQBertModel(config)
        self.cls = qdqbert.QDQBertPreTrainingHeads(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """Return the layer whose weight `tie_weights` ties to the word embeddings."""
        return self.cls.predictions.decoder

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        next_sentence_label: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BertForPreTrainingOutput:
        """Return both heads' logits, and the sum of their losses where both labels are given."""
        outputs = self.bert(input_ids, **kwargs)
        scores, relationship = self.cls(outputs.last_hidden_state, outputs.pooler_output)
        loss = None
        if labels is not None and next_sentence_label is not None:
            criterion = nn.CrossEntropyLoss()
            masked_lm_loss = criterion(scores.view(-1, scores.shape[-1]), labels.view(-1))
            next_sentence_loss = criterion(relationship.view(-1, 2), next_sentence_label.view(-1))
            loss = masked_lm_loss + next_sentence_loss
        return BertForPreTrainingOutput(
            loss=loss,
            prediction_logits=scores,
            seq_relationship_logits=relationship,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


HEADS = {
    "BertModel": qdqbert.QDQBertModel,
    "BertLMHeadModel": qdqbert.QDQBertLMHeadModel,
    "BertForMaskedLM": qdqbert.QDQBertForMaskedLM,
    "BertForPreTraining": QDQBertForPreTraining,
    "BertForSequenceClassification": qdqbert.QDQBertForSequenceClassification,
    "BertForNextSentencePrediction": qdqbert.QDQBertForNextSentencePrediction,
    "BertForMultipleChoice": qdqbert.QDQBertForMultipleChoice,
    "BertForTokenClassification": qdqbert.QDQBertForTokenClassification,
    "BertForQuestionAnswering": qdqbert.QDQBertForQuestionAnswering,
}
HEAD_CONFIG = {
    "BertLMHeadModel": {"is_decoder": True},
    "BertForQuestionAnswering": {"num_labels": 2},  # a start and an end; any other number fails
}


@dataclass(frozen=True)
class Case:
    """One model and the way it is run.

    Attributes:
        head: Name of the present-day class; a key of `HEADS`.
        variant: What is particular about the case.
        config: What differs from `CONFIG` and `HEAD_CONFIG`.
        weight: The weights' descriptor, None for the toolkit's own default.
        calibrated: Whether the quantizers have an `_amax`.
        masked: Whether there is padding and an attention mask.
        cached: Whether it runs token by token, with keys and values cached.
    """

    head: str
    variant: str
    config: dict[str, Any] = field(default_factory=dict)
    weight: QuantDescriptor | None = None
    calibrated: bool = True
    masked: bool = True
    cached: bool = False

    @property
    def id(self) -> str:
        """Name of the case's file."""
        return f"{self.head}-{self.variant}"

    @property
    def bert_config(self) -> dict[str, Any]:
        """Every field of the configuration."""
        return CONFIG | HEAD_CONFIG.get(self.head, {}) | self.config


CLASSIFIER, DECODER = "BertForSequenceClassification", "BertLMHeadModel"
CROSS = {"add_cross_attention": True}
CASES = (
    *(Case(head, "dynamic", calibrated=False) for head in HEADS),
    *(Case(head, "calibrated") for head in HEADS),
    Case(CLASSIFIER, "per_tensor_weights", weight=QuantDescriptor(num_bits=8, axis=None)),
    Case(CLASSIFIER, "4bit_weights", weight=QuantDescriptor(num_bits=4, axis=(0,))),
    Case(CLASSIFIER, "relu", config={"hidden_act": "relu"}),
    Case(CLASSIFIER, "layers4", config={"num_hidden_layers": 4}),
    Case(CLASSIFIER, "no_mask", masked=False),
    Case(DECODER, "cross_attention", config=CROSS),
    Case(DECODER, "cache", cached=True),
    Case(DECODER, "cross_attention_cache", config=CROSS, cached=True),
)
# Written by the original `save_pretrained`: case -> whether as safetensors.
CHECKPOINTS = {
    "BertForSequenceClassification-calibrated": True,
    "BertForMaskedLM-calibrated": False,
}


def make_inputs(case: Case, seed: int) -> Tensors:
    """Draw the keyword arguments of one forward pass, labels apart.

    Rows are padded on the right, each to another length. A cached case is padded within its prompt
    only, so that every token has something to attend to.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = (2, 3) if case.head == "BertForMultipleChoice" else (3,)
    length = PROMPT + STEPS if case.cached else LENGTH
    shape = (*rows, length)
    vocabulary = case.bert_config["vocab_size"]
    inputs = {"input_ids": torch.randint(1, vocabulary, shape, generator=generator)}
    if case.masked:
        positions = torch.arange(length)
        if case.cached:
            mask = (positions < torch.tensor([4, 3, 2])[:, None]) | (positions >= PROMPT)
        else:
            lengths = torch.tensor([10, 7, 5, 9, 6, 8])[: math.prod(rows)]
            mask = positions < lengths.view(*rows, 1)
        inputs["attention_mask"] = mask.long()
        inputs["input_ids"] *= inputs["attention_mask"]
    inputs["token_type_ids"] = torch.randint(0, 2, shape, generator=generator)
    if case.bert_config["add_cross_attention"]:
        states = (*rows, 7, case.bert_config["hidden_size"])
        inputs["encoder_hidden_states"] = torch.randn(states, generator=generator)
        inputs["encoder_attention_mask"] = (torch.arange(7) < torch.tensor([5, 7, 3])[:, None]).long()
    return inputs


def make_labels(case: Case, inputs: Tensors, seed: int) -> Tensors:
    """Draw the labels of the case's head; none for the bare model. Padding is ignored (-100)."""
    generator = torch.Generator().manual_seed(seed)
    tokens = inputs["input_ids"]
    padding = tokens == CONFIG["pad_token_id"]

    def draw(high: int, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator)

    rows = (tokens.shape[0],)
    num_labels = case.bert_config["num_labels"]
    match case.head:
        case "BertModel":
            return {}
        case "BertLMHeadModel" | "BertForMaskedLM" | "BertForPreTraining":
            ignored = padding | (torch.rand(tokens.shape, generator=generator) < 0.4)
            words = draw(case.bert_config["vocab_size"], tokens.shape)
            labels = {"labels": words.masked_fill(ignored, -100)}
            if case.head == "BertForPreTraining":
                labels["next_sentence_label"] = draw(2, rows)
            return labels
        case "BertForTokenClassification":
            return {"labels": draw(num_labels, tokens.shape).masked_fill(padding, -100)}
        case "BertForQuestionAnswering":
            return {name: draw(LENGTH, rows) for name in ("start_positions", "end_positions")}
        case "BertForMultipleChoice":
            return {"labels": draw(tokens.shape[1], rows)}
        case "BertForNextSentencePrediction":
            return {"labels": draw(2, rows)}
        case "BertForSequenceClassification":
            return {"labels": draw(num_labels, rows)}
    raise ValueError(f"no labels are known for {case.head}")


def quantizers(model: nn.Module) -> dict[str, TensorQuantizer]:
    """Return the model's quantizers by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, TensorQuantizer)}


def build_model(case: Case) -> qdqbert.QDQBertPreTrainedModel:
    """Build the case's model; no bias is left at 0 and no LayerNorm weight at 1."""
    default = QuantLinear.default_quant_desc_weight
    try:
        if case.weight is not None:
            QuantLinear.set_default_quant_desc_weight(case.weight)
        torch.manual_seed(SEED)
        model = HEADS[case.head](transformers.QDQBertConfig(**case.bert_config))
    finally:
        QuantLinear.set_default_quant_desc_weight(default)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    if case.calibrated:
        calibrate(case, model)
    return model.eval()


@torch.no_grad()
def calibrate(case: Case, model: nn.Module) -> None:
    """Give every quantizer its `_amax` by the toolkit's max calibration, activations cut short."""
    model.eval()
    for quantizer in quantizers(model).values():
        quantizer.disable_quant()
        quantizer.enable_calib()
    for batch in range(2):
        model(**make_inputs(case, SEED + 10 + batch))
    for name, quantizer in quantizers(model).items():
        quantizer.load_calib_amax()
        quantizer.enable_quant()
        quantizer.disable_calib()
        if not name.endswith("_weight_quantizer"):
            quantizer._amax.mul_(CLIPPING)


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
