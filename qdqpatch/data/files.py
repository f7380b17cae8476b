"""Text files, gzipped or not; what is wrong with one is told in the same way whatever it holds."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, cast

from qdqpatch.errors import DataError

MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # begins with the mark of UTF-16, so it comes first
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def _encoding(start: bytes) -> str:
    """Return the encoding of a file by its first bytes."""
    return next((name for mark, name in MARKS.items() if start.startswith(mark)), "utf-8-sig")


def check_file(path: Path) -> None:
    """Find out whether there is a file that can be read from its beginning more than once.

    Raises:
        DataError: If not.
    """
    if not path.exists():
        raise DataError(f"There is no file {path}.")
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file.")
    if not path.is_file():
        raise DataError(f"{path} is a pipe or a device, which can be read only once: write it to a file.")


@contextmanager
def open_text(path: Path, errors: str = "strict") -> Iterator[TextIO]:
    """Open a UTF-8 file, with or without a byte order mark, for reading; line ends are left as they are.

    One that begins with the byte order mark of UTF-16 or UTF-32 is that: spreadsheets save "Unicode text" so.

    Args:
        path: The file; it is gzipped if its name ends in .gz.
        errors: What becomes of bytes that are not UTF-8, as `open` takes it.

    Raises:
        DataError: If it cannot be opened or is a damaged gzip file, or if `errors` is "strict" and it is
            not UTF-8; also while it is read.
    """
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rb") as start:
            encoding = _encoding(start.read(4))
        with opened(path, "rt", encoding=encoding, errors=errors, newline="") as file:
            yield cast(TextIO, file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is damaged, or is not gzipped at all ({error}). Copy or download it again."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not {error.encoding.upper()} text ({error}). Save it as UTF-8."
        ) from error
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
