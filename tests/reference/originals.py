"""The models whose results are recorded: the original QDQBERT classes, made and calibrated case by case."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from pytorch_quantization.nn import QuantLinear, TensorQuantizer
from pytorch_quantization.tensor_quant import QuantDescriptor
from torch import nn
from transformers.models.bert.modeling_bert import BertForPreTrainingOutput
from transformers.models.qdqbert import modeling_qdqbert as qdqbert

Tensors = dict[str, torch.Tensor]

SEED = 2021
LENGTH = 10
PROMPT, STEPS = 4, 4  # of the cached cases: tokens run at once, then tokens run one by one
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
