"""Finding the code in a reply: fenced, bare, continuing its prompt, after a thought, among prose.

Only the final part counts, what follows the last `</think>`; a thought that was never closed holds no answer. There,
the first of these that is found decides:

1. the last fenced block that defines what is asked for (fences of other languages than Python do not count), together
   with earlier blocks that hold nothing but imports and definitions, such as helpers shown on their own;
2. the last fenced block that goes on where the prompt ends, as the body of its function;
3. text without a fence: a module that defines what is asked for, from the first line where one begins, or the body of
   the prompt's function, each up to the last line with which it is still Python;
4. any fenced block. It is code, if hardly the right one.

Nothing found is None, "no answer", and differs from wrong code.
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

PYTHON = ("", "python", "python3", "py", "python2")
ATTEMPTS = 20
"""Beginnings of a module that are tried in one text, and ends in each: replies may be made to be slow to read."""
_FENCE = re.compile(r"[ \t]*(?P<marks>`{3,}|~{3,})[ \t]*(?P<language>[^\s`{]*)[^`]*$")
_START = re.compile(r"(?:from|import|def|class|async def)\s|@\w")
_HARMLESS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def extract(reply: str, names: Sequence[str], prompt: str = "") -> tuple[str, ...] | None:
    """The sources to run, in this order and in one namespace, or None if the reply holds no code.

    Parameters
    ----------
    reply
        What the model wrote, thought included.
    names
        The functions or classes asked for; code counts as the answer if it defines one of them.
    prompt
        Source that ends with the head (signature, docstring) of a function to go on with, or "". Its imports and
        helpers are there for a reply that repeats the function without them.
    """
    part = final_part(reply)
    if part is None:
        return None
    before, blocks = fences(part)
    ahead = (prompt,) if prompt else ()
    if module := _last_defining(blocks, names):
        return (*ahead, *module)
    for block in reversed(blocks):
        if body := continued(prompt, block, names):
            return (body,)
    if module_text := _unfenced_module(before, names):
        return (*ahead, module_text)
    if body := continued(prompt, before, names):
        return (body,)
    return (*ahead, blocks[-1]) if blocks else None


def fences(text: str) -> tuple[str, list[str]]:
    """What stands before the first fence, and the contents of fenced blocks that may be Python, unindented.

    A block that is never closed goes to the end of the text, as that of a reply cut off at its limit does.
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
    contents = ("".join(lines) for language, lines in blocks if language in PYTHON)
    return "".join(before), [textwrap.dedent(code) for code in contents if code.strip()]


def called_names(tests: str, before: str = "") -> tuple[str, ...]:
    """Names that tests use and neither define nor import, in order: what they expect the code to define."""
    used: dict[str, None] = {}
    own: set[str] = set(dir(builtins))
    for node in ast.walk(ast.parse(f"{before}\n{tests}")):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            used[node.id] = None
        elif isinstance(node, ast.Name):
            own.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            own.add(node.name)
        elif isinstance(node, ast.arg):
            own.add(node.arg)
        elif isinstance(node, ast.alias):
            own.add((node.asname or node.name).partition(".")[0])
    return tuple(name for name in used if name not in own)


def continued(prompt: str, text: str, names: Sequence[str]) -> str | None:
    """Prompt and text as one source if the text goes on with the function at the prompt's end, else None.

    A reply may have lost the indentation of its first line (stripped) or of all lines (written as a block of its own);
    then only a body that returns, yields or raises something is taken for one. What follows the function is kept as
    far as it defines something; examples and tests are not.
    """
    if not prompt or not text.strip():
        return None
    text = text.strip("\r\n") + "\n"
    head = prompt if prompt.endswith("\n") else prompt + "\n"
    stub = _function(parsed(head), names)
    length = len(stub.body) if stub else 0
    indent = " " * (stub.body[0].col_offset if stub else 4)
    best = ""
    for number, body in enumerate((text, indent + text, textwrap.indent(text, indent))):
        source = longest(body, head)
        tree = parsed(source)
        function = _function(tree, names)
        if tree is None or function is None or len(function.body) <= length:
            continue
        if number == 0 or _gives_something(function.body):
            best = max(best, _without_examples(source, tree, function), key=lambda text: text.count("\n"))
    return best or None


def longest(text: str, head: str = "") -> str:
    """`head` and as many lines of the text as still make it Python; "" if there are none (within `ATTEMPTS`)."""
    lines = _lines(text)
    above = head.count("\n")
    for _ in range(ATTEMPTS):
        if not lines:
            break
        source = head + "".join(lines)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compile(source, "reply", "exec", dont_inherit=True)
        except SyntaxError as error:
            at_error = (error.lineno or 1) - 1 - above
            lines = lines[: max(0, min(at_error, len(lines) - 1))]
        except (ValueError, RecursionError, MemoryError):  # null bytes, or nested deeper than the compiler goes
            return ""
        else:
            return source
    return ""


def parsed(source: str) -> ast.Module | None:
    """The syntax tree, or None if it is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source) if source.strip() else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _last_defining(blocks: list[str], names: Sequence[str]) -> tuple[str, ...] | None:
    for i in reversed(range(len(blocks))):
        code = longest(blocks[i])
        if _defines(code, names):
            return (*(block for block in blocks[:i] if _is_harmless(block)), code)
    return None


def _unfenced_module(text: str, names: Sequence[str]) -> str | None:
    lines = _lines(text)
    starts = (i for i, line in enumerate(lines) if _START.match(line) or line.partition("=")[0].rstrip() in names)
    for i in itertools.islice(starts, ATTEMPTS):
        code = longest("".join(lines[i:]))
        if _defines(code, names):
            return code
    return None


def _is_harmless(block: str) -> bool:
    tree = parsed(block)
    return tree is not None and all(isinstance(node, _HARMLESS) for node in tree.body)


def _defines(source: str, names: Sequence[str]) -> bool:
    tree = parsed(source)
    return tree is not None and any(name in names for name in _top_level(tree.body))


def _top_level(body: list[ast.stmt]) -> Iterator[str]:
    left = list(body)
    while left:
        node = left.pop()
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        elif isinstance(node, (ast.If, ast.Try)):
            left += [*node.body, *node.orelse]


def _function(tree: ast.Module | None, names: Sequence[str]) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    found = [node for node in (tree.body if tree else []) if isinstance(node, _FUNCTIONS) and node.name in names]
    return found[-1] if found else None


def _gives_something(body: list[ast.stmt]) -> bool:
    """Whether it returns, yields or raises, not counting functions within it."""
    left: list[ast.AST] = list(body)
    while left:
        node = left.pop()
        if isinstance(node, (ast.Return, ast.Yield, ast.YieldFrom, ast.Raise)):
            return True
        if not isinstance(node, (*_FUNCTIONS, ast.ClassDef, ast.Lambda)):
            left += ast.iter_child_nodes(node)
    return False


def _lines(text: str) -> list[str]:
    """Lines as Python counts them, ends kept; `splitlines` also splits at form feeds and Unicode's separators."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _without_examples(source: str, tree: ast.Module, function: ast.stmt) -> str:
    lines = _lines(source)
    after = tree.body[tree.body.index(function) + 1 :]
    for node in reversed([node for node in after if not isinstance(node, (*_HARMLESS, ast.Assign, ast.AnnAssign))]):
        if node.col_offset == 0:
            del lines[node.lineno - 1 : node.end_lineno]
    return "".join(lines)
