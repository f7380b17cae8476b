"""What the commands share: their options, their console, and how errors reach the user."""

from __future__ import annotations

import dataclasses
import errno
import functools
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qdqpatch.choices import AUTO_CLASSES, PRESETS
from qdqpatch.cli.sections import SectionOption
from qdqpatch.errors import CalibrationWarning, CheckpointWarning, ConfigError, InterruptedRunError, QdqError
from qdqpatch.output.signals import ended_by_signals

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from qdqpatch.config.config import QDQConfig
    from qdqpatch.config.quantizer import Override

Command = Callable[..., None]

OURS = (CalibrationWarning, CheckpointWarning)
"""The warnings that the commands print."""


task_option = click.option(
    "--task",
    type=click.Choice(list(AUTO_CLASSES)),
    metavar="TASK",
    help=f"The head to load: {', '.join(AUTO_CLASSES)}.  [default: the one that the checkpoint names]",
)
"""For commands whose data has no labels; `data_options` has a `--task` for the others."""


@dataclass(frozen=True)
class Placement:
    """What the options say of what is quantized.

    Attributes:
        preset: The name of a preset.
        file: A configuration.
        overrides: What is changed of either.
        asymmetric: Whether activations get a zero point.
    """

    preset: str | None
    file: Path | None
    overrides: tuple[Override, ...]
    asymmetric: bool = False

    def __call__(self) -> QDQConfig | None:
        """Return the configuration; None if there was no such option."""
        if not self.preset and not self.file and not self.overrides and not self.asymmetric:
            return None
        from qdqpatch.config.config import QDQConfig
        from qdqpatch.config.quantizer import QuantizerConfig

        read = (
            QDQConfig.from_json_file(self.file) if self.file else QDQConfig.preset(self.preset or "qdqbert")
        )
        if self.asymmetric:
            activation = dataclasses.replace(read.activation or QuantizerConfig(), symmetric=False)
            read = dataclasses.replace(read, activation=activation)
        return dataclasses.replace(read, overrides=(*read.overrides, *self.overrides))


_placement = functools.partial(click.option, cls=SectionOption, section="Quantization")


def placement_options(command: Command) -> Command:
    """Add the options that say what is quantized; the command gets them as one `placement`."""

    @functools.wraps(command)
    def with_placement(
        preset: str | None,
        config_file: Path | None,
        asymmetric: bool,
        override: tuple[Override, ...],
        **arguments: Any,
    ) -> None:
        if preset and config_file:
            raise click.UsageError("--preset and --config exclude each other: a file says everything.")
        command(placement=Placement(preset, config_file, override, asymmetric), **arguments)

    for option in (
        _placement(
            "--override",
            metavar="PATTERN=CHANGE",
            multiple=True,
            callback=_parse_overrides,
            help="Change the quantizers whose path matches the glob PATTERN: 'off', 'on', or settings such "
            "as 'num_bits:4,axis:none'. Can be repeated; the last match wins. "
            "Example: --override '*.layer.11.*=off'. `qdqpatch inspect --ranges` lists the paths.",
        ),
        _placement(
            "--asymmetric",
            is_flag=True,
            help="Give the ranges of activations a zero point, so that they reach from the lowest value to "
            "the highest: more exact, at no cost in ONNX Runtime; TensorRT has no zero points.",
        ),
        _placement(
            "--config",
            "config_file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE",
            help="A QDQConfig as a JSON file.",
        ),
        _placement(
            "--preset",
            type=click.Choice(list(PRESETS)),
            help="What to quantize: everything QDQBERT does (the default), all but the residual adds, the "
            "Linears alone; everything and what Linears compute, or everything in FP8, both for TensorRT.",
        ),
    ):
        with_placement = option(with_placement)
    return with_placement


def _parse_overrides(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> tuple[Override, ...]:
    if not texts:
        return ()
    from qdqpatch.config.quantizer import Override

    try:
        return tuple(Override.parse(text) for text in texts)
    except ConfigError as error:
        raise click.BadParameter(str(error), context, parameter) from error


def verbosity_options(command: Command) -> Command:
    """Add -q and -v, give the command a `console` for messages, and turn our errors into exit code 1."""

    @click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
    @click.option("-v", "--verbose", is_flag=True, help="Print what transformers says, and tracebacks.")
    @functools.wraps(command)
    def with_console(quiet: bool, verbose: bool, **arguments: Any) -> None:
        from qdqpatch.cli.console import LiteralConsole

        console = LiteralConsole(quiet)
        with ended_by_signals(), _warnings_on(console, others=verbose):
            if verbose:
                command(console=console, **arguments)
                return
            _silence_transformers()
            try:
                command(console=console, **arguments)
            except InterruptedRunError as error:
                raise click.ClickException(
                    f"{error} To go on with it: --resume. To begin anew: --force."
                ) from error
            except QdqError as error:
                raise click.ClickException(str(error)) from error
            except OSError as error:  # of a file it would be an error of ours
                if error.errno != errno.ENOSPC:
                    raise
                raise click.ClickException(f"Cannot print the result: {error.strerror}.") from error

    return with_console


def code_option(command: Command) -> Command:
    """Add --trust-remote-code, which lets the checkpoints that a command reads run their code."""

    @click.option(
        "--trust-remote-code",
        "trusted",
        is_flag=True,
        help="Run the code that a checkpoint brings along for a model that transformers does not have. Do so "
        "only if you trust it.",
    )
    @functools.wraps(command)
    def with_code(trusted: bool, **arguments: Any) -> None:
        from qdqpatch.patching.own_code import trusting_code

        with trusting_code(trusted):
            command(**arguments)

    return with_code


def progress_bar(console: Console, auto_refresh: bool = True) -> Progress:
    """Return a bar on the console, which stays away where that is quiet or no terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        auto_refresh=auto_refresh,
        disable=console.quiet or not console.is_terminal,
    )


@contextmanager
def _warnings_on(console: Console, others: bool) -> Iterator[None]:
    """Print our own warnings as lines of the console; those of other libraries as Python does, or not."""
    with warnings.catch_warnings():
        show = warnings.showwarning
        printed = set()

        def print_ours(
            message: Warning | str, category: type[Warning], *where: Any, **more: Any
        ) -> None:  # the signature that warnings.showwarning is called with
            if issubclass(category, OURS):
                if str(message) in printed:  # a checkpoint's files are read more than once
                    return
                printed.add(str(message))
                console.print(f"Warning: {message}")
            else:
                show(message, category, *where, **more)

        if not others:
            warnings.simplefilter("ignore")
        for ours in OURS:
            warnings.simplefilter("always", ours)
        warnings.showwarning = print_ours  # the documented way to redirect warnings; put back at the end
        yield


def _silence_transformers() -> None:
    """Keep log lines and bars of the libraries off the screen: the commands say what matters."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
