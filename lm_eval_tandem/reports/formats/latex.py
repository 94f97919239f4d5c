"""A report's tables as LaTeX, for a document that loads the packages booktabs and graphicx."""

from __future__ import annotations

from lm_eval_tandem.reports.table import Cell, Number, Report, Table

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "≤": r"$\leq$",
    "…": r"\dots{}",
    "×": r"$\times$",
    "–": "--",
}
_RESIZED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
"""Scales a table that is wider than the line down to it, and leaves any other as it is."""


def render(report: Report) -> str:
    """Return every table, those behind figures included; wide ones span both columns of a page."""
    lines = [f"% {report.title}", r"% needs \usepackage{booktabs,graphicx}"]
    lines += [f"% {line}" for line in report.environment]
    for table in report.tables:
        lines += ["", *table_lines(table)]
    return "\n".join(lines) + "\n"


def table_lines(table: Table) -> list[str]:
    """Return the lines of one floating table."""
    wide = "table*" if len(table.columns) > 5 else "table"
    caption = ". ".join(part.rstrip(".") for part in (table.title, table.caption) if part) + "."
    return [
        rf"\begin{{{wide}}}",
        r"\centering\small\setlength{\tabcolsep}{4pt}",
        _RESIZED,
        rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        r"\toprule",
        " & ".join(wrapped_heading(column) for column in table.columns) + r" \\",
        r"\midrule",
        *[" & ".join(map(cell, row)) + r" \\" for row in table.rows],
        r"\bottomrule",
        r"\end{tabular}}",
        rf"\caption{{{escaped(caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\end{{{wide}}}",
    ]


def cell(content: Cell) -> str:
    """Return one cell; an interval is printed small below its number."""
    if not isinstance(content, Number):
        return escaped(content)
    value = content.text.replace("-", "$-$").replace("+", "$+$")
    if content.interval is None:
        return value
    interval = content.interval_text.replace("-", "$-$").replace("+", "$+$")
    return rf"\begin{{tabular}}{{@{{}}r@{{}}}}{value}\\[-2pt]\tiny {interval}\end{{tabular}}"


def wrapped_heading(column: str) -> str:
    """Return a heading broken into lines of about 14 letters, so that columns stay as narrow as their numbers."""
    lines: list[str] = []
    for word in column.split():
        if lines and len(lines[-1]) + len(word) < 14:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    joined = r"\\".join(map(escaped, lines))
    return joined if len(lines) == 1 else rf"\begin{{tabular}}[b]{{@{{}}r@{{}}}}{joined}\end{{tabular}}"


def escaped(text: str) -> str:
    """Return a text in which LaTeX finds no command."""
    return "".join(_ESCAPES.get(letter, letter) for letter in text)
