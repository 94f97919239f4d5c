"""Finds the code in a response: in a fence or without one, as a whole module or as the body of a given function.

Only the text after the last `</think>` counts; if a thought was never closed, there is no answer. (A tag in a comment
or a string of valid code is not one.) In that text, the first of these that exists decides:

1. The last fenced block that defines a requested name, with what it needs of the other blocks, such as helpers shown
   separately. Blocks whose fences name another language than Python count only if no block of Python does.
2. The last fenced block of Python that continues the prompt, as the body of the prompt's function.
3. Text before the first fence: the last piece of valid Python that defines a requested name, with what it needs of the
   other pieces; or the body of the prompt's function, to the last line with which it is still valid Python.
4. The last fenced block of Python, whatever it holds. It is code, though probably wrong.

Without any of them the result is None, "no answer", which is different from wrong code.

What follows the function in rules 1 to 3 is there only if the function needs it: examples, tests of the model's own,
`input()` and `sys.exit()` are removed, as EvalPlus does. `fences.py` finds the blocks, `statements.py` chooses.
"""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
from collections.abc import Sequence

from lm_eval_tandem.grading.code.fences import split_fences
from lm_eval_tandem.grading.code.statements import (
    FUNCTIONS,
    MAX_ATTEMPTS,
    defined_names,
    longest_valid,
    needed,
    parse,
    split_lines,
)
from lm_eval_tandem.grading.thought import final_part, opens, without_marks

_MODULE_START = re.compile(r"(?:from|import|def|class|async def)\s|@\w|[A-Za-z_]\w*\s*(?::[^=]+)?=[^=]")


def extract(response: str, names: Sequence[str], prompt: str = "") -> tuple[str, ...] | None:
    r"""Find the code in a response.

    Parameters
    ----------
    response
        What the model wrote, its thought included.
    names
        The requested functions or classes; code that defines one of them is the answer.
    prompt
        Python source that ends with the head (signature and docstring) of the function to complete, or "". Where the
        response repeats the whole function, the prompt runs first, because the response may leave out its imports.

    Returns
    -------
    tuple of str or None
        Sources to run in this order in one namespace; None if the response holds no code.

    Examples
    --------
    >>> extract("Here it is:\n```python\ndef f(x):\n    return x\n```", ("f",))
    ('def f(x):\n    return x\n',)
    >>> extract("I cannot do this.", ("f",)) is None
    True
    """
    part = _final_part(response)
    if part is None:
        return None
    before, blocks = split_fences(part)
    first = (runnable(prompt),) if prompt else ()
    python = [block.code for block in blocks if block.python]
    if module := _answer(python, names) or _answer([block.code for block in blocks], names):
        return (*first, *module)
    for block in reversed(python):
        if completed := complete(prompt, block, names):
            return (completed,)
    if module := _answer(_pieces(before), names):
        return (*first, *module)
    if completed := complete(prompt, before, names):
        return (completed,)
    return (*first, python[-1]) if python else None


def runnable(prompt: str) -> str:
    r"""Return the prompt with a body for its function, if it has none; "" if that is not valid Python either.

    Examples
    --------
    >>> runnable("def f(x):")
    'def f(x):\n    pass\n'
    """
    head = prompt if prompt.endswith("\n") else prompt + "\n"
    return next((source for source in (prompt, head + "    pass\n") if parse(source)), "")


def called_names(tests: str, setup: str = "", solution: str = "") -> tuple[str, ...]:
    """Return the names that tests use and that neither they nor their setup define: what the code has to define.

    A built-in name is one of them only if the problem's own solution defines it.

    Examples
    --------
    >>> called_names("assert math.isclose(area(2), 12.56)", "import math")
    ('area',)
    >>> called_names("assert sum(10, 15) == len([6])", solution="def sum(a, b): ...")
    ('sum',)
    """
    used: dict[str, None] = {}
    defined = set(dir(builtins)) - defined_names(solution)
    for node in ast.walk(ast.parse(f"{setup}\n{tests}")):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            used[node.id] = None
        elif isinstance(node, ast.Name):
            defined.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).partition(".")[0])
    return tuple(name for name in used if name not in defined)


