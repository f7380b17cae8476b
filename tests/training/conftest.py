"""What training jobs begin with."""

from pathlib import Path

import pytest
from training_jobs import write_data, write_float

from qdqpatch.tasks.base import DataSource


@pytest.fixture(scope="session")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A float checkpoint; to be read only."""
    return write_float(tmp_path_factory.mktemp("float"))


@pytest.fixture
def data(tmp_path: Path) -> DataSource:
    """Labelled texts."""
    return write_data(tmp_path)
