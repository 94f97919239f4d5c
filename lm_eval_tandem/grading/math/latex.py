r"""A small recursive-descent reader of LaTeX (and plain) arithmetic into sympy expressions, for the second grader.

It knows what answers of mathematics benchmarks hold: numbers, letters with subscripts, `+ - * /`, powers, factorials,
`\frac`, `\sqrt`, `\binom`, absolute values, the usual functions, mixed numbers. Whatever else occurs raises
`NotArithmetic`; nothing of the text is ever evaluated as code. Decimals become exact fractions.
"""

from __future__ import annotations

import re

import sympy
from sympy import Expr, Integer, Rational, Symbol

TOKEN = re.compile(r"\s*(\\[A-Za-z]+|\d+\.\d+|\d+|\.\d+|[A-Za-z]|\\[{}|]|[-+*/^_!(){}\[\]|])")
WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi varphi chi psi "
    "omega Gamma Delta Theta Lambda Sigma Phi Psi Omega"
).split()
CONSTANTS: dict[str, Expr] = {r"\pi": sympy.pi, r"\infty": sympy.oo, "e": sympy.E, "i": sympy.I}
FUNCTIONS = {
    "sin": sympy.sin,
    "cos": sympy.cos,
    "tan": sympy.tan,
    "cot": sympy.cot,
    "sec": sympy.sec,
    "csc": sympy.csc,
    "arcsin": sympy.asin,
    "arccos": sympy.acos,
    "arctan": sympy.atan,
    "sinh": sympy.sinh,
    "cosh": sympy.cosh,
    "tanh": sympy.tanh,
    "ln": sympy.log,
    "log": sympy.log,
    "exp": sympy.exp,
}
TIMES = ("*", r"\cdot", r"\times", r"\ast")
OVER = ("/", r"\div")
STARTS = ("(", "{", "[", "|", r"\frac", r"\sqrt", r"\binom", r"\lfloor", r"\lceil")
CLOSING = {"(": ")", "[": "]", "{": "}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}


class NotArithmetic(ValueError):
    """The text is no expression that this reader knows."""


def read(text: str) -> Expr:
    """The expression a text stands for. Raises NotArithmetic."""
    if WORD.search(text):
        raise NotArithmetic(f"words in {text!r}")
    reader = _Reader(_tokens(text))
    value = reader.sum()
    if reader.next is not None:
        raise NotArithmetic(f"{reader.next!r} is left over in {text!r}")
    return value


def _tokens(text: str) -> list[str]:
    found, at, text = [], 0, text.rstrip()
    while at < len(text):
        token = TOKEN.match(text, at)
        if token is None:
            raise NotArithmetic(f"{text[at : at + 10]!r} is no arithmetic")
        found.append(token[1])
        at = token.end()
    if not found:
        raise NotArithmetic("nothing there")
    return found


class _Reader:
    """One method per level of the grammar; each leaves the reader at the first token that is not its own."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.at = 0
        self.bars = 0

    @property
    def next(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self, expected: str | None = None) -> str:
        token = self.next
        if token is None or (expected is not None and token != expected):
            raise NotArithmetic(f"expected {expected or 'more'}, found {token}")
        self.at += 1
        return token

    def sum(self) -> Expr:
        value = self.product()
        while self.next in ("+", "-"):
            value = value + self.product() if self.take() == "+" else value - self.product()
        return value

    def product(self) -> Expr:
        if self.next in ("+", "-"):
            return self.product() if self.take() == "+" else -self.product()
        value = self.power()
        while True:
            if self.next in TIMES:
                self.take()
                value = value * self.signed()
            elif self.next in OVER:
                self.take()
                value = value / self.signed()
            elif self.starts():
                value = value * self.power()
            else:
                return value

    def signed(self) -> Expr:
        if self.next in ("+", "-"):
            return self.signed() if self.take() == "+" else -self.signed()
        return self.power()

    def starts(self) -> bool:
        """Whether the next token begins a factor, so that a product without a sign goes on."""
        token = self.next
        if token is None or (token == "|" and self.bars):
            return False
        return token in STARTS or token in CONSTANTS or token[0].isalnum() or token[0] == "." or self.is_name(token)

    @staticmethod
    def is_name(token: str) -> bool:
        return token[0] == "\\" and (token[1:] in GREEK or token[1:] in FUNCTIONS)

    def power(self) -> Expr:
        base = self.atom()
        while self.next in ("^", "!"):
            base = base ** self.argument() if self.take() == "^" else sympy.factorial(base)
        return base

    def argument(self) -> Expr:
        """What a command or a power takes: a group in braces, or one token (of a number its first digit)."""
        if self.next == "{":
            return self.group()
        if self.next == "-":
            self.take()
            return -self.argument()
        token = self.next
        if token is not None and token.isdigit() and len(token) > 1:
            self.tokens[self.at : self.at + 1] = [token[0], token[1:]]
            return Integer(self.take())
        return self.atom()

    def group(self) -> Expr:
        closing = CLOSING[self.take()]
        bars, self.bars = self.bars, 0
        value = self.sum()
        self.bars = bars
        self.take(closing)
        return value

    def atom(self) -> Expr:
        token = self.next
        if token is None:
            raise NotArithmetic("ends too early")
        if token[0].isdigit() or token[0] == ".":
            return self.number()
        if token in (r"\lfloor", r"\lceil"):
            return (sympy.floor if token == r"\lfloor" else sympy.ceiling)(self.group())
        if token in CLOSING:
            return self.group()
        self.take()
        if token == "|":
            self.bars += 1
            value = sympy.Abs(self.sum())
            self.bars -= 1
            self.take("|")
            return value
        if token in (r"\frac", r"\binom"):
            upper, lower = self.argument(), self.argument()
            return upper / lower if token == r"\frac" else sympy.binomial(upper, lower)
        if token == r"\sqrt":
            root = self.group() if self.next == "[" else Integer(2)
            return self.argument() ** (1 / root)
        if token in CONSTANTS and self.next != "_":
            return CONSTANTS[token]
        if token[1:] in FUNCTIONS:
            return self.function(token[1:])
        if token[0].isalpha() or token[1:] in GREEK:
            return Symbol(token + self.subscript(), positive=True)
        raise NotArithmetic(f"{token} is not known")

    def number(self) -> Expr:
        """A number; an integer right before a proper fraction of integers makes a mixed number."""
        digits = self.take()
        value: Expr = Rational(digits)
        ahead = self.tokens[self.at : self.at + 7]
        if digits.isdigit() and [*ahead[:2], *ahead[3:5], *ahead[6:]] == [r"\frac", "{", "}", "{", "}"]:
            upper, lower = ahead[2], ahead[5]
            if upper.isdigit() and lower.isdigit() and int(upper) < int(lower):
                self.at += 7
                value += Rational(int(upper), int(lower))
        return value

    def subscript(self) -> str:
        if self.next != "_":
            return ""
        self.take()
        if self.next != "{":
            return "_" + self.take()
        end = self.tokens.index("}", self.at) if "}" in self.tokens[self.at :] else self.at
        inside = self.tokens[self.at + 1 : end]
        self.at = end
        self.take("}")
        return "_" + "".join(inside)

    def function(self, name: str) -> Expr:
        r"""`\sin x`, `\sin^2 x`, `\log_2 8`; without parentheses the argument is the product up to the next sign."""
        base, power = None, None
        if name == "log" and self.next == "_":
            self.take()
            base = self.argument()
        if self.next == "^":
            self.take()
            power = self.argument()
        inside = self.group() if self.next in ("(", "{", "[") else self.operand()
        value = FUNCTIONS[name](inside) if base is None else sympy.log(inside, base)
        if power is None:
            return value
        if power == -1 and "arc" + name in FUNCTIONS:
            return FUNCTIONS["arc" + name](inside)
        return value**power

    def operand(self) -> Expr:
        value = self.signed()
        while self.starts() and (self.next or "")[1:] not in FUNCTIONS:
            value = value * self.power()
        return value
