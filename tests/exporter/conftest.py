"""What makes many exports quick."""

import functools
from collections.abc import Iterator

import pytest
from onnxscript.function_libs.torch_lib import ops, registration


@pytest.fixture(scope="session", autouse=True)
def operators_are_read_once() -> Iterator[None]:
    """Keep what torch asks of onnxscript for every export: it parses 500 functions each time."""
    assert ops  # which fill the registry
    with pytest.MonkeyPatch.context() as patch:
        kinds = {
            type(function)
            for group in registration.default_registry.values()
            for function in (*group.overloads, *group.complex)
        }
        for kind in kinds:
            read = kind.__dict__.get("function_ir")
            if isinstance(read, property):
                patch.setattr(kind, "function_ir", property(functools.cache(read.fget)))
        yield
