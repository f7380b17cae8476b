"""BERT: `transformers/models/bert/modeling_bert.py`."""

from transformers import PreTrainedModel
from transformers.models.bert import modeling_bert as bert

from qdqpatch.rules.adds import ResidualAdds
from qdqpatch.rules.linears import Embeddings, Linears
from qdqpatch.rules.matmuls import AttentionMatmuls

RULES = (
    Linears(inside=(bert.BertLayer,)),
    AttentionMatmuls(inside=(bert.BertSelfAttention, bert.BertCrossAttention)),
    ResidualAdds(inside=(bert.BertSelfOutput, bert.BertOutput)),
    Embeddings(inside=(bert.BertEmbeddings,)),
    Linears(inside=(bert.BertPooler,), part="pooler"),
    Linears(inside=(PreTrainedModel,), part="head"),
)
