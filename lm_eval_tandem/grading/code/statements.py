"""Python sources that a model wrote: which lines are valid, and which statements an answer needs.

Nothing here runs a source; it is parsed only. A source that is not valid Python has no statements.
"""

from __future__ import annotations

import ast
import builtins
import re
import symtable
import warnings
from collections.abc import Iterator, Sequence

MAX_ATTEMPTS = 20
"""How many ends of a source are tried, and how many starts of one in a text.

It limits the time for a response that is written to be slow to parse.
"""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
_SCOPES = (*_DEFINITIONS, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_BUILTINS = frozenset(dir(builtins))
_ENDS = ("exit", "_exit", "main")
"""Methods that end a program, such as those of `sys`, `os` and `unittest`."""


def split_lines(text: str) -> list[str]:
    """Lines as Python's parser counts them, with their ends; `splitlines` also splits at form feeds and the like."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def parse(source: str) -> ast.Module | None:
    """Return the syntax tree, or None if the source is empty or is not valid Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source) if source.strip() else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def ends_in_string(source: str) -> bool:
    """Whether the source ends within a triple-quoted string."""
    try:
        ast.parse(source)
    except SyntaxError as error:
        return str(error.msg).startswith("unterminated triple-quoted")
    except (ValueError, RecursionError, MemoryError):
        return False
    return False


def longest_valid(text: str, head: str = "") -> str:
    """Return `head` and as many lines of the text as make valid Python; "" if none do within `MAX_ATTEMPTS`."""
    lines = split_lines(text)
    head_lines = head.count("\n")
    for _ in range(MAX_ATTEMPTS):
        if not lines:
            break
        source = head + "".join(lines)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compile(source, "response", "exec", dont_inherit=True)
        except SyntaxError as error:
            error_line = (error.lineno or 1) - 1 - head_lines
            lines = lines[: max(0, min(error_line, len(lines) - 1))]
        except (ValueError, RecursionError, MemoryError):  # null bytes, or nested too deeply for the compiler
            return ""
        else:
            return source
    return ""


def defined_names(source: str) -> set[str]:
    """Names that a source defines or assigns. To import a name, as examples do, is not to define it."""
    found: set[str] = set()
    remaining = list(tree.body) if (tree := parse(source)) else []
    while remaining:
        node = remaining.pop()
        if isinstance(node, (ast.If, ast.Try)):
            remaining += [*node.body, *node.orelse]
        elif isinstance(node, (*_DEFINITIONS, ast.Assign, ast.AnnAssign)):
            found.update(_defined(node))
    return found


def needed(sources: Sequence[str], main: int, names: Sequence[str]) -> list[str]:
    """Reduce each source to the statements that the definitions of `names` need.

    In the main source, everything up to the first definition of a name stays, unless it only reads input. Of what
    follows, and of the other sources, only statements stay that define or change something that is needed: helpers,
    imports, constants, tables. Examples, tests, `input()` and `sys.exit()` go. A name that the main source defines is
    not taken from the others. They stay in the order in which they are given, so the later of two definitions counts.

    Parameters
    ----------
    sources
        Valid Python.
    main
        Which of them defines a name.
    names
        The requested names.

    Returns
    -------
    list of str
        One source for each that was given; "" where nothing is needed.
    """
    bodies = [tree.body if (tree := parse(source)) else [] for source in sources]
    own = {name for node in bodies[main] for name in _defined(node)} - {"*"}
    first = next((i for i, node in enumerate(bodies[main]) if own & set(names) & set(_defined(node))), 0)
    kept = {node for node in bodies[main][: first + 1] if isinstance(node, _DEFINITIONS) or not _reads_input(node)}
    makers: dict[str, list[tuple[int, ast.stmt]]] = {}
    for i, body in enumerate(bodies):
        for node in body:
            for name in {*_defined(node), *_changed(node)}:
                makers.setdefault(name, []).append((i, node))
    wanted = {*names, "*"}.union(*map(_used, kept))  # "*": what a star import defines is not known
    remaining = list(wanted)
    while remaining:
        name = remaining.pop()
        for i, node in makers.get(name, []):
            if node not in kept and (i == main or name not in own):
                kept.add(node)
                remaining += _used(node) - wanted
                wanted |= _used(node)
    return [_without(source, body, kept) for source, body in zip(sources, bodies, strict=True)]


def _defined(node: ast.AST) -> Iterator[str]:
    """Names that a statement binds in the module."""
    if isinstance(node, _DEFINITIONS):
        yield node.name
    elif isinstance(node, ast.alias):
        yield (node.asname or node.name).partition(".")[0]
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    if not isinstance(node, _SCOPES):
        for child in ast.iter_child_nodes(node):
            yield from _defined(child)


def _changed(node: ast.stmt) -> Iterator[str]:
    """Names of objects that a statement changes: by an item, an attribute, or a method call that is a statement."""
    if isinstance(node, _DEFINITIONS):
        return
    for part in ast.walk(node):
        stored = isinstance(part, (ast.Subscript, ast.Attribute)) and isinstance(part.ctx, ast.Store)
        target: ast.AST | None = part if stored else None
        if isinstance(part, ast.Expr) and isinstance(part.value, ast.Call):
            target = part.value.func
            if isinstance(target, ast.Attribute) and target.attr in _ENDS:
                target = None
        while isinstance(target, (ast.Subscript, ast.Attribute)):
            target = target.value
            if isinstance(target, ast.Name):
                yield target.id


def _used(node: ast.stmt) -> set[str]:
    """Names of the module that a statement reads, also within its functions, without the built-in ones."""
    try:
        tables = [symtable.symtable(ast.unparse(node), "response", "exec")]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    found = set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        module = table.get_type() == "module"
        found |= {s.get_name() for s in table.get_symbols() if (s.is_referenced() if module else s.is_global())}
    return found - _BUILTINS


def _reads_input(node: ast.stmt) -> bool:
    return any(
        (isinstance(part, ast.Name) and part.id == "input")
        or (isinstance(part, ast.Attribute) and part.attr == "stdin")
        for part in ast.walk(node)
    )


def _without(source: str, body: list[ast.stmt], kept: set[ast.stmt]) -> str:
    """The source without the lines that hold only statements which are not kept."""

    def lines_of(node: ast.stmt) -> range:
        start = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        return range(start - 1, node.end_lineno or start)

    if not any(node in kept for node in body):
        return ""
    stay = {line for node in body if node in kept for line in lines_of(node)}
    go = {line for node in body if node not in kept for line in lines_of(node)} - stay
    return "".join(line for i, line in enumerate(split_lines(source)) if i not in go)
