"""Where messages go: a console that shows every text as it is, `[brackets]` in paths and data included."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.status import Status
from rich.text import Text


class LiteralStatus(Status):
    """A spinner whose text has no markup."""

    def update(self, status: Any = None, **how: Any) -> None:
        """Show another text."""
        super().update(_literal(status), **how)


class LiteralConsole(Console):
    """A console on standard error that knows no markup."""

    def __init__(self, quiet: bool) -> None:
        super().__init__(stderr=True, quiet=quiet, highlight=False, soft_wrap=True, markup=False, emoji=False)

    def status(self, status: Any, **how: Any) -> Status:
        """Return a spinner beside a text, for the time that something takes."""
        return LiteralStatus(_literal(status), console=self, **how)


def _literal(text: Any) -> Any:
    return Text(text) if isinstance(text, str) else text
