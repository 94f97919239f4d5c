"""A report as Markdown."""

from __future__ import annotations

from lm_eval_tandem.reports.table import ENVIRONMENT_TITLE, Cell, Figure, Missing, Part, Report, Table


def render(report: Report, figures: str | None = None) -> str:
    """Return the report as Markdown.

    Parameters
    ----------
    report
        The report.
    figures
        The folder of the SVG files that figures are linked to; None to print the numbers of a figure as a table.
    """
    lines = [f"# {report.title}", ""]
    for title, facts in report.headlines:
        lines += [f"**{title}**: " + "; ".join(f"{value} {meaning}" for value, meaning in facts) + ".", ""]
    for section in report.sections:
        lines += [f"## {section.title}", "", section.intro, ""]
        for part in section.parts:
            lines += [*part_lines(part, figures), ""]
    return "\n".join([*lines, f"## {ENVIRONMENT_TITLE}", "", *[f"- {line}" for line in report.environment]]) + "\n"


def part_lines(part: Part, figures: str | None) -> list[str]:
    """Return the lines of a table, a figure or a missing part."""
    if isinstance(part, Missing):
        return [f"*Missing:* {part.reason}", *(["", "```", part.command, "```"] if part.command else [])]
    heading = [f"### {part.title}", ""]
    if isinstance(part, Figure):
        if figures is not None:
            link = f"[the numbers](tables/{part.data.name}.csv)"
            return [*heading, f"![{part.title}]({figures}/{part.name}.svg)", "", link]
        return heading + table_lines(part.data)
    return heading + table_lines(part)


def table_lines(table: Table) -> list[str]:
    """Return the lines of a table: caption, headings, rows."""
    lines = [table.caption, ""] if table.caption else []
    lines += ["| " + " | ".join(map(cell, table.columns)) + " |", "|---" * len(table.columns) + "|"]
    return lines + ["| " + " | ".join(map(cell, row)) + " |" for row in table.rows]


def cell(content: Cell) -> str:
    """Return a cell in which no character ends it."""
    return str(content).replace("|", "\\|")
