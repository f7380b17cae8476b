"""Options of several commands: one name means one thing."""

from collections import defaultdict

import click
import pytest
from commands import invoke

from qdqpatch.cli import COMMANDS, main
from qdqpatch.cli.sections import HEADINGS

OWN: dict[str, tuple[set[str], str]] = {
    "--task": ({"type", "help", "section"}, "heads that can be loaded, and those that there are metrics for"),
    "--engine": ({"type"}, "bench runs what eval does not"),
    "--shape": (
        {"default", "help", "section", "multiple", "name", "show_default"},
        "bench takes several, and optimize has a usual one",
    ),
    "--warmup": (
        {"default", "help", "section", "type"},
        "turns before what is timed, and a share of the steps",
    ),
    "--data": (
        {"help", "metavar", "required", "name", "opts"},
        "convert needs none, and texts or images alone",
    ),
    "--samples": ({"default", "help", "show_default"}, "a metric needs more than ranges, and eval takes all"),
    "--seed": ({"help"}, "what is drawn is another thing"),
    "--batch-size": ({"default", "help", "section"}, "for train it is part of the schedule"),
    "--max-length": ({"default", "help", "show_default"}, "that of a task is the task's"),
    "--method": ({"help"}, "convert explains them"),
    "--shift": ({"default", "help", "opts", "show_default"}, "train does it unless it is told not to"),
    "--smooth-inputs": ({"default", "help", "opts", "show_default"}, "train does it for embedders"),
    "--smooth-residuals": ({"default", "help", "opts", "show_default"}, "train does it for embedders"),
    "--refine": ({"default", "help", "show_default"}, "train does it"),
    "--target": (
        {"default", "help", "multiple", "name", "opts", "required", "show_default"},
        "convert may have several",
    ),
    "--plot": ({"help"}, "what is drawn is another thing"),
    "--triton": ({"help"}, "it needs another option"),
    "--force": ({"help"}, "what is replaced is another thing"),
    "--max-drop": ({"help", "section"}, "eval judges by it, and sensitivity searches"),
}
"""What is not the same in all commands of some options, and why."""


def options() -> dict[str, list[click.Option]]:
    found = defaultdict(list)
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                for spelling in (*parameter.opts, *parameter.secondary_opts):
                    found[spelling].append(parameter)
    return {name: same for name, same in found.items() if len(same) > 1}


def facts(option: click.Option) -> dict[str, object]:
    """What a user can notice of an option."""
    names = ("name", "default", "help", "metavar", "multiple", "is_flag", "required", "show_default")
    return {
        "type": option.type.to_info_dict(),
        "section": getattr(option, "section", "Options"),
        "opts": (*option.opts, *option.secondary_opts),
        **{name: getattr(option, name) for name in names},
    }


@pytest.mark.parametrize("name", options())
def test_options_of_one_name_agree(name: str) -> None:
    first, *others = map(facts, options()[name])
    differing = {fact for other in others for fact in first if first[fact] != other[fact]}
    assert differing == (OWN[name][0] if name in OWN else set())


def test_the_help_of_every_command_has_its_sections_in_one_order() -> None:
    for name in COMMANDS:
        lines = invoke(name, "--help").stdout.splitlines()
        found = [line.removesuffix(":") for line in lines if line.removesuffix(":") in HEADINGS]
        assert found == sorted(found, key=HEADINGS.index)
        assert found[-1] == "Options"


@pytest.mark.parametrize("seed", ["-1", "4294967296", "x"])
@pytest.mark.parametrize("command", ["convert", "eval", "sensitivity", "train"])
def test_a_seed_out_of_range_is_wrong_usage(command: str, seed: str) -> None:
    result = invoke(command, "ckpt", "out", "--seed", seed)
    assert result.exit_code == 2
    assert "'--seed'" in result.stderr


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e39"])
def test_a_range_that_gelu_cannot_end_at_is_wrong_usage(value: str) -> None:
    result = invoke("convert", "ckpt", "out", "--calib", "a.txt", "--clip-gelu", value)
    assert result.exit_code == 2
    assert "--clip-gelu" in result.stderr
