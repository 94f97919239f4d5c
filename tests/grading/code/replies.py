"""Replies that hold a right function `f`, which doubles its argument, in the ways in which models write code."""

from __future__ import annotations

from textwrap import indent

F = "```"
WITH_EXAMPLE = f'def f(n):\n    """Doubles.\n\n    {F}\n    f(2)\n    {F}\n    """\n    return 2 * n\n'
CODE = "def f(n):\n    return 2 * n\n"


def fence(code: str, language: str = "python") -> str:
    """The code in a fence."""
    return f"{F}{language}\n{code}{F}\n"


RIGHT = {
    "example in the docstring": fence(WITH_EXAMPLE) + "Done",
    "example in a docstring that is indented by two": fence(WITH_EXAMPLE.replace("    ", "  ")) + "Done",
    "example in a docstring that is not indented": fence(WITH_EXAMPLE.replace(f"    {F}", F))
    + "Then:\n"
    + fence("4\n", ""),
    "example in the module's docstring": fence(f'"""\n{fence("f(2)")}"""\n{CODE}') + fence("4\n", ""),
    "example in the docstring, in a list": f"1. So:\n{indent(fence(WITH_EXAMPLE), '   ')}2. Done.",
    "end glued to the code": f"{F}\n{CODE.rstrip()}{F}",
    "end glued to the code, then more": f"{F}python\n{CODE.rstrip()}{F}\nThat is all.\n{fence('4', '')}",
    "marks at the end of a comment": fence(CODE.replace("\n", f"  # in {F}\n", 1)) + "Done.",
    "start glued to prose": f"Here it is: {fence(CODE)}",
    "no end before the next block": f"{F}python\n{CODE}{fence('f(2)')}",
    "prose after the end": f"{F}python\n{CODE}{F} That is all.\nBye",
    "BEGIN and DONE": f"[BEGIN]\n{CODE}[DONE]\n",
    "DONE, then another task": f"{CODE}[DONE]\nNow write g:\n[BEGIN]\ndef g(n):\n    return n\n[DONE]\n",
    "DONE glued to the code": f"{CODE.rstrip()}[DONE]",
    "BEGIN and DONE in a fence": fence(f"[BEGIN]\n{CODE}[DONE]\n"),
    "the constant in another block": fence("K = 2\n") + fence("def f(n):\n    return K * n\n"),
    "the helper beside an example": fence("def g(n):\n    return 2 * n\nprint(g(1))\nx = int(input())\n")
    + fence("def f(n):\n    return g(n)\n"),
    "the import after a docstring": fence('"""Doc."""\nimport math\n')
    + fence("def f(n):\n    return math.prod([2, n])\n"),
    "a star import in another block": fence("from math import *\n") + fence("def f(n):\n    return prod([2, n])\n"),
    "the helper in a later block": fence("def f(n):\n    return g(n)\n")
    + fence("def g(n):\n    return 2 * n\nresult = f(3)\nassert result == 7\n"),
    "a class in another block": fence("class A:\n    def g(self, n):\n        return 2 * n\n")
    + fence("def f(n):\n    return A().g(n)\n"),
    "an example with the name of a local variable": fence("x = f(3)\nprint(x)\n")
    + fence("def f(n):\n    x = 2 * n\n    return x\n"),
    "a wrong assertion": fence(f"{CODE}\nassert f(1) == 3\n"),
    "input and exit": fence(f"{CODE}print(f(int(input())))\nimport sys\nsys.exit(0)\n"),
    "input before the function": fence(f"import sys\nn = int(input())\nm = sys.stdin.read()\n{CODE}print(f(n))\n"),
    "exit of a module that the function uses": fence(
        "import sys, unittest\ndef f(n):\n    return 2 * n if sys and unittest else 0\nunittest.main()\nsys.exit(0)\n"
    ),
    "a main function": fence(f"{CODE}def main():\n    print(f(int(input())))\nmain()\n"),
    "a table that is filled after the function": fence(
        "T = {}\ndef f(n):\n    return T[n]\nfor i in range(100):\n    T[i] = 2 * i\nassert f(1) == 3\n"
    ),
    "a table that is filled by calls": fence(
        "T = []\ndef f(n):\n    return T[n]\nfor i in range(100):\n    T.append(2 * i)\nT.append(200)\nprint(1 / 0)\n"
    ),
    "a decorator that is applied later": fence(
        f"{CODE}def twice(g):\n    return lambda n: 2 * n\nf = twice(f)\nf(0) / 0\n"
    ),
    "an example that imports it": fence(CODE) + fence("from solution import f\nprint(f(1))\n"),
    "an example that loops over it": fence(CODE) + fence("for f in [f, f]:\n    print(f(1))\n"),
    "defined by cases": fence(f"import sys\nif sys.version_info > (3,):\n{indent(CODE, '    ')}") + fence("f(2)\n"),
    "a constant, without a fence": "K = 2\ndef f(n):\n    return K * n",
    "a typed constant, without a fence": "K: int = 2\n\ndef f(n):\n    return K * n",
    "pieces, without a fence": "A helper:\n\ndef g(n):\n    return 2 * n\n\nIt doubles.\n\n"
    "def f(n):\n    return g(n)\n\nSo it is.",
    "python:a.py": fence(CODE, "python:a.py"),
    "{.python}": fence(CODE, "{.python}"),
    "Python 3": fence(CODE, "Python 3"),
    "ipython": fence(f"%matplotlib inline\n!pip install x\n{CODE}", "ipython"),
    "text": fence(CODE, "text"),
    "text after Python": fence(CODE) + fence("def f(n):\n    return None\n", "text"),
    "a quote": f"> Sure:\n> {F}python\n> def f(n):\n>     return 2 * n\n>\n> {F}\nDone",
    "in a Markdown block": f"{F}markdown\n# Title\n{fence(CODE)}Done\n{F}\nHope this helps",
    "in a Markdown block of four marks": f"{F}`markdown\n# Title\n{fence(CODE)}Done\n{F}`\nHope this helps",
    "an interactive session": fence(">>> def f(n):\n...     return 2 * n\n...\n>>> f(2)\n4\n"),
    "a tag in a comment": fence("def f(n):\n    # after </think> or <think>\n    return 2 * n\n"),
    "a tag in a comment, after a thought": "<think>Hm</think>\n"
    + fence("def f(n):\n    # </think>\n    return 2 * n\n"),
    "a tag in a string, without a fence": "def f(n):\n    tags = '<think>', '</think>'\n    return 2 * n\n",
}
