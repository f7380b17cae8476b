"""From records to texts: what cannot be read is left out, counted, and said once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qdqpatch.data.columns import Columns, Text, check_columns, choose_columns, problem_of, text_of
from qdqpatch.data.records import Record
from qdqpatch.errors import CalibrationError, CalibrationWarning
from qdqpatch.spelling import counted


@dataclass
class Reading:
    """The state of reading one source.

    Attributes:
        source: The name of the data, which its messages begin with.
        unit: What the numbers of its records count.
        columns: The columns to read; None until the first record tells.
        ragged: Whether records may differ in their columns, so that the first one does not speak for all.
        readable: How many lines or rows gave a text.
        unreadable: How many did not.
        first: The number of the first one that did not, and why.
    """

    source: str
    unit: str
    columns: Columns | None
    ragged: bool = False
    readable: int = 0
    unreadable: int = 0
    first: tuple[int, str] = (0, "")

    def texts(self, records: Iterable[Record]) -> Iterator[tuple[int, Text]]:
        """Yield every text with the number of its record.

        Raises:
            CalibrationError: If there are no such columns, or none was named and none is obvious.
        """
        columns = self.columns
        checked = self.ragged and columns is not None
        for record in records:
            if not record.problem and columns is None:
                columns = self.columns = choose_columns(record.fields, self.source)
            if not record.problem and columns is not None and not checked:
                check_columns(columns, record.fields, self.source)
                checked = True
            problem = record.problem if columns is None else problem_of(record, columns)
            if problem or columns is None:
                if not self.unreadable or record.number < self.first[0]:
                    self.first = record.number, problem
                self.unreadable += record.lines
            else:
                self.readable += record.lines
                yield record.number, text_of(record, columns)

    def report(self) -> None:
        """Say what was left out.

        Raises:
            CalibrationError: If there was nothing, or more than half of it could not be read.
        """
        seen = self.readable + self.unreadable
        if not seen:
            raise CalibrationError(f"{self.source} has no text to calibrate with.")
        number, problem = self.first
        what = f"{self.unreadable} of {counted(seen, self.unit)}"
        if self.unreadable > seen / 2:
            raise CalibrationError(
                f"{self.source}: {what} cannot be read; {self.unit} {number} {problem}. Correct the data, or "
                "use other data."
            )
        if self.unreadable:
            message = f"{self.source}: {what} left out; {self.unit} {number} {problem}."
            warnings.warn(message, CalibrationWarning, stacklevel=3)
