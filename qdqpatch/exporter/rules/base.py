"""What a rule is."""

from __future__ import annotations

from typing import Protocol

import onnx_ir as ir

from qdqpatch.exporter.graph import Rewriter


class RewriteRule(Protocol):
    """Replaces the nodes of one operator."""

    @property
    def operator(self) -> str:
        """The operator's name."""

    @property
    def domain(self) -> str:
        """The operator's domain; the empty one is ONNX's own."""

    def rewrite(self, rewriter: Rewriter, node: ir.Node) -> None:
        """Replace the node, or leave it as it is."""


def apply(rewriter: Rewriter, *rules: RewriteRule) -> None:
    """Let rules rewrite every node of their operators, in the graph's order.

    In one pass, because what a rule computes for one node, such as a tensor's integers, another rule may
    use for a later one.
    """
    by_operator = {(rule.domain, rule.operator): rule for rule in rules}
    for node in list(rewriter.graph):
        rule = by_operator.get((node.domain, node.op_type))
        if rule is not None:
            rule.rewrite(rewriter, node)
