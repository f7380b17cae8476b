"""`qdqpatch verify`: whether exported files compute here what they did where they were written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qdqpatch.cli.common import code_option, verbosity_options
from qdqpatch.cli.options import json_option
from qdqpatch.cli.sections import SectionCommand
from qdqpatch.spelling import counted

if TYPE_CHECKING:
    from rich.console import Console


@click.command(
    "verify", cls=SectionCommand, short_help="See that a folder's files compute what they should here."
)
@click.argument("out", type=click.Path(path_type=Path))
@json_option
@code_option
@verbosity_options
def command(out: Path, as_json: bool, console: Console) -> None:
    """Run the canary texts of the folder OUT in the engines that are installed here.

    OUT is what export, convert --export or optimize wrote; its qdqpatch.json has a few texts, and what the
    model made of them. The exit code is 1 where a file makes something else of them: on another processor,
    or in another version of an engine. Files that were taken away, and those whose engine is not installed,
    are left out.
    """
    from qdqpatch.engines.canaries import verify

    with console.status(f"Running the canary texts of {out}"):
        found = verify(out)
    if as_json:
        click.echo(json.dumps([file.to_dict() for file in found], indent=2))
    for file in found if not as_json else ():
        count = len(file.values)
        said = f"logits of {counted(count, 'text')} differ by at most {100 * file.worst:.2f}%"
        if file.measure == "cosine":
            said = f"lowest cosine {file.worst:.5f} of {counted(count, 'text')}"
        click.echo(f"{file.file} in {file.engine}: {said}.")
        if file.note is not None:
            click.echo(f"  {file.engine.split()[0]} {file.note}")
        if file.exactness is not None:
            click.echo(f"  {file.exactness}")
    if changed := [file.file for file in found if file.changed]:
        raise click.ClickException(
            f"{', '.join(changed)} of {out} was changed since it was written, and what the canary texts gave "
            "then says nothing of it. Export it once more."
        )
    if drifting := [file.file for file in found if file.drifts]:
        raise click.ClickException(
            f"{', '.join(drifting)} of {out} computes something else here than where it was written. Export "
            "it on this machine, or for it: --cpu."
        )
