r"""A small recursive-descent parser of LaTeX (and plain) arithmetic, for the second grader in `normalise`.

It accepts what answers of mathematics benchmarks hold: numbers, letters with subscripts, `+ - * /`, powers, factorials,
`\frac`, `\sqrt`, `\binom`, absolute values, the usual functions and mixed numbers. Anything else raises
`NotArithmetic`; no part of the text is ever evaluated as code. Decimals become exact fractions.
"""
# ruff: noqa: S105 - the tokens here are words of a grammar, not passwords

from __future__ import annotations

import re

import sympy
from sympy import Expr, Integer, Rational, Symbol

TOKEN = re.compile(r"\s*(\\[A-Za-z]+|\d+\.\d+|\d+|\.\d+|[A-Za-z]|\\[{}|]|[-+*/^_!(){}\[\]|])")
WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
"""Three letters in a row, which are a word and not a product of letters."""
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
TIMES_SIGNS = ("*", r"\cdot", r"\times", r"\ast")
DIVISION_SIGNS = ("/", r"\div")
FACTOR_STARTS = ("(", "{", "[", "|", r"\frac", r"\sqrt", r"\binom", r"\lfloor", r"\lceil")
"""Tokens, besides numbers, letters and functions, that start a factor of a product without a sign."""
CLOSING = {"(": ")", "[": "]", "{": "}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}


class NotArithmetic(ValueError):
    """The text is not an expression that this parser accepts."""


def parse(text: str) -> Expr:
    r"""Return the sympy expression that a text stands for.

    Raises
    ------
    NotArithmetic
        The text is not an expression that this parser accepts.

    Examples
    --------
    >>> parse(r"\frac{3}{4} + 0.5")
    5/4
    """
    if WORD.search(text):
        raise NotArithmetic(f"words in {text!r}")
    parser = _Parser(_tokens(text))
    value = parser.sum()
    if parser.next is not None:
        raise NotArithmetic(f"{parser.next!r} is left over in {text!r}")
    return value


def _tokens(text: str) -> list[str]:
    tokens, position, text = [], 0, text.rstrip()
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            raise NotArithmetic(f"{text[position : position + 10]!r} is not arithmetic")
        tokens.append(match[1])
        position = match.end()
    if not tokens:
        raise NotArithmetic("the text is empty")
    return tokens


class _Parser:
    """A parser with one method per rule of the grammar; each stops before the first token that its rule does not cover.

    Attributes
    ----------
    tokens
        The whole text.
    position
        Index of the next token.
    open_bars
        Number of absolute values that are open in the current group. While there are any, the next `|` at the place of
        a factor closes one.
    """

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0
        self.open_bars = 0

    @property
    def next(self) -> str | None:
        """The next token; None at the end."""
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def take(self, expected: str | None = None) -> str:
        """Consume and return the next token. Raises NotArithmetic if there is none, or not the expected one."""
        token = self.next
        if token is None or (expected is not None and token != expected):
            raise NotArithmetic(f"expected {expected or 'more'}, found {token}")
        self.position += 1
        return token

    def sum(self) -> Expr:
        """Products between `+` and `-`."""
        value = self.product()
        while self.next in ("+", "-"):
            value = value + self.product() if self.take() == "+" else value - self.product()
        return value

    def product(self) -> Expr:
        """Factors between signs of multiplication and division, or without a sign between them."""
        if self.next in ("+", "-"):
            return self.product() if self.take() == "+" else -self.product()
        value = self.power()
        while True:
            if self.next in TIMES_SIGNS:
                self.take()
                value = value * self.signed()
            elif self.next in DIVISION_SIGNS:
                self.take()
                value = value / self.signed()
            elif self.starts_factor():
                value = value * self.power()
            else:
                return value

    def signed(self) -> Expr:
        """A power with any number of signs in front."""
        if self.next in ("+", "-"):
            return self.signed() if self.take() == "+" else -self.signed()
        return self.power()

    def starts_factor(self) -> bool:
        """Whether the next token starts a factor, so that a product without a sign continues."""
        token = self.next
        if token is None or (token == "|" and self.open_bars):
            return False
        return (
            token in FACTOR_STARTS
            or token in CONSTANTS
            or token[0].isalnum()
            or token[0] == "."
            or self.is_command(token)
        )

    @staticmethod
    def is_command(token: str) -> bool:
        """Whether the token is a LaTeX command for a Greek letter or a function."""
        return token[0] == "\\" and (token[1:] in GREEK or token[1:] in FUNCTIONS)

    def power(self) -> Expr:
        """An atom with any number of exponents and factorial signs behind it."""
        base = self.atom()
        while self.next in ("^", "!"):
            base = base ** self.argument() if self.take() == "^" else sympy.factorial(base)
        return base

    def argument(self) -> Expr:
        r"""What follows a command or a `^`: a group in braces, or one token, of a number only its first digit.

        That is LaTeX's rule: `\frac12` is one half, and `x^12` is x to the power of 1, times 2.
        """
        if self.next == "{":
            return self.group()
        if self.next == "-":
            self.take()
            return -self.argument()
        token = self.next
        if token is not None and token.isdigit() and len(token) > 1:
            self.tokens[self.position : self.position + 1] = [token[0], token[1:]]
            return Integer(self.take())
        return self.atom()

    def group(self) -> Expr:
        """An expression in brackets or braces."""
        closing = CLOSING[self.take()]
        open_bars, self.open_bars = self.open_bars, 0
        value = self.sum()
        self.open_bars = open_bars
        self.take(closing)
        return value

    def atom(self) -> Expr:
        """A number, a letter, a group, or a command with its arguments."""
        token = self.next
        if token is None:
            raise NotArithmetic("the text ends too early")
        if token[0].isdigit() or token[0] == ".":
            return self.number()
        if token in (r"\lfloor", r"\lceil"):
            return (sympy.floor if token == r"\lfloor" else sympy.ceiling)(self.group())
        if token in CLOSING:
            return self.group()
        self.take()
        if token == "|":
            self.open_bars += 1
            value = sympy.Abs(self.sum())
            self.open_bars -= 1
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
        """A number. An integer right before a proper fraction of integers is a mixed number, not a product."""
        digits = self.take()
        value: Expr = Rational(digits)
        ahead = self.tokens[self.position : self.position + 7]
        if digits.isdigit() and [*ahead[:2], *ahead[3:5], *ahead[6:]] == [r"\frac", "{", "}", "{", "}"]:
            upper, lower = ahead[2], ahead[5]
            if upper.isdigit() and lower.isdigit() and int(upper) < int(lower):
                self.position += 7
                value += Rational(int(upper), int(lower))
        return value

    def subscript(self) -> str:
        """The subscript of a letter as part of its name, with `_` in front; "" if there is none."""
        if self.next != "_":
            return ""
        self.take()
        if self.next != "{":
            return "_" + self.take()
        end = self.tokens.index("}", self.position) if "}" in self.tokens[self.position :] else self.position
        inside = self.tokens[self.position + 1 : end]
        self.position = end
        self.take("}")
        return "_" + "".join(inside)

    def function(self, name: str) -> Expr:
        r"""A function with its argument: `\sin x`, `\sin^2 x`, `\log_2 8`. `\sin^{-1}` is the inverse function."""
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
        """The argument of a function without brackets: a product without signs, up to the next function."""
        value = self.signed()
        while self.starts_factor() and (self.next or "")[1:] not in FUNCTIONS:
            value = value * self.power()
        return value
