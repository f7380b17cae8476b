"""Walking OpenVINO's graphs against the flow of the data."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

VIEWS = ("Transpose", "Reshape", "Squeeze", "Unsqueeze")
"""Operations that move values."""


def source_of(node: Any, place: int, passed: Collection[str] = VIEWS) -> Any:
    """Return the node that an input of a node comes from, behind those of the types that are passed over.

    Args:
        node: An `openvino.Node`.
        place: The input's.
        passed: Types of which the first input is followed.
    """
    source = node.input_value(place).get_node()
    while source.get_type_name() in passed:
        source = source.input_value(0).get_node()
    return source
