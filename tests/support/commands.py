"""The command line, called from tests."""

from pathlib import Path

from click.testing import CliRunner, Result

from qdqpatch.cli import main


def invoke(*arguments: object) -> Result:
    """Run `qdqpatch` with arguments of any type."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_fails(result: Result, *fragments: str, code: int = 1, at_once: bool = True) -> None:
    """Say what is wrong in one line, without a traceback, and print nothing else, if that is `at_once`."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    error = result.stderr.strip().splitlines()
    assert error[-1].startswith("Error: ")
    for fragment in fragments:
        assert fragment in error[-1]
    assert len(error) == 1 or code == 2 or not at_once  # click shows the usage before


def left_behind() -> list[str]:
    """Return the names of what is in the current folder."""
    return sorted(path.name for path in Path().iterdir())