def borrowed_imports(names: Sequence[str], solution: str) -> str:
    r"""Return the imports of a problem's solution that define names which its tests use.

    Examples
    --------
    >>> borrowed_imports(["size", "sys"], "import sys, os\ndef size(x):\n    return sys.getsizeof(x)")
    'import sys'
    """
    found = []
    tree = parse(solution)
    for node in tree.body if tree else []:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            node.names = [name for name in node.names if (name.asname or name.name).partition(".")[0] in names]
            found += [ast.unparse(node)] if node.names else []
    return "\n".join(found)


def complete(prompt: str, text: str, names: Sequence[str]) -> str | None:
    """Join prompt and text to one source if the text is the body of the function at the prompt's end.

    The text may have lost the indentation of its first line (a stripped response) or of all lines (a block of its own).
    Indentation is added only to a body that returns, yields or raises something, because prose may parse as Python.
    What follows the function stays only where the function needs it.

    Parameters
    ----------
    prompt
        Source that ends with the head of a function; without one there is nothing to complete.
    text
        What the response holds.
    names
        The requested functions.

    Returns
    -------
    str or None
        The source, or None if the text is not a body.
    """
    if not prompt or not text.strip():
        return None
    text = text.strip("\r\n") + "\n"
    head = prompt if prompt.endswith("\n") else prompt + "\n"
    stub = _function(parse(head), names)
    stub_length = len(stub.body) if stub else 0
    indent = " " * (stub.body[0].col_offset if stub else 4)
    best = ""
    for number, body in enumerate((text, indent + text, textwrap.indent(text, indent))):
        source = longest_valid(body, head)
        tree = parse(source)
        function = _function(tree, names)
        if tree is None or function is None or len(function.body) <= stub_length:
            continue
        if number == 0 or _returns_something(function.body):
            best = max(best, needed([source], 0, names)[0], key=lambda text: text.count("\n"))
    return best or None


def _answer(sources: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """The last source that defines a requested name, among what it needs of the others; () if none does."""
    valid = [longest_valid(source) for source in sources]
    for i in reversed(range(len(valid))):
        if not defined_names(valid[i]).isdisjoint(names):
            return tuple(source for source in needed(valid, i, names) if source)
    return ()


def _pieces(text: str) -> list[str]:
    """The pieces of valid Python in a text without fences, each from the first line that can start one."""
    lines = split_lines(text)
    found = []
    attempts = i = 0
    while i < len(lines) and attempts < MAX_ATTEMPTS:
        piece = ""
        if _MODULE_START.match(lines[i]):
            attempts += 1
            piece = longest_valid("".join(lines[i:]))
            found += [piece] if piece else []
        i += len(split_lines(piece)) or 1
    return found


def _final_part(response: str) -> str | None:
    """The text after the thought. A tag that stands in a comment or a string of valid code ends and opens none."""
    before, blocks = split_fences(response)
    codes = [block.code for block in blocks if block.python]
    codes += [response] if parse(response) else _pieces(before) if not opens(before) else []
    masked = response
    for code in codes:
        if without_marks(code) != code and parse(code):
            for line in map(str.strip, split_lines(code)):
                hidden = without_marks(line)
                masked = masked.replace(line, hidden) if hidden.strip() else masked
    part = final_part(masked)
    return part if part is None else response[len(response) - len(part) :]


def _function(tree: ast.Module | None, names: Sequence[str]) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The last top-level function with a requested name."""
    functions = [node for node in (tree.body if tree else []) if isinstance(node, FUNCTIONS) and node.name in names]
    return functions[-1] if functions else None


def _returns_something(body: list[ast.stmt]) -> bool:
    """Whether a function's body returns, yields or raises, outside of the functions and classes within it."""
    remaining: list[ast.AST] = list(body)
    while remaining:
        node = remaining.pop()
        if isinstance(node, (ast.Return, ast.Yield, ast.YieldFrom, ast.Raise)):
            return True
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Lambda)):
            remaining += ast.iter_child_nodes(node)
    return False
