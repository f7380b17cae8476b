"""Where each architecture has its operations, by the names of its classes; what `config.model_type` leads to.

Twins share a table. The names are looked up in transformers' own module when a model of the type is met, and
no sooner. To add an architecture, add a row; `structural.py` serves a type that has none.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from torch import nn
from transformers import PreTrainedModel

from qdqpatch.rules.adds import ResidualAdds
from qdqpatch.rules.base import Rule
from qdqpatch.rules.linears import Embeddings, Linears
from qdqpatch.rules.matmuls import STANDARD, AttentionMatmuls, Products


@dataclass(frozen=True)
class Architecture:
    """A model's classes by what they hold; a `*` stands for what all names of its module begin with.

    Attributes:
        module: Where the classes are, below `transformers.models`.
        stem: What the `*` stands for.
        layers: Classes whose Linears are quantized.
        attention: Classes that compute attention.
        adds: Classes whose `forward` has residual adds, and how many; behind a dot, another method's name.
        products: The products of attention classes that compute them themselves.
        embeddings: Classes that hold the embeddings.
        pooler: Classes that compute from the last layer's output what the task heads read.
    """

    module: str
    stem: str = ""
    layers: tuple[str, ...] = ("*Layer",)
    attention: tuple[str, ...] = ("*SelfAttention",)
    adds: Mapping[str, int] = field(default_factory=lambda: {"*SelfOutput": 1, "*Output": 1})
    products: tuple[tuple[str, Products], ...] = STANDARD
    embeddings: tuple[str, ...] = ("*Embeddings",)
    pooler: tuple[str, ...] = ()

    def rules(self) -> tuple[Rule, ...] | None:
        """Return the rules; None if the installed transformers has not all of the classes."""
        try:
            module = importlib.import_module(f"transformers.models.{self.module}")
            found: list[Rule] = [
                Linears(self._classes(module, self.layers)),
                AttentionMatmuls(self._classes(module, self.attention), self.products),
            ]
            grouped: dict[tuple[str, int], list[str]] = {}
            for name, count in sorted(self.adds.items(), key=lambda item: item[1]):
                cls, _, method = name.partition(".")
                grouped.setdefault((method or "forward", count), []).append(cls)
            for (method, count), names in grouped.items():
                found.append(ResidualAdds(self._classes(module, names), count, method))
            found.append(Embeddings(self._classes(module, self.embeddings)))
            found.append(Linears(self._classes(module, self.pooler), part="pooler"))
        except (ImportError, AttributeError):
            return None
        return (*found, Linears((PreTrainedModel,), part="head"))

    def _classes(self, module: object, names: Iterable[str]) -> tuple[type[nn.Module], ...]:
        return tuple(getattr(module, name.replace("*", self.stem)) for name in names)


def _bert(module: str, stem: str, pooler: bool = True, cross: bool = True) -> Architecture:
    """Return the table of a model whose classes are BERT's under another name."""
    attention = ("*SelfAttention", "*CrossAttention") if cross else ("*SelfAttention",)
    return Architecture(module, stem, attention=attention, pooler=("*Pooler",) if pooler else ())


def _layered(
    module: str,
    stem: str,
    layer: str = "*Layer",
    attention: str = "*Attention",
    embeddings: tuple[str, ...] = ("*Embeddings",),
    pooler: tuple[str, ...] = (),
) -> Architecture:
    """Return the table of a model whose layer has both residual adds in its own `forward`."""
    return Architecture(module, stem, (layer,), (attention,), {layer: 2}, STANDARD, embeddings, pooler)


def _vit(module: str, stem: str) -> tuple[Architecture, ...]:
    """Return the tables of a vision model, whose classes transformers 5.0 cuts otherwise."""
    pooler = ("*Pooler",) if stem != "Dinov2" else ()
    adds = {"*Layer": 1, "*Output": 1} if stem != "Dinov2" else {"*Layer": 2}
    before = Architecture(module, stem, adds=adds, embeddings=("*Embeddings",), pooler=pooler)
    return before, _layered(module, stem, pooler=pooler)


_DEBERTA: tuple[tuple[str, Products], ...] = (
    # The first three make query, key and value of weights cut in pieces, which no model does.
    ("forward", (None, None, None, ("q", "k"), ("a", "v"))),
    ("disentangled_att_bias", (("c2p_q", "c2p_k"), ("p2c_k", "p2c_q"))),
)
_DEBERTA_V2: tuple[tuple[str, Products], ...] = (
    *STANDARD,
    ("disentangled_attention_bias", (("c2p_q", "c2p_k"), ("p2c_k", "p2c_q"))),
)
_LILT: tuple[tuple[str, Products], ...] = (
    ("forward", (("q", "k"), ("layout_q", "layout_k"), ("layout_a", "layout_v"), ("a", "v"))),
)
_CONVBERT: tuple[tuple[str, Products], ...] = (
    ("forward", (("conv_span", "conv_kernel"), ("q", "k"), ("a", "v"))),
)
_MODERNBERT: tuple[tuple[str, Products], ...] = (("eager_attention_forward", (("q", "k"), ("a", "v"))),)
"""Of transformers 5.0, where attention is taken from a table of functions."""

_CLIP = _layered(
    "clip.modeling_clip", "CLIP", "*EncoderLayer", embeddings=("*TextEmbeddings", "*VisionEmbeddings")
)
_SIGLIP = _layered(
    "siglip.modeling_siglip", "Siglip", "*EncoderLayer", embeddings=("*TextEmbeddings", "*VisionEmbeddings")
)
_BART_ADDS = {"*EncoderLayer": 2, "*DecoderLayer": 3}

