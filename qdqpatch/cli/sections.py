"""Help that groups the options of a command under headings."""

from __future__ import annotations

from typing import Any

import click


class SectionOption(click.Option):
    """An option that the help lists under a heading of its own.

    Args:
        section: The heading.
    """

    def __init__(self, *arguments: Any, section: str, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.section = section


HEADINGS = (
    "Data",
    "Quantization",
    "Calibration",
    "Schedule",
    "Distillation",
    "Mixed precision",
    "Budget",
    "Running",
    "Compiling",
    "Output",
    "Options",
)
"""The headings, in the order that they have in the help of every command."""


class SectionCommand(click.Command):
    """A command whose help has a section for each heading, and which takes no empty names."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; an empty one, as of a variable that is not set, would be this folder."""
        if any(text == "" or (text.startswith("--") and text.endswith("=")) for text in args):
            raise click.UsageError("An argument is empty: see whether a variable has no value.", ctx)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, by section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            title = option.section if isinstance(option, SectionOption) else HEADINGS[-1]
            record = option.get_help_record(ctx) if isinstance(option, click.Option) else None
            if record is not None:
                sections.setdefault(title, []).append(record)
        for title in sorted(sections, key=HEADINGS.index):
            with formatter.section(title):
                formatter.write_dl(sections[title])
