"""Options of several commands: one name means one thing."""

from collections import defaultdict

import click
import pytest
from commands import invoke

from qdqpatch.cli import COMMANDS, main

OWN = {
    "--task": "heads that can be loaded, and those that there are metrics for",
    "--shape": "bench takes several",
    "--target": "convert writes for several",
    "--shift": "train does it unless it is told not to",
}
"""Options that are not quite the same in all commands, and why."""

DEFAULTS = {"--data", "--samples", "--batch-size", "--max-length", "--refine", "--shift", "--target"}
"""Options whose default fits what the command does."""


def options() -> dict[str, list[click.Option]]:
    found = defaultdict(list)
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                found[parameter.opts[-1]].append(parameter)
    return {name: same for name, same in found.items() if len(same) > 1}


@pytest.mark.parametrize("name", options())
def test_options_of_one_name_agree(name: str) -> None:
    first, *others = options()[name]
    for option in others:
        assert option.metavar == first.metavar
        assert option.required == first.required or name in DEFAULTS
        if name not in OWN:
            assert option.type.to_info_dict() == first.type.to_info_dict()
            assert (option.multiple, option.is_flag) == (first.multiple, first.is_flag)
        if name not in DEFAULTS:
            assert option.default == first.default
        if name in ("--json", "--engine", "--threads", "--text-column", "--subset", "--preset", "--quiet"):
            assert option.help == first.help


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
