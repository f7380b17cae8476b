"""What tests of checkpoints share."""

import pytest
import reference_cases as reference


@pytest.fixture(params=reference.CHECKPOINTS)
def original(request: pytest.FixtureRequest) -> str:
    """Name a class of which the original `save_pretrained` wrote a checkpoint."""
    return request.param
