"""Only what Q/DQ stands before is computed with integers: true of every engine."""

from qdqpatch.lint.rules.base import Document, LintRule
from qdqpatch.lint.sites import Site, listed, operand_names


def check(site: Site) -> str | None:
    """Name the operands that stay float."""
    names = [
        name
        for name, operand in zip(operand_names(site), site.operands, strict=True)
        if operand.dtype is None
    ]
    return f"no Q/DQ before its {listed(names)}" if names else None


def rule(document: Document) -> LintRule:
    """Return the rule as an engine documents it."""
    return LintRule(
        name="not-quantized",
        effect="stays float",
        operations=("linear", "query x key", "probabilities x value"),
        reason="A matmul is computed with integers only if both of its operands are quantized.",
        fix="Quantize both operands: the qdqbert preset of qdqpatch does for every Linear and attention.",
        documents=(document,),
        check=check,
    )
