r"""Brings an answer to one way of writing, in LaTeX that both graders read; its value stays as it is.

`respell` applies the steps of `STEPS` in order. Each does one thing: characters beyond ASCII, commands that print
nothing, synonyms of commands, arguments without braces, numbers. Words and units are the business of `quantity`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

RELATIONS = "le ge ne approx pm mp cup cap in notin infty emptyset to angle"
GREEK = (
    "pi theta alpha beta gamma delta lambda mu phi omega sigma tau rho epsilon eta kappa xi chi psi zeta "
    "Delta Omega Sigma Gamma Pi Phi Psi Lambda Theta"
)
FRACTIONS = "112131234151357", "233445555668888"
"""Upper and lower digits of the fractions that are one character."""
SIGNS = {
    **dict.fromkeys("−–—﹣－", "-"),
    **dict.fromkeys("×✕", r"\times "),
    **dict.fromkeys("·⋅∙•", r"\cdot "),
    **dict.fromkeys("÷∕⁄", "/"),
    **dict.fromkeys("\u00a0\u2009\u202f\u3000\u2002\u2003", " "),
    **dict.fromkeys("\u200b\u2061\u2062\ufeff", ""),
    **dict.fromkeys("、，", ","),
    **dict.fromkeys("’′", "'"),
    **{sign: rf"\{name} " for sign, name in zip("≤≥≠≈±∓∪∩∈∉∞∅→∠", RELATIONS.split(), strict=True)},
    **{sign: rf"\{name} " for sign, name in zip("πθαβγδλμφωστρεηκξχψζΔΩΣΓΠΦΨΛΘ", GREEK.split(), strict=True)},
    **{sign: rf"\mathbb{{{letter}}}" for sign, letter in zip("ℝℤℕℚℂ", "RZNQC", strict=True)},
    **{sign: rf"\frac{{{up}}}{{{low}}}" for sign, up, low in zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", *FRACTIONS, strict=True)},
    "°": r"^\circ ",
    "。": ".",
}
"""LaTeX for characters that models write in its place."""
SUPERSCRIPTS = {ord(sign): plain for sign, plain in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True)}
SUBSCRIPTS = {ord(sign): plain for sign, plain in zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True)}
FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
FONTS = (
    "text textbf textit textrm textnormal textsf texttt mathrm mathbf mathit mathsf mathtt boldsymbol bm mbox hbox"
).split()
r"""Commands that only choose a font; `\text{…}` stands for all of them from here on."""
FUNCTIONS = {
    **{name: rf"\{name}" for name in "sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan ln log exp".split()},
    **{short: rf"\arc{short[1:]}" for short in "asin acos atan".split()},
    **{name: rf"\operatorname{{{name}}}" for name in "arcsinh arccosh arctanh".split()},
    **{short: rf"\operatorname{{arc{short[1:]}}}" for short in "asinh acosh atanh".split()},
    **{short: rf"\operatorname{{arc{short[2:]}}}" for short in "arsinh arcosh artanh".split()},
}
"""How both graders write a function, by the names that answers use for it."""
_ANY_FUNCTION = "|".join(sorted(FUNCTIONS, key=len, reverse=True))
PRINTS_NOTHING: Sequence[tuple[str, str]] = (
    (r"\\(?:left|right|middle|[bB]igg?[lrm]?)\s*\.", ""),
    (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*", ""),
    (r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|rm|bf|it)(?![A-Za-z])", ""),
    (r"(?<!\\)\\!\s*", ""),
    (r"\{\s*,\s*\}", ","),
    (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![A-Za-z])|\\(?:h|v)space\{[^{}]*\}", " "),
    (r"\\(?:phantom|tag|label)\{[^{}]*\}", ""),
    (r"(?<!\\)\{\s*\{((?:[^{}]|\{[^{}]*\})*)\}\s*\}", r"{\1}"),
    (r"(?<![\\\d])\$|(?<=\d)\$(?!\d)|\\[()]", " "),
)
"""Patterns and replacements for what prints nothing but a space. The `$` of a price stays."""
SYNONYMS: Sequence[tuple[str, str]] = (
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
    (r"\\geqslant|\\geqq|\\geq(?![A-Za-z])|>=|=>", r"\\ge "),
    (r"\\leqslant|\\leqq|\\leq(?![A-Za-z])|<=", r"\\le "),
    (r"\\gt(?![A-Za-z])", ">"),
    (r"\\lt(?![A-Za-z])", "<"),
    (r"\\neq(?![A-Za-z])|\\not\s*=|!=", r"\\ne "),
    (r"\\(?:simeq|thickapprox|doteq)(?![A-Za-z])|≅|≃|~=", r"\\approx "),
    (r"\\varnothing|\\\{\s*\\\}", r"\\emptyset "),
    (r"\\[lr]?vert(?![A-Za-z])", "|"),
    (r"\\lbrace(?![A-Za-z])", r"\\{"),
    (r"\\rbrace(?![A-Za-z])", r"\\}"),
    (r"\\(?:langle|lbrack(?=.*\\rangle))(?![A-Za-z])(.*?)\\rangle(?![A-Za-z])", r"(\1)"),
    (r"\\lbrack(?![A-Za-z])", "["),
    (r"\\rbrack(?![A-Za-z])", "]"),
    (r"\\mathbb\s*\{?\s*([A-Z])\s*\}?", r"\\mathbb{\1}"),
    (r"\\mathds\s*\{?\s*([A-Z])\s*\}?", r"\\mathbb{\1}"),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])|\\textdegree(?![A-Za-z])", r"^\\circ "),
    (r"\\(?:cdotp|centerdot|ast)(?![A-Za-z])", r"\\cdot "),
    (r"\\(?:ldots|cdots|dots|dotsc)(?![A-Za-z])|…", "..."),
    (r"\\%", "%"),
    (r"\*\*", "^"),
    (r"\\imaginaryunit(?![A-Za-z])|\\[ij]math(?![A-Za-z])", "i "),
    (r"\\exponentialE(?![A-Za-z])", "e "),
    (r"(?<!\\)\bsqrt\s*\(([^()]*)\)|√\s*\(([^()]*)\)", r"\\sqrt{\1\2}"),
    (r"√\s*(\d+(?:\.\d+)?|[A-Za-z])", r"\\sqrt{\1}"),
    (r"(?<!\\)\bsqrt\s*(\d+)", r"\\sqrt{\1}"),
    (r"∛\s*\(?(\d+)\)?", r"\\sqrt[3]{\1}"),
    (r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
    (r"(?<![A-Za-z\\])(?:inf|infinity|oo)(?![A-Za-z])", r"\\infty "),
    (r"\+\s*\\infty", r"\\infty"),
)
"""Patterns and replacements for commands and signs that mean the same."""
MATRICES = re.compile(r"\\(begin|end)\{(?:[pbB]?matrix|smallmatrix|array)\}(?:\s*\{[lcr|\s]*\})?")
_REPEATING = re.compile(r"(\d*)\.(\d*)(?:\\(?:overline|bar|dot|widehat)\s*\{?(\d+)\}?|\((\d+)\)(?!\s*[\d(\\]))")
_REPEATED = re.compile(r"(\d*)\.(\d*?)(\d{1,3}?)\3{2,}\.\.\.")
_MIXED = re.compile(r"(?<![\d.}^_\w])(\d+)\s*(?:\\frac\{(\d+)\}\{(\d+)\}|\s(\d+)\s?/\s?(\d+)(?![\d.]))(?!\s*\^)")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d/]| \d)")
_TAKES_ARGUMENTS = re.compile(r"\\(frac|binom|sqrt)(?![A-Za-z])\s*")
_ARGUMENT = re.compile(r"\s*(\\[A-Za-z]+(?:\s*\{[^{}]*\})?|\\?[A-Za-z\d])")


def respell(text: str) -> str:
    r"""Return an answer in the way of writing that this module describes.

    Examples
    --------
    >>> respell(r"$\left( \dfrac \pi4 \right]$"), respell("3 1/2"), respell("７０\\,０００")
    ('( \\frac{\\pi}{4} ]', '(3+\\frac{1}{2})', '70000')
    """
    for step in STEPS:
        text = step(text)
    return re.sub(r"\s+", " ", text).strip()


def _characters(text: str) -> str:
    """ASCII and LaTeX for other characters."""
    text = text.translate(FULL_WIDTH)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda match: "^{" + match[0].translate(SUPERSCRIPTS) + "}", text)
    text = re.sub("[₀-₉]+", lambda match: "_{" + match[0].translate(SUBSCRIPTS) + "}", text)
    return "".join(SIGNS.get(character, character) for character in text)


def _ends(text: str) -> str:
    """Without a full stop, quotation marks and lone backslashes at the ends."""
    text = text.strip().strip('"“”`').strip()
    text = re.sub(r"(?<![\\.])\.$", "", text)
    return re.sub(r"(?<!\\)\\$|\\\\$", "", text).strip()


def _separators(text: str) -> str:
    """Commas for semicolons, and no braces that print nothing: `{1, 2}` as `1, 2`, `1, 2; 3, 4` as `(1, 2), (3, 4)`."""
    text = text.strip()
    text = text[1:-1] if re.fullmatch(r"\{[^{}]*,[^{}]*\}", text) else text
    groups = text.split(";")
    if any("," in group and not re.search(r"[()\[\]]", group) for group in groups[1:]):
        return ", ".join(f"({group.strip()})" for group in groups)
    return text.replace(";", ",") if len(groups) > 1 and not re.search(r"\\begin", text) else text


def _doubled_backslashes(text: str) -> str:
    r"""One backslash where an answer was escaped twice (`\\frac`); `\\` between the rows of a matrix stays."""
    if re.search(r"\\\\begin", text):
        return text.replace("\\\\", "\\")
    return text if r"\begin" in text else re.sub(r"\\\\(?=[A-Za-z]{2})", r"\\", text)


def _fonts(text: str) -> str:
    r"""`\text{…}` for every font, nothing around a single letter or around mathematics."""
    text = re.sub(rf"\\(?:{'|'.join(FONTS)})(?![A-Za-z])\s*(?=\{{)", r"\\text", text)
    text = re.sub(r"\\(?:mathcal|mathfrak|vec|hat|widehat|overrightarrow)\s*\{([A-Za-z])\}", r"\1", text)
    text = re.sub(r"\\text\{\s*([A-Z](?:\s*,\s*(?:and\s+)?[A-Z])+)\s*\}", r"\1", text)
    text = re.sub(r"\\text\{\s*([a-zA-Z])\s*\}", _bare_letter, text)
    return re.sub(r"\\text\{([-+*/=\d.,\s()$\\]*)\}", r" \1 ", text)


def _bare_letter(match: re.Match[str]) -> str:
    """A letter out of its font, unless it is the unit of the number before it."""
    number = r"[\d)]\s*$" if match[1].isupper() else r"[\d})]\s*$"
    return match[0] if re.search(number, match.string[: match.start()]) else match[1]


def _functions(text: str) -> str:
    r"""One name for each function, and its argument in round brackets: `\operatorname{asin}{\left(a\right)}`."""
    text = re.sub(
        rf"(?:\\operatorname\*?\s*\{{\s*({_ANY_FUNCTION})\s*\}}|\\({_ANY_FUNCTION})(?![A-Za-z])|(?<![A-Za-z\\{{])({_ANY_FUNCTION})(?=\s*\())",
        lambda match: FUNCTIONS[match[1] or match[2] or match[3]] + " ",
        text,
    )
    text = re.sub(r"\\(sin|cos|tan|sinh|cosh|tanh)\s*\^\s*\{\s*-1\s*\}", _inverse, text)
    return re.sub(r"(\\[a-z]+|\\operatorname\{[a-z]+\}) \{\s*(\([^{}]*\))\s*\}", r"\1 \2", text)


def _inverse(match: re.Match[str]) -> str:
    return FUNCTIONS["arc" + match[1]] + " "


def _replace(table: Sequence[tuple[str, str]]) -> Callable[[str], str]:
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in table]

    def step(text: str) -> str:
        for pattern, replacement in compiled:
            text = pattern.sub(replacement, text)
        return text

    return step


def _matrices(text: str) -> str:
    r"""`pmatrix` for each matrix, without brackets around it or an empty last row."""
    text = MATRICES.sub(r"\\\1{pmatrix}", text)
    text = re.sub(r"\\\\\s*\\end\{pmatrix\}", r"\\end{pmatrix}", text)
    whole = re.fullmatch(r"[\[({]?\s*(\\begin\{pmatrix\}(?:(?!\\begin).)*\\end\{pmatrix\})\s*[\])}]?", text, re.DOTALL)
    return whole[1] if whole else text


def _arguments(text: str) -> str:
    r"""Braces around the arguments of `\frac`, `\binom` and `\sqrt`: LaTeX takes one character or command."""
    done, rest = "", text
    while match := _TAKES_ARGUMENTS.search(rest):
        done += rest[: match.start()] + "\\" + match[1]
        rest = rest[match.end() :]
        if match[1] == "sqrt" and rest.startswith("[") and "]" in rest:
            root, rest = rest.split("]", 1)
            done += root + "]"
        for _ in range(1 if match[1] == "sqrt" else 2):
            argument, rest = _argument(rest)
            done += argument
    return done + rest


def _argument(text: str) -> tuple[str, str]:
    """The first argument in a text, in braces, and what follows; both as they are if there is none."""
    text = text.lstrip()
    if text.startswith("{"):
        depth = 0
        for end, character in enumerate(text):
            depth += (character == "{") - (character == "}")
            if depth == 0:
                return "{" + _arguments(text[1:end].strip()) + "}", text[end + 1 :]
    match = None if text.startswith("{") else _ARGUMENT.match(text)
    return ("{" + _arguments(match[1]) + "}", text[match.end() :]) if match else ("", text)


def _numbers(text: str) -> str:
    """Exponents in braces, spaces within numbers, scientific notation, repeating decimals and mixed numbers."""
    text = re.sub(r"\^\s*(-?\d+)", r"^{\1}", text)
    text = re.sub(r"\^\s*\(([^()]*)\)", r"^{\1}", text)
    text = re.sub(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d+)(?!\w)", r"\1 \\times 10^{\2}", text)
    text = re.sub(r"(?<![\d.])(\d+),\s?(\d{3})(?=,\s\d{3}(?:\D|$))", r"\1,\2", text)
    text = _SPACED_THOUSANDS.sub(lambda match: match[0].replace(" ", ""), text)
    text = _REPEATING.sub(_as_fraction, text)
    text = _REPEATED.sub(_as_fraction, text)
    return _MIXED.sub(_mixed, text)


def _as_fraction(match: re.Match[str]) -> str:
    whole, fixed, repeating = match[1], match[2], match[3] or match[4]
    value = Fraction(int((whole or "0") + fixed + repeating) - int((whole or "0") + fixed), 10 ** len(fixed)) / (
        10 ** len(repeating) - 1
    )
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _mixed(match: re.Match[str]) -> str:
    r"""`3\frac{1}{2}` as a sum; a fraction above one, as in `2\frac{7}{3}`, is a factor."""
    upper, lower = match[2] or match[4], match[3] or match[5]
    return rf"({match[1]}+\frac{{{upper}}}{{{lower}}})" if int(upper) < int(lower) else match[0]


STEPS: Sequence[Callable[[str], str]] = (
    _characters,
    _doubled_backslashes,
    _ends,
    _fonts,
    _replace(PRINTS_NOTHING),
    _replace(SYNONYMS),
    _functions,
    _matrices,
    _arguments,
    _numbers,
    _separators,
    _ends,
)
"""In this order: characters first, since all later patterns are ASCII; numbers last, since they look for braces."""