ARCHITECTURES: Mapping[str, tuple[Architecture, ...]] = {
    "bert": (_bert("bert.modeling_bert", "Bert"),),
    "roberta": (_bert("roberta.modeling_roberta", "Roberta"),),
    "xlm-roberta": (_bert("xlm_roberta.modeling_xlm_roberta", "XLMRoberta"),),
    "camembert": (_bert("camembert.modeling_camembert", "Camembert"),),
    "data2vec-text": (_bert("data2vec.modeling_data2vec_text", "Data2VecText"),),
    "electra": (_bert("electra.modeling_electra", "Electra", pooler=False),),
    "ernie": (_bert("ernie.modeling_ernie", "Ernie"),),
    "xmod": (
        replace(
            _bert("xmod.modeling_xmod", "Xmod"),
            adds={"*SelfOutput": 1, "*Output": 1, "*Output.lang_adapter": 1},
        ),
    ),
    "layoutlm": (_bert("layoutlm.modeling_layoutlm", "LayoutLM", cross=False),),
    "esm": (_bert("esm.modeling_esm", "Esm", cross=False),),
    "megatron-bert": (_bert("megatron_bert.modeling_megatron_bert", "MegatronBert", cross=False),),
    "rembert": (_bert("rembert.modeling_rembert", "RemBert", cross=False),),
    "roformer": (_bert("roformer.modeling_roformer", "RoFormer", pooler=False, cross=False),),
    "tapas": (_bert("tapas.modeling_tapas", "Tapas", cross=False),),
    "visual_bert": (_bert("visual_bert.modeling_visual_bert", "VisualBert", cross=False),),
    "layoutlmv3": (
        Architecture(
            "layoutlmv3.modeling_layoutlmv3", "LayoutLMv3", embeddings=("*TextEmbeddings", "*PatchEmbeddings")
        ),
    ),
    "lilt": (
        Architecture(
            "lilt.modeling_lilt",
            "Lilt",
            products=_LILT,
            embeddings=("*TextEmbeddings", "*LayoutEmbeddings"),
            pooler=("*Pooler",),
        ),
    ),
    "convbert": (Architecture("convbert.modeling_convbert", "ConvBert", products=_CONVBERT),),
    "distilbert": (
        Architecture(
            "distilbert.modeling_distilbert",
            layers=("TransformerBlock",),
            attention=("DistilBertSelfAttention",),
            adds={"TransformerBlock": 2},
            embeddings=("Embeddings",),
        ),
    ),
    "albert": (
        Architecture(
            "albert.modeling_albert", "Albert", attention=("*Attention",), adds={"*Attention": 1, "*Layer": 1}
        ),
    ),
    "mpnet": (
        Architecture(
            "mpnet.modeling_mpnet", "MPNet", adds={"*Attention": 1, "*Output": 1}, pooler=("*Pooler",)
        ),
    ),
    "deberta": (
        Architecture(
            "deberta.modeling_deberta", "Deberta", attention=("DisentangledSelfAttention",), products=_DEBERTA
        ),
    ),
    "deberta-v2": (
        Architecture(
            "deberta_v2.modeling_deberta_v2",
            "DebertaV2",
            attention=("DisentangledSelfAttention",),
            products=_DEBERTA_V2,
        ),
    ),
    "mobilebert": (
        Architecture(
            "mobilebert.modeling_mobilebert",
            "MobileBert",
            adds={"*SelfOutput": 1, "*Output": 1, "OutputBottleneck": 1, "FFNOutput": 1},
            pooler=("*Pooler",),
        ),
    ),
    "modernbert": (
        replace(
            _layered("modernbert.modeling_modernbert", "ModernBert", "*EncoderLayer"),
            products=_MODERNBERT,
        ),
    ),
    "nomic_bert": (_layered("nomic_bert.modeling_nomic_bert", "NomicBert"),),
    "gte": (_layered("gte.modeling_gte", "Gte"),),
    "jina_embeddings_v3": (
        _layered("jina_embeddings_v3.modeling_jina_embeddings_v3", "JinaEmbeddingsV3", pooler=("*Pooler",)),
    ),
    "eurobert": (
        _layered("eurobert.modeling_eurobert", "EuroBert", "*DecoderLayer", embeddings=("*Model",)),
    ),
    "esmc": (_layered("esmc.modeling_esmc", "Esmc", embeddings=()),),
    "qwen3": (_layered("qwen3.modeling_qwen3", "Qwen3", "*DecoderLayer", embeddings=("*Model",)),),
    "gemma3_text": (
        _layered("gemma3.modeling_gemma3", "Gemma3", "*DecoderLayer", embeddings=("*TextModel",)),
    ),
    "vit": _vit("vit.modeling_vit", "ViT"),
    "deit": _vit("deit.modeling_deit", "DeiT"),
    "dinov2": _vit("dinov2.modeling_dinov2", "Dinov2"),
    "clip": (_CLIP,),
    "clip_text_model": (_CLIP,),
    "clip_vision_model": (_CLIP,),
    "siglip": (_SIGLIP,),
    "siglip_text_model": (_SIGLIP,),
    "siglip_vision_model": (_SIGLIP,),
    "t5": (
        Architecture(
            "t5.modeling_t5",
            "T5",
            layers=("*Block",),
            attention=("*Attention",),
            adds={"*LayerSelfAttention": 1, "*LayerCrossAttention": 1, "*LayerFF": 1},
            embeddings=("*Stack",),
        ),
    ),
    "bart": (
        Architecture(
            "bart.modeling_bart",
            "Bart",
            layers=("*EncoderLayer", "*DecoderLayer"),
            attention=("*Attention",),
            adds=_BART_ADDS,
            embeddings=("*Encoder", "*Decoder"),
        ),
    ),
}
