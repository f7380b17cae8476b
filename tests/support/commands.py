"""The command line, called from tests."""

from click.testing import CliRunner, Result

from qdqpatch.cli import main


def invoke(*arguments: object) -> Result:
    """Run `qdqpatch` with arguments of any type."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])
