"""What an engine can compute in int8 of an ONNX model, and what keeps it from the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdqpatch.errors import ExportError
from qdqpatch.lint.rules import RULES
from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.sites import Site
from qdqpatch.packages import require


@dataclass(frozen=True)
class Finding:
    """A rule that an operation breaks.

    Attributes:
        site: The operation.
        rule: The rule.
        detail: What breaks it, without a full stop.
    """

    site: Site
    rule: LintRule
    detail: str


@dataclass(frozen=True)
class LintReport:
    """What was found in a file.

    Attributes:
        target: The engine.
        sites: The operations that were looked at.
        findings: The rules that they break, in the order of the operations.
    """

    target: str
    sites: tuple[Site, ...]
    findings: tuple[Finding, ...]

    @property
    def has_float8(self) -> bool:
        """Whether an operand is FP8."""
        return any(operand.dtype == "float8e4m3fn" for site in self.sites for operand in site.operands)

    @property
    def broken(self) -> dict[str, list[Finding]]:
        """The findings by the names of the rules, in the order of the engine's table."""
        found = {
            rule.name: [finding for finding in self.findings if finding.rule is rule]
            for rule in RULES[self.target]
        }
        return {name: findings for name, findings in found.items() if findings}

    def of(self, site: Site) -> tuple[Finding, ...]:
        """Return the findings of one operation."""
        return tuple(finding for finding in self.findings if finding.site is site)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "target": self.target,
            "sites": [
                {
                    "path": site.path,
                    "operation": site.operation,
                    "operator": site.op_type,
                    "findings": [
                        {"rule": finding.rule.name, "detail": finding.detail} for finding in self.of(site)
                    ],
                }
                for site in self.sites
            ],
            "rules": {name: _described(findings) for name, findings in self.broken.items()},
        }


def check_sites(sites: Sequence[Site], target: str) -> LintReport:
    """Hold every operation against the rules of an engine."""
    findings = []
    rules = [rule for rule in RULES[target] if rule.concerns is None or rule.concerns(sites)]
    for site in sites:
        for rule in rules:
            detail = rule.check(site) if site.operation in rule.operations else None
            if detail is not None:
                findings.append(Finding(site, rule, detail))
    return LintReport(target, tuple(sites), tuple(findings))


def check_file(path: Path, target: str) -> LintReport:
    """Check an ONNX file; weights that it keeps in another file are not needed.

    Args:
        path: The file.
        target: The engine; one of `qdqpatch.choices.TARGETS`.

    Raises:
        CheckpointError: If the file cannot be read, or there is no encoder in it.
        ExportError: If the libraries that read ONNX are not installed.
    """
    require("Reading ONNX", "onnx", "onnx_ir", error=ExportError)
    from qdqpatch.lint.graph import read_sites

    return check_sites(read_sites(path), target)


def _described(findings: Sequence[Finding]) -> dict[str, Any]:
    rule = findings[0].rule
    return {
        "effect": rule.effect,
        "reason": rule.reason,
        "fix": rule.fix,
        "documents": [{"title": document.title, "url": document.url} for document in rule.documents],
        "operations": len(findings),
    }
