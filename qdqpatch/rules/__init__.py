"""Which rules each architecture takes, by `config.model_type`.

To add one, write a file like `bert.py` and a row here.
"""

from qdqpatch.rules import bert
from qdqpatch.rules.base import Rule

RULES: dict[str, tuple[Rule, ...]] = {
    "bert": bert.RULES,
}
