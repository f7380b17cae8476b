"""Read a method's source as a syntax tree, and compile a changed tree into a method again.

Nothing of torch or of the module is touched, and nothing runs: a tree is data. The method that comes out
has the signature, globals, closure, decorators and line numbers of the one that went in, so that a traceback
shows the model's own lines.
"""

from __future__ import annotations
import __future__

import ast
import dis
import functools
import inspect
import textwrap
import types
from collections.abc import Callable
from typing import Any

FUTURES = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)


class SourceError(Exception):
    """A method cannot be rewritten; the message says why."""


class Method:
    """A method of a class, and a tree of its own source that may be changed.

    Where a class has no method of the name, it is a function of the file of its `forward`, which takes the
    module as its first argument, as attention functions do.

    Attributes:
        tree: The definition; line numbers are those of the file.
        plain: The function without what its decorators put around it.
        owner: The class that defines it.
    """

    def __init__(self, cls: type, name: str) -> None:
        """Read the source.

        Raises:
            SourceError: If it cannot be read, or is not what the function was compiled from.
        """
        self.owner = next((base for base in cls.__mro__ if name in vars(base)), cls)
        self.plain = inspect.unwrap(getattr(cls, name, None) or function_beside(cls, name))  # type: ignore[arg-type]  # None has no code
        if not isinstance(self.plain, types.FunctionType):
            raise SourceError(f"{cls.__name__} has no method {name} that is written in Python")
        self.tree = definition(self.plain)
        if _instructions(self._code()) != _instructions(self.plain.__code__):
            file = self.plain.__code__.co_filename
            raise SourceError(f"the file {file} is not what {cls.__name__}.{name} was compiled from")

    @property
    def self_name(self) -> str:
        """What the method calls the module itself."""
        return (*self.tree.args.posonlyargs, *self.tree.args.args)[0].arg

    def compile(self) -> Callable[..., Any]:
        """Compile the tree as it is now.

        Raises:
            SourceError: If a decorator of the method is not to be found.
        """
        code, plain = self._code(), self.plain
        cells = dict(zip(plain.__code__.co_freevars, plain.__closure__ or (), strict=True))
        closure = tuple(cells[name] for name in code.co_freevars)
        made = types.FunctionType(code, plain.__globals__, plain.__name__, plain.__defaults__, closure)
        made.__kwdefaults__ = plain.__kwdefaults__
        functools.update_wrapper(made, plain)
        del vars(made)["__wrapped__"]  # it is no wrapper
        outermost: Callable[..., Any] = made
        for decorator in reversed(self.tree.decorator_list):
            expression = compile(
                ast.Expression(decorator), plain.__code__.co_filename, "eval", dont_inherit=True
            )
            try:
                outermost = eval(expression, plain.__globals__)(outermost)
            except NameError as error:
                raise SourceError(f"a decorator of {plain.__qualname__} cannot be found: {error}") from error
        return outermost

    def _code(self) -> types.CodeType:
        """Compile the bare function: without decorators, annotations and defaults, which it takes over."""
        plain, tree = self.plain, self.tree
        arguments = tree.args
        # The values of defaults are those that the function has; what stands here only gives their number.
        bare = ast.arguments(
            posonlyargs=[_bare(argument) for argument in arguments.posonlyargs],
            args=[_bare(argument) for argument in arguments.args],
            vararg=arguments.vararg and _bare(arguments.vararg),
            kwonlyargs=[_bare(argument) for argument in arguments.kwonlyargs],
            kw_defaults=[None] * len(arguments.kwonlyargs),
            kwarg=arguments.kwarg and _bare(arguments.kwarg),
            defaults=[],
        )
        function = ast.FunctionDef(tree.name, bare, tree.body, [])
        # In a class, for private names and `super()`; in a function, whose arguments stand for the closure.
        inside = ast.ClassDef(self.owner.__name__, [], [], [function], [])
        free = [ast.arg(name) for name in plain.__code__.co_freevars if name != "__class__"]
        outside = ast.FunctionDef("outside", ast.arguments([], free, None, [], [], None, []), [inside], [])
        for node in (function, inside, outside):
            ast.copy_location(node, tree)
            if "type_params" in node._fields:  # Python 3.12
                setattr(node, "type_params", [])  # noqa: B010  # older ones do not know it
        module = ast.fix_missing_locations(ast.Module([outside], []))
        flags = plain.__code__.co_flags & FUTURES
        code: types.CodeType = compile(
            module, plain.__code__.co_filename, "exec", flags=flags, dont_inherit=True
        )
        for name in ("outside", self.owner.__name__, tree.name):
            code = next(
                constant
                for constant in code.co_consts
                if isinstance(constant, types.CodeType) and constant.co_name == name
            )
        changes: dict[str, Any] = {"co_firstlineno": plain.__code__.co_firstlineno}
        if hasattr(code, "co_qualname"):  # Python 3.11
            changes["co_qualname"] = plain.__code__.co_qualname
        return code.replace(**changes)


def definition(function: types.FunctionType) -> ast.FunctionDef:
    """Return the tree of a function's source; line numbers are those of the file.

    Raises:
        SourceError: If the source cannot be read.
    """
    try:
        lines, start = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines))).body[0]
    except (OSError, TypeError, SyntaxError) as error:
        raise SourceError(f"the source of {function.__qualname__} cannot be read ({error})") from error
    if not isinstance(tree, ast.FunctionDef):
        raise SourceError(f"{function.__qualname__} is not a plain function")
    ast.increment_lineno(tree, start - 1)
    return tree


def function_beside(cls: type, name: str) -> types.FunctionType | None:
    """Return the function of that name that the `forward` of a class can call; None if there is none."""
    forward = inspect.unwrap(getattr(cls, "forward", None))  # type: ignore[arg-type]  # None has no globals
    found = getattr(forward, "__globals__", {}).get(name)
    return found if isinstance(found, types.FunctionType) else None


def _bare(argument: ast.arg) -> ast.arg:
    return ast.copy_location(ast.arg(argument.arg), argument)


def _instructions(code: types.CodeType) -> list[tuple[str, Any]]:
    """Return what a function does, whatever the file says that it came from.

    Python calls `torch.add(...)` in another way where it has seen `import torch`; that is left out.
    """
    return [
        ("LOAD_ATTR" if step.opname == "LOAD_METHOD" else step.opname, _argument(step))
        for step in dis.get_instructions(code)
        if step.opname not in ("PRECALL", "PUSH_NULL", "EXTENDED_ARG")
    ]


def _argument(step: dis.Instruction) -> Any:
    value = step.argval
    if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
        return None
    if isinstance(value, types.CodeType):
        return _instructions(value)
    # Python 3.10 tells inner functions where they stand.
    return None if isinstance(value, str) and "<locals>" in value else value
