"""Programs with one fault each, made from right ones, and what plain Python says about them."""

from __future__ import annotations

import ast
import os
import resource
from collections.abc import Callable, Iterator


class _First(ast.NodeTransformer):
    """Changes the first node of one kind, in the order of the source."""

    def __init__(self, kind: type[ast.AST], change: Callable[[ast.AST], ast.AST]) -> None:
        self.kind, self.change, self.done = kind, change, False

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, self.kind) and not self.done:
            self.done = True
            return self.change(node)
        return self.generic_visit(node)


def off_by_one(node: ast.AST) -> ast.AST:
    """`return x` becomes `return x + 1`."""
    assert isinstance(node, ast.Return)
    return ast.Return(ast.BinOp(node.value or ast.Constant(0), ast.Add(), ast.Constant(1)))


def swapped(node: ast.AST) -> ast.AST:
    """A comparison becomes its opposite."""
    assert isinstance(node, ast.Compare)
    return ast.UnaryOp(ast.Not(), node)


def truncated(node: ast.AST) -> ast.AST:
    """A function loses its last statement."""
    assert isinstance(node, ast.FunctionDef)
    node.body = node.body[:-1] or [ast.Pass()]
    return node


FAULTS: dict[Callable[[ast.AST], ast.AST], type[ast.AST]] = {
    off_by_one: ast.Return,
    swapped: ast.Compare,
    truncated: ast.FunctionDef,
}


def mutants(source: str) -> Iterator[str]:
    """The source with each of the faults that it has a place for."""
    for change, kind in FAULTS.items():
        mutation = _First(kind, change)
        tree = ast.fix_missing_locations(mutation.visit(ast.parse(source)))
        if mutation.done:
            yield ast.unparse(tree)


def passes_in_plain_python(source: str, setup: str, tests: str) -> bool:
    """Whether code and tests run to their end in one process, a fork of this one, within ten seconds of CPU time."""
    if pid := os.fork():
        return os.waitpid(pid, 0)[1] == 0
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        for descriptor in (1, 2):
            os.dup2(0, descriptor)
        namespace: dict[str, object] = {"__name__": "candidate"}
        for part in (setup, source, tests):
            exec(part, namespace)  # a benchmark's own solution with a small fault
    except BaseException:
        os._exit(1)
    os._exit(0)
