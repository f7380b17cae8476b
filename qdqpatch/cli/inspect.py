"""`qdqpatch inspect`: what of a checkpoint would be quantized or is, how well, what not, and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qdqpatch.cli.common import code_option, placement_options, task_option, verbosity_options
from qdqpatch.cli.options import json_option
from qdqpatch.cli.places import inputs
from qdqpatch.cli.sections import SectionCommand, SectionOption
from qdqpatch.cli.tables import print_table, print_text
from qdqpatch.errors import NotQuantizedError, QuantizedError
from qdqpatch.spelling import counted

if TYPE_CHECKING:
    from rich.console import Console

    from qdqpatch.checkpoint.source import Checkpoint
    from qdqpatch.config.config import QDQConfig
    from qdqpatch.patching.audit import Audit
    from qdqpatch.patching.plan import Plan
    from qdqpatch.report.quantizers import QuantizerReport

WORST = 10
"""So many quantizers are listed unless all are asked for."""


@click.command(
    "inspect", cls=SectionCommand, short_help="Show what would be quantized, what stays float, and why."
)
@click.argument("ckpt")
@task_option
@placement_options
@click.option(
    "--ranges", "show_ranges", is_flag=True, help="List every quantizer by its path, with its range."
)
@click.option(
    "--audit",
    "with_audit",
    is_flag=True,
    help="Load the model, quantize it if it is a float one, trace it, and list every product and residual "
    "add with an operand that no quantizer feeds.",
)
@json_option
@click.option(
    "--html",
    cls=SectionOption,
    section="Output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a page with the histograms and ranges of a quantized CKPT as pictures, worst quantizers "
    "first; an earlier page is replaced.",
)
@code_option
@verbosity_options
def command(
    ckpt: str,
    task: str | None,
    placement: Callable[[], QDQConfig | None],
    show_ranges: bool,
    with_audit: bool,
    as_json: bool,
    html: Path | None,
    console: Console,
) -> None:
    """Show what of CKPT would be quantized, what would stay float, and why.

    Of a checkpoint that is quantized already, show what is, and of each quantizer the range, the share of
    the values that it clips, and the signal to quantization noise ratio (SQNR; 6 dB are one bit). No model
    is built but for --audit, and nothing but the page of --html is written.
    """
    from qdqpatch.checkpoint.source import open_checkpoint
    from qdqpatch.output.file import check_file
    from qdqpatch.report.page import check_can_draw, write_page
    from qdqpatch.report.quantizers import load_statistics, report_quantizers

    if html is not None:
        check_can_draw()
        check_file(html, inputs=inputs())
    with console.status(f"Reading {ckpt}"):
        source = open_checkpoint(ckpt, task)
    config = placement()
    quantized = source.quantization is not None
    if config is not None and quantized:
        raise QuantizedError(f"{ckpt} is quantized already, so its placement is not an option's to change.")
    if html is not None and not quantized:
        raise NotQuantizedError(f"{ckpt} is a float checkpoint: `qdqpatch convert` it first for --html.")
    plan = source.plan(config)
    if quantized or Path(ckpt).is_dir():  # of a float model on the hub, the config is enough
        source.check_weights(fresh_head=True)
    statistics = None
    if quantized:
        with console.status(f"Judging the quantizers of {ckpt}"):
            statistics = load_statistics(source)
            stored = source.ranges(), statistics, html is not None, source.zero_points()
            reports = report_quantizers(source, plan, *stored)
    else:
        reports = report_quantizers(source, plan, {}, None)
    if html is not None:
        with console.status(f"Drawing {html}"):
            write_page(html, ckpt, plan.model, reports)
        console.print(
            f"Wrote {html}: {counted(len(reports), 'quantizer')}, {html.stat().st_size / 1e6:.1f} MB."
        )
    audited = None
    if with_audit:
        with console.status(f"Tracing {ckpt}"):
            audited = _audit(source, config)
    if as_json:
        data = _with_reports(plan, reports, quantized)
        click.echo(json.dumps(data if audited is None else {**data, "audit": audited.to_dict()}, indent=2))
        return
    print_plan(plan)
    if plan.unknown:
        print_text(plan.notice())
    if audited is not None:
        print_table(audited.title(), ["Module", "Operation", "Float operands"], audited.rows())
    _print_quantizers(reports, quantized, show_ranges)
    if not quantized:
        print_text(f"{ckpt} is a float checkpoint: this is what `qdqpatch convert` would do.")
        return
    if statistics is None:
        print_text(
            "There are no calibration statistics beside the weights, so activations have no figures; "
            "`qdqpatch convert --calib` writes them."
        )
    ranges = sum(report.amax is not None for report in reports)
    hint = "" if html is not None or statistics is None else " To see them: --html FILE."
    print_text(
        f"{ckpt} is quantized; {ranges} of its {counted(len(reports), 'quantizer')} have a range.{hint}"
    )


def _audit(source: Checkpoint, config: QDQConfig | None) -> Audit:
    """Load the checkpoint, quantize it if it is a float one, and audit it on a batch made up."""
    from qdqpatch.exporter.inputs import Inputs
    from qdqpatch.patching.audit import audit
    from qdqpatch.patching.quantize import quantize

    model, _ = source.load()
    if source.quantization is None:
        quantize(model, config)
    inputs = Inputs(model)
    inputs.check()
    return audit(model, inputs.example())


def print_plan(plan: Plan) -> None:
    """Print the plan as two tables, fit for a narrow screen: rows that repeat in every layer are one."""
    from qdqpatch.patching.folding import fold

    title = f"{plan.model}: {counted(len(plan.sites), 'operation')} quantized"
    rows = fold([(site.path, site.operation, site.brief()) for site in plan.sites])
    print_table(title, ["Module", "Operation", "Quantizers"], rows)
    if plan.misses:
        title = counted(len(plan.misses), "operation stays float", "operations stay float")
        print_table(title, ["Module", "Operation", "Reason"], plan.miss_rows())


def _print_quantizers(reports: Sequence[QuantizerReport], quantized: bool, everything: bool) -> None:
    """Print the table of all quantizers, or of the worst if figures of them are known."""
    from qdqpatch.nn.names import is_weight
    from qdqpatch.report.formatting import decibels_text, range_text
    from qdqpatch.report.quantizers import worst_first

    if everything and not quantized:
        rows = [[report.path, str(report.settings), range_text(report)] for report in reports]
        print_table("Quantizers", ["Path", "Settings", "Range"], rows)
        return
    columns = ["Path", "Settings", "SQNR", "Clipped", "Range"]
    worst = [report for report in worst_first(reports) if report.sqnr_db is not None]
    if everything:
        print_table("Quantizers", columns, map(_row, reports))
        for quantizer in worst[:3]:
            click.echo(f"Lowest SQNR: {quantizer.path}, {decibels_text(quantizer)} dB")
    elif any(not is_weight(quantizer.path) for quantizer in worst):
        title = f"The {min(WORST, len(worst))} quantizers of the lowest SQNR; --ranges lists all"
        print_table(title, columns, map(_row, worst[:WORST]))


def _row(report: QuantizerReport) -> list[str]:
    from qdqpatch.report.formatting import decibels_text, range_text, share_text

    decibels = decibels_text(report) + (" dB" if report.sqnr_db is not None else "")
    return [report.path, str(report.settings), decibels, share_text(report), range_text(report)]


def _with_reports(plan: Plan, reports: Sequence[QuantizerReport], quantized: bool) -> dict[str, Any]:
    """Return the plan as data; of a quantized checkpoint with each quantizer's range and figures."""
    data = plan.to_dict()
    by_path = {report.path: report for report in reports}
    for site in data["sites"]:
        for name, settings in site["quantizers"].items():
            report = by_path.get(f"{site['path']}.{name}")
            if report is None or not quantized:
                continue
            if report.amax is not None:
                settings["amax"] = report.amax.flatten().tolist() if report.amax.dim() else report.amax.item()
            if report.ends is not None:
                settings["range"] = report.ends.tolist()
            settings["clipped_share"] = None if report.quality is None else report.quality.clipped_share
            settings["sqnr_db"] = report.sqnr_db
    return data
