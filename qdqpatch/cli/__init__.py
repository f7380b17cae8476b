"""The command line: `qdqpatch COMMAND`."""

from __future__ import annotations

import difflib
import io
import sys
from importlib import import_module
from typing import Any

import click

import qdqpatch
from qdqpatch.cli.processes import joined
from qdqpatch.spelling import on_command_line

COMMANDS = (
    "bench",
    "convert",
    "eval",
    "export",
    "inspect",
    "lint",
    "optimize",
    "sensitivity",
    "train",
    "verify",
)
"""The commands, each the `command` of the module of its name."""


class LazyGroup(click.Group):
    """A group that imports its commands when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"{__name__}.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is asked for; of a misspelled one, say which is meant."""
        close = difflib.get_close_matches(args[0], COMMANDS, n=1)
        if args[0] not in COMMANDS and close and not args[0].startswith("-"):
            raise click.UsageError(f"No such command {args[0]!r}. Did you mean {close[0]!r}?", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Read the command's options and run it; all messages are for a reader at a terminal."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # whose encoding may lack what a path or a text has
                stream.reconfigure(errors="replace")
        with on_command_line():
            return super().invoke(ctx)


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(qdqpatch.__version__, prog_name="qdqpatch")
@click.pass_context
def main(context: click.Context) -> None:
    """Turn Hugging Face encoders into int8 ones that TensorRT, ONNX Runtime and OpenVINO run fast.

    CKPT is a folder that save_pretrained wrote, or the name of a model on the Hugging Face hub.

    \b
    The best int8 for an engine:      qdqpatch optimize CKPT OUT --data texts.txt
    See what would be quantized:      qdqpatch inspect CKPT
    Quantize, calibrate and save:     qdqpatch convert CKPT OUT --calib sentences.txt
    Write it for an engine:           qdqpatch export OUT ENGINE --target onnxruntime
    Train it to the float model:      qdqpatch train CKPT OUT --distill --data train.tsv
    Check an ONNX file for an engine: qdqpatch lint FILE.onnx --target onnxruntime
    Compare speed, size and memory:   qdqpatch bench CKPT OUT
    Find what to leave in float:      qdqpatch sensitivity CKPT --data dev.tsv --max-drop 1
    Compare metrics on labelled data: qdqpatch eval CKPT OUT --data dev.tsv
    Check a folder on this machine:   qdqpatch verify OUT
    """  # noqa: D301 - click takes the character, not a backslash
    context.with_resource(joined(context.invoked_subcommand))
