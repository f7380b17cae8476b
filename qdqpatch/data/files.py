"""Text files, gzipped or not; what is wrong with one is told in the same way whatever it holds."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, cast

from qdqpatch.errors import DataError


@contextmanager
def open_text(path: Path, errors: str = "strict") -> Iterator[TextIO]:
    """Open a UTF-8 file, with or without a byte order mark, for reading; line ends are left as they are.

    Args:
        path: The file; it is gzipped if its name ends in .gz.
        errors: What becomes of bytes that are not UTF-8, as `open` takes it.

    Raises:
        DataError: If it cannot be opened or is a damaged gzip file, or if `errors` is "strict" and it is
            not UTF-8; also while it is read.
    """
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", errors=errors, newline="") as file:
            yield cast(TextIO, file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is damaged, or is not gzipped at all ({error}). Copy or download it again."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}).") from error
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
