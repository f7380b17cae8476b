"""`--build`: compile a file with TensorRT for RTX, and print what became of each operation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qdqpatch.choices import CAPABILITIES, DEFAULT_CAPABILITIES, FLOAT8_CAPABILITIES
from qdqpatch.cli.sections import SectionOption
from qdqpatch.cli.tables import print_table, print_text

if TYPE_CHECKING:
    from qdqpatch.engines.tensorrt.build import Build
    from qdqpatch.engines.tensorrt.table import EngineTable
    from qdqpatch.lint.sites import Site


_option = functools.partial(click.option, cls=SectionOption, section="Compiling")


def build_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--build` and `--capability`; the command gets them as `build` and `capability`."""
    for option in (
        _option(
            "--capability",
            type=click.Choice(CAPABILITIES),
            multiple=True,
            help="With --build: a compute capability to compile for. Can be repeated; the default is "
            f"{', '.join(DEFAULT_CAPABILITIES)}.",
        ),
        _option(
            "--build",
            is_flag=True,
            help="For TensorRT: compile the file with TensorRT for RTX, without a GPU, and show the kernels.",
        ),
    ):
        command = option(command)
    return command


def check_options(target: str, build: bool, capability: Sequence[str]) -> None:
    """Raise a `UsageError` if the options contradict each other."""
    if capability and not build:
        raise click.UsageError("--capability says what --build compiles for: add --build.")
    if build and target != "tensorrt":
        raise click.UsageError(f"--build compiles for TensorRT; there is none for {target}.")


def wanted(build: bool, capability: Sequence[str], float8: bool = False) -> tuple[str, ...]:
    """Return the capabilities to compile for, none without `--build`.

    Unless any is named, those are the default ones, and of them those with FP8 where `float8` says that it
    is needed.

    Raises:
        EngineError: If TensorRT for RTX is not installed.
    """
    if not build:
        return ()
    from qdqpatch.engines.tensorrt.build import require

    usual = [name for name in DEFAULT_CAPABILITIES if not float8 or name in FLOAT8_CAPABILITIES]
    capabilities = tuple(dict.fromkeys(capability or usual))
    require(capabilities, float8)
    return capabilities


def read_builds(
    file: Path, builds: Sequence[Build], sites: Sequence[Site], say: Callable[[str], Any]
) -> list[EngineTable]:
    """Relate the kernels of compiled files to the operations that lint found."""
    from qdqpatch.engines.tensorrt.table import read_tables

    return read_tables(file, builds, sites, say)


def print_builds(file: Path, tables: Sequence[EngineTable]) -> None:
    """Print what became of each operation, the cost of each layer, and one line for each capability."""
    from qdqpatch.patching.folding import fold

    for table in tables:
        built = table.build
        rows = fold([(row.path, row.operation, row.text) for row in table.rows])
        title = (
            f"{file.name} compiled for {built.capability} by TensorRT for RTX {built.version}, {built.shape}"
        )
        print_table(title, ["Module", "Operation", "Kernel: reads -> writes"], rows)
        layers = [(layer.name, str(layer.kernels), f"{layer.moved / 2**20:.1f}") for layer in table.layers]
        print_table("Kernels and activations moved", ["Layer", "Kernels", "MiB"], layers, ["Kernels", "MiB"])
    for table in tables:
        print_text(f"{table.build.capability}: {table.summary}")
