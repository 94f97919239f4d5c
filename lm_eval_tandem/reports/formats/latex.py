"""A report's tables as LaTeX, for a paper that loads `booktabs` and `graphicx`."""

from __future__ import annotations

from lm_eval_tandem.reports.table import Cell, Number, Report, Table

_ESCAPED = {
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
}


_FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
"""Makes a table that is too wide as narrow as the page, and leaves every other alone."""


def text(report: Report) -> str:
    """Every table, those behind the figures included; wide ones span both columns."""
    lines = [f"% {report.title}", r"% needs \usepackage{booktabs,graphicx}"]
    lines += [f"% {line}" for line in report.circumstances]
    for table in report.tables:
        lines += ["", *of_table(table)]
    return "\n".join(lines) + "\n"


def of_table(table: Table) -> list[str]:
    """One floating table."""
    wide = "table*" if len(table.columns) > 5 else "table"
    caption = ". ".join(part.rstrip(".") for part in (table.title, table.caption) if part) + "."
    return [
        rf"\begin{{{wide}}}",
        r"\centering\small\setlength{\tabcolsep}{4pt}",
        _FITTED,
        rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        r"\toprule",
        " & ".join(stacked(column) for column in table.columns) + r" \\",
        r"\midrule",
        *[" & ".join(map(cell, row)) + r" \\" for row in table.rows],
        r"\bottomrule",
        r"\end{tabular}}",
        rf"\caption{{{escaped(caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\end{{{wide}}}",
    ]


def cell(content: Cell) -> str:
    """One cell; an interval stands small below its figure."""
    if not isinstance(content, Number):
        return escaped(content)
    value = content.text.replace("-", "$-$").replace("+", "$+$")
    if content.interval is None:
        return value
    span = content.range.replace("-", "$-$").replace("+", "$+$")
    return rf"\begin{{tabular}}{{@{{}}r@{{}}}}{value}\\[-2pt]\tiny {span}\end{{tabular}}"


def stacked(column: str) -> str:
    """A heading over several lines of about 14 letters, so that columns stay as narrow as their figures."""
    lines: list[str] = []
    for word in column.split():
        if lines and len(lines[-1]) + len(word) < 14:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    joined = r"\\".join(map(escaped, lines))
    return joined if len(lines) == 1 else rf"\begin{{tabular}}[b]{{@{{}}r@{{}}}}{joined}\end{{tabular}}"


def escaped(text: str) -> str:
    """Text in which nothing is a command."""
    return "".join(_ESCAPED.get(letter, letter) for letter in text)
