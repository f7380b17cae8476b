"""What has to stay in fp32 where all other floats of a file have 16 bits.

fp16 has 11 bits for a number: positions beyond 2,048 are rounded to even ones, and the angles of rotary
positions with them; and it ends at 65,504, which the square of 256 is beyond, and a sum over 8,192 tokens
soon. bf16 has 8 bits. So what is computed of positions up to a sine, a cosine or an index, sums of many
numbers, the squares in them, and the means and roots of sums are computed in fp32, with a Cast at each end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir

WIDE, STAND_IN = ir.DataType.FLOAT, ir.DataType.DOUBLE
"""What is to stay in the first type has the second one while all of the first is lowered."""

INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)
ANGLES = ("Sin", "Cos")
SUMS = ("ReduceSum", "ReduceMean", "ReduceL2", "ReduceSumSquare")
OF_SUMS = ("Add", "Clip", "Div", "Max", "Pow", "Reciprocal", "Sqrt")
"""What makes a mean, a norm or its inverse of sums, where it reads nothing else that is no constant."""


@contextmanager
def kept_wide(graph: ir.Graph) -> Iterator[None]:
    """Change no float that has to stay in fp32, while the others of a graph are changed to another type."""
    nodes = wide_nodes(graph)
    constants = _own_inputs(graph, nodes)
    _cast_readers(graph, nodes)
    casts = {node for node in graph if node.op_type == "Cast" and not nodes.isdisjoint(_readers(node))}
    _retype(nodes | casts, constants, WIDE, STAND_IN)
    yield
    _retype(nodes | casts, constants, STAND_IN, WIDE)


def wide_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes of a graph in fp32 that are to compute in fp32 whatever the others do."""
    found: set[ir.Node] = set()
    for node in graph:
        if node.op_type in ANGLES or _is_index(node):
            _add_with_ancestors(node, found)
        elif node.op_type in SUMS and node.outputs[0].dtype == WIDE:
            found.add(node)
            square = _producer(node.inputs[0])
            if square is not None and _is_square(square):
                found.add(square)
        elif node.op_type in OF_SUMS and _reads_only(found, node):
            found.add(node)
    return found


def multiply_outer_products(graph: ir.Graph) -> None:
    """Make a Mul of every MatMul over an axis of 1, as of frequencies and positions, in place.

    TensorRT multiplies matrices of fp32 in TF32, which has fp16's 11 bits.
    """
    for node in graph:
        shape = None if node.inputs[0] is None else node.inputs[0].shape
        if node.op_type == "MatMul" and shape is not None and len(shape) > 1 and shape[-1] == 1:
            node.op_type = "Mul"


def _is_index(node: ir.Node) -> bool:
    """Whether a node makes an integer of a float, as of the logarithm of a distance."""
    value = node.inputs[0] if node.op_type == "Cast" else None
    return value is not None and value.dtype == WIDE and node.attributes.get_int("to", 0) in INTEGERS


def _is_square(node: ir.Node) -> bool:
    if node.op_type == "Mul":
        return node.inputs[0] is node.inputs[1]
    exponent = ir.convenience.get_const_tensor(node.inputs[1]) if node.op_type == "Pow" else None  # type: ignore[arg-type]
    return exponent is not None and bool((exponent.numpy() == 2).all())


def _reads_only(nodes: set[ir.Node], node: ir.Node) -> bool:
    """Whether all that a node reads is constant or from some nodes, and something is from them."""
    computed = [
        value for value in node.inputs if value is not None and ir.convenience.get_const_tensor(value) is None
    ]
    return bool(computed) and all(value.producer() in nodes for value in computed)


def _add_with_ancestors(node: ir.Node, found: set[ir.Node]) -> None:
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += [above for above in map(_producer, current.inputs) if above is not None]


def _own_inputs(graph: ir.Graph, nodes: set[ir.Node]) -> list[ir.Value]:
    """Give nodes constants of their own, and a Cast for what others compute; return the constants."""
    made: dict[ir.Value, ir.Value] = {}
    constants = []
    for node in _in_order(graph, nodes):
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype != WIDE or value.producer() in nodes:
                continue
            if value not in made and value.const_value is not None and value.producer() is None:
                name = f"{value.name}_wide"
                tensor = ir.tensor(value.const_value.numpy(), name=name)
                made[value] = ir.Value(name=name, shape=value.shape, type=value.type, const_value=tensor)
                graph.register_initializer(made[value])
                constants.append(made[value])
            elif value not in made:
                made[value] = _cast(graph, value)
            node.replace_input_with(index, made[value])
    return constants


def _in_order(graph: ir.Graph, nodes: set[ir.Node]) -> list[ir.Node]:
    """Return some nodes as the graph has them: what is added then has one order, whenever it is done."""
    return [node for node in graph if node in nodes]


def _cast_readers(graph: ir.Graph, nodes: set[ir.Node]) -> None:
    """Let all other nodes, and the graph's outputs, read a Cast of what some nodes compute."""
    in_order = _in_order(graph, nodes)
    for value in [value for node in in_order for value in node.outputs if value.dtype == WIDE]:
        readers = [use for use in value.uses() if use.node not in nodes]
        ends = [index for index, output in enumerate(graph.outputs) if output is value]
        if not readers and not ends:
            continue
        cast = _cast(graph, value)
        for reader in readers:
            reader.node.replace_input_with(reader.idx, cast)
        if ends:
            cast.name, value.name = value.name, f"{value.name}_wide"
        for index in ends:
            graph.outputs[index] = cast


def _cast(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Return a Cast of a value, right after it is computed."""
    node = ir.node("Cast", [value], {"to": WIDE})
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(WIDE), value.shape
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return node.outputs[0]


def _retype(nodes: set[ir.Node], constants: list[ir.Value], before: ir.DataType, after: ir.DataType) -> None:
    """Change a float type to another one in all that nodes compute, and in constants."""
    for value in (*constants, *(value for node in nodes for value in node.outputs)):
        if value.dtype == before:
            value.type = ir.TensorType(after)
    for value in constants:
        assert value.const_value is not None
        value.const_value = _converted(value.const_value, after)
    for node in nodes:
        for attribute in list(node.attributes.values()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == before:
                tensor = _converted(attribute.as_tensor(), after)
                node.attributes[attribute.name] = ir.AttrTensor(attribute.name, tensor)
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) == before:
            node.attributes["to"] = ir.AttrInt64("to", after)


def _converted(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(dtype.numpy()), name=tensor.name)


def _readers(node: ir.Node) -> set[ir.Node]:
    return {use.node for use in node.outputs[0].uses()}


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()
