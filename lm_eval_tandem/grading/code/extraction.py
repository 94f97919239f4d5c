"""Finds the code in a response: in a fence or without one, as a whole module or as the body of a given function.

Only the text after the last `</think>` counts; if a thought was never closed, there is no answer. In that text, the
first of these that exists decides:

1. The last fenced block that defines a requested name, together with the earlier blocks that hold only imports and
   definitions, such as helpers shown separately. Fences of other languages than Python are skipped.
2. The last fenced block that continues the prompt, as the body of the prompt's function.
3. Text before the first fence: a module that defines a requested name, from the first line that can start one, or the
   body of the prompt's function. Either ends at the last line with which it is still valid Python.
4. The last fenced block, whatever it holds. It is code, though probably wrong.

Without any of them the result is None, "no answer", which is different from wrong code.
"""

from __future__ import annotations

import ast
import builtins
import itertools
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence

from lm_eval_tandem.grading.thought import final_part

PYTHON_FENCES = ("", "python", "python3", "py", "python2")
"""Languages of a fence, in lower case, whose block may be Python; "" is a fence without a language."""
MAX_ATTEMPTS = 20
"""How many starts of a module are tried per response, and how many ends per start.

It limits the time for a response that is written to be slow to parse.
"""
_FENCE = re.compile(r"[ \t]*(?P<marks>`{3,}|~{3,})[ \t]*(?P<language>[^\s`{]*)[^`]*$")
_MODULE_START = re.compile(r"(?:from|import|def|class|async def)\s|@\w")
_DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


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
    part = final_part(response)
    if part is None:
        return None
    before, blocks = split_fences(part)
    first = (prompt,) if prompt else ()
    if module := _last_defining(blocks, names):
        return (*first, *module)
    for block in reversed(blocks):
        if completed := complete(prompt, block, names):
            return (completed,)
    if unfenced := _unfenced_module(before, names):
        return (*first, unfenced)
    if completed := complete(prompt, before, names):
        return (completed,)
    return (*first, blocks[-1]) if blocks else None


def split_fences(text: str) -> tuple[str, list[str]]:
    """Split a text into what precedes the first fence and the contents of all fenced blocks that may be Python.

    The contents are dedented. A block that is never closed extends to the end of the text, because a response may have
    been cut off at its token limit.
    """
    before: list[str] = []
    blocks: list[tuple[str, list[str]]] = []
    marks = ""
    for line in _lines(text):
        fence = _FENCE.match(line.rstrip("\r\n"))
        if fence and not marks:
            marks = fence["marks"]
            blocks.append((fence["language"].lower(), []))
        elif fence and not fence["language"] and fence["marks"].startswith(marks):
            marks = ""
        elif marks:
            blocks[-1][1].append(line)
        elif not blocks:
            before.append(line)
    contents = ("".join(lines) for language, lines in blocks if language in PYTHON_FENCES)
    return "".join(before), [textwrap.dedent(code) for code in contents if code.strip()]


def called_names(tests: str, setup: str = "") -> tuple[str, ...]:
    """Return the names that tests use and that neither they nor their setup define: what the code has to define.

    Examples
    --------
    >>> called_names("assert math.isclose(area(2), 12.56)", "import math")
    ('area',)
    """
    used: dict[str, None] = {}
    defined: set[str] = set(dir(builtins))
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


def complete(prompt: str, text: str, names: Sequence[str]) -> str | None:
    """Join prompt and text to one source if the text is the body of the function at the prompt's end.

    The text may have lost the indentation of its first line (a stripped response) or of all lines (a block of its own).
    Indentation is added only to a body that returns, yields or raises something, because prose may parse as Python. Of
    what follows the function only definitions and assignments are kept; examples and tests are removed.

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
            best = max(best, _without_examples(source, tree, function), key=lambda text: text.count("\n"))
    return best or None


def longest_valid(text: str, head: str = "") -> str:
    """Return `head` and as many lines of the text as make valid Python; "" if none do within `MAX_ATTEMPTS`."""
    lines = _lines(text)
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


def parse(source: str) -> ast.Module | None:
    """Return the syntax tree, or None if the source is empty or is not valid Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source) if source.strip() else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _last_defining(blocks: list[str], names: Sequence[str]) -> tuple[str, ...] | None:
    """The last block that defines a requested name, after the earlier blocks that hold only definitions."""
    for i in reversed(range(len(blocks))):
        code = longest_valid(blocks[i])
        if _defines(code, names):
            return (*(block for block in blocks[:i] if _holds_only_definitions(block)), code)
    return None


def _unfenced_module(text: str, names: Sequence[str]) -> str | None:
    """The module in a text without fences that defines a requested name."""
    lines = _lines(text)
    starts = (
        i for i, line in enumerate(lines) if _MODULE_START.match(line) or line.partition("=")[0].rstrip() in names
    )
    for i in itertools.islice(starts, MAX_ATTEMPTS):
        code = longest_valid("".join(lines[i:]))
        if _defines(code, names):
            return code
    return None


def _holds_only_definitions(block: str) -> bool:
    tree = parse(block)
    return tree is not None and all(isinstance(node, _DEFINITIONS) for node in tree.body)


def _defines(source: str, names: Sequence[str]) -> bool:
    tree = parse(source)
    return tree is not None and any(name in names for name in _top_level_names(tree.body))


def _top_level_names(body: list[ast.stmt]) -> Iterator[str]:
    """Names that a module defines or assigns, also within its `if` and `try` statements."""
    remaining = list(body)
    while remaining:
        node = remaining.pop()
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        elif isinstance(node, (ast.If, ast.Try)):
            remaining += [*node.body, *node.orelse]


def _function(tree: ast.Module | None, names: Sequence[str]) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The last top-level function with a requested name."""
    functions = [node for node in (tree.body if tree else []) if isinstance(node, _FUNCTIONS) and node.name in names]
    return functions[-1] if functions else None


def _returns_something(body: list[ast.stmt]) -> bool:
    """Whether a function's body returns, yields or raises, outside of the functions and classes within it."""
    remaining: list[ast.AST] = list(body)
    while remaining:
        node = remaining.pop()
        if isinstance(node, (ast.Return, ast.Yield, ast.YieldFrom, ast.Raise)):
            return True
        if not isinstance(node, (*_FUNCTIONS, ast.ClassDef, ast.Lambda)):
            remaining += ast.iter_child_nodes(node)
    return False


def _lines(text: str) -> list[str]:
    """Lines as Python's parser counts them, with their ends; `splitlines` also splits at form feeds and the like."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _without_examples(source: str, tree: ast.Module, function: ast.stmt) -> str:
    """The source without the top-level statements after the function that define and assign nothing."""
    lines = _lines(source)
    after = tree.body[tree.body.index(function) + 1 :]
    for node in reversed([node for node in after if not isinstance(node, (*_DEFINITIONS, ast.Assign, ast.AnnAssign))]):
        if node.col_offset == 0:
            del lines[node.lineno - 1 : node.end_lineno]
    return "".join(lines)
