"""`qdqpatch lint`: what an engine can compute in int8 of an ONNX file, and what keeps it from the rest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qdqpatch.choices import TARGETS
from qdqpatch.cli.common import verbosity_options
from qdqpatch.cli.compiling import build_options, check_options, print_builds, read_builds, wanted
from qdqpatch.cli.options import json_option
from qdqpatch.cli.sections import SectionCommand, SectionOption
from qdqpatch.cli.shapes import SHAPE
from qdqpatch.cli.tables import print_table, print_text, width
from qdqpatch.errors import EngineError
from qdqpatch.spelling import counted

if TYPE_CHECKING:
    from rich.console import Console

    from qdqpatch.engines.shapes import Shape
    from qdqpatch.engines.tensorrt.table import EngineTable
    from qdqpatch.lint import LintReport
    from qdqpatch.lint.sites import Site


@click.command(
    "lint", cls=SectionCommand, short_help="Show what keeps an engine from computing a file in int8."
)
@click.argument("file", metavar="FILE.onnx", type=click.Path(path_type=Path))
@click.option(
    "--target", type=click.Choice(TARGETS), required=True, help="The engine that is to run the file."
)
@json_option
@build_options
@click.option(
    "--shape",
    cls=SectionOption,
    section="Compiling",
    metavar="BATCHxLENGTH",
    type=SHAPE,
    help="With --build: the shape to compile dynamic axes for.  [default: 32x128, or what the model takes]",
)
@verbosity_options
def command(
    file: Path,
    target: str,
    as_json: bool,
    build: bool,
    capability: tuple[str, ...],
    shape: Shape | None,
    console: Console,
) -> None:
    """Show what the engine can compute in int8 of FILE.onnx, and what keeps it from the rest.

    Any encoder with QuantizeLinear and DequantizeLinear will do, whoever exported it. Each operation that
    breaks a rule of the engine is named, with the rule, its documentation and the fix. Only the graph is
    read; --build compiles the file as well, and shows what became of each operation. The exit code is 1 if
    anything was found.
    """
    from qdqpatch.lint import check_file

    if shape is not None and not build:
        raise click.UsageError("--shape says what --build compiles for: add --build.")
    check_options(target, build, capability)
    with console.status(f"Reading {file}"):
        report = check_file(file, target)
    capabilities = wanted(build, capability, report.has_float8)
    if not as_json:
        _print_report(file, report)
    tables, error = [], None
    if capabilities:
        with console.status("Compiling") as status:
            try:
                tables = _compiled(file, report, capabilities, shape, status.update)
            except EngineError as refused:
                error = refused
    if as_json:
        result: dict[str, Any] = {"file": str(file), **report.to_dict()}
        if capabilities:
            result["builds"] = [table.to_dict() for table in tables]
            result["build_error"] = None if error is None else str(error)
        click.echo(json.dumps(result, indent=2))
    elif tables:
        click.echo()
        print_builds(file, tables)
    if error is not None:
        raise error
    if report.findings:
        click.get_current_context().exit(1)


def _compiled(
    file: Path,
    report: LintReport,
    capabilities: tuple[str, ...],
    shape: Shape | None,
    say: Callable[[str], Any],
) -> list[EngineTable]:
    from qdqpatch.engines.homes import longest_of
    from qdqpatch.engines.shapes import cut
    from qdqpatch.engines.tensorrt import build

    if shape is None:
        (shape,) = cut([build.SHAPE], longest_of(file) or build.SHAPE.length)
    builds = build.build_all(file, capabilities, shape, say)
    return read_builds(file, builds, report.sites, say)


def _print_report(file: Path, report: LintReport) -> None:
    from qdqpatch.patching.folding import fold

    rows = [(site.path, site.operation, _verdict(report, site)) for site in report.sites]
    print_table(f"{file.name} in {report.target}", ["Module", "Operation", "Result"], fold(rows))
    for name, findings in report.broken.items():
        rule = findings[0].rule
        operations = counted(len(findings), "operation")
        click.echo(f"{name}: {rule.effect}, {operations}")
        details = Counter(finding.detail for finding in findings)
        _print_field("Found", "; ".join(f"{detail} ({count}x)" for detail, count in details.items()))
        _print_field("Why", rule.reason)
        _print_field("Fix", rule.fix)
        for document in rule.documents:
            click.echo(f"  See   {document.title}\n        {document.url}")
        click.echo()
    print_text(_summary(file, report))


def _print_field(name: str, text: str) -> None:
    click.echo(click.wrap_text(text, min(width(), 100), f"  {name:<6}", " " * 8))


def _verdict(report: LintReport, site: Site) -> str:
    """Say what becomes of an operation, worst first."""
    found = report.of(site)
    if not found:
        return "fine"
    effects = {finding.rule.effect for finding in found}
    worst = next(effect for effect in ("refused", "stays float", "slower") if effect in effects)
    return f"{worst}: {', '.join(finding.rule.name for finding in found)}"


def _summary(file: Path, report: LintReport) -> str:
    if not report.findings:
        operations = counted(len(report.sites), "operation is", "operations are")
        return f"{file.name} breaks no rule of {report.target}: {operations} fine."
    fine = Counter(site.operation for site in report.sites if not report.of(site))
    counts = Counter(site.operation for site in report.sites)
    parts = ", ".join(f"{fine[name]} of {count} ({name})" for name, count in counts.items())
    rules = counted(len(report.broken), "rule")
    return f"{file.name} breaks {rules} of {report.target}. Fine: {parts}."
