"""`qdqpatch inspect`: what of a checkpoint would be quantized or is, what not, and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console
from torch import Tensor

from qdqpatch.checkpoint.source import open_checkpoint
from qdqpatch.cli.common import placement_options, print_table, verbosity_options
from qdqpatch.config import QDQConfig
from qdqpatch.errors import QuantizedError
from qdqpatch.folding import fold
from qdqpatch.plan import Plan


@click.command()
@click.argument("ckpt")
@placement_options
@click.option(
    "--ranges", "show_ranges", is_flag=True, help="List every quantizer by its path, with its range."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@verbosity_options
def inspect(
    ckpt: str,
    task: str | None,
    placement: Callable[[], QDQConfig | None],
    show_ranges: bool,
    as_json: bool,
    console: Console,
) -> None:
    """Show what of CKPT would be quantized, what would stay float, and why.

    Of a checkpoint that is quantized already, show what is, and how many quantizers have a range. No
    weights are loaded and nothing is written.
    """
    with console.status(f"Reading {ckpt}"):
        source = open_checkpoint(ckpt, task)
    config = placement()
    if config is not None and source.quantization is not None:
        raise QuantizedError(f"{ckpt} is quantized already, so its placement is not an option's to change.")
    plan = source.plan(config)
    ranges = source.ranges() if source.quantization is not None else {}
    if as_json:
        click.echo(json.dumps(_with_ranges(plan, ranges), indent=2))
        return
    print_plan(plan)
    if show_ranges:
        rows = [[path, settings, range_text(ranges.get(path))] for path, settings in _quantizers(plan)]
        print_table("Quantizers", ["Path", "Settings", "Range"], rows)
    if source.quantization is None:
        click.echo(f"{ckpt} is a float checkpoint: this is what `qdqpatch convert` would do.")
        return
    click.echo(f"{ckpt} is quantized; {len(ranges)} of its {len(_quantizers(plan))} quantizers have a range.")


def print_plan(plan: Plan) -> None:
    """Print the plan as two tables, fit for a narrow screen: rows that repeat in every layer are one."""
    title = f"{plan.model}: {len(plan.sites)} operations quantized"
    rows = fold([(site.path, site.operation, site.brief()) for site in plan.sites])
    print_table(title, ["Module", "Operation", "Quantizers"], rows)
    if plan.misses:
        title = f"{len(plan.misses)} operations stay float"
        print_table(title, ["Module", "Operation", "Reason"], plan.miss_rows())


def range_text(amax: Tensor | None) -> str:
    """Write a range as `1.234`, or `0.1 to 0.9 (768 channels)`; `from each input` if there is none."""
    if amax is None:
        return "from each input"
    if amax.numel() == 1:
        return f"{amax.item():.4g}"
    return f"{amax.min().item():.4g} to {amax.max().item():.4g} ({amax.numel()} channels)"


def _quantizers(plan: Plan) -> list[tuple[str, str]]:
    return [
        (f"{site.path}.{name}", str(settings))
        for site in plan.sites
        for name, settings in site.quantizers.items()
        if settings is not None
    ]


def _with_ranges(plan: Plan, ranges: dict[str, Tensor]) -> dict[str, Any]:
    """Return the plan as data, each quantizer's `amax` being the range that the checkpoint holds."""
    data = plan.to_dict()
    for site in data["sites"]:
        for name, settings in site["quantizers"].items():
            amax = ranges.get(f"{site['path']}.{name}")
            if settings is not None and amax is not None:
                settings["amax"] = amax.flatten().tolist() if amax.dim() else amax.item()
    return data
